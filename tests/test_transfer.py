"""From a pre-trained network to a judged classifier, end to end on phantoms."""

import csv
import functools
import json
import shutil
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from deblur_mae_jax import (
    blur_search,
    experiment,
    lookup,
    predict_run,
    pretrained,
    run,
    train,
    transfer,
)
from deblur_mae_jax.data import splits
from deblur_mae_jax.data.source import Source
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.evaluators import predictions, summary

ROOT = Path(__file__).parent.parent
TRANSFER = sorted(
    p.stem
    for p in (ROOT / "configs").glob("*.py")
    if p.stem not in ("__init__", "common", "transfer")
    and "from configs import" in p.read_text()
    and any(kind in p.stem for kind in ("finetune", "probe", "scratch", "search"))
)


def new_folder(name):
    return Path(tempfile.mkdtemp()) / name


@functools.cache
def pretraining(name="quickstart"):
    """A tiny pre-training run; `d2mae` has a blur token, `mae` has not."""
    folder = new_folder(name)
    train.train_and_evaluate(tiny.config(name, optim__steps=4), folder)
    return folder


@functools.cache
def classifier():
    """A D2MAE classifier, fine-tuned for two epochs with everything switched on."""
    folder = new_folder("classifier")
    result = train.train_and_evaluate(tiny.config("finetune_folder", **fine()), folder)
    return folder, result


def fine(**overrides):
    return {"init_from": str(pretraining()), "data__phantom_seed": 1} | overrides


def go(folder, name="finetune_folder", **overrides):
    return run.run(tiny.config(name, **fine(**overrides)), folder)


def lines(folder, key):
    found = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[key] for line in found if key in line}


def test_what_a_finished_classifier_leaves():
    folder, result = classifier()
    assert result.finished and np.isfinite(list(lines(folder, "loss").values())).all()
    for name in ("predictions.csv", "metrics.json", "leakage.csv", "blur_search.csv",
                 "report/index.html", "report/figures.png", "pretrained/weights.safetensors"):  # fmt: skip
        assert (folder / name).stat().st_size > 0, name
    page = (folder / "report" / "index.html").read_text()
    assert 'src="http' not in page and "href=" not in page  # opens offline
    for part in (
        "Balanced accuracy",
        "Confusion".lower(),
        "Most confident mistakes",
        "Leakage",
        "none found",
    ):
        assert part in page, part
    record = json.loads((folder / "dataset.json").read_text())
    assert record["class_names"] == ["benign", "malignant"]


def test_every_number_follows_from_the_table():
    folder, _ = classifier()
    numbers = json.loads((folder / "metrics.json").read_text())
    again = summary.summarise(predictions.read(folder / "predictions.csv"), 20, 0)
    for key, value in again.items():
        assert numbers[key] == json.loads(json.dumps(value)), key
    assert numbers["judged_on"] == "test" and numbers["temperature"] > 0
    table = predictions.read(folder / "predictions.csv")
    assert set(table.split) == {"val", "test"} and (table.level >= 1).all()
    patients = {s: set(part.patients) for s, part in table.of_split.items()}
    assert not patients["val"] & patients["test"]


def test_the_degradation_and_the_sizes_are_inherited_and_said():
    folder, _ = classifier()
    config = pretrained.read_config(folder)
    before = pretrained.read_config(pretraining())
    for name in transfer.INHERITED:
        assert transfer.get(config, name) == transfer.get(before, name), name
    _, _, said = transfer.resolve(tiny.config("finetune_folder", **fine()))
    assert "task.degrade=blur.gaussian_levels" in said[0] and len(said) == 1
    _, _, said = transfer.resolve(tiny.config("finetune_folder", **fine(task__degrade="none")))
    never, _, _ = transfer.resolve(tiny.config("finetune_folder", **fine(data__max_side=0)))
    assert never.data.max_side == 0 and never.data.bits16 == "minmax"
    assert said[1].startswith(
        "overridden: task.degrade=none (the checkpoint has blur.gaussian_levels"
    )


