"""Networks whose inputs are not square or cubes, in PyTorch: outputs, preprocessing, files there and back."""

import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
import tiny_volumes

torch = pytest.importorskip("torch", reason="pip install deblur_mae_jax[pytorch] (or make test-pytorch)")
for module in ("timm", "monai"):
    if importlib.util.find_spec(module) is None:
        pytest.skip("pip install deblur_mae_jax[pytorch]", allow_module_level=True)

from deblur_mae_jax import network as networks
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.export import export
from deblur_mae_jax.export.opened import open_export
from deblur_mae_jax.input_pipeline.keys import stream_keys
from deblur_mae_jax.pretrained import inherit, trained_network


def stirred(name, classes=(), **overrides):
    """A network with random weights."""
    of = tiny.config if tiny.identity(name).axes == 2 else tiny_volumes.config_of
    config = inherit.resolve(of(name, **overrides))[0]
    net, rng = networks.build(config, len(classes)), np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: (np.asarray(x) + 0.05 * rng.standard_normal(x.shape)).astype(np.float32), jax.jit(net.init)()
    )
    return trained_network.TrainedNetwork(Path(), config, net, params, list(classes))


@pytest.mark.parametrize(
    ("name", "format", "size", "classes"),
    [
        ("mae_thyroid", "mae", (16, 24), ()),
        ("mae_thyroid", "timm", (16, 24), ()),
        ("d2mae_thyroid", "d2mae", (24, 16), ()),
        ("finetune", "d2mae", (16, 24), ("a", "b")),
        ("finetune", "timm", (16, 24), ("a", "b")),
        ("beit", "timm", (16, 24), ("a", "b")),
        ("swin", "timm", (64, 160), ("a", "b")),
        ("resnet", "timm", (32, 64), ("a", "b")),
        ("simmim:beit", "simmim", (16, 24), ()),
        ("simmim_swin", "simmim", (128, 192), ()),
        ("convmae", "convmae", (32, 64), ()),
        ("convvit", "convmae", (32, 64), ("a", "b")),
        ("dae_ct_mr", "dae", (64, 32, 32), ()),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # of timm's own code
def test_a_file_agrees_and_comes_back_bit_for_bit(tmp_path, name, format, size, classes):
    more = {"model__mask_size": 4} if name.startswith("simmim:") else {}
    more |= {"model__width": 64, "model__depths": (1, 1, 1, 1)} if name == "resnet" else {}
    trained = stirred(name, classes, image_size=size, **more)
    folder = export.export(trained, format, tmp_path / "out")
    certificate = json.loads((folder / "certificate.json").read_text())
    for what, item in certificate["agreement"]["outputs"].items():
        assert item["max_difference"] <= 3e-5 * max(1.0, item["max_value"]), (what, item)
    back = trained_network.load(folder / certificate["file"]["name"])
    assert tuple(back.config.image_size) == size and back.network.inputs.image_size == size
    shared = trained.params.keys() & back.params.keys()  # timm has no decoder
    assert len(shared) >= 2
    jax.tree.map(np.testing.assert_array_equal, *({k: x.params[k] for k in shared} for x in (trained, back)))
    assert " x ".join(map(str, size)) in (folder / "README.md").read_text()


def test_hugging_face_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"takes square images, and this network takes 16 x 24 pixels. Choices: mae"):
        export.export(stirred("mae_thyroid", image_size=(16, 24)), "hf", tmp_path / "out")


@pytest.mark.parametrize("shape", [(40, 30), (20, 64)])
def test_the_file_prepares_an_image_as_jax_does(tmp_path, shape):
    trained = stirred("d2mae_thyroid", image_size=(24, 16))
    opened = open_export(export.export(trained, "d2mae", tmp_path / "out"))
    gray = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    examples = {"image": gray[None, :, :, None], "size": np.array([shape])}
    batch = trained.network.inputs.evaluate(examples, stream_keys(0, 0, np.arange(1)), np.array([3]))
    theirs = opened.module.view(torch.from_numpy(gray), 3).numpy()
    np.testing.assert_allclose(np.moveaxis(theirs, 1, -1), batch["inputs"], atol=2e-3)
