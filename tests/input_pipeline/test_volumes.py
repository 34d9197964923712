"""CT and MR volumes: files, cubes, disruptions, and training runs on simulated ones."""

import gzip
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest
import tiny
from tiny_volumes import config_of, cube, save, segmentation

from deblur_mae_jax import network as networks
from deblur_mae_jax import sharding, train
from deblur_mae_jax.config import volumes as volumes_config
from deblur_mae_jax.data import dataset, nifti, phantoms3d
from deblur_mae_jax.data.order import Order
from deblur_mae_jax.data.source import BadImage
from deblur_mae_jax.degradations import parse
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.input_pipeline import stores, volumes
from deblur_mae_jax.input_pipeline.keys import stream_keys
from deblur_mae_jax.pretrained import inherit
from deblur_mae_jax.tasks import disrupted_recon
from deblur_mae_jax.training import experiment, optimizer, schedule

ROOT = tiny.ROOT
CONFIGS = [name for name in tiny.CONFIGS if tiny.identity(name).axes == 3 and tiny.identity(name).kind == "reconstruct"]


def data_of(root, **fields):
    config = volumes_config()
    config.data.update({"root": str(root), "split": "all", **fields})
    return config.data


def test_ct_is_windowed_and_mr_standardised(tmp_path):
    ct, mr = cube(), np.abs(cube(1))
    mr[:3] = 0
    save(tmp_path / "ct" / "a.nii.gz", ct)
    save(tmp_path / "mr" / "b.nii.gz", mr)
    save(
        tmp_path / "ct" / "windowed.nii",
        np.arange(12 * 14 * 10).reshape(12, 14, 10) % 256,
        dtype=np.uint8,
    )
    source = nifti.source(data_of(tmp_path), 1)
    assert source.modalities == ["ct", "ct", "mr"]
    a, windowed, b = (source.read(i)[..., 0].astype(np.float32) for i in range(3))
    np.testing.assert_allclose(a, (np.clip(ct, -1000, 1000) + 1000) / 2000, atol=1e-3)
    assert windowed.max() == 1 and windowed.min() == 0
    inside = mr != 0
    want = np.where(inside, (mr - mr[inside].mean()) / mr[inside].std(), 0)
    np.testing.assert_allclose(b, want, atol=4e-3)


def test_orientation_and_spacing(tmp_path):
    values = cube(shape=(6, 8, 10), low=0, high=1)
    flipped = np.diag([-2.0, 1.0, 1.0, 1.0])  # from right to left, 2 mm
    save(tmp_path / "mr" / "a.nii.gz", values[::-1], flipped)
    save(tmp_path / "mr" / "b.nii.gz", values, np.diag([2.0, 1.0, 1.0, 1.0]))
    source = nifti.source(data_of(tmp_path), 1)
    np.testing.assert_array_equal(source.read(0), source.read(1))  # both in RAS
    finer = nifti.source(data_of(tmp_path, spacing=(1.0, 1.0, 2.0)), 1)
    assert finer.header(0) == (12, 8, 5) and finer.read(0).shape == (12, 8, 5, 1)


def test_label_maps_that_a_csv_lists_as_volumes_are_left_out_and_listed(tmp_path):
    for case in ("a", "b"):
        for name in ("t1", "seg"):
            save(tmp_path / case / f"{case}_{name}.nii.gz", cube(shape=(8, 8, 8), low=0, high=4))
    rows = [f"{case}/{case}_{name}.nii.gz,mr" for case in "ab" for name in ("t1", "seg")]
    (tmp_path / "list.csv").write_text("\n".join(["path,modality", *rows]) + "\n")
    source = nifti.source(data_of(tmp_path / "list.csv"), 1)
    assert [name.rsplit("/", 1)[1] for name in source.names] == ["a_t1.nii.gz", "b_t1.nii.gz"]
    assert [item.name for item in source.skipped] == ["a/a_seg.nii.gz", "b/b_seg.nii.gz"]


def test_a_manifest_with_masks_groups_and_splits(tmp_path):
    save(tmp_path / "images" / "a.nii.gz", cube())
    save(tmp_path / "images" / "b.nii.gz", cube(1))
    mask = np.zeros((12, 14, 10))
    mask[3:6] = 2
    save(tmp_path / "masks" / "a.nii.gz", mask, dtype=np.uint8)
    (tmp_path / "manifest.csv").write_text(
        "file,modality,mask,group,split\nimages/a.nii.gz,CT,masks/a.nii.gz,p1,train\nimages/b.nii.gz,mr,,p2,val\n"
    )
    source = nifti.source(data_of(tmp_path, split="train"), 1)
    assert len(source) == 1 and source.groups == ["p1"] and source.modalities == ["ct"]
    assert set(np.unique(source.masks(0))) == {0, 2}
    both = nifti.source(data_of(tmp_path), 1)
    with pytest.raises(BadImage, match="no mask"):
        both.masks(1)


