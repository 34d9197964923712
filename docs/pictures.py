"""The pictures of `docs/how-to/data.md`: contact sheets of simulated images in each layout.

python docs/pictures.py
"""

import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image, ImageDraw

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "data")]

import dicom_files  # noqa: E402

from deblur_mae_jax.config import finetuning, pretraining, volumes  # noqa: E402
from deblur_mae_jax.data import dataset, phantoms, phantoms3d, privacy  # noqa: E402
from deblur_mae_jax.pretrained import inherit  # noqa: E402
from deblur_mae_jax.reports import inspection  # noqa: E402

OUT = Path(__file__).parent / "pictures"
PHANTOMS = phantoms.Phantoms(48, seed=3, side=120)


def phantom(number):
    """A simulated picture `(H, W)` and the mask of its lesion."""
    return PHANTOMS.read(3 * number)[..., 0], PHANTOMS.mask(3 * number)


def sheet(picture, config, root, **fields):
    """Read a folder as a run does, and save its contact sheet."""
    with config.ignore_type():
        config.data.name, config.data.root, config.data.split = fields.pop("name"), str(root), "all"
        for key, value in fields.items():
            config.data[key] = value
    config = inherit.resolve(config)[0]
    index = dataset.build_index(config, source=dataset.load_source(config), check="pixels")
    labels = index.source.labels or [""] * len(index)
    splits = index.source.splits or [""] * len(index)
    rows = {}
    for i, (split, label) in sorted(enumerate(zip(splits, labels, strict=True)), key=lambda item: item[1][0] == "test"):
        rows.setdefault("\n".join(filter(None, [split, label])) or "images", []).append(i)
    image = inspection.sheet(index, {row: np.array(numbers) for row, numbers in rows.items()})
    image.save(OUT / f"{picture}.png", optimize=True)


def save(path, pixels):
    """Write a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def screen(pixels):
    """A phantom on the screen of a scanner, with a name and a scale."""
    out = np.zeros((pixels.shape[0] + 60, pixels.shape[1] + 80), np.uint8)
    out[40 : 40 + pixels.shape[0], 30 : 30 + pixels.shape[1]] = pixels
    image = Image.fromarray(out)
    draw = ImageDraw.Draw(image)
    draw.text((6, 4), "DOE^JANE  1970-01-01", fill=255)
    draw.text((6, 18), "SCANNER 1   7.5 MHz", fill=255)
    return np.asarray(image)


def main():
    """Make every picture."""
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for i in range(12):
            pixels, mask = phantom(i)
            label = PHANTOMS.label(3 * i)
            save(place / "classes" / ("train", "test")[i % 4 == 3] / label / f"p{i:02d}.png", pixels)
            save(place / "masks" / "images" / f"p{i:02d}.png", pixels)
            save(place / "masks" / "masks" / f"p{i:02d}.png", mask)
            region = dicom_files.region(30, 40, 29 + pixels.shape[1], 39 + pixels.shape[0])
            dicom_files.still(place / "dicom" / f"{i}.dcm", screen(pixels), patient=f"P{i}",
                              SequenceOfUltrasoundRegions=[region])  # fmt: skip
        made = phantoms3d.Phantoms3D(6, 0, 48)
        for i in range(6):
            volume, mask = np.asarray(made.read(i))[..., 0].astype(np.float32), made.mask(i)
            for folder, array in (("images", volume), ("masks", mask)):
                path = place / "volumes" / folder / f"case_{i}.nii.gz"
                path.parent.mkdir(parents=True, exist_ok=True)
                nib.save(nib.Nifti1Image(array, np.eye(4)), path)
        privacy.use(place)
        sheet("classes", finetuning(), place / "classes", name="image_folder")
        sheet("masks", pretraining(), place / "masks", name="image_folder")
        sheet("dicom", pretraining(), place / "dicom", name="dicom")
        sheet("dicom_whole", pretraining(), place / "dicom", name="dicom", crop="none")
        sheet("volumes", volumes(), f"{place / 'volumes'}=mr", name="nifti")


if __name__ == "__main__":
    main()
