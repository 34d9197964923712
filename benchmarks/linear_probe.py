"""Time a linear probe on cached features against one pass of the encoder over the set, and against random crops.

    python -m benchmarks.linear_probe --images=400
    python -m benchmarks.linear_probe --images=4000 --batch=256

The images are phantoms written as PNG files, the network is a ViT-B with fresh weights. One pass is `dm.encode` of all
images, read and compiled. A probe is the whole run, from its start to its report. With random crops, every epoch
encodes every training image again; the steps of its 90 epochs are those of `--epochs` epochs, extrapolated.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks import common

EPOCHS = 90.0


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--side", type=int, default=256, help="height of the images, pixels")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=2, help="epochs with random crops")
    parser.add_argument("--set", action="append", default=[], help="field=value of the pre-training config")
    parser.add_argument("--output", default="")
    return parser.parse_args()


def fresh(folder, changes):
    """A run of two steps of MAE, whose encoder is as slow as a trained one."""
    from deblur_mae_jax import train

    config = common.load_config("configs/mae_thyroid.py", "optim.steps=2", "optim.batch_size=2", *changes)
    config.data.name, config.data.num_images, config.report.num_eval_images = "phantoms", 16, 2
    config.report.num_images, config.log.tensorboard, config.optim.accum_steps = 2, False, 1
    train.train_and_evaluate(config, folder)


def labelled(folder, count, side):
    """Two classes of phantoms as PNG files."""
    common.write_images(folder / "all", count, side)
    for number, path in enumerate(sorted((folder / "all").iterdir())):
        into = folder / "set" / ("benign", "malignant")[number % 2]
        into.mkdir(parents=True, exist_ok=True)
        path.rename(into / path.name)
    return folder / "set"


def probe(root, start, batch, workdir, **changes):
    """Seconds of a whole run of `configs/linear_probe.py`."""
    from deblur_mae_jax import train

    config = common.load_config("configs/linear_probe.py", f"optim.batch_size={batch}")
    config.init_from, config.data.root = str(start), str(root)
    config.log.tensorboard = False
    for name, value in changes.items():
        group, field = name.split("__")
        config[group][field] = value
    began = time.monotonic()
    train.train_and_evaluate(config, workdir)
    return time.monotonic() - began


def steps(workdir):
    """Seconds that the steps of a run took, with their input."""
    (start,) = json.loads((workdir / "time.json").read_text())
    return start["seconds"]["steps"] + start["seconds"]["data"]


def one_pass(root, start):
    """Seconds to read and encode every image."""
    from PIL import Image

    import deblur_mae_jax as dm

    trained = dm.load(start)
    began = time.monotonic()
    paths = sorted(root.glob("*/*.png"))
    dm.encode(trained, [np.asarray(Image.open(path)) for path in paths])
    return time.monotonic() - began


def main():
    """Time, print, write JSON."""
    a = parse()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        fresh(folder / "pretrained", a.set)
        root = labelled(folder, a.images, a.side)
        once = one_pass(root, folder / "pretrained")
        cached = probe(root, folder / "pretrained", a.batch, folder / "cached", task__cache_features=True)
        probe(
            root,
            folder / "pretrained",
            a.batch,
            folder / "crops",
            optim__epochs=float(a.epochs),
            optim__warmup_epochs=0.5,
        )
        epoch = steps(folder / "crops") / a.epochs
    print(f"one pass of {a.images} images {once:.1f} s")
    print(f"90 epochs on cached features {cached:.1f} s ({cached / once:.2f}x)")
    print(f"steps of 90 epochs with random crops {EPOCHS * epoch:.0f} s, extrapolated ({EPOCHS * epoch / once:.0f}x)")
    numbers = {
        "images": a.images, "batch": a.batch, "one_pass_s": once, "cached_s": cached, "cached_over_pass": cached / once,
        "epoch_with_crops_s": epoch, "crops_over_pass": EPOCHS * epoch / once,
    }  # fmt: skip
    common.write(a.output, "linear_probe", __doc__.splitlines()[0], numbers)


if __name__ == "__main__":
    main()