def damage(folder):
    """One volume of every kind of damage, and what is said of it."""
    good = gzip.compress(save(folder / "ct" / "whole.nii", cube()).read_bytes())
    (folder / "ct" / "whole.nii").unlink()
    nan = cube()
    nan[0, 0, 0] = np.nan
    singular = np.eye(4)
    singular[0, 0] = 0
    save(folder / "ct" / "nan.nii.gz", nan)
    save(folder / "ct" / "four.nii.gz", cube(shape=(4, 5, 6, 3)))
    save(folder / "ct" / "thick.nii.gz", cube(shape=(6, 6, 6)))
    save(folder / "mr" / "flat.nii.gz", np.zeros((5, 5, 5)))
    image = nib.Nifti1Image(cube().astype(np.float32), np.eye(4))
    image.header["sform_code"], image.header["qform_code"] = 1, 0
    image.set_sform(np.zeros((4, 4)) + np.diag([0, 1, 1, 1]), code=1)
    nib.save(image, folder / "ct" / "affine.nii.gz")
    (folder / "ct" / "cut.nii.gz").write_bytes(good[: len(good) // 2])
    (folder / "ct" / "empty.nii.gz").write_bytes(b"")
    (folder / "ct" / "text.nii").write_text("hello")
    return {"nan": "NaN", "four": "4 dimensions", "flat": "same value", "affine": "affine", "cut": "damaged",
            "empty": "0 bytes", "text": "not a NIfTI"}  # fmt: skip


def test_bad_volumes_are_named_and_left_out(tmp_path):
    expected = damage(tmp_path)
    config = config_of(data__name="nifti", data__root=str(tmp_path), data__max_bad_fraction=0.99)
    index = dataset.build_index(config, None)
    assert [Path(n).name for n in index.source.names] == ["thick.nii.gz"]
    found = {Path(s.name).name.split(".")[0]: s.reason for s in index.skipped}
    assert set(found) == set(expected)
    for name, part in expected.items():
        assert part in found[name], (name, found[name])


@pytest.mark.parametrize(
    ("root", "parts"),
    [
        ("", ["config.data.root is not set"]),
        ("/no/such", ["/no/such"]),
        ("{}=us", ["modality 'us'", "ct, mr"]),
        ("{}", ["the modality of", "x.nii.gz", "=ct"]),
        ("{}/empty=ct", ["no volume"]),
        ("{}/list.csv", ["no modality", "=mr"]),
        ("{}/columns.csv", ["no column path", "its columns are a, b"]),
    ],
)
def test_bad_places_are_one_clear_line(tmp_path, root, parts):
    save(tmp_path / "x.nii.gz", cube())
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.csv").write_text("path\nx.nii.gz\n")
    (tmp_path / "columns.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError) as caught:
        nifti.source(data_of(root.format(tmp_path)), 1)
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in parts), message


def test_decoded_volumes_are_kept(tmp_path):
    path = save(tmp_path / "data" / "ct" / "a.nii.gz", cube())
    source = nifti.source(data_of(tmp_path / "data", decoded=str(tmp_path / "kept")), 1)
    first = np.array(source.read(0))
    kept = list((tmp_path / "kept").glob("*.npy"))
    assert len(kept) == 1
    np.testing.assert_array_equal(source.read(0), first)
    kept[0].write_bytes(kept[0].read_bytes()[:100])  # cut short: decoded again
    np.testing.assert_array_equal(source.read(0), first)
    save(path, cube(5))  # another file under the same name
    assert not np.array_equal(source.read(0), first)


def test_real_volumes(real_data):
    root = f"{real_data / 'lung_ct'}=ct;{real_data / 'hippocampus_mr'}=mr"
    source = nifti.source(data_of(root, split="val"), 1)
    assert sorted(set(source.modalities)) == ["ct", "mr"] and len(source) == 36
    for i in (0, len(source) - 1):
        volume = source.read(i).astype(np.float32)
        assert volume.shape[:-1] == source.header(i) and np.isfinite(volume).all()
        mask = source.masks(i)
        assert mask.shape == volume.shape[:-1] and 0 < mask.max() <= 2


def test_phantoms_are_of_two_modalities_and_reproducible():
    phantoms = phantoms3d.Phantoms3D(4, 0, 32)
    ct, mr = phantoms.read(0), phantoms.read(1)
    assert ct.shape == (32, 32, 32, 1) and ct.min() >= 0 and ct.max() <= 1
    assert abs(float(mr[mr != 0].astype(np.float32).mean())) < 0.01
    np.testing.assert_array_equal(ct, phantoms3d.Phantoms3D(9, 0, 32).read(0))
    assert set(np.unique(phantoms.mask(0))) == {0, 1, 2}


def test_modalities_in_a_stated_ratio():
    labels = np.array(["ct"] * 90 + ["mr"] * 10)
    order = Order(100, 10, 0, labels=labels, shares={"ct": 1.0, "mr": 3.0})
    drawn = np.concatenate([order.batch(step) for step in range(300)])
    assert abs((labels[drawn] == "mr").mean() - 0.75) < 0.03
    with pytest.raises(UserError, match=r"config.data.ratio='ct=1'.* such as ct=1,mr=1"):
        train.train_and_evaluate(config_of(data__ratio="ct=1"), "unused", dry_run=True)


@pytest.mark.parametrize("size", [(40, 33, 50), (20, 40, 7)])
def test_cubes_are_where_they_should_be(size):
    """Every voxel of a cube is the one of its place; a smaller volume lies in the middle of zeros."""
    canvas = np.zeros((1, 48, 48, 56, 1), np.float32)
    number = np.arange(1, np.prod(size) + 1, dtype=np.float32).reshape(size)
    canvas[0, : size[0], : size[1], : size[2], 0] = number
    cubes = volumes.VolumeInputs(parse.degradation("none"), 32)
    examples = {"image": jnp.asarray(canvas), "size": jnp.asarray([size])}
    seen = set()
    for step in range(8):
        batch = cubes.train(examples, stream_keys(0, step, jnp.arange(1)))
        got = np.asarray(batch["targets"])[0, ..., 0]
        corner = np.argwhere(got > 0)[0]
        start = np.array(np.unravel_index(int(got[tuple(corner)]) - 1, size)) - corner
        seen.add(tuple(start))
        for axis in range(3):
            low, high = min(0, -((32 - size[axis]) // 2)), max(0, size[axis] - 32)
            assert low <= start[axis] <= high and (size[axis] > 32 or start[axis] == low)
        padded = np.pad(number, 40)
        want = padded[tuple(slice(40 + s, 72 + s) for s in start)]
        np.testing.assert_array_equal(got, want)
    assert len(seen) > 1 or max(size) <= 32


def test_the_middle_cube_is_disrupted_alike_each_time():
    cubes = volumes.VolumeInputs(
        parse.degradation("noise.gaussian_noise(variance=0.1, clip=False)|resample.down_up(4)"), 32
    )
    examples = {
        "image": jnp.full((2, 32, 32, 32, 1), 0.5, jnp.float16),
        "size": jnp.full((2, 3), 32),
    }
    keys = stream_keys(0, 0, jnp.arange(2))
    one, two = (cubes.evaluate(examples, keys) for _ in range(2))
    np.testing.assert_array_equal(one["inputs"], two["inputs"])
    assert not np.array_equal(one["inputs"][0], one["inputs"][1])
    np.testing.assert_array_equal(one["targets"], 0.5)
    # Averages of 8 voxels out of noise of variance 0.1, interpolated.
    assert 0.002 < float(one["inputs"].var()) < 0.0125


@pytest.mark.parametrize("scope", disrupted_recon.SCOPES)
def test_channels_of_local_masking(scope):
    shape = (4, 4, 4, 48)
    masks = jax.vmap(lambda key: disrupted_recon.channel_mask(key, shape, 0.6, scope))(
        jax.random.split(jax.random.key(0), 3)
    )
    masks = np.broadcast_to(masks, (3, *shape))
    assert (masks.sum(axis=-1) == 28).all()
    alike = (masks == masks[:, :1, :1, :1]).all()
    assert alike == (scope != "token") and not (masks[0] == masks[1]).all()


@pytest.mark.parametrize("scope", disrupted_recon.SCOPES)
def test_the_volumes_of_a_batch_share_their_channels_only_by_batch(scope):
    class Recorder:
        """Keeps the disrupted tokens of the task's loss."""

        mask_token, seen = False, None

        def apply(self, params, x, disrupt, masked):
            self.seen = np.asarray(disrupt(jnp.ones((3, 4, 4, 4, 48))))
            return x, {"hidden": [jnp.ones((3, 2, 2, 2, 8))]}

    model = Recorder()
    task = disrupted_recon.make(model, local_mask_scope=scope, contrast="none")
    cubes = jnp.ones((3, 8, 8, 8, 1))
    task.loss({}, {"inputs": cubes, "targets": cubes}, {"mask": jax.random.split(jax.random.key(0), 3)})
    assert ((model.seen == 0).sum(axis=-1) == 28).all()
    assert (model.seen[0] == model.seen[1]).all() == (scope == "batch")


def test_blocks_of_the_mask_token(golden):
    z = golden("dae_param_groups")
    mask = np.asarray(disrupted_recon.block_mask(jax.random.key(0), (96,) * 3, 0.6))
    assert mask[::16, ::16, ::16].sum() == z["mask0_count"] == 130
    assert (mask.reshape(6, 16, 6, 16, 6, 16).std(axis=(1, 3, 5)) == 0).all()
    assert (
        np.asarray(disrupted_recon.block_mask(jax.random.key(0), (64,) * 3, 0.4))[::16, ::16, ::16].sum()
        == z["mask1_count"]
    )


@pytest.mark.parametrize("case", [0, 1])
def test_schedule_of_the_published_code(golden, case):
    z = golden("dae_lr_schedules")
    lr, low, first, epochs, warm, per_epoch = z[f"pre{case}_args"]
    got = schedule.timm_learning_rate(z[f"pre{case}_t"], lr, low, first, warm * per_epoch, epochs * per_epoch)
    np.testing.assert_allclose(got, z[f"pre{case}_lr"], rtol=2e-5, atol=1e-9)


def test_weight_decay_of_the_published_code(golden):
    from deblur_mae_jax.models import swin_unetr
    from deblur_mae_jax.weight_formats import names

    z = golden("dae_param_groups")
    model = swin_unetr.Model("12", patch_embed="unet_basic", mask_token=True, image_size=32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 32, 1)))["params"]
    mask = optimizer.decay_mask(shapes, "weights", swin_unetr.RULES.undecayed)
    ours = {names.pytorch_name(tuple(k.key for k in path)): bool(value)
            for path, value in jax.tree_util.tree_flatten_with_path(mask)[0]}  # fmt: skip
    theirs = {n: True for n in z["decay"].tolist()} | {n: False for n in z["no_decay"].tolist()}
    checked = 0
    for name, value in theirs.items():
        name = name.replace("encoder.layers", "swinViT.layers").replace(".0.0.", ".0.")
        name = name.replace(".fc1.", ".linear1.").replace(".fc2.", ".linear2.")
        name = name.replace("encoder.patch_embed", "swinViT.patch_embed").replace(
            "encoder.mask_token", "swinViT.mask_token"
        )
        if name in ours:
            assert ours[name] == value, name
            checked += 1
    assert checked == len(ours)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_builds_and_has_a_loss_for_every_volume(name):
    config = config_of(name, **({"data__name": "phantoms3d"}))
    network = networks.build(config)
    shapes = jax.eval_shape(network.init)
    batch = {"inputs": jnp.zeros((2, 32, 32, 32, 1)), "targets": jnp.zeros((2, 32, 32, 32, 1)),
             "modality": jnp.asarray([0, 1])}  # fmt: skip
    keys = stream_keys(0, 0, jnp.arange(2))
    loss, out = jax.eval_shape(network.task.loss, shapes, batch, keys)
    assert loss.shape == (2,) and out["pred"].shape == (2, 32, 32, 32, 1)
    assert network.flops_per_image > 1e8


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in CONFIGS if n.startswith(("dae_", "mae3d"))])
def test_every_method_takes_a_step(name):
    """One jitted step: the loss is finite, and every weight that is used moves."""
    config = config_of(name)
    run = experiment.build(config, None)
    state = run.make_state()
    before = jax.device_get(state.params)
    batch = next(run.store.batches(0, 1))
    state, numbers = run.train_step(state, run.arrays, batch)
    state, numbers = run.train_step(state, run.arrays, batch)  # the first rate of a warm-up is 0
    assert np.isfinite(float(numbers["loss"])) and bool(state.healthy)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != np.asarray(b))), before, state.params)
    block = moved["swinViT"]["layers1"]["0"]["blocks_0"]
    assert moved["out"]["conv"]["conv"]["kernel"] and block["attn"]["qkv"]["kernel"]


