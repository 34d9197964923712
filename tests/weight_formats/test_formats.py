"""Names, shapes and files of PyTorch, without PyTorch."""

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file, save_file
from tiny_runs import go, pretraining

from deblur_mae_jax import network as networks
from deblur_mae_jax import train
from deblur_mae_jax.commands import predict, run
from deblur_mae_jax.degradations import parse
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.export import export, opened
from deblur_mae_jax.export.description import describe
from deblur_mae_jax.input_pipeline.images import IMAGENET, ImageInputs
from deblur_mae_jax.models import vit, vit_mae
from deblur_mae_jax.pretrained import trained_network, warm_start
from deblur_mae_jax.weight_formats import channels, contract, files, huggingface, mae, names, timm
from deblur_mae_jax.weight_formats import vit as shared

ROOT = tiny.ROOT
GOLDEN = ROOT / "tests" / "golden"


def hollow(shapes):
    """Arrays of these shapes that take no memory."""
    return jax.tree.map(lambda s: np.broadcast_to(np.float32(0), s.shape), shapes)


def trained_of(model, classes=()):
    """A network without weights to speak of, as `export` takes it."""
    level, image = jnp.ones((1,), jnp.int32), jnp.zeros((1, 224, 224, model.in_chans))
    rest = (level,) if classes else (jnp.zeros((1, model.num_patches)), 0.75, level)
    shapes = jax.eval_shape(lambda key: model.init(key, image, *rest), jax.random.key(0))["params"]
    name = "finetune" if classes else "mae_thyroid"
    config = tiny.resolved(name, image_size=224, model__patch_size=model.patch_size, model__in_chans=3)
    network = dataclasses.replace(networks.build(config, len(classes)), model=model)
    return trained_network.TrainedNetwork(Path("none"), config, network, hollow(shapes), list(classes))


def converted(trained, format):
    return format.from_ours(describe(trained), export.state_of(trained))


def listed(state):
    return {f"{k}:{'x'.join(map(str, v.shape)) or 'scalar'}" for k, v in state.items()}


