"""Networks for contrastive learning start from other networks, and others start from their encoder."""

import jax
import numpy as np
import pytest
import tiny
from tiny_runs import go, pretraining, trained

from deblur_mae_jax import train
from deblur_mae_jax.pretrained import warm_start


def without_tables(tree):
    """Without tables of biases, which are resized, or copied from one to all blocks."""
    if not isinstance(tree, dict):
        return tree
    return {k: without_tables(v) for k, v in tree.items() if k != "relative_position_bias_table"}


@pytest.mark.parametrize(
    ("source", "target", "inside", "outside"),
    tiny.others_slow([
        ("mae_thyroid", "moco_v3", "", "base_encoder"), ("from_scratch", "moco_v3", "", "base_encoder"),
        ("resnet", "simclr", "", "base_encoder"), ("moco_v3", "from_scratch", "base_encoder", ""),
        ("moco_v3", "mae_thyroid", "base_encoder", ""), ("simclr", "resnet", "base_encoder", ""),
        ("simmim", "from_scratch", "encoder", ""), ("simmim:beit", "beit", "encoder", ""),
        ("mae_thyroid", "simmim", "", "encoder"), ("moco_v3", "simmim", "base_encoder", "encoder"),
        ("simmim_swin", "swin", "encoder", ""),
        ("diffmae", "from_scratch", "", ""), ("convmae", "convvit", "", ""), ("convvit", "convmae", "", ""),
    ],
        ("mae_thyroid", "moco_v3", "", "base_encoder"), ("simmim:beit", "beit", "encoder", ""),
        ("diffmae", "from_scratch", "", "")),
)  # fmt: skip
def test_the_encoder_is_taken_over(source, target, inside, outside):
    before = trained(source)
    size = {"image_size": before.config.image_size}
    after = trained(target, seed=1, **size)
    shapes = jax.eval_shape(after.network.init)
    classes = after.classes
    fit = warm_start.fit(before, shapes, after.network, classes=classes)
    old = before.params[inside] if inside else before.params
    new = fit.params[outside] if outside else fit.params
    old, new = ({name: without_tables(value) for name, value in tree.items()} for tree in (old, new))
    names = [
        name for name in old if name.startswith(("blocks", "patch_embed", "conv1", "layers", "layer", "cls_token"))
    ]
    assert len(names) >= 3
    for name in names:
        jax.tree.map(np.testing.assert_array_equal, old[name], new[name])
    assert "taken" in "\n".join(fit.table(before))


def test_one_table_for_all_blocks_is_copied_to_every_block():
    before, after = trained("simmim:beit", model__depth=3), trained("beit", model__depth=3)
    table = np.random.default_rng(0).standard_normal((52, 4)).astype(np.float32)  # 4 x 4 patches, 4 heads
    before.params["encoder"]["rel_pos_bias"]["relative_position_bias_table"] = table
    fit = warm_start.fit(before, jax.eval_shape(after.network.init), after.network, classes=after.classes)
    for number in range(3):
        taken = fit.params[f"blocks_{number}"]["attn"]["relative_position_bias_table"]
        np.testing.assert_array_equal(taken, table)


def test_a_network_of_the_same_kind_is_taken_over_whole():
    before, after = trained("moco_v3"), trained("moco_v3", seed=1)
    fit = warm_start.fit(before, jax.eval_shape(after.network.init), after.network)
    jax.tree.map(np.testing.assert_array_equal, fit.params, before.params)
    assert not fit.new


@pytest.mark.slow
@pytest.mark.parametrize("name", ["moco_v3", "simclr", "diffmae", "convmae", "simmim", "simmim_swin", "dino_v2"])
def test_nearest_neighbours_judge_every_pre_training(tmp_path, name):
    result = go(tmp_path, "knn_probe", init_from=str(pretraining(name)), probe__neighbours=(1, 3))
    assert 0 <= result["splits"]["test"]["per_image"]["accuracy"]["value"] <= 1
    assert (tmp_path / "report" / "index.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "target"), [("dino_v2", "finetune"), ("moco_v3", "finetune"), ("simmim", "upernet:vit")]
)
def test_a_run_goes_on_from_its_copy_of_the_network_that_it_started_from(tmp_path, source, target):
    config = tiny.config(target, init_from=str(pretraining(source)), optim__epochs=1.0)
    first = train.train_and_evaluate(config, tmp_path / "run")
    again = train.train_and_evaluate(config, tmp_path / "run")
    assert first.finished and again.finished and again.step == first.step
    jax.tree.map(np.testing.assert_array_equal, first.params, again.params)


def test_two_networks_of_one_kind_may_have_other_image_sizes():
    before, after = trained("upernet:vit"), trained("upernet:vit", seed=1, image_size=48)
    fit = warm_start.fit(before, jax.eval_shape(after.network.init), after.network, classes=before.classes)
    assert fit.params["encoder"]["pos_embed"].shape == after.params["encoder"]["pos_embed"].shape
    jax.tree.map(np.testing.assert_array_equal, fit.params["decode_head"], before.params["decode_head"])


@pytest.mark.parametrize("target", tiny.others_slow(["upernet:vit", "simmim", "dino_v2", "moco_v3"], "moco_v3"))
def test_the_encoder_alone_is_taken_over(target):
    before, after = trained("mae_thyroid"), trained(target, seed=1)
    fit = warm_start.fit(before, jax.eval_shape(after.network.init), after.network, classes=[], parts="encoder")
    new = fit.params
    for name in {"dino_v2": ("student", "backbone"), "moco_v3": ("base_encoder",)}.get(target, ("encoder",)):
        new = new[name]
    jax.tree.map(np.testing.assert_array_equal, new["blocks_0"], before.params["blocks_0"])
