"""Augmentation against Pillow, whose operations timm's RandAugment calls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage

from deblur_mae_jax.data.phantoms import Phantoms
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.input_pipeline import augment, views
from deblur_mae_jax.tasks import mixup

HEIGHT, WIDTH = 48, 60
FILL = 114


def picture(channels):
    gray = np.asarray(Image.fromarray(Phantoms(1, side=96).read(0)[:, :, 0]).resize((WIDTH, HEIGHT)))
    if channels == 1:
        return gray[:, :, None]
    return np.stack([gray, np.clip(gray * 0.7 + 20, 0, 255), 255 - gray], axis=2).astype(np.uint8)


def pil(array):
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def shift(image, matrix):
    fill = FILL if image.mode == "L" else (FILL,) * 3
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=fill)


def reference(image, name, magnitude, sign):
    """timm's function of each name, written with Pillow."""
    share = magnitude / 10
    factor = max(0.1, 1 + 0.9 * share * sign)
    angle = 30 * share * sign
    fill = FILL if image.mode == "L" else (FILL,) * 3
    return {
        "auto_contrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "invert": lambda: ImageOps.invert(image),
        "rotate": lambda: image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=fill),
        "posterize": lambda: ImageOps.posterize(image, 4 - int(share * 4)),
        "solarize": lambda: ImageOps.solarize(image, 256 - min(256, int(share * 256))),
        "solarize_add": lambda: image.point(
            [min(255, i + min(128, int(share * 110))) if i < 128 else i for i in range(256)] * len(image.getbands())
        ),
        "color": lambda: ImageEnhance.Color(image).enhance(factor),
        "contrast": lambda: ImageEnhance.Contrast(image).enhance(factor),
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(factor),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(factor),
        "shear_x": lambda: shift(image, (1, 0.3 * share * sign, 0, 0, 1, 0)),
        "shear_y": lambda: shift(image, (1, 0, 0, 0.3 * share * sign, 1, 0)),
        "translate_x": lambda: shift(image, (1, 0, 0.45 * share * sign * image.width, 0, 1, 0)),
        "translate_y": lambda: shift(image, (1, 0, 0, 0, 1, 0.45 * share * sign * image.height)),
    }[name]()


@jax.jit
def ours(image, number, magnitude, sign):
    d = augment.Draw(number, magnitude, sign, jnp.ones((), bool))
    return augment.operate(image, d, jnp.full(image.shape[2], float(FILL)))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", augment.OPERATIONS)
def test_operations_are_those_of_pillow(name, channels):
    array = picture(channels)
    number = augment.OPERATIONS.index(name)
    changed = False
    for magnitude, sign in ((3.3, 1.0), (9.0, -1.0), (9.7, 1.0)):
        want = np.asarray(reference(pil(array), name, magnitude, sign), float).reshape(array.shape)
        got = np.asarray(ours(jnp.asarray(array, jnp.float32), number, magnitude, sign))
        difference = np.abs(got - want)
        # Tables agree exactly but for float rounding; at the border of a moved image a pixel may fall on
        # the other side of it, and Pillow's bicubic works in fixed order of its own.
        moved = name.startswith(("rotate", "shear", "translate"))
        assert (difference > 1).mean() <= (0.01 if moved else 0), (
            name,
            magnitude,
            difference.max(),
        )
        assert difference.mean() < 0.35, (name, magnitude, difference.mean())
        changed |= np.abs(want - array).mean() > 0.3
    assert changed or (name == "color" and channels == 1) or name == "auto_contrast"


@pytest.mark.slow
def test_an_operation_that_is_not_drawn_changes_nothing():
    image = jnp.asarray(picture(1), jnp.float32)
    for number in range(len(augment.OPERATIONS)):
        d = augment.Draw(jnp.int32(number), jnp.float32(9), jnp.float32(1), jnp.zeros((), bool))
        np.testing.assert_array_equal(augment.operate(image, d, jnp.full(1, 0.0)), image)


def test_draws_follow_timm():
    keys = jax.random.split(jax.random.key(0), 20_000)
    d = jax.vmap(lambda key: augment.draw(key, 9.0, 0.5))(keys)
    counts = np.bincount(np.asarray(d.operation), minlength=15)
    assert (np.abs(counts / 20_000 - 1 / 15) < 0.01).all()
    np.testing.assert_allclose(np.asarray(d.apply).mean(), 0.5, atol=0.02)
    strength = np.asarray(d.magnitude)
    assert strength.max() == 10 and abs(np.median(strength) - 9) < 0.02
    np.testing.assert_allclose((strength == 10).mean(), 0.0228, atol=0.005)  # cut at two deviations


def test_every_example_has_its_own_augmentation():
    image = jnp.asarray(picture(1), jnp.float32)
    policy = augment.rand_augment("rand-m9-mstd0.5-inc1", (0.449,))
    assert policy.fill == (114,) and policy.num_layers == 2
    keys = jax.random.split(jax.random.key(3), 16)
    out = np.asarray(jax.jit(jax.vmap(policy, in_axes=(0, None)))(keys, image))
    assert len({o.tobytes() for o in out}) > 8
    assert out.min() >= 0 and out.max() <= 255


@pytest.mark.parametrize("text", ["rand-m99", "auto", "rand-x2"])
def test_an_unknown_policy_is_refused(text):
    with pytest.raises(UserError, match=r"config\.augment\.rand_augment"):
        augment.rand_augment(text, (0.5,))


