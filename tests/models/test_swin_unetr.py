"""The 3-D network against arrays made by running MONAI and DAE's own code."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.models import conv3d, swin, swin_unetr
from deblur_mae_jax.weight_formats import contract, dae, monai, names

GOLDEN = tiny.ROOT / "tests" / "golden"


@pytest.fixture(autouse=True)
def precise():
    with jax.default_matmul_precision("highest"):
        yield


def last(x):
    return np.moveaxis(x, 1, -1)


def first(x):
    return np.moveaxis(np.asarray(x), -1, 1)


def fill(module, state, *inputs):
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))["params"]
    return {"params": names.params_from_state_dict(state, shapes)}


def recipe(z, change=lambda state: state):
    """A golden network's weights from NumPy's frozen generator."""
    state = {}
    for i, name in enumerate(z["recipe_names"].tolist()):
        seed = (int(z["recipe_seed"]) + zlib.crc32(name.encode())) & 0xFFFFFFFF
        shape = tuple(int(v) for v in z["recipe_shapes"][i].split("x"))
        draw = np.random.RandomState(seed).random_sample(shape)
        state[name] = (z["recipe_mean"][i] + z["recipe_bound"][i] * (2.0 * draw - 1.0)).astype(np.float32)
        assert state[name].flat[0] == z["recipe_first"][i]
    return change(state)


@pytest.mark.parametrize("case", ["pm0", "pm1"])
@pytest.mark.parametrize("order", swin.MERGE_ORDERS)
def test_patch_merging(golden, case, order):
    z = golden("swin_units")
    module = swin.PatchMerging(order)
    params = {
        "norm": {"scale": z[f"{case}_norm_w"], "bias": z[f"{case}_norm_b"]},
        "reduction": {"kernel": z[f"{case}_reduction"].T},
    }
    got = module.apply({"params": params}, z[f"{case}_x"])
    np.testing.assert_allclose(got, z[f"{case}_{order}"], atol=6e-6)


def test_relative_index_and_windows(golden):
    z = golden("swin_units")
    np.testing.assert_array_equal(swin.relative_index((7, 7, 7)), z["rel_index_7_7_7"])
    np.testing.assert_array_equal(swin.relative_index((2, 3, 4)), z["rel_index_2_3_4"])
    window = tuple(z["wp_window"].tolist())
    parts = swin.to_windows(jnp.asarray(z["wp_x"]), window)
    np.testing.assert_array_equal(parts, z["wp_out"])
    np.testing.assert_array_equal(swin.from_windows(parts, window, z["wp_x"].shape[1:4]), z["wp_x"])


@pytest.mark.parametrize("case", range(4))
def test_shift_masks(golden, case):
    z = golden("swin_units")
    size, window, shift = (tuple(row) for row in z[f"mask{case}_args"].tolist())
    region = swin.regions(size, window, shift)
    got = region[:, :, None] != region[:, None, :]
    shape = tuple(z[f"mask{case}_shape"])
    want = np.unpackbits(z[f"mask{case}"])[: np.prod(shape)].reshape(shape).astype(bool)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("case", range(3))
def test_blocks(golden, case):
    z, state = golden("swin_units"), load_file(GOLDEN / f"swin_units_blk{case}.safetensors")
    state = {k: v for k, v in state.items() if not k.endswith("relative_position_index")}
    _, heads, *_, shift = z[f"blk{case}_cfg"].tolist()
    module = swin.Block(heads, shift)
    got = module.apply(fill(module, state, z[f"blk{case}_x"]), z[f"blk{case}_x"])
    np.testing.assert_allclose(got, z[f"blk{case}_out"], atol=9e-6)


@pytest.mark.parametrize(
    ("case", "module"),
    [
        ("res_same", conv3d.ResidualBlock(4)),
        ("res_diff", conv3d.ResidualBlock(6)),
        ("res_lowvar", conv3d.ResidualBlock(6)),
        ("up", conv3d.UpBlock(6)),
        ("embed", conv3d.BasicStem(6)),
        ("out", conv3d.OutBlock(6)),
    ],
)
def test_u_net_blocks(golden, case, module):
    z, state = golden("unet_blocks"), load_file(GOLDEN / f"unet_blocks_{case}.safetensors")
    state = {k.removeprefix("layer."): v for k, v in state.items()}
    inputs = [last(z[f"{case}_x{i}"]) for i in range(2) if f"{case}_x{i}" in z]
    got = module.apply(fill(module, state, *inputs), *inputs)
    np.testing.assert_allclose(first(got), z[f"{case}_y"], atol=2e-5)


def test_transposed_convolution(golden):
    z = golden("unet_blocks")
    module = conv3d.TransposedConv(6)
    got = module.apply(fill(module, {"conv.weight": z["transp_w"]}, last(z["transp_x"])), last(z["transp_x"]))
    np.testing.assert_allclose(first(got), z["transp_y"], atol=3e-5)


def check_hidden(z, prefix, hidden):
    """The sampled values of hidden states: what is stored are corners of a grid."""
    seen = 0
    for i, h in enumerate(hidden):
        key = f"{prefix}_h{i}_sub"
        if key not in z:
            continue
        want, got = z[key], first(h)
        step = got.shape[-1] // want.shape[-1]
        got = got[: want.shape[0], :: got.shape[1] // want.shape[1], ::step, ::step, ::step]
        np.testing.assert_allclose(got, want, atol=4e-5, err_msg=key)
        seen += 1
    assert seen >= 3


@pytest.mark.parametrize(
    "order",
    ["monai15", *(pytest.param(order, marks=pytest.mark.slow) for order in ("legacy", "v2"))],
)
def test_monais_network(golden, order):
    z = golden("monai_swinunetr")
    model = swin_unetr.Model("12", out_chans=3, merge_order=order)
    x = last(z["x_u8"]).astype(np.float32) / 255
    params = fill(model, recipe(z), x)
    out, found = jax.jit(model.apply)(params, x)
    hidden = found["hidden"]
    np.testing.assert_allclose(first(out)[:, :, ::4, ::4, ::4], z[f"{order}_out_sub"], atol=3e-4)
    np.testing.assert_allclose(first(out)[0, :, 33], z[f"{order}_out_slice"], atol=2e-4)
    check_hidden(z, order, [conv3d.channel_norm(h) for h in hidden])
    state = monai.from_ours(as_built(model), names.state_dict_from_params(params["params"])).state
    assert {f"{k}:{'x'.join(map(str, v.shape))}" for k, v in state.items()} == set(z["state_keys"].tolist())


def test_daes_fine_tuning_network(golden):
    z = golden("dae_finetune_net")
    model = swin_unetr.Model("12", out_chans=3, merge_order="legacy", patch_embed="unet_basic")
    x = last(z["x_u8"]).astype(np.float32) / 255
    assert contract.recognise(recipe(z)) is monai
    state = monai.to_ours(recipe(z))
    out, found = jax.jit(model.apply)(fill(model, state, x), x)
    hidden = found["hidden"]
    np.testing.assert_allclose(first(out)[:, :, ::4, ::4, ::4], z["legacy_out_sub"], atol=1e-4)
    check_hidden(z, "legacy", [conv3d.channel_norm(h) for h in hidden])


def as_built(model):
    return {name: getattr(model, name) for name in ("layout", "skip_input", "patch_embed")}


def zero_channels(channels):
    return lambda x: x.at[..., np.asarray(channels)].set(0)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["dae_model", "dae_model_ascoded"])
def test_daes_pre_training_network(golden, case):
    z = golden(case)
    coded = case.endswith("ascoded")
    model = swin_unetr.Model(
        "12", feature_size=32 if coded else 12, patch_embed="unet_basic", merge_order="legacy", normalize=False,
        num_heads=(2, 4, 8, 16) if coded else (3, 6, 12, 24), layout="as_coded" if coded else "intended", image_size=64,
    )  # fmt: skip
    clean = last(z["x_org_u8"]).astype(np.float32) / 255
    weights = recipe(z)
    assert contract.recognise(weights) is dae
    state = dae.to_ours(weights)
    params = fill(model, state, clean)
    run = jax.jit(lambda x, disrupt: model.apply(params, x, disrupt), static_argnums=1)
    low = np.repeat(np.repeat(np.repeat(last(z["low"]), 4, 1), 4, 2), 4, 3)
    for mode, x, disrupt in (("none", clean, None), ("all", low, zero_channels(z["channels"]))):
        out, found = run(x, disrupt)
        hidden = found["hidden"]
        np.testing.assert_allclose(first(out)[:, :, ::4, ::4, ::4], z[f"{mode}_rec_sub"], atol=2e-4)
        loss = np.abs(clean - np.asarray(out)).mean()
        np.testing.assert_allclose(loss, z[f"{mode}_loss_recon"], atol=2e-6)
        check_hidden(z, mode, hidden)
    back = dae.from_ours(as_built(model) | {"layout": "intended"}, names.state_dict_from_params(params["params"])).state
    unused = {k for k in weights if ".layer.conv3." in k and not k.startswith("encoder1.")}
    assert {k for k in back if not k.endswith("index")} == set(weights) - unused
    for name in set(back) & set(weights) - {
        "encoder.mask_token",
        "encoder.norm.weight",
        "encoder.norm.bias",
    }:
        np.testing.assert_array_equal(back[name], weights[name], err_msg=name)


def test_the_size_of_the_published_network():
    model = swin_unetr.Model("48", patch_embed="unet_basic", merge_order="legacy", normalize=False)
    x = jax.ShapeDtypeStruct((1, 96, 96, 96, 1), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    count = sum(np.prod(s.shape) for s in jax.tree.leaves(shapes))
    # The 62,251,507 of the paper's code count the mask token and the encoder's unused norm.
    assert count == 62_251_507 - 48 - 2 * 768
    out = jax.eval_shape(lambda params, x: model.apply({"params": params}, x)[0], shapes, x)
    assert out.shape == (1, 96, 96, 96, 1)


def test_without_the_skip_nothing_of_the_input_reaches_the_output_directly():
    model = swin_unetr.Model("12", skip_input="none")
    x = jax.ShapeDtypeStruct((1, 32, 32, 32, 1), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    assert "encoder1" not in params["params"]
    hidden = jax.eval_shape(lambda p, x: model.apply(p, x, method=model.encode), params, x)
    decode = lambda p, x, h: model.apply(p, x, h, method=model.decode)
    program = jax.make_jaxpr(decode)(params, x, hidden)
    image = program.jaxpr.invars[len(jax.tree.leaves(params))]
    assert not any(image in equation.invars for equation in program.jaxpr.eqns)


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"variant": "36"}, ["variant", "24"]),
        ({"patch_embed": "cnv"}, ["patch_embed", "Did you mean 'conv'"]),
        ({"merge_order": "v3"}, ["merge_order", "legacy"]),
        ({"feature_size": 13}, ["feature_size=13", "num_heads"]),
        ({"layout": "x"}, ["layout", "as_coded"]),
        ({"layout": "as_coded", "variant": "12", "image_size": 32}, ["as_coded", "feature_size=16, not 12"]),
    ],
)
def test_bad_settings(fields, parts):
    with pytest.raises(UserError) as caught:
        swin_unetr.Model(**fields)
    assert all(part in str(caught.value) for part in parts), caught.value
