"""Weighted measures against scikit-learn on repeated cases; the mean of several runs against simulation and theory."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from deblur_mae_jax.metrics import classification, several_runs, statistics, weighted
from deblur_mae_jax.metrics.several_runs import Judged
from deblur_mae_jax.reports import study
from deblur_mae_jax.reports.study_network import Network


@settings(deadline=None)
@given(
    seed=st.integers(0, 10**6), classes=st.integers(2, 4), cases=st.integers(2, 30), digits=st.integers(0, 3)
)  # fmt: skip
def test_a_weight_is_a_repetition(seed, classes, cases, digits):
    """With few digits there are ties; with few cases a class may be absent."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, cases)
    p = np.round(rng.dirichlet(np.ones(classes), cases), digits)
    weights = rng.integers(0, 3, (5, cases)).astype(float)
    weights[:, rng.integers(0, cases)] += 1
    for name, measure in weighted.MEASURES.items():
        got = measure(labels, p, weights)
        for row, value in zip(weights, got, strict=True):
            chosen = np.repeat(np.arange(cases), row.astype(int))
            want = classification.METRICS[name](labels[chosen], p[chosen])
            if name == "average_precision" and not np.isfinite(value):
                continue
            np.testing.assert_allclose(value, want, atol=1e-12, err_msg=name)


def simulated(rng, patients=40, trainings=4, spread=0.5, shift=0.0):
    """A method whose trainings differ in how far apart they put the classes; two images per patient."""
    labels = np.repeat(rng.random(patients) < 0.5, 2).astype(int)
    names = np.repeat([f"p{i}" for i in range(patients)], 2)
    own = np.repeat(rng.normal(size=patients), 2)
    out = []
    for training in range(trainings):
        apart = 1 + shift + spread * rng.normal()
        scores = apart * labels + 0.7 * own + 0.7 * rng.normal(size=len(labels))
        p = np.stack([-scores, scores], axis=1)
        out.append(Judged(training, names, lambda w, p=p: weighted.auroc(labels, p, w)))
    return out


