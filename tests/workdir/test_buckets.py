"""Runs, weights, exports and packed sets at addresses: gs:// and s3:// stores on this machine."""

import csv
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from types import SimpleNamespace
from unittest.mock import MagicMock

import fake_gcs
import numpy as np
import pytest
import tiny
import tiny_runs
import tiny_tfds
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from deblur_mae_jax import api, train
from deblur_mae_jax.commands import inspect, predict
from deblur_mae_jax.data import buckets, dataset, packed, packing
from deblur_mae_jax.errors import NotSaved, StoreError, UserError
from deblur_mae_jax.export.export import export
from deblur_mae_jax.reports import comparison
from deblur_mae_jax.training.loop import Loop
from deblur_mae_jax.workdir import lock, mirror
from deblur_mae_jax.workdir.run_folder import Workdir

S3 = {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="session")
def servers():
    """A store for each kind of address. The libraries keep their connections, so one server serves all tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import boto3
        from moto.server import ThreadedMotoServer

    s3 = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    s3.start()
    host, port = s3.get_host_and_port()
    os.environ |= S3 | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    boto3.client("s3").create_bucket(Bucket="bucket")
    with fake_gcs.Server() as gcs:
        os.environ |= gcs.variables()
        yield gcs
    s3.stop()


class Memory(MemoryFileSystem):
    """fsspec's memory, under the names of a store."""

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + str(path).split("://", 1)[-1].strip("/") if "://" in str(path) else super()._strip_protocol(path)


STORES = ("gs", "s3", "memory")
# Whole runs take place in one store in `make test`, in the others when the slow tests run.
RUNS = pytest.mark.parametrize("store", tiny.others_slow(STORES, "gs"), indirect=True)


