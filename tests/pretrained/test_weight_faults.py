"""Weights and cards that were once taken or described wrongly without a word."""

import jax
import numpy as np
import pytest
import tiny_volumes

from deblur_mae_jax import network as networks
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.models import position
from deblur_mae_jax.pretrained import inherit, trained_network
from deblur_mae_jax.pretrained.trained_network import TrainedNetwork
from deblur_mae_jax.weight_formats import d2mae, files, timm, vit


def test_the_heads_in_a_config_of_timm_are_read():
    notes = []
    config = {"model_args": {"num_heads": 6}}
    assert vit._heads(config, "num_attention_heads", {192: 3}, 192, 64, notes) == 6 and not notes


def test_what_the_user_states_is_not_assumed():
    notes = ["the file does not record the attention heads of the encoder; we assume 3", "something else"]
    assert trained_network._not_known(notes, {"num_heads": 6}) == ["something else"]


@pytest.mark.parametrize(("name", "value"), [("mean", 0.5), ("num_heads", "2"), ("num_heads", True)])
def test_a_stated_value_of_another_kind_is_named(name, value):
    values = {"data.mean": (0.5,), "model.num_heads": 3}
    with pytest.raises(UserError, match=f"{name}=.* must be of the kind of"):
        trained_network._with_known(values, {name: value})


def test_a_position_table_gains_and_loses_the_row_of_the_level():
    table = np.arange(10, dtype=np.float32).reshape(1, 5, 2) + 1
    longer = position.with_prefix(table, 1, 2)
    np.testing.assert_array_equal(longer[0], [*table[0, :1], [0, 0], *table[0, 1:]])
    np.testing.assert_array_equal(position.with_prefix(longer, 2, 1), table)


@pytest.mark.parametrize(("model", "mean"), [("vit_mae", True), ("resnet", False), ("vit", False), ("swin", False)])
def test_a_card_shows_the_features_of_its_own_network(model, mean):
    certificate = {"opens_with": {"model": "x", "arguments": {"num_classes": 0}}, "network": {"model": model},
                   "file": {"name": "a.safetensors"}}  # fmt: skip
    assert any(".mean(1)" in line for line in timm.snippet(certificate)) == mean


@pytest.mark.parametrize("task", ["masked_recon", "classify"])
def test_a_card_passes_the_degraded_image_where_it_is_needed(task):
    network = {"task": task, "classes": ["a", "b"], "sigmas": [], "conditioning": "none", "degradation": "other",
               "degrade": "speckle.srad(4, 0.1)"}  # fmt: skip
    lines = d2mae.snippet({"network": network, "file": {"name": d2mae.WEIGHTS}})
    assert "degraded=degraded" in lines[-1] and "speckle.srad(4, 0.1)" in lines[-2]


def test_settings_called_model_are_no_weights():
    class Array:
        is_floating_point = True

    content = {"model": {"name": "vit", "dim": 64}, "state_dict": {"a": Array()}}
    assert list(files._inside(content)[0]) == ["a"]


def test_the_copy_of_an_encoder_alone_can_be_read_again(tmp_path):
    config = inherit.resolve(tiny_volumes.segmentation())[0]
    network = networks.build(config, 2)
    params = jax.jit(network.init)()
    notes = ["the file does not record the attention heads of the encoder; we assume 3 for its width of 12"]
    source = TrainedNetwork(tmp_path, config, network, {"swinViT": params["swinViT"]}, ["a", "b"], [1, 2], "", notes)
    trained_network.save_file(tmp_path / "weights.safetensors", source)
    again = trained_network.load(tmp_path / "weights.safetensors")
    assert list(again.params) == ["swinViT"] and again.notes == notes
