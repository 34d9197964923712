"""Masking invariants, and the gradient written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from deblur_mae_jax.models import masking
from deblur_mae_jax.tasks import losses


@settings(max_examples=20, deadline=None)
@given(side=st.integers(2, 4), ratio=st.sampled_from([0, 0.3, 0.5, 0.75, 0.9]), seed=st.integers(0, 99))
def test_masking_keeps_the_stated_number_and_can_be_undone(side, ratio, seed):
    L = side * side
    keep = masking.num_kept(L, ratio)
    if keep == 0:
        return
    noise = jax.random.uniform(jax.random.key(seed), (3, L))
    ids_keep, mask, ids_restore = masking.random_masking(noise, ratio)
    assert ids_keep.shape == (3, keep)
    np.testing.assert_array_equal(mask.sum(1), L - keep)
    tokens = jax.random.normal(jax.random.key(seed + 1), (3, L, 5))
    visible = masking.take_patches(tokens, ids_keep)
    back = masking.restore_patches(visible, jnp.zeros(5), ids_keep, ids_restore)
    np.testing.assert_array_equal(back, tokens * (1 - mask[..., None]))


def test_masks_differ_between_images_and_follow_the_noise():
    noise = jax.random.uniform(jax.random.key(0), (4, 36))
    ids_keep, mask, _ = masking.random_masking(noise, 0.75)
    assert len({tuple(np.asarray(m)) for m in mask}) == 4
    np.testing.assert_array_equal(ids_keep, np.argsort(noise, axis=1)[:, :9])


def test_gradient_of_restore_equals_automatic_differentiation():
    noise = jax.random.uniform(jax.random.key(0), (2, 16))
    ids_keep, _, ids_restore = masking.random_masking(noise, 0.6)
    visible = jax.random.normal(jax.random.key(1), (2, 6, 3))
    fill = jax.random.normal(jax.random.key(2), (3,))
    weight = jax.random.normal(jax.random.key(3), (2, 16, 3))

    def plain(visible, fill):
        full = jnp.concatenate([visible, jnp.broadcast_to(fill, (2, 10, 3))], axis=1)
        return (jnp.take_along_axis(full, ids_restore[..., None], axis=1) * weight).sum()

    def ours(visible, fill):
        return (masking.restore_patches(visible, fill, ids_keep, ids_restore) * weight).sum()

    for got, want in zip(jax.grad(ours, (0, 1))(visible, fill), jax.grad(plain, (0, 1))(visible, fill), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 5), columns=st.integers(1, 5), patch=st.integers(1, 6), channels=st.sampled_from([1, 3])
)  # fmt: skip
def test_unpatchify_undoes_patchify(rows, columns, patch, channels):
    rng = np.random.default_rng(0)
    images = rng.standard_normal((2, rows * patch, columns * patch, channels)).astype(np.float32)
    patches = masking.patchify(jnp.asarray(images), patch)
    assert patches.shape == (2, rows * columns, patch * patch * channels)
    np.testing.assert_array_equal(masking.unpatchify(patches, patch, channels, (rows, columns)), images)
    if rows == columns:
        np.testing.assert_array_equal(masking.unpatchify(patches, patch, channels), images)


def test_loss_counts_the_patches_it_is_told_to():
    pred, target = jnp.zeros((1, 4, 2)), jnp.asarray([[[1.0, 1], [2, 2], [3, 3], [4, 4]]])
    np.testing.assert_allclose(losses.patch_error(pred, target), [7.5])
    np.testing.assert_allclose(losses.patch_error(pred, target, jnp.asarray([[0, 0, 1, 1.0]])), [12.5])
    normal = losses.normalise_patches(jnp.asarray(np.random.default_rng(0).normal(3, 2, (2, 3, 64))))
    np.testing.assert_allclose(normal.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(normal.std(-1, ddof=1), 1, atol=1e-5)
