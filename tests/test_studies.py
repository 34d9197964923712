"""Studies: what is planned, what is run, and the table that is made of it."""

import csv
import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

from deblur_mae_jax import config as fields
from deblur_mae_jax import network as networks
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.pretrained import inherit
from deblur_mae_jax.reports import ensembles

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import study  # noqa: E402

from deblur_mae_jax.reports import study as table  # noqa: E402
from studies import results  # noqa: E402
from studies import runs as study_runs  # noqa: E402


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.py")), ids=lambda p: p.stem)
def test_every_study_can_be_planned(path, tmp_path):
    if path.stem in ("__init__", "common", "results", "runs", "ultrabench"):
        pytest.skip("not a study, or one that needs a network")
    for preset in ("cpu", "full"):
        arguments = study.parse([str(path), f"--output={tmp_path}", f"--preset={preset}", "--folds=0,1"])
        runs = study_runs.plan(study.load(path, preset), arguments)
        folders = [run.folder for run in runs]
        assert len(set(folders)) == len(folders)
        fine = [run for run in runs if run.kind == "finetune"]
        made = {str(run.folder) for run in runs if run.kind == "pretrain"}
        assert all(run.overrides.get("init_from", next(iter(made), "")) in made for run in fine)
        for run in runs:
            if run.kind == "pretrain":  # raises `UserError` if its settings do not fit each other
                networks.build(inherit.resolve(fields.copy(tiny.load(run.config), run.overrides))[0])


def planned(tmp_path, name, *options):
    """The runs of a study of this repository."""
    path = ROOT / "studies" / f"{name}.py"
    arguments = study.parse([str(path), f"--output={tmp_path}", *options])
    return study_runs.plan(study.load(path, arguments.preset), arguments)


def test_every_pre_training_seed_has_its_own_fine_tunings(tmp_path):
    runs = planned(tmp_path, "methods", "--pretrain_seeds=0,5", "--seeds=0,1,2")
    before = {run.folder: run.training for run in runs if run.kind == "pretrain"}
    assert sorted(set(before.values())) == [0, 5]
    fine = [run for run in runs if run.kind == "finetune" and run.training != ""]
    assert {before[Path(run.overrides["init_from"])] == run.training for run in fine} == {True}
    once = planned(tmp_path, "methods", "--seeds=0,1,2")
    # The runs of the first seed are those of a study without more seeds.
    assert {run.folder for run in once} < {run.folder for run in runs}


def test_images_of_the_user_replace_phantoms(tmp_path):
    (tmp_path / "list.csv").write_text("path,label\n")
    options = [f"--finetune_root={tmp_path / 'list.csv'}", f"--pretrain_root={tmp_path}"]
    for run in planned(tmp_path, "methods", *options):
        assert run.overrides.get("data.name") == ("manifest" if run.kind == "finetune" else None)
        assert not any(name in run.overrides for name in ("data.fraction", "data.phantom_seed", "data.num_images"))
    assert all(run.overrides["data.name"] == "phantoms" for run in planned(tmp_path, "methods"))


def test_official_folds_are_lists_with_the_fold_in_their_names(tmp_path):
    for fold in (1, 4, 5):
        (tmp_path / f"folds_{fold}.csv").write_text("path,label,split\n")
    options = [f"--finetune_root={tmp_path}/folds_{{fold}}.csv", "--seeds=0", "--only=MAE"]
    runs = planned(tmp_path, "methods", *options, "--folds=1,4")
    fine = [run for run in runs if run.kind == "finetune"]
    assert [Path(run.overrides["data.root"]).name for run in fine] == ["folds_1.csv", "folds_4.csv"]
    # The fifth list has the validation images of fold 0; without lists there is no such fold.
    assert [run.overrides["data.fold"] for run in planned(tmp_path, "methods", *options, "--folds=4,5")[1:]] == [4, 0]
    with pytest.raises(UserError, match=r"--folds: 5 is not below config\.data\.folds=5"):
        planned(tmp_path, "methods", f"--finetune_root={tmp_path}/folds_1.csv", "--folds=5")
    # One method with one setting: a later command may add a fold.
    assert results.settings_of(fine) == results.settings_of(fine[:1])
    with pytest.raises(UserError, match=r"folds_2\.csv' does not exist"):
        planned(tmp_path, "methods", *options, "--folds=1,2")
    # A list for each fold to pre-train on: every fine-tuning starts from the pre-training of its own fold.
    own = f"--pretrain_root={tmp_path}/folds_{{fold}}.csv"
    runs = planned(tmp_path, "methods", *options, own, "--folds=1,4", "--pretrain_seeds=0,1")
    images = {run.folder: Path(run.overrides["data.root"]).name for run in runs if run.kind == "pretrain"}
    assert sorted(images.values()) == ["folds_1.csv"] * 2 + ["folds_4.csv"] * 2
    fine = [run for run in runs if run.kind == "finetune"]
    assert all(images[Path(run.overrides["init_from"])] == f"folds_{run.fold}.csv" for run in fine) and len(fine) == 4
    assert {run.training for run in fine} == {0, 1}


