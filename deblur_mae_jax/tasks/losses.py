"""Reconstruction losses, in float32."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

NORM_PIX_EPS = 1e-6


def patch_statistics(patches: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation `(B, L, 1)` of each patch, as MAE's norm_pix_loss uses them.

    The variance is the unbiased one, and 1e-6 is added to it before the root.
    """
    average = patches.mean(axis=-1, keepdims=True)
    variance = patches.var(axis=-1, keepdims=True, ddof=1)
    return average, jnp.sqrt(variance + NORM_PIX_EPS)


def normalise_patches(patches: jax.Array) -> jax.Array:
    """Each patch to zero mean and unit variance."""
    average, std = patch_statistics(patches)
    return (patches - average) / std


def denormalise_patches(predicted: jax.Array, target: jax.Array) -> jax.Array:
    """Predicted normalised patches with the mean and standard deviation of the true ones, `target`."""
    average, std = patch_statistics(target)
    return predicted * std + average


ERRORS: dict[str, Callable[[jax.Array], jax.Array]] = {"squared": jnp.square, "absolute": jnp.abs}


def patch_error(
    pred: jax.Array, target: jax.Array, weight: jax.Array | None = None, error: str = "squared"
) -> jax.Array:  # fmt: skip
    """Mean error of `(B, L, P*P*C)` patches, one number per image `(B,)`.

    error: of a pixel, "squared" or "absolute" (SimMIM, Xie et al. 2022).
    weight `(B, L)`: 1 for the patches that count (MAE's mask); `None` counts all of them
    (DeblurrMAE eq. 4, D2MAE eq. 3). With equally many masked patches in every image the mean over
    the batch is the mean over all of them.
    """
    of_patch = ERRORS[error](pred.astype(jnp.float32) - target.astype(jnp.float32)).mean(axis=-1)
    if weight is None:
        return of_patch.mean(axis=1)
    return (of_patch * weight).sum(axis=1) / weight.sum(axis=1)


CONTRASTS = ("paper", "bce", "code", "none")


def contrast(features: jax.Array, modality: jax.Array, temperature: float = 0.07, form: str = "paper") -> jax.Array:
    """Cross-modal contrastive loss of Disruptive Autoencoders (MIDL 2024, section 3.3), per example `(B,)`.

    features: the last hidden states `(B, ...)`; they are flattened here.
    modality: modality of each example `(B,)`, integers.
    temperature: t in the logits S = z z^T exp(t).
    form: "paper" normalises the features to length one and averages the cross-entropies along rows and columns; the
        targets are the examples of the same modality, and each row of targets sums to one. "bce" applies binary
        cross-entropy to each element of the same logits (the wording of the paper). "code" is the published code, for
        comparison only: it does not normalise the features and uses the rank of the modality as a column of the logits.

    The loss is the mean of the result. It depends on the global batch, whichever devices hold its examples.
    """
    z = features.reshape(features.shape[0], -1).astype(jnp.float32)
    if form != "code":
        z = z * jax.lax.rsqrt(jnp.square(z).sum(axis=1, keepdims=True) + 1e-12)
    scale = jnp.exp(jnp.float32(temperature))
    logits = jnp.matmul(z, z.T, precision=jax.lax.Precision.HIGHEST) * scale
    same = (modality[:, None] == modality[None]).astype(jnp.float32)
    if form == "bce":
        return jax.nn.softplus(logits).mean(axis=1) - (same * logits).mean(axis=1)
    if form == "code":
        B = len(z)
        first = jnp.argmax(same, axis=1) == jnp.arange(B)  # one example of every modality
        rank = ((modality[None] < modality[:, None]) & first[None]).sum(axis=1)
        target = jax.nn.one_hot(rank, B)
    else:
        target = same / same.sum(axis=1, keepdims=True)
    rows = -(target * jax.nn.log_softmax(logits, axis=1)).sum(axis=1)
    columns = -(target * jax.nn.log_softmax(logits.T, axis=1)).sum(axis=1)
    return (rows + columns) / 2


