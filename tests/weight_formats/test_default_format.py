"""Without `--format`, an export takes a format that has a place for the network."""

import json
from pathlib import Path

import jax
import pytest
import tiny_volumes
from tiny_runs import trained

from deblur_mae_jax import network as networks
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.export import export
from deblur_mae_jax.pretrained.trained_network import TrainedNetwork

CASES = [
    ("mae_thyroid", {}, "timm"), ("d2mae_thyroid", {}, "d2mae"), ("resnet", {"model__width": 64}, "timm"),
    ("beit", {}, "timm"), ("convvit", {}, "convmae"), ("simmim", {}, "simmim"), ("unetpp:vit", {}, "segmenter"),
    ("diffmae", {}, "timm"),
]  # fmt: skip


def format_of(network, folder):
    return json.loads((export.export(network, output=folder) / "certificate.json").read_text())["format"]


@pytest.mark.parametrize(
    ("name", "overrides", "format"), [*CASES[:3], *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES[3:])]
)
def test_the_first_format_with_a_place_is_taken(name, overrides, format, tmp_path):
    assert format_of(trained(name, **overrides), tmp_path / "export") == format


@pytest.mark.slow
@pytest.mark.parametrize(("embed", "format"), [("conv", "monai"), ("unet_basic", "dae")])
def test_a_network_for_volumes_goes_to_monai_if_it_can(embed, format, tmp_path):
    config = tiny_volumes.config_of(model__patch_embed=embed)
    network = networks.build(config)
    params = jax.device_get(jax.jit(network.init)())
    assert format_of(TrainedNetwork(Path("run"), config, network, params, []), tmp_path / "export") == format


def test_a_network_that_no_format_holds_is_refused_with_the_reason(tmp_path):
    with pytest.raises(UserError, match="ConvMAE has no place"):
        export.export(trained("convmae:levels"), output=tmp_path / "export")