def test_addresses_and_every_folder_of_a_root_reach_the_runs(tmp_path, monkeypatch):
    """Runs start in the repository, so relative folders have to be made absolute, and addresses must not be."""
    (tmp_path / "ct").mkdir()
    (tmp_path / "mr").mkdir()
    monkeypatch.chdir(tmp_path)
    before = [run for run in planned(tmp_path, "dae", "--pretrain_root=ct=ct;mr=mr") if run.kind == "pretrain"]
    assert {run.overrides["data.root"] for run in before} == {f"{tmp_path}/ct=ct;{tmp_path}/mr=mr"}
    with pytest.raises(UserError, match="--pretrain_root: 'pet' does not exist"):
        planned(tmp_path, "dae", "--pretrain_root=ct=ct;pet=mr")
    runs = planned(tmp_path, "methods", "--pretrain_root=gs://bucket/packed", "--set_pretrain", "data.name=packed")
    assert {run.overrides["data.root"] for run in runs if run.kind == "pretrain"} == {"gs://bucket/packed"}
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "classify_mmotu.csv").write_text("path,label,split\n")
    runs = planned(tmp_path, "ultrabench", "--init_from=gs://bucket/run", "--finetune_root=lists")
    assert {run.overrides["init_from"] for run in runs} == {"gs://bucket/run"}
    assert {run.overrides["data.root"] for run in runs} == {f"{tmp_path}/lists/classify_mmotu.csv"}


@pytest.mark.parametrize("name", ["methods", "paper_tables", "label_share", "open_questions"])
def test_runs_on_images_of_the_user_have_a_warm_up_shorter_than_themselves(tmp_path, name):
    from deblur_mae_jax.config import copy
    from deblur_mae_jax.training import schedule

    for run in planned(tmp_path, name, f"--finetune_root={tmp_path}", f"--pretrain_root={tmp_path}", "--seeds=0"):
        length = schedule.lengths(copy(tiny.load(run.config), run.overrides).optim, 50.0)
        assert 0 <= length.warmup_epochs < length.epochs


def kept_study(folder, shift=0.3):
    """Two methods with two pre-training and two fine-tuning seeds each, and a quoted one, on 60 patients."""
    rng = np.random.default_rng(0)
    patients = np.array([f"p{i // 2}" for i in range(120)])
    labels = (np.arange(120) // 2 % 2).astype(float)
    hard = rng.normal(size=120)
    networks = []
    for method, gain in (("plain", 0.0), ("better, sharper", shift)):
        for training, seed in itertools.product("01", (0, 1)):
            score = (1 + gain) * labels + 0.5 * hard + 0.1 * rng.normal(size=120)
            p = 1 / (1 + np.exp(-4 * (score - 0.5)))
            columns = {"label": labels, "p_benign": 1 - p, "p_malignant": p}
            images = np.array([f"image {i}" for i in range(120)])
            networks.append(table.Network(method, training, seed, 0, images, patients, columns))
    about = {"state": "run", "leakage": False, "paper": {"auroc": 95.5}}
    quoted = {"state": "quoted", "leakage": False, "paper": {"accuracy": 87.44}}
    facts = {"title": "Two methods", "reference": "plain", "quotes": ["F1 on LEPset"], "phantoms": True,
             "methods": {"plain": about, "better, sharper": about, "of others": quoted}}  # fmt: skip
    table.keep(networks, facts, folder)
    return networks, facts


@pytest.mark.slow
def test_the_table_of_a_study_can_be_written_again_from_its_cases(tmp_path):
    networks, facts = kept_study(tmp_path)
    read, same = table.kept(tmp_path)
    classes = {name: ["benign", "malignant"] for name in ("plain", "better, sharper")}
    assert same == facts | {"classes": classes, "units": {}} and len(read) == len(networks)
    for a, b in zip(networks, read, strict=True):
        assert (a.method, a.training, a.seed, a.fold) == (b.method, b.training, b.seed, b.fold)
        assert (a.patients == b.patients).all()
        np.testing.assert_allclose(b.columns["p_malignant"], a.columns["p_malignant"], rtol=1e-5)
    done = subprocess.run([sys.executable, "scripts/study.py", f"--rebuild={tmp_path}"], cwd=ROOT, capture_output=True,
                          text=True, timeout=100)  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "table.md").read_text()
    assert "Difference from plain" in text and "60 test patients" in text and "Simulated phantoms" in text
    assert "| of others | quoted | 0 |" in text
    first = table.rows(read, facts)[1]
    one = [n.measure("auroc", np.ones((1, 120)))[0] for n in read if n.method == "better, sharper"]
    assert first["auroc"]["mean"] == pytest.approx(100 * np.mean(one))
    apart = first["auroc_difference"]
    assert apart["low"] < apart["value"] < apart["high"] and apart["value"] > 0
    assert (tmp_path / "ranks.png").read_bytes().startswith(b"\x89PNG")
    before = (tmp_path / "cases.csv.gz").read_bytes()
    table.keep(networks, facts, tmp_path)
    assert (tmp_path / "cases.csv.gz").read_bytes() == before  # no time of writing inside


