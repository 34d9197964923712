"""Read CT and MR volumes from NIfTI files in a folder, or listed in a CSV.

Every volume is reoriented to RAS, resampled if a spacing is set, and scaled as in Disruptive Autoencoders. CT values
are clipped to a window and mapped to 0..1; MR values are standardised over the non-zero voxels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np

from deblur_mae_jax.data.grid import Grid, save_volume
from deblur_mae_jax.data.image_folder import SPLIT_FOLDERS, existing_root, stamp_of
from deblur_mae_jax.data.manifest import read_rows
from deblur_mae_jax.data.source import BadImage, Source
from deblur_mae_jax.errors import UserError

AXES = 3  # of its images

MODALITIES = ("ct", "mr")
SUFFIXES = (".nii", ".nii.gz")
# Folders that hold the masks of the volumes beside them, under the same names.
MASK_FOLDERS = ("masks", "labels", "labelstr")
IMAGE_FOLDERS = ("images", "imagestr")


def source(data, channels: int) -> Source:
    """The volumes of `data.root`, which is one entry or several joined by ";". Each entry is a folder or a CSV.

    A CSV, or the `manifest.csv` of a folder, has a column path, file, filename or image. Optional columns are
    `modality`, `mask`, `label`, `group` and `split` (see `data.split`). An entry that ends in "=ct" or "=mr" has that
    modality. A folder without this ending and without a CSV must have sub-folders `ct` and `mr`. The modality is never
    guessed from other parts of a path. In a folder, a mask is matched to its volume by name: `images/a.nii.gz` and
    `masks/a.nii.gz`, or nnU-Net's `imagesTr/a_0000.nii.gz` and `labelsTr/a.nii.gz`.
    """
    if channels != 1:
        raise UserError(f"config.model.in_chans={channels}: volumes have one channel")
    rows: list[dict[str, str]] = []
    places = [p.strip() for p in str(data.root).split(";")]
    for root in places:
        rows += _rows_of(root, data.split)
    if len({row["name"] for row in rows}) < len(rows):  # two places with the same last folder
        for row in rows:
            row["name"] = Path(row["path"]).as_posix()
    if not rows:
        raise UserError(f"config.data.root: no volume ({', '.join(SUFFIXES)}) found in '{data.root}'")
    rows.sort(key=lambda row: row["name"])
    twice = next((a["name"] for a, b in itertools.pairwise(rows) if a["path"] == b["path"]), None)
    if twice is not None:
        raise UserError(f"config.data.root: '{twice}' is listed twice")
    low, high = data.ct_window
    if not low < high:
        raise UserError(f"config.data.ct_window=({low:g}, {high:g}) must be (low, high)")
    volumes = Volumes(
        [row["path"] for row in rows],
        [row["mask"] for row in rows],
        [row["modality"] for row in rows],
        tuple(float(s) for s in data.spacing),
        (float(low), float(high)),
        int(data.max_pixels),
        str(data.decoded),
    )
    has = lambda key: any(row[key] for row in rows)
    return Source(
        [row["name"] for row in rows],
        volumes.read,
        volumes.header,
        volumes.stamp,
        labels=[row["label"] for row in rows] if has("label") else None,
        groups=[row["group"] for row in rows] if has("group") else None,
        masks=volumes.mask if has("mask") else None,
        masked=[bool(row["mask"]) for row in rows] if has("mask") else None,
        mask_stamp=volumes.mask_stamp if has("mask") else None,
        grids=volumes.grid,
        modalities=[row["modality"] for row in rows],
        dtype=np.float16,
    )


def _rows_of(entry: str, split: str) -> list[dict[str, str]]:
    path, _, modality = entry.partition("=")
    root = existing_root(path)
    modality = modality.strip().lower()
    if modality and modality not in MODALITIES:
        raise UserError(
            f"config.data.root: '{entry}' names the modality '{modality}'. Choices: {', '.join(MODALITIES)}."
        )
    listing = root / "manifest.csv" if root.is_dir() else root
    if not listing.exists():
        return _rows_of_folder(root, modality, split)
    listed, column, _ = read_rows(listing, split)
    rows = []
    for row in listed:
        kind = (row.get("modality") or modality).lower()
        if kind not in MODALITIES:
            raise UserError(
                f"config.data.root: '{row[column]}' of '{listing}' has no modality; give a column `modality` "
                f"or write {path}=mr. Choices: {', '.join(MODALITIES)}."
            )
        mask = row.get("mask") or ""
        rows.append({
            "name": f"{root.name if root.is_dir() else root.stem}/{row[column]}",
            "path": str(listing.parent / row[column]),
            "mask": str(listing.parent / mask) if mask else "",
            "modality": kind,
            "label": row.get("label") or "",
            "group": row.get("group") or "",
        })  # fmt: skip
    return rows


def _rows_of_folder(root: Path, modality: str, split: str) -> list[dict[str, str]]:
    """Every volume below a folder. If all its sub-folders are splits, only the splits named in `split`."""
    rows = []
    paths = sorted(p for p in root.rglob("*") if p.name.endswith(SUFFIXES))
    is_mask = lambda path: any(folder.lower() in MASK_FOLDERS for folder in path.relative_to(root).parts[:-1])
    firsts = {path.relative_to(root).parts[0].lower() for path in paths}
    wanted = {name for name in split.split("+") if name and name != "all"}
    if firsts and firsts <= set(SPLIT_FOLDERS):
        present = {SPLIT_FOLDERS[name] for name in firsts}
        if wanted and not wanted & present:
            raise UserError(
                f"config.data.split: '{split}' is not a split of '{root}'. Choices: {', '.join(sorted(present))}, all."
            )
        keep = lambda p: not wanted or SPLIT_FOLDERS[p.relative_to(root).parts[0].lower()] in wanted
        paths = [path for path in paths if keep(path)]
    masks = {_case(path, root): path for path in paths if is_mask(path)}
    for path in (p for p in paths if not is_mask(p)):
        first = path.relative_to(root).parts[0].lower()
        kind = modality or (first if first in MODALITIES else "")
        if not kind:
            raise UserError(
                f"config.data.root: the modality of '{path}' is not known: use sub-folders ct and mr, or "
                f"write {root}=ct. Choices: {', '.join(MODALITIES)}."
            )
        name = f"{root.name}/{path.relative_to(root).as_posix()}"
        rows.append(
            {
                "name": name,
                "path": str(path),
                "mask": str(masks.get(_case(path, root), "")),
                "modality": kind,
                "label": "",
                "group": "",
            }
        )
    return rows


def _case(path: Path, root: Path) -> str:
    """The key that a volume and its mask share: the relative path without suffix and image or mask folders."""
    *folders, name = path.relative_to(root).parts
    between = [f for f in folders if f.lower() not in (*MASK_FOLDERS, *IMAGE_FOLDERS)]
    name = name.removesuffix(".gz").removesuffix(".nii").removesuffix("_0000")
    return "/".join([*between, name])


@dataclasses.dataclass(frozen=True)
class Volumes:
    """Read a list of NIfTI files. It is sent to worker processes, so it holds plain values only.

    paths: file of each volume.
    masks: mask file of each volume, "" without a mask.
    modalities: "ct" or "mr" for each volume.
    spacing: voxel size after resampling, mm. (): the file's own.
    ct_window: range of CT values, HU, that is mapped to 0..1.
    max_voxels: larger volumes are refused.
    decoded: folder that keeps decoded volumes. "": none.
    """

    paths: list[str]
    masks: list[str]
    modalities: list[str]
    spacing: tuple[float, ...]
    ct_window: tuple[float, float]
    max_voxels: int
    decoded: str

    def header(self, index: int) -> tuple[int, ...]:
        """(D, H, W) after orientation and resampling, from the header alone."""
        return self._resampled_shape(*_in_ras(self._open(self.paths[index]))[:2])

    def stamp(self, index: int) -> list[int] | None:
        """Size and modification time."""
        return stamp_of(self.paths[index])

    def mask_stamp(self, index: int) -> list[Any]:
        """Name, size and modification time of the mask."""
        path = self.masks[index]
        return [path, stamp_of(path) if path else None]

    def read(self, index: int) -> np.ndarray:
        """float16 `(D, H, W, 1)`, scaled."""
        decoded = self._kept(index)
        if decoded is not None and decoded.exists():
            try:
                return np.load(decoded, mmap_mode="r")
            except (OSError, ValueError):
                pass  # incomplete because a process was killed: decode it again
        volume = self._decode(index)
        if decoded is not None:
            decoded.parent.mkdir(parents=True, exist_ok=True)
            draft = decoded.with_name(f"{decoded.name}.{os.getpid()}.tmp")
            with open(draft, "wb") as file:
                np.save(file, volume)
            os.replace(draft, decoded)
        return volume

    def mask(self, index: int) -> np.ndarray:
        """uint8 `(D, H, W)`, class numbers, on the grid of `read`."""
        _, zooms, _ = _in_ras(self._open(self.paths[index]))
        return self._resampled(self._truth(index), zooms, order=0)

    def grid(self, index: int) -> Grid:
        """The grid of the file in RAS orientation. Saved label maps are turned back to the file's orientation."""
        volume = self._open(self.paths[index])
        shape, zooms, _ = _in_ras(volume)

        def finish(labels: np.ndarray) -> np.ndarray:
            return labels if labels.shape == shape else _zoomed(labels, shape, order=0)

        def save(labels: np.ndarray, path: Path) -> Path:
            from nibabel import orientations

            turn = orientations.ornt_transform(
                orientations.axcodes2ornt("RAS"), orientations.io_orientation(volume.affine)
            )
            return save_volume(orientations.apply_orientation(labels, turn), path, volume.affine)

        return Grid(zooms, "mm", lambda: self._truth(index), finish, save)

    def _truth(self, index: int) -> np.ndarray:
        """The mask in RAS orientation, uint8, not resampled. Raises `BadImage` if its grid is not the volume's."""
        if not self.masks[index]:
            raise BadImage("it has no mask")
        mask, volume = self._open(self.masks[index]), self._open(self.paths[index])
        (shape, zooms, affine), (own_shape, _, own_affine) = _in_ras(volume), _in_ras(mask)
        if own_shape != shape:
            raise BadImage(f"its mask has the shape {own_shape}, the volume {shape}")
        ends = np.array([[0, 0, 0, 1], [*(n - 1 for n in shape), 1]]).T
        apart = float(np.abs(affine @ ends - own_affine @ ends).max())
        if apart > max(zooms) / 2:
            raise BadImage(
                f"its mask does not match: by their affines, the corners of mask and volume are {apart:.1f} mm apart"
            )
        values = self._values(mask)
        if values.min() < 0 or values.max() > 255 or not np.array_equal(values, np.rint(values)):
            raise BadImage("its mask holds values that are not class numbers (0 to 255)")
        return values.astype(np.uint8)

    def _kept(self, index: int) -> Path | None:
        if not self.decoded:
            return None
        spec = (self.paths[index], self.stamp(index), self.spacing, self.ct_window,
                self.modalities[index])  # fmt: skip
        name = hashlib.blake2b(repr(spec).encode(), digest_size=12).hexdigest()
        return Path(self.decoded).expanduser() / f"{name}.npy"

    def _open(self, path: str) -> Any:
        import nibabel as nib

        try:
            if os.path.getsize(path) == 0:
                raise BadImage("empty file (0 bytes)")
            image: Any = nib.load(path)
            shape = image.shape
        except BadImage:
            raise
        except FileNotFoundError as error:
            raise BadImage("the file does not exist") from error
        except Exception as error:  # headers are damaged in as many ways as there are files
            raise BadImage(f"not a NIfTI file, or damaged: {_one_line(error)}") from error
        if len(shape) != 3 and (len(shape) != 4 or shape[3] != 1):
            raise BadImage(f"{len(shape)} dimensions {shape}; expected a volume of 3")
        if 0 in shape:
            raise BadImage(f"no voxels: its shape is {shape}")
        if int(np.prod(shape)) > self.max_voxels:
            raise BadImage(f"{shape} voxels, over data.max_pixels={self.max_voxels}")
        affine = image.affine
        if affine is None or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
            raise BadImage("its affine is singular or not finite, so its orientation is unknown")
        return image

    def _values(self, image: Any) -> np.ndarray:
        """float32 `(D, H, W)` in RAS orientation."""
        from nibabel import orientations

        try:
            values = np.asarray(image.dataobj, np.float32).reshape(image.shape[:3])
            turn = orientations.io_orientation(image.affine)
            values = orientations.apply_orientation(values, turn)
        except Exception as error:  # truncated gzip streams and the like
            raise BadImage(f"damaged: {_one_line(error)}") from error
        if not np.isfinite(values).all():
            raise BadImage("holds NaN or infinite values")
        return values

    def _decode(self, index: int) -> np.ndarray:
        image = self._open(self.paths[index])
        windowed = image.get_data_dtype() == np.uint8  # CT values in HU need more than 8 bits: already windowed
        values = self._resampled(self._values(image), _in_ras(image)[1], order=1)
        if self.modalities[index] == "ct":
            low, high = (0.0, 255.0) if windowed else self.ct_window
            scaled = (np.clip(values, low, high) - low) / (high - low)
        else:
            inside = values != 0
            spread = float(values[inside].std()) if inside.any() else 0.0
            if spread <= 0:
                raise BadImage("all its voxels have the same value")
            scaled = np.where(inside, (values - values[inside].mean()) / spread, 0.0)
        return scaled.astype(np.float16)[..., None]

    def _resampled_shape(self, shape: tuple[int, ...], zooms: Any) -> tuple[int, ...]:
        if not self.spacing:
            return tuple(int(n) for n in shape)
        pairs = zip(shape, zooms, self.spacing, strict=True)
        return tuple(max(1, round(n * float(zoom) / wanted)) for n, zoom, wanted in pairs)

    def _resampled(self, values: np.ndarray, zooms: Any, order: int) -> np.ndarray:
        shape = self._resampled_shape(values.shape, zooms)
        if shape == values.shape:
            return values
        return _zoomed(values, shape, order)


def _in_ras(image: Any) -> tuple[tuple[int, ...], tuple[float, ...], np.ndarray]:
    """Shape, voxel size in mm, and affine of a file after reorientation to RAS, from its header alone."""
    from nibabel import orientations

    turn = orientations.io_orientation(image.affine)
    order = np.argsort(turn[:, 0])
    shape = image.shape[:3]
    zooms = image.header.get_zooms()[:3]
    affine = image.affine @ orientations.inv_ornt_aff(turn, shape)
    turned = tuple(int(shape[i]) for i in order)
    return turned, tuple(float(zooms[i]) for i in order), affine


def _zoomed(values: np.ndarray, shape: tuple[int, ...], order: int) -> np.ndarray:
    from scipy import ndimage

    factors = [new / old for new, old in zip(shape, values.shape, strict=True)]
    return ndimage.zoom(values, factors, order=order, mode="nearest", grid_mode=True)


def _one_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
