r"""Write the 14 tasks of UltraBench (Tupper and Gagne 2025) as CSVs that any run reads.

    pip install ultrabench==1.0.1
    ultrabench mmotu /data/raw/mmotu /data/ultrabench    # for every set: the package of that name makes the splits
    python scripts/ultrabench_lists.py --root=/data/ultrabench
    python scripts/study.py studies/ultrabench.py --finetune_root=/data/ultrabench --init_from=runs/d2mae \
      --preset=full --output=runs/ultrabench

`--root` holds the folders that the package wrote, such as `mmotu_v1.0.1`, each with `train.json`, `validation.json`
and `test.json`. The CSVs are written beside them: `classify_<task>.csv` with the columns path, label, split, group,
and `segment_<task>.csv` with path, mask, split, group. Tasks whose set is not there are named. The raw images are
yours to download; see the package's documentation.
"""

import argparse
import csv
import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from deblur_mae_jax.errors import UserError

CLASSIFY = ("aul_mass", "butterfly", "camus", "fatty_liver", "gbcu", "mmotu", "pocus")
# The folder of each segmentation task, and its key of the mask.
SEGMENT = {
    "aul_liver": ("aul_liver", "liver_mask"), "aul_mass": ("aul_mass", "mass_mask"), "camus": ("camus", "mask"),
    "mmotu": ("mmotu", "tumor_mask_binary"), "open_kidney": ("open_kidney", "capsule_mask"),
    "psfhs": ("psfhs", "psfh_mask"), "stanford_thyroid": ("stanford_thyroid", "tumor_mask"),
}  # fmt: skip
SPLITS = {"train": "train", "validation": "val", "test": "test"}
# Keys whose value names the class, and the patient or video; the first that an example has.
NAMES, GROUPS = ("class", "pathology", "image_quality"), ("patient", "source")


def folder_of(root, name):
    """The folder of a set, the newest version if there are several; None if there is none."""
    found = [path for path in root.glob(f"{name}_v*") if path.is_dir()]
    number = lambda path: [int(part) for part in re.findall(r"\d+", path.name.removeprefix(f"{name}_v"))]
    return max(found, key=number, default=None)


def examples(folder):
    """Every example with its split. Raises `UserError`."""
    out = []
    for name, split in SPLITS.items():
        path = folder / f"{name}.json"
        try:
            listed = json.loads(path.read_text())
            out += [({**example}, split) for example in listed]
        except (OSError, ValueError, TypeError) as error:
            raise UserError(
                f"--root: '{path}' is not a list of UltraBench's examples, as version 1.0.1 writes it: {error}"
            ) from error
    return out


def first(example, keys):
    """The value of the first key that an example has, as text."""
    return next((str(example[key]) for key in keys if example.get(key) not in (None, "")), "")


def label_of(example):
    """UltraBench's number of the class and its name: sorted names keep its order, so the positive class is last."""
    name = first(example, NAMES)
    return f"{example['label']} {name}" if name and name != str(example["label"]) else str(example["label"])


def rows_of(root, folder, mask=""):
    """The rows of a task, and how many examples lack a mask. Raises `UserError`."""
    rows, lacking = [], 0
    for number, (example, split) in enumerate(examples(folder)):
        wanted = mask or "label"
        if wanted not in example or "image" not in example:
            raise UserError(f"--root: example {number} of '{folder.name}' has no '{wanted}' or no 'image'")
        if example[wanted] in (None, ""):
            lacking += 1
            continue
        path = (folder / example["image"]).relative_to(root)
        content = (folder / example[mask]).relative_to(root).as_posix() if mask else label_of(example)
        rows.append((path.as_posix(), content, split, first(example, GROUPS)))
    return rows, lacking


def main(arguments=None):
    """Write the CSVs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    root = Path(parser.parse_args(arguments).root).expanduser()
    tasks = [("classify", name, name, "") for name in CLASSIFY]
    tasks += [("segment", name, folder, mask) for name, (folder, mask) in SEGMENT.items()]
    missing = []
    try:
        for kind, name, where, mask in tasks:
            folder = folder_of(root, where)
            if folder is None:
                missing.append(f"{kind} {name}")
                continue
            rows, lacking = rows_of(root, folder, mask)
            path = root / f"{kind}_{name}.csv"
            head = ("path", "mask" if mask else "label", "split", "group")
            with open(path, "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([head, *rows])
            counts = ", ".join(f"{sum(row[2] == split for row in rows)} {split}" for split in SPLITS.values())
            print(
                f"{path}: {counts}"
                + (f"; {lacking} without a {'mask' if mask else 'label'} are left out" if lacking else "")
            )
        if len(missing) == len(tasks):
            raise UserError(f"--root: '{root}' holds no folder that UltraBench wrote, such as mmotu_v1.0.1")
    except OSError as error:
        raise UserError(f"--root: cannot write to '{root}': {error.strerror or error}") from error
    if missing:
        print(f"not there: {', '.join(missing)}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
