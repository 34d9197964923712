"""Segmentation runs on simulated volumes and pictures, from start to report, and what is left on disk."""

import csv
import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import nibabel as nib
import numpy as np
import pytest
import tiny
import tiny_runs
import tiny_volumes
from PIL import Image
from tiny_volumes import config_of, cube, save
from tiny_volumes import segmentation as volumes

import deblur_mae_jax as dm
from deblur_mae_jax import network, train
from deblur_mae_jax.commands import run
from deblur_mae_jax.data import grid, nifti
from deblur_mae_jax.data.source import BadImage
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.inference import segmenter
from deblur_mae_jax.metrics import segmentation
from deblur_mae_jax.pretrained import inherit, trained_network, warm_start
from deblur_mae_jax.reports import cases, comparison

ROOT = tiny.ROOT
sys.path.insert(0, str(ROOT / "scripts"))
CONFIGS = ("segment_volumes", "segment_btcv", "segment_feta", "quickstart3d_segment")


def pictures(**overrides):
    config = tiny.load("segment_images")
    foreign = ("decoder", "report", "steps")
    small = {k: v for k, v in tiny.SHRINK.items() if not any(word in k for word in foreign)}
    small |= {"data.num_images": 30, "optim.epochs": 1.0, "optim.warmup_epochs": 0.5,
              "model.width": 4, "search.cache": ""}  # fmt: skip
    return tiny_volumes.changed(config, small | tiny_volumes.dotted(overrides))


@pytest.fixture(scope="module")
def volume_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("segment") / "volumes"
    return folder, run.run(volumes(), folder)


@pytest.fixture(scope="module")
def picture_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("segment") / "pictures"
    return folder, run.run(pictures(), folder)


@pytest.mark.parametrize("kind", [pytest.param("volume_run", marks=pytest.mark.slow), "picture_run"])
def test_a_run_leaves_everything_a_report_needs(kind, request):
    folder, result = request.getfixturevalue(kind)
    assert result.finished and 0 <= result.measures["test_dice"] <= 1
    table = cases.read(folder / "predictions.csv")
    numbers = json.loads((folder / "metrics.json").read_text())
    assert set(table.split) == {"val", "test"} and numbers["judged_on"] == "test"
    judged = table.where(table.split == "test")
    value = numbers["splits"]["test"]["per_image"]["dice"]["value"]
    np.testing.assert_allclose(np.nanmean(judged.mean_of_labels("dice")), value)
    page = (folder / "report" / "index.html").read_text()
    assert f"Dice {value:.3f}" in page and "Worst cases" in page and "data:image/png" in page
    for name in ("overlays.png", "figures.png", "curves.png"):
        assert (folder / "report" / name).stat().st_size > 5000
    suffix = ".nii.gz" if kind == "volume_run" else ".png"
    written = sorted((folder / "segmentations" / "test").rglob(f"*{suffix}"))
    assert len(written) == len(judged)
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    assert any("val_dice" in line for line in lines)


@pytest.mark.slow
def test_distances_in_mm_and_in_pixels_have_no_common_mean(picture_run, tmp_path, monkeypatch, caplog):
    """If only some files state the size of a pixel, as in a mixed DICOM export, all are measured in pixels."""
    plain = grid.plain

    def sometimes_stated(masks, axes, index):
        own = plain(masks, axes, index)
        return own if index % 2 else dataclasses.replace(own, spacing=(0.05, 0.05), unit="mm")

    monkeypatch.setattr(grid, "plain", sometimes_stated)
    run.run(pictures(), tmp_path / "run")
    mixed, pixels = (cases.read(folder / "predictions.csv") for folder in (tmp_path / "run", picture_run[0]))
    assert mixed.unit == "px" and "only some images state the size of a pixel" in caplog.text
    np.testing.assert_array_equal(mixed.truth_size, pixels.truth_size)


