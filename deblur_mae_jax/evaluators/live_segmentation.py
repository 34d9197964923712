"""A segmentation judged as it trains, on the validation images, and once at the end on the test images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from deblur_mae_jax import metrics, workdir
from deblur_mae_jax.data import audit
from deblur_mae_jax.data import grid as grids
from deblur_mae_jax.data.source import BadImage, Skipped
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.evaluators import cases, segmentation, segmentation_page
from deblur_mae_jax.evaluators.cases import Cases
from deblur_mae_jax.evaluators.segmentation_figures import Shown
from deblur_mae_jax.experiment import Experiment
from deblur_mae_jax.segmenter import Segmenter

SHOWN = 4


class Live:
    """Evaluates the validation images; keeps the numbers and the page up to date."""

    def __init__(self, run: Experiment, folder: Path, writer: metrics.Writer):
        assert run.supervision is not None
        self.run, self.workdir, self.writer = run, folder, writer
        self.known = run.supervision
        self.labels = self.known.classes[1:]
        self.folder = folder / "report"
        self.folder.mkdir(exist_ok=True)
        self.latest: dict[str, float] = {}
        self.score: float | None = None
        self.conclusion = ""
        self.metric = run.config.select.metric
        self.tolerance, self.empty = run.config.report.tolerance, run.config.report.empty
        segmentation.check(self.tolerance, self.empty)
        self.segmenter = Segmenter(run.network, run.mesh, run.config.infer)

    def evaluate(self, params: Any) -> dict[str, float]:
        """The validation images on the grid the network sees; `latest` holds the measure that selects.

        A structure that was missed counts as the worst there is, so that weights that find less are never chosen.
        """
        rows = []
        source, classes = self.run.index.source, self.known.mask_classes
        assert source.masks is not None and classes is not None
        wanted = tuple(self.run.config.data.get("spacing", ()))
        found = self.segmenter.each([params], self.run.loader, self.known.positions["val"])
        for position, labels in found:
            truth = classes[source.masks(position)]
            spacing = wanted or source.grid_of(position).spacing
            rows.append(
                [
                    self._score(truth == n, labels == n, spacing)
                    for n in range(1, len(self.labels) + 1)
                ]
            )
        values = np.array(rows)
        known = np.isfinite(values)
        if not known.any():
            raise UserError(
                "config.data.val_split: no validation mask holds a label, so the best weights cannot be chosen"
            )
        counts = known.sum(axis=1)
        means = np.where(known, values, 0).sum(axis=1)[counts > 0] / counts[counts > 0]
        mean = float(means.mean())
        self.latest = {f"val_{self.metric}": mean}
        if len(self.labels) > 1:
            for j, label in enumerate(self.labels):
                if known[:, j].any():
                    self.latest[f"val_{self.metric}_{label}"] = float(values[known[:, j], j].mean())
        self.score = mean if segmentation.HIGHER_IS_BETTER[self.metric] else -mean
        return self.latest

    def _score(self, truth: np.ndarray, labels: np.ndarray, spacing: tuple[float, ...]) -> float:
        """The measure that selects, of one label; NaN where the truth has none of it."""
        if not truth.any():
            return float("nan")
        if self.metric == "dice":
            return segmentation.dice(truth, labels)
        return segmentation.measure(truth, labels, spacing, self.tolerance, "count")[self.metric]

    def draw(self, step: int, found: dict[str, float], skipped: int) -> None:
        """Numbers of an evaluation, to files."""
        self.writer.write_scalars(step, found)

    def page(self, step: int, skipped: int) -> None:
        """A short page while nothing final is known."""
        lines = metrics.read(self.workdir)
        segmentation_page.write_progress(
            self.folder, self._title(), self.latest, lines, self.metric
        )

    def newest_picture(self) -> Path:
        """The overlays of the report."""
        found = self.folder / "overlays.png"
        return found if found.exists() else self.folder

    def _title(self) -> str:
        return f"{self.workdir.resolve().name}: {', '.join(self.labels)}"

    def judge(self, params: Any, split: str, write: bool) -> Cases:
        """Segment every image of a split, on its own grid; with `write` the label maps are kept."""
        source, known = self.run.index.source, self.known
        classes, values = known.mask_classes, np.array(known.mask_values, np.uint8)
        assert classes is not None
        rows: list[dict[str, np.ndarray]] = []
        names, groups, sizes, units = [], [], [], set()
        folder, taken = self.workdir / "segmentations" / split, set[Path]()
        for position, labels in self.segmenter.each(
            [params], self.run.loader, known.positions[split]
        ):
            grid = source.grid_of(position)
            try:
                truth = classes[grid.truth()]
            except (BadImage, OSError) as error:
                self.run.loader.report(Skipped(source.names[position], str(error)))
                continue
            own = grid.finish(labels)
            spacing = grid.spacing
            rows.append(
                segmentation.measure_labels(
                    truth, own, len(self.labels), spacing, self.tolerance, self.empty
                )
            )
            voxel = float(np.prod(spacing))
            counts = [np.bincount(x.ravel(), minlength=len(values))[1:] for x in (truth, own)]
            sizes.append([voxel * c for c in counts])
            names.append(source.names[position])
            groups.append(source.groups[position] if source.groups else "")
            units.add(grid.unit)
            if write:
                grid.save(values[own], grids.place(folder, names[-1], taken))
        if not names:
            raise UserError(f"none of the {split} images can be read any more")
        truth_size, predicted_size = (np.array([s[i] for s in sizes]) for i in range(2))
        return Cases(
            self.labels, np.array(names), np.array(groups), np.full(len(names), split),
            {m: np.array([row[m] for row in rows]) for m in segmentation.MEASURES},
            truth_size, predicted_size, " or ".join(sorted(units)),
        )  # fmt: skip

    def final(self, params: Any, best: dict[str, Any], skipped: int, write: bool) -> None:
        """Segment validation and test images with the best weights; write table, label maps and report.

        This is the only place that looks at the test split. Every process takes part; `write` is true for
        the one that writes.
        """
        run, config = self.run, self.run.config
        splits = [name for name in ("val", "test") if name in self.known.positions]
        parts = [self.judge(params, name, write) for name in splits]
        shown = self._shown(params, parts[-1], splits[-1])
        if not write:
            return
        path = self.workdir / "predictions.csv"
        _concatenate(parts).write(path)
        table = cases.read(
            path
        )  # the numbers are computed from the file, so that they follow from it
        numbers = cases.summarise(table, config.report.bootstrap, config.seed)
        n_train = len(self.known.positions["train"])
        same = (
            not self.segmenter.is_3d
            or run.source is None
            or all(
                run.source.config.data.get(k) == config.data[k] for k in ("spacing", "ct_window")
            )
        )
        if not same:
            self.known.lines.append(
                "whether these volumes were seen in pre-training cannot be told: there they were windowed or resampled "
                "in another way"
            )
        leaks = audit.compare(
            run.index,
            self.known.positions,
            pretrained=audit.known_hashes(self.workdir) if same else None,
            near=config.report.audit == "near" and not self.segmenter.is_3d,
        )
        leaks.write(self.workdir / "leakage.csv")
        numbers |= {
            "best_step": best["step"], "n_train": n_train, "tolerance": self.tolerance,
            "empty": self.empty, "leakage": leaks.lines(),
        }  # fmt: skip
        workdir.write_json(self.workdir / "metrics.json", numbers)
        notes = segmentation_page.Notes(
            title=self._title(), config=workdir.flat(config), lines=self.known.lines, best_step=best["step"],
            curves=metrics.read(self.workdir), shown=shown, leaks=leaks, n_train=n_train, skipped=skipped,
        )  # fmt: skip
        segmentation_page.write(self.folder, table, numbers, notes)
        self.conclusion = segmentation_page.verdict(numbers)
        name = numbers["judged_on"]
        self.latest = {
            f"{name}_{k}": v["value"]
            for k, v in numbers["splits"][name]["per_image"].items()
            if v["value"] is not None
        }

    def _shown(self, params: Any, judged: Cases, split: str) -> list[Shown]:
        """The worst cases, the middle one and the best, to be drawn on the grid the network sees."""
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
        source, classes = self.run.index.source, self.known.mask_classes
        assert source.masks is not None and classes is not None
        where = {source.names[int(p)]: int(p) for p in self.known.positions[split]}
        chosen = {where[str(judged.names[i])]: i for i in kinds}
        out = []
        for position, labels in self.segmenter.each([params], self.run.loader, list(chosen)):
            row = chosen[position]
            name = Path(source.names[position]).name
            title = f"{kinds[row]}: {name}, Dice {dice[row]:.2f}"
            image = source.read(position).astype(np.float32).mean(axis=-1)
            truth = classes[source.masks(position)]
            out.append(Shown(title, image, truth, labels, source.grid_of(position).spacing))
        return out


def _concatenate(parts: list[Cases]) -> Cases:
    first = parts[0]
    join = lambda field: np.concatenate([getattr(part, field) for part in parts])
    return Cases(
        first.labels, join("names"), join("groups"), join("split"),
        {m: np.concatenate([part.values[m] for part in parts]) for m in first.values},
        join("truth_size"), join("predicted_size"), first.unit,
    )  # fmt: skip
