"""The parts of segmentation against arrays made by running MONAI."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from deblur_mae_jax.degradations import parse
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.inference import sliding_window
from deblur_mae_jax.input_pipeline import volumes
from deblur_mae_jax.metrics import segmentation, similarity
from deblur_mae_jax.reports import cases, comparison
from deblur_mae_jax.reports import segmentation as segmentation_report
from deblur_mae_jax.tasks import losses
from deblur_mae_jax.training import schedule


def last(x):
    return jnp.moveaxis(jnp.asarray(x), 1, -1)


def dice_ce(logits, labels, dice=1.0, ce=1.0, **options):
    return dice * losses.dice(logits, labels, **options) + ce * losses.voxel_cross_entropy(logits, labels)


def test_a_volume_of_one_slice_is_measured_as_an_image():
    truth, predicted = np.zeros((2, 40, 40), bool)
    truth[8:30, 10:28], predicted[10:33, 10:25] = True, True
    for axis in range(3):
        flat = [np.expand_dims(mask, axis) for mask in (truth, predicted)]
        spacing = np.insert([1.0, 2.0], axis, 9.0)
        measured = segmentation.measure(*flat, tuple(spacing))
        assert measured == segmentation.measure(truth, predicted, (1.0, 2.0))
    assert segmentation.measure(truth[:1, :1] | True, truth[:1, :1] | True, (1.0, 1.0))["hd"] == 0


SQUARED = {"squared": True, "over_batch": True, "smooth_top": 0.0, "smooth_bottom": 1e-6}
LOSSES = {
    "dicece": dice_ce,
    "dicece_nobg": lambda x, y: dice_ce(x, y, include_background=False),
    "dicece_sq_batch": lambda x, y: dice_ce(x, y, **SQUARED),
    "dice": losses.dice,
    "dice_nobg": lambda x, y: losses.dice(x, y, include_background=False),
    "dicece_lambda": lambda x, y: dice_ce(x, y, 0.7, 1.6),
}


@pytest.mark.parametrize("empty", ["", "_bgonly"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_monai(golden, name, empty):
    z = golden("seg_losses")
    logits, labels = last(z["logits"]), jnp.asarray(z["label"][:, 0].astype(int))
    labels = labels * 0 if empty else labels
    loss = lambda x: LOSSES[name](x, labels).mean()
    value, grad = jax.value_and_grad(loss)(logits)
    np.testing.assert_allclose(value, z[name + empty], atol=2e-6)
    if f"grad_{name}{empty}" in z:
        np.testing.assert_allclose(grad, last(z[f"grad_{name}{empty}"]), atol=3e-9)


@pytest.mark.parametrize("suffix", ["", "_sp"])
def test_measures_of_monai(golden, suffix):
    z = golden("seg_metrics")
    spacing = (1.5, 1.0, 2.0) if suffix else (1.0, 1.0, 1.0)
    names = {"hd": "met_hd", "hd95": "met_hd95", "surface_distance": "met_asd_sym"}
    for i in range(4):
        for c in range(4):
            truth, predicted = z["truth"][i] == c, z["prediction"][i] == c
            got = segmentation.measure(truth, predicted, spacing)
            np.testing.assert_allclose(got["dice"], z["met_dice"][i, c], atol=1e-6)
            counted = segmentation.dice(truth, predicted, "count")
            np.testing.assert_allclose(counted, z["met_dice_noempty"][i, c], atol=1e-6)
            for ours, theirs in names.items():
                want = z[theirs + suffix][i, c]
                if truth.any() and predicted.any():
                    np.testing.assert_allclose(got[ours], want, atol=1e-5, err_msg=f"{ours} {i} {c}")
                else:  # MONAI gives NaN or infinity here
                    assert np.isnan(got[ours]) and not np.isfinite(want)


def test_empty_masks_have_a_policy():
    none, some = np.zeros((4, 5, 6), bool), np.zeros((4, 5, 6), bool)
    some[1:3, 1:3, 1:3] = True
    worst = float(np.linalg.norm([4, 10, 6]))
    cases = {
        (0, 0): (np.nan, np.nan, 1.0, 0.0), (0, 1): (np.nan, np.nan, 0.0, worst),
        (1, 0): (0.0, np.nan, 0.0, worst), (1, 1): (1.0, 0.0, 1.0, 0.0),
    }  # fmt: skip
    for (t, p), (dice, hd, counted_dice, counted_hd) in cases.items():
        masks = ((none, some)[t], (none, some)[p])
        skip = segmentation.measure(*masks, (1.0, 2.0, 1.0))
        count = segmentation.measure(*masks, (1.0, 2.0, 1.0), empty="count")
        np.testing.assert_equal([skip["dice"], skip["hd95"]], [dice, hd])
        np.testing.assert_allclose([count["dice"], count["hd95"]], [counted_dice, counted_hd])
    with pytest.raises(UserError, match=r"config.report.empty: unknown name 'ignore'. Choices: count, skip"):
        segmentation.measure(some, some, (1, 1, 1), empty="ignore")


def test_the_iou_is_the_share_of_the_union():
    rng = np.random.default_rng(0)
    for _ in range(20):
        truth, predicted = rng.random((2, 9, 9)) < 0.4
        got = segmentation.measure(truth, predicted, (1.0, 1.0))["iou"]
        assert abs(got - (truth & predicted).sum() / (truth | predicted).sum()) < 1e-12
    assert segmentation.measure(truth & False, truth & False, (1.0, 1.0), empty="count")["iou"] == 1.0


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 7), min_size=2, max_size=3), labels=st.integers(1, 3), share=st.floats(0, 1),
    empty=st.sampled_from(segmentation.EMPTY), seed=st.integers(0, 1000),
)  # fmt: skip
def test_labels_are_measured_as_their_masks(shape, labels, share, empty, seed):
    """Each label is cut out of the image before it is measured."""
    rng = np.random.default_rng(seed)
    truth, predicted = (rng.integers(0, labels + 1, shape) * (rng.random(shape) < share) for _ in range(2))
    spacing = (0.5, 2.0, 1.0)[: len(shape)]
    got = segmentation.measure_labels(truth, predicted, labels, spacing, 1.0, empty)
    for number in range(labels):
        mask = segmentation.measure(truth == number + 1, predicted == number + 1, spacing, 1.0, empty)
        np.testing.assert_array_equal([got[m][number] for m in mask], list(mask.values()))


def test_a_table_of_an_earlier_version_gets_its_iou(tmp_path):
    """It follows from the Dice: 0.5 / (2 - 0.5)."""
    columns = "image,group,split,label,dice,hd,hd95,surface_distance,surface_dice,truth_size,predicted_size,unit"
    (tmp_path / "old.csv").write_text(f"{columns}\na,p,test,organ,0.5,3,2,1,0.4,10,12,mm\n")
    table = cases.read(tmp_path / "old.csv")
    np.testing.assert_allclose(table.values["iou"], [[1 / 3]])
    table.write(tmp_path / "new.csv")
    np.testing.assert_allclose(cases.read(tmp_path / "new.csv").values["iou"], [[1 / 3]])


def test_the_surface_dice_of_a_shift():
    """A cube of side 6, moved by one voxel of 2 mm: all surfaces are within 2 mm, none of two faces within 1."""
    truth, moved = np.zeros((12, 12, 12), bool), np.zeros((12, 12, 12), bool)
    truth[3:9, 3:9, 3:9] = moved[4:10, 3:9, 3:9] = True
    near = segmentation.measure(truth, moved, (2.0, 1.0, 1.0), tolerance=2.0)
    strict = segmentation.measure(truth, moved, (2.0, 1.0, 1.0), tolerance=0.5)
    assert near["surface_dice"] == 1.0 and near["hd"] == 2.0 and strict["surface_dice"] < 0.9


def test_only_the_largest_part_stays():
    labels = np.zeros((6, 6, 6), np.uint8)
    labels[0, 0, 0], labels[2:5, 2:5, 2:5], labels[5, 5, 5], labels[0, 4:6, 0] = 1, 1, 2, 2
    kept = segmentation.largest_components(labels)
    assert (kept == 1).sum() == 27 and (kept == 2).sum() == 2 and kept[0, 0, 0] == 0


@pytest.mark.parametrize("case", [0, 1])
@pytest.mark.parametrize("blending", ["gaussian", "constant"])
@pytest.mark.parametrize("overlap", [50, 25])
@pytest.mark.parametrize("batch_size", [3, 7])
def test_sliding_window_of_monai(golden, case, blending, overlap, batch_size):
    z = golden("sliding_window")
    roi = tuple(z[f"roi{case}"].tolist())
    image = np.moveaxis(z[f"x{case}"][0], 0, -1)

    def predict(x):
        assert x.shape == (batch_size, *roi, 1)
        line = np.broadcast_to(np.linspace(0, 1, roi[-1])[:, None], x.shape)
        return np.concatenate([2 * x + 1, x * x.mean((1, 2, 3), keepdims=True), line], axis=-1)

    options = {"overlap": overlap / 100, "blending": blending, "batch_size": batch_size}
    got = sliding_window.infer(image, predict, roi, **options)
    want = np.moveaxis(z[f"y{case}_{blending}_{overlap}"][0], 0, -1)
    np.testing.assert_allclose(got, want, atol=3e-5)
    best = sliding_window.infer(image, predict, roi, finish=lambda s: s.argmax(-1), **options)
    assert (best == got.argmax(-1)).mean() > 0.999
    np.testing.assert_allclose(sliding_window.importance(roi, "gaussian"), z[f"gauss{case}"], atol=1e-5)
    padded = [max(n, w) for n, w in zip(image.shape, roi, strict=False)]
    sides = [sliding_window.starts(n, w, overlap / 100) for n, w in zip(padded, roi, strict=True)]
    for axis in range(3):
        assert np.unique(z[f"starts{case}_{overlap}"][:, axis]).tolist() == sides[axis]


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 70), st.integers(1, 40), st.floats(0, 0.9))
def test_windows_cover_an_axis(size, window, overlap):
    found = sliding_window.starts(size, window, overlap)
    assert found == sorted(set(found)) and found[0] == 0
    covered = np.zeros(max(size, window), bool)
    for start in found:
        assert start + window <= len(covered)
        covered[start : start + window] = True
    assert covered.all()


@pytest.mark.parametrize("case", [0, 1])
def test_schedule_of_fine_tuning(golden, case):
    z = golden("dae_lr_schedules")
    lr, warm, epochs, first, low = z[f"ft{case}_args"]
    got = schedule.monai_learning_rate(np.arange(len(z[f"ft{case}_lr"])), lr, low, warm, epochs, first)
    np.testing.assert_allclose(got, z[f"ft{case}_lr"], rtol=2e-5, atol=1e-9)


def test_nt_xent(golden):
    z = golden("repr")
    for i in range(3):
        a, b, t = z[f"ntx{i}_a"], z[f"ntx{i}_b"], float(z[f"ntx{i}_T"])
        value, grad = jax.value_and_grad(lambda a, b=b, t=t: losses.nt_xent(a, b, t).mean())(a)
        np.testing.assert_allclose(value, z[f"ntx{i}_loss"], atol=2e-6)
        np.testing.assert_allclose(grad, z[f"ntx{i}_grad_a"], atol=2e-6)


def test_cka(golden):
    z = golden("repr")
    for i in range(3):
        x, y = z[f"cka{i}_x"], z[f"cka{i}_y"]
        np.testing.assert_allclose(similarity.linear_cka(x, y), z[f"cka{i}"], atol=1e-5)
        np.testing.assert_allclose(similarity.linear_cka(x, y, True), z[f"cka{i}_unbiased"], atol=2e-5)


@pytest.mark.slow
def test_voxels_are_drawn_alike():
    inside = np.zeros((3, 4, 5), bool)
    inside[0, 1, 2] = inside[2, 0, :3] = True
    keys = jax.random.split(jax.random.key(0), 2000)
    place, found = jax.vmap(lambda key: volumes.draw_voxel(key, jnp.asarray(inside)))(keys)
    assert found.all() and inside[tuple(np.asarray(place).T)].all()
    counts = np.unique(np.asarray(place), axis=0, return_counts=True)[1]
    assert len(counts) == 4 and (np.abs(counts - 500) < 100).all()
    assert not volumes.draw_voxel(keys[0], jnp.zeros((3, 4, 5), bool))[1]


def example(mask, size=None):
    size = mask.shape if size is None else size
    image = np.random.default_rng(0).uniform(0.1, 1, (1, *mask.shape, 1)).astype(np.float16)
    return {
        "image": jnp.asarray(image),
        "size": jnp.asarray([size]),
        "mask": jnp.asarray(mask[None]),
    }


def cubes_of(**fields):

    return volumes.VolumeInputs(parse.degradation("none"), 16, **fields)


@pytest.mark.slow
def test_cubes_hold_a_label_in_their_middle():
    from deblur_mae_jax.input_pipeline.keys import stream_keys

    mask = np.zeros((40, 40, 40), np.uint8)
    mask[20, 12, 25] = 2
    cubes = cubes_of(foreground=1.0)
    for step in range(4):
        batch = cubes.train(example(mask), stream_keys(0, step, jnp.arange(1)))
        assert batch["mask"][0, 8, 8, 8] == 2 and batch["mask"].sum() == 2
    away = cubes_of(foreground=0.0001)
    seen = [away.train(example(mask), stream_keys(0, s, jnp.arange(1)))["mask"].sum() for s in range(20)]
    assert 0 in [int(n) for n in seen]


def test_a_cube_and_its_mask_turn_together():
    from deblur_mae_jax.input_pipeline.keys import stream_keys

    mask = np.zeros((16, 16, 16), np.uint8)
    mask[:5, :9, :3] = 1
    data = example(mask)
    image = np.where(mask == 1, 0.9, 0.1).astype(np.float16)
    data["image"] = jnp.asarray(image[None, ..., None])
    cubes, kinds = cubes_of(flip=0.5, rotate=0.5), set()
    for step in range(12):
        batch = cubes.train(data, stream_keys(0, step, jnp.arange(1)))
        cube, found = np.asarray(batch["inputs"])[0, ..., 0], np.asarray(batch["mask"])[0]
        np.testing.assert_array_equal(cube > 0.5, found == 1)
        assert found.sum() == mask.sum()
        kinds.add(found.tobytes())
    assert len(kinds) > 4


def judged(distances, sizes):
    # Cases with two labels, with these 95 % Hausdorff distances and predicted sizes (N, 2).
    values = {name: np.where(np.array(sizes) > 0, 0.8, 0.0) for name in segmentation.MEASURES}
    values["hd95"] = np.array(distances)
    names = np.array([f"case {i}" for i in range(len(distances))])
    test = np.full(len(names), "test")
    return cases.Cases(["x", "y"], names, names, test, values, np.ones((len(names), 2)), np.array(sizes), "mm")


def test_a_missed_label_has_no_surface_in_common():
    truth, nothing = np.zeros((6, 6, 6), bool), np.zeros((6, 6, 6), bool)
    truth[2:4, 2:4, 2:4] = True
    missed, invented = (segmentation.measure(*pair, (1.0,) * 3) for pair in ((truth, nothing), (nothing, truth)))
    assert missed["surface_dice"] == missed["dice"] == 0 and np.isnan(missed["hd95"])
    assert np.isnan([invented["surface_dice"], invented["dice"]]).all()


def test_the_interval_of_dice_stays_below_one():
    names = np.array([f"p{i}" for i in range(10)])
    entry = cases.entry(np.array([1.0] * 9 + [0.2]), names, True, share=True)
    assert 0 < entry["low"] < entry["value"] < entry["high"] < 1


def test_millimetres_are_not_compared_with_pixels():
    one = judged([[2.0, 9.0]] * 20, [[1, 1]] * 20)
    with pytest.raises(UserError, match="different units: mm, px"):
        comparison.compare_cases(one, dataclasses.replace(one, unit="px"), ("a", "b"))


def test_a_headline_says_how_many_images_it_counts():
    table = judged([[2.0, 9.0]] * 6, [[1, 1]] * 6)
    table.truth_size[2:] = 0
    table.values = {name: np.where(table.truth_size > 0, v, np.nan) for name, v in table.values.items()}
    numbers = cases.summarise(table) | {"labels": table.labels}
    text = segmentation_report._dice(numbers)
    assert "on 2 of 6 test images of 6 patients, the others of which have no label" in text
    assert "8 structures were predicted where there is none." in text


def test_a_missed_label_does_not_make_a_distance_better():
    # One run misses the label that is hard for both; over the other label both are equal.
    found = judged([[2.0, 9.0]] * 20, [[1, 1]] * 20)
    missed = judged([[2.0, np.nan]] * 20, [[1, 0]] * 20)
    row = comparison.compare_cases(missed, found, ("a", "b"))
    assert row["hd95"] == 0 and row["hd95_left_out"] == 20
    assert row["dice"] == pytest.approx(-0.4) and row["dice_left_out"] == 0
    assert missed.missed_labels.tolist() == [1] * 20 and not found.missed_labels.any()


def test_a_distance_that_no_image_has_is_undefined_between_two_runs(monkeypatch, capsys):
    monkeypatch.syspath_prepend(tiny.ROOT / "scripts")
    import compare_runs

    found = judged([[2.0, 9.0]] * 20, [[1, 1]] * 20)
    nothing = judged([[np.nan, np.nan]] * 20, [[0, 0]] * 20)
    numbers = {"n_train": 80, "judged_on": "test", "splits": {"test": {"per_image": collections.defaultdict(dict)}}}
    for name in ("dice", "hd95", "surface_distance"):
        numbers["splits"]["test"]["per_image"][name] = {"value": None}
    runs = [comparison.Run(name, table, table, numbers) for name, table in (("none", nothing), ("all", found))]
    monkeypatch.setattr(comparison, "read_runs", lambda paths: runs)
    compare_runs.compare(compare_runs.parse(["none", "all"]))
    said = capsys.readouterr().out
    assert "hd95               undefined  without 40 labels that only one of them found" in said and "nan" not in said
    with pytest.raises(UserError, match="hd95 is not defined between none and all"):
        comparison.over_folds(runs[:1] * 2, runs[1:] * 2, "hd95")


def test_a_table_that_a_spreadsheet_sorted_is_read_the_same(tmp_path):
    rng = np.random.default_rng(0)
    values = {name: rng.random((3, 2)) for name in segmentation.MEASURES}
    names = np.array(["a", "b", "c"])
    table = cases.Cases(["x", "y"], names, names, np.full(3, "test"), values, *rng.random((2, 3, 2)), "px")
    table.write(tmp_path / "cases.csv")
    head, *rows = (tmp_path / "cases.csv").read_text().splitlines()
    by_label = sorted(rows, key=lambda row: (",y," in row, row))
    assert by_label != rows
    (tmp_path / "sorted.csv").write_text("\n".join([head, *by_label]))
    found = cases.read(tmp_path / "sorted.csv")
    assert found.names.tolist() == ["a", "b", "c"]
    for name in values:
        np.testing.assert_allclose(found.values[name], values[name])
    (tmp_path / "short.csv").write_text("\n".join([head, *rows[1:]]))
    with pytest.raises(UserError, match="every image needs one row of each label"):
        cases.read(tmp_path / "short.csv")