def test_measures_follow_from_the_written_label_maps(picture_run):
    """The file, read back, gives the Dice of the table; the values are those of the masks that were learnt from."""
    folder, _ = picture_run
    from deblur_mae_jax.data import phantoms

    table = cases.read(folder / "predictions.csv")
    for i in np.flatnonzero(table.split == "test"):
        name = table.names[i]
        labels = np.asarray(Image.open(folder / "segmentations" / "test" / f"{name}.png"))
        assert set(np.unique(labels)) <= {0, 255}
        truth = phantoms.Phantoms(30, 0, 40).mask(int(name.split("_")[1]))
        assert labels.shape == truth.shape and table.unit == "px"
        dice = segmentation.dice(truth > 0, labels > 0)
        np.testing.assert_allclose(table.values["dice"][i, 0], dice)


@pytest.mark.slow
def test_new_volumes_are_segmented_on_their_own_voxels(volume_run, tmp_path):
    """A volume that lies from right to left, thick slices: the label map has its shape and affine."""
    folder, _ = volume_run
    affine = np.diag([-2.0, 1.0, 3.0, 1.0])
    affine[:3, 3] = (5, -7, 11)
    save(tmp_path / "in" / "a.nii.gz", np.abs(cube(shape=(20, 34, 12))), affine)
    (tmp_path / "in" / "b.nii.gz").write_bytes(b"")
    from deblur_mae_jax.commands import predict

    out = predict.run(f"{folder},{folder}", f"{tmp_path / 'in'}=mr", tmp_path / "out", "overlap=0.0")
    image = nib.load(out / "in" / "a.nii.gz")
    assert image.shape == (20, 34, 12)
    np.testing.assert_allclose(image.affine, affine)
    rows = list(csv.DictReader((out / "segmentations.csv").read_text().splitlines()))
    assert [r["label"] for r in rows] == ["label 1", "label 2"]
    found = np.asarray(image.dataobj)
    np.testing.assert_allclose([float(r["size"]) for r in rows], [6.0 * (found == n).sum() for n in (1, 2)])
    assert "0 bytes" in (out / "skipped.csv").read_text()
    # The same through Python: arrays in, arrays out.
    source = nifti.source(volumes(data__name="nifti", data__root=f"{tmp_path / 'in'}=mr").data, 1)
    trained = dm.load(folder)
    whole = dm.segment(trained, [source.read(0)[..., 0]], overlap=0.0)[0]
    assert (whole == found[::-1]).mean() > 0.99  # of two members the probabilities are blended, not the logits


@pytest.mark.slow
def test_flips_and_members_are_averaged(volume_run):
    folder, _ = volume_run
    trained = dm.load(folder)
    infer = trained.info.config.infer.to_dict() | {"flips": True, "overlap": 0.0}
    from ml_collections import ConfigDict

    from deblur_mae_jax import sharding

    mesh = sharding.make_mesh(jax.devices()[:1])
    several = segmenter.Segmenter(trained.info.network, mesh, ConfigDict(infer))
    assert len(several.flips) == 8
    x = np.random.default_rng(0).normal(size=(1, 32, 32, 32, 1)).astype(np.float32)
    p = several._mean([trained.params], x)
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-5)
    for axis in (1, 2, 3):  # the mean over all flips does not know left from right
        np.testing.assert_allclose(np.flip(several._mean([trained.params], np.flip(x, axis)), axis), p, atol=1e-5)
    assert segmenter.flips_of(2, True) == [(), (2,)]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_of_volumes_builds_its_step(name):
    config = volumes(name, init_from="", image_size=32, model__variant="12")
    from deblur_mae_jax.training import checks

    config, _, _ = inherit.resolve(config)
    checks.check(config)
    network_ = network.build(config, 3)
    shapes = jax.eval_shape(network_.init)
    batch = {
        "inputs": np.zeros((2, 32, 32, 32, 1), np.float32),
        "mask": np.zeros((2, 32, 32, 32), int),
    }
    loss, out = jax.eval_shape(network_.task.loss, shapes, batch, {})
    assert loss.shape == (2,) and out["logits"].shape == (2, 32, 32, 32, 3)
    assert network_.flops_per_image > 1e8


def of(config, classes=()):
    net = network.build(config, len(classes))
    params = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), jax.eval_shape(net.init))
    return trained_network.TrainedNetwork(Path("somewhere"), config, net, params, list(classes))