def scaled(keys, width, depth, patch):
    """MAE's list for ViT-B/16 with the sizes of another variant put in."""
    out = set()
    tokens = (224 // patch) ** 2 + 1
    for entry in keys:
        name, shape = entry.split(":")
        number = name.split(".")[1] if name.startswith("blocks.") else "0"
        if name.startswith("blocks.") and number != "0":
            continue
        encoder = not name.startswith(("decoder_", "mask_token")) or name == "decoder_embed.weight"
        known = {"768": width, "2304": 3 * width, "3072": 4 * width} if encoder else {}
        known |= {"197": tokens, "16": patch} | ({"768": patch * patch * 3} if name.startswith("decoder_pred") else {})
        shape = "x".join(str(known.get(n, n)) for n in shape.split("x"))
        copies = range(depth) if name.startswith("blocks.") else range(1)
        out |= {f"{name.replace('blocks.0', f'blocks.{i}') if encoder else name}:{shape}" for i in copies}
    return out


@pytest.mark.parametrize(("variant", "width", "depth", "patch"),
                         [("B", 768, 12, 16), ("L", 1024, 24, 16), ("H", 1280, 32, 14)])  # fmt: skip
def test_every_key_and_shape_of_mae(golden, variant, width, depth, patch):
    keys = {str(k) for k in golden("mae_vitb16_224_recipe")["all_keys"]}
    assert len(keys) == 254
    want = keys if variant == "B" else scaled(keys, width, depth, patch)
    model = vit_mae.Model(variant, image_size=224, patch_size=patch, in_chans=3)
    state, left, changed = converted(trained_of(model), mae)
    assert listed(state) == want and not left and not changed
    assert contract.recognise(state) is mae and set(mae.to_ours(state)) == set(state)


def test_every_key_and_shape_of_timm(golden):
    keys = {str(k) for k in golden("timm_vit_keys")["vit_base_patch16_224_c1000"]}
    model = vit.Model("B", image_size=224, in_chans=3, num_classes=1000, pool="cls")
    state, _, _ = converted(trained_of(model, ["c"] * 1000), timm)
    assert listed(state) == keys


@pytest.mark.parametrize("format", [mae, timm, huggingface], ids=lambda m: m.NAME)
@pytest.mark.parametrize("pool", ["pre-training", "mean", "cls"])
def test_formats_and_back_are_exact(format, pool):
    name = "mae_p8c3" if pool == "pre-training" else {"mean": "vit_gap", "cls": "vit_cls"}[pool]
    state = load_file(GOLDEN / f"{name}.safetensors")
    state.pop("head.0.num_batches_tracked", None)
    task = "masked_recon" if pool == "pre-training" else "classify"
    network = {"conditioning": "none", "task": task, "pool": pool, "num_classes": 3, "image_size": 32}
    there = format.from_ours(network, state).state
    back = contract.recognise(there).to_ours(there)
    want = state if format is mae else shared.fold_probe(state)
    if format is timm:
        want = {k: v for k, v in want.items() if not shared.DECODER.match(k)}
        if pool == "pre-training":  # an encoder has an empty head
            assert back.pop("head.weight").shape == (0, 48) and back.pop("head.bias").shape == (0,)
    assert set(back) == set(want)
    for key, value in want.items():
        if format is huggingface and pool == "mean" and key.endswith("qkv.bias"):
            third = len(value) // 3  # BEiT has no bias of the keys, which changes no attention
            value = np.concatenate([value[:third], np.zeros(third, np.float32), value[2 * third :]])
        np.testing.assert_array_equal(back[key], value, err_msg=key)


def test_names_of_every_version_of_transformers():
    network = {"conditioning": "none", "task": "masked_recon", "image_size": 32}
    state = huggingface.from_ours(network, load_file(GOLDEN / "mae_p8c3.safetensors")).state
    newer = {}
    for name, value in state.items():
        name = name.replace("vit.encoder.layer.", "vit.layers.")
        for old, new in (("attention.attention.query", "attention.q_proj"),
                         ("attention.attention.key", "attention.k_proj"),
                         ("attention.attention.value", "attention.v_proj"),
                         ("attention.output.dense", "attention.o_proj"),
                         ("intermediate.dense", "mlp.fc1"), (".output.dense", ".mlp.fc2")):  # fmt: skip
            name = name.replace(old, new)
        newer[name] = value
    written = {k.replace("decoder.decoder_layers.", "decoder.decoder_encoder.layer."): v for k, v in state.items()}
    bare = {k.removeprefix("vit."): v for k, v in state.items() if k.startswith("vit.")}
    want = huggingface.to_ours(state)
    for other in (newer, written):
        found = huggingface.to_ours(other)
        assert set(found) == set(want) and all((found[k] == want[k]).all() for k in want)
    assert contract.recognise(bare) is huggingface
    encoder = {k for k in want if not shared.DECODER.match(k)}
    assert set(huggingface.to_ours(bare)) == encoder | {"head.weight", "head.bias"}


def test_a_linear_probe_is_folded_exactly():
    rng = np.random.default_rng(0)
    mean, var = rng.standard_normal(8), rng.random(8) + 0.1
    weight, bias, x = (
        rng.standard_normal((3, 8)),
        rng.standard_normal(3),
        rng.standard_normal((5, 8)),
    )
    state = {"head.0.running_mean": mean, "head.0.running_var": var, "head.1.weight": weight,
             "head.1.bias": bias, "cls_token": np.zeros(1)}  # fmt: skip
    folded = shared.fold_probe(state)
    want = ((x - mean) / np.sqrt(var + 1e-6)) @ weight.T + bias
    np.testing.assert_allclose(x @ folded["head.weight"].T + folded["head.bias"], want, atol=2e-6)
    assert set(folded) == {"head.weight", "head.bias", "cls_token"}


def gray(size, channels_, seed, mean, std):
    level = np.random.default_rng(seed).random((2, size, size, 1))
    return ((np.repeat(level, channels_, -1) - np.array(mean)) / np.array(std)).astype(np.float32)


@settings(max_examples=2, deadline=None)
@given(st.integers(0, 99), st.sampled_from([(1, 3), (3, 1)]), st.booleans())
def test_another_number_of_channels_sees_gray_images_alike(seed, change, imagenet):
    before, after = change
    own = {1: ((0.3,), (0.2,)), 3: ((0.3, 0.4, 0.5), (0.2, 0.25, 0.3))}
    old, new = (IMAGENET if imagenet else own)[before], (IMAGENET if imagenet else own)[after]
    make = lambda chans: vit_mae.Model("Ti", image_size=16, patch_size=4, in_chans=chans, embed_dim=16, depth=1,
                                       num_heads=2, decoder_embed_dim=16, decoder_depth=1,
                                       decoder_num_heads=2)  # fmt: skip
    one, two = make(before), make(after)
    noise = np.random.default_rng(seed).random((2, 16)).astype(np.float32)
    params = one.init(jax.random.key(seed), gray(16, before, 0, *old), noise)["params"]
    pipelines = [
        ImageInputs(parse.degradation("none"), in_chans=chans, mean=values[0], std=values[1])
        for chans, values in ((before, old), (after, new))
    ]
    there = channels.convert(params, *pipelines, norm_pix=False)
    with jax.default_matmul_precision("highest"):
        a, seen = one.apply({"params": params}, gray(16, before, seed, *old), noise)
        b, also = two.apply({"params": there}, gray(16, after, seed, *new), noise)
    np.testing.assert_allclose(seen["latent"], also["latent"], atol=3e-5)
    a = np.asarray(a).reshape(2, 16, 16, before) * np.array(old[1]) + np.array(old[0])
    b = np.asarray(b).reshape(2, 16, 16, after) * np.array(new[1]) + np.array(new[0])
    np.testing.assert_allclose(np.broadcast_to(a.mean(-1, keepdims=True), b.shape), b, atol=3e-5)


def foreign_file(path, change=None, name="mae_p8c3"):
    state = load_file(GOLDEN / f"{name}.safetensors")
    if change is not None:
        state = change(state)
    save_file(state, path)
    return path


def test_a_file_of_mae_is_the_network_it_was(golden, tmp_path):
    z = golden("mae_p8c3")
    # 48 wide and 32 wide decoders are no usual sizes, so the heads come from a config beside the weights.
    config = {
        "num_attention_heads": 4,
        "decoder_num_attention_heads": 4,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    foreign_file(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = trained_network.load(tmp_path)
    assert found.format == "mae" and found.config.image_size == 32 and found.config.data.mean == (0.5,) * 3
    images = np.moveaxis(z["imgs"], 1, -1)
    pred, _ = found.network.model.apply({"params": found.params}, images, z["noise"], 0.75)
    np.testing.assert_allclose(pred, z["pred"], atol=2e-5)
    state = export.state_of(found)
    for key, value in load_file(GOLDEN / "mae_p8c3.safetensors").items():
        close = np.testing.assert_allclose if "pos_embed" in key else np.testing.assert_array_equal
        close(state[key], value, **({"atol": 1e-6} if "pos_embed" in key else {}))


@pytest.mark.slow
def test_an_encoder_alone_and_a_classifier(golden, tmp_path):
    import deblur_mae_jax as dm

    path = foreign_file(
        tmp_path / "encoder.safetensors",
        lambda s: {k: v for k, v in s.items() if not shared.DECODER.match(k)},
    )
    encoder = dm.load(path)
    picture = np.zeros((40, 40), np.uint8)
    assert encoder.info.classes == [] and dm.encode(encoder, picture).shape == (1, 48)
    with pytest.raises(UserError, match="no decoder"):
        dm.reconstruct(encoder, picture)
    (tmp_path / "f").mkdir()
    foreign_file(tmp_path / "f" / "model.safetensors", name="vit_gap")
    config = {"num_attention_heads": 4, "label_names": ["a", "b", "c"]}
    (tmp_path / "f" / "config.json").write_text(json.dumps(config))
    found = trained_network.load(tmp_path / "f")
    z = golden("vit_gap")
    logits, _ = found.network.model.apply({"params": found.params}, np.moveaxis(z["imgs"], 1, -1))
    np.testing.assert_allclose(logits, z["logits"], atol=1e-5)
    assert found.classes == ["a", "b", "c"]
    assert dm.predict(dm.load(tmp_path / "f"), picture).shape == (1, 3)
    (tmp_path / "images").mkdir()
    Image.fromarray(picture).save(tmp_path / "images" / "a.png")
    table = predict.run(tmp_path / "f", str(tmp_path / "images"), tmp_path / "out.csv")
    assert table.read_text().splitlines()[0].endswith("p_a,p_b,p_c,level,sigma")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "depth"), [("mae_p8c3", 3), ("mae_p8c1", 2)])
def test_pre_training_starts_from_a_file(tmp_path, name, depth, capsys):
    path = foreign_file(tmp_path / "mae.safetensors", name=name)
    config = tiny.config(
        "d2mae_thyroid:warm_start", init_from=str(path), image_size=32, model__patch_size=8, model__embed_dim=48,
        model__depth=depth, model__decoder_embed_dim=32, model__decoder_depth=depth - 1,
    )  # fmt: skip
    source = trained_network.load(path)
    network = networks.build(config)
    found = warm_start.fit(source, jax.eval_shape(network.init), network)
    assert found.new == ["blur_token"]
    np.testing.assert_array_equal(found.params["cls_token"], source.params["cls_token"])
    result = train.train_and_evaluate(config, tmp_path / "run")
    out = capsys.readouterr().err
    assert f"blocks 0 to {depth - 1}" in out and "blur_token" in out and result.finished
    assert ("from 3 channels to 1" in out) == (name == "mae_p8c3")
    # A run that goes on needs the file no more.
    path.unlink()
    assert train.train_and_evaluate(config, tmp_path / "run").finished


def test_a_decoder_of_another_size_starts_anew(tmp_path):
    source = trained_network.load(foreign_file(tmp_path / "mae.safetensors"))
    config = tiny.config("mae_thyroid", image_size=64, model__patch_size=8, model__embed_dim=48, model__depth=3,
                         model__in_chans=3)  # fmt: skip
    network = networks.build(config)
    found = warm_start.fit(source, jax.eval_shape(network.init), network)
    assert {"decoder_embed", "decoder_pred", "mask_token"} <= set(found.new)
    assert "decoder_embed" in dict(found.rows)["left out"] and "blocks_0" in found.params


@pytest.mark.slow
def test_fine_tuning_starts_from_a_file(tmp_path, capsys):
    path = foreign_file(tmp_path / "mae.safetensors")
    go(tmp_path / "run", init_from=str(path), model__in_chans=1, image_size=24, optim__epochs=1.0)
    out = capsys.readouterr().err
    assert "from 4 x 4 to 3 x 3" in out and "from 3 channels to 1" in out
    assert "in_chans=1 (the checkpoint has 3)" in out
    assert "For a DeblurringMIM checkpoint add --config.task.degrade='blur.gaussian(sigma=1.1)'" in out


def test_weights_and_back_are_bit_exact(tmp_path):
    source = trained_network.load(pretraining())
    folder = export.export(source, "d2mae", tmp_path / "out")
    back = trained_network.load(folder)
    assert back.weights_hash == source.weights_hash and back.config.task.degrade == source.config.task.degrade
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), back.params, source.params))
    mae = trained_network.load(pretraining("mae_thyroid"))
    for format in ("mae", "hf"):
        again = trained_network.load(export.export(mae, format, tmp_path / format))
        assert again.weights_hash == mae.weights_hash


