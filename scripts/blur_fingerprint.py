"""Compare sites by the optimal blur of their images: one page with histograms and distances.

    python main.py --config=configs/blur_search.py --config.init_from=runs/d2mae --config.data.root=/my/images --workdir=runs/search
    python scripts/blur_fingerprint.py runs/search --by=folder
    python scripts/blur_fingerprint.py runs/search --by=scanner

Sites are the first folders of the names, or a column of blur_search.csv: label, group, scanner (DICOM). --table joins
another CSV by its column `image` (or path), for example with the hospital of each image.
"""  # noqa: E501

import argparse
import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.reports import blur_fingerprint


def parse(arguments=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="the workdir of a blur search")
    parser.add_argument("--by", default="folder", help="folder, or a column")
    parser.add_argument("--table", default="", help="a CSV with a column image, and the column of --by")
    parser.add_argument("--output", default="", help="folder of the page; RUN/fingerprint by default")
    return parser.parse_args(arguments)


def joined(rows, path):
    """The rows with the columns of another CSV."""
    try:
        with open(Path(path).expanduser(), newline="", encoding="utf-8-sig") as file:
            table = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--table: cannot read '{path}': {error}") from error
    key = next((name for name in ("image", "path", "name") if table and name in table[0]), None)
    if key is None:
        raise UserError(f"--table: '{path}' has no column image")
    known = {row[key]: row for row in table}
    missing = [row["image"] for row in rows if row["image"] not in known]
    if missing:
        raise UserError(f"--table: '{path}' has no row for {len(missing)} images, the first '{missing[0]}'")
    return [{**known[row["image"]], **row} for row in rows]


def main(arguments=None):
    """Write the page; returns the distances."""
    options = parse(arguments)
    run = Path(options.run).expanduser()
    rows = blur_fingerprint.read(run / "blur_search.csv")
    if options.table:
        rows = joined(rows, options.table)
    folder = Path(options.output).expanduser() if options.output else run / "fingerprint"
    found = blur_fingerprint.write(folder, f"{run.name}: blur fingerprint by {options.by}", rows, options.by)
    for d in sorted(found, key=lambda d: -d.value):
        verdict = "differs" if d.differs else "within chance"
        print(
            f"{d.first} and {d.second}: {d.value:.3f} pixels ({d.low:.3f} to {d.high:.3f}), "
            f"chance {d.chance:.3f}, p {d.p:.3f} (Holm): {verdict}"
        )
    print(f"page {folder / 'index.html'}")
    return found


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
