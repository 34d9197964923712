"""Export a trained network to PyTorch, with a certificate of how well JAX and PyTorch agree.

    python scripts/export_to_pytorch.py RUN
    python scripts/export_to_pytorch.py RUN --format=hf --output=my_model --in_chans=3

RUN is the workdir of a run, or a weight file. d2mae holds any ViT; monai and dae hold networks for volumes.
"""

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.export import card, opened
from deblur_mae_jax.export.export import export
from deblur_mae_jax.pretrained import trained_network
from deblur_mae_jax.weight_formats.contract import titles


def main(arguments=None):
    formats = "\n".join(f"  {name:9} {title}" for name, title in titles().items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\nformats:\n{formats}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="workdir of a run, or a weight file")
    parser.add_argument(
        "--format",
        default="",
        help="one of the formats above; default: timm or monai where they have a place for the network, else another",
    )
    parser.add_argument("--output", default="", help="a folder, or a .safetensors or .pth file")
    parser.add_argument("--in_chans", type=int, default=0, help="1 or 3; 0: as trained")
    options = parser.parse_args(arguments)
    trained = trained_network.load(options.run, "RUN")
    for note in trained.notes:
        print(f"note: {note}")
    folder = export(trained, options.format, options.output, options.in_chans)
    certificate = json.loads((folder / opened.CERTIFICATE).read_text())
    print(f"{folder / certificate['file']['name']}: {certificate['file']['tensors']} tensors")
    for line in certificate["changed"]:
        print(f"changed: {line}")
    for line in certificate["left_out"]:
        print(f"left out: {line}")
    found = certificate["agreement"]
    if found["status"] != "measured":
        print(f"agreement with PyTorch {found['status']}: {found['why']}")
    for name, item in found.get("outputs", {}).items():
        print(
            f"{name}: largest difference between JAX and PyTorch {item['max_difference']:.1e} "
            f"(values up to {item['max_value']:.2f})"
        )
    print(f"how to open it: {folder / card.NAME}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print("error:", error, file=sys.stderr)
        sys.exit(2)
