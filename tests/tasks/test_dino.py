"""The light DINOv2: its assignment, its terms, its teacher, its crops, and what others take from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tiny_runs import trained

from deblur_mae_jax import network as networks
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.input_pipeline.keys import stream_keys
from deblur_mae_jax.models import position
from deblur_mae_jax.pretrained import inherit, warm_start
from deblur_mae_jax.tasks import dino_v2, losses
from deblur_mae_jax.training import experiment


def published_sinkhorn(scores, temperature, iterations=3):
    """DINOv2's iteration in float64, on prototypes x examples."""
    share = np.exp(scores.astype(np.float64) / temperature).T
    K, B = share.shape
    share /= share.sum()
    for _ in range(iterations):
        share /= share.sum(axis=1, keepdims=True) * K
        share /= share.sum(axis=0, keepdims=True) * B
    return (share * B).T


def test_the_assignment_is_dinos():
    scores = np.random.default_rng(0).uniform(-1, 1, (10, 7)).astype(np.float32)
    got = jax.jit(dino_v2.sinkhorn)(scores, 0.05)
    np.testing.assert_allclose(got, published_sinkhorn(scores, 0.05), atol=1e-5)
    np.testing.assert_allclose(got.sum(axis=1), 1.0, atol=1e-5)


def test_examples_that_do_not_count_change_nothing():
    scores = np.random.default_rng(0).uniform(-1, 1, (10, 7)).astype(np.float32)
    weight = np.array([1, 0, 1, 1, 0, 1, 0, 1, 1, 1], np.float32)
    got = np.asarray(dino_v2.sinkhorn(jnp.asarray(scores), 0.07, jnp.asarray(weight)))
    np.testing.assert_allclose(got[weight > 0], published_sinkhorn(scores[weight > 0], 0.07), atol=1e-5)
    assert (got[weight == 0] == 0).all()
    none = dino_v2.sinkhorn(jnp.asarray(scores), 0.07, jnp.zeros(10))
    assert np.isfinite(none).all() and not np.asarray(none).any()


def test_koleo_is_the_log_of_the_distance_to_the_nearest():
    x = np.random.default_rng(0).standard_normal((9, 5))
    z = x / np.linalg.norm(x, axis=1, keepdims=True)
    distance = np.linalg.norm(z[:, None] - z[None], axis=2) + 1e9 * np.eye(9)
    np.testing.assert_allclose(losses.koleo(jnp.asarray(x)), -np.log(distance.min(axis=1)), atol=1e-5)


@pytest.mark.parametrize(("old", "new"), [((4, 4), (2, 2)), ((2, 5), (4, 4)), ((3, 2), (3, 2))])
def test_positions_are_resized_in_the_step_as_elsewhere(old, new):
    table = np.random.default_rng(0).standard_normal((1, 1 + old[0] * old[1], 6)).astype(np.float32)
    got = jax.jit(lambda x: position.resized(x, old, new))(table)
    np.testing.assert_allclose(got, position.resize_table(table, old, new), atol=1e-6)


def test_masks_are_shares_of_the_patches_of_some_images():
    keys = jax.random.split(jax.random.key(0), 400)
    masks = np.asarray(dino_v2.draw_masks(keys, 50, 0.5, (0.1, 0.5)))
    counts = masks.sum(axis=1)
    some = counts[counts > 0]
    assert 0.4 < len(some) / 400 < 0.6 and some.min() >= 5 and some.max() <= 25


@pytest.fixture(scope="module")
def built():
    run = experiment.build(tiny.resolved("dino_v2"))
    params = jax.device_get(run.make_state().params)
    rng = np.random.default_rng(0)
    side = run.network.inputs.image_size
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    batch = {name: draw(4, side, side, 1) for name in ("inputs", "targets", "other_inputs", "other_targets")}
    return run, params, batch | {"local_inputs": draw(4, 2, 8, 8, 1)}


