"""The loop, end to end: every config takes a step; runs resume bit-exactly; failures are clear."""

import functools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from tiny_runs import command, launch, lines, plain_run, run

from deblur_mae_jax import train
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.training import experiment

ROOT = Path(__file__).parent.parent
CONFIGS = [
    name for name in tiny.CONFIGS if tiny.identity(name).axes == 2 and not tiny.identity(name).starts_from_pretrained
]


@pytest.mark.parametrize("name", tiny.others_slow(CONFIGS, "quickstart"))
def test_every_config_takes_a_step(tmp_path, name):
    result = run(tmp_path, name, optim__steps=1)
    assert result.finished and result.step == 1 and result.checkpoint.exists()
    assert np.isfinite(list(lines(tmp_path).values())).all()


def test_what_a_workdir_holds():
    folder, result = plain_run()
    for name in (
        "config.json", "environment.json", "cost.json", "dataset.json", "parameters.txt",
        "skipped.csv", "metrics.jsonl", "result.json", "report/index.html", "report/loss.png",
    ):  # fmt: skip
        assert (folder / name).stat().st_size > 0, name
    assert sorted(lines(folder)) == list(range(1, 7))
    assert result.report == folder / "report" / "index.html"
    page = result.report.read_text()
    assert "data:image/png;base64" in page and "http" not in page  # opens offline
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["packages"]["jax"] == jax.__version__
    cost = json.loads((folder / "cost.json").read_text())
    ratio = cost["gflop_per_image_compiler"] / cost["gflop_per_image_formula"]
    assert 0.9 < ratio < 3  # toy sizes: elementwise work is a large share
    assert json.loads((folder / "dataset.json").read_text())["num_images"] == 24


def test_the_loss_falls(tmp_path):
    run(tmp_path, optim__steps=40, optim__base_lr=0.1, log__tensorboard=True)
    losses = list(lines(tmp_path).values())
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:3])
    assert list((tmp_path / "tensorboard").iterdir())


def test_resume_is_bit_exact(tmp_path):
    _, whole = plain_run()
    first = run(tmp_path, optim__steps=6, checkpoint__keep_last=9)
    assert first.params_fingerprint == whole.params_fingerprint
    for step in (4, 5, 6):
        for path in (tmp_path / "checkpoints").glob(f"step_{step}"):
            subprocess.run(["rm", "-r", str(path)], check=True)
    again = run(tmp_path, optim__steps=6, checkpoint__keep_last=9)
    assert again.params_fingerprint == whole.params_fingerprint
    assert sorted(lines(tmp_path)) == list(range(1, 7))


@pytest.mark.slow
def test_a_finished_run_is_not_trained_further(tmp_path):
    before = run(tmp_path, optim__steps=2)
    measured = (tmp_path / "metrics.jsonl").read_text()
    after = run(tmp_path, optim__steps=2)
    assert after.finished and after.params_fingerprint == before.params_fingerprint
    assert (tmp_path / "metrics.jsonl").read_text() == measured


