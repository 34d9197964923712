"""How the numbers of a study are written, and which networks they come from."""

import numpy as np
import pytest

from deblur_mae_jax.reports import page, study
from deblur_mae_jax.reports.study_network import Network


@pytest.mark.parametrize(
    ("mean", "low", "high", "text"),
    [(0.44, 0.43, 0.45, "0.440 (0.430 to 0.450)"), (1.28, 0.9, 1.66, "1.28 (0.90 to 1.66)"),
     (8.06, 0.0, 21.36, "8.1 (0.0 to 21.4)"), (99.97, np.nan, np.nan, "99.97"),
     (77.7, 74.0, 80.9, "77.7 (74.0 to 80.9)")],
)  # fmt: skip
def test_an_interval_has_the_digits_that_its_width_needs(mean, low, high, text):
    assert study._cell({"mean": mean, "low": low, "high": high}) == text


def test_a_small_number_is_not_nothing():
    assert [page.three_digits(x) for x in (0.0, 0.0004, 0.9996, 1.0)] == ["0.000", "< 0.001", "> 0.999", "1.000"]


def network(method, seed, fold, shift=0.0, positive="b", patients=12):
    rng = np.random.default_rng([seed, fold])
    labels = np.arange(patients) % 2
    p = np.clip(labels * 0.4 + rng.uniform(0.1, 0.6, patients) + shift, 0.01, 0.99)
    classes = ("a", "b") if positive == "b" else ("b", "a")
    columns = {"label": labels.astype(float), f"p_{classes[0]}": 1 - p, f"p_{classes[1]}": p}
    images = np.array([f"fold {fold} image {i}" for i in range(patients)])
    return Network(method, "", seed, fold, images, np.array([""] * patients), columns, "")


def facts(*methods, **more):
    about = {"state": "run", "leakage": False, "paper": {}}
    return {"title": "A study", "methods": {name: dict(about) for name in methods}, "classes": {}, **more}


def test_networks_that_are_left_out_are_not_in_the_ensemble(tmp_path):
    complete = [network("A", seed, fold) for seed in (0, 1) for fold in (0, 1)]
    text = study.write([*complete, network("A", 2, 0)], facts("A", ensembles=["A"]), tmp_path)
    assert "A, ensemble of 2" in text and "A: 1 runs are left out" in text


def test_f1_of_two_positive_classes_is_not_compared(tmp_path):
    networks = [network(name, seed, 0, shift, positive)
                for name, shift, positive in (("A", 0.0, "b"), ("B", 0.1, "a")) for seed in (0, 1)]  # fmt: skip
    found = study.rows(networks, facts("A", "B", reference="A"))
    assert "f1_binary_difference" not in found[1] and "accuracy_difference" in found[1]
    assert "its positive class is 'a', that of A 'b'" in study.write(networks, facts("A", "B", reference="A"), tmp_path)


def test_distances_say_that_less_is_better(tmp_path):
    networks = []
    for name, shift in (("A", 0.0), ("B", 0.04)):
        for seed in (0, 1, 2):
            rng = np.random.default_rng(seed)
            values = 0.4 + 0.01 * rng.standard_normal(20) + shift
            columns = {
                "dice": np.full(20, 0.9) + 0.01 * rng.standard_normal(20),
                "hd95": values,
                "surface_distance": values,
            }
            images = np.array([str(i) for i in range(20)])
            networks.append(Network(name, "", seed, 0, images, images, columns, "mm"))
    text = study.write(networks, facts("A", "B", reference="A"), tmp_path)
    assert "surface_distance (less is better)" in text and "+0.0 (" not in text and "+0.040" in text


def test_a_network_that_finds_nothing_has_no_distance_and_the_table_says_so(tmp_path):
    def segmenter(method, seed, nothing=False):
        rng = np.random.default_rng(seed)
        dice, distance = rng.uniform(0.6, 0.9, (2, 12))
        distance = np.full(12, np.nan) if nothing else distance * 10
        columns = {"dice": dice * (not nothing), "hd95": distance, "surface_distance": distance / 2}
        columns["missed"] = np.full(12, float(nothing))
        images = np.array([f"image {i}" for i in range(12)])
        return Network(method, "", seed, 0, images, np.array([""] * 12), columns, "mm")

    networks = [segmenter("A", 0), segmenter("A", 1), segmenter("B", 0), segmenter("B", 1, nothing=True)]
    study.write(networks, facts("A", "B", reference="A", units={"A": "mm", "B": "mm"}), tmp_path)
    table = (tmp_path / "table.md").read_text()
    row = next(line for line in table.splitlines() if line.startswith("| B"))
    assert row.split(" | ")[3].startswith("not defined"), row
    assert "A network without any defined case has no mean" in table
    assert "nan" not in table
