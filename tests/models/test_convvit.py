"""ConvMAE and its deblurring variant against their own code, from stored arrays."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.models import convvit, convvit_mae, masking
from deblur_mae_jax.tasks import losses
from deblur_mae_jax.weight_formats import names

GOLDEN = Path(__file__).parent.parent / "golden"
WANT = np.load(GOLDEN / "convmae.npz")
SIZES = {
    "image_size": 224, "in_chans": 3, "stem_dims": (8, 12), "stem_depths": (1, 2), "embed_dim": 24, "depth": 2,
    "num_heads": 4, "attention": "xla",
}  # fmt: skip
DECODER = {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 4}
TABLES = ("pos_embed", "decoder_pos_embed")


@pytest.fixture(scope="module")
def networks():
    model = convvit_mae.Model("B", **SIZES, **DECODER)
    state = load_file(GOLDEN / "convmae.safetensors")
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)))["params"])
    params = names.params_from_state_dict(state, shapes, TABLES)
    for name, table in convvit_mae.tables(model).items():
        np.testing.assert_allclose(table, state[name], atol=1e-6)
    gray = WANT["img_u8"].astype(np.int32)
    clean = np.stack([gray, 255 - gray, gray // 2 + 64], axis=-1) / 127.5 - 1
    blurred = np.repeat(WANT["blur_u8"][..., None], 3, axis=-1) / 127.5 - 1
    return model, params, clean.astype(np.float32), blurred.astype(np.float32)


def test_the_number_of_parameters():
    model = convvit_mae.Model("B", in_chans=3)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)))["params"])
    state = names.state_dict_from_params(jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), shapes))
    tables = convvit_mae.tables(model)
    assert len(state) + len(tables) == 313
    assert sum(v.size for v in (*state.values(), *tables.values())) == 115_041_408


def test_the_outputs_of_convmae(networks):
    model, params, clean, blurred = networks
    with jax.default_matmul_precision("highest"):
        run = jax.jit(lambda x: model.apply({"params": params}, x, noise=jnp.asarray(WANT["noise"]), mask_ratio=0.75))
        (pred, out), (of_blurred, _) = run(clean), run(blurred)
    np.testing.assert_array_equal(out["mask"], WANT["mask"])
    np.testing.assert_array_equal(out["ids_restore"], WANT["ids_restore"])
    np.testing.assert_allclose(out["latent"], WANT["latent"], atol=3e-5)
    np.testing.assert_allclose(pred[:, ::6, ::3], WANT["pred_sub"], atol=3e-5)
    np.testing.assert_allclose(of_blurred[:, ::6, ::3], WANT["pred_blur_sub"], atol=5e-5)


def loss_of(model, params, inputs, clean, on, norm):
    """The loss as `tasks/masked_recon.py` computes it, with the stored noise."""
    pred, out = model.apply({"params": params}, inputs, noise=jnp.asarray(WANT["noise"]), mask_ratio=0.75)
    goal = masking.patchify(jnp.asarray(clean), model.patch_size)
    goal = losses.normalise_patches(goal) if norm else goal
    return losses.patch_error(pred, goal, out["mask"] if on == "masked" else None).mean()


def test_the_losses_of_convmae_and_deblurring_convmae(networks):
    model, params, clean, blurred = networks
    cases = {"loss_masked": (clean, "masked", False), "loss_masked_normpix": (clean, "masked", True),
             "loss_all": (blurred, "all", False), "loss_all_normpix": (blurred, "all", True)}  # fmt: skip
    with jax.default_matmul_precision("highest"):
        program = lambda p: {name: loss_of(model, p, x, clean, on, norm) for name, (x, on, norm) in cases.items()}
        for name, value in jax.jit(program)(params).items():
            assert float(value) == pytest.approx(float(WANT[name]), abs=4e-6), name
        grads = jax.jit(jax.grad(lambda p: loss_of(model, p, blurred, clean, "all", False)))(params)
    flat = names.state_dict_from_params(grads)
    assert set(flat) == set(WANT["grad_names"].tolist())
    for one, norm_of in zip(WANT["grad_names"], WANT["grad_norm_all"], strict=True):
        assert np.linalg.norm(flat[str(one)]) == pytest.approx(float(norm_of), rel=1e-4, abs=1e-7), one
    for key in WANT.files:
        if key.startswith("grad_all:"):
            np.testing.assert_allclose(flat[key.removeprefix("grad_all:")], WANT[key], atol=3e-6)


def test_the_classifier(networks):
    _, params, clean, _ = networks
    model = convvit.Model("B", num_classes=3, **SIZES)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)))["params"])
    flat = traverse_util.flatten_dict(params, sep="/")
    before = convvit_mae.Model("B", **SIZES, **DECODER)
    found = convvit.adapt(flat, traverse_util.flatten_dict(shapes, sep="/"), before, model)
    state = {k.removeprefix("cls:"): WANT[k] for k in WANT.files if k.startswith("cls:")}
    own = {
        "fc_norm/scale": state["fc_norm.weight"], "fc_norm/bias": state["fc_norm.bias"],
        "head/kernel": state["head.weight"].T, "head/bias": state["head.bias"],
    }  # fmt: skip
    params = traverse_util.unflatten_dict(found.weights | own, sep="/")
    assert jax.tree.structure(params) == jax.tree.structure(shapes)
    with jax.default_matmul_precision("highest"):
        features = jax.jit(lambda p: model.apply({"params": p}, clean, method=model.features))(params)
        logits = jax.jit(lambda p: model.apply({"params": p}, clean)[0])(params)
    np.testing.assert_allclose(features, WANT["cls_features"], atol=4e-6)
    np.testing.assert_allclose(logits, WANT["cls_logits"], atol=4e-6)


def test_masked_places_do_not_matter(networks):
    """What is under the mask changes neither the tokens nor, through the convolutions, their neighbours."""
    model, params, clean, _ = networks
    noise = jnp.asarray(WANT["noise"])
    encode = jax.jit(lambda x: model.apply({"params": params}, x, noise=noise, mask_ratio=0.75)[1]["latent"])
    mask = np.repeat(np.repeat(WANT["mask"].reshape(2, 14, 14), 16, 1), 16, 2)[..., None]
    other = np.where(mask > 0, np.float32(3.0), clean)
    np.testing.assert_array_equal(encode(clean), encode(other))


@pytest.mark.parametrize("conditioning", ["token", "addition"])
def test_the_level_is_seen(conditioning):
    model = convvit_mae.Model(
        "B", **SIZES | {"image_size": 32}, **DECODER, conditioning=conditioning, num_levels=5
    )  # fmt: skip
    x = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    level = jnp.array([1, 4])
    variables = jax.jit(model.init)(jax.random.key(1), x, level=level)
    run = jax.jit(lambda level: model.apply(variables, x, level=level))
    pred, out = run(level)
    assert pred.shape == (2, 4, 768) and out["latent"].shape[1] == 4 + (conditioning == "token")
    assert np.abs(pred - run(jnp.array([1, 2]))[0])[1].max() > 1e-6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pool": "cls"}, "a ConvViT has no cls token"), ({"patch_size": 8}, "patches of 16 pixels"),
        ({"stem_dims": (8, 8, 8)}, "two numbers"), ({"variant": "L"}, "config.model.variant"),
        ({"image_size": 40}, "config.model.patch_size=16 does not divide"), ({"probe": True}, "config.model.probe"),
    ],
)  # fmt: skip
def test_values_that_do_not_fit_are_one_line(fields, message):
    with pytest.raises(UserError, match=message):
        convvit.Model(**{"num_classes": 2} | SIZES | fields)