@pytest.mark.parametrize(
    ("name", "change", "fresh"),
    [
        ("dae_ct_mr", {}, {"out"}),
        ("dae_ct_mr:local_masking", {}, {"out", "encoder1", "decoder1"}),
        ("mae3d_ct_mr", {}, {"out"}),
        ("swin_ssl_ct_mr", {}, None),
    ],
)
def test_what_a_segmentation_takes_from_pre_training(name, change, fresh):
    source = of(config_of(name, **change))

    assert volumes(init_from="x").model.patch_embed is None
    target = inherited(volumes(
        model__patch_embed=source.config.model.patch_embed, model__merge_order="legacy",
        model__in_chans=1, image_size=32,
    ))  # fmt: skip
    net = network.build(target, 3)
    shapes = jax.eval_shape(net.init)
    found = warm_start.fit(source, shapes, net, True, ["background", "a", "b"])
    if fresh is None:  # an encoder alone: the whole decoder is new
        assert set(found.params) == {"swinViT"}
    else:
        assert set(found.new) == fresh
    encoder = warm_start.fit(source, shapes, net, True, ["background", "a", "b"], "encoder")
    assert set(encoder.params) == {"swinViT"}
    with pytest.raises(UserError, match="init_parts"):
        warm_start.fit(source, shapes, net, True, None, "stem")


@pytest.mark.slow
def test_from_pre_training_to_segmentation_and_on(tmp_path):
    """DAE, then segmentation that inherits its network, then another that goes on with the same labels."""
    import cka

    train.train_and_evaluate(config_of(data__side=32), tmp_path / "dae")
    config = volumes(init_from=str(tmp_path / "dae"), image_size=None, model__variant=None)
    result = train.train_and_evaluate(config, tmp_path / "first")
    lines = (tmp_path / "first" / "report" / "index.html").read_text()
    assert result.finished and "inherited from" in lines
    trained = dm.load(tmp_path / "first")
    assert trained.model.patch_embed == "unet_basic" and trained.model.normalize
    again = volumes(init_from=str(tmp_path / "first"), image_size=None, model__variant=None)
    train.train_and_evaluate(again, tmp_path / "second")
    assert "out" in (tmp_path / "second" / "report" / "index.html").read_text()
    values = cka.compare(cka.parse([str(tmp_path / "dae"), str(tmp_path / "first"), "--count=4"]))
    assert len(values) == 5 and all(0 < v <= 1 + 1e-6 for v in values) and values[0] > 0.9
    rows = comparison.pairs([comparison.read_run(tmp_path / n) for n in ("first", "second")])
    assert {"dice", "dice_interval", "wilcoxon"} <= set(rows[0])


@pytest.mark.slow
def test_pictures_inherit_blur_and_search(tmp_path):
    """From a D2MAE: its sizes, its token, and for every picture the level that the search finds."""
    size = {"image_size": None, "model__conditioning": None, "model__variant": None}
    zero = {f"model__{n}": None for n in ("patch_size", "in_chans", "embed_dim", "depth", "num_heads")}
    source = str(tiny_runs.pretraining())
    config = pictures(init_from=source, data__phantom_seed=1, **size, **zero)
    result = run.run(config, tmp_path / "run")
    assert result.finished and "blur_token" in result.params and "segmenter" in result.params
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "blur of the images: search" in page and "segmenter" in page
    found = dm.segment(dm.load(tmp_path / "run"), [np.zeros((40, 50), np.uint8)], flips=True)
    assert found[0].shape == (40, 50)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"task__loss": "focal"}, ["task.loss", "dice_ce"]),
        ({"select__metric": "accuracy"}, ["select.metric", "surface_dice"]),
        ({"infer__blending": "linear"}, ["infer.blending", "gaussian"]),
        ({"infer__overlap": 1.0}, ["infer.overlap=1.0"]),
        ({"report__empty": "drop"}, ["report.empty", "skip"]),
        ({"data__label_names": ("one",)}, ["label_names", "2 different names", "1, 2"]),
        ({"data__crops_per_image": 0}, ["crops_per_image=0"]),
        ({"model__name": "vit"}, ["model.name=vit", "on volumes", "swin_unetr"]),
    ],
)
def test_bad_settings_are_one_clear_line(tmp_path, overrides, parts):
    with pytest.raises(UserError) as caught:
        train.train_and_evaluate(volumes(**overrides), tmp_path / "run")
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in parts), message


