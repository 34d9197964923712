"""Measures, error bars and comparisons against scikit-learn, scipy, statsmodels and definitions."""

import json

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.inference import arrays
from deblur_mae_jax.metrics import classification, statistics, weighted
from deblur_mae_jax.reports import comparison, predictions
from deblur_mae_jax.reports.predictions import Predictions

CLOSE = {"atol": 1e-6, "rtol": 0}


def two_columns(scores):
    return np.stack([1 - scores, scores], axis=1)


def table(labels, p, groups=None, split="test", names=None):
    n = len(labels)
    return Predictions(
        [f"class {i}" for i in range(p.shape[1])],
        np.array([f"image {i}" for i in range(n)] if names is None else names),
        np.array([""] * n if groups is None else groups),
        np.full(n, split),
        np.asarray(labels),
        np.asarray(p, float),
        np.zeros(n, int),
        np.full(n, np.nan),
    )


def test_binary_measures(golden):
    z = golden("metrics_cls")
    labels = z["bin_labels"].astype(int)
    # the reference calls a score of exactly one half positive; argmax takes the first
    p = two_columns(z["bin_scores"] + np.where(z["bin_scores"] == 0.5, 1e-9, 0))
    got = classification.measure(labels, p)
    for name, key in {"accuracy": "acc", "f1_binary": "f1_binary", "f1_macro": "f1_macro",
                      "f1_weighted": "f1_weighted", "balanced_accuracy": "bacc", "auroc": "auroc",
                      "average_precision": "ap"}.items():  # fmt: skip
        np.testing.assert_allclose(got[name], z[f"bin_{key}"], **CLOSE, err_msg=name)
    nothing = two_columns(np.zeros(len(labels)))
    assert classification.f1_binary(labels, nothing) == z["bin_f1_nopos"]
    np.testing.assert_allclose(classification.f1_macro(labels, nothing), z["bin_f1_macro_nopos"], **CLOSE)
    np.testing.assert_allclose(classification.calibration_error(labels, z["bin_ece_scores"]), z["bin_ece10"], **CLOSE)
    fpr, tpr = z["bin_roc_fpr"], z["bin_roc_tpr"]
    want = tpr[fpr <= 0.1].max()
    np.testing.assert_allclose(got["sensitivity_at_specificity"], want, **CLOSE)


def test_measures_of_several_classes(golden):
    z = golden("metrics_cls")
    labels, p = z["mcf_labels"].astype(int), z["mcf_prob"]
    got = classification.measure(labels, p)
    for name, key in {"f1_macro": "f1_macro", "balanced_accuracy": "bacc", "log_loss": "logloss",
                      "auroc": "auroc_ovr_macro", "brier": "brier", "ece": "ece10"}.items():  # fmt: skip
        np.testing.assert_allclose(got[name], z[f"mcf_{key}"], **CLOSE, err_msg=name)
    np.testing.assert_allclose(classification.ece(labels, p, 15), z["mcf_ece15"], **CLOSE)
    assert "f1_binary" not in got


def test_a_class_that_is_absent_is_left_out_of_averages(golden):
    z = golden("metrics_cls")
    labels, p = z["mc_labels"].astype(int), z["mc_prob"]
    assert 4 not in labels
    got = classification.measure(labels, p)
    np.testing.assert_allclose(got["f1_macro"], z["mc_f1_macro_present"], **CLOSE)
    np.testing.assert_allclose(got["balanced_accuracy"], z["mc_bacc"], **CLOSE)
    np.testing.assert_allclose(got["auroc"], z["mc_auroc_ovr_macro_present"], **CLOSE)
    one = classification.measure(np.zeros(10, int), p[:10])
    assert np.isnan(one["auroc"]) and np.isfinite(one["accuracy"])


