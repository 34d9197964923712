"""The classifier, its optimisers and its parts against arrays made by MAE's own code and by timm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file

from deblur_mae_jax.models import layers, position, vit
from deblur_mae_jax.tasks import classify, mixup
from deblur_mae_jax.training import optimizer, schedule, train_step
from deblur_mae_jax.weight_formats import names as pytorch

HERE = tiny.ROOT / "tests" / "golden"
GAP = {"image_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 4,
       "num_classes": 3}  # fmt: skip
CLS = {"image_size": 48, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 4,
       "num_classes": 5}  # fmt: skip


def load(name, fields, pool):
    model = vit.ViT(in_chans=3, pool=pool, **fields)
    side = fields["image_size"]
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, side, side, 3)))["params"])
    state = load_file(HERE / f"{name}.safetensors")
    return model, pytorch.params_from_state_dict(state, shapes)


@pytest.mark.parametrize(("name", "fields", "pool"), [("vit_gap", GAP, "mean"), ("vit_cls", CLS, "cls")])
def test_features_and_logits(golden, name, fields, pool):
    z = golden(name)
    model, params = load(name, fields, pool)
    images = jnp.asarray(z["imgs"]).transpose(0, 2, 3, 1)
    features = model.apply({"params": params}, images, method=model.features)
    np.testing.assert_allclose(features, z["features"], atol=5e-6 if pool == "mean" else 2e-5)
    logits, new = model.apply({"params": params}, images)
    np.testing.assert_allclose(logits, z["logits"], atol=1e-5 if pool == "mean" else 2e-5)
    assert new == {"assign": {}}


def test_three_fine_tuning_steps_with_layer_decay(golden):
    z = golden("vit_gap")
    model, params = load("vit_gap", GAP, "mean")
    lr, min_lr, warmup, epochs, weight_decay, layer_decay, smoothing = z["ft_hparams"]
    rates = [schedule.mae_learning_rate(e, lr, min_lr, warmup, epochs) for e in z["ft_epochs"].tolist()]
    np.testing.assert_allclose(rates, z["ft_lr"], rtol=1e-6)
    task = classify.make(model, label_smoothing=float(smoothing), mixup=0.0, cutmix=0.0)
    tx = optimizer.only(
        optimizer.adamw(
            lambda count: jnp.asarray(rates)[count], b2=0.999, weight_decay=weight_decay,
            decay_on="weights", tokens=vit.TOKENS, b1=0.9,
            scales=lambda p: optimizer.layer_scales(p, layer_decay, *vit.layers_of(model)),
        ),
        task.trains,
    )  # fmt: skip
    loss = task.loss
    batch = {
        "inputs": jnp.asarray(z["imgs"]).transpose(0, 2, 3, 1),
        "label": jnp.asarray(z["labels"]),
    }
    keys = {
        "drop_path": jax.random.split(jax.random.key(0), 4),
        "mix": jax.random.split(jax.random.key(1), 4),
    }
    state = tx.init(params)
    start = params

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(lambda p: loss(p, batch, keys)[0].mean())(params)
        updates, state = tx.update(grads, state, params)
        return jax.tree.map(jnp.add, params, updates), state, value

    values = []
    for _ in range(3):
        params, state, value = step(params, state)
        values.append(float(value))
    np.testing.assert_allclose(values, z["ft_losses"], atol=4e-5)
    want, got = load_file(HERE / "vit_gap_ft.safetensors"), pytorch.state_dict_from_params(params)
    before = pytorch.state_dict_from_params(start)
    for name, value in want.items():
        difference = np.abs(got[name] - value)
        if name.endswith("qkv.bias"):  # the key third has no gradient but rounding
            difference[len(value) // 3 : 2 * len(value) // 3] = 0
        assert difference.max() < 2e-6, name
        assert np.abs(before[name] - value).max() > 1e-5, name  # the comparison can fail


def test_layer_decay_groups(golden):
    z = golden("vit_layer_decay")
    model = vit.Model("B", num_classes=2, in_chans=3)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)))["params"])
    numbers = jax.tree.map(lambda x: np.zeros(x.shape[:0]), shapes)
    scales = jax.tree.map(
        lambda _, s: np.asarray(s), numbers, optimizer.layer_scales(shapes, 0.75, *vit.layers_of(model))
    )
    decayed = optimizer.decay_mask(shapes, "weights", vit.TOKENS)
    by_name = {
        pytorch.pytorch_name(tuple(k.key for k in path)): float(value)
        for path, value in jax.tree_util.tree_leaves_with_path(scales)
    }
    masks = {
        pytorch.pytorch_name(tuple(k.key for k in path)): value
        for path, value in jax.tree_util.tree_leaves_with_path(decayed)
    }
    assert set(by_name) == set(z["gap_names"])
    for name, scale, decay in zip(z["gap_names"], z["gap_lr_scale"], z["gap_weight_decay"], strict=True):
        np.testing.assert_allclose(by_name[name], scale, rtol=1e-6)
        assert masks[name] == (decay > 0), name


def test_the_blur_token_is_in_the_first_layer_and_not_decayed():
    model = vit.ViT(num_classes=2, image_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2,
                    conditioning="token", num_levels=3)  # fmt: skip
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 1)), jnp.ones(1, jnp.int32)))[
        "params"
    ]
    assert shapes["pos_embed"].shape == (1, 18, 32)
    assert optimizer.layer_scales(shapes, 0.5, *vit.layers_of(model))["blur_token"] == 0.5**3
    assert optimizer.layer_scales(shapes, 0.5, *vit.layers_of(model))["head"]["kernel"] == 1
    assert not optimizer.decay_mask(shapes, "weights", vit.TOKENS)["blur_token"]
    assert optimizer.decay_mask(shapes, on="weights_and_tokens")["blur_token"]
    assert not optimizer.decay_mask(shapes, "weights", vit.TOKENS)["head"]["bias"]
    assert optimizer.decay_mask(shapes, on="all")["head"]["bias"]


@pytest.mark.parametrize("suffix", ["", "_wd0"])
def test_lars(golden, suffix):
    z = golden("lars")
    lr, weight_decay, momentum, trust = z["hparams"]
    tx = optimizer.lars(
        lambda count: lr, weight_decay=0.0 if suffix else weight_decay, momentum=momentum,
        trust_coefficient=trust,
    )  # fmt: skip
    params = {f"p{i}": jnp.asarray(z[f"p{i}"]) for i in range(5)}
    state = tx.init(params)
    for k in range(5):
        grads = {f"p{i}": jnp.asarray(z[f"g{i}"][k]) for i in range(5)}
        updates, state = tx.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        for i in range(5):
            np.testing.assert_allclose(params[f"p{i}"], z[f"p{i}_steps{suffix}"][k], atol=4e-6)


@pytest.mark.parametrize("rate_first", [False, True])
def test_lars_takes_the_rate_after_or_before_the_momentum(rate_first):
    """With a rate that changes, the two orders differ: v <- 0.9 v + g, p <- p - rate v, or v <- 0.9 v + rate g."""
    given, trust = [0.5, 0.1, 0.4, 0.2, 0.3], 0.001
    tx = optimizer.lars(lambda count: jnp.asarray(given)[count], rate_first=rate_first, trust_coefficient=trust)
    rng = np.random.default_rng(0)
    p = rng.standard_normal((4, 3))
    params, v = {"w": jnp.asarray(p, jnp.float32)}, np.zeros_like(p)
    state = tx.init(params)
    for rate in given:
        g = rng.standard_normal(p.shape)
        scaled = trust * np.linalg.norm(p) / np.linalg.norm(g) * g
        v = 0.9 * v + (rate * scaled if rate_first else scaled)
        p = p - (v if rate_first else rate * v)
        updates, state = tx.update({"w": jnp.asarray(g, jnp.float32)}, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        np.testing.assert_allclose(params["w"], p, atol=1e-6)


@pytest.mark.parametrize("rate_first", [False, True])
def test_lars_scales_the_learning_rate_of_every_layer(rate_first):
    params = {"low": jnp.ones((3, 2)), "high": jnp.ones((3, 2))}
    grads = jax.tree.map(lambda p: 0.1 * p, params)
    tx = optimizer.lars(lambda _: 0.5, rate_first=rate_first, scales=lambda _: {"low": 0.25, "high": 1.0})
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update(grads, state, params)
        np.testing.assert_allclose(updates["low"], 0.25 * updates["high"], rtol=1e-6)


def test_the_batch_norm_of_a_linear_probe(golden):
    z = golden("linprobe_head")
    norm = layers.BatchNorm()
    params = norm.init(jax.random.key(0), jnp.zeros((2, 24)), False)["params"]

    def head(x):
        return x @ z["weight"].T + z["bias"]

    for number in range(2):
        x, new = norm.apply({"params": params}, jnp.asarray(z["x"][number]), True)
        np.testing.assert_allclose(head(x), z[f"y{number}"], atol=3e-5)
        params = train_step.merged({"n": params}, {"n": new})["n"]
    np.testing.assert_allclose(params["running_mean"], z["rm"], atol=6e-7)
    np.testing.assert_allclose(params["running_var"], z["rv"], atol=2e-5)
    x, new = norm.apply({"params": params}, jnp.asarray(z["x"][2]), False)
    np.testing.assert_allclose(head(x), z["y2"], atol=5e-5)
    assert new == {}


@pytest.mark.slow
def test_only_the_head_of_a_frozen_network_learns_and_statistics_are_not_optimised():
    model = vit.ViT(num_classes=2, image_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2,
                    pool="cls", probe=True)  # fmt: skip
    params = model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 1)))["params"]
    task = classify.make(model, frozen=True, label_smoothing=0.0, mixup=0.0, cutmix=0.0)
    tx, loss = optimizer.only(optimizer.lars(lambda _: 1.0), task.trains), task.loss
    batch = {"inputs": jax.random.normal(jax.random.key(1), (4, 16, 16, 1)),
             "label": jnp.array([0, 1, 0, 1])}  # fmt: skip
    keys = {"drop_path": jax.random.split(jax.random.key(0), 4)}
    (value, out), grads = jax.value_and_grad(
        lambda p: (lambda v, o: (v.mean(), o))(*loss(p, batch, keys)), has_aux=True
    )(params)
    assert np.isfinite(value) and set(out["assign"]) == {"head_0"}
    for name, tree in grads.items():
        moved = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(tree))
        assert (moved > 0) == (name == "head_1"), name
    state = tx.init(params)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
    changed = {k for k, v in updates.items() if any(jnp.abs(x).max() > 0 for x in jax.tree.leaves(v))}
    assert changed == {"head_1"}
    held = sum(x.size for x in jax.tree.leaves(state))
    assert held < 2 * sum(x.size for x in jax.tree.leaves(params["head_1"])) + 10


@pytest.mark.parametrize("number", range(4))
def test_position_interpolation(golden, number):
    z = golden("pos_embed_interp")
    want = z[f"out_{number}"]
    before, grid = (round((x.shape[1] - 1) ** 0.5) for x in (z[f"in_{number}"], want))
    got = position.resize_table(z[f"in_{number}"], before, grid)
    np.testing.assert_allclose(got, want, atol=[6e-6, 8e-6, 4e-5, 2e-5][number])
    with_blur = np.concatenate([np.zeros_like(z[f"in_{number}"][:, :1]), z[f"in_{number}"]], axis=1)
    resized = position.resize_table(with_blur, before, grid, 2)
    np.testing.assert_array_equal(resized[:, 1:], got)


@pytest.mark.parametrize("number", range(3))
def test_drop_path_ramp(golden, number):
    z = golden("drop_path")
    rate, depth = z[f"args_{number}"]
    np.testing.assert_allclose(vit.drop_path_rates(rate, int(depth)), z[f"ramp_{number}"], atol=1e-7)


def test_drop_path_keeps_the_mean_and_drops_as_often_as_it_says():
    keys = jax.random.split(jax.random.key(0), 4000)
    scales = np.asarray(vit.drop_path_scales(keys, 0.4, 3))
    assert (scales[:, 0] == 1).all()
    np.testing.assert_allclose((scales == 0).mean(axis=(0, 2)), [0, 0.2, 0.4], atol=0.02)
    np.testing.assert_allclose(scales.mean(axis=(0, 2)), 1, atol=0.03)


def test_mixup_and_cutmix(golden):
    z = golden("timm_mixup")
    labels, classes = jnp.asarray(z["labels"]), z["target_lam0_sm00"].shape[1]
    for number, lam in enumerate(z["lams"]):
        for smoothing in (0.0, 0.1):
            got = mixup.mixed_targets(labels, lam, classes, smoothing)
            want = z[f"target_lam{number}_sm{round(100 * smoothing):02d}"]
            np.testing.assert_allclose(got, want, atol=1e-6)
    images = jnp.asarray(z["x"]).transpose(0, 2, 3, 1)
    for number in range(4):
        lam, side = float(z[f"batch{number}_lam"]), images.shape[1]
        if z[f"batch{number}_cutmix"]:
            top, bottom, left, right = z[f"batch{number}_bbox"]
            rows, cols = np.arange(side), np.arange(side)
            inside = ((rows >= top) & (rows < bottom))[:, None] & ((cols >= left) & (cols < right))
            cut = int(side * np.sqrt(1 - lam))  # its centre, from the side that is not cut off
            low = [first if first else last - cut for first, last in ((top, bottom), (left, right))]
            centre = np.array(low) + cut // 2
            ours, weight = mixup.cutmix_box(jnp.asarray(lam), jnp.asarray(centre, jnp.float32), (side, side))
            np.testing.assert_array_equal(ours, inside)
            np.testing.assert_allclose(weight, z[f"batch{number}_lam_used"], atol=1e-6)
            mix = mixup.Mix(weight, ours)
        else:
            mix = mixup.Mix(jnp.asarray(lam), jnp.zeros((side, side), bool))
        got = mixup.mix_images(images, mix).transpose(0, 3, 1, 2)
        np.testing.assert_allclose(got, z[f"batch{number}_x"], atol=1e-6)
        target = mixup.mixed_targets(labels, mix.weight, classes, 0.1)
        np.testing.assert_allclose(target, z[f"batch{number}_target"], atol=1e-6)
    terms = -z["ce_target"] * jax.nn.log_softmax(jnp.asarray(z["ce_logits"]))
    np.testing.assert_allclose(terms.sum(-1).mean(), z["ce_loss"], atol=9e-6)


def test_codes_are_mixed_like_the_images():
    model = vit.ViT(num_classes=2, image_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2,
                    conditioning="token", num_levels=5)  # fmt: skip
    level = jnp.array([1, 4])
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 1))
    params = model.init(jax.random.key(1), images, level)["params"]

    def code(level, mix=None):
        x, kept = model.apply({"params": params}, images, level, mix, method=model.features,
                              capture_intermediates=lambda m, _: m.name == "level_embed",
                              mutable=["intermediates"])  # fmt: skip
        return x, kept

    alone, _ = code(level)
    same, _ = code(level, (level, jnp.full(2, 0.3)))
    np.testing.assert_allclose(alone, same, atol=1e-5)
    other, _ = code(level, (level[::-1], jnp.full(2, 0.0)))
    swapped, _ = code(level[::-1])
    np.testing.assert_allclose(other, swapped, atol=1e-5)
    assert np.abs(np.asarray(alone) - np.asarray(swapped)).max() > 1e-4