def folder_of(root):
    """Twelve small volumes with masks; one has none, one lies elsewhere, one has another shape, one is no class map."""
    for i in range(12):
        save(root / "images" / f"v{i:02d}.nii.gz", np.abs(cube(i, (20, 20, 20))) + 1)
        mask = np.zeros((20, 20, 20))
        mask[5:12, 5:12, 5:12] = 1 + i % 2
        save(root / "masks" / f"v{i:02d}.nii.gz", mask, dtype=np.uint8)
    (root / "masks" / "v03.nii.gz").unlink()
    save(root / "masks" / "v04.nii.gz", np.ones((20, 20, 20)), np.diag([-1.0, 1, 1, 1]), np.uint8)
    save(root / "masks" / "v05.nii.gz", np.zeros((20, 20, 21)), dtype=np.uint8)
    save(root / "masks" / "v07.nii.gz", np.full((20, 20, 20), 0.5))


def inherited(config):
    return inherit.resolve(config)[0]


def prepared(config, cache=None):
    from deblur_mae_jax import sharding
    from deblur_mae_jax.training import supervision

    config = inherited(config)
    return supervision.prepare(config, network.identify(config), None, sharding.make_mesh(), cache)


def test_bad_masks_are_named_and_left_out(tmp_path):
    folder_of(tmp_path / "data")
    config = volumes(
        data__name="nifti",
        data__root=f"{tmp_path / 'data'}=mr",
        data__max_bad_fraction=0.5,
        model__in_chans=1,
    )
    index, labels = prepared(config, tmp_path / "index.json")
    assert len(index) == 8 and labels.classes == ["background", "label 1", "label 2"]
    found = {Path(s.name).name: s.reason for s in index.skipped}
    assert found["v03.nii.gz"] == "no mask" and "shape" in found["v05.nii.gz"]
    assert "does not match" in found["v04.nii.gz"] and "a class is a" in found["v07.nii.gz"]
    # A mask that is mended is seen, also where the volumes were looked at before.
    mended = np.zeros((20, 20, 20))
    mended[3:9, 3:9, 3:9] = 2
    save(tmp_path / "data" / "masks" / "v05.nii.gz", mended, dtype=np.uint8)
    again, labels = prepared(config, tmp_path / "index.json")
    assert len(again) == 9 and labels.mask_values == [0, 1, 2]
    assert again.fingerprint != index.fingerprint


def test_masks_belong_to_the_volumes_beside_them(tmp_path):
    """The same file names under ct and mr, and nnU-Net's folders with volumes that have no mask."""
    for number, kind in enumerate(("ct", "mr"), start=1):
        save(tmp_path / kind / "images" / "001.nii.gz", np.abs(cube(number)) + 1)
        save(tmp_path / kind / "masks" / "001.nii.gz", np.full((12, 14, 10), number), dtype=np.uint8)
    source = nifti.source(_data(tmp_path), 1)
    assert [int(source.masks(i).max()) for i in range(2)] == [1, 2]
    net = tmp_path / "net"
    save(net / "imagesTr" / "a_0000.nii.gz", np.abs(cube()) + 1)
    save(net / "labelsTr" / "a.nii.gz", np.ones((12, 14, 10)), dtype=np.uint8)
    save(net / "imagesTs" / "b_0000.nii.gz", np.abs(cube()) + 1)
    source = nifti.source(_data(f"{net}=mr"), 1)
    assert source.masked == [True, False]
    # Sub-folders that are splits are splits.
    for split in ("train", "test"):
        save(tmp_path / "split" / split / "images" / f"{split}.nii.gz", np.abs(cube()) + 1)
    source = nifti.source(_data(f"{tmp_path / 'split'}=mr", split="test"), 1)
    assert [Path(n).name for n in source.names] == ["test.nii.gz"]


def _data(root, split="all"):
    return volumes(data__root=str(root), data__split=split).data


def test_a_volume_that_is_cut_short_is_named_whatever_its_orientation(tmp_path):
    path = save(
        tmp_path / "mr" / "a.nii.gz",
        np.abs(cube(shape=(30, 30, 30))) + 1,
        np.diag([-1.0, -1, 1, 1]),
    )
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(BadImage, match="damaged"):
        nifti.source(_data(tmp_path), 1).read(0)


