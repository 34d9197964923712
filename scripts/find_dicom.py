"""Find the DICOM files behind names in a run's lists and tables, which are keyed hashes.

    python scripts/find_dicom.py runs/d2mae /hospital/export image_3f2a61c0d4e5b697
    python scripts/find_dicom.py runs/d2mae /hospital/export > names.txt

RUN is the workdir whose file `dicom_key` holds the key, or the folder OUT_private of a packed set. Without NAME, the
names of all files are printed. The output names files, which may identify patients: keep it private.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from deblur_mae_jax.data import dicom, listing, privacy
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
    headers, files, _ = dicom.read_headers(root, 4)
    paths = {dicom.name_of(header, file): file.path for header, file in zip(headers, files, strict=True)}
    paths |= {dicom.file_name(file.name): file.path for file in listing.walk(root).files}
    wanted = [name.rsplit("_", 1)[0] if name.count("_") > 1 else name for name in options.names]
    missing = [name for name in wanted if name not in paths]
    if missing:
        raise UserError(f"no file below '{root}' has the name {missing[0]}; was it moved or is it of another run?")
    found = {name: paths[name] for name in (wanted or paths)}
    for name, path in found.items():
        print(name, path)
    return found


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
