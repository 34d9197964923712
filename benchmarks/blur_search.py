"""Speed of the blur search, and its share of the speed that its matrix products allow.

    python -m benchmarks.blur_search --init_from=RUN --root=/my/images [--name=image_folder] [--step=2]
    python -m benchmarks.blur_search --phantoms=200 --config=configs/d2mae_thyroid.py

Searches the whole set with an empty cache, then again with the full one. The lower bound is the time of the same
matrix products at the speed of one large product of the same precision. The network alone on a prepared batch is timed
too. Both take turns with the search in the same run.
Without --init_from the network of --config is used with random weights: the time does not depend on them.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import load_config, write, write_images
from benchmarks.pretrain_step import best_product
from deblur_mae_jax import network, sharding
from deblur_mae_jax.commands import search
from deblur_mae_jax.data import dataset
from deblur_mae_jax.inference import blur_search
from deblur_mae_jax.pretrained import trained_network


def forward_of(trained, batch):
    """The network alone on a prepared batch, as the search runs it: nothing masked."""
    net, side = trained.network, trained.config.image_size
    rng = np.random.default_rng(0)
    shape = (batch, side, side, trained.config.model.in_chans)
    images = jnp.asarray(rng.standard_normal(shape), jnp.float32)
    level = jnp.ones(batch, jnp.int32)
    params = jax.device_put(trained.params)
    program = jax.jit(lambda p, x, t: net.model.apply({"params": p}, x, None, 0.0, t)[0].mean())
    program(params, images, level).block_until_ready()

    def images_per_second():
        started = time.perf_counter()
        program(params, images, level).block_until_ready()
        return batch / (time.perf_counter() - started)

    return images_per_second


def main():
    """Measure in a folder of its own for images and caches."""
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder))


def measure(folder):
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--init_from", default="")
    parser.add_argument("--config", default="configs/d2mae_thyroid.py")
    parser.add_argument("--root", default="")
    parser.add_argument("--name", default="image_folder")
    parser.add_argument("--split", default="all")
    parser.add_argument("--phantoms", type=int, default=0)
    parser.add_argument("--step", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64, help="images times levels at once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", default="")
    arguments = parser.parse_args()
    if arguments.init_from:
        trained = trained_network.load(arguments.init_from)
    else:
        config = load_config(arguments.config)
        net = network.build(config)
        params = jax.tree.map(np.asarray, jax.jit(net.init)())
        trained = trained_network.TrainedNetwork(Path("."), config, net, params, [])
    config = trained.config
    with config.unlocked(), config.ignore_type():
        if arguments.phantoms:
            images = folder / "images"
            write_images(images, arguments.phantoms, 300)
            config.data.name, config.data.root = "image_folder", str(images)
        else:
            config.data.name, config.data.root = arguments.name, arguments.root
            config.data.split = arguments.split
    index = dataset.build_index(config, None)
    mesh = sharding.make_mesh()
    dtype = trained.network.model.dtype
    rates, speeds, forwards = [], [], []
    forward = forward_of(trained, arguments.batch)
    for number in range(arguments.rounds):
        speeds.append(best_product(dtype))
        forwards.append(forward())
        table = blur_search.search(
            trained, index, mesh, step=arguments.step, batch_size=arguments.batch,
            cache=f"{folder}/{number}", num_threads=os.cpu_count() or 4,
        )  # fmt: skip
        speeds.append(best_product(dtype))
        forwards.append(forward())
        rates.append(table.searched / table.seconds)
        print(f"round {number}: {rates[-1]:.1f} images/s, product {speeds[-1] / 1e9:.0f} GFLOP/s")
    started = time.perf_counter()
    again = blur_search.search(
        trained,
        index,
        mesh,
        step=arguments.step,
        batch_size=arguments.batch,
        cache=f"{folder}/0",
    )
    lookup_seconds = time.perf_counter() - started
    assert again.searched == 0
    gflop = search.gflop(trained, len(table.levels))
    # The first round also compiles.
    rate, speed = float(np.median(rates[1:] or rates)), float(np.median(speeds))
    result = {
        "images": len(index),
        "canvas": index.canvas,
        "levels": table.levels.tolist(),
        "image_size": config.image_size,
        "dtype": str(jnp.dtype(dtype)),
        "images_per_second": rate,
        "gflop_per_image": gflop,
        "gflops": rate * gflop,
        "product_gflops": speed / 1e9,
        "share_of_the_floor": rate * gflop / (speed / 1e9),
        "forward_images_per_second": float(np.median(forwards)),
        "share_of_the_forward": rate * len(table.levels) / float(np.median(forwards)),
        "seconds_for_10675_images": 10675 / rate,
        "lookup_seconds": lookup_seconds,
        "rounds": rates,
        "histogram": {f"{s:g}": int((table.best_sigma == s).sum()) for s in table.sigmas},
    }
    print(json.dumps({k: result[k] for k in ("images", "images_per_second", "gflops",
          "product_gflops", "share_of_the_floor", "share_of_the_forward", "lookup_seconds")}, indent=1))  # fmt: skip
    write(arguments.output, "blur_search", "blur search, whole set", result)


if __name__ == "__main__":
    main()
