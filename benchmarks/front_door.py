"""Damaged files among good ones: the run ends and the list is exact; and the rates of `--inspect` and of DICOM headers.

    python -m benchmarks.front_door [--files=10000] [--damaged=1000] [--dicom=10000]

A folder of small PNG files in two classes is made, some of which are emptied, cut, filled with text, made too small, or
replaced by other formats under the same suffix. Then `--inspect` is timed, and a short pre-training run is made. Both
lists of what was left out must name the damaged files and no others. At last the headers of small DICOM files are read.
"""

import argparse
import csv
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundImageStorage

from benchmarks import common
from configs import quickstart
from deblur_mae_jax.commands import inspect
from deblur_mae_jax.config import change
from deblur_mae_jax.data import dicom
from deblur_mae_jax.train import train_and_evaluate

DAMAGE = ("empty", "cut", "text", "tiny", "pdf", "dicom")


def make(folder: Path, files: int, damaged: int, seed: int = 0) -> set[str]:
    """Write the files; returns the names of the damaged ones."""
    random = np.random.default_rng(seed)
    bad = set(random.choice(files, damaged, replace=False).tolist())
    names = set()
    for i in range(files):
        path = folder / ("benign", "malignant")[i % 2] / f"{i:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (64, 80)).astype(np.uint8)
        Image.fromarray(pixels).save(path)
        if i not in bad:
            continue
        names.add(path.relative_to(folder).as_posix())
        kind = DAMAGE[i % len(DAMAGE)]
        content = {
            "empty": b"", "text": b"this is no image", "pdf": b"%PDF-1.7 and more",
            "dicom": bytes(128) + b"DICM" + bytes(99), "cut": path.read_bytes()[:900],
        }.get(kind)  # fmt: skip
        if content is None:
            Image.fromarray(pixels[:3, :3]).save(path)
        else:
            path.write_bytes(content)
    return names


def header_rate(folder: Path, files: int) -> int:
    """Headers of DICOM files read per second, by the threads that a run has by default."""
    folder.mkdir()
    meta, values = FileMetaDataset(), Dataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = UltrasoundImageStorage, ExplicitVRLittleEndian
    values.file_meta, values.SOPClassUID, values.Modality = meta, UltrasoundImageStorage, "US"
    values.Rows = values.Columns = 128
    values.PhotometricInterpretation, values.SamplesPerPixel, values.PixelRepresentation = "MONOCHROME2", 1, 0
    values.BitsAllocated, values.BitsStored, values.HighBit = 8, 8, 7
    values.PixelData = bytes(128 * 128)
    for i in range(files):
        values.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = f"1.2.3.{i}"
        values.PatientID = f"P{i // 20}"
        values.StudyInstanceUID = values.SeriesInstanceUID = f"1.2.4.{i // 20}"
        values.save_as(folder / f"{i:06d}.dcm", enforce_file_format=True)
    start = time.monotonic()
    headers, _, skipped = dicom.read_headers(folder, quickstart.get_config().data.num_threads)
    assert len(headers) == files and not skipped
    return round(files / (time.monotonic() - start))


def listed(path: Path) -> set[str]:
    """The names in a list of what was left out."""
    with open(path, newline="", encoding="utf-8") as file:
        return {row["name"] for row in csv.DictReader(file)}


def main():
    """Make, inspect, train, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--damaged", type=int, default=1_000)
    parser.add_argument("--dicom", type=int, default=10_000)
    parser.add_argument("--output", default="")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        images, runs = Path(name) / "images", Path(name) / "runs"
        start = time.monotonic()
        damaged = make(images, options.files, options.damaged)
        made = time.monotonic() - start
        config = quickstart.get_config()
        change(config, {
            "data.name": "image_folder", "data.root": str(images), "optim.steps": 2, "optim.batch_size": 8,
            "report.eval_split": "", "report.num_eval_images": 8, "compilation_cache": "",
        })  # fmt: skip
        start = time.monotonic()
        inspect.run(config, runs)
        inspected = time.monotonic() - start
        exact = listed(runs / inspect.FOLDER / "skipped.csv") == damaged
        result = train_and_evaluate(config, runs / "run")
        trained = listed(runs / "run" / "skipped.csv") == damaged
        headers = header_rate(Path(name) / "dicom", options.dicom)
    content = {
        "files": options.files, "damaged": options.damaged, "list_of_inspect_is_exact": exact,
        "run_ended_at_step": result.step, "list_of_the_run_is_exact": trained, "seconds_to_make": round(made, 1),
        "seconds_to_inspect": round(inspected, 1), "files_per_second": round(options.files / inspected),
        "dicom_headers": options.dicom, "dicom_headers_per_second": headers,
    }  # fmt: skip
    print(content)
    common.write(options.output, "front_door", __doc__.splitlines()[0], content)
    return 0 if exact and trained else 1


if __name__ == "__main__":
    sys.exit(main())