def test_temperature_scaling_calibrates_and_keeps_the_order():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 3))
    p = arrays.probabilities_of(logits)
    labels = np.array([rng.choice(3, p=row) for row in p])
    over = arrays.probabilities_of(3.0 * logits)  # too confident
    temperature = classification.fit_temperature(labels, over)
    assert abs(temperature - 3) < 0.25
    scaled = classification.scale(over, temperature)
    assert classification.ece(labels, scaled) < 0.03 < classification.ece(labels, over)
    np.testing.assert_array_equal(scaled.argmax(1), over.argmax(1))


def test_the_interval_is_that_of_a_jackknife_where_every_image_is_a_patient(golden):
    z = golden("metrics_stats")
    labels, scores = z["bsauc_labels"].astype(int), z["bsauc_scores"]
    p = two_columns(scores)
    n = len(labels)
    value = metrics.roc_auc_score(labels, scores)
    without = np.array([metrics.roc_auc_score(np.delete(labels, i), np.delete(scores, i)) for i in range(n)])
    error = np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())
    half = stats.t.ppf(0.975, n - 1) * error / (value * (1 - value))
    want = 1 / (1 + np.exp(-(np.log(value / (1 - value)) + np.array([-half, half]))))
    got = statistics.over_patients(labels, p, np.arange(n).astype(str), weighted.auroc)
    np.testing.assert_allclose(got, want, rtol=1e-9)
    np.testing.assert_allclose(got, z["bsauc_BCa"], atol=0.04)  # a bootstrap of the same cases is near


def test_the_interval_is_over_whole_patients():
    rng = np.random.default_rng(1)
    labels = np.repeat(rng.integers(0, 2, 30), 8)  # eight images of a patient say the same
    right = np.repeat(rng.random(30) < 0.7, 8)
    p = two_columns(np.where(right == labels, 0.9, 0.1).astype(float))
    grouped = table(labels, p, groups=[f"patient {i // 8}" for i in range(240)])
    apart = table(labels, p)
    width = []
    for t in (grouped, apart):
        low, high = statistics.over_patients(t.labels, t.probabilities, t.patients, weighted.accuracy)
        width.append(high - low)
    assert 2 < width[0] / width[1] < 4  # near the square root of 8
    few = table(labels[:4], p[:4])
    assert np.isnan(statistics.over_patients(few.labels, few.probabilities, few.patients, weighted.accuracy)).all()


def test_a_class_whose_few_patients_are_all_right_is_not_certain():
    """Five malignant patients, all found: their recall is not known to be 1."""
    labels = np.r_[np.zeros(30, int), np.ones(5, int)]
    scores = np.r_[np.full(24, 0.2), np.full(6, 0.8), np.full(5, 0.9)]
    names, p = np.arange(35).astype(str), two_columns(scores)
    plain = statistics.over_patients(labels, p, names, weighted.balanced_accuracy)
    careful = statistics.over_patients(labels, p, names, weighted.balanced_accuracy, "decision")
    assert plain.low > 0.78 > careful.low > 0.55 and careful.high < 1
    # With many patients the imagined ones weigh nothing.
    many = np.tile(labels, 30), np.tile(p, (30, 1)), np.arange(35 * 30).astype(str)
    measure = weighted.balanced_accuracy
    np.testing.assert_allclose(
        statistics.over_patients(*many, measure, "decision"), statistics.over_patients(*many, measure), atol=0.01
    )
    assert set(weighted.KINDS) == set(weighted.MEASURES)


@pytest.mark.parametrize("name", ["balanced_accuracy", "f1_macro", "accuracy"])
def test_a_class_without_a_judged_patient_does_not_change_the_interval(name):
    rng = np.random.default_rng(4)
    labels = np.arange(60) % 2
    scores = np.clip(labels + 0.5 * rng.normal(size=60), 0, 1)
    p, patients = np.stack([1 - scores, scores], axis=1), np.array([f"p{i // 2}" for i in range(60)])
    more = np.pad(p, [(0, 0), (0, 1)])
    metric = weighted.MEASURES[name]
    got, want = (statistics.over_patients(labels, q, patients, metric, "decision") for q in (more, p))
    np.testing.assert_allclose(got, want)


