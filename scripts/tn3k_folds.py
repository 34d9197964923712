r"""Write the official folds of TN3K as CSVs that any run reads.

    python scripts/tn3k_folds.py --root=/data/tn3k
    python main.py --config=configs/unetpp.py:convvit --config.data.name=manifest \
      --config.data.root=/data/tn3k/fold0.csv --workdir=runs/tn3k_0

`--root` holds `trainval-image`, `trainval-mask`, `test-image`, `test-mask` and `tn3k-trainval-fold0.json` to
`fold4.json`, as published. Each JSON file lists the numbers of training and validation images; the 614 test images
are the same in every fold. The CSVs `fold0.csv` to `fold4.csv` have the columns path, mask and split.
If masks have other values than 0 and 255, as after JPEG compression, add
--config.data.mask_values="0-127=background,128-255=lesion". TN3K does not say which images are of one patient.
"""

import argparse
import csv
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from deblur_mae_jax.errors import UserError

SUFFIXES = (".jpg", ".png", ".jpeg", ".bmp")
FOLDS = 5


def images(root, part):
    """The images of a part by the number in their names, with their masks. Raises `UserError`."""
    folder, masks = root / f"{part}-image", root / f"{part}-mask"
    for needed in (folder, masks):
        if not needed.is_dir():
            raise UserError(f"--root: '{root}' has no folder '{needed.name}'")
    inside = {path.stem: path for path in sorted(masks.iterdir()) if path.suffix.lower() in SUFFIXES}
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES:
            if path.stem not in inside or not path.stem.isdigit():
                raise UserError(f"--root: '{path}' has no mask of the same name, or its name is no number")
            found[int(path.stem)] = (path.relative_to(root), inside[path.stem].relative_to(root))
    if not found:
        raise UserError(f"--root: '{folder}' holds no images")
    return found


def fold(root, number, trainval, test):
    """The rows (path, mask, split) of a fold. Raises `UserError`."""
    path = root / f"tn3k-trainval-fold{number}.json"
    try:
        listed = json.loads(path.read_text())
        splits = {split: [int(one) for one in listed[split]] for split in ("train", "val")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--root: '{path}' is not a list of training and validation images: {error}") from error
    numbers = [*splits["train"], *splits["val"]]
    if sorted(numbers) != sorted(trainval):
        raise UserError(
            f"--root: '{path.name}' lists {len(numbers)} images ({len(set(numbers))} different ones), and "
            f"'trainval-image' holds {len(trainval)}"
        )
    rows = [(*trainval[one], split) for split, wanted in splits.items() for one in wanted]
    return rows + [(*names, "test") for names in test.values()]


def main(arguments=None):
    """Write the CSVs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    root = Path(parser.parse_args(arguments).root).expanduser()
    try:
        trainval, test = images(root, "trainval"), images(root, "test")
        for number in range(FOLDS):
            rows = fold(root, number, trainval, test)
            with open(root / f"fold{number}.csv", "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("path", "mask", "split"), *rows])
            counts = ", ".join(f"{sum(row[2] == s for row in rows)} {s}" for s in ("train", "val", "test"))
            print(f"{root / f'fold{number}.csv'}: {counts}")
    except UserError as error:
        print("error:", error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
