"""Exports opened by PyTorch, timm and transformers, and their files read here. Needs the `pytorch` extra."""

import csv
import importlib.util
import json
import os
import runpy
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_runs
from PIL import Image
from safetensors.numpy import load_file

ROOT = tiny.ROOT
torch = pytest.importorskip("torch", reason="pip install deblur_mae_jax[pytorch] (or make test-pytorch)")
for needed in ("timm", "transformers"):
    if importlib.util.find_spec(needed) is None:
        pytest.skip("pip install deblur_mae_jax[pytorch]", allow_module_level=True)

from tiny_runs import classifier, go, pretraining

import deblur_mae_jax as dm
from deblur_mae_jax import network as networks
from deblur_mae_jax.data.phantoms import Phantoms
from deblur_mae_jax.degradations import blur
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.export import agreement, export
from deblur_mae_jax.export.opened import open_export
from deblur_mae_jax.inference import arrays, levels
from deblur_mae_jax.models import position
from deblur_mae_jax.pretrained import trained_network
from deblur_mae_jax.weight_formats import files
from deblur_mae_jax.weight_formats.torch_calls import modeling

GOLDEN = ROOT / "tests" / "golden"
TOLERANCE = 1e-5
FORMATS = ("mae", "timm", "hf", "d2mae")


def stirred(trained, seed=0, scale=0.05):
    """The same network with every weight moved, so that each of them matters."""
    rng = np.random.default_rng(seed)

    def move(path, value):
        noise = scale * rng.standard_normal(value.shape)
        if path[-1].key == "running_var":
            noise = np.abs(noise)
        return (np.asarray(value) + noise).astype(np.float32)

    return trained_network.TrainedNetwork(
        trained.path, trained.config, trained.network,
        jax.tree_util.tree_map_with_path(move, trained.params), trained.classes,
    )  # fmt: skip