def test_the_interval_of_a_threshold_is_a_bootstrap_over_patients():
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 2, 300)
    p, names = two_columns(1 / (1 + np.exp(-(labels + rng.normal(size=300))))), np.repeat(np.arange(150), 2).astype(str)
    got = statistics.over_patients(labels, p, names, weighted.sensitivity_at_specificity, "threshold")
    again = statistics.over_patients(labels, p, names, weighted.sensitivity_at_specificity, "threshold")
    assert got == again  # the same data, the same interval
    values = []
    for _ in range(300):
        chosen = np.concatenate([np.flatnonzero(names == str(i)) for i in rng.integers(0, 150, 150)])
        values.append(classification.METRICS["sensitivity_at_specificity"](labels[chosen], p[chosen]))
    assert np.diff(got)[0] == pytest.approx(3.92 * np.std(values), rel=0.2)


def test_many_patients_are_left_out_in_groups(monkeypatch):
    values = np.random.default_rng(3).normal(size=3000)
    names = np.array([f"{i:05d}" for i in range(3000)])
    grouped = statistics.of_mean(values, names)
    monkeypatch.setattr(statistics, "MOST", 10**6)
    one_by_one = statistics.of_mean(values, names)
    assert grouped != one_by_one
    np.testing.assert_allclose(grouped, one_by_one, atol=0.005)  # its width is 0.072


def test_the_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(100):
        labels = rng.integers(0, 2, 60)
        t = table(labels, two_columns(np.full(60, 0.5)))
        low, high = statistics.over_patients(t.labels, t.probabilities, t.patients, lambda y, p, w: w @ y / w.sum(1))
        hits += low <= 0.5 <= high
    assert 85 <= hits <= 99  # 95 expected, with a deviation of 2


def test_delong(golden):
    z = golden("metrics_stats")
    labels = z["dl_labels"].astype(int)
    got = statistics.delong(labels, z["dl_a"], z["dl_b"])
    np.testing.assert_allclose(got.difference, z["dl_auc"][0] - z["dl_auc"][1], **CLOSE)
    np.testing.assert_allclose(got.p, z["dl_p"], **CLOSE)
    np.testing.assert_allclose(got.interval, z["dl_ci_diff"], **CLOSE)
    c = z["dl_cov"]
    error = np.sqrt(c[0, 0] + c[1, 1] - 2 * c[0, 1])
    np.testing.assert_allclose(got.smallest, (1.959964 + 0.841621) * error, rtol=1e-5)
    assert statistics.delong(labels, z["dl_a"], z["dl_a"]).p == 1


def test_delong_without_variance():
    """Two classifiers without an error do not differ; against one that guesses the test is not defined."""
    labels = np.repeat([0, 1], 10)
    perfect, also = labels + np.linspace(0, 0.5, 20), labels + np.linspace(0, 0.5, 20) ** 3
    got = statistics.delong(labels, perfect, also)
    assert (got.difference, got.p) == (0, 1)
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 60), rng.random(60)
    assert statistics.delong(labels, scores, scores**3).p == 1
    guessing = statistics.delong(np.repeat([0, 1], 10), perfect, np.full(20, 0.5))
    assert guessing.difference == 0.5 and np.isnan(guessing.p)


@pytest.mark.parametrize("number", [0, 1])
def test_corrected_t_test(golden, number):
    z = golden("metrics_stats")
    n_train, n_test = z[f"nb{number}_n"]
    t, p = statistics.corrected_t_test(z[f"nb{number}_a"], z[f"nb{number}_b"], n_train, n_test)
    np.testing.assert_allclose([t, p], [z[f"nb{number}_t"], z[f"nb{number}_p"]], **CLOSE)


@pytest.mark.parametrize("number", [0, 1])
def test_mcnemar(golden, number):
    z = golden("metrics_stats")
    labels, a, b = (z[f"mc{number}_{k}"].astype(int) for k in ("labels", "a", "b"))
    np.testing.assert_array_equal(statistics.mcnemar_table(labels, a, b), z[f"mc{number}_table"])
    got = statistics.mcnemar(labels, a, b)
    np.testing.assert_allclose(got.p, z[f"mc{number}_exact"][1], **CLOSE)
    np.testing.assert_allclose(got.difference, (a == labels).mean() - (b == labels).mean())


