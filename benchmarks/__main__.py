"""Run every standing benchmark on this machine and compare the results with the targets.

    python -m benchmarks                    # all parts; more than half an hour on two CPU cores
    python -m benchmarks --only=start,memory
    python -m benchmarks --table            # only the table, from existing results

Each part is a separate program and writes its JSON under benchmarks/results/; the table is written beside them. A
failed part or a missed target is shown in the table and does not stop the others. If PyTorch and timm are installed,
their steps are timed for comparison. The same commands run on a CPU, a GPU and a TPU; the sizes differ.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, ROOT
from deblur_mae_jax.performance import tuning

# Parts that have a GPU for themselves, unless they time PyTorch too. The others share its memory with PyTorch or with
# processes that they start.
ALONE = ("pretrain_step", "blur_search", "memory", "growth", "linear_probe", "bfloat16")
THYROID = "--config=configs/d2mae_thyroid.py"
SRAD = "--degrade=speckle.srad(40, 0.1)"


def parts(backend: str, every: bool = False) -> dict[str, list[str]]:
    """The command of every part, for a CPU or an accelerator.

    every: also of parts that need packages which are not installed.
    """
    torch = []
    if every or (importlib.util.find_spec("torch") and importlib.util.find_spec("timm")):
        torch = ["--torch", "--compile"]
    monai = every or importlib.util.find_spec("monai")
    skip = [] if monai else ["--skip=monai float32,monai bfloat16"]
    day = {  # what a user waits for beside the steps
        "first_call": ["first_call"], "reports": ["reports"], "input_rate": ["input_rate"],
    }  # fmt: skip
    if backend == "cpu":
        return {
            "vit_b": ["pretrain_step", THYROID, "--batch=8", "--rounds=6", *torch],
            "tiny": [
                "pretrain_step", "--config=configs/quickstart.py", "--batch=32", "--side=160",
                "--rounds=20", "--repeats=5", *torch,
            ],
            "srad": ["pretrain_step", THYROID, SRAD, "--batch=8", "--rounds=6"],
            "blur_search": ["blur_search", "--phantoms=16", "--batch=48", "--rounds=4"],
            "start": ["start", "--batch=8"],
            "memory": ["memory", "--batch=8"],
            "growth": ["growth"],
            "swin_unetr": ["swin_unetr_step", "--side=64", "--batch=1", "--feature=12", *skip],
            "bfloat16": ["bfloat16", "--rounds=5", *torch[:1]],
            "linear_probe": ["linear_probe", "--images=400", "--set=model.variant=S"],
            "plan_check": ["plan_check"],
            **day,
            **({"sliding_window": ["sliding_window"]} if monai else {}),
            **({"backbones": ["backbones", "--batch=4"], "objectives": ["objectives", "--batch=4"]} if torch else {}),
        }  # fmt: skip
    window = ["sliding_window", "--window=96", "--feature=48", "--volume=256,256,160"]
    big = ["--images=64", "--rounds=6", "--repeats=10"]
    return {
        "vit_b": ["pretrain_step", THYROID, "--batch=1024", *big],
        "vit_b_torch": [
            "pretrain_step", THYROID, "--batch=256", *big, "--set=model.attention=cudnn", *torch,
        ],
        "vit_b_cudnn": [
            "pretrain_step", THYROID, "--batch=1024", *big, "--set=model.attention=cudnn",
        ],
        "vit_b_triton": [
            "pretrain_step", THYROID, "--batch=1024", *big, "--set=model.attention=triton",
        ],
        "vit_b_remat": ["pretrain_step", THYROID, "--batch=1024", *big, "--set=model.remat=True"],
        "vit_l": ["pretrain_step", THYROID, "--variant=L", "--batch=512", *big],
        "vit_l_cudnn": [
            "pretrain_step", THYROID, "--variant=L", "--batch=512", *big,
            "--set=model.attention=cudnn",
        ],
        "vit_l_triton": [
            "pretrain_step", THYROID, "--variant=L", "--batch=512", *big,
            "--set=model.attention=triton",
        ],
        "srad": ["pretrain_step", THYROID, SRAD, "--batch=1024", *big],
        "blur_search": ["blur_search", "--phantoms=4096", "--batch=1536", "--rounds=4"],
        "start": ["start", "--batch=256", "--images=256"],
        "memory": ["memory", "--batch=1024"],
        "growth": ["growth", "--batch=256", "--sizes=1000,10000,100000", "--repeats=200"],
        "swin_unetr": [
            "swin_unetr_step", "--side=96", "--batch=2", "--feature=48", "--remat", *skip,
        ],
        "linear_probe": ["linear_probe", "--images=4000", "--batch=256"],
        "plan_check": [
            "plan_check", "--batch=64", "--steps=1000",
            "--configs=d2mae_thyroid,quickstart,simclr,resnet,quickstart3d",
        ],
        **day,
        **({"sliding_window": window} if monai else {}),
        **({"backbones": ["backbones", "--batch=64"], "objectives": ["objectives", "--batch=64"]} if torch else {}),
    }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Target:
    """One line of the table: a figure of a part, its goal, and the device that it applies to."""

    what: str
    part: str
    figure: Callable[[dict[str, Any]], Any]
    goal: float
    at_least: bool = True
    unit: str = ""
    device: str | tuple[str, ...] = ""  # in the name of the device, or one of several; "": anywhere

    def line(self, result: dict[str, Any] | None, here: str) -> list[str]:
        """What, target, figure, verdict."""
        wanted = f"{'>=' if self.at_least else '<='} {self.goal:,g}{self.unit}"
        names = (self.device,) if isinstance(self.device, str) else self.device
        if not any(name in here for name in names):
            return [self.what, wanted, "", f"not yet measured: needs a device called {' or '.join(names)}"]
        value = self._value(result)
        if value is None:
            why = (result or {}).get("failed", "not run")
            return [self.what, wanted, "", f"not measured: {why}"]
        reached = value >= self.goal if self.at_least else value <= self.goal
        return [
            self.what, wanted, f"{value:,.4g}{self.unit}", "reached" if reached else "missed",
        ]  # fmt: skip

    def _value(self, result: dict[str, Any] | None) -> float | None:
        try:
            return self.figure(result) if result else None
        except (KeyError, TypeError):
            return None


def _rate(result):
    return result["variants"]["full"]["images_per_second"]


def _best_torch(result):
    return min(result["speed_against"].values()) if result["speed_against"] else None


def _percent(key):
    return lambda result: 100 * result[key]


def _slowest(kind, other):
    """The lowest ratio of the networks of a part."""
    return lambda result: min(row[f"speed_against_{other}"] for row in result[kind].values())


def _warm(network):
    return lambda result: result["networks"][network]["warm"]["load_and_call"]


def _plan(result):
    """The largest error of the predicted times, percent."""
    shares = [row["predicted_of_measured"] for row in result["configs"].values()]
    return 100 * max(abs(share - 1) for share in shares)


def _packed(figure, choose):
    return lambda result: choose(row[figure] for name, row in result["sets"].items() if name.startswith("packed"))


HOPPER = ("h100", "h200")  # the same processor
LEFT_OUT = _percent("input_share_by_leaving_it_out")
TARGETS = (
    Target("D2MAE ViT-B/16, images/s", "vit_b", _rate, 7400, device=HOPPER),
    Target("the same, cuDNN attention", "vit_b_cudnn", _rate, 7400, device=HOPPER),
    Target("the same, Triton attention", "vit_b_triton", _rate, 7400, device=HOPPER),
    Target("D2MAE ViT-L/16, images/s", "vit_l", _rate, 3800, device=HOPPER),
    Target("the same, cuDNN attention", "vit_l_cudnn", _rate, 3800, device=HOPPER),
    Target("the same, Triton attention", "vit_l_triton", _rate, 3800, device=HOPPER),
    Target("ViT-B against the best PyTorch", "vit_b_torch", _best_torch, 1.15, unit="x", device=HOPPER),
    Target("ViT-B against PyTorch eager, batch 8", "vit_b", lambda r: r["speed_against"]["torch"],
           1, unit="x", device="cpu"),
    Target("demo model against PyTorch eager", "tiny", lambda r: r["speed_against"]["torch"],
           1, unit="x", device="cpu"),
    Target("the same without input, crop and degradation", "tiny",
           lambda r: r["variants"]["torch"]["median_ms"] / r["variants"]["prepared"]["median_ms"],
           1.1, unit="x", device="cpu"),
    Target("ViT-B, share of the best product's rate", "vit_b",
           lambda r: 100 * r["share_of_the_best_product"]["full"], 92, unit=" %", device="cpu"),
    Target("demo model, share of the best product's rate", "tiny",
           lambda r: 100 * r["share_of_the_best_product"]["full"], 60, unit=" %", device="cpu"),
    Target("ViT-B in bfloat16 against float32", "bfloat16", lambda r: r["float32_over_bfloat16"],
           1, unit="x", device="cpu"),
    Target("Swin-UNETR, a step against MONAI's", "swin_unetr",
           lambda r: r["speed"]["jax float32 against monai float32"], 1.5, unit="x"),
    Target("Swin-UNETR, sliding window against MONAI's", "sliding_window",
           lambda r: r["sliding_window"]["speed_against_monai"], 1.5, unit="x"),
    Target("slowest other network against timm", "backbones", _slowest("networks", "timm"), 1, unit="x"),
    Target("slowest other objective against PyTorch", "objectives", _slowest("objectives", "torch"), 1, unit="x"),
    Target("input, crop, degradation, by leaving them out", "vit_b", LEFT_OUT, 1, False, " %"),
    Target("the same, timed alone", "vit_b", _percent("input_share"), 1, False, " %"),
    Target("with SRAD-40, by leaving it out", "srad", LEFT_OUT, 5, False, " %"),
    Target("the same, timed alone", "srad", _percent("input_share"), 5, False, " %"),
    Target("blur search of 10,675 images", "blur_search", lambda r: r["seconds_for_10675_images"],
           12, False, " s", HOPPER),
    Target("a cached search", "blur_search", lambda r: r["lookup_seconds"], 0.1, False, " s"),
    Target("blur search, of the network's own rate", "blur_search",
           _percent("share_of_the_forward"), 85, unit=" %", device="cpu"),
    Target("imports", "start", lambda r: r["imports_s"], 1.5, False, " s"),
    Target("until the first step begins, warm cache", "start", lambda r: r["warm_begins_s"], 10, False, " s", "cpu"),
    Target("until the first step begins, cold", "start", lambda r: r["cold_begins_s"], 20, False, " s", HOPPER),
    Target("peak of batch 1,024, ViT-B", "memory", lambda r: r["measured_gb"], 80, False, " GB", HOPPER),
    Target("peak predicted by --dry_run, off by", "memory",
           lambda r: 100 * abs(r["predicted_over_measured"] - 1), 10, False, " %"),
    Target("load a network and encode an image", "first_call", _warm("MAE"), 3, False, " s"),
    Target("the same with a search of its level", "first_call", _warm("D2MAE"), 3, False, " s"),
    Target("load a classifier and predict an image", "first_call", _warm("classifier"), 5, False, " s"),
    Target("report of a classifier, 1,000 images", "reports", lambda r: r["classifier"]["seconds"], 20, False, " s"),
    Target("measures and report of a segmenter, 1,000 volumes", "reports",
           lambda r: r["segmenter"]["measures_s"] + r["segmenter"]["seconds"], 20, False, " s"),
    Target("linear probe of 90 epochs, passes over the set", "linear_probe",
           lambda r: r["cached_over_pass"], 3, False),
    Target("packed images of 224 pixels, one core, images/s", "input_rate",
           _packed("images_per_second", min), 2000),
    Target("stall of a step that takes 2,000 images/s", "input_rate", _packed("stall_percent", max), 1, False, " %"),
    Target("time predicted by --plan, off by at most", "plan_check", _plan, 15, False, " %"),
    Target("growth with the size of the set, resident", "growth",
           lambda r: r["growth_with_size"]["resident"], 1.1, False, "x"),
    Target("growth with the size of the set, streaming", "growth",
           lambda r: r["growth_with_size"]["streaming"], 1.1, False, "x"),
    Target("growth with steps and log lines", "growth", lambda r: r["late_over_early_steps"],
           1.1, False, "x"),
)  # fmt: skip


MACHINE = """
import json, jax
from benchmarks.common import device_name
from deblur_mae_jax.workdir import run_folder
print(json.dumps([jax.default_backend(), device_name(), run_folder.environment()]))
"""


def ask_machine() -> tuple[str, str, dict[str, Any]]:
    """Backend, name of the device, environment. Asked in another process: this one would keep a GPU's memory."""
    done = subprocess.run([sys.executable, "-c", MACHINE], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    backend, device, facts = json.loads(done.stdout.splitlines()[-1])
    return backend, device, facts


def run_part(name: str, command: list[str], path: Path, limit: float = 0) -> dict[str, Any]:
    """The result of the part, or the reason that there is none.

    limit: seconds after which the part is ended; 0 for none.
    """
    started = time.perf_counter()
    print(f"== {name}: python -m benchmarks.{' '.join(command)}", flush=True)
    environment = {**os.environ, **tuning.environment(os.environ)}
    if command[0] not in ALONE or "--torch" in command:
        environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    with tempfile.TemporaryFile("w+") as said:
        part = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.{command[0]}", *command[1:], f"--output={path}"],
            cwd=ROOT, env=environment, stderr=said, start_new_session=True,
        )  # fmt: skip
        try:
            status = part.wait(limit or None)
        except BaseException as error:
            os.killpg(part.pid, signal.SIGKILL)  # with the processes that it started
            part.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return {"failed": f"it took longer than {limit:g} s"}
        said.seek(0)
        lines = [line for line in said.read().splitlines() if line.strip()]
    print(f"   {time.perf_counter() - started:.0f} s", flush=True)
    if status == 0:
        return json.loads(path.read_text())
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)] or lines
    return {"failed": (errors[-1] if errors else f"status {status}")[:300]}


