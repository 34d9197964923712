"""MoCo v3 and SimCLR in PyTorch: files both ways, views against torchvision. Needs `pytorch`."""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

torch = pytest.importorskip("torch", reason="pip install deblur_mae_jax[pytorch] (or make test-pytorch)")
if importlib.util.find_spec("timm") is None:
    pytest.skip("pip install deblur_mae_jax[pytorch]", allow_module_level=True)

import timm
from torchvision.transforms import functional as theirs

from deblur_mae_jax import network as networks
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.export import export
from deblur_mae_jax.export.opened import open_export
from deblur_mae_jax.input_pipeline import views
from deblur_mae_jax.pretrained import inherit, trained_network
from deblur_mae_jax.weight_formats import timm as timm_format

GOLDEN = Path(__file__).parent.parent / "golden" / "moco_v3_model.safetensors"
RUNS = {
    "moco_v3": {"optim__batch_size": 8},
    "moco_v3:resnet": {"model__width": 64, "model__depths": (1, 1, 1, 1)},
    "simclr": {"model__width": 64, "model__depths": (1, 1, 1, 1)},
}


def network(name):
    """A network with random weights and statistics."""
    config = inherit.resolve(tiny.config(name, **RUNS.get(name, {})))[0]
    net = networks.build(config)
    rng = np.random.default_rng(0)

    def move(path, value):
        noise = 0.05 * rng.standard_normal(value.shape)
        return (np.asarray(value) + (np.abs(noise) if path[-1].key == "running_var" else noise)).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(
        move, jax.jit(lambda: net.task.begin(net.init()) if net.task.begin else net.init())()
    )
    return trained_network.TrainedNetwork(Path(), config, net, params, [])


def flat(tree):
    return {jax.tree_util.keystr(path): np.asarray(value) for path, value in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("name", RUNS)
def test_both_formats_agree_and_come_back_bit_for_bit(tmp_path, name):
    trained = network(name)
    for format in ("moco_v3", "timm"):
        folder = export.export(trained, format, tmp_path / format)
        outputs = json.loads((folder / "certificate.json").read_text())["agreement"]["outputs"]
        assert set(outputs) == ({"features", "embeddings"} if format == "moco_v3" else {"features"})
        for what, item in outputs.items():
            assert item["max_value"] > 1e-3 and item["max_difference"] <= 2e-5, (format, what, item)
        assert open_export(folder).features is not None
        back = trained_network.load(folder / "model.safetensors")
        if format == "moco_v3":
            ours, again = flat(trained.params), flat(back.params)
        else:
            ours, again = flat(trained.params["base_encoder"]), flat(back.params)
            again = {path: value for path, value in again.items() if path in ours and value.size}
            assert len(again) > 15
            ours = {path: ours[path] for path in again}
        assert ours.keys() == again.keys()
        for path, value in ours.items():
            np.testing.assert_array_equal(value, again[path], err_msg=path)


@pytest.mark.parametrize("name", [*RUNS, "dino_v2"])
def test_the_card_gives_the_features_of_encode(tmp_path, monkeypatch, name):
    trained = network(name)
    folder = export.export(trained, "timm", tmp_path / "out")
    monkeypatch.chdir(folder)
    inputs, model = trained.network.inputs, trained.model
    x = np.random.default_rng(1).standard_normal((3, *inputs.out, inputs.in_chans)).astype(np.float32)
    scope = {"x": torch.tensor(np.moveaxis(x, -1, 1))}
    exec("\n".join(timm_format.snippet(json.loads((folder / "certificate.json").read_text()))), scope)
    want = model.apply({"params": trained.params}, x, method=model.features)
    np.testing.assert_allclose(scope["features"].detach().numpy(), want, atol=2e-5)


def test_channels_that_cannot_all_be_converted_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"--in_chans=3: a siamese_vit reads the image in other places too"):
        export.export(network("moco_v3"), "moco_v3", tmp_path / "out", 3)


