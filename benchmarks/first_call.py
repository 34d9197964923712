"""Time the first `encode` and the first `predict` of one image in a new process, from `import` on.

    python -m benchmarks.first_call

The networks are a ViT-B of MAE, a D2MAE of the same size, whose first call searches the image's blur level, and a
classifier that starts from the MAE. Weights are fresh. Every process loads the run, encodes or classifies one image of
300 x 400 pixels, and ends. Round 0 fills the cache of compiled programs; the medians are of the others.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks import common

CALL = """
import json, sys, time
began = time.perf_counter()
import numpy as np
import deblur_mae_jax as dm
dm.load  # imports the rest
imported = time.perf_counter()
trained = dm.load(sys.argv[1])
loaded = time.perf_counter()
image = np.random.default_rng(0).integers(0, 255, (300, 400), np.uint8)
(dm.predict if sys.argv[2] == "predict" else dm.encode)(trained, [image])
ended = time.perf_counter()
print(json.dumps({"import": imported - began, "load": loaded - imported, "call": ended - loaded}))
"""


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", default="")
    return parser.parse_args()


def networks(folder):
    """Workdirs of the networks by name, with the call that is timed."""
    from deblur_mae_jax import train

    made = {}
    for name, config, call in (
        ("MAE", "configs/mae_thyroid.py", "encode"),
        ("D2MAE", "configs/d2mae_thyroid.py", "encode"),
        ("classifier", "configs/finetune.py", "predict"),
    ):
        c = common.load_config(config, "optim.batch_size=2")
        c.data.name, c.data.num_images, c.log.tensorboard = "phantoms", 40, False
        c.optim.accum_steps = 1
        if name == "classifier":
            c.init_from, c.optim.epochs, c.optim.warmup_epochs = str(folder / "MAE"), 1.0, 0.5
        else:
            c.optim.steps, c.report.num_eval_images, c.report.num_images = 2, 2, 2
        train.train_and_evaluate(c, folder / name)
        made[name] = call
    return made


def main():
    """Time, print, write JSON."""
    a = parse()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # this process and those it starts share a GPU
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        calls = networks(folder)
        environment = os.environ | {
            "PYTHONPATH": str(common.ROOT), "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        }  # fmt: skip
        times = {name: [] for name in calls}
        for _ in range(a.rounds + 1):
            for name, call in calls.items():
                command = [sys.executable, "-c", CALL, str(folder / name), call]
                out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
                times[name].append(json.loads(out.splitlines()[-1]))
    numbers = {}
    for name, found in times.items():
        warm = {part: float(np.median([t[part] for t in found[1:]])) for part in ("import", "load", "call")}
        both = float(np.median([t["load"] + t["call"] for t in found[1:]]))
        numbers[name] = {"call": calls[name], "cold": found[0], "warm": warm | {"load_and_call": both}}
        print(
            f"{name:12s} import {warm['import']:.1f} s, load {warm['load']:.1f} s, first {calls[name]} "
            f"{warm['call']:.1f} s, load and call {both:.1f} s; cold {found[0]['load'] + found[0]['call']:.1f} s"
        )
    common.write(a.output, "first_call", __doc__.splitlines()[0], {"networks": numbers})


if __name__ == "__main__":
    main()