def test_prediction_of_a_folder_gives_what_the_run_gave(tmp_path):
    from PIL import Image

    from deblur_mae_jax.data.phantoms import Phantoms

    folder, _ = classifier()
    table = predictions.read(folder / "predictions.csv")
    test = table.where(table.split == "test")
    phantoms = Phantoms(45, 1, 40)
    images = tmp_path / "images"
    images.mkdir()
    for name in test.names:
        pixels = phantoms.read(int(name.split("_")[1]))[:, :, 0]
        Image.fromarray(pixels).save(images / f"{name}.png")
    (images / "broken.png").write_bytes(b"junk")
    moved = tmp_path / "moved"  # the classifier needs nothing outside its own folder
    shutil.copytree(folder, moved)
    path = predict_run.run(moved, str(images), str(tmp_path / "out.csv"))
    new = predictions.read(path)
    assert [n.removesuffix(".png") for n in new.names] == sorted(test.names)
    at = np.argsort(test.names)
    np.testing.assert_allclose(new.probabilities, test.probabilities[at], atol=1e-5)
    np.testing.assert_array_equal(new.level, test.level[at])
    with open(tmp_path / "out_skipped.csv") as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["broken.png"]
    with pytest.raises(UserError, match="is no classifier"):
        predict_run.run(pretraining(), str(tmp_path))
    with pytest.raises(UserError, match=r"must end in \.csv"):
        predict_run.run(moved, str(tmp_path), str(tmp_path / "out.txt"))


def test_a_resumed_classifier_ends_with_the_same_weights_and_predictions(tmp_path):
    folder, whole = classifier()
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    steps = sorted(int(p.name[5:]) for p in (copy / "checkpoints").glob("step_*"))
    assert len(steps) == 2
    shutil.rmtree(copy / "checkpoints" / f"step_{steps[-1]}")
    for best in copy.glob("best_*"):  # as after a kill: later weights may be there, or none
        shutil.rmtree(best)
    (copy / "result.json").unlink()
    (copy / "predictions.csv").unlink()
    notes = json.loads(
        (copy / "checkpoints" / f"step_{steps[0]}" / "notes" / "metadata").read_text()
    )
    if notes["best"] is not None:  # the best so far was kept when the checkpoint was written
        shutil.copytree(
            folder / f"best_{notes['best']['step']}", copy / f"best_{notes['best']['step']}"
        )
    again = go(copy)
    assert again.params_fingerprint == whole.params_fingerprint
    assert (copy / "predictions.csv").read_text() == (folder / "predictions.csv").read_text()


def test_four_devices_give_the_losses_of_one(tmp_path):
    """Also for mixing, whose partners lie on other devices."""
    import os
    import subprocess

    folder, _ = classifier()
    config = tiny.config("finetune_folder", **fine())
    flags = [f"--config.{k}={v}" for k, v in tiny.changed("finetune_folder", **fine()).items()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT),
                   "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), "--config=configs/finetune_folder.py", *flags,
         f"--workdir={tmp_path}"],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, four = lines(folder, "loss"), lines(tmp_path, "loss")
    assert len(one) == len(four) >= 4
    np.testing.assert_allclose(list(one.values()), list(four.values()), rtol=2e-5)
    ours, theirs = (predictions.read(f / "predictions.csv") for f in (folder, tmp_path))
    np.testing.assert_allclose(ours.probabilities, theirs.probabilities, atol=1e-4)
    assert config.optim.batch_size == 8


