r"""Which levels does the blur search choose, do several networks agree, and do the levels distinguish scanners?

    python main.py --config=configs/blur_search.py --config.init_from=runs/d2mae_0 --config.data.root=/my/images \
      --config.search.setting="search(1)" --workdir=runs/search_0    # and so on for other seeds
    python -m benchmarks.search_levels --runs=runs/search_0,runs/search_1 --table=scanners.csv --by=device \
      --output=levels
    python -m benchmarks.search_levels --rebuild=levels

`--table` is a CSV with a column `image` (or path) and the column of `--by`. OUTPUT keeps the chosen sigma of every
image in `levels.csv.gz`, from which `--rebuild` writes `levels.md` again.
"""

import argparse
import csv
import gzip
import io
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np

from deblur_mae_jax.degradations import blur
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.metrics import statistics, weighted
from deblur_mae_jax.reports import blur_fingerprint
from scripts.blur_fingerprint import joined

CASES, TABLE = "levels.csv.gz", "levels.md"


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="", help="workdirs of blur searches, separated by commas")
    parser.add_argument("--table", default="", help="a CSV with a column image, and the column of --by")
    parser.add_argument("--by", default="folder", help="folder, or a column")
    parser.add_argument("--output", default="", help="folder of the kept levels and the tables")
    parser.add_argument("--rebuild", default="", metavar="FOLDER")
    return parser.parse_args()


def collect(a):
    """Write the chosen sigma of every image of every run."""
    found, sites, names = {}, {}, []
    for run in a.runs.split(","):
        place = Path(run).expanduser()
        rows = blur_fingerprint.read(place / "blur_search.csv")
        if a.table:
            rows = joined(rows, a.table)
        for row, site in zip(rows, blur_fingerprint.sites_of(rows, a.by), strict=True):
            sites[row["image"]] = (row.get("group", ""), site)
            found.setdefault(row["image"], {})[place.name] = row["sigma"]
        if place.name in names:
            raise UserError(f"--runs: two workdirs are called '{place.name}'; the tables need different names")
        names.append(place.name)
    lacking = [image for image, own in found.items() if len(own) < len(names)]
    if lacking:
        raise UserError(f"--runs: '{lacking[0]}' is not in all of them")
    folder = Path(a.output).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["image", "group", "site", *names])
    out.writerows([image, *sites[image], *(found[image][name] for name in names)] for image in found)
    with open(folder / CASES, "wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as file:
        file.write(text.getvalue().encode())
    return folder


def unchanged(sigma):
    """Whether a blur of this sigma leaves every 8-bit image as it is: its kernel moves less than half a gray level."""
    if sigma == 0:
        return True
    taps = np.asarray(blur.gaussian_taps(sigma, blur.gaussian_radius(sigma, "opencv_float"), "opencv_float"))
    return 255 * (1 - taps.max() ** 2) < 0.5


def apart(sigma, sites, patients):
    """For each pair of sites the AUROC of sigma for the second, with its interval over patients."""
    lines, names = [], sorted(set(sites), key=lambda name: -(sites == name).sum())
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            own = (sites == first) | (sites == second)
            labels = (sites[own] == second).astype(int)
            p = np.stack([-sigma[own], sigma[own]], axis=1)
            value = float(weighted.MEASURES["auroc"](labels, p, np.ones((1, own.sum())))[0])
            interval = statistics.over_patients(labels, p, patients[own], weighted.MEASURES["auroc"])
            lines.append((f"{first} ({(sites == first).sum()}) and {second} ({(sites == second).sum()})",
                          f"{value:.2f} ({interval.low:.2f} to {interval.high:.2f})"))  # fmt: skip
    return lines


def write(folder):
    """The tables of `levels.md`, from the kept cases."""
    from scipy.stats import spearmanr

    with gzip.open(folder / CASES, "rt", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    runs = [name for name in rows[0] if name not in ("image", "group", "site")]
    sites = np.array([row["site"] for row in rows])
    patients = np.array([row["group"] or row["image"] for row in rows])
    sigma = {name: np.array([float(row[name]) for row in rows]) for name in runs}
    levels = sorted(set(np.concatenate(list(sigma.values()))))
    text = [
        "# The levels that the blur search chooses",
        "",
        f"{len(rows)} images. Share of the images by best sigma:",
        "",
    ]
    text += [f"| sigma | {' | '.join(runs)} |", "|---" * (len(runs) + 1) + "|"]
    for level in levels:
        share = " | ".join(f"{np.mean(sigma[name] == level):.1%}" for name in runs)
        text.append(f"| {level:g}{' (unchanged at 8 bits)' if unchanged(level) else ''} | {share} |")
    text += ["", "Rank correlation of the best sigmas of two runs (Spearman):", ""]
    text += [f"| | {' | '.join(runs)} |", "|---" * (len(runs) + 1) + "|"]
    for a in runs:
        text.append(f"| {a} | " + " | ".join(f"{spearmanr(sigma[a], sigma[b])[0]:.2f}" for b in runs) + " |")
    if len(set(sites)) > 1:
        text += [
            "",
            "Does sigma distinguish two sites? AUROC of a larger sigma for the second site, with a 95 % interval",
            "over patients. 0.5 is chance; below it the first site has the larger sigmas.",
            "",
        ]
        text += [f"| sites (images) | {' | '.join(runs)} |", "|---" * (len(runs) + 1) + "|"]
        columns = [apart(sigma[name], sites, patients) for name in runs]
        for lines in zip(*columns, strict=True):
            text.append(f"| {lines[0][0]} | " + " | ".join(value for _, value in lines) + " |")
    (folder / TABLE).write_text("\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    options = parse()
    try:
        if not options.rebuild and not (options.runs and options.output):
            raise UserError("--runs and --output are needed, or --rebuild=FOLDER")
        write(Path(options.rebuild).expanduser() if options.rebuild else collect(options))
    except UserError as problem:
        sys.exit(f"error: {problem}")
