"""A million small images: packing, the start of a run, and streaming, from the packed set and from the folder.

    python -m benchmarks.packed_sets [--images=1000000] [--folder_images=50000] [--keep=FOLDER]

Small PNG files are made and packed. Measured are the rate of packing per core, the time from the start of a process
to its first batch, the rate at which both sets are streamed (Grain, 4 threads, decoded, no training), and the memory of
the streaming process after 10 % and after all of the steps. Streaming from the folder needs the check of all files
first, so it is measured on a part of them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from PIL import Image

from benchmarks import common
from deblur_mae_jax.data import packing, source_config

SIDE = 32
STREAM = """
import json, sys, time
start = time.monotonic()
sys.path.insert(0, {root!r})
import numpy as np
from benchmarks import common
from deblur_mae_jax.data import dataset, loader, order, source_config
config = source_config.config_for({source!r}, {name!r})
index = dataset.build_index(config, split="all", check={check!r})
reader = loader.Loader(index, 1)
batch = 256
steps = {steps}
batches = loader.stream(reader, order.Order(len(index), batch, 0), start_step=0, num_steps=steps, rows=np.arange(batch), num_threads=4)
next(batches)
first, early = time.monotonic() - start, 0
begin = time.monotonic()
for step in range(steps - 1):
    next(batches)
    if step == steps // 10:
        early = common.resident_bytes("VmRSS")
rate = batch * (steps - 1) / (time.monotonic() - begin)
print(json.dumps({{"images": len(index), "seconds_to_first_batch": round(first, 2), "images_per_second": round(rate),
                  "memory_mb_at_10_percent": round(early / 1e6), "memory_mb_at_end": round(common.resident_bytes("VmRSS") / 1e6)}}))
"""  # noqa: E501


def make_part(job):
    """Write the images `first` to `last`."""
    folder, first, last = job
    random = np.random.default_rng(first)
    for start in range(first, last, 1000):
        place = folder / f"{start // 1000:05d}x"
        place.mkdir(parents=True, exist_ok=True)
        block = random.integers(0, 256, (min(1000, last - start), SIDE // 4, SIDE // 4), dtype=np.uint8)
        for i, small in enumerate(block):
            Image.fromarray(np.kron(small, np.ones((4, 4), np.uint8))).save(place / f"{start + i:07d}.png")


def stream(source, name, check, steps):
    """Stream a set in a process of its own; returns its numbers."""
    root = str(Path(__file__).parent.parent)
    code = STREAM.format(root=root, source=str(source), name=name, check=check, steps=steps)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    """Make, pack, stream."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--folder_images", type=int, default=50_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--keep", default="", help="make the images here, and keep them")
    parser.add_argument("--output", default="")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(options.keep or temporary)
        images = place / "images"
        if not images.exists():
            edges = range(0, options.images, 10_000)
            with ProcessPoolExecutor(options.workers) as pool:
                list(pool.map(make_part, [(images, a, min(a + 10_000, options.images)) for a in edges]))
            part = range(0, options.folder_images, 10_000)
            for a in part:
                make_part((place / "part", a, min(a + 10_000, options.folder_images)))
        start = time.monotonic()
        config = source_config.config_for(str(images))
        packed = packing.pack(config, place / "packed", workers=options.workers, shard_mb=16)
        seconds = time.monotonic() - start
        size = sum(path.stat().st_size for path in (place / "packed").iterdir())
        content = {
            "images": packed.num_images, "side": SIDE, "shards": packed.num_shards, "workers": options.workers,
            "seconds_to_pack": round(seconds, 1),
            "images_per_second_and_core": round(packed.num_images / seconds / options.workers),
            "bytes_per_image": round(size / packed.num_images),
            "packed": stream(place / "packed", "packed", "pixels", options.steps),
            "folder": stream(
                place / "part", "image_folder", "header", min(options.steps, options.folder_images // 256)
            ),
            "folder_images": options.folder_images,
        }  # fmt: skip
    print(json.dumps(content, indent=2))
    common.write(options.output, "packed_sets", __doc__.splitlines()[0], content)


if __name__ == "__main__":
    main()