@pytest.mark.slow
def test_two_processes_fine_tune_like_one(tmp_path):
    """The copy of the source, the search, and the evaluation are shared work."""
    import os
    import socket
    import subprocess

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    values = tiny.changed("finetune_folder", **fine(search__cache=str(tmp_path / "cache")))
    flags = [f"--config.{k}={v}" for k, v in values.items()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT),
                   "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "main.py"), "--config=configs/finetune_folder.py", *flags,
             f"--workdir={tmp_path / 'run'}", f"--coordinator=localhost:{port}", "--num_processes=2",
             f"--process_id={number}"],
            env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=280)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    folder, _ = classifier()
    one, two = lines(folder, "loss"), lines(tmp_path / "run", "loss")
    np.testing.assert_allclose(list(one.values()), list(two.values()), rtol=2e-5)
    ours, theirs = (predictions.read(f / "predictions.csv") for f in (folder, tmp_path / "run"))
    np.testing.assert_allclose(ours.probabilities, theirs.probabilities, atol=1e-4)


@pytest.mark.parametrize("setting", ["online(2)", "oracle"])
def test_settings_that_search_in_the_step(tmp_path, setting):
    result = go(tmp_path, search__setting=setting, optim__epochs=1.0, report__audit="identical")
    assert result.finished
    page = (tmp_path / "report" / "index.html").read_text()
    assert ("upper bound" in page) == (setting == "oracle")
    table = predictions.read(tmp_path / "predictions.csv")
    assert (table.level >= 1).all()


def test_levels_of_the_settings_that_search_nothing():
    degradation = lookup.degradation("blur.gaussian_levels(max_sigma=1.1, step=0.1)")

    def levels(text, count=400):
        setting = blur_search.parse(text, degradation)
        return blur_search.assign(setting, degradation, count, 3, None)[0]

    assert set(levels("none")) == {1}
    assert set(levels("fixed(0.5)")) == {5} == set(levels("fixed(sigma=0.5)"))
    assert set(levels("random")) == set(range(1, 12))
    np.testing.assert_array_equal(levels("random"), levels("random"))
    assert levels("oracle") is None and levels("online(2)") is None


@pytest.mark.parametrize(
    ("step", "want"),
    [(1, list(range(1, 12))), (2, [1, 3, 5, 7, 9, 11]), (3, [1, 4, 7, 10]), (4, [1, 5, 9])],
)
def test_candidates(step, want):
    assert blur_search.candidates(11, step).tolist() == want


def test_the_smallest_level_wins_a_tie():
    table = blur_search.Table(
        ["a", "b"],
        np.array([1, 3, 5]),
        np.array([0.1, 0.3, 0.5]),
        np.array([[2, 1, 1], [1, 1, 1.0]]),
    )
    assert table.best.tolist() == [3, 1] and table.best_sigma.tolist() == [0.3, 0.1]


def test_a_search_is_what_the_network_says_and_is_kept(tmp_path):
    """Against the network applied image by image, level by level; and the second time from the cache."""
    from deblur_mae_jax import masking, sharding
    from deblur_mae_jax.data import index as data_index
    from deblur_mae_jax.data import phantoms as source
    from deblur_mae_jax.inputs import stream_keys

    trained = pretrained.load(pretraining())
    data = trained.config.data
    with data.ignore_type():
        data.num_images, data.phantom_seed = 7, 5
    index = data_index.build(source.source(data, 1))
    mesh = sharding.make_mesh()

    def search(folder=tmp_path, **kwargs):
        return blur_search.search(
            trained, index, mesh, step=5, batch_size=9, cache=str(folder), **kwargs
        )

    table = search()
    assert table.levels.tolist() == [1, 6, 11] and table.searched == 7
    network = trained.network
    apply = jax.jit(
        lambda x, level: network.model.apply({"params": trained.params}, x, None, 0.0, level)[0]
    )
    for position in range(7):
        image = index.source.read(position)
        example = {"image": image[None], "size": np.array([image.shape[:2]], np.int32)}
        for column, level in enumerate(table.levels):
            batch = network.inputs.evaluate(
                example, stream_keys(0, 0, np.arange(1)), level=np.array([level], np.int32)
            )
            pred = apply(batch["inputs"], batch["level"])
            goal = masking.patchify(batch["targets"], network.model.patch_size)
            want = float(np.square(pred - goal).mean())
            np.testing.assert_allclose(table.losses[position, column], want, rtol=1e-4)
    again = search()
    assert again.searched == 0
    np.testing.assert_array_equal(again.losses, table.losses)
    [file] = tmp_path.glob("*.csv")
    rows = [line for line in file.read_text().splitlines() if line]
    assert len(rows) == 7
    file.write_text("\n".join(rows[:3]) + "\n" + rows[3][:40])  # killed in the middle of a line
    resumed = search()
    assert resumed.searched == 4
    np.testing.assert_allclose(resumed.losses, table.losses, rtol=1e-6)
    trained.params["cls_token"] = trained.params["cls_token"] + 1.0
    assert search().searched == 7  # other weights


