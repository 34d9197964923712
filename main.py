"""Train, search, probe or predict: `python main.py --config=configs/quickstart.py --workdir=runs/first`.

Only flags live here; notebooks and tests call `run.run(config, workdir)` themselves.
"""

import sys

from deblur_mae_jax import tuning

if __name__ == "__main__":
    tuning.start_well()  # before anything that takes memory or starts JAX

from absl import app, flags, logging
from ml_collections import config_flags

from deblur_mae_jax.errors import UserError

CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; the same one again resumes it.")
MODE = flags.DEFINE_enum(
    "mode", "run", ["run", "predict"], "What a config says, or predictions of the run in --workdir."
)
INPUT = flags.DEFINE_string("input", "", "With --mode=predict: a folder of images, or a CSV.")
OUTPUT = flags.DEFINE_string(
    "output", "", "With --mode=predict: the CSV to write; of a segmentation, the folder."
)
INFER = flags.DEFINE_string(
    "infer",
    "",
    "With --mode=predict of a segmentation: fields of config.infer, 'flips=True,overlap=0.7'.",
)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Compile, print the cost, take one step, exit.")
PLAN = flags.DEFINE_bool(
    "plan", False, "Print FLOPs, memory, hours and rough money on known chips and here, exit."
)
PLAN_IMAGES = flags.DEFINE_integer(
    "plan_images", 0, "With --plan: as if the set had so many images, which need not be here."
)
PRICES = flags.DEFINE_string(
    "prices", "", "With --plan: your prices, dollars per chip and hour, 'H100=2.5,TPU v5e=0.6'."
)
PROFILE = flags.DEFINE_bool(
    "profile", False, "Trace a few steps into <workdir>/profile and print where their time went."
)
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Several hosts that find each other (TPU pods)."
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of process 0, for other clusters."
)
NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "Number of processes, with --coordinator."
)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "This process, with --coordinator.")


def fail(message: object, status: int = 2) -> None:
    """One line on stderr, no traceback."""
    if isinstance(message, KeyError) and message.args:  # its text is the repr of its argument
        message = message.args[0]
    print("error:", " ".join(str(message).split()), file=sys.stderr)
    sys.exit(status)


def main(argv: list[str]) -> None:
    """Run what the flags say."""
    if len(argv) > 1:
        fail(f"unexpected argument '{argv[1]}'; flags start with --")
    predicting = MODE.value == "predict"
    if not predicting:
        if CONFIG.value is None:
            fail(
                "--config is not set: name a file of configs/, such as --config=configs/quickstart.py"
            )
        try:
            CONFIG.value.task  # noqa: B018, a file that could not be loaded only complains when used
        except (OSError, AttributeError) as error:
            fail(f"--config: {error}")
    elif not INPUT.value:
        fail("--input is not set: name a folder of images to predict")
    if WORKDIR.value is None and not (DRY_RUN.value or PLAN.value):
        fail("--workdir is not set: name a folder for the run, such as --workdir=runs/first")

    logging.set_verbosity(logging.WARNING)
    import jax

    if DISTRIBUTED.value or COORDINATOR.value:
        jax.distributed.initialize(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    from deblur_mae_jax import plan, predict_run, run, train

    try:
        if predicting:
            predict_run.run(WORKDIR.value, INPUT.value, OUTPUT.value, INFER.value)
            return
        if PLAN.value:
            plan.run(CONFIG.value, PRICES.value, PLAN_IMAGES.value)
            return
        result = run.run(CONFIG.value, WORKDIR.value or "", DRY_RUN.value, PROFILE.value)
    except UserError as error:
        fail(error)
    except train.NonFiniteLossError as error:
        fail(error, status=3)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) or predicting:
            raise
        size = CONFIG.value.optim.batch_size
        fail(
            f"out of device memory at config.optim.batch_size={size}: use a larger "
            "config.optim.accum_steps, config.model.remat=True or config.data.store=streaming. "
            f"{str(error).splitlines()[0][:200]}",
            status=5,
        )
    else:
        trained = isinstance(result, train.Result)
        if trained and result.checkpoint is None and not DRY_RUN.value:
            fail("the last checkpoint could not be saved; see the messages above", status=4)


def parse(argv: list[str]) -> list[str]:
    """Flags, with unknown config fields reported as one line."""
    try:
        return flags.FLAGS(argv)
    except (
        Exception
    ) as error:  # absl, ml_collections and the config file itself each raise their own
        text = str(error)
        if "Traceback" in text:  # of a config file: what it raised stands in the last line
            error = Exception(text.strip().splitlines()[-1].split(": ", 1)[-1])
        fail(error)
        raise AssertionError from error


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
