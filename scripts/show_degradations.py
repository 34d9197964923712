"""Draw one image under every degradation, as a labelled contact sheet.

    python scripts/show_degradations.py IMAGE [--output=degradations.png] [--size=200]

IMAGE is a file, or "phantom" for a simulated one. Every degradation of the package is shown at its
default and at further settings; the central crop is enlarged so that single pixels can be seen.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np

from deblur_mae_jax.data.decode import Decoder
from deblur_mae_jax.data.phantoms import Phantoms
from deblur_mae_jax.data.source import BadImage
from deblur_mae_jax.degradations import parse
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.reports import page

SPECS = (
    "none",
    "blur.gaussian(sigma=0.5)",
    "blur.gaussian(sigma=1.1)",
    "blur.gaussian(sigma=1.6)",
    "blur.gaussian(sigma=3.0)",
    "blur.gaussian_levels()",
    "blur.mean(5)",
    "blur.median(5)",
    "blur.motion(5)",
    "blur.motion(angle=45)",
    "blur.defocus(5)",
    "speckle.srad(40, 0.1)",
    "speckle.srad(40, 0.1, q0='image')",
    "noise.gaussian_noise(0.1)",
    "noise.gaussian_noise(0.25)",
)
COLUMNS = 5


def contact_sheet(image: np.ndarray, crop: int):
    """A sheet of `image` uint8 `(H, W, 1)` under all degradations, cut to its central `crop`."""
    known = {spec.split("(")[0] for spec in SPECS}
    new = [name for name in parse.factories() if name not in known]
    specs = [*SPECS, *(name for name in new if name != "contract.none")]
    height, width = image.shape[:2]
    crop = min(crop, height, width)
    top, left = (height - crop) // 2, (width - crop) // 2
    images, labels = [], []
    for number, spec in enumerate(specs):
        degradation = parse.degradation(spec, "degradation")
        params = degradation.draw(jax.random.key(number))
        out = np.asarray(degradation.apply(jnp.asarray(image, jnp.float32), params, None))
        images.append(out[top : top + crop, left : left + crop])
        labels.append(spec + (f", level {int(params['level'])}" if "level" in params else ""))
    return page.gallery(images, labels, COLUMNS, tile=240)


def main() -> None:
    """Parse the arguments, write the sheet and print its path."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", help='an image file, or "phantom"')
    parser.add_argument("--output", default="degradations.png")
    parser.add_argument("--size", type=int, default=120, help="side of the crop shown, in pixels")
    arguments = parser.parse_args()
    try:
        if arguments.image == "phantom":
            image = Phantoms(1, seed=4, side=240).read(0)
        elif not Path(arguments.image).is_file():
            raise UserError(f"IMAGE: '{arguments.image}' is not a file")
        else:
            image = Decoder()(Path(arguments.image))
        if arguments.size < 8:
            raise UserError(f"--size={arguments.size} must be at least 8 pixels")
        contact_sheet(image, arguments.size).save(arguments.output)
    except BadImage as error:
        parser.exit(2, f"error: IMAGE: '{arguments.image}': {error}\n")
    except (UserError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    print(arguments.output)


if __name__ == "__main__":
    main()
