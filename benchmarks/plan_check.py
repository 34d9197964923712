"""Check `--plan`: the time that it predicts for a run on this machine against the run itself.

    python -m benchmarks.plan_check
    python -m benchmarks.plan_check --configs=d2mae_thyroid,simclr --batch=512 --steps=200

Every config takes some steps on phantoms, in a process of its own: first the prediction, from the three steps
that `--plan` times, then the run of `main.py`, of which the steps and the waiting for data count. The prediction leaves
out what comes before the first step and what `--plan` says that it leaves out: evaluation, saving and reports.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common

# The batch on a CPU.
CPU = {
    "d2mae_thyroid": 8, "mae_thyroid": 8, "quickstart": 32, "convmae": 4, "beit": 4, "diffmae": 4, "simmim_swin": 4,
    "simclr": 4, "moco_v3": 2, "resnet": 4, "convnext": 4, "swin": 4, "quickstart3d": 2,
}  # fmt: skip

# The steps where 8 take less than some seconds, in which a start of half a second counts.
STEPS = {"quickstart": 200, "diffmae": 30, "beit": 20, "resnet": 30, "convnext": 30, "swin": 30, "quickstart3d": 60}


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", default=",".join(CPU), help="names of configs/, separated by commas")
    parser.add_argument("--batch", type=int, default=0, help="0: what a CPU takes in a second or two")
    parser.add_argument("--steps", type=int, default=0, help="0: what takes some seconds")
    parser.add_argument("--output", default="")
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def config_of(name, batch, steps):
    """The config on phantoms, without reports on the way."""
    config = common.load_config(f"configs/{name}.py")
    small = CPU.get(name, 8)
    batch = batch or small
    is_3d = name in ("quickstart3d",)
    config.data.name, config.data.store = "phantoms3d" if is_3d else "phantoms", "resident"
    config.data.num_images, config.data.num_threads = 16 if is_3d else max(64, 2 * batch), 1
    config.optim.batch_size, config.optim.accum_steps, config.optim.steps = batch, 1, steps
    config.report.every_epochs, config.checkpoint.every_epochs = 1e6, 1e6
    config.report.num_eval_images, config.log.tensorboard = 2, False
    return config


def work(arguments):
    """Predict, run, print both."""
    from deblur_mae_jax import train
    from deblur_mae_jax.commands import plan
    from deblur_mae_jax.performance import compile_cache
    from deblur_mae_jax.pretrained import inherit
    from deblur_mae_jax.training import experiment

    steps = arguments.steps or STEPS.get(arguments.worker, 8)
    with tempfile.TemporaryDirectory() as folder:
        config, source, _ = inherit.resolve(config_of(arguments.worker, arguments.batch, steps), None)
        compile_cache.use(config.compilation_cache)
        run = experiment.build(config, source=source)
        per_image, batch = plan.timed(run)
        predicted = per_image * config.optim.batch_size
        train.train_and_evaluate(config_of(arguments.worker, arguments.batch, steps), Path(folder) / "run")
        spent = json.loads((Path(folder) / "run" / "time.json").read_text())[-1]["seconds"]
    measured = (spent["steps"] + spent["data"]) / steps
    row = {
        "steps": steps,
        "batch": config.optim.batch_size,
        "timed_batch": batch,
        "predicted_s": predicted,
        "measured_s": measured,
    }
    print(json.dumps(row | {"predicted_of_measured": predicted / measured}))


def main():
    """Every config, a table, JSON."""
    arguments = parse()
    if arguments.worker:
        work(arguments)
        return
    rows = {}
    for name in arguments.configs.split(","):
        command = [
            sys.executable, "-W", "ignore", __file__, f"--batch={arguments.batch}", f"--steps={arguments.steps}",
            f"--worker={name}",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            rows[name] = {"error": done.stderr.strip().splitlines()[-1:]}
            print(f"{name:20s} {rows[name]['error']}", flush=True)
            continue
        rows[name] = row = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{name:20s} batch {row['batch']:4d}  predicted {row['predicted_s']:.3f} s a step, measured "
            f"{row['measured_s']:.3f}: {row['predicted_of_measured']:.2f}",
            flush=True,
        )
    common.write(arguments.output, "plan_check", __doc__.splitlines()[0], {"steps": arguments.steps, "configs": rows})


if __name__ == "__main__":
    main()