def test_holm_keeps_what_is_not_known():
    got = statistics.holm([0.01, np.nan, 0.04, 0.03])
    np.testing.assert_allclose(got, [0.03, np.nan, 0.06, 0.06])


def test_the_interval_of_an_accuracy_difference_agrees_with_its_test():
    """An interval of a normal distribution excluded zero where the exact test found nothing (p = 0.125)."""
    labels = np.zeros(40, int)
    for discordant, outside in ((4, False), (12, True)):
        worse = (np.arange(40) < discordant).astype(int)
        found = statistics.mcnemar(labels, labels, worse)
        low, high = found.interval
        assert low <= found.difference <= high and (low > 0) == outside == (found.p < 0.05)
        np.testing.assert_allclose(statistics.mcnemar(labels, worse, labels).interval, (-high, -low))


def test_the_interval_of_an_accuracy_difference_covers():
    """In 2,000 draws of 40 patients with few discordant pairs, of which that of a normal distribution covers 91 %."""
    rng = np.random.default_rng(0)
    chances = np.array([0.85, 0.08, 0.01, 0.06])  # both right, only a, only b, neither
    tables = rng.multinomial(40, chances, 2000).reshape(-1, 2, 2)
    bounds = np.array([statistics._paired_score(each) for each in tables])
    inside = (bounds[:, 0] <= 0.07) & (bounds[:, 1] >= 0.07)
    assert 0.93 < inside.mean() < 0.99


def test_no_positive_image_and_no_positive_prediction_has_no_f1():
    labels, sure = np.zeros(4, int), two_columns(np.full(4, 0.1))
    assert np.isnan(classification.f1_binary(labels, sure))
    assert np.isnan(weighted.f1_binary(labels, sure, np.ones((1, 4)))).all()
    assert classification.f1_binary(labels, two_columns(np.array([0.1, 0.9, 0.1, 0.1]))) == 0


@given(st.integers(0, 10_000))
def test_the_table_survives_its_file(seed):
    import tempfile
    from pathlib import Path

    rng = np.random.default_rng(seed)
    n, classes = int(rng.integers(1, 12)), int(rng.integers(2, 5))
    p = rng.dirichlet(np.full(classes, 0.2), n)
    t = table(rng.integers(-1, classes, n), p, groups=[f"p,{i % 3}" if i % 2 else "" for i in range(n)])
    t.sigma = np.where(rng.random(n) < 0.5, np.nan, 0.3)
    with tempfile.TemporaryDirectory() as folder:
        t.write(Path(folder) / "p.csv")
        back = predictions.read(Path(folder) / "p.csv")
    np.testing.assert_allclose(back.probabilities, t.probabilities, rtol=1e-8)
    for name in ("names", "groups", "split", "labels", "level", "sigma"):
        np.testing.assert_array_equal(getattr(back, name), getattr(t, name))


def test_a_file_that_is_no_table_is_named(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="not a table of predictions"):
        predictions.read(tmp_path / "x.csv")


HEAD = "image,group,split,label,predicted,p_a,p_b,level,sigma"


@pytest.mark.parametrize(
    "rows, said",
    [
        (["x,,test,a,a,nan,0.5,0,"], "row 2, image 'x': .* are no probabilities"),
        (["x,,test,a,a,5,-4,0,"], "row 2, image 'x': .* are no probabilities"),
        (["x,,test,a,a,0.9,0.1,0,", "y,,test,zzz,a,0.9,0.1,0,"], "row 3, image 'y': the label 'zzz' is none of a, b"),
        (["x,,test,a,a,0.9,0.1,0,"] * 2, "image 'x' occurs twice in the split 'test'"),
    ],
    ids=["nan", "no share", "label", "twice"],
)
def test_a_row_that_cannot_be_judged_is_named(rows, said, tmp_path):
    (tmp_path / "x.csv").write_text("\n".join([HEAD, *rows]))
    with pytest.raises(UserError, match=said):
        predictions.read(tmp_path / "x.csv")


