"""Weight files as they are found: in shards, in other precisions, behind prefixes, damaged, or not weights at all."""

import json
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from deblur_mae_jax import network as networks
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.pretrained import inherit, trained_network, warm_start
from deblur_mae_jax.weight_formats import files, vit
from deblur_mae_jax.workdir.run_folder import Workdir

GOLDEN = Path(__file__).parent.parent / "golden"


def weights():
    return load_file(GOLDEN / "mae_p8c3.safetensors")


def saved(path, state):
    save_file({k: np.ascontiguousarray(v) for k, v in state.items()}, path)
    return path


def encoder():
    return {k: v for k, v in weights().items() if not k.startswith(("decoder", "mask_token"))}


def same(path, state=None):
    read = files.read(path, "config.init_from")
    for name, value in (state or weights()).items():
        np.testing.assert_array_equal(read.state[name], value)
    return read


def shards(folder, names=("model-1.safetensors", "model-2.safetensors")):
    state = weights()
    where = {key: names[i % 2] for i, key in enumerate(state)}
    for name in names:
        if "/" not in name:
            saved(folder / name, {k: v for k, v in state.items() if where[k] == name})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


def test_a_folder_in_shards(tmp_path):
    assert files.is_weights(shards(tmp_path))
    same(tmp_path)
    assert trained_network.load(tmp_path).network.model.patch_size == 8


def test_a_part_that_is_missing_or_elsewhere_is_named(tmp_path):
    (shards(tmp_path) / "model-2.safetensors").unlink()
    with pytest.raises(UserError, match=r"the part 'model-2.safetensors' is missing"):
        files.read(tmp_path, "f")
    shards(tmp_path, ("model-1.safetensors", "../x.safetensors"))
    with pytest.raises(UserError, match="in another folder"):
        files.read(tmp_path, "f")
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(UserError, match="not a list of weight files"):
        files.read(tmp_path, "f")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_precisions_become_float32(tmp_path, dtype):
    kind = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    state = {k: v.astype(kind) for k, v in weights().items()}
    read = files.read(saved(tmp_path / "w.safetensors", state), "f")
    assert {v.dtype for v in read.state.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(read.state["norm.weight"], state["norm.weight"].astype(np.float32))


def test_a_precision_that_cannot_be_read_is_one_clear_line(tmp_path):
    state = {k: v.astype(ml_dtypes.float8_e4m3fn) for k, v in weights().items()}
    with pytest.raises(UserError, match="cannot be read"):
        files.read(saved(tmp_path / "w.safetensors", state), "f")


@pytest.mark.parametrize("prefix", ["model.", "encoder.", "backbone.", "module.model.encoder.", "student."])
def test_prefixes_are_removed(tmp_path, prefix):
    state = {prefix + k: v for k, v in encoder().items()} | {"classifier.weight": np.zeros((2, 3), np.float32)}
    read = same(saved(tmp_path / "w.safetensors", state), encoder())
    assert read.notes == [f"1 arrays outside '{prefix[:-1].removeprefix('module.')}' are not read"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s | {"patch_embed.proj.weight": s["patch_embed.proj.weight"].reshape(48, -1)},
            "a convolution",
        ),
        (lambda s: s | {"pos_embed": s["pos_embed"][0]}, "'pos_embed' has the shape"),
        (lambda s: s | {"blocks.0.attn.qkv.weight": s["blocks.0.attn.qkv.weight"].T}, "blocks.0.attn.qkv|shape"),
        (lambda s: s | {"norm.weight": np.ones((3, 3), np.float32)}, "norm"),
        (lambda s: {k: v for k, v in s.items() if "blocks.0.mlp" not in k}, "blocks.0.mlp.fc1.weight"),
    ],
)
def test_shapes_that_do_not_fit_are_one_clear_line(tmp_path, change, message):
    path = saved(tmp_path / "w.safetensors", change(encoder()))
    with pytest.raises(UserError, match=message) as caught:
        trained_network.load(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_what_holds_no_weights_is_named(tmp_path):
    pointer = tmp_path / "w.safetensors"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(UserError, match="Git LFS pointer"):
        trained_network.load(pointer)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "hidden_size": 64}))
    with pytest.raises(UserError, match=r"neither a run .* nor a folder with weights"):
        trained_network.load(tmp_path)