def test_the_encoder_of_a_diffmae_goes_to_timm_and_back(tmp_path):
    config = inherit.resolve(tiny.config("diffmae"))[0]
    net = networks.build(config)
    trained = trained_network.TrainedNetwork(Path(), config, net, jax.device_get(jax.jit(net.init)()), [])
    folder = export.export(trained, "timm", tmp_path / "out")
    certificate = json.loads((folder / "certificate.json").read_text())
    assert certificate["agreement"]["outputs"]["encoder tokens"]["max_difference"] <= 2e-5
    back = trained_network.load(folder / "model.safetensors")
    assert back.config.model.name == "vit"
    jax.tree.map(np.testing.assert_array_equal, back.params["blocks_0"], trained.params["blocks_0"])


def test_a_checkpoint_of_moco_v3_is_read(tmp_path):
    """Its sizes, its encoder as timm computes it, and an encoder for fine-tuning."""
    state = load_file(GOLDEN)
    file = tmp_path / "vit-s-300ep.pth"
    tensors = {f"module.{name}": torch.tensor(value) for name, value in state.items()}
    torch.save({"epoch": 300, "arch": "vit_small", "state_dict": tensors}, file)
    trained = trained_network.load(file)
    model = trained.config.model
    assert trained.format == "moco_v3" and trained.network.kind == "contrast"
    assert (model.projector, model.predictor, model.predictor_last, model.momentum) == (
        (20, 20, 12),
        (20, 12),
        "plain",
        True,
    )
    assert (trained.config.image_size, model.patch_size, model.embed_dim, model.depth) == (32, 8, 32, 2)
    heads = model.num_heads  # the file does not say it
    encoder = timm.create_model(
        "vit_base_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=heads, num_classes=0,
        global_pool="token",
    ).eval()  # fmt: skip
    own = {
        k.removeprefix("base_encoder."): torch.tensor(v)
        for k, v in state.items()
        if k.startswith("base_encoder.") and ".head." not in k
    }
    encoder.load_state_dict(own, strict=True)
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    with torch.inference_mode():
        want = encoder(torch.tensor(x)).numpy()
    with jax.default_matmul_precision("highest"):
        got = trained.model.apply({"params": trained.params}, x.transpose(0, 2, 3, 1), method=trained.model.features)
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_an_encoder_of_other_code_is_still_an_encoder(tmp_path):
    """A ViT behind the prefix `base_encoder.` without a projector."""
    state = {
        f"base_encoder.{k}": v for k, v in timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict().items()
    }
    save_file({name: value.numpy() for name, value in state.items()}, tmp_path / "one.safetensors")
    assert trained_network.load(tmp_path / "one.safetensors").config.model.name == "vit"


@pytest.mark.parametrize(
    ("ours", "their", "factor"),
    [
        (views.change_brightness, theirs.adjust_brightness, 1.3), (views.change_contrast, theirs.adjust_contrast, 0.6),
        (views.change_saturation, theirs.adjust_saturation, 1.2), (views.shift_hue, theirs.adjust_hue, -0.1),
        (views.shift_hue, theirs.adjust_hue, 0.4),
    ],
)  # fmt: skip
def test_colour_jitter_is_torchvisions(ours, their, factor):
    image = np.random.default_rng(3).random((3, 9, 11)).astype(np.float32)
    image[:, 0, 0] = 0.5  # gray, without a hue
    want = their(torch.tensor(image), factor).numpy()
    got = ours(jnp.asarray(255 * image.transpose(1, 2, 0)), jnp.float32(factor)).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(got, want, atol=3e-5)  # it rounds the weight of red to 0.2989


def test_the_teacher_of_a_dino_goes_to_timm_and_back(tmp_path):
    config = inherit.resolve(tiny.config("dino_v2"))[0]
    net, rng = networks.build(config), np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: (np.asarray(x) + 0.05 * rng.standard_normal(x.shape)).astype(np.float32), jax.jit(net.init)()
    )
    trained = trained_network.TrainedNetwork(Path(), config, net, params, [])
    folder = export.export(trained, "timm", tmp_path / "out")
    certificate = json.loads((folder / "certificate.json").read_text())
    assert certificate["agreement"]["outputs"]["features"]["max_difference"] <= 2e-5
    back = trained_network.load(folder / "model.safetensors")
    assert back.config.model.name == "vit"
    for name, part in back.params.items():
        if name in params["teacher"]["backbone"]:
            jax.tree.map(np.testing.assert_array_equal, part, params["teacher"]["backbone"][name])
