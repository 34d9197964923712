"""Check that the time per image does not grow with the size of the set, the steps run or the lines logged.

    python -m benchmarks.growth [--sizes=1000,10000,100000,280000] [--steps=3000]

The network is small, so that costs outside the step are visible. The sets are a thousand simulated images as PNG
files, hard-linked under as many names as needed. The index reads only their headers, the resident store decodes all of
them, the streaming store each batch. Sizes take turns, round by round. For steps and log lines, one real run logs every
step, and its speed is read from its own log. A plot is written beside the JSON.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure

from benchmarks.common import load_config, write, write_images
from deblur_mae_jax import train
from deblur_mae_jax.training import compilation, experiment
from deblur_mae_jax.workdir import metric_writer
from deblur_mae_jax.workdir.run_folder import Workdir

SIDE = 48


def small(folder, batch):
    """The demo's network on the images in `folder`."""
    config = load_config("configs/quickstart.py")
    config.image_size, config.model.depth, config.model.decoder_depth = 32, 1, 1
    config.data.name, config.data.root, config.data.check = "image_folder", str(folder), "header"
    config.optim.batch_size, config.optim.steps = batch, 100_000
    config.data.num_threads = 2
    return config


def link_images(images, folder, count):
    """`count` names for the files in `images`."""
    files = sorted(images.iterdir())
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:06d}.png").hardlink_to(files[number % len(files)])


class Stepper:
    """Runs steps of an experiment, batches included."""

    def __init__(self, config, store):
        config.data.store = store
        started = time.perf_counter()
        self.run = experiment.build(config)
        self.start_s = time.perf_counter() - started
        self.batch = config.optim.batch_size
        self.batches = self.run.store.batches(0, 100_000)
        self.state = self.run.make_state()
        self.program = compilation.compile_step(self.run, self.state, next(self.batches)).step

    def microseconds(self, steps):
        """Per image, over `steps` steps."""
        started = time.perf_counter()
        for _ in range(steps):
            self.state, numbers = self.program(self.state, self.run.arrays, next(self.batches))
        jax.block_until_ready((self.state, numbers))
        return 1e6 * (time.perf_counter() - started) / steps / self.batch


def by_size(sizes, batch, rounds, steps):
    """{store: {size: microseconds per image of every round}}, and seconds to start."""
    times, starts = {}, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "images", 1000, SIDE)
        for size in sizes:
            link_images(folder / "images", folder / str(size), size)
        for store in ("resident", "streaming"):
            steppers = {s: Stepper(small(folder / str(s), batch), store) for s in sizes}
            starts[store] = {s: stepper.start_s for s, stepper in steppers.items()}
            times[store] = {s: [] for s in sizes}
            for number in range(rounds + 1):
                for size, stepper in steppers.items():
                    took = stepper.microseconds(steps)
                    if number:
                        times[store][size].append(took)
            del steppers
    return times, starts


def by_step(steps, batch):
    """Microseconds per image of a real run that logs every step: `(steps, values)`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "images", 200, SIDE)
        config = small(folder / "images", batch)
        config.optim.steps, config.log.every_steps = steps, 1
        config.report.every_epochs = config.checkpoint.every_epochs = 1e9
        train.train_and_evaluate(config, folder / "run")
        lines = [x for x in metric_writer.read(Workdir(folder / "run")) if "images_per_second" in x]
    return [x["step"] for x in lines], [1e6 / x["images_per_second"] for x in lines]


def draw(path, times, steps, values):
    """Three panels, each of which should be flat."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    left, middle = figure.subplots(1, 2)
    for store, of_size in times.items():
        sizes = list(of_size)
        middle_value = [statistics.median(of_size[s]) for s in sizes]
        low = [m - min(of_size[s]) for m, s in zip(middle_value, sizes, strict=True)]
        high = [max(of_size[s]) - m for m, s in zip(middle_value, sizes, strict=True)]
        left.errorbar(sizes, middle_value, [low, high], marker="o", capsize=3, label=store)
    left.set(xscale="log", xlabel="images in the set", ylabel="microseconds per image")
    left.set_ylim(bottom=0)
    left.legend(frameon=False)
    left.set_title("size of the set (median, range of rounds)", fontsize=10)
    middle.plot(steps, values, ".", markersize=1.5, color="0.7", label="every step")
    width = max(1, len(values) // 30)
    blocks = [slice(i, i + width) for i in range(0, len(values) - width + 1, width)]
    middle.plot(
        [float(np.mean(steps[b])) for b in blocks],
        [statistics.median(values[b]) for b in blocks],
        label=f"median of {width}",
    )
    middle.set(xlabel="steps run = lines logged", ylabel="microseconds per image")
    middle.set_ylim(0, 3 * statistics.median(values))
    middle.legend(frameon=False)
    middle.set_title("steps and log lines of one run", fontsize=10)
    for axes in (left, middle):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main():
    """Measure, draw, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="1000,10000,100000,280000")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=20, help="steps per timing")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--output", default="")
    a = parser.parse_args()
    sizes = [int(s) for s in a.sizes.split(",")]
    times, starts = by_size(sizes, a.batch, a.rounds, a.repeats)
    steps, values = by_step(a.steps, a.batch)
    part = max(1, len(values) // 5)
    # The first fifth includes one-time work, so the second fifth is the reference.
    early, late = statistics.median(values[part : 2 * part]), statistics.median(values[-part:])

    def largest_over_smallest(of_size):
        return statistics.median([b / a for a, b in zip(of_size[sizes[0]], of_size[sizes[-1]], strict=True)])

    out = {
        "sizes": sizes,
        "microseconds_per_image": {k: {str(s): v for s, v in of.items()} for k, of in times.items()},
        "seconds_to_start": {k: {str(s): v for s, v in of.items()} for k, of in starts.items()},
        "growth_with_size": {k: largest_over_smallest(of) for k, of in times.items()},
        "steps": a.steps,
        "late_over_early_steps": late / early,
    }
    print(out["growth_with_size"], "steps", round(out["late_over_early_steps"], 3))
    path = write(a.output, "growth", "time per image as sets, runs and logs grow", out)
    draw(path.with_suffix(".png"), times, steps, values)


if __name__ == "__main__":
    main()
