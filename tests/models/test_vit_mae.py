"""The network against arrays made by the original MAE and DeblurringMIM code."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file

from deblur_mae_jax import network as networks
from deblur_mae_jax.models import masking, position, vit_mae
from deblur_mae_jax.tasks import losses
from deblur_mae_jax.training import optimizer
from deblur_mae_jax.weight_formats import names as pytorch

HERE = tiny.ROOT / "tests" / "golden"
SIZES = {
    "mae_p8c3": {"image_size": 32, "patch_size": 8, "in_chans": 3, "depth": 3, "decoder_depth": 2},
    "mae_p8c1": {"image_size": 32, "patch_size": 8, "in_chans": 1, "depth": 2, "decoder_depth": 1},
    "mae_p16c3": {
        "image_size": 64,
        "patch_size": 16,
        "in_chans": 3,
        "depth": 3,
        "decoder_depth": 2,
    },
}


class Case:
    """A golden network with its weights and images."""

    def __init__(self, golden, name):
        self.z = golden(name)
        self.model = vit_mae.ViTMAE(embed_dim=48, num_heads=4, decoder_embed_dim=32, decoder_num_heads=4, **SIZES[name])
        self.clean = jnp.asarray(self.z["imgs"]).transpose(0, 2, 3, 1)
        self.blurred = jnp.asarray(self.z["imgs_blur"]).transpose(0, 2, 3, 1)
        self.noise, self.ratio = jnp.asarray(self.z["noise"]), float(self.z["mask_ratio"])
        self.shapes = jax.eval_shape(lambda: self.model.init(jax.random.key(0), self.clean, self.noise, self.ratio))[
            "params"
        ]
        self.params = pytorch.params_from_state_dict(
            load_file(HERE / f"{name}.safetensors"), self.shapes, vit_mae.tables(self.model)
        )
        self.target = masking.patchify(self.clean, self.model.patch_size)

    def forward(self, params, images, ratio=None, noise=None):
        noise = self.noise if noise is None else noise
        return self.model.apply({"params": params}, images, noise, self.ratio if ratio is None else ratio)


@pytest.fixture(scope="module", params=SIZES)
def case(request, golden):
    return Case(golden, request.param)


def test_forward(case):
    pred, out = jax.jit(case.forward)(case.params, case.clean)
    np.testing.assert_array_equal(out["mask"], case.z["mask"])
    np.testing.assert_array_equal(out["ids_restore"], case.z["ids_restore"])
    np.testing.assert_allclose(case.target, case.z["patches"], atol=1e-7)
    np.testing.assert_allclose(out["latent"], case.z["latent"], atol=9e-6)  # reached: 2e-6
    np.testing.assert_allclose(pred, case.z["pred"], atol=2e-5)  # reached: 2e-6
    np.testing.assert_allclose(jax.jit(case.forward)(case.params, case.blurred)[0], case.z["pred_blur"], atol=2e-5)
    whole, _ = case.model.apply({"params": case.params}, case.blurred, None, 0.0)
    np.testing.assert_allclose(whole, case.z["pred_blur_ratio0"], atol=2e-5)


LOSSES = {  # name: (input, masked only, norm_pix)
    "masked": ("clean", True, False),
    "masked_normpix": ("clean", True, True),
    "all": ("blurred", False, False),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_all_gradients(case, name):
    source, only_masked, norm_pix = LOSSES[name]
    target = losses.normalise_patches(case.target) if norm_pix else case.target

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        pred, out = case.forward(params, getattr(case, source))
        return losses.patch_error(pred, target, out["mask"] if only_masked else None).mean()

    value, grads = loss(case.params)
    np.testing.assert_allclose(value, case.z[f"loss_{name}"], atol=3e-6)
    by_name = pytorch.state_dict_from_params(grads)
    assert set(by_name) == set(case.z["grad_names"])
    norms = [np.linalg.norm(by_name[n].astype(np.float64)) for n in case.z["grad_names"]]
    np.testing.assert_allclose(norms, case.z[f"grad_norm_{name}"], rtol=1e-5)  # reached: 6e-7
    if name == "all":
        stored = [k for k in case.z if k.startswith("grad_all:")]
        assert stored
        for key in stored:
            np.testing.assert_allclose(by_name[key.split(":")[1]], case.z[key], atol=2e-7)


def test_three_adamw_steps(golden):
    case = Case(golden, "mae_p8c3")
    lr, weight_decay, b1, b2, eps = case.z["adamw_hparams"]
    tx = optimizer.adamw(lambda count: lr, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
    params, state = case.params, tx.init(case.params)

    @jax.jit
    def step(params, state, noise):
        def loss(params):
            pred, _ = case.forward(params, case.blurred, noise=noise)
            return losses.patch_error(pred, case.target).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return value, jax.tree.map(jnp.add, params, updates), state

    for noise, want in zip(case.z["adamw_noise"], case.z["adamw_losses"], strict=True):
        value, params, state = step(params, state, jnp.asarray(noise))
        np.testing.assert_allclose(value, want, atol=5e-6)
    got = pytorch.state_dict_from_params(params)
    wanted = load_file(HERE / "mae_p8c3_adamw3.safetensors")
    for name, want in wanted.items():
        if name.endswith("qkv.bias"):  # the key's bias has no gradient but rounding noise
            third = len(want) // 3
            np.testing.assert_allclose(got[name][third:-third], want[third:-third], atol=3 * lr)
            want, mine = (
                np.delete(want, slice(third, -third)),
                np.delete(got[name], slice(third, -third)),
            )
            np.testing.assert_allclose(mine, want, atol=2e-5)
        else:
            # Adam takes a whole step where a gradient is rounding noise, which differs between processors.
            np.testing.assert_allclose(got[name], want, atol=3 * lr, err_msg=name)
            assert np.mean(np.abs(got[name] - want) > 2e-5) < 1e-3, name


def test_weight_decay_acts_where_the_original_applies_it(golden):
    case = Case(golden, "mae_p8c3")
    decayed = pytorch.state_dict_from_params(
        jax.tree.map(lambda m, s: np.full(s.shape, m), optimizer.decay_mask(case.shapes), case.shapes)
    )
    assert {n for n, m in decayed.items() if m.flat[0]} == set(case.z["adamw_decay"])
    assert {n for n, m in decayed.items() if not m.flat[0]} == set(case.z["adamw_no_decay"])


def test_position_tables(golden):
    z = golden("mae_pos_embed")
    for key, dim, grid, extra in (
        ("16_g3", 16, 3, 1), ("16_g3_nocls", 16, 3, 0), ("48_g4", 48, 4, 1),
    ):  # fmt: skip
        np.testing.assert_allclose(position.sincos_2d(dim, grid, extra), z[key], atol=1e-6)
    for dim, stride in ((768, 13), (512, 13), (1024, 13)):
        table = position.sincos_2d(dim, 14)
        np.testing.assert_allclose(table[::7, ::stride], z[f"{dim}_g14_sub"], atol=1e-6)
    two = position.sincos_2d(48, 4, 2)
    assert not two[:2].any() and np.array_equal(two[2:], position.sincos_2d(48, 4, 0))


def test_level_code_is_ddpms():
    code = position.sincos_level(jnp.asarray([0, 3]), 8)
    frequency = np.exp(-np.log(10000) * np.arange(4) / 3)
    np.testing.assert_allclose(code[0], [0, 0, 0, 0, 1, 1, 1, 1], atol=1e-7)
    np.testing.assert_allclose(code[1], np.concatenate([np.sin(3 * frequency), np.cos(3 * frequency)]), atol=1e-6)


def count(params):
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))


def shapes_of(name, **overrides):
    config = tiny.config(name, **overrides)
    return jax.eval_shape(networks.build(config).init)


def test_d2mae_adds_exactly_one_vector():
    plain = count(shapes_of("quickstart", model__conditioning="none"))
    for conditioning in ("token", "addition"):
        assert count(shapes_of("quickstart", model__conditioning=conditioning)) == plain + 32
    extra = {"sinusoid": 0, "table": 12 * 32, "mlp": 2 * (32 * 32 + 32)}
    for code, more in extra.items():
        shapes = shapes_of("quickstart", model__level_code=code)
        assert count(shapes) == plain + more


def test_published_sizes():
    shapes = jax.eval_shape(
        lambda: vit_mae.Model("B", in_chans=3).init(
            jax.random.key(0), jnp.zeros((1, 224, 224, 3)), jnp.zeros((1, 196)), 0.75
        )
    )["params"]
    # 111,907,840 with the two fixed tables of (197, 768) and (197, 512)
    assert count(shapes) + 197 * (768 + 512) == 111_907_840
    names = {pytorch.pytorch_name(tuple(k.key for k in path)) for path, _ in
             jax.tree_util.tree_leaves_with_path(shapes)}  # fmt: skip
    assert len(names) + 2 == 254
    model = vit_mae.Model("B", in_chans=3, conditioning="token", num_levels=11)
    assert abs(vit_mae.flops_per_image(model, 0.75) / 1e9 - 59.4) < 0.1


def apply(config, level, **kwargs):
    network = networks.build(config)
    params = jax.jit(network.init)()
    image = jax.random.normal(jax.random.key(1), (2, 16, 16, 1))
    noise = jax.random.uniform(jax.random.key(2), (2, 16))
    level = None if level is None else jnp.asarray([level, level])
    return (
        network.model,
        params,
        network.model.apply({"params": params}, image, noise, 0.75, level, **kwargs),
    )


@pytest.mark.parametrize("conditioning", tiny.others_slow(["token", "addition"], "token"))
def test_the_level_reaches_encoder_and_decoder(conditioning):
    config = tiny.config(model__conditioning=conditioning)
    model, params, (pred, out) = apply(config, 2)
    _, _, (other, _) = apply(config, 9)
    assert abs(pred - other).max() > 1e-4
    tokens = {"token": 2, "addition": 1}[conditioning] + 4
    assert out["latent"].shape == (2, tokens, 32)
    if conditioning == "token":  # the decoder itself sees it: change only that latent token
        ids = masking.random_masking(jax.random.uniform(jax.random.key(2), (2, 16)), 0.75)

        def decode(latent):
            return model.apply({"params": params}, latent, ids[0], ids[2], method="decode")

        moved = out["latent"].at[:, 1].add(1.0)
        assert abs(decode(moved) - decode(out["latent"])).max() > 1e-4


def test_the_decoder_can_do_without_the_level():
    config = tiny.config(model__decoder_level_token=False)
    model, params, (pred, out) = apply(config, 2)
    ids = masking.random_masking(jax.random.uniform(jax.random.key(2), (2, 16)), 0.75)
    moved = model.apply({"params": params}, out["latent"].at[:, 1].add(1.0), ids[0], ids[2], method="decode")
    np.testing.assert_array_equal(moved, pred)


def test_a_conditioned_model_wants_its_level():
    with pytest.raises(ValueError, match="needs the level"):
        apply(tiny.config(), None)


def test_bfloat16_keeps_parameters_and_predictions_in_float32():
    full = apply(tiny.config(model__dtype="float32"), 3)[2][0]
    _, params, (pred, _) = apply(tiny.config(model__dtype="bfloat16"), 3)
    assert pred.dtype == jnp.float32
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))
    np.testing.assert_allclose(pred, full, atol=0.06)
    assert abs(pred - full).max() > 0


def test_remat_changes_nothing():
    values = []
    for remat in (False, True):
        network = networks.build(tiny.config(model__remat=remat))
        params = jax.jit(network.init)()
        image = jax.random.normal(jax.random.key(1), (2, 16, 16, 1))
        noise = jax.random.uniform(jax.random.key(2), (2, 16))

        def loss(p, n=network, i=image, z=noise):
            return n.model.apply({"params": p}, i, z, 0.75, jnp.asarray([1, 5]))[0].var()

        values.append(jax.jit(jax.grad(loss))(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *values)


def test_state_dict_round_trip_and_its_errors(golden):
    case = Case(golden, "mae_p8c1")
    state, tables = load_file(HERE / "mae_p8c1.safetensors"), vit_mae.tables(case.model)
    back = pytorch.state_dict_from_params(case.params)
    for name, value in back.items():
        np.testing.assert_array_equal(value, state[name])
    with pytest.raises(pytorch.UserError, match=r"missing \['norm.bias'\]"):
        pytorch.params_from_state_dict({k: v for k, v in state.items() if k != "norm.bias"}, case.shapes, tables)
    with pytest.raises(pytorch.UserError, match=r"'cls_token': shape"):
        pytorch.params_from_state_dict({**state, "cls_token": np.zeros((1, 1, 3))}, case.shapes, tables)


def recipe_tensor(name, shape, seed, mean, bound):
    """Rebuild one weight of the full-size golden network from NumPy's frozen generator."""
    rs = np.random.RandomState((seed + zlib.crc32(name.encode())) & 0xFFFFFFFF)
    return (mean + bound * (2.0 * rs.random_sample(tuple(shape)) - 1.0)).astype(np.float32)