def table(results: dict[str, dict[str, Any]], device: str) -> str:
    """The targets, as Markdown."""
    lines = ["| what | target | figure | verdict |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(t.line(results.get(t.part), device))} |" for t in TARGETS]
    return "\n".join(lines)


def main() -> None:
    """Run the parts, then print and write the table. Missed targets do not change the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="parts, separated by commas")
    parser.add_argument("--limit", type=float, default=0, help="end a part after this many seconds; 0: never")
    parser.add_argument("--table", action="store_true", help="run nothing")
    a = parser.parse_args()
    backend, device, facts = ask_machine()
    known = parts(backend)
    asked = [name for name in a.only.split(",") if name] or list(known)
    if unknown := set(asked) - set(known):
        parser.error(f"--only={','.join(sorted(unknown))}: choose from {', '.join(known)}")
    folder = RESULTS / device
    results = {}
    for name in parts(backend, every=True):
        path = folder / f"{name}.json"
        if name in asked and not a.table:
            results[name] = run_part(name, known[name], path, a.limit)
        elif path.exists():
            results[name] = json.loads(path.read_text())
    packages = facts["packages"]
    head = (
        f"# Targets on {facts['device']}\n\n`python -m benchmarks`, JAX {packages['jax']}, "
        f"{facts['platform']}, {facts['processor']}. Ratios and shares are medians of rounds "
        "in which the variants took turns; each JSON of this folder holds its command, versions and commit.\n\n"
    )
    text = table(results, device)
    print("\n" + text)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(head + text + "\n")
    print(folder / "README.md")


if __name__ == "__main__":
    main()
