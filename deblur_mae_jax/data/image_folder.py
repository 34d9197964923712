"""A folder of images, flat or with one sub-folder per class."""

from __future__ import annotations

from pathlib import Path

from deblur_mae_jax.data import cells, layout, listing, naming, privacy, raster
from deblur_mae_jax.data.decode import EXTENSIONS
from deblur_mae_jax.data.image_files import Files, Masks, decoder_of, mask_file_of
from deblur_mae_jax.data.listing import File
from deblur_mae_jax.data.masks import looks_like_mask
from deblur_mae_jax.data.source import BadImage, Skipped, Source
from deblur_mae_jax.data.table import COLUMNS, SYNONYMS, normal
from deblur_mae_jax.data.volume_file import is_volume
from deblur_mae_jax.errors import UserError

AXES = 2  # of its images
READS = ("group_pattern",)  # fields of config.data that say what the images are


def source(data, channels: int) -> Source:
    """Every image below `data.root`, sorted by relative path.

    A file without an image extension is opened to check whether it is an image. If not, it is listed as skipped. The
    class of an image is the name of its first sub-folder. If the sub-folders name splits (`train`, `validation`,
    `test-images`, ...), only the splits named in `data.split` are used, and files beside them are left out.
    Masks are recognised by the names of their folders or files (`data/layout.py`). Patients are taken from
    `data.group_pattern`, or from sub-folders that look like patients.
    """
    root = listing.existing_root(data.root)
    if not root.is_dir():
        raise UserError(f"config.data.root: '{data.root}' is a file; for a CSV add --config.data.name=manifest")
    found = listing.walk(root)
    files, skipped = [], list(found.skipped)
    for file in found.files:
        reason = _no_image(file, data.max_pixels)
        if reason:
            # The name of a DICOM file may be that of a patient.
            is_dicom = "DICOM" in reason
            name = f"file_{privacy.pseudonym('file', file.name)}" if is_dicom else file.name
            skipped.append(Skipped(name, reason))
        else:
            files.append(file)
    arranged = layout.arrange(files, _stem, looks_like_mask, group_pattern=data.group_pattern)
    cases = arranged.of_splits(data.split, root)
    reader = Files([case.file.path for case in cases], decoder_of(data, channels))
    labels = [case.label for case in cases]
    groups = [case.group for case in cases]
    notes = [*_lists(found.files), *arranged.notes]
    notes += [f"the folder '{name}' holds no file" for name in found.empty[:5]]
    if found.links:
        notes.append(f"linked folders that are read too: {found.links}")
    return Source(
        [case.file.name for case in cases],
        reader.read,
        reader.header,
        reader.stamp,
        labels=labels if any(labels) else None,
        groups=groups if any(groups) else None,
        **Masks([case.masks for case in cases], reader, mask_file_of(data)).fields(),
        skipped=skipped + arranged.skipped,
        examine=reader.examine,
        whole=reader.whole,
        notes=notes,
        splits=[case.split for case in cases] if any(case.split for case in cases) else None,
        unused=layout.unused(arranged.cases, cases),
    )


def _lists(files: list[File]) -> list[str]:
    """Name the CSVs of a folder that know splits or patients and are not read."""
    out = []
    for file in files:
        if not file.folders and file.base.lower().endswith(".csv"):
            columns = {normal(name) for name in cells.columns_of(Path(file.path), SYNONYMS)}
            if columns & set(COLUMNS["path"]) and columns & {*COLUMNS["split"], *COLUMNS["group"]}:
                out.append(
                    f"'{file.base}' lists images with splits or patients and is not read: add "
                    f"--config.data.name=manifest, with --config.data.root ending in {file.base}"
                )
    return out


def _stem(base: str) -> str:
    return Path(base).stem if Path(base).suffix.lower() in EXTENSIONS else base


def _no_image(file: File, max_pixels: int) -> str:
    """Why a file is no image; "" if it is one, or has the extension of one."""
    path = Path(file.path)
    if path.suffix.lower() in EXTENSIONS:
        return ""
    if file.base.lower().endswith(naming.UNFINISHED):
        return "not an image file (a backup or an unfinished download)"
    if is_volume(file.base):
        return "not an image file (a volume; read volumes with config.data.name=nifti)"
    try:
        with raster.opened(path, max_pixels):
            return ""
    except BadImage as error:
        if "max_pixels" in str(error):
            return ""
        if any(words in str(error) for words in ("Permission denied", "Input/output error", "Stale file handle")):
            return str(error)
        what = str(error) if not str(error).startswith(("not an image", "cannot be opened", "empty")) else "no image"
        return f"not an image file ({what})"
    except OSError as error:
        return f"not an image file (cannot be read: {error.strerror or error})"
