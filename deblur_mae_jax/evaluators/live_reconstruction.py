"""The report of a run as it goes: a fixed set of images, evaluated, drawn and put on a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from deblur_mae_jax import dataset, metrics, sharding, workdir
from deblur_mae_jax.data.loader import Loader
from deblur_mae_jax.evaluators import reconstruction, report, volume_reconstruction
from deblur_mae_jax.experiment import Experiment, modality_of
from deblur_mae_jax.network import num_axes


def _everywhere(value: np.ndarray, sharding_: jax.sharding.Sharding) -> jax.Array:
    return jax.make_array_from_callback(value.shape, sharding_, lambda index: value[index])


class Live:
    """Evaluates the same images with the same masks each time; writes `report/` of the workdir."""

    def __init__(self, run: Experiment, folder: Path, writer: metrics.Writer):
        self.run, self.workdir, self.writer = run, folder, writer
        self.folder = folder / "report"
        self.folder.mkdir(exist_ok=True)
        self.latest: dict[str, float] = {}
        self.score: float | None = None  # no checkpoint is better than the last
        self.conclusion = ""  # the pictures say it
        config, network = run.config, run.network
        self.kind: Any = reconstruction if num_axes(config) == 2 else volume_reconstruction
        split = config.report.eval_split
        self.index = run.index if not split else dataset.build_index(config, folder, split)
        count = min(config.report.num_eval_images, len(self.index))
        # Spread over the set, so that the first sub-folder is not all there is to see.
        numbers = np.unique(np.linspace(0, len(self.index) - 1, count).astype(int))
        loader = run.loader
        if split:
            loader = Loader(self.index, config.model.in_chans, modality_of(self.index))
        examples = [loader.example(int(n)) for n in numbers]
        stacked = {k: np.stack([e[k] for e in examples]) for k in examples[0]}
        if network.inputs.precomputes:
            stacked["degraded"] = np.asarray(
                jax.jit(network.inputs.precompute)(stacked["image"], stacked["size"])
            )
        self.names = [self.index.source.names[int(n)] for n in numbers]
        everywhere = sharding.replicated(run.mesh)
        self.examples = {k: _everywhere(v, everywhere) for k, v in stacked.items()}
        self._evaluate = jax.jit(
            self.kind.make(network, config),
            out_shardings=everywhere,
        )

    def evaluate(self, params: Any) -> dict[str, np.ndarray]:
        """Numbers and pictures of the fixed images; `latest` holds their means."""
        arrays = {k: np.asarray(v) for k, v in self._evaluate(params, self.examples).items()}
        self.latest = self.kind.summary(arrays)
        return arrays

    def draw(self, step: int, arrays: dict[str, np.ndarray], skipped: int) -> None:
        """Numbers and pictures of an evaluation, to files."""
        run, config = self.run, self.run.config
        self.writer.write_scalars(step, self.latest)
        picture = self.kind.picture(arrays, config, self.names, run.network.inputs.degradation)
        path = self.folder / f"reconstructions_{step:07d}.png"
        picture.save(path)
        self.writer.write_images(step, {"reconstructions": np.asarray(picture)})
        self.page(step, skipped)

    def page(self, step: int, skipped: int) -> None:
        """`report/index.html` as things stand."""
        run, config = self.run, self.run.config
        sheets = sorted(self.folder.glob("reconstructions_*.png"))
        report.write(
            self.folder,
            title=f"{self.workdir.resolve().name}: {config.task.degrade}",
            facts={
                "step": f"{step} of {run.total_steps}",
                "images": len(run.index),
                "batch": config.optim.batch_size,
                "GFLOP per image": f"{run.network.flops_per_image / 1e9:.2f}",
                "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            },
            latest=self.latest,
            lines=metrics.read(self.workdir),
            sheets=[(int(path.stem.split("_")[1]), path) for path in sheets],
            config=workdir.flat(config),
            skipped=skipped,
        )

    def newest_picture(self) -> Path:
        """The last sheet of reconstructions, or the folder while there is none."""
        sheets = sorted(self.folder.glob("reconstructions_*.png"))
        return sheets[-1] if sheets else self.folder