def test_an_ensemble_is_the_mean_of_the_networks_of_a_method(tmp_path):
    networks, _ = kept_study(tmp_path)
    flipped = networks[0]  # its cases in another order
    for name, values in flipped.columns.items():
        flipped.columns[name] = values[::-1]
    flipped.images, flipped.groups = flipped.images[::-1], flipped.groups[::-1]
    facts = {"methods": {name: {"state": "run", "paper": {"auroc": 95.5}} for name in ("plain", "better, sharper")}}
    more, judged = ensembles.add(networks, facts | {"ensembles": ["plain"]})
    assert list(judged["methods"]) == ["plain", "plain, ensemble of 4", "better, sharper"]
    assert not judged["methods"]["plain, ensemble of 4"]["paper"]
    (added,) = more[len(networks) :]
    own = [dict(zip(n.images, n.columns["p_malignant"], strict=True)) for n in networks if n.method == "plain"]
    expected = [np.mean([each[image] for each in own]) for image in added.images]
    np.testing.assert_allclose(added.columns["p_malignant"], expected)
    assert ensembles.add(networks, facts) == (networks, facts)
    single = dataclasses.replace(networks[0], fold=1)  # a fold that fewer networks were tested on
    _, judged = ensembles.add([*networks, single], facts | {"ensembles": ["plain"]})
    assert "plain, ensemble of 1 to 4" in judged["methods"]


def test_networks_of_other_images_make_no_ensemble(tmp_path):
    networks, facts = kept_study(tmp_path)
    networks[1].images = np.array([f"other {i}" for i in range(120)])
    with pytest.raises(UserError, match=r"no ensemble of plain: .image 0. .* seed 1"):
        ensembles.add(networks, facts | {"ensembles": ["plain"]})


def test_two_methods_are_averaged_with_the_same_weight(tmp_path):
    networks, facts = kept_study(tmp_path)
    one = [n for n in networks if n.method == "plain"][:1]
    networks = one + [n for n in networks if n.method == "better, sharper"]
    facts = facts | {"averaged": [["plain", "better, sharper"]]}
    found = table.rows(*ensembles.add(networks, facts))
    assert found[-1]["method"] == "plain and better, sharper, averaged" and found[-1]["runs"] == 1
    judged = ensembles.add(networks, facts)[0][-1]
    sharper = np.mean([n.columns["p_malignant"] for n in networks[1:]], axis=0)
    np.testing.assert_allclose(judged.columns["p_malignant"], (one[0].columns["p_malignant"] + sharper) / 2)
    table.keep(networks, facts, tmp_path)
    assert results.joined(tmp_path, networks, facts)[1]["averaged"] == [["plain", "better, sharper"]]


