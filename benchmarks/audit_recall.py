"""How many copies the audit finds, and how many other pairs it names, on public sets.

    DEBLUR_MAE_DATA=/data python -m benchmarks.audit_recall [--images=150] [--sets=busi,mmotu,hc18,busbra]

Copies of random images of each set are made: resized to 0.4 to 0.8 of the side, saved as JPEG of quality 40 to 80, with
gamma 0.7 to 1.4, mirrored, upside down, and cropped to 0.72 to 0.95 of each side at a random place. Found is a pair of
an image and its copy. Pairs of two originals are counted apart: some of them are true copies within the public set.
"""

import argparse
import io
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from PIL import Image

from benchmarks import common
from deblur_mae_jax.data import copies, dataset, source_config
from deblur_mae_jax.data.source import Source

KINDS = ("resized", "recompressed", "gamma", "mirrored", "upside down", "cropped")


def copy_of(pixels, kind, random):
    """A copy of a gray image `(H, W)`."""
    image = Image.fromarray(pixels)
    width, height = image.size
    if kind == "resized":
        scale = random.uniform(0.4, 0.8)
        return np.asarray(image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC))
    if kind == "recompressed":
        out = io.BytesIO()
        image.save(out, "JPEG", quality=int(random.integers(40, 81)))
        return np.asarray(Image.open(io.BytesIO(out.getvalue())))
    if kind == "gamma":
        return np.rint(255 * (pixels / 255.0) ** random.uniform(0.7, 1.4)).astype(np.uint8)
    if kind in copies.FLIPS:
        return np.asarray(image.transpose(copies.FLIPS[kind]))
    w, h = (round(n * random.uniform(0.72, 0.95)) for n in (width, height))
    x, y = int(random.integers(0, width - w + 1)), int(random.integers(0, height - h + 1))
    return pixels[y : y + h, x : x + w]


def measure(name, root, count, seed):
    """Recall by kind of copy for one set, and the number of pairs of two originals."""
    random = np.random.default_rng(seed)
    config = source_config.config_for(str(root))
    source = dataset.load_source(config, "all")
    chosen = random.choice(len(source), min(count, len(source)), replace=False)
    originals = [source.read(int(i))[..., 0] for i in chosen]
    images, origin = list(originals), [(-1, "")] * len(originals)
    for i, pixels in enumerate(originals):
        kind = KINDS[i % len(KINDS)]
        images.append(copy_of(pixels, kind, random))
        origin.append((i, kind))
    made = Source([str(i) for i in range(len(images))], lambda i: images[i][..., None])
    start = time.monotonic()
    found = copies.find(made, [""] * len(images))
    seconds = time.monotonic() - start
    hits = dict.fromkeys(KINDS, 0)
    others = among = 0
    for pair in found:
        parent, kind = origin[pair.second]
        if parent == pair.first:
            hits[kind] += 1
        elif parent < 0 and origin[pair.first][0] < 0:
            among += 1
        else:
            others += 1
    totals = {kind: sum(1 for _, own in origin if own == kind) for kind in KINDS}
    return {
        "set": name, "images": len(originals), "recall": {k: round(hits[k] / max(totals[k], 1), 3) for k in KINDS},
        "copies": totals, "pairs_of_two_originals": among, "pairs_of_an_image_and_the_copy_of_another": others,
        "seconds": round(seconds, 1),
    }  # fmt: skip


def main():
    """Measure every set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=150)
    parser.add_argument("--sets", default="busi,mmotu,hc18,busbra")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="")
    options = parser.parse_args()
    data = Path(os.environ["DEBLUR_MAE_DATA"])
    results = []
    for name in options.sets.split(","):
        results.append(measure(name, data / name / "manifest.csv", options.images, options.seed))
        print(results[-1])
    common.write(options.output, "audit_recall", __doc__.splitlines()[0], {"sets": results})


if __name__ == "__main__":
    main()
