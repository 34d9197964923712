"""ResNet, ConvNeXt and Swin against timm and torchvision: outputs, gradients, files both ways. Needs `pytorch`."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import traverse_util
from safetensors.numpy import save_file

torch = pytest.importorskip("torch", reason="pip install deblur_mae_jax[pytorch] (or make test-pytorch)")
if importlib.util.find_spec("timm") is None:
    pytest.skip("pip install deblur_mae_jax[pytorch]", allow_module_level=True)

import timm

from deblur_mae_jax import sides, train
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.export import export
from deblur_mae_jax.export.opened import open_export
from deblur_mae_jax.models import convnext, resnet, swin2d
from deblur_mae_jax.pretrained import trained_network
from deblur_mae_jax.weight_formats import names, timm_backbones

NETWORKS = {
    "resnet": (resnet, "resnet50", {"layers": (1, 2, 1, 1)}, {"depths": (1, 2, 1, 1)}),
    "convnext": (convnext, "convnext_tiny", {"depths": (1, 2, 1, 1), "dims": (16, 32, 64, 128)},
                 {"depths": (1, 2, 1, 1), "width": 16}),
    "swin2d": (swin2d, "swin_tiny_patch4_window7_224",
               {"depths": (2, 2, 2, 1), "embed_dim": 32, "num_heads": (1, 2, 4, 8), "drop_path_rate": 0.0},
               {"depths": (2, 2, 2, 1), "width": 32}),
}  # fmt: skip
# timm's counts with 1,000 classes.
COUNTS = {
    ("resnet", "50"): 25_557_032, ("resnet", "101"): 44_549_160, ("convnext", "L"): 197_767_336,
    ("swin2d", "L"): 196_532_476, ("convnext", "T"): 28_589_128, ("swin2d", "T"): 28_288_354,
}  # fmt: skip


@pytest.mark.parametrize(("name", "variant"), COUNTS)
def test_the_number_of_parameters(name, variant):
    model = NETWORKS[name][0].Model(variant, image_size=224, in_chans=3, num_classes=1000)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)))["params"])
    flat = traverse_util.flatten_dict(shapes)
    assert sum(v.size for path, v in flat.items() if "running" not in path[-1]) == COUNTS[name, variant]


def theirs(name, size, **more):
    """timm's network with random weights and statistics."""
    _, title, arguments, _ = NETWORKS[name]
    torch.manual_seed(0)
    extra = {"img_size": size} if name == "swin2d" else {}
    model = timm.create_model(title, num_classes=5, **arguments, **extra, **more)
    with torch.no_grad():
        for path, value in model.named_parameters():
            if "gamma" in path:
                value.copy_(torch.rand_like(value))
            elif value.ndim < 2 or "bias_table" in path:
                value.add_(0.2 * torch.randn_like(value))
        for path, value in model.named_buffers():
            if "running_mean" in path:
                value.copy_(0.1 * torch.randn_like(value))
            elif "running_var" in path:
                value.copy_(torch.rand_like(value) + 0.5)
    return model


def ours(name, size, model, **more):
    module, _, _, fields = NETWORKS[name]
    net = module.Model(image_size=size, in_chans=3, num_classes=5, **fields, **more)
    state = timm_backbones.to_ours({k: v.numpy().copy() for k, v in model.state_dict().items()})
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, *sides.of(size), 3)))["params"])
    return net, names.params_from_state_dict(state, shapes)


def images(size, count=4):
    return np.random.default_rng(0).standard_normal((count, *sides.of(size), 3)).astype(np.float32)


def channels_first(x):
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


