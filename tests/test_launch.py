"""The launch files: they parse, their commands fit the program, and their scripts do what the exit codes ask for."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import yaml

from deblur_mae_jax import config as fields

LAUNCH = tiny.ROOT / "scripts" / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
FILES = sorted(path for path in LAUNCH.iterdir() if path.is_file())
PROGRAM = {"config", "workdir", "distributed", "coordinator", "num_processes", "process_id"}


def documents(name):
    return list(yaml.safe_load_all((LAUNCH / name).read_text()))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_valid(path):
    subprocess.run(["bash", "-n", str(path)], check=True)
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert shellcheck, "shellcheck is not installed (requirements-dev.txt)"
    subprocess.run([shellcheck, str(path)], check=True)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_commands_have_flags_and_fields_that_exist(path):
    text = re.sub(r"\\\n\s*", " ", path.read_text())
    known = fields.flat(tiny.load("d2mae_thyroid"))
    found = re.findall(r"(?<=main\.py)((?:\s+--[\w.]+=?\S*)+)", text)
    assert found or path.name == "Dockerfile", "no command was found"
    for name in re.findall(r"--([\w.]+)", " ".join(found)):
        assert name in PROGRAM or name.removeprefix("config.") in known, name
    for config in re.findall(r"configs/(\w+)\.py", text):
        assert config in tiny.CONFIGS


def stub(folder, name, body):
    path = folder / name
    path.write_text(f'#!/bin/bash\necho "{name} $*" >> {folder}/calls\n{body}\n')
    path.chmod(0o755)


def calls(folder):
    return (folder / "calls").read_text().splitlines()


def started(folder, script, *arguments, **environment):
    return subprocess.run(
        ["bash", str(LAUNCH / script), *arguments], cwd=folder, capture_output=True, text=True, timeout=60,
        env=os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"} | environment,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("code", "again", "status"),
    [(0, False, 0), (143, True, 0), (124, True, 0), (75, True, 0), (137, True, 0), (2, False, 2), (3, False, 3)],
)
def test_slurm_starts_an_unfinished_run_again(tmp_path, code, again, status):
    stub(tmp_path, "srun", f"exit {code}")
    stub(tmp_path, "scontrol", "")
    done = started(tmp_path, "slurm.sbatch", "--workdir=a b", SLURM_JOB_ID="7", SLURM_NTASKS="4")
    assert done.returncode == status, done.stderr
    first, *rest = calls(tmp_path)
    assert first.endswith("python main.py --distributed=on --workdir=a b")
    assert (rest == ["scontrol requeue 7"]) == again
    alone = started(tmp_path, "slurm.sbatch", SLURM_JOB_ID="7")
    assert alone.returncode == status and "--distributed=auto" in calls(tmp_path)[len(rest) + 1]


def test_slurm_gives_up_after_many_restarts(tmp_path):
    stub(tmp_path, "srun", "exit 124")
    stub(tmp_path, "scontrol", "")
    done = started(tmp_path, "slurm.sbatch", SLURM_JOB_ID="7", SLURM_RESTART_COUNT="50")
    assert done.returncode == 124 and len(calls(tmp_path)) == 1


def test_slurm_options_leave_time_to_save():
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?", (LAUNCH / "slurm.sbatch").read_text(), re.M))
    name, seconds = options["signal"].split("@")
    assert name == "TERM" and int(seconds) >= 120 and "requeue" in options


# `describe` says that there is no slice at first; the run ends with the next of CODES.
GCLOUD = """
case "$*" in
    *describe*) [ -e created ] && echo READY ;;
    *create*) touch created ;;
    *main.py*) code=$(head -n1 codes); sed -i 1d codes; [ "$code" = 255 ] && rm created; exit "$code" ;;
