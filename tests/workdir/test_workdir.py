"""What a run leaves: its config, its checkpoints, and what happens when they are damaged or of version 0.1."""

import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny
from tiny_runs import classifier, command, go, launch, plain_run, run

from deblur_mae_jax import train
from deblur_mae_jax.config import fields_of, flat, upgrade
from deblur_mae_jax.data import loader
from deblur_mae_jax.data.source import BadImage
from deblur_mae_jax.errors import StoreError, UserError
from deblur_mae_jax.evaluators import classification, pretraining
from deblur_mae_jax.training import loop
from deblur_mae_jax.training.evaluator import Judgement
from deblur_mae_jax.workdir import checkpoint, lock, metric_writer, run_folder, weights
from deblur_mae_jax.workdir.mirror import Mirror
from deblur_mae_jax.workdir.run_folder import Workdir

ROOT = tiny.ROOT
# Configs that version 0.1 wrote, by the function of `deblur_mae_jax.config` that makes such a config now.
VERSION_0_1 = Path(__file__).parent / "version_0_1"


def test_a_used_workdir_with_another_config_is_refused():
    folder, _ = plain_run()
    with pytest.raises(UserError, match=r"task\.mask_ratio: 0.75 there, 0.5 now"):
        run(folder, optim__steps=6, task__mask_ratio=0.5)
    run(folder, optim__steps=6, checkpoint__keep_last=9, log__every_steps=3)  # what is free to change


def test_other_images_in_a_used_workdir_are_refused(tmp_path):
    run(tmp_path, optim__steps=1)
    record = json.loads((tmp_path / "dataset.json").read_text())
    record["fingerprint"] = "0123"
    (tmp_path / "dataset.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="fingerprint 0123"):
        run(tmp_path, optim__steps=1)


@pytest.mark.parametrize("name", sorted(path.stem for path in VERSION_0_1.glob("*.json")))
def test_a_config_that_version_0_1_wrote_is_understood(name):
    """Fields that such a run never used are gone, and what was unset is unset."""
    old = json.loads((VERSION_0_1 / f"{name}.json").read_text())
    values = upgrade(old)
    assert set(fields_of(name)) <= set(values)
    dropped = {key: value for key, value in old.items() if key not in values}
    assert not any(key.startswith(("optim.", "data.", "model.")) for key in dropped), dropped
    assert all(values[key] == value for key, value in old.items() if key in values and value not in (0, "", []))
    assert upgrade(values) == values
    without = {name: value for name, value in values.items() if name != "model.mlp_ratio"}  # of before this field
    assert upgrade(without) == values


def test_a_workdir_of_version_0_1_is_resumed(tmp_path):
    """Its config is another file, with the same meaning; the weights at the end are the same."""
    source, whole = plain_run()
    folder = tmp_path / "run"
    shutil.copytree(source, folder)
    shutil.rmtree(max((folder / "checkpoints").glob("step_*"), key=lambda p: int(p.name[5:])))
    (folder / "result.json").unlink()
    old = json.loads((VERSION_0_1 / "pretraining.json").read_text())
    assert set(old) != set(json.loads((folder / "config.json").read_text()))
    (folder / "config.json").write_text(json.dumps(old | {"checkpoint.keep_last": 9}))
    again = run(folder, optim__steps=6, checkpoint__keep_last=9)
    assert again.params_fingerprint == whole.params_fingerprint
    (folder / "config.json").write_text(json.dumps(old | {"optim.b1": 0.5}))
    with pytest.raises(UserError, match=r"optim\.b1: 0.5 there, 0.9 now"):
        run(folder, optim__steps=6)


@pytest.mark.slow
def test_a_classifier_of_version_0_1_is_loaded(tmp_path):
    import deblur_mae_jax as dm

    source, _ = classifier()
    folder = tmp_path / "run"
    shutil.copytree(source, folder)
    shutil.copy(VERSION_0_1 / "finetuning.json", folder / "config.json")
    image = np.arange(1600, dtype=np.uint8).reshape(40, 40)
    new, old = (dm.predict(dm.load(path), image) for path in (source, folder))
    np.testing.assert_array_equal(new, old)


def damage(folder, kind):
    files = sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size, reverse=True)
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