def test_what_an_export_leaves(tmp_path, monkeypatch):
    monkeypatch.setattr(opened.importlib.util, "find_spec", lambda name: None)
    folder = export.export(pretraining("mae_thyroid"), "timm", tmp_path / "out" / "vit.safetensors", in_chans=3)
    assert {p.name for p in folder.iterdir()} == {
        "vit.safetensors",
        "certificate.json",
        "README.md",
        "config.json",
    }
    text = (folder / "certificate.json").read_text()
    certificate = json.loads(text)
    assert certificate["agreement"]["status"] == "not measured" and "pip install" in certificate["agreement"]["why"]
    card = (folder / "README.md").read_text()
    assert "Not measured" in card and "timm.create_model" in card and "gray images give the same" in card
    whole = text + card + str(files._safetensors(folder / "vit.safetensors")[1])
    assert str(tmp_path) not in whole and str(pretraining("mae_thyroid").parent) not in whole
    digest = __import__("hashlib").sha256((folder / "vit.safetensors").read_bytes()).hexdigest()
    assert certificate["file"]["sha256"] == digest and digest in card
    assert certificate["source"]["fingerprint"] and certificate["source"]["config"]["optim.batch_size"] == 8
    export.export(pretraining("mae_thyroid"), "timm", folder / "vit.safetensors")  # again, over itself


