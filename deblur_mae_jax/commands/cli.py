"""The command line: `python main.py --config=configs/quickstart.py --workdir=runs/first`, or `deblur-mae` where
installed.

Only flags and exit codes live here; notebooks and tests call `commands.run.run(config, workdir)` themselves.
"""

from __future__ import annotations

import importlib.resources
import sys
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.performance import tuning

# Configs of version 0.1 that are arguments of another file now.
RENAMED = {
    f"{kind}_{organ}": f"{kind}.py:{organ}" if organ != "folder" else f"{kind}.py"
    for kind in ("finetune", "from_scratch", "linear_probe", "knn_probe")
    for organ in ("folder", "thyroid", "ovary", "pancreas")
} | {
    "d2mae_warm_start": "d2mae_thyroid.py:warm_start",
    "deblur_mae_warm_start": "deblur_mae_thyroid.py:warm_start",
    "dae_noise": "dae_ct_mr.py:noise",
    "dae_downsampling": "dae_ct_mr.py:downsampling",
    "dae_local_masking": "dae_ct_mr.py:local_masking",
    "rotation_ct_mr": "swin_ssl_ct_mr.py:rotation",
    "contrastive_ct_mr": "swin_ssl_ct_mr.py:contrastive",
}


def define_flags() -> None:
    """All flags; fields of the config are flags too (`--config.optim.steps=10`)."""
    config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=True)
    text, switch = flags.DEFINE_string, flags.DEFINE_bool
    text("workdir", None, "Folder of the run; the same one again resumes it.")
    flags.DEFINE_enum(
        "mode",
        "run",
        ["run", "predict"],
        "run: what the config says | predict: apply the run in --workdir.",
    )
    text("input", "", "With --mode=predict: a folder of images, or a CSV.")
    text("output", "", "With --mode=predict: the CSV to write; of a segmentation, the folder.")
    text(
        "infer",
        "",
        "With --mode=predict of a segmentation: fields of config.infer, 'flips=True,overlap=0.7'.",
    )
    switch("dry_run", False, "Compile, print the cost, take one step, exit.")
    switch("plan", False, "Print FLOPs, memory, hours and rough cost on known chips and here, exit.")
    flags.DEFINE_integer("plan_images", 0, "With --plan: as if the set had so many images.")
    text("prices", "", "With --plan: your prices, dollars per chip and hour, 'H100=2.5,TPU v5e=0.6'.")
    switch(
        "profile",
        False,
        "Trace a few steps into <workdir>/profile and print where their time went.",
    )
    switch("distributed", False, "Several hosts that find each other (TPU pods).")
    text("coordinator", None, "host:port of process 0, for other clusters.")
    flags.DEFINE_integer("num_processes", None, "Number of processes, with --coordinator.")
    flags.DEFINE_integer("process_id", None, "This process, with --coordinator.")  # fmt: skip


def fail(message: object, status: int = 2) -> None:
    """One line on stderr, no traceback."""
    if isinstance(message, KeyError) and message.args:  # its text is the repr of its argument
        message = message.args[0]
    print("error:", " ".join(str(message).split()), file=sys.stderr)
    sys.exit(status)


def located(argument: str) -> str:
    """A `--config=` argument with the file that it means.

    Names of version 0.1 become the new ones, with a note; outside a checkout the configs of the package are found.
    """
    flag, equals, value = argument.partition("=")
    if flag.lstrip("-") != "config" or not equals:
        return argument
    path, colon, words = value.partition(":")
    new = RENAMED.get(Path(path).stem) if path.endswith(".py") and not Path(path).exists() else None
    if new is not None:
        renamed = str(Path(path).with_name(new.split(":")[0]))
        words = ",".join(filter(None, [*new.split(":")[1:], words]))
        path, colon = renamed, ":" if words else ""
        print(f"{value} is now {path}{colon}{words}", file=sys.stderr)
    if not Path(path).exists():
        shipped = importlib.resources.files("deblur_mae_jax") / "configs" / Path(path).name
        if shipped.is_file():
            path = str(shipped)
    return f"{flag}={path}{colon}{words}"


def parse(argv: list[str]) -> list[str]:
    """Flags, with unknown config fields reported as one line."""
    try:
        return flags.FLAGS(argv)
    except Exception as error:  # absl, ml_collections and the config file each raise their own
        text = str(error)
        if "Traceback" in text:  # of a config file: what it raised is in the last line
            error = Exception(text.strip().splitlines()[-1].split(": ", 1)[-1])
        fail(error)
        raise AssertionError from error


def check(argv: list[str]) -> None:
    """Refuse what cannot be right before JAX is started."""
    values = flags.FLAGS
    if len(argv) > 1:
        fail(f"unexpected argument '{argv[1]}'; flags start with --")
    if values.mode == "predict":
        if not values.input:
            fail("--input is not set: name a folder of images to predict")
    elif values.config is None:
        fail("--config is not set: name a file of configs/, such as --config=configs/quickstart.py")
    else:
        try:
            values.config.task  # noqa: B018, a file that could not be loaded only complains when used
        except (OSError, AttributeError) as error:
            fail(f"--config: {error}")
    if values.workdir is None and not (values.dry_run or values.plan):
        fail("--workdir is not set: name a folder for the run, such as --workdir=runs/first")


def start() -> Any:
    """Do what the flags say; the result of a training run, or None."""
    import jax

    values = flags.FLAGS
    if values.distributed or values.coordinator:
        jax.distributed.initialize(values.coordinator, values.num_processes, values.process_id)
    from deblur_mae_jax.commands import plan, predict, run

    if values.mode == "predict":
        predict.run(values.workdir, values.input, values.output, values.infer)
        return None
    if values.plan:
        plan.run(values.config, values.prices, values.plan_images)
        return None
    return run.run(values.config, values.workdir or "", values.dry_run, values.profile)


def run_flags(argv: list[str]) -> None:
    """Start, and end with the exit status that says how it went."""
    check(argv)
    logging.set_verbosity(logging.WARNING)
    import jax

    from deblur_mae_jax.training.loop import NonFiniteLossError, Result

    values = flags.FLAGS
    try:
        result = start()
    except UserError as error:
        fail(error)
    except NonFiniteLossError as error:
        fail(error, status=3)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) or values.mode == "predict":
            raise
        fail(
            f"out of device memory at config.optim.batch_size={values.config.optim.batch_size}: use a larger "
            "config.optim.accum_steps, config.model.remat=True or config.data.store=streaming. "
            f"{str(error).splitlines()[0][:200]}",
            status=5,
        )
    else:
        if isinstance(result, Result) and result.checkpoint is None and not values.dry_run:
            fail("the last checkpoint could not be saved; see the messages above", status=4)


def main() -> None:
    """The program; also the console command `deblur-mae`."""
    tuning.start_well()  # before anything that takes memory or starts JAX
    sys.argv[1:] = [located(argument) for argument in sys.argv[1:]]
    define_flags()
    app.run(run_flags, flags_parser=parse)
