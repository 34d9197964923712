"""The decoder of the UPerNet against Hugging Face's, with random weights. Needs `pytorch`."""

import importlib.util

import jax
import numpy as np
import pytest
from flax import traverse_util

torch = pytest.importorskip("torch", reason="pip install deblur_mae_jax[pytorch] (or make test-pytorch)")
if importlib.util.find_spec("transformers") is None:
    pytest.skip("pip install deblur_mae_jax[pytorch]", allow_module_level=True)

from transformers import UperNetConfig
from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

from deblur_mae_jax.models import upernet

CHANNELS, SIDES, WIDTH, CLASSES = (6, 8, 10, 12), (24, 12, 6, 3), 16, 3
NAMES = {"conv.weight": ("conv", "kernel"), "batch_norm.weight": ("norm", "scale"), "batch_norm.bias": ("norm", "bias"),
         "batch_norm.running_mean": ("norm", "running_mean"),
         "batch_norm.running_var": ("norm", "running_var")}  # fmt: skip


def theirs():
    torch.manual_seed(0)
    config = UperNetConfig(
        hidden_size=WIDTH, num_labels=CLASSES, auxiliary_channels=upernet.SECOND_WIDTH, auxiliary_num_convs=1,
        auxiliary_in_channels=CHANNELS[upernet.SECOND], pool_scales=list(upernet.BINS),
    )  # fmt: skip
    heads = UperNetHead(config, list(CHANNELS)), UperNetFCNHead(config, list(CHANNELS))
    for module in (m for head in heads for m in head.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        module.weight.data.uniform_(0.5, 1.5)
        module.bias.data.normal_(0, 0.3)
        module.running_mean.normal_(0, 0.3)
        module.running_var.uniform_(0.5, 1.5)
    return heads


def ours(heads):
    """Their weights under our names."""
    flat = {}
    places = {"psp_modules": "pool", "lateral_convs": "lateral", "fpn_convs": "fpn"}
    for head, second in zip(heads, (False, True), strict=True):
        for key, value in head.state_dict().items():
            stem, *rest = key.split(".")
            if key.endswith("num_batches_tracked"):
                continue
            if stem == "classifier":
                leaf = {"weight": "kernel", "bias": "bias"}[rest[0]]
                path = ("auxiliary_out" if second else "out", leaf)
            elif second:
                path = ("auxiliary", *NAMES[".".join(rest[-2:])])
            elif stem in places:
                path = (f"{places[stem]}_{rest[0]}", *NAMES[".".join(rest[-2:])])
            else:
                path = (stem, *NAMES[".".join(rest)])
            array = value.detach().numpy().copy()
            flat[path] = np.moveaxis(array, (1, 0), (-2, -1)) if path[-1] == "kernel" else array
    return traverse_util.unflatten_dict(flat)


@pytest.mark.parametrize("train", [False, True])
def test_logits_of_both_heads_and_statistics_are_hugging_faces(train):
    heads = theirs()
    params = ours(heads)
    rng = np.random.default_rng(0)
    maps = [rng.standard_normal((2, s, s, c)).astype(np.float32) for s, c in zip(SIDES, CHANNELS, strict=True)]
    net = upernet.UPerNet(CLASSES, WIDTH)
    with jax.default_matmul_precision("highest"):
        logits, out, new = jax.jit(lambda p: net.apply({"params": p}, maps, train))(params)
    tensors = [torch.from_numpy(x.transpose(0, 3, 1, 2).copy()) for x in maps]
    with torch.no_grad():
        wanted, second = (head.train(train)(tensors).numpy().transpose(0, 2, 3, 1) for head in heads)
    np.testing.assert_allclose(logits, wanted, atol=2e-5)
    np.testing.assert_allclose(out["auxiliary"], second, atol=2e-5)
    if train:
        held = {path: value for path, value in traverse_util.flatten_dict(ours(heads)).items() if "running" in path[-1]}
        assert {path for path in traverse_util.flatten_dict(new)} == set(held)
        for path, value in held.items():
            np.testing.assert_allclose(traverse_util.flatten_dict(new)[path], value, atol=2e-6, err_msg=str(path))
