"""Time a training step in bfloat16 against the same step in float32, here and in PyTorch, in turns in one process.

    python -m benchmarks.bfloat16 --torch
    python -m benchmarks.bfloat16 --config=configs/quickstart.py --batch=32 --side=160 --repeats=5 --torch

PyTorch's step is eager and uses autocast. The result says whether the processor has instructions for products of
bfloat16 (AVX512-BF16 or AMX). Processors without them have not been measured.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks import common, pretrain_step

DTYPES = ("float32", "bfloat16")


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/d2mae_thyroid.py")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=1, help="steps per timing")
    parser.add_argument("--side", type=int, default=300, help="height of the images, pixels")
    parser.add_argument("--torch", action="store_true")
    parser.add_argument("--output", default="")
    return parser.parse_args()


def instructions():
    """Which instructions for products of bfloat16 the processor has."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return []
    return sorted(flags & {"avx512_bf16", "amx_bf16"})


def main():
    """Time, print, write JSON."""
    a = parse()
    a.compile = False
    variants = {}
    for dtype in DTYPES:
        config = common.load_config(a.config, f"model.dtype={dtype}")
        _, own, _ = pretrain_step.build_variants(common.simulated(config, 32, a.side, a.batch), a)
        variants[dtype] = own["full"]
        if a.torch:
            variants[f"torch {dtype}"] = own["torch"]
    times, _ = pretrain_step.measure(variants, a.rounds, a.repeats, "bfloat16")
    ratio = lambda slow, fast: float(np.median(np.array(times[slow]) / np.array(times[fast])))
    numbers = {
        "config": a.config, "batch": a.batch, "instructions": instructions(),
        "seconds": {name: float(np.median(t)) for name, t in times.items()},
        "float32_over_bfloat16": ratio("float32", "bfloat16"),
    }  # fmt: skip
    if a.torch:
        numbers["torch_float32_over_bfloat16"] = ratio("torch float32", "torch bfloat16")
        numbers |= {f"torch_over_ours_{dtype}": ratio(f"torch {dtype}", dtype) for dtype in DTYPES}
    for name, value in numbers["seconds"].items():
        print(f"{name:16s} {value:.3f} s")
    for name, value in numbers.items():
        if "over" in name:
            print(f"{name.replace('_', ' '):34s} {value:.2f}x")
    common.write(a.output, "bfloat16", __doc__.splitlines()[0], numbers)


if __name__ == "__main__":
    main()
