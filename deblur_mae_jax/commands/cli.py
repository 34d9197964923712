"""The command line: `python main.py --config=configs/quickstart.py --workdir=runs/first`, or `deblur-mae` if installed.

This module contains only flags and exit codes; notebooks and tests call `commands.run.run(config, workdir)` directly.
"""

from __future__ import annotations

import difflib
import importlib.resources
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from deblur_mae_jax.data import buckets
from deblur_mae_jax.errors import TRY_AGAIN, NotSaved, StoreError, UserError, one_line, unknown
from deblur_mae_jax.performance import tuning

BEGAN = time.monotonic()
# Configs of version 0.1 that are now arguments of another config file.
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


# Names of fields in other libraries.
ALIASES = {
    "learning_rate": "base_lr",
    "lr": "base_lr",
    "num_epochs": "epochs",
    "max_epochs": "epochs",
    "bs": "batch_size",
}


def define_flags() -> None:
    """Define all flags; fields of the config are flags too (`--config.optim.steps=10`)."""
    config_flags.DEFINE_config_file("config", None, "Config file, such as configs/quickstart.py.", lock_config=True)
    text, switch = flags.DEFINE_string, flags.DEFINE_bool
    text("workdir", None, "Folder of the run. Use the same folder again to resume the run.")
    flags.DEFINE_enum(
        "mode",
        "run",
        ["run", "predict"],
        "run: train, or run the program that the config names | predict: apply the run in --workdir to new images.",
    )
    text(
        "input",
        "",
        "With --mode=predict: a folder, a CSV, or one image or volume. Volumes with modality: /new/volumes=mr.",
    )
    text("output", "", "With --mode=predict: the CSV to write; for a segmentation, the folder to write.")
    text(
        "infer",
        "",
        "With --mode=predict for a segmentation: fields of config.infer, such as 'flips=True,overlap=0.7'.",
    )
    switch("dry_run", False, "Compile, take two steps, print the cost, exit.")
    switch("inspect", False, "Print what the run would train on, write contact sheets, then exit.")
    switch("plan", False, "Print FLOPs, memory, hours and rough cost on known chips and on this machine, then exit.")
    flags.DEFINE_integer("plan_images", 0, "With --plan: plan for a data set of this many images.")
    text("prices", "", "With --plan: your prices in dollars per chip and hour, such as 'H100=2.5,TPU v5e=0.6'.")
    switch(
        "profile",
        False,
        "Trace a few steps into <workdir>/profile and print where their time went.",
    )
    flags.DEFINE_float("max_hours", 0.0, "Save and stop before this many hours are over, as a queue demands. 0: never.")
    flags.DEFINE_enum(
        "distributed",
        "auto",
        ["auto", "on", "off"],
        "auto: connect the processes of Slurm, Open MPI, Kubernetes or a TPU pod | on: refuse to run alone | off.",
    )
    text("coordinator", None, "Address host:port of process 0, where the processes do not find each other.")
    flags.DEFINE_integer("num_processes", None, "With --coordinator: number of processes.")
    flags.DEFINE_integer("process_id", None, "With --coordinator: number of this process.")  # fmt: skip
    for flag in flags.FLAGS.flags_by_module_dict()[__name__]:  # --help shows the flags of the main program
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def fail(message: object, status: int = 2) -> None:
    """Print the error as one line on stderr, without a traceback."""
    if isinstance(message, KeyError) and message.args:  # its text is the repr of its argument
        message = message.args[0]
    line = " ".join(str(message).split())
    print("error:", line, file=sys.stderr)
    if "jax" in sys.modules:
        from deblur_mae_jax.commands import processes

        processes.end(status, line)
    sys.exit(status)


def joined(arguments: list[str]) -> list[str]:
    """The arguments, with `--config FILE` as `--config=FILE`."""
    out: list[str] = []
    for argument in arguments:
        if out and out[-1].lstrip("-") == "config" and out[-1].startswith("-"):
            out[-1] += f"={argument}"
        else:
            out.append(argument)
    return out


def located(argument: str) -> str:
    """Replace the file of a `--config=` argument with the path of an existing config.

    Names of version 0.1 become the new names, with a note. Outside a checkout, the configs of the package are used.
    """
    flag, equals, value = argument.partition("=")
    if flag.lstrip("-") == "distributed" and not equals:  # a switch in version 0.1
        return f"{flag}=on"
    if flag.lstrip("-") != "config" or not equals:
        return argument
    path, colon, words = value.partition(":")
    # A file of the user's own folder that does not exist is an error, not another file of the same name.
    own = Path(path).exists() or Path(path).parent.as_posix() not in ("configs", ".")
    if own or Path(path).suffix not in ("", ".py"):
        return argument
    new = RENAMED.get(Path(path).stem)
    if new is not None:
        renamed = str(Path(path).with_name(new.split(":")[0]))
        words = ",".join(filter(None, [*new.split(":")[1:], words]))
        path, colon = renamed, ":" if words else ""
        print(f"{value} is now {path}{colon}{words}", file=sys.stderr)
    if not Path(path).exists():
        shipped = Path(str(importlib.resources.files("deblur_mae_jax") / "configs" / Path(path).name))
        if shipped.is_file():
            print(f"{path} is that of the installed package, {shipped}", file=sys.stderr)
            path = str(shipped)
        else:
            files = {file.name for place in (shipped.parent, Path("configs")) for file in place.glob("[!_]*.py")}
            longer = sorted(name for name in files if name.startswith(Path(path).stem + "_"))
            if longer:
                named = " or ".join(f"configs/{name}" for name in longer)
                fail(f"--config: unknown name '{path}'. Did you mean {named}?")
            fail(unknown("--config", path, {f"configs/{name}" for name in files}))
    return f"{flag}={path}{colon}{words}"


