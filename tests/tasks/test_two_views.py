"""MoCo v3 and SimCLR: the loss, the momentum, the statistics, and one step against MoCo v3's own code."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.models import position, siamese, siamese_resnet, siamese_vit
from deblur_mae_jax.tasks import losses, moco_v3, simclr
from deblur_mae_jax.weight_formats import names

GOLDEN = Path(__file__).parent.parent / "golden"
LOSS = np.load(GOLDEN / "moco_v3_loss.npz")
STEP = np.load(GOLDEN / "moco_v3_model.npz")


@pytest.mark.parametrize("number", range(3))
def test_the_loss_of_moco_v3(number):
    q, k, temperature = (LOSS[f"{name}_{number}"] for name in ("q", "k", "T"))

    def mean(q):
        return losses.info_nce(q, jnp.asarray(k), float(temperature))[0].mean()

    value, grad = jax.value_and_grad(mean)(jnp.asarray(q))
    assert abs(float(value) - float(LOSS[f"loss_{number}"])) < 2e-6
    np.testing.assert_allclose(grad, LOSS[f"grad_q_{number}"], atol=1e-6)


@pytest.mark.parametrize("number", range(2))
def test_the_momentum_of_moco_v3(number):
    start, epochs = LOSS[f"mom_args_{number}"]
    got = [float(moco_v3.schedule(start, at / epochs)) for at in LOSS[f"mom_epochs_{number}"]]
    np.testing.assert_allclose(got, LOSS[f"mom_{number}"], atol=1e-6)


def test_the_positions_of_moco_v3():
    np.testing.assert_allclose(position.sincos_2d_quarters(32, 4), LOSS["pos_32_g4"][0], atol=2e-6)
    big = position.sincos_2d_quarters(768, 14)[::7, ::12]
    np.testing.assert_allclose(big, LOSS["pos_768_g14_sub"][0], atol=2e-6)


def of_moco(**fields):
    sizes = {"image_size": 32, "patch_size": 8, "in_chans": 3, "embed_dim": 32, "depth": 2, "num_heads": 4}
    return siamese_vit.Model("B", **sizes, projector=(20, 20, 12), predictor=(20, 12), attention="xla", **fields)


@pytest.fixture(scope="module")
def step():
    """Loss, gradients and new parameters of one step of the official network."""
    model = of_moco()
    state = load_file(GOLDEN / "moco_v3_model.safetensors")
    state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    images = [jnp.asarray(STEP[name].transpose(0, 2, 3, 1)) for name in ("x1", "x2")]
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images[0]))["params"]
    params = jax.tree.map(jnp.asarray, names.params_from_state_dict(state, shapes))
    # m = 0.97 throughout, as in the stored step.
    task = moco_v3.make(model, momentum=0.97, freeze_patch_embed=True)
    batch = {"inputs": images[0], "targets": images[0], "other_inputs": images[1], "other_targets": images[1]}

    def mean(params):
        per_image, out = task.loss(params, batch | {"progress": 0.0}, {})
        return per_image.mean(), out

    with jax.default_matmul_precision("highest"):
        (value, out), grads = jax.jit(jax.value_and_grad(mean, has_aux=True))(params)
        embedded = [model.apply({"params": params}, x, train=True) for x in images]
    return task, params, float(value), out, grads, embedded


def test_one_step_of_moco_v3(step):
    task, _, value, _, grads, embedded = step
    assert abs(value - float(STEP["loss"])) < 5e-6
    np.testing.assert_allclose(embedded[0][1]["projected"], STEP["z1"], atol=2e-5)
    np.testing.assert_allclose(embedded[0][0], STEP["q1"], atol=3e-5)
    np.testing.assert_allclose(embedded[1][0], STEP["q2"], atol=3e-5)
    flat = names.state_dict_from_params(grads)
    trained = {n for n in flat if task.trains(n.replace(".", "/")) and "running" not in n}
    assert trained == set(STEP["grad_names"].tolist())
    for name, norm in zip(STEP["grad_names"], STEP["grad_norm"], strict=True):
        assert np.linalg.norm(flat[str(name)]) == pytest.approx(float(norm), rel=5e-4, abs=3e-6), name


def test_momentum_and_statistics_after_one_step_of_moco_v3(step):
    _, _, _, out, _, _ = step
    new = names.state_dict_from_params(out["assign"])
    checked = [name.removeprefix("after:") for name in STEP.files if name.startswith("after:")]
    assert len(checked) > 15
    for name in checked:
        np.testing.assert_allclose(new[name], STEP[f"after:{name}"], atol=3e-6, err_msg=name)


class Sums:
    """A network whose embedding of an image is a known function of it and of its level; records what it sees."""

    momentum = predictor = None

    def __init__(self, kind):
        self.momentum, self.predictor = kind == "moco", (1,) if kind == "moco" else ()
        self.seen = []
        self.target = "target"

    def apply(self, variables, images, *, level=None, train=False, method=None):
        self.seen.append((method, np.asarray(images[:, 0, 0, 0]), None if level is None else np.asarray(level)))
        flat = images.reshape(len(images), -1)
        return jnp.stack([flat.sum(1), flat[:, 0], jnp.square(flat).sum(1)], axis=1), {"assign": {}}


def four_views():
    rng = np.random.default_rng(0)
    names = ("inputs", "targets", "other_inputs", "other_targets")
    batch = {name: jnp.asarray(rng.standard_normal((3, 2, 2, 1)), jnp.float32) for name in names}
    return batch | {"level": jnp.asarray([3, 5, 2]), "other_level": jnp.asarray([4, 1, 6])}


def test_moco_v3_sees_degraded_views_and_its_copy_the_clean_ones():
    model, batch = Sums("moco"), four_views()
    task = moco_v3.make(model)
    value, _ = task.loss({"base_encoder": {}, "momentum_encoder": {}}, batch, {})
    seen = [(method, image.tolist(), level.tolist()) for method, image, level in model.seen]
    first = lambda name: batch[name][:, 0, 0, 0].tolist()
    assert seen == [
        (None, first("inputs"), [3, 5, 2]), (None, first("other_inputs"), [4, 1, 6]),
        ("target", first("targets"), [1, 1, 1]), ("target", first("other_targets"), [1, 1, 1]),
    ]  # fmt: skip
    embedded = {name: Sums("moco").apply({}, batch[name])[0] for name in batch if "level" not in name}
    want = losses.info_nce(embedded["inputs"], embedded["other_targets"], 0.2)[0]
    want += losses.info_nce(embedded["other_inputs"], embedded["targets"], 0.2)[0]
    np.testing.assert_allclose(value, want, rtol=1e-6)


def test_simclr_contrasts_a_degraded_view_with_a_clean_one():
    """Against the equation of the paper: the mean over both views, so twice the mean over images of this value."""
    model, batch, temperature = Sums("simclr"), four_views(), 0.1
    value, _ = simclr.make(model, temperature=temperature).loss({}, batch, {})
    ((_, image, level),) = model.seen
    assert image.tolist() == np.stack([batch["inputs"], batch["other_targets"]], 1).reshape(6, -1)[:, 0].tolist()
    assert level.tolist() == [3, 1, 5, 1, 2, 1]
    z = np.stack([Sums("simclr").apply({}, batch[name])[0] for name in ("inputs", "other_targets")], 1).reshape(6, 3)
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    scores = np.exp(z @ z.T / temperature) * (1 - np.eye(6))
    each = -np.log([scores[i, i ^ 1] / scores[i].sum() for i in range(6)])
    np.testing.assert_allclose(value, each.reshape(3, 2).sum(axis=1), rtol=1e-4)


@pytest.mark.slow
def test_the_momentum_encoder_starts_as_a_copy_and_has_no_memory_of_the_optimiser():
    from deblur_mae_jax.training import optimizer

    config = tiny.resolved("moco_v3")
    from deblur_mae_jax import network

    net = network.build(config)
    params = net.task.begin(net.init())
    jax.tree.map(np.testing.assert_array_equal, params["base_encoder"], params["momentum_encoder"])
    tx = optimizer.make(config.optim, lambda step: 1e-3, net.model, net.rules, net.task.trains)
    memory = sum(x.size for x in jax.tree.leaves(jax.eval_shape(tx.init, params)))
    count = sum(x.size for x in jax.tree.leaves(params["base_encoder"]))
    predictor = sum(x.size for k, v in params.items() if k.startswith("predictor") for x in jax.tree.leaves(v))
    assert memory < 2 * (count + predictor)


def test_simclr_equals_a_loop_in_float64_and_does_not_depend_on_the_order():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 7))
    z = np.concatenate([a, b])
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    total = 0.0
    for i in range(10):
        scores = [z[i] @ z[j] / 0.1 for j in range(10) if j != i]
        total += -(z[i] @ z[(i + 5) % 10] / 0.1) + np.log(np.exp(scores).sum())
    got = 2 * losses.nt_xent(jnp.asarray(a), jnp.asarray(b), 0.1).mean()
    assert float(got) == pytest.approx(2 * total / 10, rel=1e-6)
    order = rng.permutation(5)
    again = 2 * losses.nt_xent(jnp.asarray(a[order]), jnp.asarray(b[order]), 0.1).mean()
    assert float(again) == pytest.approx(float(got), rel=1e-6)


def test_the_negatives_are_those_of_the_whole_batch():
    """Two halves on their own have fewer negatives, so another loss."""
    rng = np.random.default_rng(1)
    q, k = (jnp.asarray(x, jnp.float32) for x in rng.normal(size=(2, 8, 6)))
    whole = losses.info_nce(q, k)[0].mean()
    halves = jnp.concatenate([losses.info_nce(q[i : i + 4], k[i : i + 4])[0] for i in (0, 4)]).mean()
    assert abs(float(whole - halves)) > 0.1


def test_of_equal_embeddings_the_own_one_is_nearest():
    z = jnp.asarray(np.random.default_rng(2).normal(size=(6, 4)), jnp.float32)
    assert losses.nearest(z, z).mean() == 1 and losses.info_nce(z, z)[1].mean() == 1


@pytest.mark.parametrize(
    ("task", "fields", "message"),
    [
        (moco_v3, {"momentum": False}, "needs config.model.momentum=True"),
        (simclr, {}, "needs config.model.momentum=False"),
    ],
)
def test_a_network_that_does_not_fit_the_objective_is_refused(task, fields, message):
    with pytest.raises(UserError, match=message):
        task.make(of_moco(**fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"projector": ()}, "config.model.projector"),
        ({"projector": (8, 4), "predictor": (8, 5)}, "must end with 4"),
        ({"projector_last": "bias"}, "config.model.projector_last"),
    ],
)
def test_widths_that_are_impossible_are_refused(fields, message):
    given = {"projector": (8, 4), "predictor": (8, 4)} | fields
    with pytest.raises(UserError, match=message):
        siamese_resnet.Model("50", **given)


@pytest.mark.slow
def test_the_last_norm_of_simclr_has_a_scale_and_no_bias():
    model = siamese_resnet.Model(
        "50", width=4, depths=(1, 1, 1, 1), image_size=32, projector=(8, 8, 4), predictor=(), momentum=False,
        projector_last="scale",
    )  # fmt: skip
    params = model.init(jax.random.key(0), jnp.zeros((2, 32, 32, 1)))["params"]["base_encoder"]
    assert set(params["fc_7"]) == {"running_mean", "running_var", "scale"}
    assert set(params["fc_4"]) == {"running_mean", "running_var", "scale", "bias"}
    assert set(params["fc_6"]) == {"kernel"} and siamese.LASTS == ("plain", "scale", "none")
