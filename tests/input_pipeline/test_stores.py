"""Both stores give the same examples in the same order, whatever is degraded and where."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image

from deblur_mae_jax import network as networks
from deblur_mae_jax.data import loader
from deblur_mae_jax.data.source import BadImage, Source
from deblur_mae_jax.input_pipeline import stores
from deblur_mae_jax.input_pipeline.keys import stream_keys
from deblur_mae_jax.training import experiment

DEGRADE = {
    "levels": "blur.gaussian_levels(max_sigma=2.2, step=0.2)",
    "stored": "speckle.srad(4, 0.1)|blur.median(3)",
    "motion": "blur.motion(5)",
    "noise": "noise.gaussian_noise(0.1)",
    "none": "none",
}


def prepared(store, degrade, step=3, **overrides):
    """The network's input of one step, exactly as the training step makes it."""
    config = tiny.config(
        data__store=store,
        task__degrade=degrade,
        model__conditioning="none",
        **{"data__num_images": 12, "optim__batch_size": 6, **overrides},
    )
    run = experiment.build(config)
    assert run.store.name == store
    batch = jax.tree.map(lambda x: x[0], next(run.store.batches(step, 1)))
    keys = stream_keys(0, step, jnp.arange(6))
    return jax.jit(lambda arrays, b: run.network.inputs.train(run.store.gather(arrays, b), keys))(
        run.store.arrays, batch
    )


@pytest.mark.parametrize("site", ["native", "network"])
@pytest.mark.parametrize("name", tiny.others_slow(DEGRADE, "levels", "stored"))
def test_resident_and_streaming_give_the_same_pixels(name, site):
    first = prepared("resident", DEGRADE[name], task__blur_site=site)
    second = prepared("streaming", DEGRADE[name], task__blur_site=site)
    assert set(first) == set(second)
    for key in first:
        np.testing.assert_array_equal(first[key], second[key])
    differ = float(abs(first["inputs"] - first["targets"]).max())
    assert differ == 0 if name == "none" else differ > 0.05


def test_worker_processes_give_the_same_pixels():
    first = prepared("streaming", "none")
    second = prepared("streaming", "none", data__num_workers=1)
    np.testing.assert_array_equal(first["inputs"], second["inputs"])


@pytest.mark.parametrize("workers", [0, 1])
def test_the_run_is_told_what_its_readers_skip(tmp_path, workers):
    rng = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(rng.integers(0, 255, (20, 24), np.uint8)).save(tmp_path / f"{number}.png")
    config = tiny.config(
        data__name="image_folder", data__root=str(tmp_path), data__store="streaming", data__num_workers=workers,
        optim__batch_size=6,
    )  # fmt: skip
    run = experiment.build(config)
    told = []
    run.loader.on_failure = told.append
    (tmp_path / "2.png").write_bytes(b"")
    (tmp_path / "4.png").unlink()
    for batch in run.store.batches(0, 2):
        assert jax.tree.leaves(batch)[0].shape[:2] == (1, 6)
    assert sorted(item.name for item in told) == ["2.png", "4.png"]
    assert run.loader.failed == told and all(item.reason for item in told)


def test_each_step_and_example_has_its_own_draws():
    a, b = prepared("resident", "none", 0), prepared("resident", "none", 1)
    assert not np.array_equal(a["inputs"], b["inputs"])
    keys = stream_keys(0, 5, jnp.arange(8))
    flat = [tuple(k) for name in keys for k in np.asarray(jax.random.key_data(keys[name]))]
    assert len(set(flat)) == len(flat)
    later = stream_keys(0, 5, jnp.arange(4, 8))
    np.testing.assert_array_equal(jax.random.key_data(later["mask"]), jax.random.key_data(keys["mask"])[4:])


@pytest.mark.parametrize("channels", tiny.others_slow([1, 3], 1))
def test_a_batch_has_the_channels_of_the_network(channels):
    out = prepared("resident", DEGRADE["levels"], model__in_chans=channels)
    assert out["inputs"].shape == out["targets"].shape == (6, 16, 16, channels)
    assert abs(float(out["targets"].mean())) < 3 and 0.2 < float(out["targets"].std()) < 3


@pytest.mark.parametrize("degrade", ["levels", "none"])
def test_a_degraded_input_is_gray_and_the_target_keeps_its_colours(degrade):
    config = tiny.resolved(
        "d2mae_thyroid", model__in_chans=3, task__degrade=DEGRADE[degrade], model__conditioning="none",
        data__mean=(0.5,), data__std=(0.25,),
    )  # fmt: skip
    inputs = networks.build(config).inputs
    colours = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3)), jnp.uint8)
    examples = {"image": colours, "size": jnp.full((2, 2), 40)}
    batch = inputs.evaluate(examples, stream_keys(0, 0, jnp.arange(2)))
    apart = lambda x: float(jnp.abs(x - x.mean(axis=-1, keepdims=True)).max())
    assert apart(batch["targets"]) > 0.1
    assert apart(batch["inputs"]) < 1e-5 if degrade == "levels" else apart(batch["inputs"]) > 0.1


def test_native_blur_is_weaker_than_the_same_sigma_after_the_resize():
    native = prepared("resident", "blur.gaussian(sigma=1.1)", task__blur_site="native")
    network = prepared("resident", "blur.gaussian(sigma=1.1)", task__blur_site="network")
    np.testing.assert_array_equal(native["targets"], network["targets"])

    def strength(batch):
        return float(abs(batch["inputs"] - batch["targets"]).mean())

    assert 0 < strength(native) < strength(network)