esac
"""


@pytest.mark.parametrize(("codes", "status", "slices"), [((0,), 0, 1), ((143, 255, 0), 0, 2), ((2,), 2, 1)])
def test_a_tpu_slice_is_made_again_until_the_run_is_finished(tmp_path, codes, status, slices):
    (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
    stub(tmp_path, "gcloud", GCLOUD)
    stub(tmp_path, "sleep", "")
    names = {"NAME": "d2mae", "ZONE": "z", "TYPE": "v5litepod-16", "BUCKET": "b", "SOURCE": "https://x/y.git"}
    done = started(tmp_path, "tpu_vm.sh", "--config=configs/d2mae_thyroid.py", "--config.data.mean=(1, 2)", **names)
    assert done.returncode == status, done.stderr
    made = [call for call in calls(tmp_path) if "tpu-vm create" in call]
    runs = "\n".join(calls(tmp_path)).split("main.py")[1:]
    assert len(made) == slices and "--spot" in made[0] and len(runs) == len(codes)
    assert "--workdir='gs://b/runs/d2mae'" in runs[0]
    words = shlex.split(runs[0].split("\ngcloud")[0])
    assert "--config.data.mean=(1, 2)" in words


def test_a_script_names_what_is_missing(tmp_path):
    for script, name in (("tpu_vm.sh", "NAME"), ("xpk.sh", "CLUSTER")):
        done = started(tmp_path, script)
        assert done.returncode != 0 and f"{name}: name of" in done.stderr


def test_xpk_restarts_a_run_that_is_not_finished(tmp_path):
    stub(tmp_path, "xpk", "")
    started(
        tmp_path, "xpk.sh", "--config=configs/d2mae_thyroid.py", CLUSTER="c", NAME="n", TYPE="t", IMAGE="i", BUCKET="b"
    )
    [call] = calls(tmp_path)
    assert "--max-restarts=50" in call and "--restart-on-exit-codes=75,124" in call
    assert call.endswith("--workdir=gs://b/runs/n --config=configs/d2mae_thyroid.py")


def test_the_jobset_restarts_all_hosts_and_gives_them_time_to_save():
    account, jobset = documents("jobset.yaml")
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    [hosts] = jobset["spec"]["replicatedJobs"]
    job = hosts["template"]["spec"]
    assert job["completionMode"] == "Indexed" and job["backoffLimit"] == 0
    assert job["parallelism"] == job["completions"]
    pod = job["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] >= 60 and pod["restartPolicy"] == "Never"
    assert pod["serviceAccountName"] == account["metadata"]["name"]
    [container] = pod["containers"]
    assert container["args"][0].startswith("exec ")  # else the shell keeps SIGTERM to itself


def test_the_jobset_ends_a_run_that_would_fail_again():
    """The exit codes that `scripts/launch/tpu_vm.sh` ends with too."""
    [rule] = documents("jobset.yaml")[1]["spec"]["failurePolicy"]["rules"]
    job = documents("jobset.yaml")[1]["spec"]["replicatedJobs"][0]["template"]["spec"]
    [own] = job["podFailurePolicy"]["rules"]
    assert rule == {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    assert own["action"] == "FailJob" and own["onExitCodes"]["values"] == [2, 3, 4, 5]
    assert own["onExitCodes"]["containerName"] == job["template"]["spec"]["containers"][0]["name"]


def test_skypilot_keeps_the_workdir_in_the_bucket():
    [task] = documents("skypilot.yaml")
    assert task["resources"]["use_spot"] and "BUCKET" in task["envs"]
    assert '--workdir="gs://$BUCKET/' in task["run"] and "exec " in task["run"]
    subprocess.run(["bash", "-n"], input=task["run"] + task["setup"], text=True, check=True)


def test_the_image_runs_the_program_without_a_shell():
    lines = [line for line in (LAUNCH / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    words = [line.split()[0] for line in lines]
    assert set(words) <= {"FROM", "ARG", "WORKDIR", "COPY", "RUN", "ENTRYPOINT"} and words[0] == "FROM"
    assert lines[-1] == 'ENTRYPOINT ["python", "main.py"]'
    for name in re.findall(r"^COPY (\S+) ", (LAUNCH / "Dockerfile").read_text(), re.M):
        assert (Path(tiny.ROOT) / name).exists()