# Windows of 7 that are padded and shifted, and maps smaller than a window: along both sides, or along one.
@pytest.mark.parametrize(("name", "size"), [*((name, 64) for name in NETWORKS), ("swin2d", (64, 224))])
def test_outputs_and_gradients_are_timms(name, size):
    model = theirs(name, size)
    net, params = ours(name, size, model)
    x, target = images(size), np.arange(4) % 5
    with jax.default_matmul_precision("highest"):
        got = jax.jit(lambda p: net.apply({"params": p}, x)[0])(params)
        features = jax.jit(lambda p: net.apply({"params": p}, x, method=net.features))(params)
    model.eval()
    with torch.no_grad():
        want = model(channels_first(x)).numpy()
        theirs_features = model.forward_head(model.forward_features(channels_first(x)), pre_logits=True).numpy()
    assert np.abs(got - want).max() < 2e-5 and np.abs(features - theirs_features).max() < 2e-5

    def loss(params):
        logits, out = net.apply({"params": params}, x, train=True)
        return -jax.nn.log_softmax(logits)[jnp.arange(4), target].mean(), out["assign"]

    with jax.default_matmul_precision("highest"):
        (value, new), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    model.train()
    theirs_loss = torch.nn.functional.cross_entropy(model(channels_first(x)), torch.from_numpy(target))
    theirs_loss.backward()
    assert abs(float(value) - theirs_loss.item()) < 2e-5
    flat = {names.pytorch_name(path): names.to_pytorch_layout(np.asarray(g), path[-1])
            for path, g in traverse_util.flatten_dict(grads).items()}  # fmt: skip
    for path, parameter in model.named_parameters():
        scale = max(1.0, float(parameter.grad.abs().max()))
        assert np.abs(flat[path] - parameter.grad.numpy()).max() < 2e-5 * scale, path
    statistics = {names.pytorch_name(path): np.asarray(v) for path, v in traverse_util.flatten_dict(new).items()}
    held = {k: v.numpy() for k, v in model.state_dict().items() if "running" in k}
    assert statistics.keys() == held.keys()
    for path, value in held.items():
        np.testing.assert_allclose(statistics[path], value, rtol=1e-5, atol=1e-6, err_msg=path)


def test_strided_convolutions_see_what_pytorchs_see():
    """An impulse in every corner of an image with an odd side: "SAME" padding would shift it by a pixel."""
    model = theirs("resnet", 65)
    net, params = ours("resnet", 65, model)
    x = np.zeros((4, 65, 65, 3), np.float32)
    for i, (row, column) in enumerate([(0, 0), (0, 64), (64, 0), (64, 64)]):
        x[i, row, column] = 5
    model.eval()
    with torch.no_grad():
        want = model(channels_first(x)).numpy()
    got = jax.jit(lambda p: net.apply({"params": p}, x)[0])(params)
    assert np.abs(got - want).max() < 2e-5


@pytest.mark.filterwarnings("ignore::UserWarning")  # of timm's own code
@pytest.mark.parametrize(("old", "new"), [(7, (12, 12)), (12, (7, 7)), (7, (4, 7)), (12, (5, 7))])
def test_tables_of_biases_are_resized_as_by_timm(old, new):
    from timm.layers import resize_rel_pos_bias_table

    table = np.random.default_rng(0).standard_normal(((2 * old - 1) ** 2, 3)).astype(np.float32)
    rows = swin2d.offsets(new)
    want = resize_rel_pos_bias_table(torch.from_numpy(table), new, (rows, 3)).numpy()
    np.testing.assert_allclose(swin2d.resized(table, (old, old), new), want, atol=2e-5)


OTHERS = {"convnext_tiny": "convnext", "swin_t": "swin2d", "resnet50": "resnet"}


@pytest.mark.parametrize("title", OTHERS)
def test_weights_of_torchvision(title, tmp_path):
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = getattr(torchvision.models, title)(weights=None).eval()
    save_file({k: v.contiguous().numpy() for k, v in model.state_dict().items()}, tmp_path / "w.safetensors")
    trained = trained_network.load(tmp_path / "w.safetensors")
    assert trained.config.model.name == OTHERS[title] and len(trained.classes) == 1000
    assert any("we assume 224 pixels" in note for note in trained.notes)
    x = images(224, 1)
    with torch.no_grad():
        want = model(channels_first(x)).numpy()
    model = trained.model.clone(dtype=jnp.float32)
    got = jax.jit(lambda p: model.apply({"params": p}, x)[0])(trained.params)
    # torchvision's norms have other epsilons in places. Logits of random weights are as large as 50.
    assert np.abs(got - want).max() < 1e-5 * max(10.0, np.abs(want).max())