def fine_tuned(folder, source, name="finetune", **overrides):
    go(folder, name, init_from=str(pretraining(source)), optim__epochs=1.0, **overrides)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Tiny runs of every kind, by name."""
    base = tmp_path_factory.mktemp("runs")
    return {
        "mae": pretraining("mae_thyroid"),
        "d2mae": pretraining(),
        "mean": fine_tuned(base / "mean", "deblur_mae_thyroid"),
        "cls": fine_tuned(base / "cls", "mae_thyroid", model__pool="cls"),
        "probe": fine_tuned(base / "probe", "mae_thyroid", "linear_probe"),
        "d2mae classifier": classifier()[0],
    }


ALL = [(run, format) for run in ("mae", "mean", "cls", "probe") for format in FORMATS]
ALL += [("d2mae", "d2mae"), ("d2mae classifier", "d2mae")]


@pytest.mark.parametrize("in_chans", [0, 3])
@pytest.mark.parametrize(("run", "format"), ALL)
def test_every_format_agrees(runs, tmp_path, run, format, in_chans):
    trained = stirred(trained_network.load(runs[run]))
    folder = export.export(trained, format, tmp_path / "out", in_chans)
    certificate = json.loads((folder / "certificate.json").read_text())
    outputs = certificate["agreement"]["outputs"]
    expected = {"features", "logits"} if trained.classes else {"encoder tokens", "reconstruction"}
    if format == "timm" and not trained.classes:
        expected = {"encoder tokens"}
    assert expected <= set(outputs)
    for name, item in outputs.items():
        assert item["max_value"] > 1e-3, f"{name}: nothing to compare"
        assert item["max_difference"] <= TOLERANCE, (name, item)
    assert certificate["versions"]["torch"] and "Agreement with JAX" in (folder / "README.md").read_text()
    opened = open_export(folder)
    data = agreement.fixed_inputs(export._with_channels(trained, in_chans)[0])
    ours = agreement.layers_in_jax(export._with_channels(trained, in_chans)[0], data)
    if format != "timm" or trained.classes:
        theirs = agreement.layers_in_torch(opened, data)
        rows = agreement.compare_layers(ours, theirs)
        assert {"blocks.0"} <= {name for name, _, _ in rows}
        assert all(difference <= 2e-5 for _, difference, _ in rows), rows


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_full_size_vit_b_agrees(tmp_path, format):
    config = tiny.config("mae_thyroid")
    config.image_size, config.model.patch_size = 224, 16
    for name in ("embed_dim", "depth", "num_heads"):
        config.model[name] = None
    config.model.decoder_embed_dim, config.model.decoder_depth = 512, 8
    config.model.decoder_num_heads = 16
    network = networks.build(config)
    params = jax.tree.map(np.asarray, jax.jit(network.init)())
    trained = trained_network.TrainedNetwork(tmp_path, config, network, params, [])
    folder = export.export(trained, format, tmp_path / "out")
    certificate = json.loads((folder / "certificate.json").read_text())
    for name, item in certificate["agreement"]["outputs"].items():
        assert item["max_difference"] <= TOLERANCE, (name, item)
    tensors = {"mae": 254, "d2mae": 254, "timm": 150}.get(format)
    assert tensors in (None, certificate["file"]["tensors"])


@pytest.mark.parametrize("case", ["mae_p8c3", "mae_p8c1", "mae_p16c3"])
def test_our_torch_file_is_the_published_network(golden, tmp_path, case):
    """`modeling_d2mae.py` with MAE's own weights gives what MAE's own code gives."""
    z = golden(case)
    shutil.copy(GOLDEN / f"{case}.safetensors", tmp_path / "model.safetensors")
    heads = {"num_attention_heads": 4, "decoder_num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(heads))
    trained = trained_network.load(tmp_path)
    folder = export.export(trained, "mae", tmp_path / "out")
    opened = open_export(folder)
    ratio = float(z["mask_ratio"])
    pred = opened.reconstruct(z["imgs"], None, ratio, z["noise"])
    np.testing.assert_allclose(pred, z["pred"], atol=2e-5)
    written = load_file(folder / "model.safetensors")
    assert set(written) == set(load_file(GOLDEN / f"{case}.safetensors"))


def as_timm(path, name, **arguments):
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, **arguments).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    torch.save(model.state_dict(), path)
    return model


@pytest.mark.parametrize(("pool", "classes"), [("avg", 3), ("token", 3), ("token", 0)])
def test_a_timm_network_is_read_and_gives_the_same(tmp_path, pool, classes):
    model = as_timm(tmp_path / "vit.pth", "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2,
                    num_classes=classes, global_pool=pool)  # fmt: skip
    found = trained_network.load(tmp_path / "vit.pth")
    x = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    with torch.inference_mode():
        theirs = model(torch.tensor(x).permute(0, 3, 1, 2)).numpy()
    net, params = found.network.model, {"params": found.params}
    with jax.default_matmul_precision("highest"):
        ours = net.apply(params, x)[0] if classes else net.apply(params, x, method=net.features)
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)
    state, back = model.state_dict(), export.state_of(found)
    assert set(back) == set(state)
    for name, value in state.items():
        np.testing.assert_array_equal(back[name], value.numpy(), err_msg=name)


def test_a_hugging_face_network_is_read_and_gives_the_same(tmp_path):
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96,
             "image_size": 32, "patch_size": 8, "num_channels": 3, "decoder_hidden_size": 32,
             "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
             "decoder_intermediate_size": 64, "layer_norm_eps": 1e-6}  # fmt: skip
    torch.manual_seed(0)
    model = ViTMAEForPreTraining(ViTMAEConfig(**sizes)).eval()
    model.vit.embeddings.position_embeddings.data.zero_()
    model.save_pretrained(tmp_path)
    assert any("pos_embed of the file is not MAE's" in n for n in trained_network.load(tmp_path).notes)
    for place, width in ((model.vit.embeddings.position_embeddings, 48),
                         (model.decoder.decoder_pos_embed, 32)):  # fmt: skip
        place.data = torch.tensor(position.sincos_2d(width, 4, 1))[None]
    model.save_pretrained(tmp_path)
    found = trained_network.load(tmp_path)
    assert not any("fixed table" in note for note in found.notes)
    rng = np.random.default_rng(0)
    x, noise = (
        rng.standard_normal((2, 32, 32, 3)).astype(np.float32),
        rng.random((2, 16)).astype(np.float32),
    )
    with torch.inference_mode():
        theirs = model(torch.tensor(x).permute(0, 3, 1, 2), noise=torch.tensor(noise)).logits.numpy()
    with jax.default_matmul_precision("highest"):
        ours, _ = found.network.model.apply({"params": found.params}, x, noise, 0.75)
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)
    assert found.network.model.num_heads == 3 and found.format == "hf"


def test_checkpoints_of_training_scripts_are_read(tmp_path):
    """`{"model", "optimizer", "args": Namespace}`, with a wrapper's prefix; safe although pickled."""
    import argparse

    state = {f"module.{k}": torch.tensor(v) for k, v in load_file(GOLDEN / "mae_p8c3.safetensors").items()}
    args = argparse.Namespace(model="dmae_vit_base_patch16", norm_pix_loss=True)
    torch.save({"model": state, "args": args, "epoch": 3}, tmp_path / "checkpoint-3.pth")
    found = trained_network.load(tmp_path / "checkpoint-3.pth")
    assert found.config.task.degrade == "blur.gaussian(sigma=1.1)" and found.config.task.norm_pix_loss
    half = {k: torch.tensor(v).bfloat16() for k, v in load_file(GOLDEN / "mae_p8c3.safetensors").items()}
    from safetensors.torch import save_file

    save_file(half, tmp_path / "half.safetensors")
    again = trained_network.load(tmp_path / "half.safetensors")
    np.testing.assert_allclose(again.params["cls_token"], found.params["cls_token"], rtol=1e-2)