@pytest.mark.parametrize(
    "kind", ["flipped", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("truncated", "emptied"))]
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, kind, caplog):
    whole = run(tmp_path, optim__steps=6)
    folders = sorted((tmp_path / "checkpoints").glob("step_*"), key=lambda p: int(p.name[5:]))
    assert len(folders) == 2
    damage(folders[-1], kind)
    again = run(tmp_path, optim__steps=6)
    assert "is damaged" in caplog.text and folders[-1].name in caplog.text
    assert again.params_fingerprint == whole.params_fingerprint and again.checkpoint.exists()


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 9])
def test_a_checkpoint_that_could_not_be_read_is_not_deleted(tmp_path, monkeypatch, caplog, times):
    """A network drive may fail for a moment, or for longer."""
    whole = run(tmp_path, optim__steps=6)
    real, left = checkpoint._Manager.restore, [times]

    def restore(self, step, **arguments):
        if step == 6 and left[0]:
            left[0] -= 1
            raise OSError(116, "Stale file handle")
        return real(self, step, **arguments)

    monkeypatch.setattr(checkpoint._Manager, "restore", restore)
    again = run(tmp_path, optim__steps=6)
    assert again.params_fingerprint == whole.params_fingerprint and "Stale file handle" in caplog.text
    moved = list((tmp_path / "unreadable").glob("step_6_*/state"))
    assert len(moved) == (times == 9) and ("is damaged" in caplog.text) == (times == 9)


def test_a_folder_without_its_commit_file_is_no_checkpoint_to_go_on_from(tmp_path):
    """Else a warm start whose first save was killed would begin from random weights."""
    workdir = Workdir(tmp_path)
    (workdir.checkpoints / "step_5").mkdir(parents=True)
    for commit, complete in (("file", False), ("rename", True)):
        workdir.config.write_text(json.dumps({"checkpoint.commit": commit}))
        assert workdir.has_checkpoint() is complete
    workdir.config.write_text(json.dumps({"checkpoint.commit": "file"}))
    (workdir.checkpoints / "step_5" / "commit_success.txt").touch()
    assert workdir.has_checkpoint()


@pytest.mark.slow
def test_a_run_goes_on_from_an_older_checkpoint_with_its_best_weights(tmp_path, monkeypatch, caplog, capsys):
    """The scores rise until the newest checkpoint, which is then damaged, and fall when the run goes on."""
    scores = {"sign": 1, "step": 0}

    def evaluate(self, params):
        scores["step"] += 1
        return Judgement(scores["sign"] * scores["step"], {}, {})

    monkeypatch.setattr(classification.Evaluator, "evaluate", evaluate)
    settings = {"optim__epochs": 5.0, "checkpoint__every_epochs": 1.0, "report__audit": "identical"}
    go(tmp_path, **settings)
    folders = sorted((tmp_path / "checkpoints").glob("step_*"), key=lambda p: int(p.name[5:]))
    for folder in folders:
        best = json.loads((folder / "notes" / "metadata").read_text())["best"]["step"]
        assert (tmp_path / f"best_{best}").exists(), f"{folder.name} names best_{best}"
    damage(folders[-1], "truncated")
    scores["sign"] = -1
    assert go(tmp_path, **settings).finished and "is damaged" in caplog.text
    best = int(json.loads((folders[-2] / "notes" / "metadata").read_text())["best"]["step"])
    assert json.loads((tmp_path / "metrics.json").read_text())["best_step"] == best
    shutil.rmtree(tmp_path / f"best_{best}")  # somebody made room
    assert go(tmp_path, **settings).finished and f"of step {best}, are gone" in capsys.readouterr().err
    assert json.loads((tmp_path / "metrics.json").read_text())["best_step"] == 15


@pytest.mark.slow
def test_a_run_that_stopped_early_stays_over_without_its_best_weights(tmp_path, monkeypatch):
    scores = iter(range(100, 0, -1))
    monkeypatch.setattr(classification.Evaluator, "evaluate", lambda self, params: Judgement(next(scores), {}, {}))
    settings = {"optim__epochs": 9.0, "select__patience_epochs": 2.0, "report__audit": "identical"}
    before = go(tmp_path, **settings)
    assert before.finished and before.step < 27
    (best,) = tmp_path.glob("best_*")
    shutil.rmtree(best)
    after = go(tmp_path, **settings)
    assert after.finished and after.step == before.step
    assert json.loads((tmp_path / "metrics.json").read_text())["best_step"] == before.step


