"""BEiT and SimMIM against timm: outputs, gradients, files both ways, files of the published code. Needs `pytorch`."""

import argparse
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import traverse_util
from safetensors.numpy import load_file

torch = pytest.importorskip("torch", reason="pip install deblur_mae_jax[pytorch] (or make test-pytorch)")
if importlib.util.find_spec("timm") is None:
    pytest.skip("pip install deblur_mae_jax[pytorch]", allow_module_level=True)

import timm

from deblur_mae_jax import network as networks
from deblur_mae_jax import train
from deblur_mae_jax.export import export
from deblur_mae_jax.models import beit
from deblur_mae_jax.pretrained import inherit, trained_network
from deblur_mae_jax.weight_formats import names, timm_beit

SIZE, PATCH = 32, 8
ARGUMENTS = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}
KINDS = {
    "relative": {"use_rel_pos_bias": True, "use_shared_rel_pos_bias": False, "init_values": 0.1},
    "relative_shared": {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True, "init_values": 0.1},
    "without layer scale": {"use_rel_pos_bias": True, "use_shared_rel_pos_bias": False, "init_values": None},
}


def theirs(kind, **changes):
    """A small timm BEiT whose parameters are all random."""
    torch.manual_seed(0)
    model = timm.create_model("beit_base_patch16_224", **ARGUMENTS | KINDS[kind] | changes)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def ours(model, positions="relative", **fields):
    state = timm_beit.to_ours({k: v.detach().numpy() for k, v in model.state_dict().items()})
    scale = 0.1 if "blocks.0.gamma_1" in state else 0.0
    net = beit.Model(
        image_size=SIZE, patch_size=PATCH, in_chans=3, embed_dim=32, depth=2, num_heads=4, num_classes=5,
        positions=positions, layer_scale=scale, **fields,
    )  # fmt: skip
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))["params"]
    return net, names.params_from_state_dict(state, shapes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_outputs_and_gradients_are_timms(kind, pool):
    model = theirs(kind, global_pool={"mean": "avg", "cls": "token"}[pool])
    net, params = ours(model, "relative" if kind == "without layer scale" else kind, pool=pool)
    x, target = np.random.default_rng(0).standard_normal((4, SIZE, SIZE, 3)).astype(np.float32), np.arange(4)

    def loss(params):
        logits = net.apply({"params": params}, x)[0]
        return -jax.nn.log_softmax(logits)[jnp.arange(4), target].mean(), logits

    with jax.default_matmul_precision("highest"):
        (_, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    want = model(torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))))
    torch.nn.functional.cross_entropy(want, torch.from_numpy(target)).backward()
    assert np.abs(logits - want.detach().numpy()).max() < 2e-5
    flat = {names.pytorch_name(path): names.to_pytorch_layout(np.asarray(g), path[-1])
            for path, g in traverse_util.flatten_dict(grads).items()}  # fmt: skip
    for path, parameter in model.named_parameters():
        scale = max(1.0, float(parameter.grad.abs().max()))
        assert np.abs(flat[path] - parameter.grad.numpy()).max() < 2e-5 * scale, path


def test_a_beit_has_as_many_parameters_as_timms():
    net = beit.Model(image_size=224, patch_size=16, in_chans=3, num_classes=1000)
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))["params"]
    with torch.device("meta"):
        model = timm.create_model("beit_base_patch16_224")
    assert sum(x.size for x in jax.tree.leaves(shapes)) == sum(p.numel() for p in model.parameters())


@pytest.mark.filterwarnings("ignore::UserWarning")  # of timm's own code
@pytest.mark.parametrize(("old", "new"), [(4, (6, 6)), (14, (10, 10)), (8, (8, 13)), (6, (9, 4))])
def test_tables_are_resized_as_by_timm(old, new):
    from timm.layers import resize_rel_pos_bias_table

    rows = lambda window: (2 * window[0] - 1) * (2 * window[1] - 1) + beit.CLS_ROWS
    table = np.random.default_rng(0).standard_normal((rows((old, old)), 3)).astype(np.float32)
    want = resize_rel_pos_bias_table(torch.from_numpy(table), new, (rows(new), 3)).numpy()
    np.testing.assert_allclose(beit.resized(table, (old, old), new), want, atol=2e-5)


def stirred(name, classes=(), **overrides):
    """A network with random weights."""
    config = inherit.resolve(tiny.config(name, **overrides))[0]
    net, rng = networks.build(config, len(classes)), np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: (np.asarray(x) + 0.05 * rng.standard_normal(x.shape)).astype(np.float32), jax.jit(net.init)()
    )
    return trained_network.TrainedNetwork(Path(), config, net, params, list(classes))