def test_the_search_run(tmp_path):
    result = go(
        tmp_path / "a", "blur_search", search__cache=str(tmp_path / "cache"), data__num_images=9
    )
    assert result.table.searched == 9 and result.report.exists()
    with open(tmp_path / "a" / "blur_search.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9 and [int(r["level"]) for r in rows] == result.table.best.tolist()
    assert (tmp_path / "a" / "report" / "histogram.png").stat().st_size > 0


@pytest.mark.parametrize("kind", ["knn", "logistic"])
def test_probes_of_frozen_features(tmp_path, kind):
    numbers = go(tmp_path, "knn_probe_folder", probe__kind=kind)
    assert numbers["judged_on"] == "test"
    again = summary.summarise(predictions.read(tmp_path / "predictions.csv"), 20, 0)
    assert again["splits"]["test"] == numbers["splits"]["test"]
    assert (tmp_path / "report" / "index.html").exists()


def test_a_linear_probe_moves_the_head_and_its_statistics_only(tmp_path):
    result = go(tmp_path, "linear_probe_folder", optim__epochs=2.0, optim__warmup_epochs=0.5)
    start = pretrained.load(pretraining()).params
    np.testing.assert_array_equal(
        result.params["blocks_0"]["attn"]["qkv"]["kernel"],
        start["blocks_0"]["attn"]["qkv"]["kernel"],
    )
    assert float(np.abs(result.params["head_0"]["running_mean"]).max()) > 0
    assert float(np.abs(result.params["head_1"]["bias"]).max()) > 0


@pytest.mark.parametrize("name", TRANSFER)
def test_every_transfer_config_can_be_built(name):
    config = tiny.config(name, init_from=str(pretraining()))
    resolved, source, _ = transfer.resolve(config)
    assert source is not None
    if config.task.name == "classify":
        experiment.check(resolved)
        network = experiment.build_network(resolved, 2)
        shapes = jax.eval_shape(network.init)
        taken, new = pretrained.fit(source, shapes, network.model)
        assert set(new) <= {"head", "head_0", "head_1", "fc_norm"} and taken["blocks_0"]


def test_from_scratch_and_best_weights_with_patience(tmp_path):
    config = tiny.config(
        "from_scratch_folder", data__phantom_seed=1, optim__epochs=30.0, select__patience_epochs=2.0,
        optim__base_lr=1e-9, select__metric="accuracy",
    )  # fmt: skip
    result = train.train_and_evaluate(config, tmp_path)
    assert result.finished and result.step < 30  # nothing is learnt, so it stops early
    [best] = tmp_path.glob("best_*")
    assert best.name == f"best_{json.loads((tmp_path / 'metrics.json').read_text())['best_step']}"
    again = train.train_and_evaluate(config, tmp_path)
    assert again.step == result.step and again.params_fingerprint == result.params_fingerprint


def test_the_published_recipe_is_a_config():
    from configs import transfer as defaults

    repo = defaults.get_config("repo")
    assert repo.optim.schedule == "constant" and repo.optim.weight_decay == 0.01
    assert repo.task.mixup == 0 and repo.optim.layer_decay == 1.0
    with pytest.raises(ValueError, match="Choices: paper, repo"):
        defaults.get_config("mine")


def source_of(labels, groups=None, names=None):
    names = [f"{i}.png" for i in range(len(labels or TWO))] if names is None else names
    return Source(names, lambda i: np.zeros((20, 20, 1), np.uint8), labels=labels, groups=groups)


def settings(**overrides):
    return tiny.config("finetune_folder", **{f"data__{k}": v for k, v in overrides.items()}).data


TWO = ["a", "b"] * 15


def use(load, data):
    """What a run does with its labels before it looks at pixels; the lines about missing classes."""
    found = splits.labelled(load, data)
    labels = np.array([found.classes.index(name) for name in found.source.labels])
    positions = {name: np.flatnonzero(found.split == name) for name in splits.SPLITS}
    positions = {name: part for name, part in positions.items() if len(part)}
    splits.require(found.classes, labels, positions, data)
    return splits.missing_classes(found.classes, labels, positions)


@pytest.mark.parametrize(
    ("overrides", "labels", "message"),
    [
        ({}, None, "have no labels: a folder needs one sub-folder per class"),
        ({}, [""] * 30, "have no labels"),
        ({}, ["a"] * 30, "only one class, 'a'"),
        ({}, ["a"] * 27 + ["b"] * 3, "class 'b' has only 3 image"),
        ({"val_split": "none"}, TWO, "val_split=none"),
        ({"positive": "c"}, TWO, "positive='c' must be one of two classes"),
        ({"fold": 7}, TWO, "fold=7"),
        ({"folds": 2}, TWO, "folds=2 must be at least 3"),
    ],
)
def test_bad_labels_are_one_clear_line(overrides, labels, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")) as caught:
        use(lambda split: source_of(labels), settings(**overrides))
    assert "\n" not in str(caught.value)


def test_bad_splits_of_a_manifest_are_one_clear_line():
    parts = {"train": ["a", "b"] * 5, "val": ["a", "b"], "test": ["a", "c"], "bare": []}

    def load(name):
        labels = parts[name]
        return source_of(labels, names=[f"{name} {i}" for i in range(len(labels))])

    named = {"split": "train", "val_split": "val"}
    with pytest.raises(UserError, match="no training image of class 'c'"):
        use(load, settings(**named, test_split="test"))
    with pytest.raises(UserError, match="have no labels"):
        splits.labelled(load, settings(**named, test_split="bare"))
    with pytest.raises(UserError, match="the same image is in two splits"):
        splits.labelled(load, settings(split="train", val_split="train", test_split="none"))
    found = splits.labelled(load, settings(**named, test_split="none"))
    assert set(found.split) == {"train", "val"}
    parts["val"] = ["a", "a"]
    found = splits.labelled(load, settings(**named, test_split="none"))
    assert use(load, settings(**named, test_split="none")) == [
        "the val split has no image of class b; averages over classes leave it out"
    ]


def test_automatic_splits_are_the_named_ones_where_there_are_any():
    parts = {"train": TWO, "val": ["a", "b"], "test": ["b", "a"]}

    def load(name):
        if name not in parts:
            raise UserError(f"config.data.split: '{name}' names no split")
        return source_of(parts[name], names=[f"{name} {i}" for i in range(len(parts[name]))])

    auto = settings(split="train", val_split="auto", test_split="auto")
    found = splits.labelled(load, auto)
    assert found.lines == [] and [str(s) for s in found.split[-4:]] == [
        "val",
        "val",
        "test",
        "test",
    ]
    del parts["test"]
    found = splits.labelled(load, auto)
    assert "test made from split 'train'" in found.lines[0] and "no groups known" in found.lines[0]
    assert (found.split == "val").sum() == 2 and (found.split == "test").sum() == 6
    flat = splits.labelled(
        lambda name: source_of(TWO, ["p"] * 2 + [f"{i}" for i in range(28)]), auto
    )
    assert "val and test made" in flat.lines[0] and "whole patients" in flat.lines[0]
    assert len(flat.split) == 30


def test_the_seed_of_training_does_not_move_the_splits():
    def split(seed, split_seed=0):
        config = tiny.config("finetune_folder", seed=seed, data__split_seed=split_seed)
        return splits.labelled(lambda _: source_of(TWO), config.data).split.tolist()

    assert split(0) == split(1) and split(0) != split(0, 1)


def test_every_class_keeps_an_image_in_a_fraction():
    labels = np.array([0] * 40 + [1] * 3)
    kept = splits.fraction(labels, 0.1, 0)
    assert (labels[kept] == 0).sum() == 4 and (labels[kept] == 1).sum() == 1
    with pytest.raises(UserError, match=r"data\.fraction=0 must be in"):
        splits.fraction(labels, 0, 0)


def test_a_split_that_damage_emptied_is_one_clear_line(tmp_path):
    from PIL import Image

    rows = ["path,label,split"]
    for i in range(12):
        Image.new("L", (20, 20), 20 * i).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,{'ab'[i % 2]},{'val' if i > 9 else 'train'}")
    for i in (10, 11):
        (tmp_path / f"{i}.png").write_bytes(b"junk")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    with pytest.raises(
        UserError, match=r"config\.data\.val_split: the val split has no labelled image"
    ):
        go(tmp_path / "run", init_from="", data__name="manifest", data__root=str(tmp_path / "list.csv"),
           data__split="train", data__val_split="val", data__test_split="none")  # fmt: skip


def test_edited_labels_are_other_data(tmp_path):
    from PIL import Image

    def write(change):
        rows = ["path,label,group"]
        for i in range(20):
            Image.fromarray(np.full((20, 20), 9 * i, np.uint8)).save(tmp_path / f"{i}.png")
            rows.append(f"{i}.png,{'ab'[(i + (i == change)) % 2]},p{i}")
        (tmp_path / "list.csv").write_text("\n".join(rows))

    def again():
        return go(tmp_path / "run", init_from="", data__name="manifest", data__root=str(tmp_path / "list.csv"),
                  optim__epochs=1.0, optim__warmup_epochs=0.1, data__folds=4)  # fmt: skip

    write(None)
    assert again().finished
    write(3)
    with pytest.raises(UserError, match="not those this run started with"):
        again()


def test_an_image_is_never_replaced_by_one_of_another_split(tmp_path):
    from PIL import Image

    from deblur_mae_jax.data import image_folder, index, loader

    for i in range(6):
        Image.fromarray(np.full((20, 20), 9 * i, np.uint8)).save(tmp_path / f"{i}.png")
    data = tiny.config(data__root=str(tmp_path)).data
    usable = index.build(image_folder.source(data, 1))
    (tmp_path / "1.png").write_bytes(b"junk")
    reader = loader.Loader(usable, 1, parts=np.array([0, 0, 1, 1, 0, -1]))
    assert reader.read(1)[0] == 4  # 2 and 3 test


def test_a_level_must_mean_the_same_to_the_network_that_searches(tmp_path):
    other = "blur.gaussian_levels(max_sigma=1.1, step=0.1, kernel='opencv_float')"
    with pytest.raises(UserError, match="has other levels than the network"):
        go(tmp_path, task__degrade=other)
    with pytest.raises(UserError, match="a search uses the degradation that the network"):
        go(tmp_path, "blur_search", task__degrade=other)


def test_a_classifier_from_a_classifier(tmp_path):
    """It has no network to search with, says so, keeps no head of other classes, and predicts."""
    import deblur_mae_jax as dm
    from deblur_mae_jax.data.phantoms import Phantoms

    folder, _ = classifier()
    go(tmp_path, init_from=str(folder), optim__epochs=1.0)
    page = (tmp_path / "report" / "index.html").read_text()
    assert "there is no pre-training network to search with" in page
    assert dm.predict(dm.load(tmp_path), Phantoms(2, 1, 40).read(0)).shape == (1, 2)
    source = pretrained.load(folder)
    network = source.network
    shapes = jax.eval_shape(network.init)
    _, same = pretrained.fit(source, shapes, network.model, True, ["benign", "malignant"])
    _, other = pretrained.fit(source, shapes, network.model, True, ["no", "yes"])
    assert same == [] and other == ["head"]


def test_features_of_a_classifier_follow_its_setting(tmp_path):
    import deblur_mae_jax as dm

    folder, _ = classifier()
    trained = dm.load(folder)
    with trained.info.config.unlocked():
        trained.info.config.search.setting = "fixed(0.6)"
    pictures = [np.random.default_rng(i).integers(0, 255, (40, 40), np.uint8) for i in range(4)]
    np.testing.assert_array_equal(
        dm.encode(trained, pictures), dm.encode(trained, pictures, level=3)
    )


def test_a_cache_that_cannot_be_written_does_not_stop_a_search(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    cache = blur_search.Cache(str(tmp_path / "file" / "inside"), "key", 2)
    cache.add(["a"], np.ones((1, 2), np.float32))
    cache.add(["b"], np.ones((1, 2), np.float32))
    assert set(cache.known) == {"a", "b"} and caplog.text.count("is not kept") == 1


def test_a_probe_gives_classes_that_it_has_not_seen_no_chance():
    from sklearn.linear_model import LogisticRegression

    from deblur_mae_jax import probes

    x, y = np.random.default_rng(0).normal(size=(30, 3)), np.array([0, 2] * 15)
    p = probes.probabilities(LogisticRegression().fit(x, y), x, 4)
    assert p.shape == (30, 4) and (p[:, [1, 3]] == 0).all()
    np.testing.assert_allclose(p.sum(axis=1), 1)


def test_crops_of_a_linear_probe_are_cut_not_drawn_again():
    from deblur_mae_jax import views

    keys = jax.random.split(jax.random.key(0), 500)
    size = np.array([30, 200], np.int32)

    def crop(rejection):
        return jax.vmap(
            lambda k: views.random_resized_crop(k, size, (0.08, 1.0), rejection=rejection)
        )(keys)

    cut, drawn = crop(False), crop(True)
    for box in (cut, drawn):
        assert (box.height <= 30).all() and (box.width <= 200).all() and (box.top >= 0).all()
    assert (cut.height == 30).mean() > (drawn.height == 30).mean() + 0.1


def test_an_empty_test_split_names_the_choices(tmp_path):
    from PIL import Image

    rows = ["path,label,split"]
    for i in range(6):
        Image.new("L", (20, 20), 40 * i).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,{'ab'[i % 2]},{'train' if i < 4 else 'val'}")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    with pytest.raises(UserError) as caught:
        go(tmp_path / "run", init_from="", data__name="manifest", data__root=str(tmp_path / "list.csv"),
           data__split="train", data__val_split="val", data__test_split="test")  # fmt: skip
    text = str(caught.value)
    assert "config.data.test_split: 'test' names no split" in text and "train, val" in text
    assert "'' takes it from config.data.split=train" in text


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"init_from": "/no/such/run"}, ["config.init_from: '/no/such/run' does not exist"]),
        ({"search__setting": "always"}, ["search.setting='always'", "search(step)"]),
        ({"search__setting": "search(0)"}, ["search(0)", "1 to 11"]),
        ({"search__setting": "fixed(0.33)"}, ["no level has sigma 0.33", "0.2, 0.4"]),
        ({"data__balance": "magic"}, ["data.balance", "sampling"]),
        ({"select__metric": "goodness"}, ["select.metric", "f1_macro"]),
        ({"model__pool": "max"}, ["model.pool", "mean"]),
        ({"model__embed_dim": 64}, ["do not fit the network", "other shape", "init_strict=False"]),
        ({"model__depth": 2}, ["missing blocks_1", "init_strict=False"]),
        ({"task__mixup": -1.0}, ["task.mixup=-1.0"]),
        ({"augment__rand_augment": "rand-q1"}, ["augment.rand_augment='rand-q1'"]),
        ({"optim__name": "sgd"}, ["optim.name", "adamw", "lars"]),
    ],
)
def test_bad_transfer_settings_are_one_clear_line(tmp_path, overrides, parts):
    with pytest.raises(UserError) as caught:
        go(tmp_path, **overrides)
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in parts), message


