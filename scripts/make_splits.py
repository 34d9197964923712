r"""Divide a labelled set into training, validation and test images, and check for leakage between them.

    python scripts/make_splits.py --root=/my/labelled --output=splits.csv
    python scripts/make_splits.py --root=list.csv --output=splits.csv --folds=5 --fold=0 --init_from=runs/d2mae

The set is a folder with one sub-folder per class, or a CSV (`path,label,group`). Splits are stratified by class,
never divide a patient, and depend only on the seed; five folds give 3:1:1. The patients are the column group, folders
that look like patients, or what --group_pattern="(bus_\d+)" finds in the names. Any run can use the CSV:
--config.data.name=manifest --config.data.root=splits.csv.

The audit compares the splits for identical pixels, for near-identical images (perceptual hash) and, with
--init_from, for neighbours in the features of a trained network; it shows the pairs on a page beside the CSV.
--audit_only audits the splits that the CSV already has.
"""

import argparse
import csv
import html
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

from deblur_mae_jax.config import pretraining
from deblur_mae_jax.data import audit, cells, dataset, splits
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.reports import page as report

MAX_SHOWN = 60
HEADER = ("path", "label", "split")
CHUNK = 256


def parse(arguments=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="a folder with one sub-folder per class, or a CSV")
    parser.add_argument("--output", required=True, help="the CSV to write")
    parser.add_argument("--group_pattern", default="", help="the patient in the name of an image: a regular expression")
    parser.add_argument("--folds", type=int, default=5, help="parts of the set; one of them is for testing")
    parser.add_argument("--fold", type=int, default=0, help="the fold to use for testing")
    parser.add_argument("--seed", type=int, default=0, help="of the division")
    parser.add_argument("--init_from", default="", help="a run whose features are compared too")
    parser.add_argument("--audit_only", action="store_true", help="keep the splits of the CSV")
    return parser.parse_args(arguments)


def embeddings(run, index):
    """Features of every image by the network of a run `(N, D)`."""
    import deblur_mae_jax as dm

    trained = dm.load(run)
    level = 1 if trained.info.network.inputs.degradation.num_levels else None
    parts = []
    for start in range(0, len(index), CHUNK):
        images = [index.source.read(i) for i in range(start, min(start + CHUNK, len(index)))]
        parts.append(dm.encode(trained, images, level=level))
    features = np.concatenate(parts)
    return features - features.mean(axis=0)  # features of images from one machine share a large common component


def findings(index, leaks):
    """What the audit found, in sentences."""
    if any(index.source.groups or ()):
        return leaks.lines() or ["No leak was found."]
    return [
        *(leaks.lines() or ["No copies were found."]),
        "The patients are not known, so several images of one patient may be in two splits. --group_pattern, or a "
        "column group, names the patients.",
    ]


def page(path, index, leaks, counts):
    """Write a page with the findings and the pairs side by side."""
    side = 160

    def tile(number):
        from PIL import Image

        image = Image.fromarray(index.source.read(number)[:, :, 0]).resize((side, side))
        return np.asarray(image)[:, :, None]

    parts = [report.head(f"{path.stem}: splits and leaks"), report.table_of(counts)]
    lines = findings(index, leaks)
    parts += [f"<p class={'warn' if leaks.any else 'note'}>{html.escape(x)}</p>" for x in lines]
    shown = leaks.pairs[:MAX_SHOWN]
    if shown:
        images = [np.concatenate([tile(i) for i in p.indices], axis=1) for p in shown]
        labels = [f"{p.kind}: {p.first_split}, {p.second_split}" for p in shown]
        sheet = report.gallery(images, labels, columns=min(3, len(shown)), tile=side)
        parts += ["<h2>Pairs</h2>", report.embedded(report.png_of(sheet), "pairs")]
        names = "".join(f"<li>{html.escape(f'{p.first} and {p.second}')}</li>" for p in shown)
        parts.append(f"<ol>{names}</ol>")
    path.write_text("\n".join([*parts, "</html>"]), encoding="utf-8")


def make(arguments):
    """Write the CSV and the page; returns what the audit found."""
    config = pretraining()
    root, output = Path(arguments.root).expanduser(), Path(arguments.output).expanduser()
    if not arguments.audit_only:
        cells.need_own(output, [[*HEADER, "sha"], [*HEADER, "group", "sha"]], "a list of splits that this script wrote")
    config.data.name = "manifest" if root.is_file() else "image_folder"
    config.data.root, config.data.split, config.data.group_pattern = str(root), "all", arguments.group_pattern
    source = dataset.load_source(config)
    if source.labels is None or not any(source.labels):
        raise UserError(f"--root: the images of '{root}' have no labels")
    index = dataset.build_index(config, None, source=source)
    labels, groups = index.source.labels, index.source.groups
    labelled = np.array([bool(name) for name in labels])
    if arguments.audit_only:
        if index.source.splits is None:
            raise UserError(f"--audit_only: '{root}' names no splits (a column 'split', or split folders)")
        names = np.array([split or "pool" for split in index.source.splits])
    else:
        names = np.full(len(index), "pool", dtype="<U5")
        own = np.flatnonzero(labelled)
        names[own] = splits.divide(
            [labels[i] for i in own],
            None if groups is None else [groups[i] for i in own],
            arguments.folds,
            arguments.fold,
            arguments.seed,
        )
        base = root.parent if root.is_file() else root
        output.parent.mkdir(parents=True, exist_ok=True)
        with open(output, "w", newline="", encoding="utf-8") as file:
            out = csv.writer(file)
            out.writerow([*HEADER, *(["group"] if groups else []), "sha"])
            for i, name in enumerate(index.source.names):
                place = os.path.relpath(base / name, output.parent)
                group = [groups[i]] if groups else []
                out.writerow([place, labels[i], names[i], *group, index.hashes[i]])
    indices = {s: np.flatnonzero(names == s) for s in splits.SPLITS if (names == s).any()}
    features = embeddings(arguments.init_from, index) if arguments.init_from else None
    leaks = audit.compare(index, indices, embeddings=features)
    leaks.write(output.with_name(output.stem + "_leaks.csv"))
    counts = {
        name: f"{len(part)} images; "
        + ", ".join(f"{c}: {sum(labels[i] == c for i in part)}" for c in sorted({labels[i] for i in part}))
        for name, part in indices.items()
    }
    page(output.with_suffix(".html"), index, leaks, counts)
    for name, text in counts.items():
        print(f"{name:6s} {text}")
    for note in index.source.notes:
        print(f"note: {note}")
    if index.source.masks is not None and not arguments.audit_only:
        print(f"note: '{output.name}' has no column for the masks; to segment, add a column 'mask' with their paths")
    for skipped in index.skipped:
        print(f"left out: {skipped.name}: {skipped.reason}")
    for line in findings(index, leaks):
        print(("LEAK  " if leaks.any else "") + line)
    if not arguments.audit_only:
        print(f"splits {output}")
    print(f"page   {output.with_suffix('.html')}")
    return leaks


def main():
    """Run and report errors in one line."""
    try:
        make(parse())
    except UserError as error:
        print("error:", error, file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"error: --output: cannot write '{error.filename}': {error.strerror or error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
