"""U-Net++ and UPerNet on every encoder: parity of the decoder, maps, statistics, weights that they start from."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import traverse_util
from tiny_runs import trained

from deblur_mae_jax import network as networks
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.models import conv2d, segmenter, unetpp
from deblur_mae_jax.pretrained import inherit, warm_start

GOLDEN = Path(__file__).parent.parent / "golden" / "unetpp.npz"
ENCODERS = ("resnet", "convnext", "swin", "vit", "beit", "convvit")


def built(name, **overrides):
    return networks.build(inherit.resolve(tiny.config(name, **overrides))[0], 3)


def golden_params(z):
    """The golden weights under our names."""
    rename = {"0.weight": ("conv", "kernel"), "1.weight": ("norm", "scale"), "1.bias": ("norm", "bias"),
              "1.running_mean": ("norm", "running_mean"), "1.running_var": ("norm", "running_var")}  # fmt: skip
    flat = {}
    for key in (key for key in z.files if key.startswith("w:")):
        node, *rest = key[2:].split(".")
        value = z[key]
        if node == "out":
            flat["out", {"weight": "kernel", "bias": "bias"}[rest[0]]] = value
        else:
            flat[node, rest[0], *rename[".".join(rest[1:])]] = value
    moved = {k: np.moveaxis(v, (1, 0), (-2, -1)) if k[-1] == "kernel" else v for k, v in flat.items()}
    return traverse_util.unflatten_dict(moved)


@pytest.mark.parametrize("train", [False, True])
def test_the_unetpp_is_that_of_segmentation_models_pytorch(train):
    z = np.load(GOLDEN)
    net = unetpp.UNetPP(3, widths=(14, 9, 7, 5))
    params, maps = golden_params(z), [z[f"map_{n}"] for n in range(4)]
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), maps, True))["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda x: x.shape, shapes)
    with jax.default_matmul_precision("highest"):
        logits, _, new = jax.jit(lambda p: net.apply({"params": p}, maps, train))(params)
    np.testing.assert_allclose(logits, z["out_train" if train else "out_eval"], atol=2e-5)
    if train:
        wanted = {k: z[f"after:{k}"] for k in (k[6:] for k in z.files if k.startswith("after:"))}
        assert len(wanted) == 28
        for name, value in wanted.items():
            node, convolution, _, leaf = name.split(".")
            np.testing.assert_allclose(new[node][convolution]["norm"][leaf], value, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("config", ["unetpp", "upernet"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_has_four_maps_and_a_decoder(config, encoder):
    net = built(f"{config}:{encoder}")
    model, shapes = net.model, jax.eval_shape(net.init)
    side = model.image_size
    images = jax.ShapeDtypeStruct((2, side, side, 1), jnp.float32)
    maps = jax.eval_shape(lambda p, x: model.apply({"params": p}, x, method=_four), shapes, images)
    sides = [x.shape[1] for x in maps]
    assert len(maps) == 4 and all(a == 2 * b for a, b in itertools.pairwise(sides))
    logits, out = jax.eval_shape(lambda p, x: model.apply({"params": p}, x, train=True), shapes, images)
    assert logits.shape == (2, side, side, 3) and ("auxiliary" in out) == (config == "upernet")
    names = {"/".join(path) for path in traverse_util.flatten_dict(shapes)}
    statistics = {name for name in names if name.split("/")[-1] in ("running_mean", "running_var")}
    assert {"/".join(path) for path in traverse_util.flatten_dict(out["assign"])} == statistics


def _four(model, images):
    maps = model.encoder.pyramid(images, None, False)[0]
    if model.kind in segmenter.UNNORMALISED:
        maps = [norm(x) for norm, x in zip(model.norms, maps, strict=True)]
    return model._four(maps, False)[0]


@pytest.mark.parametrize(
    ("source", "target"),
    tiny.others_slow([("mae_thyroid", "upernet:vit"), ("from_scratch", "unetpp:vit"), ("moco_v3", "upernet:vit"),
     ("simmim_swin", "upernet:swin"), ("swin", "unetpp:swin"), ("convnext", "unetpp:convnext"), ("simclr", "unetpp"),
     ("resnet", "unetpp"), ("convmae", "unetpp:convvit"), ("simmim:beit", "upernet:beit")],
    ("mae_thyroid", "upernet:vit"), ("resnet", "unetpp")),
)  # fmt: skip
def test_the_encoder_of_every_pre_training_is_taken_over(source, target):
    before = trained(source)
    after = built(target, image_size=64) if target != "upernet:vit" else built(target)
    before.config.model.in_chans = 1
    fit = warm_start.fit(before, jax.eval_shape(after.init), after)
    inside = {"moco_v3": "base_encoder", "simclr": "base_encoder"}.get(
        source, "encoder" if source.startswith("simmim") else ""
    )
    old = before.params[inside] if inside else before.params
    names = [name for name in fit.params["encoder"] if name in old]
    assert len(names) >= 2
    for name in names:
        for path, value in traverse_util.flatten_dict({name: fit.params["encoder"][name]}).items():
            known = traverse_util.flatten_dict(old).get(path)
            if known is not None and known.shape == value.shape:
                np.testing.assert_array_equal(value, known)
    assert set(fit.new) <= {"decode_head", "enlarge_0", "enlarge_1", "enlarge_2", "enlarge_norm", "halve", "halve_norm",
                            *(f"norms_{n}" for n in range(4))}  # fmt: skip


@pytest.mark.parametrize(("size", "bins"), [(7, 6), (7, 3), (2, 6), (5, 1)])
def test_adaptive_pooling_takes_the_bins_of_pytorch(size, bins):
    """Bin i holds floor(i n / b) to ceil((i + 1) n / b), as PyTorch's documentation says."""
    matrix = conv2d.pool_matrix(size, bins)
    for i in range(bins):
        start, stop = int(np.floor(i * size / bins)), int(np.ceil((i + 1) * size / bins))
        want = np.zeros(size)
        want[start:stop] = 1 / (stop - start)
        np.testing.assert_allclose(matrix[i], want, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("unetpp", {"model__encoder": "unet"}, "config.model.encoder.*unet"),
        ("unetpp", {"model__decoder": "fpn"}, "config.model.decoder.*Choices: unetpp, upernet"),
        ("unetpp", {"model__decoder_width": 64}, "decoder_width=64 is the width of a UPerNet"),
        ("unetpp", {"image_size": 48}, "config.image_size=48: every side must be a multiple of 32"),
        ("upernet:vit", {"image_size": 20}, "the numbers of patches, 5 x 5, must be even"),
        ("unetpp", {"model__encoder": "vit"},
         "config.model.encoder=vit: config.model: unknown name 'depths'.*configs/unetpp.py:vit"),
        ("unetpp", {"model__conditioning": "token", "task__degrade": "blur.gaussian_levels(max_sigma=1, step=0.5)"},
         "a ResNet has no tokens"),
    ],
)  # fmt: skip
def test_invalid_settings_are_refused_by_name(name, changes, message):
    with pytest.raises(UserError, match=message):
        built(name, **changes)