def test_best_weights_of_later_steps_are_forgotten(tmp_path):
    workdir = Workdir(tmp_path)
    for step in (4, 9):
        workdir.best(step).mkdir(parents=True)
    weights.forget_later_weights(workdir, 6)
    assert workdir.best(4).exists() and not workdir.best(9).exists()


def test_fields_that_choose_the_weights_of_a_run_cannot_change(tmp_path):
    for name, settings in (("quickstart", {}), ("finetune", {})):
        folder = tmp_path / name
        (folder / "checkpoints" / "step_3").mkdir(parents=True)
        run_folder.claim(Workdir(folder), tiny.config(name, report__every_epochs=1.0, **settings))
        run_folder.claim(Workdir(folder), tiny.config(name, report__every_epochs=1.0, log__every_steps=7))
    run_folder.claim(Workdir(tmp_path / "quickstart"), tiny.config("quickstart", report__every_epochs=2.0))
    with pytest.raises(UserError, match=r"report\.every_epochs: 1.0 there, 2.0 now"):
        run_folder.claim(Workdir(tmp_path / "finetune"), tiny.config("finetune", report__every_epochs=2.0))


def test_when_every_checkpoint_is_damaged_nothing_is_overwritten(tmp_path):
    run(tmp_path, optim__steps=2)
    for folder in (tmp_path / "checkpoints").glob("step_*"):
        damage(folder, "emptied")
    with pytest.raises(UserError, match=r"all checkpoints in .* are damaged"):
        run(tmp_path, optim__steps=2)


@pytest.mark.slow
def test_checkpoints_written_while_training_goes_on(tmp_path, caplog):
    _, plain = plain_run()
    settings = {"optim__steps": 6, "checkpoint__keep_last": 9, "checkpoint__async_save": "on"}
    whole = run(tmp_path, **settings)
    assert whole.params_fingerprint == plain.params_fingerprint and whole.checkpoint.exists()
    steps = sorted(int(p.name[5:]) for p in (tmp_path / "checkpoints").glob("step_*"))
    assert steps == [3, 6]
    sizes = json.loads((whole.checkpoint / checkpoint.CHECKSUMS).read_text())
    assert all(set(value) == {"bytes"} for value in sizes.values())
    damage(whole.checkpoint, "flipped")
    again = run(tmp_path, **settings)
    assert "step_6 is damaged" in caplog.text and again.params_fingerprint == whole.params_fingerprint
    damage(tmp_path / "checkpoints" / "step_6", "truncated")
    caplog.clear()
    assert run(tmp_path, **settings).params_fingerprint == whole.params_fingerprint
    assert "is not as it was saved" in caplog.text


def test_the_parameters_of_a_checkpoint_are_compared_with_their_hash(tmp_path, caplog):
    state = {"a": jax.numpy.arange(4.0)}
    manager = checkpoint.Checkpoints(tmp_path / "checkpoints", write="on")
    done = []
    for step in (1, 2):
        assert manager.save(step, state, {"step": step}, lambda step=step: done.append(step))
    assert done == [1] and manager.flush() and done == [1, 2]
    found = manager.restore_latest(state, lambda restored: restored.step == 1)
    assert found.step == 1 and "its parameters are not those that were saved" in caplog.text
    manager.close()


def test_files_of_other_programs_do_not_damage_a_checkpoint(tmp_path):
    state = {"a": jax.numpy.arange(4.0)}
    manager = checkpoint.Checkpoints(tmp_path / "checkpoints")
    manager.save(2, state, {"step": 2})
    (manager.path(2) / "state" / ".DS_Store").write_bytes(b"x")
    assert manager.restore_latest(state).step == 2
    manager.close()


def test_what_saves_left_that_were_killed_is_removed(tmp_path):
    left = tmp_path / "checkpoints" / "step_4.orbax-checkpoint-tmp"
    left.mkdir(parents=True)
    (left / "data").write_bytes(b"x" * 1000)
    checkpoint.Checkpoints(tmp_path / "checkpoints").close()
    assert not left.exists()


def test_an_exchange_with_a_process_that_is_gone_says_nothing_about_a_checkpoint(monkeypatch):
    from jax.experimental import multihost_utils

    def lost(value):
        raise ValueError("Gloo AllGather failed: Connection closed by peer")

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", lost)
    with pytest.raises(StoreError, match="another process of this run has ended"):
        checkpoint.on_all(lambda: None)


