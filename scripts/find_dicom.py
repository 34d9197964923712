"""Find the DICOM files behind names in a run's lists and tables, which are keyed hashes.

The names may be those of pictures (image_), files (file_), volumes (series_) and patients (patient_).

    python scripts/find_dicom.py runs/d2mae /hospital/export image_3f2a61c0d4e5b697
    python scripts/find_dicom.py runs/d2mae /hospital/export > names.txt

RUN is the workdir whose file `dicom_key` holds the key, or the folder OUT_private of a packed set. Without NAME, the
names of all files are printed. The output names files, which may identify patients: keep it private.
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from deblur_mae_jax.data import dicom, dicom_patients, dicom_series, dicom_volumes, listing, privacy
from deblur_mae_jax.errors import UserError


def main(arguments=None):
    """Print the names and paths; returns them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("root")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args(arguments)
    run = Path(options.run).expanduser()
    if not (run / privacy.KEY_FILE).exists():
        raise UserError(f"RUN: '{run}' holds no {privacy.KEY_FILE}: it is not the workdir of a run on DICOM files")
    root = listing.existing_root(options.root, "ROOT")
    privacy.use(run)
    paths = named(root)
    wanted = [short(name) for name in options.names]
    missing = [name for name, key in zip(options.names, wanted, strict=True) if key not in paths]
    if missing:
        raise UserError(f"no file below '{root}' has the name {missing[0]}; was it moved or is it of another run?")
    found = {name: paths[name] for name in (wanted or paths)}
    for name, listed in found.items():
        for path in listed:
            print(name, path)
    return found


def short(name):
    """A name without the number of a frame or of a patient, which say nothing of the file."""
    parts = name.split("_")
    return f"patient_{parts[-1]}" if parts[0] == "patient" else "_".join(parts[:2])


def named(root):
    """The paths behind every name."""
    headers, files, _ = dicom.read_headers(root, 4)
    paths = defaultdict(list)
    patients = dicom_patients.patients(headers, [])
    for header, file, patient in zip(headers, files, patients, strict=True):
        paths[dicom.name_of(header, file)].append(file.path)
        paths[short(patient)].append(file.path)
        if header.burned_in:
            paths[f"series_{privacy.pseudonym('series', header.series)}"].append(file.path)
    volumes, left_out = dicom_series.build(headers, dict(zip((h.path for h in headers), patients, strict=True)))
    for one in volumes:
        paths[dicom_volumes.name_of(one)] += [part.path for part in one.slices]
    for part in left_out:
        paths[f"series_{privacy.pseudonym('series', part.uid)}"].append(part.path)
    for file in listing.walk(root).files:
        paths[dicom.file_name(file.name)].append(file.path)
    return dict(paths)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