def test_a_missing_column_is_named(tmp_path):
    (tmp_path / "x.csv").write_text("image,group,label,p_a,p_b,level,sigma\nx,,a,0.9,0.1,0,\n")
    with pytest.raises(UserError, match="it lacks split"):
        predictions.read(tmp_path / "x.csv")


def test_images_without_a_label_are_not_counted_as_a_class():
    with pytest.raises(UserError, match="1 of 2 images have no label, for example 'image 1'"):
        predictions.summarise(table([0, -1], two_columns(np.array([0.2, 0.9]))))


def test_no_temperature_is_fitted_where_the_loss_is_flat():
    assert classification.fit_temperature(np.array([0, 1]), np.eye(2)) is None


def test_patients_are_judged_by_the_mean_of_their_images():
    p = two_columns(np.array([0.9, 0.2, 0.6, 0.1, 0.7]))
    t = table([1, 1, 1, 0, 0], p, groups=["a", "a", "b", "b", ""])
    by = t.by_patient
    assert sorted(zip(by.names, by.labels, np.round(by.probabilities[:, 1], 6), strict=True)) == [
        ("a", 1, 0.55), ("b", 0, 0.1), ("b", 1, 0.6), ("image 4", 0, 0.7)]  # fmt: skip


def write_run(folder, t, judged="test"):
    folder.mkdir()
    t.write(folder / "predictions.csv")
    numbers = predictions.summarise(t)
    (folder / "metrics.json").write_text(json.dumps({**numbers, "judged_on": judged, "leakage": [], "n_train": 120}))


@pytest.mark.slow
def test_runs_are_compared_on_the_same_images(tmp_path, capsys):
    import sys

    sys.path.insert(0, str(tiny.ROOT / "scripts"))
    import compare_runs

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 120)
    good = np.clip(labels * 0.5 + rng.normal(0.25, 0.2, 120), 0.01, 0.99)
    poor = np.clip(rng.normal(0.5, 0.2, 120), 0.01, 0.99)
    write_run(tmp_path / "good", table(labels, two_columns(good)))
    shuffled = rng.permutation(120)
    write_run(tmp_path / "poor", table(labels, two_columns(poor)).where(shuffled))
    compare_runs.compare(compare_runs.parse([str(tmp_path / "good"), str(tmp_path / "poor")]))
    text = capsys.readouterr().out
    assert "AUROC" in text and "Holm" in text and "macro F1" in text and "120 images (patients unknown" in text
    assert "over images" in text and "over patients" not in text
    runs = [comparison.read_run(tmp_path / n) for n in ("good", "poor")]
    [row] = comparison.pairs(runs)
    assert row["auroc"].p < 1e-6 and row["auroc"].difference > 0.2 and row["accuracy"].p < 1e-4
    moved = [f"elsewhere/{name}" for name in runs[0].judged.names]  # the same set, read from another folder
    write_run(tmp_path / "moved", table(labels, two_columns(good), names=moved))
    plain = [f"set/{name}" for name in runs[0].judged.names]
    write_run(tmp_path / "plain", table(labels, two_columns(good), names=[f"a/{n}" for n in plain]))
    write_run(tmp_path / "short", table(labels, two_columns(good), names=plain))
    same = [comparison.read_run(tmp_path / n) for n in ("plain", "short")]
    assert comparison.pairs(same)[0]["accuracy"].difference == 0
    write_run(tmp_path / "other", table(labels[:60], two_columns(good[:60])))
    with pytest.raises(UserError, match="not judged on the same images"):
        comparison.pairs([*runs, comparison.read_run(tmp_path / "other")])
    with pytest.raises(UserError, match=r"holds no predictions\.csv"):
        comparison.read_run(tmp_path)
    (tmp_path / "other" / "metrics.json").write_text('{"judged')  # a full disk
    with pytest.raises(UserError, match=r"other': metrics\.json is missing or damaged"):
        comparison.read_run(tmp_path / "other")