def test_processes_wait_until_they_see_the_same_checkpoints(tmp_path, monkeypatch):
    from jax.experimental import multihost_utils

    manager = checkpoint.Checkpoints(tmp_path / "checkpoints")
    state = {"a": jax.numpy.arange(4.0)}
    for step in (1, 2):
        manager.save(step, state, {"step": step})
    answers = [[1, -1], [1, -1], [2, 1]]  # of the other process, which sees the newest step later

    def gathered(own):
        other = np.full_like(own, -1)
        other[:2], other[-1] = answers.pop(0), 0
        return np.stack([own, other])

    monkeypatch.setattr(checkpoint.time, "sleep", lambda seconds: None)
    with monkeypatch.context() as patched:
        patched.setattr(multihost_utils, "process_allgather", gathered)
        patched.setattr(jax, "process_count", lambda: 2)
        patched.setattr(manager._manager, "reload", lambda: None)
        assert manager._steps_of_all() == [2, 1] and not answers
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "SAME_STEPS", -1.0)
        patched.setattr(multihost_utils, "process_allgather", lambda own: np.stack([own, np.full_like(own, -1)]))
        patched.setattr(jax, "process_count", lambda: 2)
        with pytest.raises(StoreError, match="see different checkpoints"):
            manager._steps_of_all()
    manager.close()


def test_a_process_that_does_not_see_the_workdir_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "SHARED", 0.2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with pytest.raises(UserError, match="process 1 does not see what process 0 writes"):
        run_folder.claim(run_folder.Workdir(tmp_path / "run"), tiny.config())


def test_a_checkpoint_that_one_process_could_not_read_is_set_aside(tmp_path, caplog):
    """The process notes it and ends the run, because the others wait for it; the next start finds the note."""
    state = {"a": jax.numpy.arange(4.0)}
    manager = checkpoint.Checkpoints(tmp_path / "checkpoints")
    for step in (1, 2):
        manager.save(step, state, {"step": step})
    checkpoint._mark_unreadable(manager.path(2), ValueError("no such block"))
    assert manager.restore_latest(state).step == 1
    assert "process 0 could not read it at an earlier start: no such block" in caplog.text
    assert len(list((tmp_path / "unreadable").glob("step_2_*"))) == 1
    manager.close()


def test_files_that_were_not_sent_to_a_store_are_never_removed(tmp_path):
    def start():
        mirror = Mirror.__new__(Mirror)
        mirror.remote, mirror.local, mirror.by_orbax = tmp_path / "store", tmp_path / "local", False
        mirror._sent, mirror._pulled, mirror.lost = {}, False, False
        mirror.pull()
        return mirror

    (tmp_path / "store").mkdir()
    mirror = start()
    newest = mirror.local / "checkpoints" / "step_500"
    newest.mkdir(parents=True)
    (newest / "data").write_text("500")
    start(), start(), start()
    assert len(list(tmp_path.glob("local-unsent*/checkpoints/step_500/data"))) == 1


@pytest.mark.parametrize("number,lives", [("own", False), (2**22 + 1, False), (1, True), ("x", False)])
def test_a_lock_on_this_machine_is_free_if_its_process_has_ended(number, lives):
    assert lock._lives(os.getpid() if number == "own" else number) == lives


@pytest.mark.slow
def test_a_checkpoint_without_its_commit_file_is_not_used(tmp_path):
    """As on a mounted bucket, where the folder of a checkpoint is there before it is complete."""
    settings = {"optim__steps": 6, "checkpoint__commit": "file"}
    whole = run(tmp_path, **settings)
    last = tmp_path / "checkpoints" / "step_6"
    assert (last / checkpoint.COMMITTED).exists()
    for name in (checkpoint.COMMITTED, checkpoint.CHECKSUMS):
        (last / name).unlink()
    shapes = jax.eval_shape(lambda: whole.params)
    newest = weights.load_params(Workdir(tmp_path), lambda: shapes)
    assert any(np.any(a != np.asarray(b)) for a, b in zip(*map(jax.tree.leaves, (newest, whole.params)), strict=True))
    again = run(tmp_path, **settings)
    assert again.params_fingerprint == whole.params_fingerprint and (last / checkpoint.COMMITTED).exists()
    starts = json.loads((tmp_path / "time.json").read_text())
    assert starts[1]["from"] == 3


