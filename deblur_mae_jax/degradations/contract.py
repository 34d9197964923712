"""The interface of a degradation.

To add a degradation, write a function in any module of this package that is annotated
`-> Degradation`. No other file needs a change: `lookup` finds the function by its name,
`"module.function(arg=1)"`, and the contract tests find it by listing the package.

An image is one example, float32 gray levels in 0..255 of shape `(*space, C)`; `jax.vmap` adds the
batch. `size` is the true extent of every spatial axis if the image occupies the corner of a larger,
padded canvas (the images of a set differ in size). `None` means the whole array.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Params = dict[str, Any]
Size = jax.Array | tuple[int | jax.Array, ...] | None


class Degradation(NamedTuple):
    """A degradation, split into its random draw and its deterministic effect.

    draw:    key -> parameters of one example (a dict of arrays; empty when nothing is random). The
             entry `level`, where present, is the integer that conditions the network (D2MAE's t).
    apply:   (image, parameters, size) -> image of the same shape and dtype.
    random:  whether `draw` depends on its key. A degradation that is not random is computed once per image.
    num_levels: number of blur levels, 0 without levels.
    at_level: level -> parameters, for degradations with levels 1..num_levels (blur search, reports).
    taps:    parameters -> symmetric 1-D kernel `(2r+1,)`, if the degradation applies this kernel along
             every spatial axis with a reflect-101 border. The kernel can then be folded into the resize.
    ndim:    the numbers of spatial axes for which the degradation is defined.
    keeps_constant: whether a constant image stays constant up to its border (true of every blur).
    identity: whether the image is left unchanged.
    """

    draw: Callable[[jax.Array], Params]
    apply: Callable[[jax.Array, Params, Size], jax.Array]
    random: bool = False
    num_levels: int = 0
    at_level: Callable[[jax.Array], Params] | None = None
    taps: Callable[[Params], jax.Array] | None = None
    ndim: tuple[int, ...] = (2, 3)
    keeps_constant: bool = True
    identity: bool = False


def fixed(apply: Callable[[jax.Array, Size], jax.Array], **kwargs: Any) -> Degradation:
    """A degradation without parameters, from `apply(image, size)`."""
    return Degradation(lambda key: {}, lambda image, params, size: apply(image, size), **kwargs)


def none() -> Degradation:
    """Leave the image as it is (MAE)."""
    return fixed(lambda image, size: image, identity=True)


def chain(steps: list[Degradation]) -> Degradation:
    """Apply `steps` in sequence. At most one of them may have levels."""
    if len(steps) == 1:
        return steps[0]
    levelled = [i for i, step in enumerate(steps) if step.num_levels]
    if len(levelled) > 1:
        raise ValueError("only one degradation of a chain can have levels")

    def draw(key):
        params = {f"{i}": p.draw(jax.random.fold_in(key, i)) for i, p in enumerate(steps)}
        return _lift_level(params)

    def _lift_level(params):
        if levelled and "level" in params[f"{levelled[0]}"]:
            params["level"] = params[f"{levelled[0]}"]["level"]
        return params

    def apply(image, params, size):
        for i, step in enumerate(steps):
            image = step.apply(image, params[f"{i}"], size)
        return image

    at_level = None
    if levelled and not any(p.random for i, p in enumerate(steps) if i not in levelled):

        def at_level(level):  # the other parts draw nothing, so any key will do
            params = {f"{i}": p.draw(jax.random.key(0)) for i, p in enumerate(steps)}
            step = steps[levelled[0]].at_level
            assert step is not None
            params[f"{levelled[0]}"] = step(level)
            return _lift_level(params)

    return Degradation(
        draw,
        apply,
        random=any(step.random for step in steps),
        num_levels=steps[levelled[0]].num_levels if levelled else 0,
        at_level=at_level,
        ndim=tuple(sorted(set.intersection(*(set(step.ndim) for step in steps)))),
        keeps_constant=all(step.keeps_constant for step in steps),
        identity=all(step.identity for step in steps),
    )
