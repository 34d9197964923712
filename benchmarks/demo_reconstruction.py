"""Measure how much closer to the original the demo's reconstructions are than its blurred inputs, on unseen phantoms.

    python -m benchmarks.demo_reconstruction runs/quickstart

Prints a Markdown table: for each blur level, with nothing masked, PSNR and SSIM of the blurred input and of its
reconstruction (means over images), and the gain, with a 95 % interval over patients. `--output=FILE`
keeps the table as JSON.
"""

import argparse

import numpy as np

import deblur_mae_jax as dm
from benchmarks.common import write
from deblur_mae_jax.data import dataset
from deblur_mae_jax.data.phantoms import UNSEEN
from deblur_mae_jax.evaluators.image_reconstruction import mse, psnr, ssim
from deblur_mae_jax.metrics import statistics


def gain(values: np.ndarray, patients: np.ndarray, digits: int) -> str:
    """Mean of `(N,)` over images, with its interval over patients."""
    low, high = statistics.of_mean(values, patients)
    return f"{values.mean():+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def table(run: str) -> list[str]:
    """A row per blur level."""
    trained = dm.load(run)
    degradation = trained.network.inputs.degradation
    source = dataset.load_source(trained.config, UNSEEN)
    patients = np.array(source.groups)
    images = [source.read(i) for i in range(len(source.names))]
    lines = [
        f"{len(images)} images of {len(set(patients))} patients.",
        "",
        "| sigma (px) | PSNR, blurred | PSNR, reconstructed | gain (dB) | SSIM, blurred | SSIM, reconstructed | gain |",
        "|---|---|---|---|---|---|---|",
    ]
    for level in range(1, degradation.num_levels + 1):
        out = dm.reconstruct(trained, images, mask_ratio=0.0, level=level)
        clean, both = out["clean"], (out["degraded"], out["reconstructed"])
        decibel = [np.array([psnr(error) for error in np.asarray(mse(x, clean))]) for x in both]
        similar = [np.asarray(ssim(x, clean)) for x in both]
        sigma = float(degradation.at_level(level)["sigma"])
        cells = [f"{sigma:.1f}", *(f"{x.mean():.2f}" for x in decibel), gain(decibel[1] - decibel[0], patients, 2)]
        cells += [*(f"{x.mean():.3f}" for x in similar), gain(similar[1] - similar[0], patients, 3)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--output", default="")
    arguments = parser.parse_args()
    lines = table(arguments.run)
    print("\n".join(lines))
    if arguments.output:
        write(arguments.output, "demo_reconstruction", "what the demo's network undoes of a blur", {"table": lines})
