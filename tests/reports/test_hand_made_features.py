"""Hand-made features as a row of a study."""

import csv
import gzip
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import hand_made_features
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.reports import study


def images(folder, count=48):
    """Smooth and striped pictures of two patients' worth each, and the list of them; returns the test names."""
    rng, lines, tests = np.random.default_rng(0), ["path,label,split,group"], []
    for i in range(count):
        label, split = ("smooth", "striped")[i % 2], "test" if i >= count * 3 // 4 else "train"
        picture = rng.normal(120, 25, (60, 50)) + (40 * np.sin(np.arange(50)) if i % 2 else 0)
        Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{label},{split},p{i // 2}-{label}")
        tests += [f"{i}.png"] if split == "test" else []
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    return tests


def kept(folder, names):
    """A study of one network that knows nothing."""
    labels = np.array([float(int(Path(name).stem) % 2) for name in names])
    columns = {"label": labels, "p_smooth": np.full(len(names), 0.5), "p_striped": np.full(len(names), 0.5)}
    groups = np.array([f"p{name}" for name in names])
    network = study.Network("a network", "", 0, 0, np.array(names)[::-1], groups[::-1],
                            {name: value[::-1] for name, value in columns.items()})  # fmt: skip
    about = {"state": "run", "leakage": False, "paper": {}}
    study.keep([network], {"title": "x", "methods": {"a network": about}, "reference": "a network"}, folder)


def run(monkeypatch, folder):
    monkeypatch.setattr(sys, "argv", ["x", f"--root={folder / 'list.csv'}", f"--study={folder}"])
    hand_made_features.main()


@pytest.mark.slow
def test_the_row_is_added_once_and_its_cases_are_those_of_the_study(tmp_path, monkeypatch, capsys):
    names = images(tmp_path)
    kept(tmp_path, names)
    run(monkeypatch, tmp_path)
    run(monkeypatch, tmp_path)
    networks, facts = study.kept(tmp_path)
    assert [n.method for n in networks] == ["a network", hand_made_features.NAME]
    assert (networks[0].images == networks[1].images).all()
    assert (networks[0].columns["label"] == networks[1].columns["label"]).all()
    measured = {row["method"]: row["auroc"]["mean"] for row in study.rows(networks, facts)}
    assert measured["a network"] == 50 and measured[hand_made_features.NAME] > 95
    assert "12 test images" in capsys.readouterr().out


def test_another_set_is_refused(tmp_path, monkeypatch):
    kept(tmp_path, [*images(tmp_path), "99.png"])
    with pytest.raises(UserError, match=r"no test image '99\.png'"):
        run(monkeypatch, tmp_path)


def test_kept_cases_name_no_place_of_a_machine():
    """Absolute paths would name folders of whoever ran the study, and match no other row."""
    for path in sorted((Path(hand_made_features.__file__).parent / "results" / "studies").glob("*/cases.csv.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            names = {row["image"] for row in csv.DictReader(file)}
        assert names and not any(name.startswith(("/", "~")) or ":" in name for name in names), path.parent.name
