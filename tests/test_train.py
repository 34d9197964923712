"""The loop, end to end: every config takes a step; runs resume bit-exactly; failures are clear."""

import functools
import importlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from deblur_mae_jax import checkpoint, train
from deblur_mae_jax.errors import UserError

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(
    p.stem
    for p in (ROOT / "configs").glob("*.py")
    if p.stem not in ("__init__", "common", "transfer", "volumes")
    and not hasattr(importlib.import_module(f"configs.{p.stem}").get_config(), "search")
    and "volumes" not in p.read_text()
)


def run(workdir, name="quickstart", **overrides):
    return train.train_and_evaluate(tiny.config(name, **overrides), workdir)


@functools.cache
def plain_run():
    """One run of 6 steps that others are compared with; its folder is kept for the session."""
    import tempfile

    folder = Path(tempfile.mkdtemp())
    return folder, run(folder, optim__steps=6, checkpoint__keep_last=9)


def command(workdir, name="quickstart", devices=1, **overrides):
    flags = tiny.flags(name, **overrides)
    program = [sys.executable, str(ROOT / "main.py"), *flags, f"--workdir={workdir}"]
    return program, tiny.simulated(devices)


def launch(workdir, name="quickstart", devices=1, **overrides):
    arguments, environment = command(workdir, name, devices, **overrides)
    done = subprocess.run(
        arguments, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    return done.returncode, done.stderr


def lines(workdir, key="loss"):
    found = [json.loads(x) for x in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[key] for line in found if key in line}


@pytest.mark.parametrize("name", CONFIGS)
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


def test_a_finished_run_is_not_trained_further(tmp_path):
    before = run(tmp_path, optim__steps=2)
    after = run(tmp_path, optim__steps=2)
    assert after.finished and after.params_fingerprint == before.params_fingerprint


def test_accumulation_gives_the_same_parameters(tmp_path):
    _, whole = plain_run()
    folder, _ = plain_run()
    run(tmp_path, optim__steps=6, optim__accum_steps=4)
    one, four = lines(folder), lines(tmp_path)
    np.testing.assert_allclose(list(one.values()), list(four.values()), rtol=1e-5)
    assert whole.finished


def test_stores_give_the_same_losses(tmp_path):
    folder, _ = plain_run()
    run(tmp_path, optim__steps=6, data__store="streaming")
    np.testing.assert_allclose(
        list(lines(tmp_path).values()), list(lines(folder).values()), rtol=1e-5
    )


def test_four_devices_give_the_losses_of_one(tmp_path):
    folder, _ = plain_run()
    code, output = launch(tmp_path, devices=4, optim__steps=6)
    assert code == 0, output
    np.testing.assert_allclose(
        list(lines(tmp_path).values()), list(lines(folder).values()), rtol=1e-5
    )


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
    np.testing.assert_allclose(
        list(lines(tmp_path).values()), list(lines(folder).values()), rtol=1e-5
    )


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


@pytest.mark.parametrize(
    "which", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_killed_run_resumes_bit_exactly(tmp_path, which):
    arguments, environment = command(tmp_path, **LONG)
    kills = 0
    steps = (20, 60) if which == signal.SIGKILL else (40,)
    for step in steps:
        process = subprocess.Popen(
            arguments, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        wait_for(tmp_path, step, process)
        time.sleep(random.random() / 5)
        process.send_signal(which)
        _, output = process.communicate(timeout=60)
        if which == signal.SIGTERM:
            assert process.returncode == 0 and "stopped on request" in output, output[-2000:]
            assert "run the same command again" in output
        kills += process.returncode in (0, -signal.SIGKILL)
    assert kills == len(steps)
    code, output = launch(tmp_path, **LONG)
    assert code == 0 and "resuming at step" in output, output
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["finished"] and result["params_fingerprint"] == long_run()


def test_a_used_workdir_with_another_config_is_refused():
    folder, _ = plain_run()
    with pytest.raises(UserError, match=r"task\.mask_ratio: 0.75 there, 0.5 now"):
        run(folder, optim__steps=6, task__mask_ratio=0.5)
    run(
        folder, optim__steps=6, checkpoint__keep_last=9, log__every_steps=3
    )  # what is free to change


def test_other_images_in_a_used_workdir_are_refused(tmp_path):
    run(tmp_path, optim__steps=1)
    record = json.loads((tmp_path / "dataset.json").read_text())
    record["fingerprint"] = "0123"
    (tmp_path / "dataset.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="fingerprint 0123"):
        run(tmp_path, optim__steps=1)


def damage(folder, kind):
    files = sorted(
        (p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size, reverse=True
    )
    if kind == "truncated":
        files[0].write_bytes(files[0].read_bytes()[: files[0].stat().st_size // 2])
    elif kind == "flipped":
        # Orbax keeps files it no longer reads; one bad byte in each must be enough in those it does.
        for file in files:
            content = bytearray(file.read_bytes())
            if len(content) > 1000:
                content[len(content) // 2] ^= 0xFF
                file.write_bytes(bytes(content))
    else:
        for file in files:
            file.write_bytes(b"")


@pytest.mark.parametrize("kind", ["truncated", "flipped", "emptied"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, kind, caplog):
    whole = run(tmp_path, optim__steps=6)
    folders = sorted((tmp_path / "checkpoints").glob("step_*"), key=lambda p: int(p.name[5:]))
    assert len(folders) == 2
    damage(folders[-1], kind)
    again = run(tmp_path, optim__steps=6)
    assert "is damaged" in caplog.text and folders[-1].name in caplog.text
    assert again.params_fingerprint == whole.params_fingerprint and again.checkpoint.exists()


def test_when_every_checkpoint_is_damaged_nothing_is_overwritten(tmp_path):
    run(tmp_path, optim__steps=2)
    for folder in (tmp_path / "checkpoints").glob("step_*"):
        damage(folder, "emptied")
    with pytest.raises(UserError, match=r"all checkpoints in .* are damaged"):
        run(tmp_path, optim__steps=2)


def test_keep_last_and_keep_every(tmp_path):
    run(tmp_path, optim__steps=9, checkpoint__every_epochs=1 / 3, checkpoint__keep_every=4)
    steps = sorted(int(p.name[5:]) for p in (tmp_path / "checkpoints").glob("step_*"))
    assert steps == [4, 8, 9]


def test_a_full_disk_keeps_the_previous_checkpoint_and_says_so(tmp_path):
    """The limit on file size makes every large write fail, as a full disk does."""
    run(tmp_path, optim__steps=6, checkpoint__every_epochs=1.0)
    for path in (tmp_path / "checkpoints").glob("step_6"):
        subprocess.run(["rm", "-r", str(path)], check=True)
    assert (tmp_path / "checkpoints" / "step_3").exists()
    arguments, environment = command(tmp_path, optim__steps=6, checkpoint__every_epochs=1.0)
    done = subprocess.run(
        arguments, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240,
        preexec_fn=limit_files,
    )  # fmt: skip
    assert "could not be saved" in done.stderr and "step 3 is still there" in done.stderr
    assert done.returncode == 4
    assert (tmp_path / "checkpoints" / "step_3").exists()
    code, output = launch(tmp_path, optim__steps=6, checkpoint__every_epochs=1.0)
    assert code == 0 and "resuming at step 3" in output, output


def limit_files():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))


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
    from test_data import DAMAGE, write_images

    root = tmp_path / "images"
    write_images(root, 63)
    for name, make in DAMAGE.items():
        make(root / name)
    run(tmp_path / "run", data__name="image_folder", data__root=str(root), optim__steps=2)
    listed = (tmp_path / "run" / "skipped.csv").read_text().splitlines()[1:]
    assert sorted(line.split(",")[0] for line in listed) == sorted(DAMAGE)
    assert not any(np.isnan(v) for v in lines(tmp_path / "run").values())


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
        ({"data__name": "image_folder"}, ["config.data.root is not set"]),
        ({"data__name": "image_folder", "data__root": "/no/such"}, ["'/no/such' does not exist"]),
    ],
)
def test_bad_settings_are_one_clear_line(tmp_path, overrides, parts):
    with pytest.raises(UserError) as caught:
        run(tmp_path, **overrides)
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--config.task.mask_ration=0.5"], ["Did you mean", "mask_ratio"]),
        (["--config.optim.epoch=3"], ['Did you mean "epochs"']),
        (["--config.optim.batch_size=many"], ["batch_size"]),
        (["--config=configs/no_such.py"], ["no_such.py"]),
        (
            ["--config=configs/finetune_folder.py:mine"],
            ["unknown recipe 'mine'. Choices: paper, repo"],
        ),
        (["--config.data.name=image_folder", "--config.data.root=/no/such"], ["'/no/such'"]),
        (["extra"], ["unexpected argument 'extra'"]),
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


def test_one_tree_can_be_saved_beside_the_checkpoints(tmp_path):
    tree = {"a": jax.numpy.arange(4.0), "b": jax.numpy.ones((), bool)}
    checkpoint.save_tree(tmp_path / "tree", tree)
    back = checkpoint.load_tree(tmp_path / "tree", tree)
    jax.tree.map(np.testing.assert_array_equal, tree, back)
