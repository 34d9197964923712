"""ConvMAE in PyTorch: files both ways, and DeblurringMIM's checkpoint. Needs `pytorch`."""

import argparse
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file

torch = pytest.importorskip("torch", reason="pip install deblur_mae_jax[pytorch] (or make test-pytorch)")

from deblur_mae_jax import network as networks
from deblur_mae_jax import train
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.export import export
from deblur_mae_jax.pretrained import inherit, trained_network

GOLDEN = Path(__file__).parent.parent / "golden" / "convmae.safetensors"


def stirred(name, classes=(), **overrides):
    """A network with random weights."""
    config = inherit.resolve(tiny.config(name, **overrides))[0]
    net, rng = networks.build(config, len(classes)), np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: (np.asarray(x) + 0.05 * rng.standard_normal(x.shape)).astype(np.float32), jax.jit(net.init)()
    )
    return trained_network.TrainedNetwork(Path(), config, net, params, list(classes))


@pytest.mark.parametrize(
    ("name", "classes", "expected"),
    [
        ("convmae", (), {"encoder tokens", "reconstruction", "reconstruction, 75 % masked"}),
        ("convvit", ("a", "b", "c"), {"features", "logits"}),
    ],
)
@pytest.mark.parametrize("in_chans", [0, 3])
def test_the_file_agrees_and_comes_back_bit_for_bit(tmp_path, name, classes, expected, in_chans):
    trained = stirred(name, classes)
    folder = export.export(trained, "convmae", tmp_path / "out", in_chans)
    outputs = json.loads((folder / "certificate.json").read_text())["agreement"]["outputs"]
    assert set(outputs) == expected
    for what, item in outputs.items():
        assert item["max_value"] > 1e-3 and item["max_difference"] <= 2e-5, (what, item)
    assert (folder / "modeling_convmae.py").exists() and "modeling_convmae" in (folder / "README.md").read_text()
    back = trained_network.load(folder / "model.safetensors")
    assert back.config.model.name == trained.config.model.name
    if not in_chans:
        jax.tree.map(np.testing.assert_array_equal, trained.params, back.params)


def test_a_network_with_a_blur_token_has_no_place_there(tmp_path):
    with pytest.raises(UserError, match="--format=convmae: the network has a code of the blur level"):
        export.export(stirred("convmae:levels"), "convmae", tmp_path / "out")


def test_a_checkpoint_of_deblurring_convmae_is_fine_tuned(tmp_path):
    """The published names, a `.pth` with training arguments, another image size."""
    state = {name: torch.tensor(value) for name, value in load_file(GOLDEN).items()}
    file = tmp_path / "checkpoint-799.pth"
    torch.save(
        {"model": state, "args": argparse.Namespace(model="dmae_convvit_base_patch16", norm_pix_loss=False)}, file
    )
    trained = trained_network.load(file)
    assert trained.format == "convmae" and trained.config.model.name == "convvit_mae"
    assert trained.config.task.degrade == "blur.gaussian(sigma=1.1)" and not trained.config.task.norm_pix_loss
    config = tiny.config("convvit", init_from=str(file), image_size=32, model__in_chans=1, optim__epochs=1.0)
    result = train.train_and_evaluate(config, tmp_path / "run")
    assert result.finished
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (saved["model.stem_dims"], saved["model.embed_dim"], saved["model.depth"]) == ([8, 12], 24, 2)
