"""Evaluate pre-training: measure the network on a fixed set of images, draw what it does, and write the report page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from deblur_mae_jax import config as fields
from deblur_mae_jax import sharding
from deblur_mae_jax.data import dataset
from deblur_mae_jax.data.loader import Loader
from deblur_mae_jax.evaluators import image_reconstruction, monitor, two_views, volume_reconstruction
from deblur_mae_jax.metrics import representation
from deblur_mae_jax.network import Network
from deblur_mae_jax.reports import contrast, page, reconstruction
from deblur_mae_jax.training.evaluator import Conclusion, Judgement
from deblur_mae_jax.training.experiment import Experiment, modality_of
from deblur_mae_jax.training.progress import Progress
from deblur_mae_jax.workdir import metric_writer
from deblur_mae_jax.workdir.run_folder import Workdir

# The split of simulated images that are not trained on.
UNSEEN = "unseen"
# By the kind of the task and the number of axes of the images.
KINDS: dict[tuple[str, int], Any] = {
    ("reconstruct", 2): image_reconstruction,
    ("reconstruct", 3): volume_reconstruction,
    ("pretext", 3): volume_reconstruction,
    ("contrast", 2): two_views,
    ("distill", 2): two_views,
}
GENERATIVE = reconstruction.Look(meaning=reconstruction.GENERATIVE)
NORMALISED = reconstruction.Look(
    meaning=reconstruction.NORMALISED, heading="Reconstructions, given the true mean and deviation of every patch"
)
VOLUMES = reconstruction.Look(meaning=reconstruction.VOLUMES)
LOOKS: dict[tuple[str, int], reconstruction.Look] = {
    ("contrast", 2): contrast.LOOK, ("distill", 2): contrast.LOOK, ("reconstruct", 3): VOLUMES, ("pretext", 3): VOLUMES,
}  # fmt: skip


def _look(network: Network) -> reconstruction.Look | None:
    if network.task.sample is not None:
        return GENERATIVE
    return NORMALISED if network.task.norm_pix_loss else LOOKS.get((network.kind, network.axes))


class Evaluator:
    """Evaluates the same images with the same masks each time; writes `report/` of the workdir."""

    def __init__(self, run: Experiment, workdir: Workdir):
        self.run, self.workdir = run, workdir
        self.latest: dict[str, float] = {}
        self.by_level: list[dict[str, float]] = []
        self.kind = KINDS[run.network.kind, run.network.axes]
        examples, self.names = self._examples()
        everywhere = sharding.replicated(run.mesh)
        self.examples = {
            name: jax.make_array_from_callback(v.shape, everywhere, v.__getitem__) for name, v in examples.items()
        }
        self.monitor = monitor.make(run) if run.network.axes == 2 else None
        self._evaluate = jax.jit(self.kind.make(run.network), out_shardings=everywhere)

    def _split(self) -> str:
        """The split of the evaluated images; "" for the training set."""
        config = self.run.config
        known = config.report.eval_split != UNSEEN or config.data.name.startswith("phantoms")
        return config.report.eval_split if known else ""

    def _described(self) -> str:
        """Which images are evaluated."""
        split, count = self._split(), len(self.names)
        if not split:
            return f"{count} images of the training set (config.report.eval_split names others)"
        if split == UNSEEN:
            return f"{count} phantoms that were not trained on"
        return f"{count} images of the split '{split}'"

    def _examples(self) -> tuple[dict[str, np.ndarray], list[str]]:
        """The stacked images and their names, spread over the set so that not all come from the first sub-folder."""
        run, config, split = self.run, self.run.config, self._split()
        index, loader = run.index, run.loader
        if split != config.report.eval_split and jax.process_index() == 0:
            Progress().print(
                f"config.report.eval_split={UNSEEN} is for simulated images: the reconstruction is measured on "
                "images of the training set. Name a split of your own to measure on other images"
            )
        if split:
            main = jax.process_index() == 0
            index = dataset.build_index(config, self.workdir.index(split) if main else None, split)
            loader = Loader(index, config.model.in_chans, modality_of(index))
        count = min(config.report.num_eval_images, len(index))
        numbers = np.unique(np.linspace(0, len(index) - 1, count).astype(int))
        examples = [loader.example(int(n)) for n in numbers]
        stacked = {k: np.stack([e[k] for e in examples]) for k in examples[0]}
        inputs = run.network.inputs
        if inputs.precomputes:
            degraded = jax.jit(inputs.precompute)(stacked["image"], stacked["size"])
            stacked["degraded"] = np.asarray(degraded)
        return stacked, [index.source.names[int(n)] for n in numbers]

    def evaluate(self, params: Any) -> Judgement:
        """Compute the measures and draw a sheet of the first images. No score is set: the last weights are used."""
        arrays = {k: np.asarray(v) for k, v in self._evaluate(params, self.examples).items()}
        degradation = self.run.network.inputs.degradation
        self.latest = self.kind.summary(arrays)
        self.by_level = self.kind.by_level(arrays, degradation)
        if self.monitor is not None:
            self.latest |= self.monitor.judge(params)
        self._warn()
        images = {}
        if jax.process_index() == 0:
            sheet = self.kind.sheet(arrays, self.run.config.report.num_images, self.names, degradation)
            images["reconstructions"] = np.asarray(sheet)
        return Judgement(None, self.latest, images)

    def _warn(self) -> None:
        """Print a line if the features have collapsed."""
        line = representation.warning(self.latest)
        if line and jax.process_index() == 0:
            Progress().print(line)

    def write(self, step: int, judgement: Judgement) -> None:
        """Write the sheet and the page."""
        path = self.workdir.make_report() / f"reconstructions_{step:07d}.png"
        Image.fromarray(judgement.images["reconstructions"]).save(path)
        self._page(step)

    def _sheets(self) -> list[Path]:
        return sorted(self.workdir.report.glob("reconstructions_*.png"))

    def _page(self, step: int) -> None:
        run, config = self.run, self.run.config
        reconstruction.write(
            self.workdir.make_report(),
            title=f"{self.workdir.name}: {config.task.degrade}",
            facts={
                "step": f"{step} of {run.total_steps}",
                "images": len(run.index),
                "evaluated": self._described(),
                "batch": config.optim.batch_size,
                "GFLOP per image": f"{run.network.flops_per_image / 1e9:.2f}",
                "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
                **page.time_spent(self.workdir),
                **({"probes while training": self.monitor.described} if self.monitor is not None else {}),
            },
            latest=self.latest,
            by_level=self.by_level,
            lines=metric_writer.read(self.workdir),
            sheets=[(int(path.stem.split("_")[1]), path) for path in self._sheets()],
            config=fields.flat(config),
            skipped=len(run.skipped),
            look=_look(run.network),
        )

    def finish(self, step: int, params: Any, main: bool) -> Conclusion:
        """Write the page if no evaluation has written it."""
        if main and not self.workdir.page.exists():
            self._page(step)
        return Conclusion(self.latest, doubts(self.latest), (self._sheets() or [self.workdir.report])[-1])


def doubts(latest: dict[str, float]) -> str:
    """A sentence on a network that reconstructs badly; "" for one that does not."""
    # The loss of a volume has other parts, too.
    loss, trivial = latest.get("eval_reconstruction", latest.get("eval_loss")), latest.get("eval_loss_of_mean")
    if loss is not None and trivial is not None and not loss < trivial:
        return "The reconstructions are no better than a plain gray patch: train longer, or at another learning rate."
    before, after = (latest.get(f"psnr_{of}") for of in ("degraded", "restored"))
    if before is not None and after is not None and after < before < reconstruction.EQUAL:
        return (
            f"Unmasked, the reconstructions are further from the originals (PSNR {after:.1f} dB) than the degraded "
            f"inputs are ({before:.1f} dB): the network does not undo the degradation yet."
        )
    return ""