def dice(
    logits: jax.Array,
    labels: jax.Array,
    *,
    include_background: bool = True,
    squared: bool = False,
    over_batch: bool = False,
    smooth_top: float = 1e-5,
    smooth_bottom: float = 1e-5,
) -> jax.Array:
    """MONAI's soft Dice loss, 1 - 2 |A B| / (|A| + |B|) averaged over classes, per example `(B,)`.

    logits: `(B, *space, K)`.
    labels: class of each voxel `(B, *space)`, integers.
    include_background: count class 0.
    squared: square the probabilities in the denominator.
    over_batch: sum overlap and sizes over all examples first.
    smooth_top: constant added to the numerator.
    smooth_bottom: constant added to the denominator.
    """
    K = logits.shape[-1]
    p = jax.nn.softmax(logits.astype(jnp.float32))
    truth = jax.nn.one_hot(labels, K)
    space = tuple(range(1, logits.ndim - 1))
    power = 2 if squared else 1
    overlap = (p * truth).sum(space)
    size = (p**power).sum(space) + truth.sum(space)
    if over_batch:
        overlap, size = overlap.sum(0, keepdims=True), size.sum(0, keepdims=True)
    loss = 1.0 - (2.0 * overlap + smooth_top) / (size + smooth_bottom)
    loss = loss if include_background else loss[:, 1:]
    return jnp.broadcast_to(loss.mean(axis=1), logits.shape[:1])


def voxel_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy of `(B, *space, K)` logits, the mean over the voxels of each example `(B,)`."""
    scores = jax.nn.log_softmax(logits.astype(jnp.float32))
    truth = jax.nn.one_hot(labels, logits.shape[-1])
    return -(truth * scores).sum(-1).mean(axis=tuple(range(1, logits.ndim - 1)))


def nt_xent(a: jax.Array, b: jax.Array, temperature: float = 0.5) -> jax.Array:
    """SimCLR's contrastive loss between two views of every example, per example `(B,)`.

    a: embeddings of the first views `(B, D)`, of any length.
    b: embeddings of the second views `(B, D)`.

    Each embedding must identify its other view among all other embeddings of the global batch.
    """
    z = jnp.concatenate([a, b]).astype(jnp.float32)
    z = z * jax.lax.rsqrt(jnp.square(z).sum(axis=1, keepdims=True) + 1e-12)
    B = len(a)
    scores = jnp.matmul(z, z.T, precision=jax.lax.Precision.HIGHEST) / temperature
    scores = jnp.where(jnp.eye(2 * B, dtype=bool), -jnp.inf, scores)
    other = jnp.concatenate([jnp.arange(B, 2 * B), jnp.arange(B)])
    loss = -jnp.take_along_axis(jax.nn.log_softmax(scores), other[:, None], axis=1)[:, 0]
    return (loss[:B] + loss[B:]) / 2


def _unit(x: jax.Array) -> jax.Array:
    """Rows `(B, D)` of length one, float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis=1, keepdims=True), 1e-24))


def info_nce(queries: jax.Array, keys: jax.Array, temperature: float = 0.2) -> tuple[jax.Array, jax.Array]:
    """MoCo v3's contrastive loss: each query identifies its own key among those of the global batch.

    queries: embeddings `(B, D)`, of any length.
    keys: embeddings `(B, D)`.

    Returns the cross-entropy times twice the temperature `(B,)`, and whether the own key is the nearest `(B,)`.
    """
    q, k = _unit(queries), _unit(keys)
    scores = jnp.matmul(q, k.T, precision=jax.lax.Precision.HIGHEST) / temperature
    own = -jnp.diagonal(jax.nn.log_softmax(scores))
    right = (scores.argmax(axis=1) == jnp.arange(len(q))).astype(jnp.float32)
    return own * (2.0 * temperature), right


def koleo(features: jax.Array) -> jax.Array:
    """KoLeo's regulariser (Sablayrolles et al. 2019), per example `(B,)`: minus the log of the distance to the nearest.

    features: `(B, D)`, of any length; those of the global batch are compared.
    """
    z = _unit(features)
    scores = jnp.matmul(z, z.T, precision=jax.lax.Precision.HIGHEST)
    other = jnp.argmax(jnp.where(jnp.eye(len(z), dtype=bool), -jnp.inf, scores), axis=1)
    distance = jnp.sqrt(jnp.square(z - z[other]).sum(axis=1) + 1e-16)
    return -jnp.log(distance + 1e-8)


def nearest(a: jax.Array, b: jax.Array) -> jax.Array:
    """Of every pair of embeddings `(B, D)`, the share of the two that is nearest to the other among all `(B,)`."""
    z = jnp.concatenate([_unit(a), _unit(b)])
    B = len(a)
    scores = jnp.where(jnp.eye(2 * B, dtype=bool), -jnp.inf, jnp.matmul(z, z.T, precision="highest"))
    other = jnp.concatenate([jnp.arange(B, 2 * B), jnp.arange(B)])
    right = (scores.argmax(axis=1) == other).astype(jnp.float32)
    return (right[:B] + right[B:]) / 2