def run_of(name, t):
    return comparison.Run(name, t, t, {})


def test_runs_that_group_the_images_differently_are_not_compared():
    """Patient tables are sorted by name: patients of other names would be paired in another order."""
    labels = np.repeat([0, 1], 40)
    p = two_columns(np.random.default_rng(0).random(80))
    pairs = np.array([f"p{i // 2:02d}" for i in range(80)])
    renamed = np.array([f"case {39 - i // 2:02d}" for i in range(80)])  # the same patients in another order
    [row] = comparison.pairs([run_of("a", table(labels, p, pairs)), run_of("b", table(labels, p, renamed))])
    assert row["unit"] == "patient" and row["auroc"].difference == 0 and row["accuracy"].difference == 0
    for order in (1, -1):  # one of the runs does not know the patients
        runs = [run_of("a", table(labels, p, pairs)), run_of("b", table(labels, p))][::order]
        [row] = comparison.pairs(runs)
        assert row["unit"] == "patient" and row["patients"] == 40
    shifted = np.roll(pairs, 1)
    with pytest.raises(UserError, match="a and b disagree about which images show one patient, for example"):
        comparison.pairs([run_of("a", table(labels, p, pairs)), run_of("b", table(labels, p, shifted))])


def test_an_interval_has_a_width_or_there_is_none():
    t = table(np.arange(40) % 2, two_columns((np.arange(40) % 2).astype(float)))
    assert np.isnan(statistics.over_patients(t.labels, t.probabilities, t.patients, weighted.accuracy)).all()


@pytest.mark.slow
def test_images_of_a_patient_are_not_independent():
    """Two equal classifiers that err by patient: tests per image would find a difference too often."""
    rng = np.random.default_rng(4)
    small = 0
    for _ in range(10):
        labels = np.repeat(rng.integers(0, 2, 40), 6)
        scores = [np.repeat(rng.random(40), 6) * 0.6 + labels * 0.4 for _ in range(2)]
        runs = [
            comparison.Run(
                f"run {i}",
                t := table(labels, two_columns(s), groups=[f"p{j // 6}" for j in range(240)]),
                t,
                {},
            )
            for i, s in enumerate(scores)
        ]
        [row] = comparison.pairs(runs)
        assert row["unit"] == "patient" and row["images"] == 240 and row["patients"] == 40
        small += row["auroc"].p < 0.05
    assert small <= 3  # one in twenty expected


def test_methods_are_compared_over_folds(tmp_path):
    rng = np.random.default_rng(0)
    runs = {"a": [], "b": []}
    for fold in range(4):
        labels = rng.integers(0, 2, 40)
        names = [f"fold {fold} image {i}" for i in range(40)]
        for name, noise in (("a", 0.2), ("b", 0.6)):
            p = np.clip(labels * 0.5 + rng.normal(0.25, noise, 40), 0.01, 0.99)
            write_run(tmp_path / f"{name}{fold}", table(labels, two_columns(p), names=names))
            runs[name].append(comparison.read_run(tmp_path / f"{name}{fold}"))
    found = comparison.over_folds(runs["a"], runs["b"])
    assert found.difference > 0 and found.t > 0 and 0 < found.p < 0.2
    assert (found.left_out, found.unit) == (0, "")
    with pytest.raises(UserError, match="these are seeds"):
        comparison.over_folds([runs["a"][0]] * 2, [runs["b"][0]] * 2)


def test_a_fold_without_a_class_is_named(tmp_path):
    rng, runs = np.random.default_rng(0), []
    for fold in range(3):
        labels = np.zeros(30, int) if fold == 1 else rng.integers(0, 2, 30)
        for method in "ab":
            runs.append(tmp_path / f"{method}{fold}")
            write_run(runs[-1], table(labels, two_columns(rng.random(30))))
    a, b = (comparison.read_runs(runs[start::2]) for start in (0, 1))
    with pytest.raises(UserError, match=r"--metric=auroc is not defined in the fold of a1: its test images may lack"):
        comparison.over_folds(a, b, "auroc")
