"""Networks with a Python file of this library, and DINOv2's names: the same in PyTorch, and read again."""

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

from safetensors.numpy import load_file

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.export import export
from deblur_mae_jax.export.opened import open_export
from deblur_mae_jax.models import masking
from deblur_mae_jax.pretrained import trained_network
from deblur_mae_jax.weight_formats import contract

LEVELS = {"model__conditioning": "token", "task__degrade": "blur.gaussian_levels(max_sigma=1.1)"}
CASES = [
    ("segment_images", "segmenter", {}),
    ("segment_images", "segmenter", LEVELS),
    ("segment_images", "segmenter", {"model__patch_size": 12, "image_size": 48}),
    ("diffmae", "diffmae", {}),
    ("diffmae", "diffmae", {"model__decoder": "cross", "model__time": "token", "model__skip": "last"}),
    ("diffmae", "diffmae", {"model__decoder": "joint", "model__time": "none"} | LEVELS),
    ("dino_v2", "dino_v2", {}),
]


def differ(measured):
    return {name: item["max_difference"] / max(1.0, item["max_value"]) for name, item in measured.items()}


@pytest.mark.parametrize(("name", "format", "overrides"), CASES)
def test_an_export_agrees_in_pytorch_and_is_read_again_bit_for_bit(name, format, overrides, tmp_path):
    network = stirred(name, **overrides)
    folder = export.export(network, format, tmp_path / "export")
    certificate = json.loads((folder / "certificate.json").read_text())
    outputs = certificate["agreement"]["outputs"]
    assert min(item["max_value"] for item in outputs.values()) > 0.1
    assert max(differ(outputs).values()) < 2e-5, outputs
    if format == "dino_v2":
        assert set(outputs) == {"features", "embeddings", "prototypes"}
    assert format == contract.recognise(load_file(folder / "model.safetensors")).NAME
    assert_same_params(network, trained_network.load(folder / "model.safetensors", "RUN"))


def test_denoising_agrees_at_every_strength_of_the_noise(tmp_path):
    """The certificate is measured with empty patches; here they are noisy."""
    network = stirred("diffmae")
    folder = export.export(network, "diffmae", tmp_path / "vit-0.2")  # the dot begins no suffix
    module, model = open_export(folder).module, network.model
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, *network.network.inputs.out, model.in_chans)).astype(np.float32)
    noise = rng.random((3, model.num_patches)).astype(np.float32)
    noisy = rng.standard_normal(masking.patchify(x, model.patch_size).shape).astype(np.float32)
    step = np.array([1, 500, 1000], np.int32)
    ours, out = model.apply({"params": network.params}, x, noise=noise, mask_ratio=0.75, noisy=noisy, step=step)
    with torch.no_grad():
        theirs, mask = module(
            *(torch.from_numpy(np.moveaxis(x, -1, 1).copy()), None, 0.75),
            *(torch.from_numpy(a) for a in (noise, noisy, step)),
        )
    np.testing.assert_array_equal(mask, out["mask"])
    np.testing.assert_allclose(theirs, ours, atol=2e-5 * np.abs(ours).max())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(("name", "format", "program"), [
    ("diffmae", "diffmae", "from modeling_diffmae import load\nm = load('.')\nm.encode(m.view(torch.zeros(60, 50)))"),
    ("segment_images", "segmenter",
     "from modeling_vit_unetr import load\nm = load('.')\ns = m.config['image_size']\nm(torch.zeros(1, 1, s, s))"),
])  # fmt: skip
def test_the_files_beside_the_weights_are_enough(name, format, program, suffix, tmp_path):
    """In another process, in the folder of the export, without this library."""
    weights = f"model{suffix}"
    export.export(stirred(name), format, tmp_path / "export" / weights)
    folder, program = tmp_path / "export", program.replace("load('.')", f"load('.', '{weights}')")
    program = f"import sys\nsys.path.insert(0, '.')\nimport torch\n{program}\nassert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-I", "-c", program], cwd=folder, check=True, timeout=200)


def test_prototypes_that_are_not_of_length_one_are_refused(tmp_path):
    folder = export.export(stirred("dino_v2"), "dino_v2", tmp_path / "export")
    state = load_file(folder / "model.safetensors")
    state["student.ibot_head.last_layer.weight_g"] *= 2
    with pytest.raises(UserError, match=r"student\.ibot_head\.last_layer\.weight_g"):
        contract.named("dino_v2").to_ours(state)


def test_a_layer_that_our_vit_lacks_is_named(tmp_path):
    folder = export.export(stirred("dino_v2"), "dino_v2", tmp_path / "export")
    state = load_file(folder / "model.safetensors")
    state["teacher.backbone.blocks.0.attn.q_norm.weight"] = np.ones(8, np.float32)
    with pytest.raises(UserError, match=r"blocks\.0\.attn\.q_norm\.weight"):
        contract.named("dino_v2").to_ours(state)


def test_the_card_of_a_segmentation_says_how_the_blur_level_is_chosen(tmp_path):
    network = stirred("segment_images", search__setting="fixed(0.5)", **LEVELS)
    export.export(network, output=tmp_path / "export")
    card = (tmp_path / "export" / "README.md").read_text()
    assert "The level of blur of an image: always sigma 0.5." in card
    assert "# level (B,): the number of the blur level of each image, counted from 1" in card