def parse(argv: list[str]) -> list[str]:
    """Parse the flags, and report unknown config fields in one line."""
    try:
        return flags.FLAGS(argv)
    except Exception as error:  # absl, ml_collections and the config file each raise different errors
        text = str(error)
        if "Traceback" in text:  # an error in a config file: the last line has its message
            error = Exception(text.strip().splitlines()[-1].split(": ", 1)[-1])
        fail(_unknown_field(argv, text) or _no_words(argv, text) or _a_group(text) or _wrong_type(str(error)) or error)
        raise AssertionError from error


def _no_words(argv: list[str], text: str) -> str:
    """The error of a word after the colon of a config that takes none; "" if `text` is about something else."""
    if not re.search(r"get_config\(\) takes 0 positional arguments", text):
        return ""
    file = next((a.partition("=")[2] for a in reversed(argv) if a.lstrip("-").startswith("config=")), "")
    return f"--config={file}: this config takes no word after the colon"


def _a_group(text: str) -> str:
    """The error of a value for a group of fields; "" if `text` is about something else."""
    found = re.search(r"flag --(config\.\w+)=(.*?): Failed to parse", text)
    return f"{found[1]}={found[2]}: {found[1]} is a group of fields, such as {found[1]}.name" if found else ""


def _wrong_type(text: str) -> str:
    """The error of a value that is no number or no switch, in plain words; "" if `text` is about something else."""
    kinds = (
        (r"invalid literal for int\(\) with base 10: (.+)", "is no whole number"),
        (r"could not convert string to float: (.+)", "is no number"),
        (r"\('Non-boolean argument to boolean flag', (.+)\)", "is neither True nor False"),
    )
    for pattern, words in kinds:
        if re.search(pattern, text):
            return re.sub(pattern, rf"\1 {words}", text)
    return ""


def _unknown_field(argv: list[str], text: str) -> str:
    """A message for a `--config.` flag whose field does not exist; "" if `text` is about something else.

    text: the error, which names the unknown part of the field alone.
    """
    from deblur_mae_jax import config as fields

    quoted = re.match(r"""[\\"']*(\w+)\\?['"]""", text)
    name = quoted[1] if quoted else ""
    flag = next((a for a in argv if re.match(rf"--?config\.(\w+\.)*{name}(\.|=|$)", a)), "") if name else ""
    if not flag:
        return ""
    field = flag.lstrip("-").partition("=")[0]
    sections = [section for kind in fields.GROUPS.values() for section in kind.items()]
    known = {f"config.{section}.{own}".replace("..", ".") for section, groups in sections for g in groups for own in g}
    likeness = lambda other: [
        difflib.SequenceMatcher(None, a, b).ratio()
        for a, b in zip(field.split("."), other.split("."), strict=False)
    ]  # fmt: skip
    close = [other for other in known - {field} if other.count(".") == field.count(".") and min(likeness(other)) > 0.6]
    leaf = field.rpartition(".")[2]
    same = [other for other in sorted(known - {field}) if other.rpartition(".")[2] == ALIASES.get(leaf, leaf)]
    best = max(close, key=lambda other: sum(likeness(other))) if close else same[0] if same else ""
    hint = f" Did you mean {best}?" if best else ""
    also = " Other configs have it." if field in known else ""
    return f"{field}: this config has no such field.{hint}{also} All fields: docs/reference/config.md"


def check(argv: list[str]) -> None:
    """Reject invalid flags before JAX starts."""
    values = flags.FLAGS
    if len(argv) > 1:
        fail(f"unexpected argument '{argv[1]}'; flags start with --")
    if values.mode == "predict":
        if not values.input:
            fail("--input is not set: name a folder of images to predict")
        if values.config is not None:
            fail("--config is not for --mode=predict, which takes that of --workdir. --infer changes a segmentation")
    elif values.config is None:
        fail("--config is not set: name a file of configs/, such as --config=configs/quickstart.py")
    else:
        try:
            config = values.config
            config.task  # noqa: B018, a file that could not be loaded only complains when used
        except (OSError, AttributeError) as error:
            fail(f"--config: {error}")
        given = {argument.lstrip("-").partition("=")[0] for argument in sys.argv[1:]}
        fields = config.to_dict()
        for steps, epochs, what in (("steps", "epochs", "length"), ("warmup_steps", "warmup_epochs", "warm-up")):
            in_steps = fields.get("optim", {}).get(steps)  # a probe trains nothing
            if in_steps and f"config.optim.{epochs}" in given and f"config.optim.{steps}" not in given:
                fail(
                    f"--config.optim.{epochs}={config.optim[epochs]:g}: the {what} is given in steps, "
                    f"config.optim.{steps}={config.optim[steps]}; change that, or add --config.optim.{steps}=0"
                )
    _check_together(values)
    if not values.workdir and not (values.dry_run or values.plan or values.inspect):
        fail("--workdir is not set: name a folder for the run, such as --workdir=runs/first")


