"""DiffMAE: the schedule, what the decoders see, the drawing of masked patches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.input_pipeline.keys import stream_keys
from deblur_mae_jax.models import masking, vit_diffmae
from deblur_mae_jax.tasks import diffmae

SIZES = {
    "image_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 4, "decoder_embed_dim": 16,
    "decoder_depth": 3, "decoder_num_heads": 2, "attention": "xla",
}  # fmt: skip
IMAGES = jnp.asarray(np.random.default_rng(0).standard_normal((3, 16, 16, 1)), jnp.float32)
KEYS = stream_keys(0, 0, jnp.arange(3))
NOISE = jax.random.uniform(jax.random.key(5), (3, 16))


def built(**fields):
    """A network and parameters that are all different from 0."""
    model = vit_diffmae.Model("B", **SIZES | fields)
    params = jax.jit(model.init)(jax.random.key(0), IMAGES)["params"]
    stir = lambda x: x + 0.1 * jnp.asarray(np.random.default_rng(x.size).standard_normal(x.shape), jnp.float32)
    return model, jax.tree.map(stir, params)


def test_the_schedule_falls_from_one_to_almost_nothing():
    for name in diffmae.SCHEDULES:
        curve = diffmae.kept(name, 1000, 1.0)
        assert curve[0] == 1 and len(curve) == 1001 and (np.diff(curve) < 0).all() and curve[-1] < 1e-4
    assert diffmae.kept(rho=0.8)[-1] < diffmae.kept(rho=1.0)[-1]
    beta = np.linspace(1e-4, 0.02, 1000)
    np.testing.assert_allclose(diffmae.kept(rho=1.0)[500], np.prod(1 - beta[:500]), rtol=1e-5)


@pytest.mark.parametrize("decoder", tiny.others_slow(vit_diffmae.DECODERS, "cross_self"))
def test_what_the_decoder_sees(decoder):
    """A noisy patch matters for another one only where the noisy patches see each other; visible ones always do."""
    model, params = built(decoder=decoder)
    run = jax.jit(
        lambda images, noisy: model.apply(
            {"params": params}, images, noise=NOISE, mask_ratio=0.75, noisy=noisy, step=jnp.array([1, 5, 900])
        )
    )
    noisy = jax.random.normal(jax.random.key(1), (3, 16, 16))
    pred, out = run(IMAGES, noisy)
    hidden = out["mask"] > 0
    first = int(np.flatnonzero(hidden[0])[0])
    moved = np.asarray(run(IMAGES, noisy.at[0, first].add(1.0))[0])
    changed = np.abs(moved - pred).max(-1) > 1e-6
    assert changed[0, first] and not changed[1:].any()
    others = hidden[0] & (np.arange(16) != first)
    assert changed[0][np.asarray(others)].any() == (decoder != "cross")
    # Visible patches are given back as they are.
    patches = masking.patchify(IMAGES, 4)
    np.testing.assert_array_equal(pred[~hidden], patches[~hidden])
    assert np.abs(run(IMAGES + 0.5 * jnp.arange(3)[:, None, None, None], noisy)[0] - pred)[hidden][24:].max() > 1e-4


@pytest.mark.parametrize("time", tiny.others_slow(vit_diffmae.TIMES, "addition"))
def test_the_strength_of_the_noise_is_told(time):
    model, params = built(time=time)
    run = lambda step: model.apply({"params": params}, IMAGES, noise=NOISE, mask_ratio=0.75, step=jnp.full(3, step))[0]
    assert (np.abs(run(1) - run(700)).max() > 1e-5) == (time != "none")


@pytest.mark.parametrize(("skip", "seen"), tiny.others_slow([("u_shape", 3), ("last", 1)], ("u_shape", 3)))
def test_every_encoder_block_is_learned(skip, seen):
    model, params = built(skip=skip)
    task = diffmae.make(model)
    grads = jax.jit(jax.grad(lambda p: task.loss(p, {"inputs": IMAGES, "targets": IMAGES}, KEYS)[0].mean()))(params)
    assert sum(name.startswith("decoder_links") for name in params) == seen
    for name, part in grads.items():
        assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(part)) > 0, name


def test_the_loss_is_of_the_masked_patches_alone():
    model, params = built()
    task = diffmae.make(model)
    batch = {"inputs": IMAGES, "targets": IMAGES}
    value, out = task.loss(params, batch, KEYS)
    error = np.square(np.asarray(out["pred"] - out["target"])).mean(-1)
    mask = np.asarray(out["mask"])
    assert mask.sum(1).tolist() == [12, 12, 12] and not error[mask == 0].any()
    np.testing.assert_allclose(value, error.sum(1) / 12, rtol=1e-5)


@pytest.mark.parametrize("sampler", diffmae.SAMPLERS)
def test_a_drawing_of_a_perfect_network_is_the_image(monkeypatch, sampler):
    """If every prediction is the clean image, so is the drawing; and drawings differ by their number."""
    model, params = built()
    goal = masking.patchify(IMAGES, 4)
    task = diffmae.make(model, sampler=sampler, sampling_steps=5)
    batch = {"inputs": IMAGES, "targets": IMAGES}
    one, two = (jax.jit(task.sample)(params, batch, KEYS, number) for number in (0, 1))
    assert one.shape == goal.shape and np.isfinite(one).all() and np.abs(one - two).max() > 1e-6

    def perfect(self, states, noisy, ids_mask, step):
        return masking.take_patches(goal, ids_mask)

    monkeypatch.setattr(vit_diffmae.ViTDiffMAE, "denoise", perfect)
    np.testing.assert_allclose(task.sample(params, batch, KEYS), goal, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedule": "cosin"}, "Did you mean 'cosine'"), ({"sampler": "euler"}, "config.task.sampler"),
        ({"rho": 0.0}, r"config\.task\.rho=0\.0 must be in \(0, 1\]"), ({"steps": 0}, "config.task.steps=0"),
        ({"mask_ratio": 0.0}, "must leave some of the 16 patches visible, and not all"),
    ],
)  # fmt: skip
def test_settings_that_are_impossible_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        diffmae.make(vit_diffmae.Model("B", **SIZES), **fields)


def test_a_decoder_that_is_unknown_is_refused():
    with pytest.raises(UserError, match=r"config\.model\.decoder: unknown name 'crossself'"):
        vit_diffmae.Model("B", **SIZES, decoder="crossself")