@pytest.fixture(params=STORES)
def store(request, servers, monkeypatch, tmp_path):
    """The address of a new folder in a store, and a home of its own for the copies."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    kind = request.param
    if kind == "memory":
        memory = Memory()
        monkeypatch.setattr(backend.fsspec_backend, "fs", lambda path: memory)
        kind = "s3"  # Orbax writes gs:// by itself, and not through fsspec
    address = f"{kind}://bucket/{tmp_path.name}-{time.time_ns()}"
    buckets.at(address, "test").mkdir(parents=True, exist_ok=True)
    return address


@pytest.fixture
def gs(servers, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    servers.refuse = lambda method, name: 0
    yield f"gs://bucket/{tmp_path.name}-{time.time_ns()}"
    servers.refuse = lambda method, name: 0


def names(address):
    return set(buckets.files(buckets.at(address, "test")))


def another_machine():
    """Forget every copy, as on a machine that has never seen the run."""
    shutil.rmtree(os.path.expanduser("~/.cache/deblur_mae_jax"), ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize("store", STORES, indirect=True)
def test_a_run_at_an_address_is_that_of_a_folder_and_goes_on_elsewhere(store, tmp_path):
    run = f"{store}/run"
    local = train.train_and_evaluate(tiny.config(optim__steps=6), tmp_path / "run")
    half = tiny.config(optim__steps=6)
    stopped = []

    def stop_at(step):
        def clock(self, at, saved=False):
            if at == step and saved and not stopped:
                stopped.append(at)
                os.kill(os.getpid(), signal.SIGTERM)

        return clock

    original = train.goodput.Clock.at
    train.goodput.Clock.at = stop_at(3)
    try:
        first = train.train_and_evaluate(half, run)
    finally:
        train.goodput.Clock.at = original
    assert first.stopped_by == signal.SIGTERM and first.step == 3
    another_machine()
    result = train.train_and_evaluate(half, run)
    assert result.finished and result.params_fingerprint == local.params_fingerprint
    stored = names(run)
    assert {"config.json", "metrics.jsonl", "result.json", "report/index.html", "skipped.csv"} <= stored
    assert any(name.startswith("checkpoints/step_6/") for name in stored)
    assert not stored & {"lock.json", ".lock", "dicom_key"}
    steps = [json.loads(line)["step"] for line in (buckets.at(run, "test") / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(steps) - {0}) == [1, 2, 3, 4, 5, 6]
    another_machine()
    again = api.load(run)
    assert again.weights_hash == api.load(tmp_path / "run").weights_hash


@pytest.mark.slow
def test_old_checkpoints_and_weights_leave_the_store(store):
    run = f"{store}/classifier"
    config = tiny.config("finetune", **tiny_runs.fine(optim__epochs=4.0, checkpoint__keep_last=1))
    train.train_and_evaluate(config, run)
    stored = names(run)
    steps = {name.split("/")[1] for name in stored if name.startswith("checkpoints/")}
    best = {name.split("/")[0] for name in stored if name.startswith("best_")}
    assert len(steps) == 1 and len(best) == 1
    assert {"predictions.csv", "metrics.json", "pretrained/weights.safetensors"} <= stored


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 40)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def put(folder, address):
    buckets.copy_tree(folder, buckets.at(address, "test"))


@pytest.mark.slow
def test_prediction_start_export_and_comparison_of_a_run_at_an_address(store, images, tmp_path):
    put(tiny_runs.classifier()[0], f"{store}/a")
    put(tiny_runs.classifier()[0], f"{store}/b")
    put(tiny_runs.pretraining(), f"{store}/pretraining")
    predict.run(f"{store}/a", str(images))
    predict.run(tiny_runs.classifier()[0], str(images), tmp_path / "local.csv")
    rows = lambda text: list(csv.DictReader(text.splitlines()))
    got = rows((buckets.at(store, "test") / "a" / "predictions_new.csv").read_text())
    want = rows((tmp_path / "local.csv").read_text())
    assert [row["image"] for row in got] == ["0.png", "1.png", "2.png"]
    for one, other in zip(got, want, strict=True):
        for name in one.keys() & other.keys():
            if name.startswith("p_"):
                assert float(one[name]) == pytest.approx(float(other[name]), abs=1e-5)
    predict.run(f"{store}/a", str(images), f"{store}/tables/new.csv")
    assert "tables/new.csv" in names(store)
    runs = [comparison.read_run(f"{store}/{name}") for name in ("a", "b")]
    assert [run.name for run in runs] == ["a", "b"] and comparison.pairs(runs)
    where = export(f"{store}/pretraining", "d2mae")
    assert str(where) == f"{store}/pretraining/export/d2mae"
    assert {"d2mae.safetensors", "certificate.json", "README.md"} <= names(str(where))
    export(tiny_runs.pretraining("mae_thyroid"), "mae", f"{store}/weights/mine.safetensors")
    assert {"mine.safetensors", "certificate.json"} <= names(f"{store}/weights")
    one = api.load(f"{store}/weights/mine.safetensors")
    assert one.network.kind == "reconstruct"
    config = tiny.config("finetune", **tiny_runs.fine(init_from=f"{store}/pretraining"))
    result = train.train_and_evaluate(config, tmp_path / "run")
    assert result.params_fingerprint == tiny_runs.classifier()[1].params_fingerprint


@pytest.mark.slow
@pytest.mark.parametrize("store", STORES, indirect=True)
def test_a_packed_set_at_an_address_gives_the_losses_of_the_folder(store, images, tmp_path):
    values = {"data__name": "image_folder", "data__root": str(images), "optim__batch_size": 3, "optim__steps": 3}
    packing.pack(tiny.resolved(**values), tmp_path / "packed", shard_mb=0.002)
    put(tmp_path / "packed", f"{store}/packed")
    expected = train.train_and_evaluate(tiny.config(**values), tmp_path / "folder")
    values |= {"data__name": "packed", "data__root": f"{store}/packed"}
    source = dataset.load_source(tiny.resolved(**values))
    place = next(buckets.place(f"{store}/packed", "sets").iterdir())
    assert {path.name for path in place.iterdir()} == {"index.parquet", "dataset.json"}  # no shard before it is read
    assert source.read(0).shape == (40, 40, 1) and len(list(place.glob("*.array_record"))) == 1
    result = train.train_and_evaluate(tiny.config(**values), f"{store}/run")
    assert result.params_fingerprint == expected.params_fingerprint
    another_machine()
    packed._reader.cache_clear()
    shard = next(iter(sorted(n for n in names(f"{store}/packed") if n.endswith(".array_record"))))
    (buckets.at(store, "test") / "packed" / shard).write_bytes(b"something else")
    with pytest.raises(UserError, match=r"data\.root: .* is not the shard that dataset\.json was written for"):
        dataset.load_source(tiny.resolved(**values)).read(0)


def test_a_prepared_set_of_tfds_at_an_address(store, tmp_path):
    pictures = [np.full((40, 40), 20 * i, np.uint8) for i in range(4)]
    tiny_tfds.prepare(tmp_path, pictures)
    put(tmp_path / "tiny_ultrasound", f"{store}/sets/tiny_ultrasound")
    (tmp_path / "tiny_ultrasound").rename(tmp_path / "moved")
    values = {"data__name": "tfds_source", "data__tfds_name": "tiny_ultrasound:1.0.0", "data__split": "train"}
    source = dataset.load_source(tiny.resolved(**values, data__root=f"{store}/sets"))
    assert sorted(int(source.read(i)[0, 0, 0]) for i in range(4)) == [0, 20, 40, 60]
    with pytest.raises(UserError, match=r"config\.(data\.root|data\.tfds_name): .*none"):
        dataset.load_source(tiny.resolved(**values, data__root=f"{store}/none"))


def test_inspection_writes_to_the_store(store, images):
    inspect.run(tiny.config(data__name="image_folder", data__root=str(images)), f"{store}/run")
    assert {"inspection/index.html", "inspection/skipped.csv"} <= names(f"{store}/run")


def test_the_lock_of_a_store(store, monkeypatch):
    monkeypatch.setattr(lock, "SILENCE", 0.4)
    monkeypatch.setattr(lock, "BEAT", 0.05)
    monkeypatch.setattr(lock, "SETTLE", 0.05)
    run, read = f"{store}/run", lock._read
    place = buckets.at(run, "test") / "lock.json"
    elsewhere = {"host": "other", "process": 7, "since": "2026-01-01", "boot": "b", "beat": 1}
    with lock.hold(Workdir(run)):
        assert read(place)["process"] == os.getpid()
        first = read(place)["beat"]
        deadline = time.monotonic() + 20
        while read(place)["beat"] == first and time.monotonic() < deadline:
            time.sleep(0.05)
        assert read(place)["beat"] > first
    assert not place.exists()
    place.write_text(json.dumps(elsewhere))  # of a machine that died
    with lock.hold(Workdir(run)):
        assert read(place)["process"] == os.getpid()
    place.write_text(json.dumps(elsewhere))
    reads = iter(range(1000))
    monkeypatch.setattr(lock, "_read", lambda path: read(path) and read(path) | {"beat": next(reads)})
    with (
        pytest.raises(UserError, match=f"'{run}' is in use by process 7 on host other since 2026-01-01"),
        lock.hold(Workdir(run)),
    ):
        pass


def test_a_store_that_takes_nothing_is_one_line_at_the_start(gs, servers):
    servers.refuse = lambda method, name: 403 if method != "GET" else 0
    with pytest.raises(UserError, match=rf"--workdir: '{gs}/run' cannot be written: .*may not write"):
        train.train_and_evaluate(tiny.config(), f"{gs}/run")


# TensorStore goes on with writes that nobody waits for after one has failed.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_store_that_is_full_later_ends_the_run_with_what_it_has_here(gs, servers, capsys):
    """The last checkpoint is not saved, which is exit code 4; training itself goes on to its end."""

    folder = gs.removeprefix("gs://bucket/")

    def full(method, name):
        started = any(f"{folder}/run/checkpoints/step_2/" in one for one in list(servers.objects))
        return 403 if method in ("POST", "PUT") and started and "lock" not in name else 0

    servers.refuse = full
    config = tiny.config(optim__steps=6, optim__batch_size=12)
    with pytest.raises(NotSaved, match="not every file could be copied to 'gs://bucket/"):
        train.train_and_evaluate(config, f"{gs}/run")
    text = capsys.readouterr().out
    assert "files could not be copied to gs://bucket/" in text and "they are in " in text
    servers.refuse = lambda method, name: 0
    again = train.train_and_evaluate(config, f"{gs}/run")
    text = capsys.readouterr().out
    assert again.checkpoint is not None and again.step == 6
    assert "the files of an earlier start that were not copied to the store are in " in text


def test_an_owner_that_lost_the_lock_stops_and_leaves_the_store_alone(gs, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.05)
    monkeypatch.setattr(lock, "SETTLE", 0.0)
    told = []
    monkeypatch.setattr(lock.os, "kill", lambda process, number: told.append(number))
    other = {"host": "other", "process": 7, "since": "2026-01-01", "boot": "b", "beat": 1}
    place = buckets.at(f"{gs}/run", "test") / "lock.json"
    with pytest.raises(NotSaved, match="not every file could be copied"), lock.hold(Workdir(f"{gs}/run")):
        place.write_text(json.dumps(other))
        deadline = time.monotonic() + 20
        while not told and time.monotonic() < deadline:
            time.sleep(0.02)
    assert told == [signal.SIGTERM] and json.loads(place.read_text()) == other


def test_a_full_disk_of_this_machine_is_no_store_that_fails():
    for number, kind in ((errno.ENOSPC, UserError), (errno.EIO, StoreError)):
        with pytest.raises(UserError) as raised, buckets.reaching("config.data.root", "gs://a/b", "copied"):
            raise OSError(number, "what the system says")
        assert type(raised.value) is kind


def test_a_run_whose_address_was_taken_over_saves_nothing(tmp_path):
    workdir = Workdir(tmp_path)
    loop = MagicMock(workdir=workdir, best=None)
    loop.checkpoints.by_size = False
    assert not workdir.taken_over
    workdir.mirror = SimpleNamespace(lost=True, push=lambda: False)
    assert Loop.save(loop, 3, None) is False and not loop.checkpoints.save.called
    Loop.keep_best(loop, 3, 0.9, None)
    assert loop.best is None and not list(tmp_path.iterdir())


def test_a_start_that_is_stopped_while_it_copies_changes_nothing_in_the_store(gs, monkeypatch):
    monkeypatch.setattr(lock, "SETTLE", 0.0)
    run = f"{gs}/run"
    with lock.hold(Workdir(run)):
        pass
    folder = Workdir(run)
    (folder.path / "metrics.jsonl").write_text("of last week")
    (buckets.at(run, "test") / "metrics.jsonl").write_text("of another machine")

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(mirror.Mirror, "_put_aside", stopped)
    with pytest.raises(KeyboardInterrupt), lock.hold(folder):
        pass
    assert (buckets.at(run, "test") / "metrics.jsonl").read_text() == "of another machine"


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_read_for_a_moment_is_not_removed(gs, servers):
    config = tiny.config(optim__steps=6)
    train.train_and_evaluate(config, f"{gs}/run")
    servers.refuse = lambda method, name: 403 if name.endswith("step_6/checksums.json") and method == "GET" else 0
    with pytest.raises(StoreError, match=r"checkpoint 'gs://.*step_6' cannot be read: .* Nothing was removed"):
        train.train_and_evaluate(config, f"{gs}/run")
    servers.refuse = lambda method, name: 0
    assert any(name.startswith("checkpoints/step_6/") for name in names(f"{gs}/run"))


@pytest.mark.slow
def test_what_an_interrupted_copy_left_does_not_make_a_checkpoint_damaged(servers, monkeypatch, tmp_path):
    """Names of array files are random, so those of a copy that was killed stay beside the new ones."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    run = f"s3://bucket/left-{time.time_ns()}"
    (buckets.at(run, "test") / "checkpoints" / "step_6" / "state" / "d" / "left_over").write_text("half")
    first = train.train_and_evaluate(tiny.config(optim__steps=6), run)
    assert not [name for name in names(run) if "left_over" in name]
    another_machine()
    again = train.train_and_evaluate(tiny.config(optim__steps=6), run)
    assert again.params_fingerprint == first.params_fingerprint