def test_levels_can_be_set_for_evaluation():
    config = tiny.config(data__num_images=6, optim__batch_size=2)
    run = experiment.build(config)
    examples = {k: v[:4] for k, v in run.store.arrays.items()}
    keys = stream_keys(0, 0, jnp.arange(4))
    out = run.network.inputs.evaluate(examples, keys, jnp.asarray([1, 4, 8, 11]))
    np.testing.assert_array_equal(out["level"], [1, 4, 8, 11])
    change = np.asarray(abs(out["inputs"] - out["targets"]).mean(axis=(1, 2, 3)))
    assert change[0] < 0.01 and change[3] > change[1]


class Drive:
    """Images on a drive that is gone between two reads."""

    def __init__(self, gone):
        self.gone, self.reads = gone, 0

    def read(self, number):
        self.reads += 1
        if self.reads in self.gone:
            raise OSError("gone")
        return np.full((4, 4, 1), number, np.uint8)


class Files:
    """As much of an index as a loader reads."""

    def __init__(self, drive):
        self.source, self.canvas = Source([f"{i}.png" for i in range(20)], drive.read), (4, 4)

    def __len__(self):
        return 20


def loader_of(drive, monkeypatch):
    slept = []
    monkeypatch.setattr(loader.time, "sleep", slept.append)
    return loader.Loader(Files(drive), 1), slept


def test_a_drive_that_is_gone_for_a_moment_costs_no_image(monkeypatch):
    drive = Drive(range(1, 26))
    reader, slept = loader_of(drive, monkeypatch)
    assert reader.read(3)[0] == 3 and not reader.failed and slept == [2.0, 10.0, 30.0]


def test_a_drive_that_stays_away_is_one_clear_error(monkeypatch):
    reader, slept = loader_of(Drive(range(10_000)), monkeypatch)
    with pytest.raises(BadImage, match=r"no image can be read any more; '3\.png': gone"):
        reader.read(3)
    assert len(slept) == 3 and not reader.failed


def test_every_thread_waits_for_a_drive_and_none_reports_an_image(monkeypatch):
    """The drive comes back when each of four threads has waited twice."""
    slept = []

    class Gone(Drive):
        def read(self, number):
            if len(slept) < 8:
                raise OSError("gone")
            return super().read(number)

    reader, _ = loader_of(Gone(()), monkeypatch)
    ready = threading.Barrier(4)

    def sleep(seconds):
        ready.wait(20)  # all four wait at once
        slept.append(seconds)
        ready.wait(20)

    monkeypatch.setattr(loader.time, "sleep", sleep)
    with ThreadPoolExecutor(4) as pool:
        assert [found[0] for found in pool.map(reader.read, (3, 7, 11, 15))] == [3, 7, 11, 15]
    assert sorted(slept) == [2.0] * 4 + [10.0] * 4 and not reader.failed


def test_a_drive_that_comes_back_late_costs_no_image(monkeypatch):
    """It comes back while the images are tried one after the other, after all waits."""
    reader, slept = loader_of(Drive(range(1, 3 * 8 + 14)), monkeypatch)
    assert reader.read(3)[0] == 3 and slept == [2.0, 10.0, 30.0] and not reader.failed


@pytest.mark.parametrize(
    "gone,waited,kept",
    [((), [], 20), ((2, 4), [], 18), (range(3, 11), [2.0], 20), (range(3, 24), [2.0, 10.0], 20)],
)
def test_each_image_in_turn_waits_for_a_drive(monkeypatch, gone, waited, kept):
    reader, slept = loader_of(Drive(gone), monkeypatch)
    found = [number for number, _ in reader.each(range(20), bool, required=True)]
    assert len(set(found)) == len(found) == kept and slept == waited and len(reader.failed) == 20 - kept


def test_half_of_the_images_are_no_basis_for_a_score(monkeypatch):
    reader, slept = loader_of(Drive(range(3, 10_000)), monkeypatch)
    with pytest.raises(BadImage, match=r"18 of 20 images can no longer be read; '19\.png': gone"):
        list(reader.each(range(20), bool, required=True))
    assert slept == [2.0, 10.0, 30.0] and not reader.failed
    reader, _ = loader_of(Drive(range(3, 10_000)), monkeypatch)
    assert len(list(reader.each(range(20), bool, required=False))) == 2 and len(reader.failed) == 18


def test_images_that_are_known_to_be_gone_are_not_waited_for(monkeypatch):
    class Lost(Drive):
        def read(self, number):
            if number < 10:
                raise OSError("gone")
            return super().read(number)

    reader, slept = loader_of(Lost(()), monkeypatch)
    assert [reader.read(0)[0] for _ in range(3)] == [10] * 3
    assert slept == [2.0, 10.0, 30.0] and [item.name for item in reader.failed] == [f"{i}.png" for i in range(10)]


def test_the_room_for_a_resident_set_is_that_of_this_process(monkeypatch):
    """The memory of a device of another process cannot be asked for."""

    def device(process):
        def memory_stats():
            if process:
                raise RuntimeError("MemoryStats is only supported for addressable PjRt devices")
            return {"bytes_limit": 1 << 30}

        return SimpleNamespace(platform="gpu", memory_stats=memory_stats)

    monkeypatch.setattr(stores.jax, "local_devices", lambda: [device(0)])
    mesh = SimpleNamespace(devices=np.array([device(1), device(0)], object), size=2)
    assert stores._budget(mesh) == int(stores.RESIDENT_SHARE["accelerator"] * (1 << 30) * 2)


def test_single_damaged_images_are_replaced_and_listed_also_on_a_full_disk(monkeypatch):
    reader, slept = loader_of(Drive((1, 2, 3)), monkeypatch)

    def full(item):
        raise OSError(28, "No space left on device")

    reader.on_failure = full
    assert reader.read(3)[0] == 5 and not slept
    assert [item.name for item in reader.failed] == ["3.png", "4.png"]
