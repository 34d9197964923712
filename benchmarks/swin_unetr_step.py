"""Time a training step of Swin-UNETR: ours in float32 and bfloat16 against MONAI's in PyTorch, and the memory of each.

    python -m benchmarks.swin_unetr_step --side=64 --batch=1 --feature=12
    python -m benchmarks.swin_unetr_step --side=96 --batch=2 --feature=48 --remat      # one GPU

A step is the forward pass, Dice and cross-entropy, the backward pass and AdamW, for a segmentation with 14 classes
(BTCV), on cubes that are already in memory. Every variant runs in a separate process, so that its peak memory can be
measured. The variants take turns, one step each, so that a machine that slows down slows all of them. Ratios are
medians over rounds. On a CPU the peak is the resident memory of the process, including its libraries, and the memory
before the step and the peak after compilation are reported too; on a GPU it is that of the device.
Needs PyTorch and MONAI for MONAI's variants (`pip install -e ".[pytorch]"`). Writes JSON under
benchmarks/results/.
"""

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

CLASSES = 14
LEARNING_RATE = 1e-4
OURS = ("jax float32", "jax bfloat16")
THEIRS = ("monai float32", "monai bfloat16")


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=64, help="voxels of a cube's side")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--feature", default="12", help="12, 24 or 48")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--remat", action="store_true", help="also ours with recomputed activations")
    parser.add_argument("--skip", default="", help="variants to leave out, separated by commas")
    parser.add_argument("--output", default="")
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def peak_rss():
    """MiB of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def like_jax():
    """Let PyTorch's float32 products on a GPU use TF32, as JAX's do."""
    import torch

    if torch.cuda.is_available():  # on a CPU both compute in float32
        torch.set_float32_matmul_precision("high")


def cubes(arguments):
    """The same cubes and labels for every variant."""
    import numpy as np

    rng = np.random.default_rng(0)
    shape = (arguments.batch, *(arguments.side,) * 3)
    return rng.standard_normal((*shape, 1), np.float32), rng.integers(0, CLASSES, shape, np.int32)


def make_ours(arguments, dtype, remat):
    """(step, device peak in MiB or None, facts)."""
    import jax
    import jax.numpy as jnp

    from deblur_mae_jax import sharding
    from deblur_mae_jax.models import swin_unetr
    from deblur_mae_jax.performance import tuning
    from deblur_mae_jax.tasks import segment
    from deblur_mae_jax.training import optimizer as optim
    from deblur_mae_jax.training import train_step

    model = swin_unetr.Model(
        arguments.feature, num_classes=CLASSES, image_size=arguments.side, dtype=dtype, remat=remat
    )
    images, labels = cubes(arguments)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *images.shape[1:])))["params"]
    schedule = lambda step: LEARNING_RATE
    tx = optim.adamw(schedule, b2=0.999, weight_decay=1e-5, decay_on="all")
    step = train_step.make_train_step(
        lambda arrays, part, keys: part,
        segment.make(model),
        tx,
        schedule,
        0,
        sharding.Division(sharding.make_mesh()),
    )
    state = train_step.create_state(params, tx)
    batch = {"inputs": jnp.asarray(images)[None], "mask": jnp.asarray(labels)[None]}
    started = time.monotonic()
    program = jax.jit(step, donate_argnums=0).lower(state, {}, batch).compile()
    tuning.give_back_memory()  # as training does
    memory = program.memory_analysis()
    facts = {
        "compile_s": time.monotonic() - started,
        "temporaries_mib": memory.temp_size_in_bytes / 2**20 if memory else None,
        "gflop_per_cube_formula": swin_unetr.flops_per_image(model) / 1e9,
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
    }
    kept = [state]

    def run():
        kept[0], out = program(kept[0], {}, batch)
        jax.block_until_ready((kept[0], out))
        return float(out["loss"])

    def device_peak():
        found = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        return found / 2**20 if found else None

    return run, device_peak, facts


def make_theirs(arguments, dtype):
    """The same in PyTorch with MONAI's network and loss."""
    import contextlib

    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.losses import DiceCELoss
        from monai.networks.nets import SwinUNETR

    like_jax()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = SwinUNETR(1, CLASSES, feature_size=int(arguments.feature)).to(device)
    images, labels = cubes(arguments)
    x = torch.from_numpy(images).movedim(-1, 1).contiguous().to(device)
    y = torch.from_numpy(labels)[:, None].to(device)
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True)
    fused = {"fused": True} if device == "cuda" else {}
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, betas=(0.9, 0.999), weight_decay=1e-5, **fused)

    def run():
        half = dtype == "bfloat16"
        with torch.autocast(device, torch.bfloat16) if half else contextlib.nullcontext():
            out = model(x)
        loss = loss_of(out.float(), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return float(loss)

    def device_peak():
        return torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None

    facts = {
        "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    return run, device_peak, facts


def work(arguments):
    """Run one variant: take a step for every line on standard input and print its seconds and loss."""
    from benchmarks.common import forget_peak, resident_bytes

    library, dtype, *rest = arguments.worker.split()
    if library == "jax":
        import jax

        jax.devices()
        before = peak_rss()
        run, device_peak, facts = make_ours(arguments, dtype, bool(rest))
    else:
        import monai  # noqa: F401
        import torch  # noqa: F401

        before = peak_rss()
        run, device_peak, facts = make_theirs(arguments, dtype)
    run()  # warm-up
    if device_peak() is None:
        forget_peak()  # the peak of the steps, without that of the compiler
    print(json.dumps(facts), flush=True)
    wall, busy = 0.0, 0.0
    for line in sys.stdin:
        if line.strip() == "end":
            break
        started, begun = time.perf_counter(), time.process_time()
        loss = run()
        seconds = time.perf_counter() - started
        wall, busy = wall + seconds, busy + time.process_time() - begun
        print(json.dumps([seconds, loss]), flush=True)
    steps = resident_bytes("VmHWM") / 2**20
    print(json.dumps({
        "before_mib": before, "peak_mib": peak_rss(), "peak_of_steps_mib": steps, "device_peak_mib": device_peak(),
        "cores_busy": busy / wall if wall else None,
    }))  # fmt: skip


def started(command, environment):
    """A worker. What it says on its standard error goes to a file: a full pipe would stop it."""
    said = tempfile.TemporaryFile("w+")  # noqa: SIM115, it is open as long as the worker is
    worker = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, env=environment
    )
    worker.said = said
    return worker


def answer(process, name):
    """The next line of JSON of a worker."""
    line = process.stdout.readline()
    if not line:
        process.wait()
        process.said.seek(0)
        raise SystemExit(f"{name} ended early: {process.said.read()[-800:]}")
    return json.loads(line)


def main():
    """Measure, print a table, write JSON."""
    arguments = parse()
    if arguments.worker:
        work(arguments)
        return
    import jax

    from deblur_mae_jax.performance import tuning
    from deblur_mae_jax.workdir import run_folder

    left_out = {name.strip() for name in arguments.skip.split(",")}
    names = [*OURS, *(f"{name} remat" for name in OURS if arguments.remat), *THEIRS]
    names = [name for name in names if name not in left_out]
    # Without the huge pages of main.py: where large processes take turns, they cost more than they bring.
    environment = {k: v for k, v in os.environ.items() if k != tuning.ALLOCATOR[0]}
    environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    options = [f"--{k}={getattr(arguments, k)}" for k in ("side", "batch", "feature")]
    workers = {}
    for name in names:
        command = [sys.executable, "-W", "ignore", __file__, *options, f"--worker={name}"]
        workers[name] = started(command, environment)
        # Start them one after the other, because compiling during another variant's warm-up would slow both.
        workers[name].facts = answer(workers[name], name)
    times = {name: [] for name in names}
    losses = {}
    for _ in range(arguments.rounds):
        for name, worker in workers.items():
            worker.stdin.write("step\n")
            worker.stdin.flush()
            seconds, losses[name] = answer(worker, name)
            times[name].append(seconds)
    rows = {}
    for name, worker in workers.items():
        worker.stdin.write("end\n")
        worker.stdin.flush()
        memory = answer(worker, name)
        worker.wait()
        median = statistics.median(times[name])
        rows[name] = {
            "median_ms": 1e3 * median,
            "min_ms": 1e3 * min(times[name]),
            "cubes_per_second": arguments.batch / median,
            "loss": losses[name],
            **memory,
            **worker.facts,
        }
    against = {
        f"{one} against {other}": statistics.median([b / a for a, b in zip(times[one], times[other], strict=True)])
        for one in names
        if one.startswith("jax")
        for other in names
        if other.startswith("monai") or (one == OURS[1] and other == OURS[0])
    }
    for name, row in rows.items():
        peak = row["device_peak_mib"] or row["peak_mib"]
        print(
            f"{name:20s} {row['median_ms']:9.0f} ms  {row['cubes_per_second']:7.2f} cubes/s  "
            f"peak {peak:7.0f} MiB (before the step {row['before_mib']:.0f}, after compilation "
            f"{row['peak_of_steps_mib']:.0f})"
        )
    for name, ratio in against.items():
        print(f"{name}: {ratio:.2f}x")
    versions = {}
    for package in ("torch", "monai"):
        try:
            versions[package] = __import__("importlib.metadata").metadata.version(package)
        except Exception:  # not installed
            versions[package] = None
    result = {
        "command": "python -m benchmarks.swin_unetr_step "
        + " ".join(a for a in sys.argv[1:] if not a.startswith("--output")),
        "environment": run_folder.environment() | versions,
        **{k: getattr(arguments, k) for k in ("side", "batch", "feature", "rounds")},
        "variants": rows,
        "speed": against,
    }
    kind = re.sub(r"[^A-Za-z0-9]+", "_", jax.devices()[0].device_kind).strip("_").lower()
    stem = f"swin_unetr_step_{kind}_{arguments.side}_{arguments.feature}.json"
    path = Path(arguments.output or ROOT / "benchmarks" / "results" / stem)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(path)


if __name__ == "__main__":
    main()