@pytest.mark.slow
def test_accumulation_gives_the_same_parameters(tmp_path):
    _, whole = plain_run()
    folder, _ = plain_run()
    divided = run(tmp_path, optim__steps=6, optim__accum_steps=4)
    one, four = lines(folder), lines(tmp_path)
    np.testing.assert_allclose(list(one.values()), list(four.values()), rtol=1e-5)
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(divided.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_stores_give_the_same_losses(tmp_path):
    folder, _ = plain_run()
    run(tmp_path, optim__steps=6, data__store="streaming")
    np.testing.assert_allclose(list(lines(tmp_path).values()), list(lines(folder).values()), rtol=1e-5)


@pytest.mark.slow
def test_four_devices_give_the_losses_of_one(tmp_path):
    folder, _ = plain_run()
    code, output = launch(tmp_path, devices=4, optim__steps=6)
    assert code == 0, output
    np.testing.assert_allclose(list(lines(tmp_path).values()), list(lines(folder).values()), rtol=1e-5)


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(tmp_path):
    folder, _ = plain_run()
    port = random.Random(os.getpid()).randint(20000, 40000)
    arguments, environment = command(tmp_path, devices=2, optim__steps=6, optim__accum_steps=2)
    both = [
        subprocess.Popen(
            [*arguments, f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={i}"],
            env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    for process in both:
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output[-3000:]
    np.testing.assert_allclose(list(lines(tmp_path).values()), list(lines(folder).values()), rtol=1e-5)


def wait_for(workdir, step, process):
    path = Path(workdir) / "metrics.jsonl"
    for _ in range(1200):
        if path.exists() and any(s >= step for s in lines_so_far(path)):
            return
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.1)
    raise AssertionError("no progress")


def lines_so_far(path):
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)["step"]
        except ValueError:
            continue


LONG = {"optim__steps": 150, "checkpoint__every_epochs": 2.0, "data__num_images": 16}


@functools.cache
def long_run():
    import tempfile

    return run(Path(tempfile.mkdtemp()), **LONG).params_fingerprint


@pytest.mark.slow
def test_a_stopped_run_resumes_bit_exactly(tmp_path):
    arguments, environment = command(tmp_path, **LONG)
    process = subprocess.Popen(
        arguments, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(tmp_path, 40, process)
    process.send_signal(signal.SIGTERM)
    _, output = process.communicate(timeout=60)
    assert process.returncode == 143 and "stopped on request" in output, output[-2000:]
    assert "run the same command again" in output
    code, output = launch(tmp_path, **LONG)
    assert code == 0 and "resuming at step" in output, output
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["finished"] and result["params_fingerprint"] == long_run()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["moco_v3", "simclr", "diffmae", "convmae", "simmim", "simmim_swin", "dino_v2", "upernet"]
)
def test_a_killed_run_of_every_objective_goes_on_bit_exactly(tmp_path, name):
    # The three processes run the same programs, so only the first one compiles them.
    fields = {"optim__steps": 60, "checkpoint__every_epochs": 2.0, "compilation_cache": tmp_path / "xla"}
    code, output = launch(tmp_path / "whole", name, **fields)
    assert code == 0, output
    arguments, environment = command(tmp_path / "killed", name, **fields)
    process = subprocess.Popen(
        arguments, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    wait_for(tmp_path / "killed", 20, process)
    process.kill()
    process.communicate(timeout=60)
    code, output = launch(tmp_path / "killed", name, **fields)
    assert code == 0 and "resuming at step" in output, output
    whole, again = (json.loads((tmp_path / place / "result.json").read_text()) for place in ("whole", "killed"))
    assert again["finished"] and again["params_fingerprint"] == whole["params_fingerprint"]
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(("layouts", "batch", "kills", "terms"), [(((1, 1),), 8, 4, 2), (((2, 2), (1, 1)), 12, 3, 1)])
def test_random_kills_lose_nothing(monkeypatch, layouts, batch, kills, terms):
    """A share of `benchmarks/kills.py`: ten signals at random moments, on one process and on changing numbers."""
    from benchmarks import kills as benchmark

    monkeypatch.setattr(benchmark, "FIELDS", benchmark.FIELDS | {"optim__steps": 240, "report__every_epochs": 10.0})
    exact = len(layouts) == 1
    found = benchmark.series("test", random.Random(0), kills, terms, layouts, batch, exact)
    assert found["checkpoints lost"] == found["tracebacks"] == found["not in time"] == found["runs that differ"] == 0
    assert found["slowest_seconds_after_sigterm"] < benchmark.IN_TIME
    assert found["most_steps_redone"] <= found["save_every"] + 1


def test_a_loss_that_is_not_finite_is_captured_and_can_be_replayed(tmp_path):
    sys.path.insert(0, str(ROOT / "scripts"))
    import replay_step

    with pytest.raises(train.NonFiniteLossError) as caught:
        run(tmp_path, optim__steps=40, optim__base_lr=1e32, optim__warmup_epochs=0.0)
    [place] = (tmp_path / "failures").iterdir()
    record = json.loads((place / "capture.json").read_text())
    assert f"step {record['step']}" in str(caught.value) and str(place) in str(caught.value)
    assert len(record["indices"]) == len(record["names"]) == 8
    pairs = replay_step.replay(place)
    assert len(pairs) == 8 and set(dict(pairs)) == set(record["names"])
    assert not np.isfinite([loss for _, loss in pairs]).all()


def test_dry_run_leaves_nothing_behind(tmp_path, capsys):
    train.train_and_evaluate(tiny.config(), tmp_path / "nothing", dry_run=True)
    output = capsys.readouterr().err
    for part in ("parameters", "GFLOP per image", "memory per device", "whole run", "qkv"):
        assert part in output
    assert not (tmp_path / "nothing").exists()


def test_images_damaged_on_purpose_are_listed_and_the_run_goes_on(tmp_path):
    from test_reading import DAMAGE, write_images

    root = tmp_path / "images"
    write_images(root, 63)
    for name, make in DAMAGE.items():
        make(root / name)
    run(tmp_path / "run", data__name="image_folder", data__root=str(root), optim__steps=2)
    listed = (tmp_path / "run" / "skipped.csv").read_text().splitlines()[1:]
    assert sorted(line.split(",")[0] for line in listed) == sorted(DAMAGE)
    assert not any(np.isnan(v) for v in lines(tmp_path / "run").values())


@pytest.mark.slow
def test_real_images_train(tmp_path, real_data):
    root = real_data / "usanotai_tiny"
    result = run(
        tmp_path, "d2mae_ovary", data__name="manifest", data__root=str(root),
        data__split="train", optim__steps=3, image_size=32, model__patch_size=8,
    )  # fmt: skip
    assert result.finished
    assert json.loads((tmp_path / "dataset.json").read_text())["num_images"] == 306


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"task__name": "masked_recn"}, ["task.name", "masked_recon", "Did you mean"]),
        ({"model__name": "vit"}, ["model.name", "vit_mae"]),
        ({"data__name": "folder"}, ["data.name", "image_folder"]),
        ({"optim__name": "adam"}, ["optim.name", "adamw"]),
        ({"model__variant": "XL"}, ["model.variant", "'XL'", "Ti"]),
        ({"task__degrade": "blur.gausian"}, ["task.degrade", "Did you mean"]),
        ({"task__degrade": "blur.gaussian_levels(max_sigma=-1)"}, ["max_sigma=-1"]),
        ({"task__mask_ratio": 1.0}, ["task.mask_ratio=1.0", "[0, 1)"]),
        ({"task__mask_ratio": 0.99}, ["task.mask_ratio=0.99", "none of the 16 patches"]),
        ({"task__loss_on": "visible"}, ["task.loss_on", "masked"]),
        ({"task__blur_site": "disk"}, ["task.blur_site", "native"]),
        ({"task__target": "sharp"}, ["task.target", "clean"]),
        ({"model__patch_size": 5}, ["model.patch_size=5", "image_size=16", "4, 8"]),
        ({"model__in_chans": 2}, ["model.in_chans=2", "1 or 3"]),
        ({"model__conditioning": "film"}, ["model.conditioning", "token"]),
        ({"model__attention": "flash"}, ["model.attention", "cudnn"]),
        ({"model__dtype": "float16"}, ["model.dtype", "bfloat16"]),
        (
            {"task__degrade": "none"},
            ["model.conditioning=token", "needs a degradation with levels"],
        ),
        ({"optim__accum_steps": 3}, ["optim.batch_size=8", "accum_steps=3", "try 9"]),
        ({"optim__steps": 0, "optim__epochs": 1.0}, ["optim.warmup_epochs=40.0", "epochs=1"]),
        ({"optim__base_lr": 0.0}, ["optim.base_lr=0.0", "greater than 0"]),
        ({"optim__steps": -5}, ["optim.steps=-5", "0 (the length is in epochs) or greater"]),
        ({"optim__layer_decay": 0.0}, ["optim.layer_decay=0.0", "in (0, 1]"]),
        ({"optim__eps": 0.0}, ["optim.eps=0.0", "greater than 0"]),
        ({"log__every_steps": 0}, ["log.every_steps=0", "at least 1"]),
        ({"report__num_eval_images": 0}, ["report.num_eval_images=0", "at least 1"]),
        ({"data__crop_scale": (0.5,)}, ["data.crop_scale=(0.5,)", "two numbers (low, high)", "(0.2, 1.0)"]),
        ({"data__mean": ("abc",)}, ["data.mean=('abc',)", "must be numbers"]),
        ({"data__crop_scale": (0.5, 0.2)}, ["data.crop_scale=(0.5, 0.2)"]),
        ({"data__fraction": 0.0}, ["data.fraction=0.0", "(0, 1]"]),
        ({"data__check": "all"}, ["data.check", "pixels"]),
        (
            {"data__name": "image_folder", "data__root": ".", "data__bits16": "auto"},
            ["data.bits16", "minmax"],
        ),
        ({"data__store": "disk"}, ["data.store", "resident"]),
        ({"data__mean": (0.1, 0.2)}, ["data.mean=(0.1, 0.2)"]),
        ({"checkpoint__keep_last": 0}, ["checkpoint.keep_last=0"]),
        ({"checkpoint__commit": "later"}, ["checkpoint.commit", "rename"]),
        ({"data__mean": (127.5,)}, ["data.mean=(127.5,)", "divide values of the 0 to 255 scale by 255"]),
        ({"data__std": (0.0,)}, ["data.std=(0.0,)", "0 (excluded) to 1"]),
        ({"data__mean": (float("nan"),)}, ["data.mean=(nan,)"]),
        ({"data__max_side": -5}, ["data.max_side=-5", "at least 0"]),
        ({"optim__min_lr": 1.0}, ["optim.min_lr=1.0", "peak rate"]),
        ({"optim__base_lr": float("inf")}, ["optim.base_lr=inf", "finite"]),
        ({"model__depth": 0}, ["model.depth=0", "at least 1"]),
        ({"model__decoder_num_heads": 3}, ["decoder_embed_dim=", "decoder_num_heads=3"]),
        ({"model__decoder_embed_dim": 10, "model__decoder_num_heads": 2}, ["decoder_embed_dim=10", "divisible by 4"]),
        ({"init_parts": "encodr"}, ["init_parts='encodr'", "encoder"]),
        ({"data__name": "image_folder"}, ["config.data.root is not set"]),
        ({"data__name": "image_folder", "data__root": "/no/such"}, ["'/no/such' does not exist"]),
    ],
)
def test_bad_settings_are_one_clear_line(tmp_path, overrides, parts):
    with pytest.raises(UserError) as caught:
        run(tmp_path, **overrides)
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in parts), message


def test_the_initial_state_is_that_of_the_default_compiler():
    """It is compiled with less optimisation on a CPU."""
    run = experiment.build(tiny.config())
    plain = jax.jit(run.network.init)()
    for ours, theirs in zip(jax.tree.leaves(run.make_state().params), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-8)