@pytest.mark.parametrize(
    ("format", "run", "output", "in_chans", "parts"),
    [
        ("onnx", "mae_thyroid", "", 0, ["--format", "onnx", "timm"]),
        ("timm", "quickstart", "", 0, ["blur token", "Choices: d2mae"]),
        ("mae", "mae_thyroid", "", 2, ["--in_chans=2", "1, 3"]),
        ("mae", "mae_thyroid", "weights.txt", 0, ["weights.txt", ".safetensors or .pth"]),
        ("hf", "mae_thyroid", "hf/other.safetensors", 0, ["name a folder"]),
        ("mae", "mae_thyroid", "taken/w.safetensors", 0, ["README.md", "folder of its own"]),
        ("mae", "mae_thyroid", "taken/README.md/w.safetensors", 0, ["is a file"]),
    ],
)  # fmt: skip
def test_a_bad_export_is_one_clear_line(tmp_path, format, run, output, in_chans, parts):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "README.md").write_text("mine")
    with pytest.raises(UserError) as caught:
        export.export(pretraining(run), format, tmp_path / output if output else "", in_chans)
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in parts), message
    assert (tmp_path / "taken" / "README.md").read_text() == "mine"


def nan_inside(state):
    state["blocks.1.mlp.fc1.weight"][3, 3] = np.nan
    return state


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda p: foreign_file(p / "w.safetensors", nan_inside), ["NaN", "blocks.1.mlp.fc1.weight"]),
        (lambda p: foreign_file(p / "w.safetensors", lambda s: s | {"blocks.0.attn.q_norm.weight": np.ones(48)}),
         ["not a plain ViT", "blocks.0.attn.q_norm.weight"]),
        (lambda p: foreign_file(p / "w.safetensors", lambda s: {k: v for k, v in s.items() if k != "cls_token"}),
         ["'cls_token' is missing"]),
        (lambda p: foreign_file(p / "w.safetensors",
                                lambda s: {k: v for k, v in s.items() if "blocks.1.norm1" not in k}),
         ["missing", "blocks.1.norm1.bias"]),
        (lambda p: foreign_file(p / "w.safetensors", lambda s: {"layer1.0.conv.weight": s["norm.weight"]}),
         ["no network of a known format", "layer1.0.conv.weight", "timm"]),
        (lambda p: foreign_file(p / "w.safetensors", lambda s: {"patch_embed1.proj.weight": s["norm.weight"]}),
         ["do not have the shapes"]),
        (lambda p: foreign_file(p / "w.safetensors", lambda s: s | {"pos_embed": s["pos_embed"][:, :-1]}),
         ["square"]),
        (lambda p: write(p / "w.safetensors", b"hello, this is text"), ["damaged or not a safetensors file"]),
        (lambda p: write(p / "w.safetensors", (GOLDEN / "mae_p8c3.safetensors").read_bytes()[:5000]),
         ["damaged or not a safetensors file"]),
        (lambda p: write(p / "notes.txt", b"hello"), [".txt", ".safetensors", ".pth"]),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_clear_line(tmp_path, make, parts):
    with pytest.raises(UserError) as caught:
        trained_network.load(make(tmp_path))
    message = str(caught.value)
    assert "\n" not in message and str(tmp_path) in message and "config.init_from" in message
    assert all(part in message for part in parts), message


