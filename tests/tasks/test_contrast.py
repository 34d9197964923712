"""The cross-modal contrastive loss: the published code's numbers, and what the paper means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deblur_mae_jax.tasks import losses

MODALITIES = ["ct", "t1", "t1ce", "t2", "flair"]


def numbers(classes):
    return jnp.asarray([MODALITIES.index(c) for c in classes.tolist()])


@pytest.mark.parametrize("case", range(7))
@pytest.mark.parametrize("temperature", [0.5, 0.07])
def test_the_published_code(golden, case, temperature):
    z = golden("dae_cmcl")
    features, modality = z[f"z{case}"], numbers(z[f"classes{case}"])
    loss = lambda f: losses.contrast(f, modality, temperature, "code").mean()
    want = z[f"loss{case}_t{round(temperature * 100):02d}"]
    np.testing.assert_allclose(loss(features), want, atol=3e-4, rtol=1e-6)
    if temperature == 0.5:
        np.testing.assert_allclose(jax.grad(loss)(features), z[f"grad{case}_t50"], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["paper", "bce"])
def test_the_papers_loss_wants_like_with_like(form):
    a, b = np.eye(2, 6)
    modality = jnp.asarray([0, 1, 0, 1])
    good = losses.contrast(jnp.asarray([a, b, a, b]), modality, form=form).mean()
    bad = losses.contrast(jnp.asarray([a, a, b, b]), modality, form=form).mean()
    assert good < bad
    # Neither the order of modalities nor the length of the features matters.
    swapped = losses.contrast(jnp.asarray([a, b, a, b]) * 1e3, 1 - modality, form=form).mean()
    np.testing.assert_allclose(swapped, good, rtol=1e-5)


def test_the_published_code_pulls_modalities_together_where_the_paper_does_not():
    """With two examples of different modality, in descending order, the label takes each to the other."""
    z = jnp.asarray([[1.0, 0.0], [0.0, 1.0]])
    together = jnp.asarray([[1.0, 0.0], [1.0, 0.1]])
    descending = jnp.asarray([1, 0])
    code = lambda f: float(losses.contrast(f, descending, 0.5, "code").mean())
    paper = lambda f: float(losses.contrast(f, descending, 0.5).mean())
    assert code(together) < code(z) and paper(z) < paper(together)


def test_half_precision_features_of_the_size_at_hand_stay_finite():
    """Unnormalised features of a volume have a squared length of 6e3: such logits overflow in 16 bits."""
    features = 0.55 * jax.random.normal(jax.random.key(0), (4, 20_736)).astype(jnp.bfloat16)
    modality = jnp.asarray([0, 1, 0, 1])
    loss, grad = jax.value_and_grad(lambda f: losses.contrast(f, modality).mean())(features)
    assert bool(jnp.isfinite(loss)) and bool(jnp.isfinite(grad).all()) and 0.5 < float(loss) < 3
    raw = jnp.square(features.astype(jnp.float32)).sum(axis=1) * np.exp(0.5)
    assert float(raw.min()) > 8_000  # as coded, before a softmax: one-hot, and useless as a gradient
    half = (features @ features.T).astype(jnp.float16) * np.float16(np.exp(0.5) * 8)
    assert not bool(jnp.isfinite(half).all())


def test_half_precision_ends_the_published_contrast_and_not_ours():
    """Why the published commands turn mixed precision off: features of any length, multiplied with one another.

    At the start the bottleneck of the published network (20,736 values of variance 1/3) gives logits of about 11,000,
    which half precision can hold; once the features have grown to two and a half times that, it cannot.
    """
    z = np.random.default_rng(0).normal(0, 3**-0.5, (2, 20736))
    modality = jnp.asarray([1, 0])

    def published(z):
        z = jnp.asarray(z, jnp.float16)
        logits = (z @ z.T) * jnp.exp(jnp.float16(0.5))
        rank = jnp.asarray([1, 0])  # of the modalities, as coded
        rows = [jax.nn.log_softmax(s)[jnp.arange(2), rank] for s in (logits, logits.T)]
        return -jnp.mean(jnp.stack(rows).astype(jnp.float32))

    assert np.isfinite(published(z)) and published(z) > 1000
    assert not np.isfinite(published(2.5 * z))
    at_start = losses.contrast(jnp.asarray(z, jnp.bfloat16), modality)
    for growth in (1.0, 2.5, 1e4):
        value, grad = jax.value_and_grad(lambda z: losses.contrast(z, modality).mean())(
            jnp.asarray(growth * z, jnp.bfloat16)
        )
        assert np.isfinite(np.asarray(grad, np.float32)).all()
        np.testing.assert_allclose(value, at_start.mean(), rtol=1e-3)
