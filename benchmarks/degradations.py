"""How long each degradation takes per image, beside OpenCV where it has the same filter.

    python -m benchmarks.degradations --output=degradations.json

A batch of gray images in a larger canvas is degraded at its own resolution, as before a run that keeps its images in
memory. OpenCV takes one image at a time, without the canvas and without a transfer. Both take turns.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from deblur_mae_jax.config import pretraining
from deblur_mae_jax.network import build

SIZE, CANVAS = (224, 313), (384, 384)


def filters():
    """By degradation, OpenCV's filter of the same effect; None where it has none."""
    import cv2

    cv2.setNumThreads(1)
    return {
        "blur.gaussian(sigma=1.1)": lambda image: cv2.GaussianBlur(image, (0, 0), 1.1),
        "blur.mean(5)": lambda image: cv2.blur(image, (5, 5)),
        "blur.median(3)": lambda image: cv2.medianBlur(image, 3),
        "blur.median(5)": lambda image: cv2.medianBlur(image, 5),
        "blur.median(7)": lambda image: cv2.medianBlur(image, 7),
        "blur.defocus(5)": None,
        "blur.motion(5)": None,
        "speckle.srad(40, 0.1)": None,
    }


def program(degrade):
    """Images and sizes -> degraded images, as the library computes them before training."""
    config = pretraining()
    config.task.degrade = degrade
    inputs = build(config, 0, ()).inputs
    if inputs.precomputes:
        return jax.jit(inputs.precompute)

    def one(image, size, key):
        return inputs.degrade_native(image, inputs.degradation.draw(key), size).astype(jnp.uint8)

    keys = lambda count: jax.random.split(jax.random.key(0), count)
    return jax.jit(lambda images, sizes: jax.vmap(one)(images, sizes, keys(len(images))))


def main():
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", default="")
    a = parser.parse_args()
    rng = np.random.default_rng(0)
    images = np.zeros((a.batch, *CANVAS, 1), np.uint8)
    images[:, : SIZE[0], : SIZE[1], 0] = np.clip(90 * rng.rayleigh(0.8, (a.batch, *SIZE)), 0, 255)
    sizes = np.tile(np.int32(SIZE), (a.batch, 1))
    rows = {}
    for degrade, other in filters().items():
        run = program(degrade)
        placed = jax.device_put((images, sizes))
        jax.block_until_ready(run(*placed))
        ours, theirs = [], []
        for _ in range(a.rounds):
            started = time.perf_counter()
            jax.block_until_ready(run(*placed))
            ours.append((time.perf_counter() - started) / a.batch)
            if other is not None:
                started = time.perf_counter()
                for image in images[:, : SIZE[0], : SIZE[1], 0]:
                    other(image)
                theirs.append((time.perf_counter() - started) / a.batch)
        row = {"ms_per_image": 1e3 * statistics.median(ours)}
        if theirs:
            row["opencv_ms_per_image"] = 1e3 * statistics.median(theirs)
            row["speed_against_opencv"] = statistics.median(b / o for o, b in zip(ours, theirs, strict=True))
        rows[degrade] = row
        print(degrade, {name: round(value, 3) for name, value in row.items()}, flush=True)
    common.write(a.output, "degradations", __doc__.splitlines()[0], {**vars(a), "rows": rows})


if __name__ == "__main__":
    main()
