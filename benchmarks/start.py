"""Time to the first step: imports alone, and from the start of the process with a cold and a warm compile cache.

    python -m benchmarks.start --config=configs/d2mae_thyroid.py --batch=8

`main.py` is started as a user starts it, on a folder of PNG files, and stopped after its first step. The step begins
when the program is compiled; `taken` includes the step itself.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import ROOT, write, write_images

IMPORTS = "import deblur_mae_jax.train, deblur_mae_jax.commands.run"


def imports(rounds):
    """Seconds that the imports of a training run take, without the start of an empty process."""

    def seconds(code):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
        return time.perf_counter() - started

    seconds(IMPORTS)
    return [seconds(IMPORTS) - seconds("pass") for _ in range(rounds)]


def first_step(arguments, images, cache, folder):
    """Seconds from the start of `main.py` to each of its first lines."""
    command = [
        sys.executable, "main.py", f"--config={arguments.config}", f"--workdir={folder}",
        f"--config.data.root={images}", f"--config.optim.batch_size={arguments.batch}",
        "--config.optim.steps=3", f"--config.compilation_cache={cache}",
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    found = {}
    for line in process.stderr:
        for key, words in (("begins", "compiled in"), ("taken", "the first step is taken")):
            if line.startswith(words):
                found[key] = time.perf_counter() - started
        if "taken" in found:
            process.terminate()
            break
        if line.startswith("error"):
            raise SystemExit(line)
    process.stderr.close()
    process.wait()
    return found


def main():
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/d2mae_thyroid.py")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", default="")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        write_images(images, a.images, 300)
        starts = [first_step(a, images, f"{folder}/cache", f"{folder}/run{number}") for number in range(1 + a.rounds)]
    took = imports(a.rounds)
    warm = {k: statistics.median(s[k] for s in starts[1:]) for k in ("begins", "taken")}
    out = {
        "config": a.config,
        "batch": a.batch,
        "images": a.images,
        "imports_s": statistics.median(took),
        "cold_begins_s": starts[0]["begins"],
        "cold_taken_s": starts[0]["taken"],
        "warm_begins_s": warm["begins"],
        "warm_taken_s": warm["taken"],
        "all": starts,
    }
    print({k: v for k, v in out.items() if k.endswith("_s")})
    write(a.output, "start", "time to the first step", out)


if __name__ == "__main__":
    main()