class Hostile:
    """Unpickled carelessly, it runs a command."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("inner", [True, False])
def test_a_hostile_pickle_does_nothing(tmp_path, inner):
    mark = tmp_path / "it_ran"
    state = {k: torch.tensor(v) for k, v in load_file(GOLDEN / "mae_p8c3.safetensors").items()}
    torch.save({"model": state, "args": Hostile(mark)} if inner else Hostile(mark), tmp_path / "bad.pth")
    with pytest.raises(UserError, match="loading it could run code") as caught:
        trained_network.load(tmp_path / "bad.pth")
    assert not mark.exists() and "\n" not in str(caught.value)
    # The proof that it would have: the same file, read the careless way.
    torch.load(tmp_path / "bad.pth", weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize(
    ("name", "make", "part"),
    [
        ("text.pth", lambda p: p.write_text("hello"), "not a PyTorch file"),
        ("short.pth", lambda p: (torch.save({"a": torch.zeros(999)}, p), os.truncate(p, 500)), "damaged"),
        ("tensor.pth", lambda p: torch.save(torch.zeros(3), p), "holds a Tensor"),
        ("empty.pth", lambda p: torch.save({}, p), "holds no network"),
        ("other.pth", lambda p: torch.save({"conv1.weight": torch.zeros(3)}, p), "conv1.weight"),
        ("nan.pth", lambda p: torch.save({"cls_token": torch.full((1, 1, 4), float("nan"))}, p), "NaN"),
    ],
)  # fmt: skip
def test_a_bad_pth_is_one_clear_line(tmp_path, name, make, part):
    make(tmp_path / name)
    with pytest.raises(UserError) as caught:
        trained_network.load(tmp_path / name)
    message = str(caught.value)
    assert part in message and name in message and "\n" not in message, message


def test_pth_on_request(runs, tmp_path):
    folder = export.export(runs["mae"], "mae", tmp_path / "out" / "mae.pth")
    found = torch.load(folder / "mae.pth", weights_only=True)
    assert set(found) == {"model"} and "decoder_pred.weight" in found["model"]
    assert open_export(folder).reconstruct is not None
    assert trained_network.load(folder / "mae.pth").params["cls_token"].shape == (1, 1, 32)


@pytest.mark.parametrize(("run", "format"), [("d2mae", "d2mae"), ("d2mae classifier", "d2mae"), ("mean", "timm")])
def test_a_pth_file_is_read_as_the_network_that_was_exported(runs, tmp_path, run, format):
    folder = export.export(runs[run], format, tmp_path / "out" / "weights.pth")
    before, after = trained_network.load(runs[run]), trained_network.load(folder / "weights.pth")
    assert after.classes == before.classes and after.config.model.to_dict() == before.config.model.to_dict()
    assert after.config.task.degrade == before.config.task.degrade and not after.notes
    pictures = np.random.default_rng(0).integers(0, 255, (2, 40, 50), np.uint8)
    np.testing.assert_allclose(dm.encode(after, pictures, level=1 if "d2mae" in run else None),
                               dm.encode(before, pictures, level=1 if "d2mae" in run else None), atol=1e-5)  # fmt: skip
    (folder / "certificate.json").unlink()  # then it is the file of anybody, of which little is known
    if format == "timm":
        assert trained_network.load(folder / "weights.pth").notes


@pytest.mark.parametrize("run", ["d2mae", "d2mae classifier"])
def test_the_model_file_reads_a_pth_file(runs, tmp_path, run):
    folder = export.export(runs[run], "d2mae", tmp_path / "out" / "w.pth")
    model = modeling(folder / "modeling_d2mae.py").load(folder, "w.pth")
    assert len(model.state_dict()) > 20 and "w.pth" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.ones((40, 50), np.float32), "nearly black; multiply by 255"),
        (np.full((40, 50), np.nan, np.float32), "values from nan"),
        (np.full((40, 50), 4000, np.int32), "expected gray levels 0..255"),
        (np.zeros((3, 40, 50), np.uint8), r"shape \(3, 40, 50\); expected \(H, W\)"),
        (np.zeros((40, 2000), np.uint8), "2000 x 40 pixels; in training, larger ones were shrunk to 1024"),
    ],
)
def test_the_model_file_refuses_what_is_no_image_of_gray_levels(runs, tmp_path, image, message):
    folder = export.export(runs["d2mae"], "d2mae", tmp_path / "out")
    model = modeling(folder / "modeling_d2mae.py").load(folder)
    with pytest.raises(ValueError, match=message):
        model.view(torch.from_numpy(image), 1)
    with pytest.raises(ValueError, match="expected a tensor, got ndarray"):
        model.view(image, 1)


def test_the_factors_of_dinov2_become_part_of_its_layers(tmp_path):
    model = as_timm(tmp_path / "dino.pth", "vit_small_patch14_dinov2", img_size=28, depth=2, num_classes=0)
    state = torch.load(tmp_path / "dino.pth", weights_only=True)
    assert any(".ls1.gamma" in name for name in state)
    torch.save(state | {"mask_token": torch.zeros(1, 384)}, tmp_path / "meta.pth")  # as the published files
    x = np.random.default_rng(0).standard_normal((2, 28, 28, 3)).astype(np.float32)
    with torch.inference_mode():
        theirs = model.forward_features(torch.tensor(x).permute(0, 3, 1, 2))[:, 0].numpy()
    for name in ("dino.pth", "meta.pth"):
        found = trained_network.load(tmp_path / name)
        with jax.default_matmul_precision("highest"):
            ours = found.model.apply({"params": found.params}, x, method=found.model.features)
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_timm_opens_the_folder_by_itself(runs, tmp_path):
    import timm

    folder = export.export(runs["mean"], "timm", tmp_path / "out")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    want = load_file(folder / "model.safetensors")
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), want[name])
    assert model.pretrained_cfg["mean"] == [0.449]


def test_hugging_face_opens_the_folder_by_itself(runs, tmp_path):
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    for run in ("mean", "cls"):
        folder = export.export(runs[run], "hf", tmp_path / run, in_chans=3)
        model = AutoModelForImageClassification.from_pretrained(folder)
        assert model.config.id2label == {0: "benign", 1: "malignant"}
        processor = AutoImageProcessor.from_pretrained(folder)
        out = processor(Image.new("RGB", (50, 40)), return_tensors="pt")["pixel_values"]
        assert out.shape == (1, 3, 16, 16) and model(out).logits.shape == (1, 2)


def phantoms(folder, count=4, color=False):
    folder.mkdir()
    source = Phantoms(count, 3, 40)
    for i in range(count):
        image = Image.fromarray(source.read(i)[:, :, 0])
        (image.convert("RGB") if color else image).save(folder / f"{i}.png")
    return [source.read(i) for i in range(count)]


def own_file(folder):
    """The exported model file, imported as a consumer would: from its own folder."""
    return modeling(folder / "modeling_d2mae.py")


@pytest.mark.parametrize("kernel", blur.KERNELS)
def test_the_blur_of_the_torch_file(kernel):
    module = modeling()
    image = np.random.default_rng(0).random((1, 31, 27)).astype(np.float32) * 255
    for sigma in (0.1, 0.3, 0.7, 1.1, 1.6, 2.2):
        want = blur.gaussian_blur(jnp.asarray(image[0, :, :, None]), sigma, kernel=kernel)
        got = module.gaussian_blur(torch.tensor(image), sigma, kernel)[0]
        np.testing.assert_allclose(got, want[:, :, 0], atol=2e-4)


def test_the_search_of_the_torch_file(runs, tmp_path):
    folder = export.export(runs["d2mae"], "d2mae", tmp_path / "out")
    model = own_file(folder).load(folder)
    trained = dm.load(runs["d2mae"])
    images = phantoms(tmp_path / "images")
    table = dm.search_blur(trained, images, step=2)
    for image, best, row in zip(images, table.best, table.losses, strict=True):
        level, errors = model.search(torch.tensor(image[:, :, 0]))
        np.testing.assert_allclose(list(errors.values()), row, rtol=2e-5)
        assert level == best


def test_the_search_of_the_torch_file_on_fine_detail(runs, tmp_path):
    folder = export.export(runs["d2mae"], "d2mae", tmp_path / "out")
    model, trained = own_file(folder).load(folder), dm.load(runs["d2mae"])
    images = phantoms(tmp_path / "images", 2)
    table = levels.search(trained, arrays.as_list(images), 2, high_pass=1.0)
    whole = dm.search_blur(trained, images, step=2)
    assert np.abs(table.losses / whole.losses - 1).max() > 0.1
    for image, row in zip(images, table.losses, strict=True):
        _, errors = model.search(torch.tensor(image[:, :, 0]), 2, high_pass=1.0)
        np.testing.assert_allclose(list(errors.values()), row, rtol=2e-4)


def test_the_torch_file_says_what_is_wrong_with_a_level_or_missing(runs, tmp_path):
    folder = export.export(runs["d2mae classifier"], "d2mae", tmp_path / "out")
    assert json.loads((folder / "config.json").read_text())["high_pass"] == 0.0
    image = torch.tensor(phantoms(tmp_path / "images", 1)[0][:, :, 0])
    model = own_file(folder).load(folder)
    for level in (-1, 99, None):
        with pytest.raises(ValueError, match=f"level={level}: expected a level from 1 to"):
            model.view(image, level)
    (folder / "searcher.json").unlink()
    with pytest.raises(ValueError, match=r"searcher\.safetensors and searcher\.json beside the weights"):
        own_file(folder).load(folder).predict(image)


def test_an_export_does_not_keep_the_search_of_an_earlier_one(runs, tmp_path):
    folder = export.export(runs["d2mae classifier"], "d2mae", tmp_path / "out")
    assert (folder / "searcher.json").exists()
    export.export(runs["mean"], "d2mae", folder)
    assert not (folder / "searcher.json").exists() and not (folder / "searcher.safetensors").exists()


def test_whole_numbers_in_a_pth_are_refused_and_what_is_read_of_several_is_said(tmp_path):
    state = {name: torch.tensor(value) for name, value in load_file(GOLDEN / "mae_p8c3.safetensors").items()}
    torch.save({name: (100 * value).to(torch.int8) for name, value in state.items()}, tmp_path / "int8.pth")
    with pytest.raises(UserError, match="arrays of int8, whose scale is not known"):
        files.read(tmp_path / "int8.pth", "f")
    torch.save({"model": state, "model_ema": state}, tmp_path / "both.pth.tar")
    read = files.read(tmp_path / "both.pth.tar", "f")
    assert read.notes == ["its weights under 'model' are read, not those under 'model_ema'"]
    torch.save({"teacher": state}, tmp_path / "teacher.pth")
    assert files.read(tmp_path / "teacher.pth", "f").state.keys() == read.state.keys()


@pytest.mark.parametrize(
    "fields",
    [{}, {"model__conditioning": "addition"}, {"model__level_code": "table"}, {"model__level_code": "mlp"},
     {"model__decoder_level_token": False}, {"task__blur_site": "network", "model__in_chans": 3},
     {"model__in_chans": 3, "data__gray_target": True}, {"data__mean": (0.3,), "data__std": (0.2,)},
     {"task__norm_pix_loss": True}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("in_chans", [0, 3])
def test_every_kind_of_d2mae(tmp_path, fields, in_chans):
    config = tiny.config("d2mae_thyroid", **fields)
    network = networks.build(config)
    params = jax.jit(network.init)()
    trained = stirred(trained_network.TrainedNetwork(tmp_path, config, network, params, []))
    folder = export.export(trained, "d2mae", tmp_path / "out", in_chans)
    outputs = json.loads((folder / "certificate.json").read_text())["agreement"]["outputs"]
    assert max(item["max_difference"] for item in outputs.values()) <= TOLERANCE
    model, back = modeling().load(folder), dm.load(folder)
    images = phantoms(tmp_path / "images", 2)
    table = dm.search_blur(back, images)
    for image, row in zip(images, table.losses, strict=True):
        _, errors = model.search(torch.tensor(image[:, :, 0]))
        np.testing.assert_allclose(list(errors.values()), row, rtol=2e-5)


def test_a_segmentation_takes_the_network_of_its_search_along(runs, tmp_path):
    levels = {"task__degrade": "blur.gaussian_levels(max_sigma=1.1, step=0.1)", "model__conditioning": "none"}
    trained = tiny_runs.stirred("segment_images", **levels)
    trained.mask_values = [0, 255]
    trained.__dict__["searcher"] = dm.load(runs["d2mae"])  # as that of a run that started from it
    folder = export.export(trained, "", tmp_path / "out")
    certificate = json.loads((folder / "certificate.json").read_text())
    assert certificate["searcher"] and (folder / "searcher.safetensors").exists()
    back = dm.load(folder / certificate["file"]["name"])
    assert back.config.search.setting == "search(2)" and back.searcher is not None
    (folder / "searcher.safetensors").unlink()
    with pytest.raises(UserError, match="there is no copy there"):
        dm.segment(dm.load(folder / certificate["file"]["name"]), phantoms(tmp_path / "images", 1))


@pytest.mark.parametrize("run", ["d2mae classifier", "mean", "probe"])
@pytest.mark.parametrize("in_chans", [0, 3])
def test_the_torch_file_predicts_as_we_do(runs, tmp_path, run, in_chans):
    folder = export.export(runs[run], "d2mae", tmp_path / "out", in_chans)
    assert (folder / "searcher.json").exists() == (run == "d2mae classifier")
    model = own_file(folder).load(folder)
    images = phantoms(tmp_path / "images")
    want = dm.predict(dm.load(runs[run]), images)
    got = np.stack([model.predict(torch.tensor(image[:, :, 0])).numpy() for image in images])
    np.testing.assert_allclose(got, want, atol=1e-5)
    np.testing.assert_allclose(dm.predict(dm.load(folder), images), want, atol=1e-5)


def run_script(name, *arguments):
    before = sys.argv
    sys.argv = [name, *map(str, arguments)]
    try:
        runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")
    finally:
        sys.argv = before


@pytest.mark.parametrize("run", ["mean", "probe"])
def test_thirty_lines_of_torch_give_the_same_predictions(runs, tmp_path, run):
    from deblur_mae_jax.commands import predict

    folder = tmp_path / "export"
    run_script("export_to_pytorch.py", runs[run], "--format=timm", f"--output={folder}")
    phantoms(tmp_path / "images", 6)
    run_script(
        "score_with_pytorch.py",
        folder,
        f"--input={tmp_path / 'images'}",
        f"--output={tmp_path / 's.csv'}",
    )
    predict.run(runs[run], str(tmp_path / "images"), tmp_path / "ours.csv")
    ours, theirs = (list(csv.DictReader((tmp_path / name).read_text().splitlines())) for name in ("ours.csv", "s.csv"))
    assert [row["image"] for row in ours] == [row["image"] for row in theirs] and len(ours) == 6
    for a, b in zip(ours, theirs, strict=True):
        for column in ("p_benign", "p_malignant"):
            assert abs(float(a[column]) - float(b[column])) <= 1e-4


def test_deep_and_turned_images_are_scored_as_they_are_predicted(runs, tmp_path, capsys):
    from deblur_mae_jax.commands import predict

    folder, images = tmp_path / "export", tmp_path / "images"
    run_script("export_to_pytorch.py", runs["mean"], "--format=timm", f"--output={folder / 'w.pth'}")
    images.mkdir()
    picture = np.random.default_rng(0).integers(0, 255, (40, 60)).astype(np.uint8)
    Image.fromarray(picture.astype(np.uint16) * 257).save(images / "deep.png")
    Image.fromarray(picture.astype(np.uint16) * 16).save(images / "deep.tif")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(picture).save(images / "turned.png", exif=turned)
    (images / "damaged.png").write_bytes(b"no")
    run_script("score_with_pytorch.py", folder, f"--input={images}", f"--output={tmp_path / 's.csv'}")
    assert "left out" in capsys.readouterr().err
    predict.run(runs["mean"], str(images), tmp_path / "ours.csv")
    ours, theirs = (list(csv.DictReader((tmp_path / name).read_text().splitlines())) for name in ("ours.csv", "s.csv"))
    assert [row["image"] for row in ours] == [row["image"] for row in theirs] and len(ours) == 3
    for a, b in zip(ours, theirs, strict=True):
        assert abs(float(a["p_malignant"]) - float(b["p_malignant"])) <= 1e-4, a["image"]
    for wrong in (tmp_path / "nothing", tmp_path / "export"):
        with pytest.raises(SystemExit):
            run_script("score_with_pytorch.py", folder, f"--input={wrong}")
        assert "--input: no image in" in capsys.readouterr().err


@pytest.mark.parametrize(("run", "format"), [("mae", "hf"), ("d2mae classifier", "d2mae"), ("mae", "timm")])
def test_the_comparison_prints_and_draws(runs, tmp_path, capsys, run, format):
    phantoms(tmp_path / "images", color=True)
    (tmp_path / "images" / "broken.png").write_bytes(b"no")
    run_script("compare_with_pytorch.py", runs[run], tmp_path / "images", f"--format={format}",
               f"--output={tmp_path / 'c.png'}")  # fmt: skip
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines() if line.startswith(("blocks", "reconstruction ", "logits"))]
    assert lines or format == "timm"
    assert all(float(line[1]) < 1e-4 for line in lines)
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.width > 500


def test_the_model_file_needs_torch_alone(runs, tmp_path):
    """In a process without JAX, NumPy's safetensors and this library."""
    import subprocess

    folder = export.export(runs["d2mae"], "d2mae", tmp_path / "out")
    program = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("jax", "flax", "safetensors", "timm", "transformers", "deblur_mae_jax"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
import torch
from modeling_d2mae import load
model = load(".")
image = torch.rand(30, 40) * 255
level, _ = model.search(image)
print(model.encode(model.view(image, level), level).shape)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=folder)
    assert "torch.Size([1, 18, 32])" in done.stdout, done.stderr