@pytest.mark.slow
def test_the_way_of_committing_can_be_changed_between_starts(tmp_path):
    whole = run(tmp_path, optim__steps=6)
    for commit in ("file", "rename"):
        subprocess.run(["rm", "-r", str(tmp_path / "checkpoints" / "step_6")], check=True)
        again = run(tmp_path, optim__steps=6, checkpoint__commit=commit)
        assert again.params_fingerprint == whole.params_fingerprint
        assert json.loads((tmp_path / "time.json").read_text())[-1]["from"] == 3
    with pytest.raises(UserError, match=r"checkpoint.commit: unknown name 'copy'"):
        run(tmp_path / "other", optim__steps=1, checkpoint__commit="copy")


@pytest.mark.slow
def test_keep_last_and_keep_every(tmp_path):
    run(tmp_path, optim__steps=9, checkpoint__every_epochs=1 / 3, checkpoint__keep_every=4)
    steps = sorted(int(p.name[5:]) for p in (tmp_path / "checkpoints").glob("step_*"))
    assert steps == [4, 8, 9]


@pytest.mark.slow
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
    assert not json.loads((tmp_path / "result.json").read_text())["finished"]  # its state is not there
    assert (tmp_path / "checkpoints" / "step_3").exists()
    code, output = launch(tmp_path, optim__steps=6, checkpoint__every_epochs=1.0)
    assert code == 0 and "resuming at step 3" in output, output


def limit_files():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))


def test_one_tree_can_be_saved_beside_the_checkpoints(tmp_path):
    tree = {"a": jax.numpy.arange(4.0), "b": jax.numpy.ones((), bool)}
    weights.save_tree(tmp_path / "tree", tree)
    back = weights.load_tree(tmp_path / "tree", tree)
    jax.tree.map(np.testing.assert_array_equal, tree, back)


@pytest.mark.slow
def test_fields_of_a_users_own_are_kept_when_a_run_goes_on(tmp_path):
    """A data source of one's own reads its settings from `config.data`."""
    run(tmp_path, optim__steps=2, data__my_gain=2.0)
    assert run(tmp_path, optim__steps=2, data__my_gain=2.0).finished
    with pytest.raises(UserError, match=r"data\.my_gain: 2\.0 there, 3\.0 now"):
        run(tmp_path, optim__steps=2, data__my_gain=3.0)


def test_a_config_of_this_version_is_read_as_it_was_written():
    for name in ("unetpp:beit", "mae_thyroid", "finetune", "dae_ct_mr"):
        config = tiny.resolved(name)
        if "layer_scale" in config.model:
            config.model.layer_scale = 0.0  # no such factors, which is not the same as unset
        values = flat(config)
        assert upgrade(values) == values
    without = {name: value for name, value in values.items() if name != "model.mlp_ratio"}  # of before this field
    assert upgrade(without) == values


@pytest.mark.slow
def test_another_version_between_two_starts_is_said_and_kept(tmp_path, capsys):
    run(tmp_path, optim__steps=2)
    record = json.loads((tmp_path / "environment.json").read_text())
    record["packages"]["jax"] = "0.1.0"
    (tmp_path / "environment.json").write_text(json.dumps(record))
    run(tmp_path, optim__steps=2)
    assert "this run goes on with jax 0.1.0 before, " in capsys.readouterr().err
    (earlier,) = json.loads((tmp_path / "environment.json").read_text())["earlier"]
    assert earlier["packages"]["jax"] == "0.1.0"
    for text in ("{}", "[1]", "{", '{"packages": {}, "earlier": []}'):  # of another version, or damaged
        (tmp_path / "environment.json").write_text(text)
        run_folder.record_environment(Workdir(tmp_path))
        assert json.loads((tmp_path / "environment.json").read_text())["packages"]["jax"] == jax.__version__


def test_another_processor_is_said_where_it_computes(tmp_path, capsys, monkeypatch):
    workdir = Workdir(tmp_path)
    run_folder.record_environment(workdir)
    here = json.loads(workdir.environment.read_text())["processor"]
    assert "cores" in here
    monkeypatch.setattr(run_folder, "processor", lambda: "Another (family 1, model 2), 3 cores")
    run_folder.record_environment(workdir)
    assert f"goes on with processor {here} before, Another (family 1" in capsys.readouterr().err


