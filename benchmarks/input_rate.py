"""Images per second that one core reads, 224 pixels, gray: a folder and packed sets, and whether a step waits for them.

    python -m benchmarks.input_rate
    python -m benchmarks.input_rate --images=20000 --batch=1024

Phantoms are written as JPEG files and packed as they are, and as raw pixels. Every set is streamed in a process of its
own that may use one core (Grain's threads, as in training; no training). Then a step that only waits takes the batches
at `--demand` images per second: the stall is the share of time that it waits for a batch.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks import common

QUALITY = 92


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--side", type=int, default=224, help="pixels")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--demand", type=int, default=2000, help="images per second that the waiting step takes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", default="")
    parser.add_argument("--worker", nargs=2, default=None, metavar=("KIND", "ROOT"), help=argparse.SUPPRESS)
    return parser.parse_args()


def make(folder, count, side):
    """JPEG files of phantoms, and two packed sets of them. Returns {what: (kind of source, path)}."""
    from PIL import Image

    from deblur_mae_jax.data import dataset, packing, source_config

    config = common.load_config("configs/quickstart.py")
    config.data.num_images, config.data.side = count, side
    source = dataset.load_source(config)
    (folder / "files").mkdir()
    for number in range(count):
        image = Image.fromarray(source.read(number)[..., 0]).resize((side, side))
        image.save(folder / "files" / f"{number:06d}.jpg", quality=QUALITY)
    sets = {"folder, JPEG": ("image_folder", folder / "files")}
    for what, encode in (("packed, JPEG", "keep"), ("packed, raw", "raw")):
        config = source_config.config_for(str(folder / "files"))
        packing.pack(config, folder / encode, encode=encode, workers=os.cpu_count())
        sets[what] = ("packed", folder / encode)
    return sets


def work(arguments):
    """Stream one set on one core; print the rate and the stall."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    from deblur_mae_jax.data import dataset, loader, order, source_config

    kind, root = arguments.worker
    index = dataset.build_index(source_config.config_for(root, kind), split="all", check="header")
    batch, steps = arguments.batch, arguments.steps

    def batches():
        return loader.stream(
            loader.Loader(index, 1), order.Order(len(index), batch, 0), start_step=0, num_steps=steps + 4,
            rows=np.arange(batch), num_threads=arguments.threads,
        )  # fmt: skip

    stream = batches()
    for _ in range(4):
        next(stream)
    started = time.perf_counter()
    for _ in range(steps):
        next(stream)
    rate = batch * steps / (time.perf_counter() - started)
    stream, waited = batches(), 0.0
    for _ in range(4):
        next(stream)
    time.sleep(0.5)
    for _ in range(steps):
        started = time.perf_counter()
        next(stream)
        spent = time.perf_counter() - started
        waited += spent
        time.sleep(max(0.0, batch / arguments.demand - spent))
    print(json.dumps({"images_per_second": rate, "stall_percent": 100 * waited * arguments.demand / (batch * steps)}))


def main():
    """Make the sets, stream each, print, write JSON."""
    arguments = parse()
    if arguments.worker:
        work(arguments)
        return
    sizes = {k: getattr(arguments, k) for k in ("images", "side", "batch", "steps", "demand", "threads")}
    rows = {}
    with tempfile.TemporaryDirectory() as temporary:
        for what, (kind, path) in make(Path(temporary), arguments.images, arguments.side).items():
            options = [f"--{k}={sizes[k]}" for k in ("batch", "steps", "demand", "threads")]
            command = [sys.executable, "-W", "ignore", __file__, *options, "--worker", kind, str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows[what] = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{what:14s} {rows[what]['images_per_second']:6.0f} images/s, stall {rows[what]['stall_percent']:.1f} %"
            )
    common.write(arguments.output, "input_rate", __doc__.splitlines()[0], {**sizes, "quality": QUALITY, "sets": rows})


if __name__ == "__main__":
    main()