@pytest.mark.parametrize(
    ("name", "format", "classes", "expected"),
    [
        ("beit", "timm", ("a", "b"), {"features", "logits"}),
        ("simmim", "simmim", (), {"encoder tokens", "reconstruction", "reconstruction, 75 % masked"}),
        ("simmim:beit", "simmim", (), {"encoder tokens", "reconstruction", "reconstruction, 75 % masked"}),
        ("simmim_swin", "simmim", (), {"encoder tokens", "reconstruction", "reconstruction, 75 % masked"}),
    ],
)
def test_the_file_agrees_comes_back_bit_for_bit_and_opens_as_its_card_says(tmp_path, name, format, classes, expected):
    sizes = {"model__mask_size": 4} if name.startswith("simmim:") or name == "simmim" else {}
    if name == "simmim_swin":
        sizes = {"image_size": 128}
    trained = stirred(name, classes, **sizes)
    folder = export.export(trained, format, tmp_path / "out")
    certificate = json.loads((folder / "certificate.json").read_text())
    outputs = certificate["agreement"]["outputs"]
    assert set(outputs) == expected
    for what, item in outputs.items():
        assert item["max_value"] > 1e-3 and item["max_difference"] <= 2e-5, (what, item)
    back = trained_network.load(folder / "model.safetensors")
    assert back.config.model.name == trained.config.model.name
    jax.tree.map(np.testing.assert_array_equal, trained.params, back.params)
    module = {"beit": timm_beit}.get(name)
    if module is None:
        from deblur_mae_jax.weight_formats import simmim as module
    lines = [line.replace("model.safetensors", str(folder / "model.safetensors"))
             for line in module.snippet(certificate)]  # fmt: skip
    exec("\n".join(lines), {})


@pytest.mark.parametrize("name", ["simmim", "simmim_swin"])
def test_one_channel_becomes_three_with_the_same_reconstruction(tmp_path, name):
    trained = stirred(name, **({"model__mask_size": 4} if name == "simmim" else {"image_size": 128}))
    folder = export.export(trained, "simmim", tmp_path / "out", 3)
    outputs = json.loads((folder / "certificate.json").read_text())["agreement"]["outputs"]
    for what, item in outputs.items():
        assert item["max_difference"] <= 2e-5, (what, item)
    back = trained_network.load(folder / "model.safetensors")
    side, mean, std = trained.config.image_size, back.network.inputs.mean, back.network.inputs.std
    gray = np.random.default_rng(0).random((2, side, side, 1)).astype(np.float32)
    ours = [(gray - network.inputs.mean) / network.inputs.std for network in (trained.network, back.network)]
    levels = []
    for one, images in zip((trained, back), ours, strict=True):
        pred, _ = one.model.apply({"params": one.params}, images.astype(np.float32))
        pixels = np.asarray(pred).reshape(*pred.shape[:2], -1, one.model.in_chans)
        levels.append(pixels * np.asarray(one.network.inputs.std) + np.asarray(one.network.inputs.mean))
    np.testing.assert_allclose(np.broadcast_to(levels[0], levels[1].shape), levels[1], atol=2e-5)
    assert len(mean) == len(std) == 3


@pytest.mark.parametrize("name", ["simmim:beit", "simmim_swin"])
def test_a_checkpoint_of_simmims_code_is_fine_tuned(tmp_path, name):
    """A `.pth` of training with Microsoft's constants and no header, then another image size."""
    trained = stirred(name, **({"image_size": 64} if name == "simmim_swin" else {}))
    folder = export.export(trained, "simmim", tmp_path / "out")
    state = {key: torch.tensor(value) for key, value in load_file(folder / "model.safetensors").items()}
    state["encoder.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(4, 4, dtype=torch.int64)
    file = tmp_path / "ckpt_epoch_799.pth"
    torch.save({"model": state, "epoch": 799, "args": argparse.Namespace(epochs=800)}, file)
    back = trained_network.load(file)
    assert back.format == "simmim" and back.config.model.name == trained.config.model.name
    jax.tree.map(np.testing.assert_array_equal, trained.params, back.params)
    if name == "simmim:beit":
        config = tiny.config("beit", init_from=str(file), image_size=24, model__in_chans=1, optim__epochs=1.0)
    else:
        sizes = {"model__width": 8, "model__depths": (1, 1, 2, 1), "model__window": 4}
        config = tiny.config("swin", init_from=str(file), image_size=64, optim__epochs=1.0, **sizes)
    assert train.train_and_evaluate(config, tmp_path / "run").finished


def test_beits_pre_training_parts_are_left_out_and_strange_names_refused(tmp_path):
    model = theirs("relative", num_classes=0)
    state = model.state_dict() | {"mask_token": torch.zeros(1, 1, 32), "lm_head.weight": torch.zeros(8, 32),
             "blocks.0.attn.relative_position_index": torch.zeros(17, 17)}  # fmt: skip
    file = tmp_path / "beit.pth"
    torch.save({"model": state}, file)
    trained = trained_network.load(file)
    assert trained.config.model.name == "beit" and trained.config.image_size == SIZE
    assert trained.config.model.num_heads == 4 and not trained.classes
    torch.save({"model": state | {"pos_embed": torch.zeros(1, 17, 32)}}, file)
    with pytest.raises(Exception, match="a table of positions and relative positions at once"):
        trained_network.load(file)