def full(*_, **__):
    raise OSError(28, "No space left on device")


def test_metrics_that_do_not_fit_on_the_disk_do_not_change_how_a_run_ends(tmp_path, monkeypatch, capsys):
    close = metric_writer.Writer.close
    monkeypatch.setattr(metric_writer.Writer, "close", lambda self: full(close(self)))
    result = run(tmp_path, optim__steps=2)
    assert result.finished and "the last metrics could not be written: No space left" in capsys.readouterr().err
    assert (tmp_path / "time.json").exists()


def test_a_full_disk_does_not_hide_that_the_loss_is_not_finite(tmp_path, monkeypatch):
    monkeypatch.setattr(loop.Loop, "capture", full)
    with pytest.raises(train.NonFiniteLossError, match=r"the loss is .* could not be saved for a replay: .*No space"):
        run(tmp_path, optim__steps=40, optim__base_lr=1e32, optim__warmup_epochs=0.0)


def test_results_that_do_not_fit_on_the_disk_are_not_called_finished(tmp_path, monkeypatch, capsys):
    """The state is saved, so that the same command writes them once there is room."""
    with monkeypatch.context() as patched:
        patched.setattr(pretraining.Evaluator, "finish", full)
        first = run(tmp_path, optim__steps=2)
    assert first.unwritten == ("the report",) and "the report could not be written: No space" in capsys.readouterr().err
    assert not json.loads((tmp_path / "result.json").read_text())["finished"]
    again = run(tmp_path, optim__steps=2)
    assert again.unwritten == () and json.loads((tmp_path / "result.json").read_text())["finished"]
    assert again.params_fingerprint == first.params_fingerprint
    assert "compiled in" not in capsys.readouterr().err  # no step is left


def test_best_weights_that_do_not_fit_are_said_in_the_report(tmp_path, monkeypatch):
    config = tiny.resolved("from_scratch", optim__epochs=1.0)
    monkeypatch.setattr(weights, "save_tree", full)
    progress, notes = SimpleNamespace(print=lambda text: None), list[str]()
    run_ = SimpleNamespace(notes=notes)
    (Workdir(tmp_path).arrays / "best_2.orbax-checkpoint-tmp").mkdir(parents=True)  # of a save that was killed
    part = SimpleNamespace(best=None, main=True, workdir=Workdir(tmp_path), progress=progress, run=run_)
    loop.Loop.keep_best(part, 3, 0.5, config)
    assert (
        part.best is None and "the best weights, of step 3, could not be saved: " in notes[0] and "No space" in notes[0]
    )
    assert not list(Workdir(tmp_path).arrays.iterdir())


def test_the_folder_of_a_model_is_no_workdir(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(UserError, match=r"holds a config.json that no run has written"):
        run_folder.claim(Workdir(tmp_path), tiny.resolved("quickstart"))
    assert json.loads((tmp_path / "config.json").read_text()) == {"model_type": "vit"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"report__every_epochs": 0.0}, r"report\.every_epochs=0\.0 must be greater than 0"),
        ({"checkpoint__every_epochs": -1.0}, r"checkpoint\.every_epochs=-1\.0 must be greater than 0"),
        ({"optim__min_lr": -1e-3}, r"optim\.min_lr=-0\.001 must be 0 or greater"),
    ],
)
def test_settings_without_a_meaning_are_refused(tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path, **fields)


def test_a_drive_that_stays_away_ends_a_run_with_its_state_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(loader, "WAITS", ())
    whole, reads = loader.Loader._first_readable, itertools.count()

    def first_readable(self, number, read):
        if next(reads) > 150:
            raise BadImage("no image can be read any more")
        return whole(self, number, read)

    monkeypatch.setattr(loader.Loader, "_first_readable", first_readable)
    with pytest.raises(StoreError, match=r"no image can be read any more; step \d+ is saved. Start the same command"):
        run(tmp_path, optim__steps=60, data__store="streaming")
    monkeypatch.undo()
    step = max(int(path.name[5:]) for path in (tmp_path / "checkpoints").glob("step_*"))
    assert 0 < step < 60 and run(tmp_path, optim__steps=60, data__store="streaming").finished