@pytest.mark.slow
def test_a_row_of_an_ensemble_can_be_the_reference(tmp_path):
    kept_study(tmp_path)
    row = "better, sharper, ensemble of 4"
    study.rebuild(study.parse([f"--rebuild={tmp_path}", "--ensembles", f"--reference={row}"]))
    table = (tmp_path / "table.md").read_text()
    assert f"Difference from {row}" in table and "| plain |" in table.partition("Difference")[2]
    with pytest.raises(UserError, match=r"--reference: unknown name 'none'.* ensemble of"):
        study.rebuild(study.parse([f"--rebuild={tmp_path}", "--reference=none"]))


@pytest.mark.parametrize(
    ("names", "message"), [("plain", "must name two methods"), ("plain;none", "--average: unknown name 'none'")]
)
def test_a_wrong_average_is_named(tmp_path, names, message):
    kept_study(tmp_path)
    with pytest.raises(UserError, match=message):
        study.rebuild(study.parse([f"--rebuild={tmp_path}", f"--average={names}"]))
    assert not table.kept(tmp_path)[1].get("averaged")  # what cannot be written is not kept


def test_a_later_command_adds_to_the_ensembles(tmp_path):
    networks, facts = kept_study(tmp_path)
    table.keep(networks, facts | {"ensembles": ["plain"]}, tmp_path)
    _, joined = results.joined(tmp_path, networks, facts | {"ensembles": ["better, sharper"]})
    assert joined["ensembles"] == ["plain", "better, sharper"]


@pytest.mark.slow
def test_ensembles_stay_in_the_table(tmp_path):
    kept_study(tmp_path)
    for flags in (["--ensembles"], []):
        command = [sys.executable, "scripts/study.py", f"--rebuild={tmp_path}", *flags]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        assert "plain, ensemble of 4" in (tmp_path / "table.md").read_text()


def test_methods_may_have_other_classes_and_another_order(tmp_path):
    rng = np.random.default_rng(1)
    images = np.array([f"image {i}" for i in range(60)])
    labels = (np.arange(60) % 2).astype(float)
    networks, about = [], {"state": "run", "leakage": False, "paper": {}}
    for method, names in (("one", ["b", "a, too"]), ("other", ["a, too", "b"])):
        p = np.clip(labels * 0.6 + 0.4 * rng.random(60), 0, 1)
        columns = {"label": labels, f"p_{names[0]}": 1 - p, f"p_{names[1]}": p}
        networks.append(table.Network(method, "", 0, 0, images, np.array([""] * 60), columns))
    table.keep(networks, {"title": "x", "methods": {"one": about, "other": about}}, tmp_path)
    for before, after in zip(networks, table.kept(tmp_path)[0], strict=True):
        assert before.classes == after.classes
        for measure in before.measures:
            want, got = (n.measure(measure, np.ones((1, 60)))[0] for n in (before, after))
            assert got == pytest.approx(want) and (measure == "accuracy" or got > 0.5)


def test_a_distance_that_is_not_defined_is_counted(tmp_path):
    images, dice = np.array([f"image {i}" for i in range(20)]), np.linspace(0.5, 0.9, 20)
    hd95 = np.where(np.arange(20) < 3, np.nan, 4.0)
    columns = {"dice": dice, "hd95": hd95, "surface_distance": np.where(np.isnan(hd95), 1.0, hd95)}
    network = table.Network("one", "", 0, 0, images, np.array([""] * 20), columns)
    about = {"state": "run", "leakage": False, "paper": {}}
    text = table.write([network], {"title": "x", "methods": {"one": about}}, tmp_path)
    assert "one: hd95 is not defined in 3 of 20 cases" in text and "surface_distance is not" not in text
    missed = dataclasses.replace(network, columns=columns | {"missed": np.where(np.arange(20) < 3, 2.0, 0.0)})
    text = table.write([missed], {"title": "x", "methods": {"one": about}}, tmp_path)
    assert "6 structures in 3 cases, over all runs, were not found" in text


@pytest.mark.slow
def test_a_training_without_a_fold_is_left_out_and_other_patients_are_not_compared(tmp_path):
    networks, facts = kept_study(tmp_path)
    half = [n for n in networks if n.training == "0"]
    second = [
        table.Network(n.method, n.training, n.seed, 1, n.images, np.array([f"other {g}" for g in n.groups]), n.columns)
        for n in half
    ]
    found = table.rows(networks + second, facts)
    assert [row["left_out"] for row in found] == [2, 2, 0] and found[0]["runs"] == 4
    text = table.write(networks + second, facts, tmp_path)
    assert "There are 2 folds. The test patients of one fold" in text and "multiplied by 2/1" in text
    assert "folds train" not in table.write(networks, facts, tmp_path)
    only = [n for n in second if n.method == "plain"] + half
    found = table.rows(only, facts)
    assert "different patients" in found[1]["not_compared"]
    assert "is not compared" in table.write(only, facts, tmp_path)


