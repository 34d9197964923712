"""Evaluate a segmentation: on the validation images during training, and once on the test images at the end."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from deblur_mae_jax import config as fields
from deblur_mae_jax import sharding
from deblur_mae_jax.data import audit
from deblur_mae_jax.data import grid as grids
from deblur_mae_jax.data.index import known_hashes
from deblur_mae_jax.data.source import BadImage, Skipped
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.inference.segmenter import Segmenter
from deblur_mae_jax.metrics import segmentation
from deblur_mae_jax.reports import cases, page, segmentation_figures
from deblur_mae_jax.reports import segmentation as report
from deblur_mae_jax.reports.cases import Cases
from deblur_mae_jax.reports.segmentation_figures import Shown
from deblur_mae_jax.training import stop
from deblur_mae_jax.training.evaluator import Conclusion, Judgement, conclusion
from deblur_mae_jax.training.experiment import Experiment
from deblur_mae_jax.workdir import metric_writer
from deblur_mae_jax.workdir.run_folder import Workdir


class Evaluator:
    """Evaluates validation images during training; at the end, validation and test images with the best weights."""

    def __init__(self, run: Experiment, workdir: Workdir):
        assert run.supervision is not None
        self.run, self.workdir, self.supervision = run, workdir, run.supervision
        self.labels = self.supervision.classes[1:]
        self.latest: dict[str, float] = {}
        self.unsaved: OSError | None = None  # why label maps could not be written
        self.metric = run.config.select.metric
        self.tolerance, self.empty = run.config.report.tolerance, run.config.report.empty
        self.segmenter = Segmenter(run.network, run.mesh, run.config.infer)
        self.in_pixels = not self.segmenter.is_3d and self._units_differ()
        if self.in_pixels:
            logging.warning(
                "only some images state the size of a pixel: all distances and areas of this run are in pixels"
            )

    def _units_differ(self) -> bool:
        """Whether only some of the judged images state the size of a pixel: mm and pixels have no common mean."""
        source, indices = self.run.index.source, self.supervision.indices
        judged = np.concatenate([indices[name] for name in ("val", "test") if name in indices])
        return len({source.grid_of(int(index)).unit for index in judged}) > 1

    def evaluate(self, params: Any) -> Judgement:
        """Measure the validation images on the grid of the network; the score is the measure that selects the weights.

        A missed structure gets the worst possible value, so that weights that find fewer structures are never chosen.
        """
        rows = []
        source, classes = self.run.index.source, self.supervision.mask_classes
        assert source.masks is not None and classes is not None
        segmented = self.segmenter.each([params], self.run.loader, self.supervision.indices["val"], required=True)
        for index, labels in segmented:
            stop.poll()
            truth = self._truth(index)
            if truth is None:
                continue
            spacing = (1.0, 1.0) if self.in_pixels else self._spacing_read(index)
            rows.append([self._score(truth == n, labels == n, spacing) for n in range(1, len(self.labels) + 1)])
        if not rows:
            raise BadImage("no mask of the validation images can be read any more")
        values = np.array(rows)
        measured = np.isfinite(values)
        if not measured.any():
            raise UserError(
                "config.data.val_split: no validation mask holds a label, so the best weights cannot be chosen"
            )
        counts = measured.sum(axis=1)
        means = np.where(measured, values, 0).sum(axis=1)[counts > 0] / counts[counts > 0]
        mean = float(means.mean())
        self.latest = {f"val_{self.metric}": mean}
        if len(self.labels) > 1:
            for j, label in enumerate(self.labels):
                if measured[:, j].any():
                    self.latest[f"val_{self.metric}_{label}"] = float(values[measured[:, j], j].mean())
        score = mean if segmentation.HIGHER_IS_BETTER[self.metric] else -mean
        return Judgement(score, self.latest, {})

    def _spacing_read(self, index: int) -> tuple[float, ...]:
        """The size of a voxel or pixel on the grid of the network."""
        grid = self.run.index.source.grid_of(index)
        return grid.spacing_read or grid.spacing

    def _truth(self, index: int) -> np.ndarray | None:
        """The classes of a mask; `None`, with a report, if it can no longer be read on some process."""
        source, classes = self.run.index.source, self.supervision.mask_classes
        assert source.masks is not None and classes is not None
        truth, why = None, ""
        try:
            truth = classes[source.masks(index)]
        except (BadImage, OSError) as error:
            why = f"its mask: {error}"
        if sharding.on_any_process(truth is None):
            self.run.loader.report(Skipped(source.names[index], why or "another process cannot read its mask"))
            return None
        return truth

    def _score(self, truth: np.ndarray, labels: np.ndarray, spacing: tuple[float, ...]) -> float:
        """The measure that selects the weights, for one label; NaN if the truth does not contain the label."""
        if not truth.any():
            return float("nan")
        if self.metric == "dice":
            return segmentation.dice(truth, labels)
        return segmentation.measure(truth, labels, spacing, self.tolerance, "count")[self.metric]

    def write(self, step: int, judgement: Judgement) -> None:
        """Write nothing here; the page of an unfinished run is written when it stops."""

    def _title(self) -> str:
        return f"{self.workdir.name}: {', '.join(self.labels)}"

    def judge(self, params: Any, split: str, write: bool) -> Cases:
        """Segment every image of a split on its original grid; with `write`, save the label maps."""
        source, supervision = self.run.index.source, self.supervision
        classes, values = supervision.mask_classes, np.array(supervision.mask_values, np.uint8)
        assert classes is not None
        rows: list[dict[str, np.ndarray]] = []
        names, groups, sizes, units = [], [], [], set()
        folder, taken = self.workdir.segmentations / split, set[Path]()
        for index, labels in self.segmenter.each([params], self.run.loader, supervision.indices[split], required=True):
            stop.poll()
            grid = source.grid_of(index)
            try:
                truth = classes[grid.truth()]
            except (BadImage, OSError) as error:
                self.run.loader.report(Skipped(source.names[index], str(error)))
                continue
            label_map = grid.finish(labels)
            spacing, unit = ((1.0, 1.0), "px") if self.in_pixels else (grid.spacing, grid.unit)
            measured = segmentation.measure_labels(
                truth, label_map, len(self.labels), spacing, self.tolerance, self.empty
            )
            rows.append(measured)
            voxel = float(np.prod(spacing))
            counts = [np.bincount(x.ravel(), minlength=len(values))[1:] for x in (truth, label_map)]
            sizes.append([voxel * c for c in counts])
            names.append(source.names[index])
            groups.append(source.groups[index] if source.groups else "")
            units.add(unit)
            if write and self.unsaved is None:
                try:
                    grid.save(values[label_map], grids.output_path(folder, names[-1], taken))
                except OSError as error:  # the other processes go on, and this one takes part in what they share
                    self.unsaved = error
        if not names:
            raise BadImage(f"no mask of the {split} images can be read any more")
        truth_size, predicted_size = (np.array([s[i] for s in sizes]) for i in range(2))
        return Cases(
            self.labels, np.array(names), np.array(groups), np.full(len(names), split),
            {m: np.array([row[m] for row in rows]) for m in segmentation.MEASURES},
            truth_size, predicted_size, " or ".join(sorted(units)),
        )  # fmt: skip

    def finish(self, step: int, params: Any, main: bool) -> Conclusion:
        """Segment validation and test images with the best weights, then write table, label maps and report.

        This is the only place that uses the test split.
        """
        if params is None:
            if main:
                lines = metric_writer.read(self.workdir)
                curves = segmentation_figures.curves(lines, None, self.metric)
                page.progress(self.workdir.make_report(), self._title(), self.latest, curves)
            return Conclusion(self.latest, "", self.workdir.report)
        splits = [name for name in ("val", "test") if name in self.supervision.indices]
        tables = [self.judge(params, name, main) for name in splits]
        shown = self._shown(params, tables[-1], splits[-1])
        if self.unsaved is not None:
            raise self.unsaved
        figure = self.workdir.report / report.FIGURES
        if not main:
            return Conclusion(self.latest, "", figure)
        notes = report.Notes(
            title=self._title(),
            config=fields.flat(self.run.config),
            lines=self.run.notes,
            best_step=step,
            curves=metric_writer.read(self.workdir),
            skipped=len(self.run.skipped),
            shown=shown,
            leaks=self._leaks(),
            n_train=len(self.supervision.indices["train"]),
        )
        numbers = report.write(self.workdir, cases.concatenate(tables), notes)
        return conclusion(numbers, report.verdict(numbers), figure)

    def _leaks(self) -> audit.Leaks:
        """Find copies across splits, and images that pre-training saw if these can be compared."""
        run, is_3d = self.run, self.segmenter.is_3d
        comparable = True
        if is_3d and run.source is not None:
            before, now = run.source.config.data, run.config.data
            comparable = (before.spacing, before.ct_window) == (now.spacing, now.ct_window)
        if not comparable:
            run.notes.append(
                "we cannot check whether pre-training saw these volumes, because it windowed or resampled them "
                "differently"
            )
        return audit.compare(
            run.index,
            self.supervision.indices,
            pretrained=known_hashes(self.workdir.pretrained_images) if comparable else None,
            near=run.config.report.audit == "near" and not is_3d,
        )

    def _shown(self, params: Any, judged: Cases, split: str) -> list[Shown]:
        """The worst cases, the median case and the best case, for figures on the grid of the network."""
        dice = judged.mean_of_labels("dice")
        order = [int(i) for i in np.argsort(dice) if np.isfinite(dice[i])]
        if not order:
            return []
        kinds: dict[int, str] = {}
        for title, at in (
            ("worst", 0),
            ("second worst", 1),
            ("median", len(order) // 2),
            ("best", -1),
        ):
            if at < len(order):
                kinds.setdefault(order[at], title)
        source, classes = self.run.index.source, self.supervision.mask_classes
        assert source.masks is not None and classes is not None
        where = {source.names[int(p)]: int(p) for p in self.supervision.indices[split]}
        chosen = {where[str(judged.names[i])]: i for i in kinds}
        out = []
        for index, labels in self.segmenter.each([params], self.run.loader, list(chosen)):
            row = chosen[index]
            name = Path(source.names[index]).name
            title = f"{kinds[row]}: {name}, Dice {dice[row]:.2f}"
            truth = self._truth(index)
            if truth is None:
                continue
            try:
                image = source.read(index).astype(np.float32).mean(axis=-1)
            except (BadImage, OSError) as error:
                self.run.loader.report(Skipped(source.names[index], str(error)))
                continue
            out.append(Shown(title, image, truth, labels, self._spacing_read(index)))
        return out
