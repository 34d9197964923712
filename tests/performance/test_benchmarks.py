"""The benchmark suite: its commands exist, a failing part stops nothing, a target is told apart from its miss."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import tiny

from benchmarks import __main__ as suite
from benchmarks import common
from deblur_mae_jax.workdir import run_folder

ROOT = tiny.ROOT
COMMANDS = [
    (backend, name, command)
    for backend in ("cpu", "gpu", "tpu")
    for name, command in suite.parts(backend, every=True).items()
]


@pytest.mark.parametrize("backend,name,command", COMMANDS, ids=lambda v: v if isinstance(v, str) else "")
def test_every_part_is_a_program_with_these_flags(backend, name, command):
    text = (ROOT / "benchmarks" / f"{command[0]}.py").read_text()
    known = set(re.findall(r'add_argument\(\s*"(--\w+)"', text))
    assert {flag.split("=")[0] for flag in command[1:]} | {"--output"} <= known


def test_every_target_belongs_to_a_part():
    known = {name for backend in ("cpu", "gpu") for name in suite.parts(backend, every=True)}
    assert {target.part for target in suite.TARGETS} <= known


@pytest.mark.parametrize(
    "result,device,words",
    [
        ({"x": 9}, "cpu", "missed"),
        ({"x": 10}, "cpu", "reached"),
        ({"failed": "out of memory"}, "cpu", "not measured: out of memory"),
        (None, "cpu", "not measured: not run"),
        ({"x": 10}, "nvidia_a100", "not yet measured: needs a device called cpu"),
    ],
)
def test_verdicts(result, device, words):
    target = suite.Target("speed", "part", lambda r: r["x"], 10, unit="x", device="cpu")
    assert target.line(result, device)[-1] == words
    smaller = suite.Target("growth", "part", lambda r: r["x"], 9.5, at_least=False)
    assert smaller.line({"x": 9}, "cpu")[-1] == "reached"


def test_a_part_that_fails_says_why_and_stops_nothing(tmp_path):
    out = suite.run_part("memory", ["memory", "--config=configs/nothing.py"], tmp_path / "x.json")
    assert "nothing.py" in out["failed"]
    assert "not measured" in suite.table({"memory": out}, "cpu")


def test_committed_results_say_where_they_come_from():
    for path in (ROOT / "benchmarks" / "results").glob("*/*.json"):
        result = json.loads(path.read_text())
        assert result["command"].startswith("python -m benchmarks."), path
        assert result["environment"]["git"]["commit"] and "jax" in result["environment"]["packages"]
        assert str(Path.home()) not in path.read_text()


def test_changes_of_a_config_keep_its_types():
    config = common.load_config(
        "configs/quickstart.py", "model.remat=True", "optim.batch_size=4", "model.attention=xla"
    )
    assert config.model.remat is True and config.optim.batch_size == 4
    assert config.model.attention == "xla"


def test_results_are_not_changes_of_the_program(tmp_path, monkeypatch):
    package, results = tmp_path / "deblur_mae_jax", tmp_path / "benchmarks" / "results"
    for folder in (package, results):
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text("as committed")
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(run_folder, "__file__", str(package / "workdir.py"))
    (results / "a.txt").write_text("measured again")
    (results / "b.txt").write_text("new")
    assert run_folder.git_state()["modified"] is False
    (package / "a.txt").write_text("another program")
    assert run_folder.git_state()["modified"] is True