class Broken:
    """A file that cannot be read to its end."""

    def __init__(self):
        self.reads = 0

    def open(self, mode):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def read(self, size):
        self.reads += 1
        if self.reads > 1:
            raise KeyboardInterrupt
        return b"half"


def test_an_interrupted_copy_does_not_replace_what_is_there(store, tmp_path):
    if isinstance(backend.fsspec_backend.fs(store), Memory):
        pytest.skip("fsspec's memory stores a file when it is opened")
    for target in (buckets.at(store, "test") / "file", tmp_path / "file"):
        target.write_bytes(b"whole")
        with pytest.raises(KeyboardInterrupt):
            buckets.copy(Broken(), target)
        assert target.read_bytes() == b"whole"


def test_folders_that_a_console_made_are_no_files(gs, servers):
    folder = gs.removeprefix("gs://bucket/")
    with servers.lock:
        for name in (f"{folder}/run/", f"{folder}/run/a/", f"{folder}/run/a/file"):
            servers.put(name, b"")
    assert names(f"{gs}/run") == {"a/file"}


@RUNS
def test_an_export_does_not_overwrite_a_run_at_its_address(store):
    put(tiny_runs.pretraining("mae_thyroid"), f"{store}/run")
    before = (buckets.at(store, "test") / "run" / "config.json").read_text()
    with pytest.raises(UserError, match=r"--output: '.*/run' already holds a config\.json that no export wrote"):
        export(tiny_runs.pretraining("mae_thyroid"), "timm", f"{store}/run")
    assert (buckets.at(store, "test") / "run" / "config.json").read_text() == before
    export(tiny_runs.pretraining("mae_thyroid"), "timm", f"{store}/out")
    export(tiny_runs.pretraining("mae_thyroid"), "timm", f"{store}/out")  # its own export may be written again
    trained = api.load(f"{store}/run")
    assert str(export(trained, "timm")) == f"{store}/run/export/timm"
    for name in ("run_v1.2", "vit_base.fb_in22k"):
        put(tiny_runs.pretraining("mae_thyroid"), f"{store}/{name}")
        assert api.load(f"{store}/{name}").weights_hash == trained.weights_hash
    assert api.load(f"{store}/out/model.safetensors").weights_hash == api.load(f"{store}/out").weights_hash


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hf://name/run", r"of the kind hf://, which cannot be read\. Choices: gs://, s3://"),
        ("ftp://host/run", "ftp://"),
    ],
)
def test_other_kinds_of_addresses_are_one_line(address, message):
    for call in (lambda: Workdir(address), lambda: mirror.opened(address, "--workdir"), lambda: api.load(address)):
        with pytest.raises(UserError, match=message):
            call()


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(buckets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"gs:// needs gcsfs, which is not installed: pip install '\.\[cloud\]'"):
        Workdir("gs://bucket/run")