def test_a_network_without_levels_is_not_searched(tmp_path):
    mae = str(pretraining("mae_thyroid"))
    with pytest.raises(UserError, match="needs a degradation with levels"):
        go(tmp_path, init_from=mae, search__setting="search(2)")
    with pytest.raises(UserError, match="needs a degradation with levels"):
        go(tmp_path, "blur_search", init_from=mae)
    with pytest.raises(UserError, match=r"config\.init_from is not set: a blur search needs"):
        go(tmp_path, "blur_search", init_from="")
    config = tiny.config("finetune_folder", **fine(init_from=mae))
    resolved, _, _ = transfer.resolve(config)
    assert resolved.task.degrade == "none" and resolved.model.conditioning == "none"


def test_what_does_not_fit_can_be_left_out():
    source = pretrained.load(pretraining())
    config, _, _ = transfer.resolve(tiny.config("finetune_folder", **fine(model__depth=2)))
    network = experiment.build_network(config, 2)
    taken, new = pretrained.fit(source, jax.eval_shape(network.init), network.model, strict=False)
    assert "blocks_0" in taken and "blocks_1" in new


def test_another_image_size_resizes_the_positions():
    from deblur_mae_jax.models import position

    source = pretrained.load(pretraining())
    config, _, lines = transfer.resolve(tiny.config("finetune_folder", **fine(image_size=24)))
    assert "image_size=24 (the checkpoint has 16)" in lines[1]
    network = experiment.build_network(config, 2)
    taken, _ = pretrained.fit(source, jax.eval_shape(network.init), network.model)
    want = position.resize_table(position.sincos_2d(32, 4, 2)[None], 6, 2)
    np.testing.assert_array_equal(taken["pos_embed"], want)


