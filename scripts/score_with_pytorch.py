"""Classify images with a timm export in PyTorch, without JAX, and write the probabilities as a CSV.

    python scripts/score_with_pytorch.py EXPORT_FOLDER --input=IMAGES --output=scores.csv

EXPORT_FOLDER is the folder that `export_to_pytorch.py --format=timm` wrote for a fine-tuned run; IMAGES is a folder.
You can copy and adapt this script: it shows the whole preprocessing for networks trained on sharp images or with a
fixed Gaussian blur.
"""

import argparse
import csv
import json
import sys
from pathlib import Path

try:
    import numpy as np
    import timm
    import torch
    import torch.nn.functional as F
    from PIL import Image, ImageOps
    from safetensors.torch import load_file
except ModuleNotFoundError as error:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        sys.exit(0)
    print(f"error: {error}: this script needs torch, timm, safetensors, numpy and pillow", file=sys.stderr)
    sys.exit(2)

KINDS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def view(path, p):
    """Preprocess one image as in training; returns `(1, C, S, S)`.

    p: `preprocessing` of the certificate.
    """
    blurred = p["degrade"] != "none" and p["where"] == "native" and max(p["taps"]) < 1  # else nothing changes
    image = eight_bits(ImageOps.exif_transpose(Image.open(path)), p["bits16"])
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[1] > 0:
        # What is transparent is black, as in training; if all is, the colours under it are read.
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
    image = image.convert("L" if p["channels"] == 1 else "RGB")
    shrink = p["max_side"] / max(image.size) if p["max_side"] else 1.0
    if shrink < 1:
        image = image.resize([max(1, round(n * shrink)) for n in image.size], Image.LANCZOS)
    x = torch.tensor(np.atleast_3d(np.asarray(image)), dtype=torch.float32).permute(2, 0, 1)[None]
    height, width = x.shape[2:]
    x = blur(gray(x), p["taps"]) if blurred else x
    (high, broad), size = (np.broadcast_to(p[name], 2).tolist() for name in ("resize_short_side", "centre_crop"))
    by_height = high * width >= broad * height  # the side that just covers its part
    tall, wide = high if by_height else broad * height // width, high * width // height if by_height else broad
    resize = {"mode": "bicubic", "antialias": True}
    x = F.interpolate(x, (height, wide), **resize)
    x = F.interpolate(x if blurred else x.clamp(0, 255), (tall, wide), **resize).clamp(0, 255)
    top, left = round((tall - size[0]) / 2), round((wide - size[1]) / 2)
    x = x[:, :, top : top + size[0], left : left + size[1]]
    if not blurred:
        x = blur(gray(x), p["taps"]) if p["taps"] else gray(x) if p["gray"] else x
    mean, std = (torch.tensor(p[name]).reshape(1, -1, 1, 1) for name in ("mean", "std"))
    return (x.expand(-1, p["channels"], -1, -1) / 255 - mean) / std


def eight_bits(image, bits16):
    """A picture with 16 bits or floats in 8 bits: its own range ("minmax") or 0..65535 becomes 0..255."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    values, (low, high) = np.asarray(image, np.float64), (0.0, 65535.0)
    if bits16 == "minmax" and values.max() > values.min():
        low, high = values.min(), values.max()
        inner = np.percentile(values, [0.1, 99.9])
        if 0 < inner[1] - inner[0] < (high - low) / 16:  # a few outlying values, such as markers
            low, high = inner
    return Image.fromarray(np.rint(np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8))


def gray(x):
    """Three channels to one, in whole gray levels."""
    weights = torch.tensor([0.299, 0.587, 0.114]).reshape(1, 3, 1, 1)
    return x if x.shape[1] == 1 else torch.floor((x * weights).sum(1, keepdim=True) + 0.5)


def blur(x, taps):
    """Correlate rows and columns with `taps`, reflected at the border."""
    kernel = torch.tensor(taps).reshape(1, 1, 1, -1)
    x = F.conv2d(F.pad(x, (len(taps) // 2,) * 4, mode="reflect"), kernel)
    return F.conv2d(x, kernel.transpose(2, 3))


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("export", type=Path)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("scores.csv"))
    options = parser.parse_args(arguments)
    place = options.export / "certificate.json"
    if not place.is_file():
        parser.error(f"'{options.export}' is not an export: it holds no certificate.json")
    paths = [options.input] if options.input.is_file() else sorted(options.input.rglob("*"))
    paths = [path for path in paths if path.suffix.lower() in KINDS]
    if not paths:
        parser.error(f"--input: no image in '{options.input}' (files ending in {', '.join(KINDS)})")
    certificate = json.loads(place.read_text())
    opens, network = certificate["opens_with"], certificate["network"]
    if opens["library"] != "timm" or not network["classes"]:
        parser.error(f"'{options.export}' is not a timm export of a classifier")
    if network["degradation"] not in ("none", "gaussian"):
        parser.error(f"the network was trained with {network['degrade']}: degrade the images first")
    model = timm.create_model(opens["model"], pretrained=False, **opens["arguments"]).eval()
    weights = options.export / certificate["file"]["name"]
    state = load_file(weights) if weights.suffix == ".safetensors" else torch.load(weights, weights_only=True)
    model.load_state_dict(state, strict=True)
    with open(options.output, "w", newline="", encoding="utf-8") as file, torch.inference_mode():
        out = csv.writer(file)
        out.writerow(["image", *(f"p_{name}" for name in network["classes"])])
        for path in paths:
            try:
                x = view(path, certificate["preprocessing"])
            except (OSError, ValueError, SyntaxError) as error:  # damaged
                print(f"left out: {path}: {error}", file=sys.stderr)
                continue
            name = path.name if options.input.is_file() else path.relative_to(options.input).as_posix()
            out.writerow([name, *(f"{v:.9g}" for v in model(x).softmax(1)[0].tolist())])


if __name__ == "__main__":
    main()
