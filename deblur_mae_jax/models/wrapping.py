"""Rules of networks that contain, under a prefix, an encoder which other networks have as their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deblur_mae_jax.models.contract import Adapted, Flat, Rules

# model -> the encoder that it contains, unbound, and the encoder's rules
Wrapped = Callable[[Any], tuple[Any, Rules]]


def inner(prefix: str, wrapped: Wrapped, extra: tuple[str, ...]) -> Callable[[Flat, Any], tuple[Flat, Any, Rules]]:
    """The rule that takes the encoder out of one of these networks, for one that trains it further.

    prefix: of the encoder's parameters, such as "encoder/".
    extra: prefixes of the parameters inside of the encoder that it does not have on its own.
    """

    def take(weights: Flat, model: Any) -> tuple[Flat, Any, Rules]:
        own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        return {name: value for name, value in own.items() if not name.startswith(extra)}, *wrapped(model)

    return take


def adapt(
    prefix: str, wrapped: Wrapped, extra: tuple[str, ...], unused: tuple[str, ...] = ()
) -> Callable[[Flat, Flat, Any, Any], Adapted]:  # fmt: skip
    """The rule of these networks: all from a network of the same kind, or the encoder from any that it fits.

    unused: prefixes of parameters that the encoder has on its own and not here. Other arguments as of `inner`.
    """

    def take(weights: Flat, needed: Flat, before: Any, model: Any) -> Adapted:
        encoder, rules = wrapped(model)
        own = {name.removeprefix(prefix): value for name, value in needed.items() if name.startswith(prefix)}
        inside = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        if inside:  # a network of the same kind, whose encoder may have another size
            kept = {name: value for name, value in inside.items() if name.startswith(extra)}
            rest = {name: value for name, value in inside.items() if name not in kept}
            found = rules.adapt(rest, own, wrapped(before)[0], encoder)
            others = {name: value for name, value in weights.items() if not name.startswith(prefix)}
            renamed = {prefix + name: value for name, value in (found.weights | kept).items()}
            return Adapted(others | renamed, lambda name: not name.startswith(prefix), found.resized)
        weights = {name: value for name, value in weights.items() if not name.startswith((*rules.heads, *unused))}
        found = rules.adapt(weights, own, before, encoder)
        renamed = {prefix + name: value for name, value in found.weights.items()}

        def optional(name: str) -> bool:
            inside = name.removeprefix(prefix)
            return inside == name or inside.startswith(extra) or found.optional(inside)

        return Adapted(renamed, optional, found.resized)

    return take