def test_several_processes_and_a_store_that_orbax_does_not_know(monkeypatch):
    monkeypatch.setattr(mirror.jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="--workdir: 's3://bucket/run': several processes cannot save to this kind"):
        Workdir("s3://bucket/run")


def test_what_is_not_there_is_named(store, images):
    for call in (
        lambda: api.load(f"{store}/no_such_run"),
        lambda: api.load(f"{store}/no_such.safetensors"),
        lambda: predict.run(f"{store}/no_such_run", str(images)),
    ):
        with pytest.raises(UserError, match=r"'(gs|s3)://bucket/.*/no_such.*' does not exist"):
            call()
    with pytest.raises(UserError, match=r"config\.data\.root: .* is not a packed set: it holds no dataset\.json"):
        dataset.load_source(tiny.resolved(data__name="packed", data__root=f"{store}/none"))
    with pytest.raises(UserError, match=r"config\.data\.root: .*must be a path of this machine\. Pack a set"):
        dataset.load_source(tiny.resolved(data__name="image_folder", data__root=f"{store}/none"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gs", "s3"])
def test_a_killed_run_at_an_address_goes_on(servers, tmp_path, kind):
    """Kill at a random moment of the life, again and again, each time on a machine that has seen nothing."""
    address = f"{kind}://bucket/killed-{time.time_ns()}"
    flags = tiny.flags(optim__steps=12, checkpoint__every_epochs=1.0, compilation_cache=f"{address}-xla")
    environment = os.environ | {"PYTHONPATH": str(tiny.ROOT)}
    environment.pop("JAX_COMPILATION_CACHE_DIR")
    command = lambda workdir: [sys.executable, "main.py", *flags, f"--workdir={workdir}"]
    run = lambda workdir, home: subprocess.Popen(
        command(workdir), cwd=tiny.ROOT, env=environment | {"HOME": str(tmp_path / home)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    whole = run(tmp_path / "whole", "home")
    expected, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, expected
    random, kills = np.random.default_rng(0), 0
    for attempt in range(4):
        process = run(address, f"home{attempt}")
        try:
            process.communicate(timeout=float(random.uniform(4, 14)))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
    assert kills
    process = run(address, "home0")  # a machine that is known, whose lock was left
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    code = lambda text: text.split("parameter hash ")[1][:8]
    assert code(text) == code(expected)
    assert any("train_step" in name for name in names(f"{address}-xla"))


@pytest.mark.slow
def test_two_processes_at_an_address_give_the_losses_of_one(servers, tmp_path):
    """Every process writes its arrays to the store, and has a home of its own, as on two machines."""
    address, fields = f"gs://bucket/two-{time.time_ns()}", {"optim__steps": 6, "optim__accum_steps": 2}
    train.train_and_evaluate(tiny.config(**fields), tmp_path / "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for attempt in range(2):  # the second start has nothing left to do
        started = [
            subprocess.Popen(
                [sys.executable, "main.py", *tiny.flags(**fields), f"--workdir={address}",
                 f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={i}"],
                cwd=tiny.ROOT, env=tiny.simulated(1) | {"HOME": str(tmp_path / f"home{attempt}{i}")},
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )
            for i in range(2)
        ]  # fmt: skip
        ended = [(process.communicate(timeout=300)[1], process.returncode) for process in started]
        assert [code for _, code in ended] == [0, 0], ended
    lines = lambda text: {line["step"]: line["loss"] for line in map(json.loads, text.splitlines()) if "loss" in line}
    two = lines((buckets.at(address, "test") / "metrics.jsonl").read_text())
    one = lines((tmp_path / "one" / "metrics.jsonl").read_text())
    assert two.keys() == one.keys()
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=1e-5)
    assert any("ocdbt.process_1" in name for name in names(address))
