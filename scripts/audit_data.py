"""Find copies in a data set: identical, resized, recompressed, flipped and cropped images, and where they matter.

    python scripts/audit_data.py /my/images
    python scripts/audit_data.py list.csv --output=audit.html

A copy matters where its two images are in different splits, of different patients, or of different classes. The page
shows the pairs side by side, and a CSV beside it lists all of them.
"""

import argparse
import csv
import html
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

from deblur_mae_jax.config import copy
from deblur_mae_jax.data import cells, copies, dataset, source_config, summary
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.reports import page as report
from deblur_mae_jax.training.progress import Progress

MAX_SHOWN, TILE = 60, 160
HEADER = ["concern", "kind", "first", "second", "score"]
# The most harmful first.
CONCERNS = ("in different splits", "of different patients", "of different classes", "of one patient", "in one split")


def parse(arguments=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="a folder, a CSV, DICOM files, or a packed set")
    parser.add_argument("--name", default="", help="config.data.name, if it cannot be seen from ROOT")
    parser.add_argument("--output", default="audit.html", help="the page; the CSV is written beside it")
    parser.add_argument("--no_crops", action="store_true", help="do not look for cropped copies, which takes longest")
    return parser.parse_args(arguments)


def concern(source, pair):
    """Why a pair of copies matters."""
    differ = lambda values: values is not None and values[pair.first] != values[pair.second]
    known = lambda values: values is not None and values[pair.first] and values[pair.second]
    if differ(source.splits):
        return CONCERNS[0]
    if known(source.groups) and differ(source.groups):
        return CONCERNS[1]
    if known(source.labels) and differ(source.labels):
        return CONCERNS[2]
    return CONCERNS[3] if known(source.groups) else CONCERNS[4]


def page(path, index, pairs, concerns, table):
    """Write the page with the pairs side by side."""
    from PIL import Image

    def tile(number):
        image = copies.gray_of(index.source.read(number))
        scale = TILE / max(image.size)
        small = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
        out = Image.new("L", (TILE, TILE), 255)
        out.paste(small, ((TILE - small.width) // 2, (TILE - small.height) // 2))
        return np.asarray(out)[:, :, None]

    parts = [report.head(f"{path.stem}: copies"), report.table_of(dict(table))]
    for name in CONCERNS:
        chosen = [pair for pair, why in zip(pairs, concerns, strict=True) if why == name]
        if not chosen:
            continue
        kinds = ", ".join(f"{kind} {count}" for kind, count in Counter(pair.kind for pair in chosen).most_common())
        parts.append(f"<h2>{len(chosen)} pairs {html.escape(name)}</h2><p>{html.escape(kinds)}</p>")
        shown = chosen[:MAX_SHOWN]
        images = [np.concatenate([tile(pair.first), tile(pair.second)], axis=1) for pair in shown]
        sheet = report.gallery(images, [f"{i + 1}. {pair.kind}" for i, pair in enumerate(shown)], 3, TILE)
        parts.append(report.embedded(report.png_of(sheet), name))
        names = index.source.names
        items = "".join(f"<li>{html.escape(f'{names[p.first]} and {names[p.second]}')}</li>" for p in shown)
        parts.append(f"<ol>{items}</ol>")
        if len(chosen) > MAX_SHOWN:
            parts.append(f"<p class=note>The first {MAX_SHOWN} are shown; the CSV lists all.</p>")
    if not pairs:
        parts.append("<p>No copies were found.</p>")
    path.write_text("\n".join([*parts, "</html>"]), encoding="utf-8")


def main(arguments=None):
    """Audit the set; returns the pairs."""
    options = parse(arguments)
    progress, output = Progress(), Path(options.output).expanduser()
    cells.need_own(output.with_suffix(".csv"), [HEADER], "a list of copies; the list is written beside the page")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.with_suffix(".csv").touch()
    except OSError as error:
        raise UserError(f"--output: cannot write to '{output.parent}': {error.strerror}") from error
    config = source_config.config_for(options.root, options.name)
    config = copy(config, {"data.max_bad_fraction": 0.999})
    index = dataset.build_index(
        config, split="all", check="pixels",
        progress=lambda done, total: progress.update(f"checking images: {done} of {total}"),
    )  # fmt: skip
    table = summary.rows(index)
    for line in summary.lines(table):
        progress.print(line)
    pairs = copies.find(
        index.source, index.hashes, cropped=not options.no_crops,
        progress=lambda done, total: progress.update(f"hashing: {done} of {total}"),
    )  # fmt: skip
    concerns = [concern(index.source, pair) for pair in pairs]
    with open(output.with_suffix(".csv"), "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        order = sorted(range(len(pairs)), key=lambda i: (CONCERNS.index(concerns[i]), -pairs[i].score))
        names = index.source.names
        writer.writerows(
            [concerns[i], pairs[i].kind, names[pairs[i].first], names[pairs[i].second], f"{pairs[i].score:.4f}"]
            for i in order
        )
    page(output.with_suffix(".html"), index, pairs, concerns, table)
    for name in CONCERNS:
        count = concerns.count(name)
        if count:
            progress.print(f"{count} pairs {name}")
    progress.print("no copies were found" if not pairs else f"list {output.with_suffix('.csv')}")
    progress.print(f"page {output.with_suffix('.html')}")
    return pairs


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {str(error).replace('config.data.root', 'ROOT')}", file=sys.stderr)
        sys.exit(2)
