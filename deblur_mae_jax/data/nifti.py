"""Read CT and MR volumes from files in a folder, or listed in a CSV.

Formats are NIfTI, Analyze, MGH, MetaImage and NRRD. Every volume is reoriented to RAS, resampled if a spacing is set,
and scaled as in Disruptive Autoencoders. CT values are clipped to a window and mapped to 0..1; MR values are
standardised over the non-zero voxels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deblur_mae_jax.data import layout, listing, masks, naming, spelling, volume_file
from deblur_mae_jax.data import table as tables
from deblur_mae_jax.data.layout import groups_by_pattern
from deblur_mae_jax.data.manifest import cells_of_masks, joined_words, refuse_twice, without_masks
from deblur_mae_jax.data.source import BadImage, Skipped, Source
from deblur_mae_jax.data.volume_reader import Volumes
from deblur_mae_jax.errors import UserError, pair

AXES = 3  # of its images
READS = ("columns", "group_pattern")  # fields of config.data that say what the images are

MODALITIES = ("ct", "mr")
# Other names of the modalities.
SYNONYMS = dict.fromkeys(("mri", "t1", "t2", "t1w", "t2w", "t1ce", "t1c", "flair", "pd", "dwi", "adc"), "mr") | {
    "cbct": "ct", "cta": "ct",
}  # fmt: skip

MODALITY_FOLDERS = {"ct": "ct", "mr": "mr", "mri": "mr"}


@dataclasses.dataclass(frozen=True)
class _Row:
    """A volume of `data.root`. key: its name without that of the root."""

    key: str
    name: str
    path: str
    modality: str
    masks: tuple[str, ...] = ()
    label: str = ""
    group: str = ""
    split: str = ""


@dataclasses.dataclass
class _Found:
    rows: list[_Row]
    skipped: list[Skipped]
    notes: list[str]
    unused: dict[str, int]


def source(data, channels: int) -> Source:
    """The volumes of `data.root`, which is one entry or several joined by ";". Each entry is a folder or a CSV.

    A CSV, or the `manifest.csv` of a folder, has a column path, file, filename or image. Optional columns are
    `modality`, `mask`, `label`, `group` and `split` (see `data.split`). An entry that ends in "=ct" or "=mr" has that
    modality. A folder without this ending and without a CSV must have sub-folders `ct` and `mr`. The modality is never
    guessed from other parts of a path. In a folder, label maps are recognised and matched to volumes by name
    (`data/layout.py`): `images/a.nii.gz` and `masks/a.nii.gz`, nnU-Net's `imagesTr/a_0000.nii.gz` and
    `labelsTr/a.nii.gz`, BraTS's `a/a_t1.nii.gz` and `a/a_seg.nii.gz`, and others.
    """
    if channels != 1:
        raise UserError(f"config.model.in_chans={channels}: volumes have one channel")
    low, high = pair("config.data.ct_window", data.ct_window, "(-1000.0, 1000.0)")
    if not low < high:
        raise UserError(f"config.data.ct_window=({low:g}, {high:g}) must be (low, high)")
    check_spacing(data.spacing)
    found = _Found([], [], [], {})
    for number, entry in enumerate(_entries(str(data.root))):
        one = _of_entry(entry, number, data)
        found.rows += one.rows
        found.skipped += one.skipped
        found.notes += one.notes
        found.unused |= one.unused
    rows = found.rows
    if not rows:
        what = f"; the first is '{found.skipped[0].name}': {found.skipped[0].reason}" if found.skipped else ""
        raise UserError(f"config.data.root: no volume ({', '.join(volume_file.SUFFIXES)}) in '{data.root}'{what}")
    if len({row.name for row in rows}) < len(rows):  # two places with the same last folder
        rows = [dataclasses.replace(row, name=Path(row.path).as_posix()) for row in rows]
    refuse_twice(Path(str(data.root)), [row.path for row in rows], [row.name for row in rows])
    volumes = Volumes(
        [row.path for row in rows],
        [row.masks for row in rows],
        [row.modality for row in rows],
        tuple(float(s) for s in data.spacing),
        (float(low), float(high)),
        int(data.max_pixels),
        str(data.decoded),
        masks.parse(data.mask_values),
    )
    return source_of(
        volumes,
        names=[row.name for row in rows],
        keys=[row.key for row in rows],
        labels=[row.label for row in rows],
        groups=[row.group for row in rows],
        splits=[row.split for row in rows],
        skipped=found.skipped,
        notes=found.notes,
        unused=found.unused,
    )


def check_spacing(spacing: Sequence[float]) -> None:
    """Raise `UserError` if `config.data.spacing` is neither () nor three lengths."""
    if len(spacing) not in (0, 3) or not all(0 < float(s) < 1e6 for s in spacing):
        raise UserError(f"config.data.spacing={tuple(spacing)} must be () or three lengths above 0, in mm")


def source_of(
    volumes: Volumes,
    *,
    names: list[str],
    keys: list[str],
    labels: list[str],
    groups: list[str],
    splits: list[str],
    skipped: list[Skipped],
    notes: list[str],
    unused: dict[str, int],
) -> Source:
    """A source of volumes. Lists of "" mean that nothing is known."""
    masked = any(volumes.masks)
    known = lambda values: list(values) if any(values) else None
    return Source(
        names,
        volumes.read,
        volumes.header,
        volumes.stamp,
        labels=known(labels),
        groups=known(groups),
        masks=volumes.mask if masked else None,
        masked=[bool(own) for own in volumes.masks] if masked else None,
        mask_stamp=volumes.mask_stamp if masked else None,
        grids=volumes.grid,
        skipped=skipped,
        examine=volumes.examine,
        examine_mask=volumes.examine_mask if masked else None,
        mask_names=list(volumes.mask_values.names) if volumes.mask_values else None,
        notes=notes,
        splits=known(splits),
        unused=unused,
        keys=keys,
        modalities=list(volumes.modalities),
        dtype=np.float16,
    )


def _entries(text: str) -> list[tuple[str, str]]:
    """Split `data.root` into places and their modalities ("" if not given). Raises `UserError`."""
    entries = []
    places = (text.strip(), text.strip().rpartition("=")[0])
    one = any(place and Path(place).expanduser().exists() for place in places)  # ";" may be part of a name
    for piece in [text] if one else text.split(";"):
        piece = piece.strip()
        path, equals, modality = piece.rpartition("=")
        if not equals or Path(piece).expanduser().exists():  # "=" may be part of a name
            path, modality = piece, ""
        kind = modality.strip().lower()
        kind = SYNONYMS.get(kind, kind)
        if kind and kind not in MODALITIES:
            raise UserError(
                f"config.data.root: '{piece}' names the modality '{modality}'. Choices: {', '.join(MODALITIES)}."
            )
        entries.append((path, kind))
    return entries


def _of_entry(entry: tuple[str, str], number: int, data) -> _Found:
    path, modality = entry
    root = listing.existing_root(path)
    table = root / "manifest.csv" if root.is_dir() else root
    if not table.exists():
        return _of_folder(root, modality, number, data)
    if root.is_file() and volume_file.is_volume(root.name):
        raise UserError(f"config.data.root: '{root}' is a file; name its folder, or a CSV that lists volumes")
    read = tables.read(table, data.split, data.columns)
    finder = tables.Finder(table.parent, volume_file.SUFFIXES)
    rows, masks_listed = without_masks(read.rows, volume_file.stem, volumes=True)
    found = _Found([], read.skipped + masks_listed, read.notes, read.unused)
    for row in rows:
        key = tables.name_of(row["path"])
        kind = _modality(row, table, path, modality)
        if kind not in MODALITIES:
            own = row.get("modality") or kind
            reason = f"its modality is '{own}'; choices: {', '.join(MODALITIES)}"
            found.skipped.append(Skipped(key, reason))
            continue
        mask = tuple(finder.path(cell) for cell in cells_of_masks(row))
        found.rows.append(_Row(
            f"{number}/{key}", f"{root.name if root.is_dir() else root.stem}/{key}", finder.path(row["path"]), kind,
            mask, row.get("label", ""), row.get("group", ""), row.get("split", ""),
        ))  # fmt: skip
    found.notes += [*finder.notes, *joined_words(rows)]
    every = tables.read(table, "all", data.columns).rows if read.unused else rows  # a patient may be in several splits
    names = [tables.name_of(row["path"]) for row in every]
    groups = _groups(found, names, "group" in read.columns, data.group_pattern)
    found.rows = [dataclasses.replace(row, group=g) for row, g in zip(found.rows, groups, strict=True)]
    return found


def _modality(row: dict[str, str], table: Path, path: str, of_root: str) -> str:
    """The modality of a row: its own, which may be another one than CT and MR, else that of the root.

    Raises `UserError` if there is none.
    """
    own = row.get("modality", "")
    kind = (of_root if spelling.is_missing(own) else own).lower()
    kind = SYNONYMS.get(kind, kind)
    if not kind:
        raise UserError(
            f"config.data.root: '{row['path']}' of '{table}' has no modality; give a column `modality` or write "
            f"{path}=mr. Choices: {', '.join(MODALITIES)}."
        )
    return kind


def _groups(found: _Found, every: list[str], stated: bool, pattern: str) -> list[str]:
    """The patient of every row of a CSV: as stated, by `config.data.group_pattern`, or by the names of the files.

    every: the files of all rows, also of other splits.
    """
    rows, notes = found.rows, found.notes
    names = [row.key.partition("/")[2] for row in rows]
    groups = [row.group for row in rows]
    if not stated and pattern and rows:
        groups = groups_by_pattern([row.key for row in rows], pattern, notes)
    elif not stated:
        every = list(dict.fromkeys([*names, *every]))
        stems = [volume_file.stem(name.rpartition("/")[2]) for name in every]
        of = dict(zip(every, layout.volumes_of_one(stems, [name.rpartition("/")[0] for name in every]), strict=True))
        groups = [of[name] for name in names]
        if any(groups):
            notes.append(f"{len(set(groups))} patients are taken from the names of the files, such as '{groups[0]}'")
    return layout.one_patient_per_mask(groups, [row.masks for row in rows], names, notes)


def _of_folder(root: Path, modality: str, number: int, data) -> _Found:
    """Every volume below a folder; of split folders, only the splits named in `data.split`."""
    walked = listing.walk(root)
    skipped, files = list(walked.skipped), []
    for file in walked.files:
        if volume_file.belongs_to_another(file.path):
            continue
        if volume_file.is_volume(file.base):
            files.append(file)
        elif file.base.lower() not in ("manifest.csv", "dataset.json", "readme.md", "readme.txt", "license"):
            skipped.append(Skipped(file.name, "not a volume file"))
    looks = lambda path: looks_like_label_map(path, int(data.max_pixels))
    arranged = layout.arrange(files, volume_file.stem, looks, group_pattern=data.group_pattern, volumes=True)
    cases = arranged.of_splits(data.split, root)
    found = _Found([], skipped + arranged.skipped, list(arranged.notes), layout.unused(arranged.cases, cases))
    if walked.links:
        found.notes.append(f"linked folders that are read too: {walked.links}")
    overruled: list[str] = []
    for case in cases:
        named = [SYNONYMS.get(folder.lower(), folder.lower()) for folder in case.file.folders]
        own = {MODALITY_FOLDERS[f.lower()] for f in case.file.folders if f.lower() in MODALITY_FOLDERS}
        if modality and own and modality not in own:
            overruled.append(case.file.name)
        kind = modality or next((name for name in named if name in MODALITIES), "")
        if len(own) > 1 and not modality:
            raise UserError(
                f"config.data.root: '{case.file.path}' is in folders of several modalities ({', '.join(sorted(own))}); "
                f"rename one, or write {root}=ct"
            )
        if kind not in MODALITIES:
            raise UserError(
                f"config.data.root: the modality of '{case.file.path}' is not known: use sub-folders ct and mr, or "
                f"write {root}=ct. Choices: {', '.join(MODALITIES)}."
            )
        found.rows.append(_Row(
            f"{number}/{case.file.name}", f"{root.name}/{case.file.name}", case.file.path, kind, case.masks, "",
            case.group, case.split,
        ))  # fmt: skip
    if overruled:
        found.notes.append(
            f"{len(overruled)} volumes are read as {modality}, as config.data.root says, although their folders name "
            f"another modality; the first is '{overruled[0]}'"
        )
    channels = {c for c in (naming.without_channel(volume_file.stem(r.path))[1] for r in found.rows) if c}
    if len(channels) > 1 and "0000" in channels:
        found.notes.append(
            f"cases have {len(channels)} channels (_{', _'.join(sorted(channels))}): each is a volume of its own, and "
            "the volumes of a case share a patient"
        )
    return found


def looks_like_label_map(path: str, max_voxels: int) -> bool:
    """Whether a volume holds few different whole numbers, as label maps do. False if it cannot be read."""
    try:
        values = volume_file.open_volume(path, max_voxels).values()
    except BadImage:
        return False
    sample = values.ravel()[:: max(1, values.size // 200_000)]
    distinct = np.unique(sample)
    if len(distinct) > 150 or distinct.min() < 0 or not np.array_equal(distinct, np.rint(distinct)):
        return False
    return len(distinct) <= 8 or float((sample == distinct[0]).mean()) > 0.3