@pytest.mark.slow
def test_full_size_vit_b(golden):
    z = golden("mae_vitb16_224_recipe")
    state = {}
    for i, name in enumerate(z["recipe_names"].tolist()):
        shape = [int(v) for v in z["recipe_shapes"][i].split("x")]
        state[name] = recipe_tensor(name, shape, int(z["recipe_seed"]), z["recipe_mean"][i], z["recipe_bound"][i])
        assert state[name].flat[0] == z["recipe_first"][i]
    model = vit_mae.Model("B", in_chans=3)
    clean = jnp.repeat(jnp.asarray(z["img_u8"], jnp.float32)[None, ..., None] / 127.5 - 1, 3, -1)
    blurred = jnp.repeat(jnp.asarray(z["blur_u8"], jnp.float32)[None, ..., None] / 127.5 - 1, 3, -1)
    noise = jnp.asarray(z["noise"])
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), clean, noise, 0.75))["params"]
    params = pytorch.params_from_state_dict(state, shapes, vit_mae.tables(model))
    pred, out = model.apply({"params": params}, clean, noise, 0.75)
    np.testing.assert_array_equal(out["ids_restore"], z["ids_restore"])
    np.testing.assert_allclose(out["latent"][:, ::3, ::8], z["latent_sub"], atol=2e-5)
    np.testing.assert_allclose(pred[:, ::7, ::8], z["pred_sub"], atol=2e-5)
    target = masking.patchify(clean, 16)
    masked = losses.patch_error(pred, target, out["mask"]).mean()
    np.testing.assert_allclose(masked, z["loss_masked"], atol=3e-6)
    pred, _ = model.apply({"params": params}, blurred, noise, 0.75)
    np.testing.assert_allclose(losses.patch_error(pred, target).mean(), z["loss_all"], atol=3e-6)