def test_the_teacher_is_a_moving_average_without_optimiser(built):
    run, params, batch = built
    jax.tree.map(np.testing.assert_array_equal, params["student"], params["teacher"])
    student = jax.tree.map(lambda x: x + 1.0, params["student"])
    loss = jax.jit(run.network.task.loss)
    keys = stream_keys(0, 0, jnp.arange(4))
    new = loss(params | {"student": student}, batch | {"progress": jnp.float32(0)}, keys)[1]["assign"]["teacher"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b + 0.008, atol=1e-5), new, params["teacher"])
    moments = [path for path, _ in jax.tree_util.tree_leaves_with_path(run.make_state().opt_state)]
    assert not any("teacher" in str(path) for path in moments) and any("student" in str(path) for path in moments)
    grads = jax.grad(lambda p: loss(p, batch, keys)[0].mean())(params)
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(grads["teacher"]))
    student = {
        jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(grads["student"])
    }
    assert [name for name, x in student.items() if not x.any()] == []


@pytest.mark.slow
def test_every_term_counts(built):
    run, params, batch = built
    keys = stream_keys(0, 1, jnp.arange(4))

    def value(**settings):
        task = dino_v2.make(run.network.model, **settings)
        return np.asarray(jax.jit(task.loss)(params, batch, keys)[0])

    whole, dino = value(), value(ibot_weight=0.0, koleo_weight=0.0)
    ibot, koleo = value(koleo_weight=0.0) - dino, value(ibot_weight=0.0) - dino
    np.testing.assert_allclose(whole, dino + ibot + koleo, atol=1e-5)
    assert np.abs(koleo).min() > 0 and (ibot > 0).any()
    without = jax.jit(run.network.task.loss)(params, {k: v for k, v in batch.items() if k != "local_inputs"}, keys)[0]
    assert np.abs(whole - without).max() > 1e-4


@pytest.mark.slow
def test_crops_have_their_sizes_and_their_own_draws():
    run = experiment.build(tiny.resolved("dino_v2"))
    examples = run.loader.example(0)
    stacked = {k: np.stack([v, v]) for k, v in examples.items()}
    batch = jax.jit(run.network.inputs.train)(stacked, stream_keys(0, 0, jnp.arange(2)))
    assert batch["inputs"].shape == (2, 16, 16, 1) and batch["local_inputs"].shape == (2, 2, 8, 8, 1)
    assert np.abs(batch["local_inputs"][0, 0] - batch["local_inputs"][0, 1]).max() > 1e-3
    assert np.abs(batch["local_inputs"][0] - batch["local_inputs"][1]).max() > 1e-3


@pytest.mark.parametrize("target", ["from_scratch", "mae_thyroid", "moco_v3", "simmim"])
def test_others_start_from_its_teacher(target):
    before, after = trained("dino_v2"), trained(target, seed=1)
    before.params["teacher"]["backbone"]["cls_token"] = np.full((1, 1, 32), 0.25, np.float32)
    fit = warm_start.fit(before, jax.eval_shape(after.network.init), after.network, classes=after.classes)
    inside = {"moco_v3": "base_encoder", "simmim": "encoder"}.get(target, "")
    new = fit.params[inside] if inside else fit.params
    np.testing.assert_array_equal(new["cls_token"], before.params["teacher"]["backbone"]["cls_token"])
    jax.tree.map(np.testing.assert_array_equal, new["blocks_0"], before.params["teacher"]["backbone"]["blocks_0"])


def test_its_student_starts_from_a_vit():
    before, after = trained("mae_thyroid"), trained("dino_v2", seed=1)
    fit = warm_start.fit(before, jax.eval_shape(after.network.init), after.network)
    jax.tree.map(
        np.testing.assert_array_equal, fit.params["student"]["backbone"]["blocks_0"], before.params["blocks_0"]
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment__local_size": 6}, "local_size=6 must be a multiple of config.model.patch_size=4"),
        ({"augment__local_size": 32}, "at most config.image_size=16"),
        ({"augment__local_crops": -1}, "local_crops=-1 must be 0"),
        ({"augment__local_scale": (0.0, 0.3)}, "local_scale.*must be a range"),
        ({"task__momentum": 1.5}, "momentum=1.5 must be in"),
        ({"task__teacher_temperature": (0.0, 0.1)}, "teacher_temperature.*above 0"),
        ({"task__mask_range": (0.5, 0.1)}, "mask_range.*must be a range"),
        ({"task__koleo_weight": -1.0}, "koleo_weight=-1.0 must be 0 or greater"),
        ({"model__prototypes": 0}, "prototypes=0 must be at least 1"),
    ],
)
def test_invalid_settings_are_refused_by_name(changes, message):
    with pytest.raises(UserError, match=message):
        networks.build(inherit.resolve(tiny.config("dino_v2", **changes))[0])
