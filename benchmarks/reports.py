"""Time the reports of a classifier and of a segmenter, from predictions to the page.

    python -m benchmarks.reports
    python -m benchmarks.reports --images=1000 --classes=8 --labels=3 --side=128 --depth=64

A classifier: `--images` phantoms written as PNG files, two of each patient, as the test split beside as many for
training; the table of simulated predictions, every measure with its interval, the search for copies, figures and page.
A segmenter: simulated label maps of `--images` cases, `--depth` planes of `--side` pixels (depth 1 is an image); first
the measures of every case, among them the distances between surfaces, then table, intervals, figures and page.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks import common


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000, help="cases of the judged split")
    parser.add_argument("--classes", type=int, default=8)
    parser.add_argument("--labels", type=int, default=3)
    parser.add_argument("--side", type=int, default=128, help="pixels")
    parser.add_argument("--depth", type=int, default=64, help="planes of a segmented volume")
    parser.add_argument("--output", default="")
    return parser.parse_args()


def curves(metric):
    """Lines of `metrics.jsonl` of a short run."""
    return [{"step": step, "loss": 1.0 / (1 + step), f"val_{metric}": 0.5 + 0.004 * step} for step in range(0, 100, 10)]


def classifier(arguments, folder):
    """Seconds of `reports.classification.write`, and the share of the search for copies."""
    from deblur_mae_jax import config as fields
    from deblur_mae_jax.data import audit, dataset
    from deblur_mae_jax.data import index as indexing
    from deblur_mae_jax.reports import classification, predictions
    from deblur_mae_jax.workdir.run_folder import Workdir

    rng = np.random.default_rng(0)
    count, classes = arguments.images, arguments.classes
    common.write_images(folder / "images", 2 * count, 64)
    config, images = fields.finetuning("small"), common.load_config("configs/quickstart.py")
    images.data.name, images.data.root = "image_folder", str(folder / "images")
    index = indexing.build(dataset.load_source(images))
    labels = rng.integers(0, classes, count)
    scores = rng.standard_normal((count, classes)) + 1.5 * np.eye(classes)[labels]
    table = predictions.Predictions(
        [f"class {k}" for k in range(classes)], np.array(index.source.names[:count]),
        np.array([f"patient {i // 2}" for i in range(count)]), np.full(count, "test"), labels,
        np.exp(scores) / np.exp(scores).sum(1, keepdims=True), np.zeros(count, int), np.full(count, np.nan),
    )  # fmt: skip
    indices = {"test": np.arange(count), "train": np.arange(count, 2 * count)}
    notes = classification.Notes(
        title="simulated", config=fields.flat(config), lines=[], best_step=90, curves=curves("auroc"), skipped=0,
        setting=None, drawn=np.arange(count), features=rng.standard_normal((count, 192)), mistakes=[],
        train_counts=np.bincount(labels, minlength=classes),
    )  # fmt: skip
    started = time.perf_counter()
    audit.compare(index, indices, pretrained=None, near=True)
    copies = time.perf_counter() - started
    (folder / "classifier").mkdir()
    started = time.perf_counter()
    classification.write(Workdir(folder / "classifier"), table, index, indices, notes)
    return {"seconds": time.perf_counter() - started, "search_for_copies_s": copies}


def label_maps(arguments, rng):
    """A truth and a prediction: one ellipsoid for each label, and the same a little displaced and resized."""
    shape = (arguments.depth, arguments.side, arguments.side)[arguments.depth == 1 :]
    grid = np.ogrid[tuple(slice(0, n) for n in shape)]
    maps = np.zeros((2, *shape), np.uint8)
    for label in range(1, arguments.labels + 1):
        centre, radius = rng.uniform(0.3, 0.7, len(shape)) * shape, rng.uniform(0.08, 0.2, len(shape)) * shape
        for i, out in enumerate(maps):
            distance = sum(((g - c) / max(r, 1.0)) ** 2 for g, c, r in zip(grid, centre, radius, strict=True))
            out[distance <= 1] = label
            if i == 0:
                centre, radius = centre + rng.normal(0, 1, len(shape)), radius * rng.uniform(0.9, 1.1)
    return maps


def segmenter(arguments, folder):
    """Seconds of the measures of all cases, and of `reports.segmentation.write`."""
    from deblur_mae_jax import config as fields
    from deblur_mae_jax.data import audit
    from deblur_mae_jax.metrics import segmentation as measures
    from deblur_mae_jax.reports import cases, segmentation
    from deblur_mae_jax.workdir.run_folder import Workdir

    rng = np.random.default_rng(0)
    count, names = arguments.images, [f"label {k}" for k in range(1, arguments.labels + 1)]
    spent, rows, sizes = 0.0, [], []
    for _ in range(count):
        truth, predicted = label_maps(arguments, rng)
        started = time.perf_counter()
        rows.append(measures.measure_labels(truth, predicted, len(names), (1.0,) * truth.ndim))
        spent += time.perf_counter() - started
        sizes.append([np.bincount(x.ravel(), minlength=len(names) + 1)[1:] for x in (truth, predicted)])
    truth_size, predicted_size = (np.array([s[i] for s in sizes], float) for i in range(2))
    table = cases.Cases(
        names, np.array([f"case {i:04d}" for i in range(count)]), np.array([f"patient {i // 2}" for i in range(count)]),
        np.full(count, "test"), {m: np.array([row[m] for row in rows]) for m in measures.MEASURES},
        truth_size, predicted_size, "mm",
    )  # fmt: skip
    notes = segmentation.Notes(
        title="simulated", config=fields.flat(fields.volume_segmentation()), lines=[], best_step=90,
        curves=curves("dice"), skipped=0, shown=[], leaks=audit.Leaks([], [], False, False), n_train=count,
    )  # fmt: skip
    (folder / "segmenter").mkdir()
    started = time.perf_counter()
    segmentation.write(Workdir(folder / "segmenter"), table, notes)
    return {"measures_s": spent, "seconds": time.perf_counter() - started}


def main():
    """Measure, print, write JSON."""
    arguments = parse()
    with tempfile.TemporaryDirectory() as name:
        rows = {"classifier": classifier(arguments, Path(name)), "segmenter": segmenter(arguments, Path(name))}
    for kind, row in rows.items():
        print(kind, {k: round(v, 2) for k, v in row.items()})
    sizes = {k: getattr(arguments, k) for k in ("images", "classes", "labels", "side", "depth")}
    common.write(arguments.output, "reports", "seconds of a report", {**sizes, **rows})


if __name__ == "__main__":
    main()
