"""Segmenters of images exported to PyTorch and read again: every encoder with a decoder. Needs `pytorch`."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
from tiny_runs import assert_same_params, stirred

torch = pytest.importorskip("torch", reason="pip install deblur_mae_jax[pytorch] (or make test-pytorch)")
if importlib.util.find_spec("timm") is None:
    pytest.skip("pip install deblur_mae_jax[pytorch]", allow_module_level=True)

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.export import export
from deblur_mae_jax.export.opened import open_export
from deblur_mae_jax.pretrained import trained_network

NAMES = ("unetpp:resnet", "upernet:convnext", "upernet:swin", "upernet:vit", "unetpp:vit", "unetpp:beit",
         "unetpp:convvit", "upernet:convvit")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_segmenter_agrees_in_pytorch_and_is_read_again_bit_for_bit(name, tmp_path):
    width = {"model__width": 64} if "resnet" in name else {}  # timm's ResNet has no other
    network = stirred(name, infer__largest_component=True, **width)
    folder = export.export(network, "segmenter", tmp_path / "export")
    certificate = json.loads((folder / "certificate.json").read_text())
    [(output, measured)] = certificate["agreement"]["outputs"].items()
    assert output == "logits" and measured["max_value"] > 0.1
    assert measured["max_difference"] < 2e-5 * max(1, measured["max_value"]), measured
    again = trained_network.load(folder / "model.safetensors", "RUN")
    assert again.classes == network.classes
    assert_same_params(network, again)
    card = (folder / "README.md").read_text()
    assert "a segmentation of lesion" in card.lower() and "from modeling_segmenter import load" in card
    assert "Resize the whole image" in card and "cut the central" not in card
    assert "largest connected component" in card and "flipped" not in card and "sliding window" not in card


def test_the_lines_of_the_card_run(tmp_path):
    """In another process, in the folder of the export, without this library."""
    folder = export.export(stirred("unetpp:convvit"), "segmenter", tmp_path / "export")
    opened, certificate = open_export(folder), json.loads((folder / "certificate.json").read_text())
    size = certificate["network"]["image_size"]
    x = np.random.default_rng(0).standard_normal((1, certificate["network"]["in_chans"], size, size))
    np.save(tmp_path / "x.npy", x.astype(np.float32))
    program = (
        "import numpy as np, torch\nfrom modeling_segmenter import load\nmodel = load('.')\n"
        f"images = torch.from_numpy(np.load(r'{tmp_path / 'x.npy'}'))\n"
        f"with torch.no_grad(): np.save(r'{tmp_path / 'y.npy'}', model(images).numpy())\n"
    )
    subprocess.run([sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, '.')\n{program}"], cwd=folder,
                   check=True, timeout=200)  # fmt: skip
    want = opened.logits(x.astype(np.float32), None)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), np.moveaxis(want, -1, 1), atol=1e-5)


def test_a_blur_token_in_the_encoder_is_refused(tmp_path):
    network = stirred("unetpp:vit", model__conditioning="token", task__degrade="blur.gaussian_levels(max_sigma=1.1)")
    with pytest.raises(UserError, match="blur"):
        export.export(network, "segmenter", tmp_path / "export")
