"""The pictures of `docs/how-to/data.md`: contact sheets of simulated images in each layout.

python docs/pictures.py
"""

import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "data")]

import dicom_files  # noqa: E402

import deblur_mae_jax as dm  # noqa: E402
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


def csv(folder):
    """A CSV as rows, each beside the picture that it names, with the outline of its mask."""
    rows = [
        ["images/1.png", "benign", "patient 7", "train", "masks/1.png"],
        ["images/2.png", "malignant", "patient 8", "train", "masks/2.png"],
        ["images/3.png", "benign", "patient 9", "test", ""],
    ]
    numbers = [next(i for i in range(48) if PHANTOMS.label(i) == row[1] and i >= 5 * k) for k, row in enumerate(rows)]
    figure, axes = plt.subplots(figsize=(8, 2.9), dpi=100)
    axes.axis("off")
    names = ["path", "label", "group", "split", "mask"]
    table = axes.table(rows, colLabels=names, cellLoc="left", bbox=(0.13, 0, 0.87, 1))
    table.auto_set_font_size(False)
    table.set_fontsize(9.5)
    for (row, _), cell in table.get_celld().items():
        cell.set_edgecolor("#cccccc")
        cell.set_height(0.25 if row else 0.15)
        cell.get_text().set_fontweight("normal" if row else "bold")
        cell.get_text().set_fontfamily("monospace" if row else "sans-serif")
    heights = [table[row, 0].get_height() for row in range(4)]
    top = 1 - heights[0] / sum(heights)
    for number, row in zip(numbers, rows, strict=True):
        top -= heights[1] / sum(heights)
        place = axes.inset_axes((0, top + 0.01, 0.12, heights[1] / sum(heights) - 0.02))
        place.imshow(PHANTOMS.read(number)[..., 0], cmap="gray", vmin=0, vmax=255)
        if row[4]:
            place.contour(PHANTOMS.mask(number), [0.5], colors="#ffcc00", linewidths=1)
        place.axis("off")
    figure.savefig(folder / "csv.png", bbox_inches="tight")
    plt.close(figure)


def packed(folder, images):
    """The files of a packed set, the first rows of its index, and where the first records are."""
    dm.pack(images, folder, shard_mb=1)
    columns = ["name", "label", "split", "shard", "record"]
    rows = pq.read_table(folder / "index.parquet", columns=columns).slice(length=4).to_pylist()
    figure, axes = plt.subplots(figsize=(8, 2.6), dpi=100)
    axes.axis("off")
    files = sorted(
        f"{path.name}  ({path.stat().st_size / 1024:.0f} KiB)" for path in folder.iterdir() if path.is_file()
    )
    axes.text(0, 1, "\n".join(files), va="top", family="monospace", fontsize=9)
    cells = [[Path(row["name"]).name, *(str(row[column]) for column in columns[1:])] for row in rows]
    table = axes.table(cells, colLabels=columns, cellLoc="left", bbox=(0, 0, 1, 0.5))
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    for (row, _), cell in table.get_celld().items():
        cell.set_edgecolor("#cccccc")
        cell.get_text().set_fontweight("normal" if row else "bold")
    figure.savefig(OUT / "packed.png", bbox_inches="tight")
    plt.close(figure)


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
        csv(OUT)
        packed(place / "packed", place / "classes")
        privacy.use(place)
        sheet("classes", finetuning(), place / "classes", name="image_folder")
        sheet("masks", pretraining(), place / "masks", name="image_folder")
        sheet("dicom", pretraining(), place / "dicom", name="dicom")
        sheet("dicom_whole", pretraining(), place / "dicom", name="dicom", crop="none")
        sheet("volumes", volumes(), f"{place / 'volumes'}=mr", name="nifti")


if __name__ == "__main__":
    main()
