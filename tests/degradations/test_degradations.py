"""Contracts every degradation keeps (found by listing the package), and parity with references."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from deblur_mae_jax import lookup
from deblur_mae_jax.degradations import blur, borders, contract, frequency, noise, parse, resample, speckle

FACTORIES = parse.factories()
SPACES = {2: (19, 23, 1), 3: (9, 10, 11, 1)}
CASES = [(name, ndim) for name, make in FACTORIES.items() for ndim in make().ndim]


def speckled(shape, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(0, 256, shape), jnp.float32)


def run(degradation, image, seed=0, size=None):
    return degradation.apply(image, degradation.draw(jax.random.key(seed)), size)


def test_the_papers_degradations_are_all_there():
    expected = {
        "blur.gaussian", "blur.gaussian_levels", "blur.mean", "blur.median", "blur.motion",
        "blur.defocus", "speckle.srad", "noise.gaussian_noise", "contract.none",
        "resample.down_up", "frequency.band_stop",
    }  # fmt: skip
    assert expected <= set(FACTORIES)


@pytest.mark.parametrize(("name", "ndim"), CASES)
def test_contract(name, ndim):
    degradation = FACTORIES[name]()
    image = speckled(SPACES[ndim])
    out = run(degradation, image)
    assert out.shape == image.shape and out.dtype == image.dtype
    assert bool(jnp.isfinite(out).all()) and out.min() >= 0 and out.max() <= 255.001
    np.testing.assert_array_equal(out, run(degradation, image))  # a function of its key
    jitted = jax.jit(lambda key, x: degradation.apply(x, degradation.draw(key), None))
    np.testing.assert_allclose(jitted(jax.random.key(0), image), out, atol=2e-3)
    if degradation.random:
        others = [run(degradation, image, seed) for seed in range(1, 6)]
        assert any(not np.array_equal(out, other) for other in others)


@pytest.mark.parametrize("name", [n for n, d in CASES if d == 3])
def test_values_of_volumes_are_not_cut_at_the_ends_of_the_gray_scale(name):
    """Standardised MR is about -3 to 3, gray levels of -765 to 765: twice as far from 0 is twice as far afterwards."""
    degradation, image = FACTORIES[name](), 3 * (speckled(SPACES[3]) - 127)
    np.testing.assert_allclose(run(degradation, 2 * image), 2 * run(degradation, image), atol=0.1)


@pytest.mark.parametrize("name", [n for n, d in CASES if d == 2])
def test_vmap_gives_each_example_its_own_parameters(name):
    degradation = FACTORIES[name]()
    images = jnp.stack([speckled(SPACES[2], s) for s in range(3)])
    keys = jax.random.split(jax.random.key(7), 3)

    def one(key, x):
        return degradation.apply(x, degradation.draw(key), None)

    batched = jax.vmap(one)(keys, images)
    for key, image, out in zip(keys, images, batched, strict=True):
        np.testing.assert_allclose(out, one(key, image), atol=2e-3)


@pytest.mark.parametrize(("name", "ndim"), CASES)
def test_a_constant_image_stays_constant_to_the_border(name, ndim):
    degradation = FACTORIES[name]()
    if not degradation.keeps_constant:
        pytest.skip("adds noise by definition")
    image = jnp.full(SPACES[ndim], 137.0)
    np.testing.assert_allclose(run(degradation, image), 137.0, atol=1e-3)


@pytest.mark.parametrize("name", [n for n, d in CASES if d == 2 and FACTORIES[n]().keeps_constant])
def test_an_image_in_a_canvas_is_degraded_as_if_it_were_alone(name):
    degradation = FACTORIES[name]()
    image = speckled((19, 23, 1))
    canvas = jnp.full((32, 30, 1), 250.0).at[:19, :23].set(image)
    size = (jnp.int32(19), jnp.int32(23))
    inside = run(degradation, canvas, size=size)[:19, :23]
    np.testing.assert_allclose(inside, run(degradation, image), atol=1e-3)


@pytest.mark.parametrize("border", borders.BORDERS)
@settings(max_examples=25, deadline=None)
@given(extent=st.integers(1, 9), radius=st.integers(0, 20))
def test_borders_are_numpys(border, extent, radius):
    mode = {"reflect_101": "reflect", "reflect": "symmetric", "replicate": "edge", "wrap": "wrap"}
    line = np.arange(extent)
    index = borders.border_index(jnp.arange(-radius, extent + radius), extent, border)
    np.testing.assert_array_equal(line[np.asarray(index)], np.pad(line, radius, mode[border]))


# Gaussian blur


GAUSSIAN_IMAGES = ("img1", "impulse", "checker", "edge0", "edge1")


@pytest.mark.parametrize("name", GAUSSIAN_IMAGES)
def test_gaussian_on_bytes_equals_opencv_exactly(golden, name):
    z = golden("gaussian_blur")
    image = jnp.asarray(z[name], jnp.float32)[..., None]
    traced = jax.jit(lambda s: blur.gaussian_blur(image, s, max_sigma=2.0, kernel="opencv_uint8"))
    with_taps = jax.jit(lambda taps: blur.separable(image, taps, "reflect_101"))
    for i, sigma in enumerate(z["sigma_x10"] / 10):
        concrete = with_taps(blur.gaussian_taps(float(sigma), 6, "opencv_uint8"))
        for out in (traced(jnp.float32(sigma)), concrete):
            whole = np.floor(np.asarray(out)[..., 0] + 0.5)
            np.testing.assert_array_equal(whole, z[f"u8_{name}"][i], err_msg=f"sigma {sigma}")


@pytest.mark.parametrize("name", GAUSSIAN_IMAGES)
def test_gaussian_on_floats_equals_opencv_and_scipy(golden, name):
    z = golden("gaussian_blur")
    image = jnp.asarray(z[name], jnp.float32)[..., None]
    for kernel, prefix in (("opencv_float", "f32"), ("scipy", "sp4")):
        if f"{prefix}_{name}" not in z:
            continue
        blurred = jax.jit(lambda s, k=kernel: blur.gaussian_blur(image, s, max_sigma=2.0, kernel=k))
        for i, sigma in enumerate(z["sigma_x10"] / 10):
            out = blurred(jnp.float32(sigma))[..., 0]
            np.testing.assert_allclose(out, z[f"{prefix}_{name}"][i], atol=1e-4)  # reached: 6e-5


blur_volume = jax.jit(lambda v, s: blur.gaussian_blur(v, s, max_sigma=2.5, kernel="scipy"))


@settings(max_examples=15, deadline=None)
@given(sigma=st.integers(3, 24).map(lambda k: (k + 0.5) / 10), seed=st.integers(0, 99))
def test_gaussian_in_three_dimensions_equals_scipy(sigma, seed):
    image = speckled((9, 12, 11, 1), seed)
    out = blur_volume(image, jnp.float32(sigma))[..., 0]
    want = scipy.ndimage.gaussian_filter(np.asarray(image[..., 0], np.float64), sigma, mode="mirror", truncate=4.0)
    np.testing.assert_allclose(out, want, atol=2e-4)


def test_weak_levels_of_d2mae_are_the_identity():
    levels = blur.gaussian_levels()
    assert levels.num_levels == 11
    image = speckled((30, 31, 1))
    for level, changed in ((1, False), (2, False), (3, True), (11, True)):
        out = levels.apply(image, levels.at_level(jnp.int32(level)), None)
        assert bool((out != image).any()) is changed


@pytest.mark.parametrize("kernel", tiny.others_slow(["opencv_uint8", "opencv_float", "scipy"], "opencv_float"))
def test_levels_may_begin_at_any_sigma_and_at_the_sharp_image(kernel):
    image = speckled((30, 31, 1))
    levels = blur.gaussian_levels(max_sigma=2.3, step=0.2, kernel=kernel, min_sigma=0.3)
    assert levels.num_levels == 11
    for level, sigma in ((1, 0.3), (4, 0.9), (11, 2.3)):
        params = levels.at_level(jnp.int32(level))
        assert float(params["sigma"]) == pytest.approx(sigma)
        same = blur.gaussian(sigma, kernel)
        want = same.apply(image, same.draw(jax.random.key(0)), None)
        np.testing.assert_allclose(levels.apply(image, params, None), want, atol=2e-4)
    with_sharp = blur.gaussian_levels(max_sigma=1.1, step=0.1, kernel=kernel, min_sigma=0.0)
    assert with_sharp.num_levels == 12
    np.testing.assert_array_equal(with_sharp.apply(image, with_sharp.at_level(jnp.int32(1)), None), image)


def test_the_last_level_is_the_nearest_to_the_largest_sigma():
    levels = blur.gaussian_levels(max_sigma=1.1, step=0.3)
    assert levels.num_levels == 4 and float(levels.at_level(4)["sigma"]) == pytest.approx(1.2)


def test_levels_are_uniform_and_scale_sigma():
    levels = blur.gaussian_levels(max_sigma=0.6)
    drawn = jax.vmap(levels.draw)(jax.random.split(jax.random.key(0), 6000))
    counts = np.bincount(np.asarray(drawn["level"]), minlength=7)
    assert counts[0] == 0 and len(counts) == 7
    assert abs(counts[1:] - 1000).max() < 150  # five standard deviations
    np.testing.assert_allclose(drawn["sigma"], 0.1 * drawn["level"], rtol=1e-6)


# Other filters


@pytest.mark.parametrize("k", range(3))
def test_mean_median_defocus_equal_opencv_exactly(golden, k):
    z = golden("filters")
    image = jnp.asarray(z[f"img{k}"], jnp.float32)[..., None]
    for name in ("mean", "median", "defocus"):
        out = run(FACTORIES[f"blur.{name}"](), image)[..., 0]
        np.testing.assert_array_equal(np.rint(out), z[f"{name}_{k}"], err_msg=name)


@pytest.mark.parametrize("k", range(3))
def test_motion_equals_opencv_exactly(golden, k):
    z = golden("filters")
    image = jnp.asarray(z[f"img{k}"], jnp.float32)[..., None]
    for kernel, want in zip(z["motion_kernels"], z[f"motion_{k}"], strict=True):
        out = blur.correlate(image, jnp.asarray(kernel), "reflect_101")[..., 0]
        np.testing.assert_array_equal(np.rint(out), want)


def test_lines_equal_opencv_exactly(golden):
    z = golden("filters")
    masks = jax.vmap(lambda ends: blur._line_mask(ends, 5))(jnp.asarray(z["line_endpoints"], int))
    np.testing.assert_array_equal(masks, z["line_masks"])


def test_motion_lines_are_drawn_as_albumentations_draws_them():
    keys = jax.random.split(jax.random.key(1), 4000)
    ends = np.asarray(jax.vmap(lambda key: blur._draw_line(key, 5))(keys))
    assert ((ends[:, 0] != ends[:, 2]) | (ends[:, 1] != ends[:, 3])).all()
    assert abs((ends[:, 0] == ends[:, 2]).mean() - 0.2) < 0.03
    assert set(np.unique(ends)) == set(range(5))


def test_centred_and_angled_motion_do_not_shift():
    image = jnp.zeros((21, 21, 1)).at[10, 10].set(255.0)
    for degradation in (
        blur.motion(angle=30.0),
        blur.motion(angle=90.0),
        blur.motion(7, angle=-45),
    ):
        out = np.asarray(run(degradation, image))[..., 0]
        centre = scipy.ndimage.center_of_mass(out)
        np.testing.assert_allclose(centre, (10, 10), atol=0.26)
        assert (out > 0).sum() >= 5


def test_centred_random_lines_shift_by_at_most_half_a_pixel():
    image = jnp.zeros((21, 21, 1)).at[10, 10].set(255.0)
    degradation = blur.motion(5, centered=True)
    outs = [np.asarray(run(degradation, image, seed))[..., 0] for seed in range(12)]
    shifts = np.array([scipy.ndimage.center_of_mass(out) for out in outs]) - 10
    assert np.abs(shifts).max() <= 0.5 + 1e-4
    free = [np.asarray(run(blur.motion(5), image, seed))[..., 0] for seed in range(12)]
    assert np.abs(np.array([scipy.ndimage.center_of_mass(out) for out in free]) - 10).max() > 0.6


def test_a_sigma_of_0_is_refused():
    with pytest.raises(ValueError, match=r"sigma=0\.0 must be greater than 0"):
        blur.gaussian_blur(jnp.zeros((8, 8, 1)), 0.0)


SRAD_CASES = {
    "decay": {},
    "image": {"q0": "image"},
    "expform": {"coefficient": "exponential"},
    "nofourth": {"quarter": False},
}


@pytest.mark.parametrize(("case", "k"), [(c, k) for c in SRAD_CASES for k in (0, 1) if (c, k) != ("nofourth", 1)])
def test_srad_equals_the_equations(golden, case, k):
    z = golden("srad")
    image = jnp.asarray(z[f"img{k}"], jnp.float32)[..., None]
    degradation = speckle.srad(int(z[f"N{k}"]), dt=0.1, **SRAD_CASES[case])
    out = np.asarray(run(degradation, image))[..., 0]
    np.testing.assert_array_equal(np.rint(out), z[f"{case}{k}_u8"])
    state = z[f"{case}{k}_sN"]
    want = 255 * np.log(state) if case == "image" else state - 1
    np.testing.assert_allclose(out, np.clip(want, 0, 255), atol=2e-3 if case == "image" else 4e-4)


@pytest.mark.parametrize(("size", "shape"), [(1, (8, 9, 1)), (7, (19, 16, 2)), (11, (13, 14, 1)), (3, (6, 7, 8, 1))])
def test_a_median_of_any_size_equals_scipys(size, shape):
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.float32)
    window = (size,) * (len(shape) - 1) + (1,)
    found = run(blur.median(size), jnp.asarray(image))
    np.testing.assert_array_equal(found, scipy.ndimage.median_filter(image, size=window, mode="nearest"))


@pytest.mark.parametrize("count", [1, 3, 9, 25, 27, 49, 81])
def test_the_middle_of_some_values_is_their_median(count):
    values = np.random.default_rng(count).integers(0, 30, (count, 200)).astype(np.float32)
    np.testing.assert_array_equal(blur._middle(list(jnp.asarray(values))), np.median(values, axis=0))


def test_srad_first_step_equals_the_equations(golden):
    z = golden("srad")
    image = jnp.asarray(z["img0"], jnp.float32)
    state, c, q2 = speckle.srad_step(image + 1, jnp.float32(1.0), 0.1, "rational", True, 1e-8)
    np.testing.assert_allclose(state, z["decay0_s1"], atol=5e-4)
    np.testing.assert_allclose(c, z["decay0_c1"], atol=2e-6)
    np.testing.assert_allclose(q2, z["decay0_q2"], atol=9e-6)


def test_srad_smooths_and_uses_its_region():
    rng = np.random.default_rng(0)
    image = jnp.asarray(np.clip(100 * rng.rayleigh(0.8, (40, 40, 1)), 0, 255), jnp.float32)
    weak, strong = run(speckle.srad(5), image), run(speckle.srad(40), image)
    assert strong.std() < weak.std() < image.std()
    roi = run(speckle.srad(10, q0="roi", roi=(0, 0, 10, 10)), image)
    whole = run(speckle.srad(10, q0="image"), image)
    assert not np.array_equal(roi, whole)
    np.testing.assert_array_equal(run(speckle.srad(10, q0="roi", roi=(90, 0, 9, 9)), image), whole)


def test_noise_has_the_stated_strength():
    image = jnp.full((200, 200, 1), 128.0)
    out = run(noise.gaussian_noise(0.05), image)
    assert abs(float(out.std()) / 255 - 0.05) < 0.001 and abs(float(out.mean()) - 128) < 0.3


# Names, chains, errors


def test_chains_apply_in_order_and_carry_the_level():
    both = parse.degradation("blur.gaussian_levels(max_sigma=0.6) | blur.median(3)")
    assert both.num_levels == 6 and both.random and both.taps is None
    image = speckled((16, 16, 1))
    params = both.at_level(jnp.int32(5))
    blurred = blur.gaussian_blur(image, 0.5, kernel="opencv_uint8")
    np.testing.assert_allclose(both.apply(image, params, None), blur.median(3).apply(blurred, {}, None), atol=1e-3)
    assert int(params["level"]) == 5 and int(both.draw(jax.random.key(0))["level"]) <= 6


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("blur.gausian(sigma=1.1)", ["config.task.degrade", "'blur.gausian'", "Did you mean"]),
        ("gaussian(sgma=1.1)", ["sgma", "sigma=1.1"]),
        ("blur.gaussian(sigma=-1)", ["sigma=-1", "greater than 0"]),
        ("blur.gaussian(sigma=", ["cannot read"]),
        ("blur.gaussian(sigma=open('x'))", ["cannot read"]),
        ("blur.median(4)", ["size=4", "odd"]),
        ("speckle.srad(0)", ["iterations=0"]),
        ("speckle.srad(q0='nose')", ["'nose'", "decay"]),
        ("speckle.srad(q0='roi', roi=(0, 0, 0, 9))", ["roi=(0, 0, 0, 9)", "at least 1 pixel"]),
        ("blur.defocus(2.5)", ["radius=2.5", "whole number"]),
        ("blur.gaussian(kernel='cv')", ["'cv'", "opencv_uint8"]),
        ("blur.gaussian_levels(max_sigma=0.01)", ["max_sigma=0.01"]),
        ("blur.gaussian_levels(max_sigma=0.2, min_sigma=0.3)", ["max_sigma=0.2", "min_sigma=0.3"]),
        ("blur.gaussian_levels(min_sigma=-0.1)", ["min_sigma=-0.1"]),
        ("blur.gaussian_levels|blur.gaussian_levels", ["only one"]),
        ("noise.gaussian_noise(std=0)", ["std=0"]),
    ],
)
def test_a_wrong_degradation_is_one_clear_line(text, parts):
    with pytest.raises(lookup.UserError) as caught:
        parse.degradation(text)
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in parts)


def test_parsing_runs_no_code(tmp_path):
    mark = tmp_path / "it_ran"
    with pytest.raises(lookup.UserError):
        parse.degradation(f"__import__('os').system('touch {mark}')")
    with pytest.raises(lookup.UserError):
        parse.degradation(f"blur.gaussian(sigma=__import__('os').system('touch {mark}'))")
    assert not mark.exists()


def test_opencv_here_agrees_with_the_stored_arrays(golden):
    """Guards the golden files themselves against a damaged copy."""
    z = golden("gaussian_blur")
    for i in (3, 10):
        sigma = z["sigma_x10"][i] / 10
        np.testing.assert_array_equal(cv2.GaussianBlur(z["img1"], (0, 0), sigma), z["u8_img1"][i])


def test_none_is_the_identity():
    image = speckled((8, 8, 1))
    assert contract.none().identity
    np.testing.assert_array_equal(run(contract.none(), image), image)


@pytest.mark.parametrize("case", range(3))
@pytest.mark.parametrize("method", resample.METHODS)
def test_down_up_equals_pytorchs_interpolation(golden, case, method):
    z = golden("dae_resample")
    name = {"linear": "trilinear"}.get(method, method)
    x, low, up = z[f"x{case}"], z[f"low{case}_{name}"], z[f"up{case}_{name}"]
    got = x
    for shape, want in ((low.shape, low), (up.shape, up)):
        for axis in (2, 3, 4):
            n, out = got.shape[axis], shape[axis]
            matrix = np.asarray(resample.interpolation(out, n, out, n, method))
            got = np.moveaxis(np.tensordot(matrix, got, (1, axis)), 0, axis)
        np.testing.assert_allclose(got, want, atol=8e-6)


def test_down_up_of_a_cube_is_the_published_disruption(golden):
    z = golden("dae_resample")
    for method, name in (("linear", "trilinear"), ("nearest", "nearest")):
        image = jnp.asarray(z["x0"][0, 0, ..., None])
        out = run(resample.down_up(4, method), image)
        np.testing.assert_allclose(out[..., 0], z[f"up0_{name}"][0, 0], atol=2e-6)


def test_noise_by_its_variance():
    noisy = run(noise.gaussian_noise(variance=0.1, clip=False), jnp.zeros((40, 40, 40, 1)))
    assert abs(float((noisy / 255).var()) - 0.1) < 0.002


@pytest.mark.parametrize("shape", [(17, 24, 1), (6, 9, 8, 1)])
def test_band_stop_equals_numpys_fourier_transform(shape):
    image = 90.0 + 0.3 * speckled(shape)  # far from the ends of the gray scale, where the result is clipped
    axes = range(len(shape) - 1)
    frequency_of = [np.abs(np.fft.fftfreq(shape[axis])) * 2 for axis in axes]
    radius = np.sqrt(sum(np.square(f) for f in np.meshgrid(*frequency_of, indexing="ij")))[..., None]
    whole = np.fft.fftn(np.asarray(image, np.float64), axes=list(axes))
    want = np.fft.ifftn(np.where((radius >= 0.3) & (radius < 0.7), 0, whole), axes=list(axes)).real
    np.testing.assert_allclose(run(frequency.band_stop(0.3, 0.7, clip=False), image), want, atol=2e-3)


def test_an_empty_band_is_the_identity():
    image = speckled((17, 24, 1))
    np.testing.assert_array_equal(run(frequency.band_stop(0.4, 0.4), image), image)
    standardised = jax.random.normal(jax.random.key(0), (6, 9, 8, 1)) * 255  # MR, half of it below 0
    np.testing.assert_array_equal(run(frequency.band_stop(0.4, 0.4, clip=False), standardised), standardised)
    limits = frequency.band_stop(0.1, 0.6, drawn=True).draw(jax.random.key(0))["limits"]
    assert 0.1 <= limits[0] <= limits[1] <= 0.6


def test_noise_does_not_depend_on_the_canvas_around_an_image():
    degradation = noise.gaussian_noise(0.1)
    params = degradation.draw(jax.random.key(3))
    draw = lambda height, width: degradation.apply(jnp.full((height, width, 1), 100.0), params, jnp.array([20, 30]))
    small, large = draw(20, 30), draw(50, 40)
    np.testing.assert_array_equal(small, large[:20, :30])
    assert len(np.unique(np.asarray(large))) > 1900  # no two pixels share their noise
