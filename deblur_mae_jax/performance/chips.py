"""Specifications of accelerators from their makers: arithmetic, memory, bandwidth, and a rough price."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip.

    kinds: parts of the names that JAX gives it (`device_kind`).
    """

    name: str
    tflops: float  # dense, 1e12 per second, in `dtype`
    gigabytes: float  # of its memory, 1e9 bytes
    terabytes_per_second: float
    links: tuple[float, float]  # 1e9 bytes per second that a chip sends: in a node of 8 or a slice, beyond
    dollars_per_hour: float  # rounded on-demand price of one at a large cloud provider in 2025; 0: one's own
    kinds: tuple[str, ...]
    dtype: str = "bfloat16"
    measured_share: float | None = None  # share of its peak that a ViT-B step reaches; None: not yet measured


# The makers' data sheets; of links, half of the bandwidth in both directions. Nodes of V100 to H200 are taken to have
# NVLink inside and InfiniBand of 100 to 400 Gbit/s for each GPU between them, an RTX 4090 PCI Express. A V100 has no
# bfloat16: XLA computes it in float32.
CHIPS = (
    Chip("V100", 15.7, 32, 0.9, (150, 12.5), 2.5, ("V100",), "float32"),
    Chip("RTX 4090", 165, 24, 1.01, (32, 12.5), 0.0, ("RTX 4090",)),
    Chip("A100", 312, 80, 2.04, (300, 25), 4.1, ("A100",)),
    Chip("H100", 989, 80, 3.35, (450, 50), 6.9, ("H100",)),
    Chip("H200", 989, 141, 4.8, (450, 50), 7.9, ("H200",)),
    Chip("TPU v4", 275, 32, 1.23, (300, 300), 3.2, ("TPU v4",)),
    Chip("TPU v5e", 197, 16, 0.82, (200, 200), 1.2, ("TPU v5 lite", "TPU v5e")),
    Chip("TPU v5p", 459, 95, 2.77, (600, 600), 4.2, ("TPU v5p", "TPU v5")),
    Chip("TPU v6e", 918, 32, 1.64, (400, 400), 2.7, ("TPU v6 lite", "TPU v6e")),
)


def of_kind(device_kind: str) -> Chip | None:
    """The chip that JAX calls `device_kind`, or `None` if it is not in the table."""
    matches = [(len(k), chip) for chip in CHIPS for k in chip.kinds if k in device_kind]
    return max(matches, key=lambda item: item[0])[1] if matches else None


def peak_flops(device_kind: str) -> float | None:
    """Peak FLOP/s of the chip that JAX calls by this name, or `None` if it is not in the table."""
    chip = of_kind(device_kind)
    return 1e12 * chip.tflops if chip else None
