"""Draw a pre-trained network's reconstructions of blurred 2-D images without masking, with PSNR and SSIM.

    python scripts/show_reconstructions.py RUN IMAGE... [--levels=4,7,10] [--output=reconstructions.png]

RUN is a pre-training run (a workdir) or a weight file. IMAGE is a file, or "phantom:0" to "phantom:119" for a simulated
one that no demo is trained on. Each row is a level; it shows the original, the blurred input and the reconstruction
of each image. Without --levels the weakest, the middle and the strongest level are shown.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

import deblur_mae_jax as dm
from deblur_mae_jax.data import image_files
from deblur_mae_jax.data.phantoms import Phantoms
from deblur_mae_jax.data.source import BadImage
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.evaluators.image_reconstruction import mse, psnr, ssim
from deblur_mae_jax.reports import page

UNSEEN = 777  # seed of the phantoms; the demos use others


def read(names: list[str], config: ConfigDict) -> list[np.ndarray]:
    """The images uint8 `(H, W, C)`, decoded as for the run of this config. Raises `UserError`."""
    channels = config.model.in_chans
    decode = image_files.decoder_of(config.data, channels)
    phantoms, images = Phantoms(120, seed=UNSEEN, side=72), []
    for name in names:
        kind, _, number = name.partition(":")
        if kind == "phantom" and not Path(name).exists():
            if number not in map(str, range(120)):
                raise UserError(f"IMAGE: '{name}' must be phantom:0 to phantom:119")
            images.append(np.repeat(phantoms.read(int(number)), channels, axis=2))
            continue
        try:
            images.append(decode(Path(name)))
        except BadImage as error:
            raise UserError(f"IMAGE: '{name}': {error}") from error
    return images


def score(image: np.ndarray, clean: np.ndarray) -> str:
    """PSNR and SSIM against the original, of gray levels `(H, W, C)`."""
    error, similarity = mse(image[None], clean[None]), ssim(image[None], clean[None])
    return f"{psnr(np.asarray(error)):.1f} dB, {float(similarity[0]):.2f}"


def draw(run: str, names: list[str], levels: list[int]) -> Image.Image:
    """The sheet. Raises `UserError`."""
    trained = dm.load(run)
    network = trained.network
    count = network.inputs.degradation.num_levels
    if network.axes != 2 or network.kind != "reconstruct":
        raise UserError(f"RUN: '{run}' is not a pre-trained network for 2-D images")
    levels = levels or sorted({1, (count + 1) // 2, count} - {0}) or [1]
    if not all(1 <= level <= max(count, 1) for level in levels):
        raise UserError(f"--levels={levels}: choose from 1 to {max(count, 1)}")
    images, pictures, labels = read(names, trained.config), [], []
    for level in levels:
        out = dm.reconstruct(trained, images, mask_ratio=0.0, level=level)
        for clean, blurred, restored in zip(out["clean"], out["degraded"], out["reconstructed"], strict=True):
            pictures += [clean, blurred, restored]
            at = f"level {level}" if count else trained.config.task.degrade
            labels += ["original", f"{at}: {score(blurred, clean)}", f"reconstruction: {score(restored, clean)}"]
    return page.gallery(pictures, labels, 3 * len(images), tile=216)


def main() -> None:
    """Parse the arguments, write the sheet and print its path."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a pre-training run, or a weight file")
    parser.add_argument("images", nargs="+", help='image files, or "phantom:0"')
    parser.add_argument("--levels", default="", help="blur levels, separated by commas")
    parser.add_argument("--output", default="reconstructions.png")
    arguments = parser.parse_args()
    try:
        try:
            levels = [int(word) for word in arguments.levels.split(",") if word]
        except ValueError:
            raise UserError(f"--levels={arguments.levels} must be whole numbers, such as 4,7,10") from None
        draw(arguments.run, arguments.images, levels).save(arguments.output)
    except (UserError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    print(arguments.output)


if __name__ == "__main__":
    main()
