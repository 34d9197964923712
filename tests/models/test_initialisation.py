"""Details of the networks that parity of trained weights does not show: what is drawn, and how often."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from tiny_runs import trained

from deblur_mae_jax.models import swin2d, vit


def test_the_frozen_patch_embedding_of_moco_v3_has_no_bias():
    params = trained("moco_v3").params
    for encoder in ("base_encoder", "momentum_encoder"):
        assert not np.any(params[encoder]["patch_embed"]["proj"]["bias"])
    assert np.any(trained("mae_thyroid").params["patch_embed"]["proj"]["bias"])


def test_the_last_patch_embedding_of_convmae_is_that_of_a_matrix():
    """Xavier, as in ConvMAE's code; the two before have PyTorch's initialisation of a convolution."""
    params = trained("convmae").params
    for number, xavier in ((1, False), (2, False), (3, True)):
        kernel = np.asarray(params[f"patch_embed{number}"]["proj"]["kernel"])
        fan_in, fan_out = kernel[..., 0].size, kernel.shape[-1]
        bound = (6 / (fan_in + fan_out)) ** 0.5 if xavier else fan_in**-0.5
        assert 0.9 * bound < np.abs(kernel).max() <= bound


@pytest.mark.parametrize(
    ("name", "path"),
    [("swin", "layers_0/blocks_0/attn/qkv/kernel"), ("beit", "blocks_0/attn/qkv/kernel"),
     ("convnext", "stages_1/blocks_0/mlp/fc1/kernel"),
     ("swin", "layers_0/blocks_0/mlp/fc1/kernel")],
)  # fmt: skip
def test_weights_of_timms_networks_are_not_cut_at_two_standard_deviations(name, path):
    kernel = np.asarray(flatten_dict(trained(name).params, sep="/")[path])
    assert kernel.std() == pytest.approx(0.02, rel=0.1) and np.abs(kernel).max() > 0.04


@pytest.mark.parametrize("branch", [0, 1])
def test_stochastic_depth_of_a_swin_draws_attention_and_mlp_apart(branch):
    block = swin2d.Block(num_heads=2, window=4, shift=0)
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 32))
    params = block.init(jax.random.key(1), x)
    scale = np.ones((2, 2), np.float32)
    scale[1, branch] = 0.0  # of the second image
    full, got = block.apply(params, x), block.apply(params, x, jnp.asarray(scale))
    np.testing.assert_allclose(got[0], full[0], atol=1e-6)
    assert np.abs(got[1] - full[1]).max() > 1e-3 and np.abs(got[1] - x[1]).max() > 1e-3


def test_a_swin_draws_two_factors_per_block_and_a_resnet_one():
    keys = jax.random.split(jax.random.key(0), 3)
    for name, shape in (("swin", (3, 5, 2)), ("resnet", (3, 5))):
        model = trained(name).model.clone(drop_path=0.5)
        assert model.drop_path_scales(keys).shape == shape, sum(model.depths)
    assert vit.drop_path_scales(keys, 0.5, 5).shape == (3, 5, 2)
