"""The part of `--plan` for many chips: the memory of a divided state, and how well a step scales.

Weak scaling is modelled as follows. Every chip computes the batch of the run, in the time that `--plan` states for one
chip. Each step it sends `8 x parameters x (n - 1) / n` bytes: gradients in float32 are summed in a ring and the result,
or the new parameters, is gathered in one; `replicate`, `zero1` and `fsdp` exchange the same amount. Between nothing
and all of this overlaps with the computation. Slow hosts, input and saving are not modelled.
"""

from __future__ import annotations

from typing import Any, Protocol

from jax.sharding import AbstractMesh

from deblur_mae_jax import sharding
from deblur_mae_jax.performance import chips

COUNTS = (1, 8, 64, 256)
NODE = 8  # GPUs


class Step(Protocol):
    """What a step needs; `plan.Need`."""

    @property
    def parameters(self) -> int:
        """Number of parameters."""

    def seconds(self, chip: chips.Chip) -> float:
        """One step on one chip."""


def state_lines(run: Any) -> list[str]:
    """A table of the memory that parameters and optimiser take on each of several chips."""
    state = run.state_shapes
    lines = [f"{'sharding.params':16s}" + "".join(f"{_chips(n):>12s}" for n in COUNTS)]
    for mode in sharding.MODES:
        cells = ""
        for count in COUNTS:
            mesh = AbstractMesh((1, count), sharding.AXES)
            division = sharding.Division(mesh, mode, run.config.sharding.min_mib * 2**20)
            size = sharding.bytes_per_device(state, division.of_state(state))
            cells += f"{size / 1e9:>9.3g} GB"
        lines.append(f"  {mode:14s}{cells}")
    lines.append(
        "parameters and optimiser on a chip; a step also needs gradients and, with fsdp, the parameters in use"
    )
    return lines


def exchange_seconds(step: Step, chip: chips.Chip, count: int) -> float:
    """Time of the exchange of a step among `count` chips, if nothing overlaps with it."""
    inside, beyond = chip.links
    speed = inside if count <= NODE else min(inside, beyond)
    return 8 * step.parameters * (count - 1) / count / (1e9 * speed)


def efficiency(step: Step, chip: chips.Chip, count: int) -> tuple[float, float]:
    """Share of the time that a chip computes, if nothing of the exchange overlaps with it, and if all does."""
    computing, exchanging = step.seconds(chip), exchange_seconds(step, chip, count)
    return computing / (computing + exchanging), computing / max(computing, exchanging)


def scaling_lines(step: Step) -> list[str]:
    """A table of weak scaling: the batch of the run on every chip."""
    lines = [f"{'weak scaling':16s}" + "".join(f"{_chips(n):>12s}" for n in COUNTS[1:])]
    for chip in chips.CHIPS:
        cells = ""
        for count in COUNTS[1:]:
            low, high = efficiency(step, chip, count)
            cells += f"{f'{low:.0%} - {high:.0%}':>12s}"
        lines.append(f"  {chip.name:14s}{cells}")
    lines.append(
        "of one chip's images per second, with this batch on every chip: none or all of the exchange is hidden"
    )
    return lines


def _chips(count: int) -> str:
    return "one chip" if count == 1 else f"{count} chips"