def write(path, data):
    path.write_bytes(data)
    return path


def test_the_wrong_architecture_and_a_missing_decoder(tmp_path):
    path = foreign_file(tmp_path / "mae.safetensors")
    with pytest.raises(UserError, match=r"do not fit the network: .*other shape.*None of the weights fits"):
        train.train_and_evaluate(tiny.config("d2mae_thyroid:warm_start", init_from=str(path)), tmp_path / "run")
    folder = export.export(pretraining("mae_thyroid"), "timm", tmp_path / "timm")
    with pytest.raises(UserError, match="has no decoder"):
        config = tiny.config("blur_search", init_from=str(folder), data__phantom_seed=1)
        run.run(config, tmp_path / "search")


def test_the_library_works_without_torch(tmp_path):
    """In a process in which torch, timm and transformers cannot be imported."""
    program = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "timm", "transformers"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
sys.path.insert(0, {str(ROOT)!r})
import deblur_mae_jax as dm
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.weight_formats import files
open({str(tmp_path / "w.pth")!r}, "wb").write(b"x")
try:
    dm.load({str(tmp_path / "w.pth")!r})
except UserError as error:
    print(error)
print(dm.export_to_pytorch.__name__)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200)
    assert "PyTorch, which is not installed: pip install '.[pytorch]' in the repository" in done.stdout, done.stderr
    assert "export" in done.stdout


def test_arguments_of_a_training_script_tell_the_degradation():
    state = shared.checked(load_file(GOLDEN / "mae_p8c3.safetensors"))
    for name, degrade in (("dmae_vit_base_patch16", "blur.gaussian(sigma=1.1)"), ("mae_vit_base_patch16", "none")):
        arguments = vars(argparse.Namespace(model=name))
        weights = contract.Weights(Path("w"), state, mae, {}, {}, arguments)
        assert shared.infer(weights).values["task.degrade"] == degrade
    assert names.pytorch_name(("blocks_3", "norm1", "scale")) == "blocks.3.norm1.weight"