@pytest.fixture(scope="module")
def a_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dae") / "run"
    return folder, train.train_and_evaluate(config_of(), folder)


@pytest.mark.slow
def test_a_run_trains_and_reports(a_run):
    folder, result = a_run
    assert result.finished and (folder / "report" / "index.html").exists()
    assert list((folder / "report").glob("reconstructions_*.png"))
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert np.isfinite(losses).all() and any("eval_contrast" in line for line in lines)


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_bit_exactly(tmp_path):
    config = config_of(optim__steps=4)  # checkpoints after steps 3 and 4
    whole = train.train_and_evaluate(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    assert (tmp_path / "stopped" / "checkpoints" / "step_3").exists()
    shutil.rmtree(tmp_path / "stopped" / "checkpoints" / "step_4")
    again = train.train_and_evaluate(config, tmp_path / "stopped")
    assert again.step == 4 and again.params_fingerprint == whole.params_fingerprint


def test_the_stores_agree():
    config = config_of()
    index = dataset.build_index(config, None)
    mesh = sharding.make_mesh(jax.devices()[:1])
    from deblur_mae_jax.data.loader import Loader
    from deblur_mae_jax.training.experiment import modality_of

    loader, order = Loader(index, 1, modality_of(index)), Order(len(index), 2, 0)
    seen = []
    for kind in ("resident", "streaming"):
        store = stores.make(kind, loader, order, mesh, 1)
        batch = jax.tree.map(lambda x: x[0], next(store.batches(1, 1)))
        seen.append(jax.tree.map(np.asarray, store.gather(store.arrays, batch)))
    assert seen[0]["image"].dtype == np.float16 and set(seen[0]) == {"image", "size", "modality"}
    for name in seen[0]:
        np.testing.assert_array_equal(seen[0][name], seen[1][name])


@pytest.mark.parametrize("kind", ["reconstruct", "segment"])
def test_cubes_cut_on_the_host_are_those_cut_on_the_device(tmp_path, kind):
    """With volumes smaller and larger than the cube, and two parts of a batch."""
    for i, shape in enumerate([(40, 35, 50), (20, 40, 33), (64, 20, 31), (33, 33, 33)]):
        save(tmp_path / "set" / "imagesTr" / f"a_{i}.nii.gz", cube(i, shape))
        save(tmp_path / "set" / "labelsTr" / f"a_{i}.nii.gz", cube(i, shape) > 900, dtype=np.uint8)
    fields = {
        "data__name": "nifti", "data__root": f"{tmp_path / 'set'}=ct", "optim__batch_size": 4, "optim__accum_steps": 2,
    }  # fmt: skip
    if kind == "segment":
        fields |= {"data__foreground": 0.0, "data__folds": 4}
    make = config_of if kind == "reconstruct" else segmentation
    prepared, shapes = [], []
    for store in ("resident", "streaming"):
        run = experiment.build(inherit.resolve(make(data__store=store, **fields))[0])
        for step in (0, 5):
            batch = next(run.store.batches(step, 1))
            for part in range(2):
                examples = run.store.gather(run.store.arrays, jax.tree.map(lambda x, part=part: x[part], batch))
                shapes.append(examples["image"].shape)
                keys = stream_keys(run.config.seed, step, part * 2 + jnp.arange(2))
                prepared.append(jax.tree.map(np.asarray, run.network.inputs.train(examples, keys)))
    assert shapes[0][1:4] == (64, 40, 50) and shapes[-1][1:4] == (32, 32, 32)
    half = len(prepared) // 2
    for one, two in zip(prepared[:half], prepared[half:], strict=True):
        assert set(one) == set(two)
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"image_size": 40}, ["config.image_size=40", "multiple of 32"]),
        ({"task__local_mask_scope": "image"}, ["local_mask_scope", "token"]),
        ({"task__contrast": "clip"}, ["task.contrast", "paper"]),
        ({"task__block_mask_ratio": 0.5}, ["mask_token=True"]),
        ({"task__loss_on": "masked"}, ["block_mask_ratio"]),
        ({"task__local_mask": 1.0}, ["local_mask=1.0"]),
        ({"task__degrade": "blur.motion(5)"}, ["not defined for 3-D"]),
        ({"task__degrade": "blur.gaussian_levels"}, ["levels"]),
        ({"data__ct_window": (5.0, 5.0), "data__name": "nifti", "data__root": "."}, ["ct_window"]),
    ],
)  # fmt: skip
def test_bad_settings_are_one_clear_line(tmp_path, overrides, parts):
    save(tmp_path / "ct" / "x.nii.gz", cube())
    if "data__root" in overrides:
        overrides["data__root"] = str(tmp_path)
    with pytest.raises(UserError) as caught:
        train.train_and_evaluate(config_of(**overrides), tmp_path / "run")
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in parts), message
