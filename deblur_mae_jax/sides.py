"""The sides of a network's input: `config.image_size` is one number for a square or a cube, or one number per axis."""

from __future__ import annotations

import math
from typing import Any

from deblur_mae_jax.errors import UserError

Size = int | tuple[int, ...]
SMALLEST = 16
AXES = {2: "(height, width), such as (160, 256)", 3: "(first, second, third axis), such as (96, 96, 32)"}


def of(size: Size, axes: int = 2) -> tuple[int, ...]:
    """The length of every side, in pixels or voxels."""
    return (size,) * axes if isinstance(size, int) else tuple(size)


def divided(size: Size, step: int, axes: int = 2) -> tuple[int, ...]:
    """How often `step` fits into each side."""
    return tuple(side // step for side in of(size, axes))


def count(size: Size, step: int = 1, axes: int = 2) -> int:
    """How many squares or cubes of side `step` fit into the input: pixels or voxels for a step of 1."""
    return math.prod(divided(size, step, axes))


def fits(size: Size, step: int) -> bool:
    """Whether `step` divides every side."""
    return not any(side % step for side in of(size))


def written(size: Any) -> str:
    """The sides as text: "224", or "160 x 256"."""
    return str(size) if isinstance(size, int) else " x ".join(str(side) for side in size)


def checked(size: Any, axes: int) -> Size:
    """`config.image_size` as one number if all sides are equal, and as a tuple otherwise. Raises `UserError`.

    axes: spatial axes of the images, 2 or 3.
    """
    sides = tuple(size) if isinstance(size, (tuple, list)) else (size,) * axes
    whole = all(isinstance(side, int) and not isinstance(side, bool) for side in sides)
    if len(sides) != axes or not whole or min(sides) < SMALLEST:
        raise UserError(
            f"config.image_size={size!r} must be one number of at least {SMALLEST} "
            f"{'pixels' if axes == 2 else 'voxels'}, or {axes} of them: {AXES[axes]}"
        )
    return sides[0] if len(set(sides)) == 1 else sides