def of_facebook(name):
    """A name of timm's ConvNeXt as in Facebook's code."""
    import re

    for new, old in (
        (r"^stem\.(\d)\.", r"downsample_layers.0.\1."), (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"^head\.norm\.", "norm."), (r"^head\.fc\.", "head."), (r"\.blocks", ""), (r"conv_dw", "dwconv"),
        (r"mlp\.fc", "pwconv"),
    ):  # fmt: skip
        name = re.sub(new, old, name)
    return name


def of_microsoft(name):
    """A name of timm's Swin as in Microsoft's code."""
    import re

    name = re.sub(r"^layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name)
    return name.replace("head.fc.", "head.")


@pytest.mark.parametrize(("name", "rename"), [("convnext", of_facebook), ("swin2d", of_microsoft)])
def test_the_names_of_the_original_code(name, rename):
    state = {k: v.numpy() for k, v in theirs(name, 224).state_dict().items()}
    renamed = {rename(k): v for k, v in state.items()}
    assert len(renamed) == len(state) and set(renamed) != set(state)
    got = timm_backbones.to_ours(renamed)
    assert got.keys() == state.keys() and all(np.array_equal(got[k], state[k]) for k in state)


@pytest.mark.parametrize("config", ["resnet", "convnext", "swin"])
def test_exports_are_opened_by_timm_and_come_back(config, tmp_path):
    sizes = {"model__width": 64, "model__depths": (1, 1, 1, 1)} if config == "resnet" else {}
    train.train_and_evaluate(tiny.config(config, **sizes), tmp_path / "run")
    if sizes:
        train.train_and_evaluate(tiny.config(config), tmp_path / "narrow")
        with pytest.raises(UserError, match="--format=timm: its ResNet begins with 64 channels, this one with 8"):
            export.export(tmp_path / "narrow", "timm")
    folder = export.export(tmp_path / "run", "timm", tmp_path / "out")
    opened = open_export(folder)
    trained = trained_network.load(tmp_path / "run")
    x = np.random.default_rng(0).standard_normal((2, 32, 32, 1)).astype(np.float32)
    want = jax.jit(lambda p: trained.model.apply({"params": p}, x)[0])(trained.params)
    assert np.abs(opened.logits(np.ascontiguousarray(x.transpose(0, 3, 1, 2)), None) - want).max() < 1e-5
    again = trained_network.load(folder / "model.safetensors")
    assert again.weights_hash == trained.weights_hash and again.classes == trained.classes
    text = (folder / "README.md").read_text()
    assert "timm.create_model" in text and "1e-0" not in text.split("## Before")[0]


def test_imagenets_weights_start_a_run_on_gray_images(tmp_path):
    """The first layer is converted to one channel; the result for gray images stays, but at the border of a ResNet."""
    for config, name in (("resnet", "resnet"), ("convnext", "convnext"), ("swin", "swin2d")):
        _, _, _, fields = NETWORKS[name]
        state = {k: v.numpy() for k, v in theirs(name, 224).state_dict().items() if "num_batches" not in k}
        save_file(state, tmp_path / f"{name}.safetensors")
        values = {"init_from": str(tmp_path / f"{name}.safetensors"), "image_size": 64, "model__in_chans": 1}
        values |= {f"model__{k}": v for k, v in fields.items()}
        result = train.train_and_evaluate(tiny.config(config, **values, optim__steps=1), tmp_path / name)
        assert result.finished
        trained = trained_network.load(tmp_path / f"{name}.safetensors")
        assert trained.config.model.in_chans == 3 and trained.model.depths == fields["depths"]