def test_a_method_whose_images_changed_between_two_runs_does_not_cost_the_others_their_rows(tmp_path):
    networks, facts = kept_study(tmp_path)
    last = networks[-1]
    fewer = {name: values[2:] for name, values in last.columns.items()}
    networks[-1] = dataclasses.replace(last, images=last.images[2:], groups=last.groups[2:], columns=fewer)
    plain, better, _ = table.rows(networks, facts)
    assert "auroc" in plain and "auroc" not in better and "overlap (59, 60)" in better["not_judged"]
    assert "better, sharper has no measures: " in table.write(networks, facts, tmp_path)


@pytest.mark.slow
def test_methods_of_the_same_pretrainings_are_compared_within_each(tmp_path):
    networks, facts = kept_study(tmp_path)
    networks = [dataclasses.replace(n, training=str(n.seed)) for n in networks]
    apart = table.rows(networks, facts)[1]["auroc_difference"]
    about = {name: method | {"start": "0123"} for name, method in facts["methods"].items()}
    within = table.rows(networks, facts | {"methods": about})[1]["auroc_difference"]
    assert within["value"] == apart["value"] and within["smallest"] != apart["smallest"]
    assert "compared within each pre-training" in table.write(networks, facts | {"methods": about}, tmp_path)
    assert "within each" not in table.write(networks, facts, tmp_path)


def test_a_second_command_adds_to_what_is_kept(tmp_path):
    networks, facts = kept_study(tmp_path)
    first = [n for n in networks if n.method == "plain"]
    some = facts | {"methods": {"plain": facts["methods"]["plain"]}}
    joined, about = results.joined(tmp_path, first, some)
    assert len(joined) == len(networks) and set(about["methods"]) == {"plain", "better, sharper"}
    apart = {"title": "x", "methods": {"better, sharper": facts["methods"]["better, sharper"]}}
    assert results.joined(tmp_path, networks[4:], apart)[1]["reference"] == "plain"  # which this command did not run
    ordered = results.joined(tmp_path, networks[4:], apart, ["plain", "better, sharper"])[1]["methods"]
    assert next(iter(ordered)) == "plain"
    leaky = facts["methods"]["plain"] | {"leakage": True}
    table.keep(networks, facts | {"methods": facts["methods"] | {"plain": leaky}}, tmp_path)
    _, about = results.joined(tmp_path, first[:1], some)
    assert about["methods"]["plain"]["leakage"]  # of the runs that are kept