def test_another_activation_is_refused(tmp_path):
    saved(tmp_path / "model.safetensors", encoder())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "hidden_act": "relu"}))
    with pytest.raises(UserError, match=r"config\.json': hidden_act=relu; the networks here have the exact gelu"):
        trained_network.load(tmp_path)


def test_another_width_of_the_mlps_is_taken_along(tmp_path):
    """It was read, and then every MLP of the fine-tuned network had another shape."""
    state = encoder()
    for name in list(state):
        if ".mlp.fc1." in name:
            state[name] = state[name][: len(state[name]) // 2]
        elif ".mlp.fc2.weight" in name:
            state[name] = state[name][:, : state[name].shape[1] // 2]
    path = saved(tmp_path / "narrow.safetensors", state)
    start = tiny.config("finetune", init_from=str(path), task__degrade="none", model__conditioning="none")
    config, source, _ = inherit.resolve(start)
    assert config.model.mlp_ratio == 2
    network = networks.build(config, 2)
    taken = warm_start.fit(source, jax.eval_shape(network.init), network)
    assert not any(name.startswith("blocks") for name in taken.new), taken.new


@pytest.mark.parametrize(("epsilon", "told"), [(1e-6, False), (1e-12, True)])
def test_another_epsilon_of_the_norms_is_told(tmp_path, epsilon, told):
    saved(tmp_path / "model.safetensors", encoder())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "layer_norm_eps": epsilon}))
    notes = " ".join(trained_network.load(tmp_path).notes)
    assert ("layer_norm_eps=1e-12; the layers here have 1e-06" in notes) == told


def test_a_moved_source_is_not_needed_and_another_one_is_refused(tmp_path):
    first, other = saved(tmp_path / "a.safetensors", weights()), weights()
    other["norm.weight"] = other["norm.weight"] + 1
    second = saved(tmp_path / "b.safetensors", other)
    workdir = Workdir(tmp_path / "run")
    workdir.pretrained.mkdir(parents=True)
    workdir.pretrained_images.write_text("[]")  # of another source, in a start that failed
    inherit.keep_copy(workdir, trained_network.load(first))
    assert not workdir.pretrained_images.exists()
    (workdir.checkpoints / "step_4").mkdir(parents=True)
    workdir.config.write_text(json.dumps({"init_from": str(first)}))
    first.unlink()
    for name in (first, tmp_path / "moved.safetensors"):
        assert inherit.resolve(tiny.config("finetune", init_from=str(name)), workdir)[1] is not None
    with pytest.raises(UserError, match="holds other weights than"):
        inherit.resolve(tiny.config("finetune", init_from=str(second)), workdir)


def test_a_folder_in_shards_keeps_its_config(tmp_path):
    (shards(tmp_path) / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3}))
    assert files.read(tmp_path, "f").config["image_mean"] == [0.5] * 3


def test_deit_3_has_no_position_of_the_class_token():
    state = encoder()
    width = state["cls_token"].shape[-1]
    plain = vit.checked(dict(state))
    other = dict(state)
    other["pos_embed"] = state["pos_embed"][:, 1:]
    for block in {name.split(".")[1] for name in state if name.startswith("blocks.")}:
        for number in "12":
            other[f"blocks.{block}.gamma_{number}"] = np.full(width, 0.5, np.float32)
    read = vit.checked(other)
    assert read["pos_embed"].shape == state["pos_embed"].shape and not read["pos_embed"][:, 0].any()
    np.testing.assert_allclose(read["blocks.0.mlp.fc2.weight"], 0.5 * plain["blocks.0.mlp.fc2.weight"])


def test_the_pooling_of_another_kind_is_said():
    state = encoder() | {"head.weight": np.zeros((2, encoder()["cls_token"].shape[-1]), np.float32)}
    notes = []
    assert vit._pool(state, {"global_pool": "avg"}, notes) == "cls" and "class token is read" in notes[0]