def test_label_maps_stay_in_their_folder(tmp_path):
    """Whatever an image is called: with an absolute path, with .., twice but for the suffix, with dots."""
    from deblur_mae_jax.data.grid import output_path

    names = [
        "/data/images/a.png",
        "../../b.nii.gz",
        "c.png",
        "c.jpg",
        "case.12",
        "case.13",
        "d/e.nii",
    ]
    taken = set()
    found = [output_path(tmp_path, name, taken) for name in names]
    assert len(set(found)) == len(names) and all(p.is_relative_to(tmp_path) for p in found)
    assert found[1] == tmp_path / "b" and found[4].name == "case.12" and found[6] == tmp_path / "d" / "e"


@pytest.mark.slow
def test_a_label_map_that_cannot_be_written_leaves_no_process_alone():
    """Process 0, which writes, takes part in every computation before it says so."""
    from deblur_mae_jax.evaluators import segmentation as evaluator

    part, shared = object.__new__(evaluator.Evaluator), []

    def grid_of(index):
        return SimpleNamespace(truth=lambda: np.ones((4, 4), np.uint8), finish=lambda x: x, save=full, unit="px")

    def full(*_):
        raise OSError(28, "No space left on device")

    def each(members, loader, indices, required):
        for index in indices:
            shared.append(index)
            yield index, np.ones((4, 4), np.uint8)

    part.supervision = SimpleNamespace(
        mask_classes=np.arange(256).astype(np.uint8), mask_values=[0, 1], indices={"val": [0, 1], "test": [2, 3]}
    )
    source = SimpleNamespace(grid_of=grid_of, names=["a", "b", "c", "d"], groups=None)
    part.run = SimpleNamespace(index=SimpleNamespace(source=source), loader=None)
    part.segmenter, part.workdir = SimpleNamespace(each=each), SimpleNamespace(segmentations=Path("nowhere"))
    part.in_pixels, part.labels, part.tolerance, part.empty, part.unsaved = True, ["lesion"], 1.0, "skip", None
    part._shown = lambda *_: shared.append("shown")
    with pytest.raises(OSError, match="No space left"):
        part.finish(3, "weights", main=True)
    assert shared == [0, 1, 2, 3, "shown"]


def test_weights_are_chosen_by_a_distance_though_nothing_is_found_at_first(tmp_path):
    config = volumes(select__metric="hd95", optim__base_lr=1e-9, data__num_images=8)
    result = run.run(config, tmp_path / "run")
    assert result.finished and (tmp_path / "run" / "predictions.csv").exists()


def test_masks_without_sense_are_refused(tmp_path):
    for i in range(12):
        folder = tmp_path / "data"
        (
            (folder / "images").mkdir(parents=True, exist_ok=True),
            (folder / "masks").mkdir(exist_ok=True),
        )
        pixels = np.random.default_rng(i).integers(0, 255, (40, 40), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
        Image.fromarray(pixels).save(folder / "masks" / f"{i}.png")
    with pytest.raises(UserError, match=r"different values.*JPEG"):
        run.run(pictures(data__name="image_folder", data__root=str(tmp_path / "data")), tmp_path / "run")
    with pytest.raises(UserError, match="no masks"):
        folder = tmp_path / "data" / "images"
        run.run(pictures(data__name="image_folder", data__root=str(folder)), tmp_path / "run2")


@pytest.mark.slow
def test_a_picture_network_is_not_for_volumes(picture_run, volume_run, tmp_path):
    with pytest.raises(UserError, match="a network for 2-D images, this config is for volumes"):
        run.run(volumes(init_from=str(picture_run[0])), tmp_path / "run")
    with pytest.raises(UserError, match=r"of which Python segments volumes alone"):
        dm.encode(dm.load(volume_run[0]), np.zeros((40, 40), np.uint8))
    with pytest.raises(UserError, match=r"use dm.segment"):
        dm.predict(dm.load(picture_run[0]), np.zeros((40, 40), np.uint8))
    found = dm.segment(dm.load(picture_run[0]), [np.zeros((40, 50), np.uint8), np.zeros((33, 21), np.uint8)])
    assert [x.shape for x in found] == [(40, 50), (33, 21)]