def _check_together(values: Any) -> None:
    """Reject flags that the chosen program does not read, or that choose several programs."""
    unread = [name for name in ("input", "output", "infer") if values[name].value]
    if values.mode != "predict" and unread:
        fail(f"--{unread[0]} is for --mode=predict, and this command would train; add that, or leave --{unread[0]} out")
    chosen = [name for name in ("inspect", "plan", "dry_run", "profile") if values[name].value]
    if values.mode == "predict" and chosen:
        fail(f"--{chosen[0]} is not for --mode=predict")
    if len(chosen) > 1:
        fail(f"--{chosen[0]} and --{chosen[1]} exclude each other; start the command once with each")
    if unread := [name for name in ("plan_images", "prices") if values[name].value and not values.plan]:
        fail(f"--{unread[0]} is for --plan")
    if values.max_hours < 0:
        fail(f"--max_hours={values.max_hours:g} must be 0 (never) or greater")


def start() -> Any:
    """Run the program that the flags select. Returns the result of a training run, or None."""
    from deblur_mae_jax.commands import inspect, plan, predict, processes, run

    values = flags.FLAGS
    one = "--mode=predict" if values.mode == "predict" else "--inspect" if values.inspect else "--plan"
    if (values.mode == "predict" or values.inspect or values.plan) and processes.count() > 1:
        raise UserError(f"{one} runs on one process: start it once, with --distributed=off")
    if values.mode == "predict":
        predict.run(values.workdir, values.input, values.output, values.infer)
        return None
    if values.inspect:
        inspect.run(values.config, values.workdir or "")
        return None
    if values.plan:
        plan.run(values.config, values.prices, values.plan_images)
        return None
    return run.run(values.config, values.workdir or "", values.dry_run, values.profile)


def run_flags(argv: list[str]) -> None:
    """Run the program and exit with a status code that reports the outcome."""
    check(argv)
    logging.set_verbosity(logging.WARNING)
    import jax

    from deblur_mae_jax.commands import processes
    from deblur_mae_jax.data.source import BadImage
    from deblur_mae_jax.training import stop
    from deblur_mae_jax.training.result import NonFiniteLossError, Result

    values = flags.FLAGS
    if values.profile:
        tuning.profile_well(os.environ)
    try:
        processes.initialize(values.distributed, values.coordinator, values.num_processes, values.process_id)
        with stop.handling() as requests:
            if values.max_hours > 0:
                stop.stop_before(requests, values.max_hours, BEGAN)
            result = start()
    except stop.Stopped as error:
        # Results for an address stay in a folder that is removed with the process.
        lost = values.mode == "predict" and buckets.is_address(values.output or values.workdir)
        kept = "nothing was kept" if values.plan or values.dry_run or values.inspect else (
            f"run the same command again to {'start again' if lost else 'go on'}"
        )  # fmt: skip
        print(f"{error}; {kept}", file=sys.stderr)
        processes.leave_compilation(128 + error.number)
    except KeyboardInterrupt:  # the second one
        sys.exit(128 + signal.SIGINT)
    except UserError as error:
        fail(error, status=TRY_AGAIN if isinstance(error, StoreError) else 2)
    except NotSaved as error:
        fail(error, status=4)
    except NonFiniteLossError as error:
        fail(error, status=3)
    except BadImage as error:  # none can be read any more
        fail(f"{error}. Start the same command again", status=TRY_AGAIN)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) or values.mode == "predict":
            processes.end_of_crash(error)
            raise
        optim = values.config.to_dict().get("optim")
        help = (
            f" at config.optim.batch_size={optim['batch_size']}: use a larger config.optim.accum_steps, "
            "config.model.remat=True or config.data.store=streaming"
            if optim
            else ": use a smaller config.search.batch_size, or a smaller network"
        )
        fail(f"out of device memory{help}. {one_line(error)}", status=5)
    except Exception as error:
        processes.end_of_crash(error)
        raise
    else:
        if isinstance(result, Result) and result.checkpoint is None and not values.dry_run:
            fail("the last checkpoint could not be saved; see the messages above", status=4)
        if isinstance(result, Result) and result.stopped_by:
            sys.exit(128 + result.stopped_by)  # a scheduler takes 0 for finished
        if isinstance(result, Result) and result.unwritten:
            fail(f"{' and '.join(result.unwritten)} could not be written; see the messages above", status=4)


def main() -> None:
    """Entry point of the program, also of the console command `deblur-mae`."""
    tuning.start_well()  # must run before anything allocates memory or starts JAX
    sys.argv[1:] = [located(argument) for argument in joined(sys.argv[1:])]
    define_flags()
    app.run(run_flags, flags_parser=parse)
