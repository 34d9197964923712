"""Compare JAX and PyTorch layer by layer, with the same weights and your images.

    python scripts/compare_with_pytorch.py RUN IMAGES
    python scripts/compare_with_pytorch.py RUN IMAGES --format=hf --output=comparison.png

RUN is the workdir of a run or a weight file. IMAGES is a folder, from which a few images are used. The network is
exported to a temporary folder and opened by the library of `--format`. The script prints the largest difference after
every layer, in float32, and draws it together with both reconstructions. JAX prepares the pixels once; for
`--format=d2mae` the export's own preparation in PyTorch is compared too.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from deblur_mae_jax import api
from deblur_mae_jax.data import image_files
from deblur_mae_jax.data.decode import EXTENSIONS
from deblur_mae_jax.data.listing import existing_root
from deblur_mae_jax.data.source import BadImage
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.export import agreement
from deblur_mae_jax.export.export import export
from deblur_mae_jax.export.opened import missing, open_export
from deblur_mae_jax.models import masking
from deblur_mae_jax.network import need_images
from deblur_mae_jax.pretrained import trained_network
from deblur_mae_jax.weight_formats.contract import named, titles
from deblur_mae_jax.weight_formats.torch_calls import EXTRA

SHOWN = 4


def read_images(trained, folder):
    """A few images spread over the files of a folder, decoded as the run decodes its own."""
    need_images(trained.network.identity, trained.path)
    root = existing_root(str(folder), "IMAGES")
    paths = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.suffix.lower() in EXTENSIONS)
    if not paths:
        raise UserError(f"IMAGES: '{folder}' holds no images")
    decode = image_files.decoder_of(trained.config.data, trained.config.model.in_chans)
    found = []
    for place in np.unique(np.linspace(0, len(paths) - 1, SHOWN).astype(int)):
        try:
            found.append((paths[place].name, decode(paths[place])))
        except BadImage as error:
            print(f"left out: {paths[place]}: {error}")
    if not found:
        raise UserError(f"IMAGES: none of the images of '{folder}' can be read")
    return [name for name, _ in found], [image for _, image in found]


def prepare(trained, images):
    """The network inputs, with levels spread over their range if the network has levels."""
    count = trained.network.inputs.degradation.num_levels
    level = np.linspace(1, count, len(images)).round().astype(np.int32) if count else None
    data = agreement.fixed_inputs(trained, len(images))
    data["x"] = api.prepare(trained, images, level=level)
    if data["level"] is not None:
        data["level"] = level
    return data, level


def pixels(trained, patches):
    """Predicted patches as gray levels `(B, H, W)`."""
    model, inputs = trained.network.model, trained.network.inputs
    x = np.asarray(masking.unpatchify(patches, model.mask_size, model.in_chans, model.mask_grid))
    return ((x * np.array(inputs.std) + np.array(inputs.mean)) * 255).mean(axis=-1)


def draw(trained, rows, examples, title, path):
    """Draw the differences by layer, and below them the reconstructions of both networks."""
    columns = max(len(examples), 1)
    wide = max(7.0, 0.3 * len(rows), 2.0 * columns)
    side = wide / max(columns, 4)
    tall = 3 * side + 0.6 if examples else 0.0
    figure = plt.figure(figsize=(wide, 3.4 + tall), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[3.4, tall]) if examples else (figure, None)
    top = upper.subplots()
    names = [name for name, _, _ in rows]
    top.semilogy([m for _, _, m in rows], "o-", color="0.6", label="largest value")
    floor = 1e-9  # a difference of exactly zero has no place on this axis
    top.semilogy([max(d, floor) for _, d, _ in rows], "o-", color="tab:red", label="largest difference")
    top.axhline(1e-5, color="0.3", linestyle=":", linewidth=1)
    top.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor", fontsize=7)
    top.set_title(title, fontsize=10)
    top.grid(alpha=0.3)
    top.legend(fontsize=8, loc="center right")
    labels = ("JAX", "PyTorch", "difference\nx 100,000")
    axes = lower.subplots(3, columns, squeeze=False) if examples else None
    for column, (name, ours, theirs) in enumerate(examples):
        shown = (ours, theirs, 128 + 1e5 * (ours - theirs))
        for row, image in enumerate(shown):
            axis = axes[row, column]
            axis.imshow(np.clip(image, 0, 255), cmap="gray", vmin=0, vmax=255)
            axis.set_xticks([])
            axis.set_yticks([])
            if column == 0:
                axis.set_ylabel(labels[row], fontsize=9)
            if row == 0:
                axis.set_title(name[:24], fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments=None):
    """Compare, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="workdir of a run, or a weight file")
    parser.add_argument("images", metavar="IMAGES", help="a folder of images")
    parser.add_argument("--format", default="d2mae", help=" | ".join(titles()))
    parser.add_argument("--output", default="comparison.png", help="the figure")
    options = parser.parse_args(arguments)
    lacking = missing(named(options.format))
    if lacking:
        raise UserError(f"{', '.join(lacking)} not installed: {EXTRA}")
    trained = trained_network.load(options.run, "RUN")
    names, images = read_images(trained, options.images)
    data, level = prepare(trained, images)
    with tempfile.TemporaryDirectory() as folder:
        opened = open_export(export(trained, options.format, folder + "/export"))
    outputs = (agreement.in_jax(trained, data, opened), agreement.in_torch(opened, data))
    both = [name for name in outputs[0] if name in outputs[1]]
    if "reconstruction" in both or "logits" in both:
        rows = agreement.compare_layers(agreement.layers_in_jax(trained, data), agreement.layers_in_torch(opened, data))
    else:
        rows = []
    print(f"{'layer':<22}{'largest difference':>20}{'largest value':>16}")
    for name, difference, value in rows:
        print(f"{name:<22}{difference:>20.1e}{value:>16.2f}")
    print()
    for name in both:
        rows.append((name, float(np.abs(outputs[0][name] - outputs[1][name]).max()),
                     float(np.abs(outputs[0][name]).max())))  # fmt: skip
        print(f"{name:<30}{rows[-1][1]:>12.1e}{rows[-1][2]:>16.2f}")
    if options.format == "d2mae":
        print(f"{'preparation of the images':<30}{preparation(opened, images, level, data):>12.1e}")
    examples = []
    if "reconstruction" in both:
        ours, theirs = (pixels(trained, out["reconstruction"]) for out in outputs)
        examples = list(zip(names, ours, theirs, strict=True))
    worst = max(difference for _, difference, _ in rows)
    title = f"JAX and PyTorch ({options.format}), {len(images)} images, float32: they differ by {worst:.1e} at most"
    draw(trained, rows, examples, title, options.output)
    print(f"figure {options.output}")


def preparation(opened, images, level, data):
    """The largest difference between the images as JAX and as the exported file prepare them."""
    import torch

    worst = 0.0
    for i, image in enumerate(images):
        pixels_in = torch.tensor(image if image.shape[2] == 3 else image[:, :, 0])
        try:
            seen = opened.module.view(pixels_in, None if level is None else int(level[i]))
        except ValueError:  # a degradation that the exported file lacks
            return float("nan")
        worst = max(worst, float(np.abs(seen[0].permute(1, 2, 0).numpy() - data["x"][i]).max()))
    return worst


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print("error:", error, file=sys.stderr)
        sys.exit(2)
