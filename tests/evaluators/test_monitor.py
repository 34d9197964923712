"""Probes of frozen features on labelled images while a network is pre-trained."""

import json

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

from deblur_mae_jax import train
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.evaluators import monitor
from deblur_mae_jax.training import experiment

SMALL = {"optim__steps": 4, "report__every_epochs": 0.7}


def labelled(folder, patients=12):
    """Images whose classes a network need not learn: bright and dark ones, three of each patient."""
    rng = np.random.default_rng(0)
    rows = ["path,label,group"]
    for i in range(3 * patients):
        label = ("benign", "malignant")[i // 3 % 2]
        path = folder / label / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 60, (40, 44)) + (150 if label == "malignant" else 20)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        rows.append(f"{label}/{path.name},{label},patient{i // 3}")
    (folder / "list.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.mark.parametrize(
    ("name", "root"),
    tiny.others_slow([("quickstart", "list.csv"), ("simmim", ""), ("simclr", "")], ("quickstart", "list.csv")),
)
def test_a_pre_training_judges_its_features_on_labelled_images(tmp_path, name, root):
    folder = labelled(tmp_path / "set")
    fields = SMALL | {"report__monitor_root": str(folder / root), "report__monitor_images": 20}
    result = train.train_and_evaluate(tiny.config(name, **fields), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    first = next(line for line in lines if "knn_auroc" in line)
    assert first["step"] == 0 and result.finished
    for probe in ("knn", "linear"):
        assert 0 <= first[f"{probe}_balanced_accuracy"] <= 1
    assert first["linear_auroc"] > 0.9  # brightness alone separates the classes
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "frozen features on labelled images" in page
    judged = sum("knn_auroc" in line for line in lines)
    assert f"{judged} judgements of the features, " in page and "% of the time since the last start" in page


def built(tmp_path, **fields):
    config = tiny.resolved("quickstart", report__monitor_root=str(labelled(tmp_path / "set") / "list.csv"), **fields)
    run = experiment.build(config)
    return run, monitor.make(run)


def test_patients_are_not_divided_and_later_judgements_wait_for_their_share(tmp_path, monkeypatch):
    run, made = built(tmp_path, report__monitor_images=20)
    assert (
        len(made.train) == 12
        and len(made.judged) <= 8
        and made.inputs.shape == (len(made.train) + len(made.judged), 16, 16, 1)
    )
    assert not set(made.train) & set(made.judged)
    params = run.make_state().params
    first = made.judge(params)
    assert set(first) == {f"{probe}_{measure}" for probe in monitor.PROBES for measure in monitor.MEASURES}
    assert made.judge(params) == {}  # 2 % of no time at all
    monkeypatch.setattr(made, "began", made.began - 51 * (made.spent + made.last))
    assert made.judge(params) == first


def test_the_same_network_has_the_same_measures_in_every_start(tmp_path):
    run, made = built(tmp_path)
    again = monitor.make(run)
    params = jax.device_get(run.make_state().params)
    assert made.judge(params) == again.judge(params)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"report__monitor_root": "/nowhere"}, r"config\.report\.monitor_root='/nowhere'"),
        ({"report__monitor_images": 3}, "monitor_images=3 must be at least 10"),
        ({"report__monitor_share": 0.0}, "monitor_share=0.0 must be above 0"),
    ],
)
def test_invalid_settings_are_refused_by_name(tmp_path, fields, message):
    root = {} if "report__monitor_root" in fields else {"report__monitor_root": str(labelled(tmp_path / "set"))}
    run = experiment.build(tiny.resolved("quickstart", **root, **fields))
    with pytest.raises(UserError, match=message):
        monitor.make(run)


def test_images_of_one_class_are_refused(tmp_path):
    folder = labelled(tmp_path / "set")
    for path in (folder / "malignant").iterdir():
        path.unlink()
    (folder / "list.csv").unlink()
    run = experiment.build(tiny.resolved("quickstart", report__monitor_root=str(folder)))
    with pytest.raises(UserError, match=r"config\.report\.monitor_root"):
        monitor.make(run)