def test_weights_travel_in_one_file(tmp_path):
    source = pretrained.load(pretraining())
    pretrained.save_file(tmp_path / "weights.safetensors", source)
    again = pretrained.load(tmp_path / "weights.safetensors")
    assert again.weights_hash == source.weights_hash
    assert again.config.task.degrade == source.config.task.degrade
    (tmp_path / "bad.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match="cannot read"):
        pretrained.load(tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match=r"holds no config\.json"):
        pretrained.load(tmp_path)


def test_balance_and_fraction():
    from deblur_mae_jax import supervised
    from deblur_mae_jax.supervised import Supervision

    labels = np.array([0] * 90 + [1] * 10, np.int32)
    known = Supervision(["a", "b"], labels, {"train": np.arange(100)}, [])
    config = tiny.config("finetune_folder", data__balance="loss")
    weights = supervised.class_weights(config, known)
    np.testing.assert_allclose(weights, [100 / 180, 5.0])
    assert np.average(np.array(weights)[labels]) == pytest.approx(1)
    order = supervised.train_order(tiny.config("finetune_folder", data__balance="sampling"), known)
    drawn = np.concatenate([order.batch(step) for step in range(200)])
    assert 0.45 < labels[drawn].mean() < 0.55
    plain = supervised.train_order(tiny.config("finetune_folder"), known)
    assert labels[np.concatenate([plain.batch(s) for s in range(12)])].sum() >= 6