def test_random_erasing_erases_one_rectangle_of_the_right_size():
    image = jnp.zeros((64, 96, 1))
    keys = jax.random.split(jax.random.key(0), 400)
    out = np.asarray(jax.vmap(augment.RandomErasing(0.25), in_axes=(0, None))(keys, image))[..., 0]
    hit = [o for o in out if o.any()]
    assert 0.18 < len(hit) / 400 < 0.32
    for o in hit:
        rows, cols = np.flatnonzero(o.any(1)), np.flatnonzero(o.any(0))
        assert (o[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1] != 0).all()
        assert 0.01 < (o != 0).mean() < 0.36
    noise = np.concatenate([o[o != 0] for o in hit])
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05


def test_mixing_draws():
    keys = jax.random.split(jax.random.key(0), 2000)
    mixes = jax.vmap(lambda key: mixup.draw_mix(key, (16, 24), 0.8, 1.0, 1.0, 0.5))(keys)
    cut = np.asarray(mixes.inside).any(axis=(1, 2))
    assert 0.42 < cut.mean() < 0.55  # half, less the empty boxes
    weight = np.asarray(mixes.weight)
    assert (weight >= 0).all() and (weight <= 1).all()
    inside = np.asarray(mixes.inside).mean(axis=(1, 2))
    np.testing.assert_allclose(weight[cut], 1 - inside[cut], atol=1e-6)
    never = jax.vmap(lambda key: mixup.draw_mix(key, (16, 24), 0.8, 1.0, 0.0, 0.5))(keys[:50])
    assert (np.asarray(never.weight) == 1).all() and not np.asarray(never.inside).any()


KEYS = jax.random.split(jax.random.key(5), 2000)


def test_intensities_are_scaled_and_shifted_independently():
    """MONAI's RandScaleIntensity and RandShiftIntensity, each with its probability and its range."""
    image = jnp.asarray([0.0, 1.0]).reshape(1, 2, 1)
    operation = augment.Intensity(scale=0.3, shift=0.05, probability=0.1)
    low, high = np.asarray(jax.vmap(lambda key: operation(key, image))(KEYS))[:, 0, :, 0].T
    scaled, shifted = high - low - 1, low
    assert np.abs(scaled).max() == pytest.approx(0.3, abs=0.02) and np.abs(shifted).max() == pytest.approx(
        0.05, abs=4e-3
    )
    used = (np.abs(scaled) > 1e-6, np.abs(shifted) > 1e-6)
    assert all(abs(each.mean() - 0.1) < 0.025 for each in used)
    assert abs((used[0] & used[1]).mean() - 0.01) < 0.008  # not drawn together
    assert 0.3 < (scaled[used[0]] > 0).mean() < 0.7


def drawn(view, image):
    return np.asarray(jax.jit(jax.vmap(lambda key: view(key, image)))(KEYS))


def test_pixels_of_128_and_more_are_solarised():
    image = jnp.asarray([0.0, 100.0, 127.0, 128.0, 200.0, 255.0]).reshape(2, 3, 1)
    nothing = {"jitter_probability": 0.0, "blur_probability": 0.0}
    out = drawn(views.View(**nothing, solarise_probability=1.0), image)
    np.testing.assert_array_equal(out[0].ravel(), [0, 100, 127, 127, 55, 0])
    rare = drawn(views.View(**nothing, solarise_probability=0.2), image)
    assert abs((rare[:, 1, 2, 0] == 0).mean() - 0.2) < 0.03


@pytest.mark.parametrize(
    ("field", "probability"), [("jitter_probability", 0.8), ("gray_probability", 0.2), ("blur_probability", 0.1)]
)
def test_a_part_of_a_view_is_drawn_with_its_probability(field, probability):
    image = jnp.asarray(np.random.default_rng(0).uniform(40, 200, (6, 6, 3)), jnp.float32)
    none = dict.fromkeys(("jitter_probability", "gray_probability", "blur_probability"), 0.0)
    out = drawn(views.View(**none | {field: probability}), image)
    changed = (np.abs(out - np.asarray(image)) > 1e-3).any(axis=(1, 2, 3))
    assert abs(changed.mean() - probability) < 0.03
    if field == "gray_probability":
        np.testing.assert_allclose(np.ptp(out[changed], axis=-1), 0, atol=1e-3)


def test_the_blur_of_a_view_is_a_gaussian_whose_border_goes_on():
    image = np.random.default_rng(0).uniform(0, 255, (20, 24, 1)).astype(np.float32)
    for sigma in (0.1, 0.7, 2.0):
        want = ndimage.gaussian_filter(image[..., 0], sigma, mode="nearest", radius=8)
        np.testing.assert_allclose(views.blur(jnp.asarray(image), sigma, 2.0)[..., 0], want, atol=2e-2)


def test_moco_v3_has_two_different_views():
    first, second = views.from_config(tiny.load("moco_v3").augment)
    assert (first.blur_probability, second.blur_probability) == (1.0, 0.1)
    assert (first.solarise_probability, second.solarise_probability) == (0.0, 0.2)
    assert (first.brightness, first.contrast, first.saturation, first.hue) == (0.4, 0.4, 0.2, 0.1)
    assert first.jitter_probability == second.jitter_probability == 0.8 and first.gray_probability == 0.2