def test_the_mean_is_that_of_the_trainings_and_of_their_networks():
    networks = simulated(np.random.default_rng(0))
    one = [n.measure(np.ones((1, 80)))[0] for n in networks]
    got = several_runs.mean(networks)
    assert got.value == pytest.approx(np.mean(one)) and got.sd == pytest.approx(np.std(one, ddof=1))
    assert (got.trainings, got.patients) == (4, 40)
    assert got.interval.low < got.value < got.interval.high
    paired = [n._replace(training=n.training // 2) for n in networks]
    nested = several_runs.mean(paired)
    assert nested.value == pytest.approx(got.value) and nested.trainings == 2
    assert nested.sd == pytest.approx(np.std([np.mean(one[:2]), np.mean(one[2:])], ddof=1))


def test_one_training_gives_the_jackknife_interval_over_patients():
    values = np.random.default_rng(1).normal(size=30)
    names = np.array([f"p{i}" for i in range(30)])
    network = Judged(0, names, lambda w: w @ values / w.sum(axis=1))
    got = several_runs.mean([network], share=False)
    want = stats.ttest_1samp(values, 0).confidence_interval(0.95)  # of a mean, the jackknife is exact
    np.testing.assert_allclose(got.interval, want, rtol=1e-10)
    assert np.isnan(got.sd)


def test_equal_networks_have_no_variance_of_trainings():
    first = simulated(np.random.default_rng(2), trainings=1)[0]
    same = [first._replace(training=i) for i in range(3)]
    np.testing.assert_allclose(several_runs.mean(same).interval, several_runs.mean([first]).interval, atol=1e-9)
    nothing = several_runs.difference(same, same)
    assert nothing.value == 0 and np.isnan(nothing.interval).all()


def test_folds_are_averaged_and_their_patients_counted_once():
    rng = np.random.default_rng(3)
    values = rng.normal(size=20)
    names = np.array([f"p{i}" for i in range(20)])
    halves = [
        Judged(0, names[part], lambda w, v=values[part]: w @ v / w.sum(axis=1)) for part in (slice(10), slice(10, 20))
    ]
    got = several_runs.mean(halves, share=False)
    assert got.value == pytest.approx(values.mean()) and got.patients == 20
    assert 0.5 < (got.interval.high - got.interval.low) / (2 * 2.09 * values.std(ddof=1) / np.sqrt(20)) < 2


def test_patients_that_train_the_other_folds_widen_the_interval():
    """Each of four folds' networks judges a quarter of the patients and has trained on the others."""
    rng = np.random.default_rng(5)
    values, names = rng.normal(size=40), np.array([f"p{i:02d}" for i in range(40)])
    mean = lambda part: lambda w: w @ values[part] / w.sum(axis=1)
    parts = [slice(10 * k, 10 * k + 10) for k in range(4)]
    folds = several_runs.table([Judged(0, names[part], mean(part)) for part in parts])
    apart = several_runs.table([Judged(0, names, mean(slice(None)))])
    assert folds.overlap == pytest.approx(4 / 3) and apart.overlap == 1
    width = lambda t: np.diff(several_runs.mean(t, share=False).interval)[0]
    independent = several_runs.mean(dataclasses.replace(folds, overlap=1.0), share=False).interval
    assert width(folds) == pytest.approx(np.sqrt(4 / 3) * np.diff(independent)[0])
    other = [Judged(0, names[p], lambda w, p=p: w @ values[p][::-1] / w.sum(axis=1)) for p in parts]
    wide = several_runs.difference(folds, other).interval
    narrow = several_runs.difference(
        dataclasses.replace(folds, overlap=1.0), dataclasses.replace(several_runs.table(other), overlap=1.0)
    ).interval
    assert np.diff(wide)[0] == pytest.approx(np.sqrt(4 / 3) * np.diff(narrow)[0])


def test_a_difference_between_methods_is_paired_over_patients():
    rng = np.random.default_rng(4)
    hard = rng.normal(size=60)
    names = np.array([f"p{i}" for i in range(60)])

    def method(gain):
        noise = [hard + gain + 0.1 * rng.normal(size=60) for _ in range(3)]
        return [Judged(i, names, lambda w, v=v: w @ v / w.sum(axis=1)) for i, v in enumerate(noise)]

    a, b = method(0.2), method(0.0)
    got = several_runs.difference(a, b)
    assert got.interval.low > 0 and got.p < 0.01 and got.smallest < 0.2
    # Unpaired, the hard patients would hide it.
    low, high = several_runs.mean(a, share=False).interval
    assert low < several_runs.mean(b, share=False).value < high
    with pytest.raises(ValueError, match="different patients"):
        several_runs.difference(a, [n._replace(patients=names[:50], measure=lambda w: w[:, 0]) for n in b])


def test_methods_that_share_their_pretrainings_are_compared_within_each():
    rng = np.random.default_rng(6)
    names, start = np.array([f"p{i}" for i in range(60)]), rng.normal(size=4)

    def method(gain):  # how good a pre-training is changes both methods alike
        values = [s + gain + 0.1 * rng.normal(size=60) for s in start]
        return [Judged(i, names, lambda w, v=v: w @ v / w.sum(axis=1)) for i, v in enumerate(values)]

    a, b = method(0.2), method(0.0)[::-1]
    apart, within = several_runs.difference(a, b), several_runs.difference(a, b, shared=True)
    assert within.value == pytest.approx(apart.value)
    assert within.interval.low > 0 > apart.interval.low and within.smallest < apart.smallest / 3
    one = several_runs.difference(a[:1], b[:1], shared=True)  # a single training has nothing to be compared within
    assert one == several_runs.difference(a[:1], b[:1])


def test_a_method_that_is_not_trained_has_no_variance_of_trainings():
    networks = constant([0.5, 0.6, 0.75])
    rule = several_runs.table(constant([0.9]), fixed=True)
    got, trained = several_runs.difference(rule, networks), several_runs.difference(constant([0.9]), networks)
    ratio = np.diff(got.interval)[0] / np.diff(trained.interval)[0]
    assert ratio == pytest.approx(np.sqrt((1 / 3) / (1 + 1 / 3)))


def test_the_same_patients_with_other_images_are_not_compared():
    rng, patients = np.random.default_rng(7), np.repeat([f"p{i}" for i in range(10)], 3)
    images = np.array([f"{i}.png" for i in range(30)])

    def network(rows, training=0):
        values = rng.normal(size=rows.stop)
        measure = lambda w: w @ values / w.sum(axis=1)
        return Judged(training, patients[rows], measure, None, images[rows])

    whole, fewer = slice(0, 30), slice(0, 29)  # every patient is in both
    with pytest.raises(ValueError, match="different images of the same patients"):
        several_runs.difference([network(whole)], [network(fewer)])
    with pytest.raises(ValueError, match="different images of the same patients"):
        several_runs.table([network(whole), network(fewer, 1)])


def constant(values, names=tuple(f"p{i}" for i in range(40))):
    """A method whose trainings have these values for every patient."""
    return [Judged(i, np.array(names), lambda w, v=v: np.full(len(w), v)) for i, v in enumerate(values)]


@pytest.mark.parametrize("values", [(0.5, 0.6), (0.5, 0.6, 0.75)])
def test_one_training_against_several_has_the_degrees_of_freedom_of_the_several(values):
    """Without variance over patients this is a t-test of one value against a sample."""
    got = several_runs.difference(constant([0.9]), constant(values))
    R = len(values)
    error = np.std(values, ddof=1) * np.sqrt(1 + 1 / R)
    half = stats.t.ppf(0.975, R - 1) * error
    np.testing.assert_allclose(got.interval, [got.value - half, got.value + half])
    assert got.p == pytest.approx(2 * stats.t.sf(got.value / error, R - 1))


@pytest.mark.parametrize("known", [0, 1, 3, 6])
def test_patients_without_a_value_do_not_count(known):
    """As the 95 % Hausdorff distance of a structure that a network missed."""
    rng = np.random.default_rng(known)
    names = np.array([f"p{i:02d}" for i in range(30)])
    values = np.full((2, 30), np.nan)
    values[:, :known] = rng.normal(20, 5, (2, known))
    methods = [[Network("m", "", 0, 0, names, names, {"hd95": v, "dice": v})] for v in values]
    tables = [several_runs.table(study._judged(m, "hd95")) for m in methods]
    got, apart = several_runs.mean(tables[0], share=False), several_runs.difference(*tables)
    if known < statistics.MIN_PATIENTS:
        assert np.isnan(got.interval).all() and np.isnan([*apart.interval, apart.p]).all()
    else:
        np.testing.assert_allclose(got.interval, statistics.of_mean(values[0, :known], names[:known]))
    assert got.patients == 30


def test_every_patient_is_counted_where_groups_of_them_are_left_out():
    count = statistics.MOST + 500
    values = np.arange(count) % 7.0
    network = Judged(0, np.array([f"p{i:04d}" for i in range(count)]), lambda w: (w * values).sum(1) / w.sum(1))
    assert several_runs.mean([network]).patients == count


def test_few_patients_give_no_interval():
    names = np.array(["a", "b", "c"])
    network = Judged(0, names, lambda w: w.sum(axis=1))
    assert len(names) < statistics.MIN_PATIENTS and np.isnan(several_runs.mean([network]).interval).all()


def test_the_intervals_cover():
    """The interval over patients alone covers far less often when trainings differ."""
    rng = np.random.default_rng(5)
    apart = 1 + 0.5 * rng.normal(size=200_000)
    truth = stats.norm.cdf(apart / np.sqrt(2 * 2 * 0.49)).mean()
    hits = patients_only = 0
    for _ in range(200):
        networks = simulated(rng, spread=0.5)
        low, high = several_runs.mean(networks).interval
        hits += low <= truth <= high
        low, high = several_runs.mean([n._replace(training=0) for n in networks]).interval
        patients_only += low <= truth <= high
    assert 181 <= hits <= 199  # 190 expected, with a deviation of 3
    assert patients_only < hits - 10


def test_a_fold_with_more_networks_counts_the_same():
    names = [np.array([f"{fold}{i}" for i in range(20)]) for fold in "ab"]
    rng = np.random.default_rng(5)
    values = [rng.normal(level, 0.1, 20) for level in (0.9, 0.5)]

    def network(fold):
        return Judged(0, names[fold], lambda w, v=values[fold]: w @ v / w.sum(axis=1), images=names[fold])

    once, often = (several_runs.table([network(0)] * count + [network(1)]) for count in (1, 3))
    assert often.mean == pytest.approx(once.mean) == pytest.approx((values[0].mean() + values[1].mean()) / 2)
    np.testing.assert_allclose(often.without, once.without)


def crossed(rng, of_trainings=0.02, of_seeds=0.05, left=0.005, R=3, S=3):
    """Means of R pre-trainings with S seeds each, as networks whose patients are all equal but for a small spread."""
    names = np.array([f"p{i}" for i in range(50)])
    spread = np.linspace(-1e-3, 1e-3, 50)
    seeds = of_seeds * rng.normal(size=S)
    out = []
    for training in range(R):
        own = of_trainings * rng.normal()
        for seed in range(S):
            v = spread + own + seeds[seed] + left * rng.normal()
            out.append(Judged(training, names, lambda w, v=v: w @ v / w.sum(axis=1), seed=seed))
    return out


def test_seeds_that_all_trainings_share_widen_the_interval_of_the_mean():
    rng = np.random.default_rng(0)
    hits = {True: 0, False: 0}
    for _ in range(300):
        networks = crossed(rng)
        for shared in hits:
            own = networks if shared else [n._replace(seed=None) for n in networks]
            interval = several_runs.mean(own, share=False).interval
            hits[shared] += interval.low <= 0 <= interval.high
    assert hits[True] / 300 > 0.93 > 0.8 > hits[False] / 300


def test_seeds_without_an_effect_change_the_interval_little():
    networks = crossed(np.random.default_rng(3), of_seeds=0.0)
    plain = [n._replace(seed=None) for n in networks]
    wide, narrow = (several_runs.mean(n, share=False).interval for n in (networks, plain))
    assert wide.high - wide.low <= 1.5 * (narrow.high - narrow.low)
    assert several_runs.table(networks[:3]).of_seeds == (0.0, 1)  # one training
    other = [n._replace(seed=(n.training, n.seed)) for n in networks]
    assert several_runs.table(other).of_seeds == (0.0, 1)  # no seed in common