def test_runs_with_other_settings_are_not_added(tmp_path):
    networks, facts = kept_study(tmp_path)
    runs = planned(tmp_path, "methods", "--seeds=0", "--only=MAE;D2MAE")
    settings = results.settings_of(runs)
    others = results.settings_of(planned(tmp_path, "methods", "--seeds=1,2", "--pretrain_seeds=3"))
    assert settings.items() <= others.items() and len({own["settings"] for own in others.values()}) == len(others)
    about = {name: facts["methods"]["plain"] | own for name, own in settings.items()}
    table.keep(networks, facts | {"methods": facts["methods"] | about}, tmp_path)
    results.require_same_settings(tmp_path, planned(tmp_path, "methods", "--seeds=3", "--pretrain_seeds=1"))
    for option in ("--set=optim.epochs=3.0", "--set_pretrain=optim.steps=7"):
        with pytest.raises(UserError, match="keeps runs of MAE, D2MAE with other settings"):
            results.require_same_settings(tmp_path, planned(tmp_path, "methods", option))
    # Rows that share a pre-training have its settings, whichever row trained it.
    shared = results.settings_of(planned(tmp_path, "d2mae_search", "--only=none;random"))
    alone = results.settings_of(planned(tmp_path, "d2mae_search", "--only=random"))
    assert (
        shared["random"] == alone["random"] != shared["none"] and shared["random"]["start"] == shared["none"]["start"]
    )
    assert "start" not in others["from scratch"] and others["MAE"]["start"] != others["D2MAE"]["start"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--folds=0-4"], "--folds=0-4 must be whole numbers"), (["--reference=MEA"], "Did you mean 'MAE'"),
        (["--init_from=x"], "has its own pre-trainings"), (["--finetune_root=nowhere"], "'nowhere' does not exist"),
        (["--set_pretrain=a"], "--set_pretrain: 'a' must be NAME=VALUE"),
    ],
)  # fmt: skip
def test_a_wrong_option_of_a_study_is_named(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        planned(tmp_path, "methods", *options)


def test_methods_on_several_sets_have_each_their_number_of_patients_and_no_order(tmp_path):
    networks, facts = kept_study(tmp_path)
    half = [
        dataclasses.replace(n, method="of others", images=n.images[:40], groups=n.groups[:40],
                            columns={name: values[:40] for name, values in n.columns.items()})
        for n in networks if n.method == "plain"
    ]  # fmt: skip
    facts = facts | {"reference": ""}
    text = table.write(networks + half, facts, tmp_path)
    lines = [line.split(" | ") for line in text.splitlines()]
    assert lines[0][3] == "test patients" and [line[3] for line in lines[2:5]] == ["60", "60", "20"]
    assert "over the test patients of each row (images" in text and not (tmp_path / "ranks.png").exists()


def test_a_folder_without_a_study_is_refused(tmp_path):
    done = subprocess.run([sys.executable, "scripts/study.py", f"--rebuild={tmp_path}"], cwd=ROOT, capture_output=True,
                          text=True, timeout=100)  # fmt: skip
    assert done.returncode == 2 and "holds no study" in done.stderr


def test_no_fine_tuning_starts_from_a_pre_training_that_failed(tmp_path, monkeypatch, capsys):
    folder, fine = tmp_path / "pretrain", tmp_path / "fine"
    runs = [
        study_runs.Run("pretrain", "MAE", 0, 0, 0, folder, "mae_thyroid", {}),
        study_runs.Run("finetune", "MAE", 0, 0, 0, fine, "finetune", {"init_from": str(folder)}),
        study_runs.Run("finetune", "from scratch", "", 0, 0, tmp_path / "scratch", "from_scratch", {}),
    ]
    started = []

    def run(line, stdout, **settings):
        started.append(line)
        stdout.write("error: the run hangs\n  File main.py, line 6\n")
        return subprocess.CompletedProcess(line, int("mae_thyroid" in line[2]))

    monkeypatch.setattr(subprocess, "run", run)
    assert study_runs.execute(runs) == ["MAE", "MAE"] and len(started) == 2 and not fine.exists()
    said = capsys.readouterr().out
    assert "failed: error: the run hangs\n" in said
    assert f"left out: its pre-training in {folder} is not finished" in said


@pytest.mark.slow
def test_a_study_runs_what_is_missing_and_writes_one_table(tmp_path):
    small = [f"{k}={v}" for k, v in tiny.SHRINK.items()]
    pretrain = [f"--set_pretrain={x}" for x in small]
    fine = {k: v for k, v in (tiny.SHRINK | tiny.LABELS).items()
            if not k.startswith(("image_size", "model.", "report.num", "init_from", "optim.steps"))}  # fmt: skip
    arguments = [sys.executable, str(ROOT / "scripts" / "study.py"), str(ROOT / "studies" / "d2mae_search.py"),
                 f"--output={tmp_path}", "--only=none;random", "--seeds=0,1", *pretrain,
                 *(f"--set={k}={v}" for k, v in fine.items()), "--set=optim.epochs=1.0",
                 "--set=optim.warmup_epochs=0.2"]  # fmt: skip
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    with open(tmp_path / "table.csv") as file:
        rows = list(csv.DictReader(file))
    assert [r["method"] for r in rows] == ["none", "random"] and {r["runs"] for r in rows} == {"2"}
    assert rows[0]["f1_macro_paper"] == "87.95"
    numbers = [json.loads((next(tmp_path.glob(f"none_fold0_seed{s}_*")) / "metrics.json").read_text()) for s in (0, 1)]
    values = [n["splits"]["test"]["per_image"]["accuracy"]["value"] for n in numbers]
    assert float(rows[0]["accuracy_mean"]) == pytest.approx(100 * np.mean(values))
    again = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert again.stdout.count("done before") == 5
    assert "test patients (images" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "cases.csv.gz").exists()
