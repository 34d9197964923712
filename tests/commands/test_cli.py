"""The command line: clear errors, names of version 0.1, configs of the installed package."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
import tiny
from absl import flags as absl_flags
from ml_collections import ConfigDict

from deblur_mae_jax.commands import cli, processes
from deblur_mae_jax.data.source import BadImage
from deblur_mae_jax.errors import NotSaved, StoreError, UserError
from deblur_mae_jax.training.result import NonFiniteLossError, Result

ROOT = tiny.ROOT


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--config.task.mask_ration=0.5"], ["Did you mean", "mask_ratio"]),
        (
            ["--config.optim.epoch=3"],
            ["config.optim.epoch: this config has no such field", "mean config.optim.epochs?"],
        ),
        (["--config.dat.root=x"], ["config.dat.root: this config has no such field", "Did you mean config.data.root?"]),
        (["--config.report.bootstrap=20"], ["config.report.bootstrap: this config has no such field. All fields"]),
        (["--config.task.frozen=True"], ["config.task.frozen: this config has no such field. Other configs have it"]),
        (["--config.optim.batch_size=many"], ["--config.optim.batch_size=many: 'many' is no whole number"]),
        (["--config.optim.base_lr=x"], ["'x' is no number"]),
        (["--config.log.tensorboard=maybe"], ["'maybe' is neither True nor False"]),
        (["--config.optim.learning_rate=1"], ["Did you mean config.optim.base_lr?"]),
        (["--config.augment.mixup=1"], ["Did you mean config.task.mixup?"]),
        (["--config=configs/no_such.py"], ["no_such.py"]),
        (
            ["--config=configs/finetune.py:mine"],
            ["--config: unknown name 'mine'. Choices: folder, ovary"],
        ),
        (["extra"], ["unexpected argument 'extra'"]),
        (["--config=configs/quickstart.py:foo"], ["quickstart.py:foo: this config takes no word after the colon"]),
        (["--config.data=phantoms"], ["config.data=phantoms: config.data is a group of fields"]),
        (["--config.optim.epochs=5"], ["--config.optim.epochs=5: the length is given in steps", "steps=0"]),
        (["--config=configs/finetune.py:small,upstream"], ["'small' and 'upstream' exclude each other"]),
        (["--workdir="], ["--workdir is not set"]),
        (["--mode=predict", "--input=images"], ["--config is not for --mode=predict", "--workdir"]),
    ],
)
def test_the_command_line_fails_in_one_line(tmp_path, flags, parts):
    base = [sys.executable, str(ROOT / "main.py"), "--config=configs/quickstart.py"]
    done = subprocess.run(
        [*base, f"--workdir={tmp_path / 'run'}", *flags],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    error = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(error) == 1 and all(part in error[0] for part in parts), done.stderr


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"output": "new.csv"}, "--output is for --mode=predict, and this command would train"),
        ({"infer": "flips=True"}, "--infer is for --mode=predict"),
        ({"mode": "predict", "plan": True}, "--plan is not for --mode=predict"),
        ({"inspect": True, "plan": True}, "--inspect and --plan exclude each other"),
        ({"plan_images": 5}, "--plan_images is for --plan"),
        ({"max_hours": -1.0}, "--max_hours=-1 must be 0 (never) or greater"),
    ],
)
def test_a_flag_that_would_not_be_read_is_refused(given, message, capsys):
    names = ("input", "output", "infer", "inspect", "plan", "dry_run", "profile", "plan_images", "prices")
    values = absl_flags.FlagValues()
    for name in names:
        absl_flags.DEFINE_string(name, None, "", flag_values=values)
    absl_flags.DEFINE_string("mode", "run", "", flag_values=values)
    absl_flags.DEFINE_float("max_hours", 0.0, "", flag_values=values)
    values.mark_as_parsed()
    cli._check_together(values)
    for name, value in given.items():
        values[name].value = value
    with pytest.raises(SystemExit):
        cli._check_together(values)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("old", sorted(cli.RENAMED))
def test_every_config_name_of_version_0_1_still_works(old, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    flag, _, value = cli.located(f"--config=configs/{old}.py").partition("=")
    assert flag == "--config" and f"configs/{old}.py is now {value}" in capsys.readouterr().err
    config = tiny.load(value.removeprefix("configs/").replace(".py", ""))
    assert config.task.name


def result(**more):
    return Result(2, True, Path("report"), Path("checkpoint"), "", None, **more)


@pytest.mark.parametrize(
    ("outcome", "code", "words"),
    [
        (lambda: result(), None, ""),
        (lambda: result(stopped_by=15), 143, ""),
        (lambda: result(stopped_by=15, unwritten=("the report",)), 143, ""),  # the run has to go on
        (lambda: result(unwritten=("the report",)), 4, "the report could not be written"),
        (lambda: dataclasses.replace(result(), checkpoint=None), 4, "the last checkpoint could not be saved"),
        (UserError("config.x"), 2, "config.x"),
        (StoreError("gone"), 75, "gone"),
        (NotSaved("not copied"), 4, "not copied"),
        (NonFiniteLossError("the loss is nan"), 3, "the loss is nan"),
        (BadImage("none can be read"), 75, "Start the same command again"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 5 GB"),
            5,
            "out of device memory at config.optim.batch_size=8",
        ),
    ],
)
def test_the_exit_code_says_how_a_run_ended(monkeypatch, capsys, outcome, code, words):
    def start():
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome()

    values = SimpleNamespace(
        mode="run", profile=False, plan=False, dry_run=False, inspect=False, max_hours=0.0, output="", workdir="run",
        distributed="off", coordinator=None, num_processes=None, process_id=None,
        config=ConfigDict({"optim": {"batch_size": 8}}),
    )  # fmt: skip
    monkeypatch.setattr(cli.flags, "FLAGS", values)
    monkeypatch.setattr(cli, "check", lambda argv: None)
    monkeypatch.setattr(cli, "start", start)
    monkeypatch.setattr(processes, "initialize", lambda *_: None)
    if code is None:
        cli.run_flags([])
    else:
        with pytest.raises(SystemExit) as ended:
            cli.run_flags([])
        assert ended.value.code == code
    assert words in capsys.readouterr().err


def test_a_config_may_follow_after_a_space():
    assert cli.joined(["--config", "configs/x.py", "--workdir=run"]) == ["--config=configs/x.py", "--workdir=run"]
    for same in (["--config=configs/x.py"], ["--config"], ["--mode", "run"]):
        assert cli.joined(same) == same


def test_a_misspelt_config_is_named(capsys, monkeypatch):
    monkeypatch.chdir(tiny.ROOT)
    with pytest.raises(SystemExit):
        cli.located("--config=configs/finetun.py:small")
    assert "unknown name 'configs/finetun.py'. Did you mean 'configs/finetune.py'?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.located("--config=finetune:small")
    assert "Did you mean 'configs/finetune.py'?" in capsys.readouterr().err


def test_an_old_name_keeps_its_argument(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert cli.located("--config=configs/finetune_ovary.py:repo") == "--config=configs/finetune.py:ovary,repo"
    assert cli.located("--config=configs/quickstart.py") == "--config=configs/quickstart.py"
    assert cli.located("--config.optim.steps=3") == "--config.optim.steps=3"
    assert capsys.readouterr().err.count("is now") == 1


def test_the_installed_command_finds_the_configs_of_the_package(tmp_path, monkeypatch, capsys):
    """Outside a checkout, `configs/<name>.py` is the file that was installed with the package."""
    (tmp_path / "package" / "configs").mkdir(parents=True)
    for name in ("quickstart", "finetune"):
        (tmp_path / "package" / "configs" / f"{name}.py").write_text((ROOT / "configs" / f"{name}.py").read_text())
    monkeypatch.setattr(cli.importlib.resources, "files", lambda package: tmp_path / "package")
    monkeypatch.chdir(tmp_path)
    shipped = tmp_path / "package" / "configs"
    assert cli.located("--config=configs/quickstart.py") == f"--config={shipped / 'quickstart.py'}"
    assert cli.located("--config=configs/finetune_ovary.py") == f"--config={shipped / 'finetune.py'}:ovary"
    with pytest.raises(SystemExit):
        cli.located("--config=configs/no_such.py")
    said = capsys.readouterr().err
    assert "configs/quickstart.py is that of the installed package" in said
    assert "'configs/no_such.py'" in said and "Choices: configs/finetune.py, configs/quickstart.py" in said
    for own in ("mine/quickstart.py", "/data/quickstart.py", "mine/finetune_ovary.py"):
        assert cli.located(f"--config={own}") == f"--config={own}"  # a mistake, not the package's file
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "quickstart.py").write_text("")
    assert cli.located("--config=configs/quickstart.py") == "--config=configs/quickstart.py"  # the user's own


@pytest.mark.parametrize(
    ("flags", "field"),
    tiny.others_slow(
        [
            ("--workdir=ftp://host/run", "--workdir"),
            ("--workdir={}/run --config.data.name=image_folder --config.data.root=s3://b/images", "config.data.root"),
            ("--workdir={}/run --config.init_from=az://bucket/run", "config.init_from"),
            ("--mode=predict --workdir=az://bucket/run --input=images", "--workdir"),
            ("--workdir=hf://bucket/run --inspect", "--workdir"),
        ],
        ("--workdir=ftp://host/run", "--workdir"),
    ),
)
def test_an_address_is_not_taken_for_a_folder(tmp_path, flags, field):
    """`pathlib` makes the local folder `gs:` of gs://bucket/run."""
    config = [] if "predict" in flags else [f"--config={ROOT}/configs/quickstart.py"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *config, *flags.format(tmp_path).split()],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2 and "is an address" in done.stderr and f"error: {field}: '" in done.stderr, done.stderr
    assert not [path for path in tmp_path.iterdir() if ":" in path.name]
