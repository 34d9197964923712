"""Labels and splits: who trains, who validates, who tests, and what is refused."""

import dataclasses

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import go

from deblur_mae_jax.data import splits
from deblur_mae_jax.data.source import Checked, Skipped, Source, subset
from deblur_mae_jax.errors import UserError


def source_of(labels, groups=None, names=None):
    names = [f"{i}.png" for i in range(len(labels or TWO))] if names is None else names
    return Source(names, lambda i: np.zeros((20, 20, 1), np.uint8), labels=labels, groups=groups)


def settings(**overrides):
    return tiny.config("finetune", **{f"data__{k}": v for k, v in overrides.items()}).data


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
            raise UserError(f"config.data.split: '{name}' is not a split")
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
    assert "test drawn from the images of config.data.split=train" in found.lines[0]
    assert "image by image" in found.lines[0]
    assert (found.split == "val").sum() == 2 and (found.split == "test").sum() == 6
    flat = splits.labelled(lambda name: source_of(TWO, ["p"] * 2 + [f"{i}" for i in range(28)]), auto)
    assert "val and test drawn" in flat.lines[0] and "whole patients" in flat.lines[0]
    assert len(flat.split) == 30


def test_the_seed_of_training_does_not_move_the_splits():
    def split(seed, split_seed=0):
        config = tiny.config("finetune", seed=seed, data__split_seed=split_seed)
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
    with pytest.raises(UserError, match=r"config\.data\.val_split: the val split has no labelled image"):
        go(tmp_path / "run", init_from="", data__name="manifest", data__root=str(tmp_path / "list.csv"),
           data__split="train", data__val_split="val", data__test_split="none")  # fmt: skip


@pytest.mark.slow
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
    reader = loader.Loader(usable, 1, split_numbers=np.array([0, 0, 1, 1, 0, -1]))
    assert reader.read(1)[0] == 4  # 2 and 3 test


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
    assert "config.data.test_split: 'test' is not a split" in text and "train, val" in text
    assert "'' takes it from config.data.split=train" in text


@given(st.integers(0, 2**31), st.sampled_from([0.1, 0.2, 0.5]))
def test_every_value_of_a_mask_keeps_an_image_in_a_fraction(seed, share):
    held = [(0, 1)] * 20 + [(0, 2)] * 2 + [(0, 3), (0, 1, 4)]
    kept = splits.fraction(np.zeros(24, int), share, seed, held)
    assert set().union(*(held[i] for i in kept)) == {0, 1, 2, 3, 4} and len(set(kept)) == len(kept)
    without = splits.fraction(np.zeros(24, int), share, seed)
    assert set(without) <= set(kept) and len(kept) <= len(without) + 3


def test_balance_and_fraction():
    from deblur_mae_jax.training import supervision
    from deblur_mae_jax.training.supervision import Supervision

    labels = np.array([0] * 90 + [1] * 10, np.int32)
    known = Supervision(["a", "b"], labels, {"train": np.arange(100)}, [])
    config = tiny.config("finetune", data__balance="loss")
    weights = supervision.class_weights(config, known)
    np.testing.assert_allclose(weights, [100 / 180, 5.0])
    assert np.average(np.array(weights)[labels]) == pytest.approx(1)
    order = supervision.train_order(tiny.config("finetune", data__balance="sampling"), known)
    drawn = np.concatenate([order.batch(step) for step in range(200)])
    assert 0.45 < labels[drawn].mean() < 0.55
    plain = supervision.train_order(tiny.config("finetune"), known)
    assert labels[np.concatenate([plain.batch(s) for s in range(12)])].sum() >= 6


def test_a_part_and_a_union_of_sources_keep_every_field():
    call = lambda index: index
    values = {
        "names": ["a", "b"], "mask_names": ["m"], "skipped": [Skipped("x", "y")], "notes": ["n"], "unused": {"val": 3},
        "dtype": np.float16, "checked": Checked(np.ones((2, 2), np.int32), ["1", "2"], None, None, None),
    }  # fmt: skip
    lists = ("labels", "groups", "masked", "splits", "keys", "clips", "scanners", "modalities")
    for field in dataclasses.fields(Source):
        if field.name not in values:
            values[field.name] = ["p", "q"] if field.name in lists else call
    whole = Source(**values)
    other = dataclasses.replace(whole, names=["c", "d"])
    for made in (subset(whole, np.array([1])), splits.concatenate([whole, other])):
        for field in dataclasses.fields(Source):
            default = field.default_factory() if callable(field.default_factory) else field.default
            assert getattr(made, field.name) is not None, field.name
            assert not (field.name in ("skipped", "notes", "unused", "dtype") and getattr(made, field.name) == default)


def named(**given):
    """A loader of a source whose splits are named; "train" has classes a and b unless given."""
    every = {"train": TWO, "val": TWO, "test": TWO} | given
    return lambda name: source_of(every[name], names=[f"{name}{i}.png" for i in range(len(every[name]))])


def test_a_fold_that_changes_nothing_is_said():
    data = settings(split="train", val_split="auto", test_split="auto", fold=3)
    lines = splits.labelled(named(), data).lines
    assert lines == ["config.data.fold=3: the data define the test split themselves, so this setting has no effect"]
    assert not splits.labelled(named(), settings(split="train", val_split="auto", test_split="auto")).lines


def test_classes_that_differ_in_leading_zeros_are_said():
    given = {name: ["01", "1", "2"] * 10 for name in ("train", "val", "test")}
    lines = splits.labelled(named(**given), settings(split="train", val_split="val", test_split="test")).lines
    assert lines == ["the classes '01' and '1' differ in leading zeros alone and count as 2 classes"]


def test_a_split_without_labels_is_named():
    data = settings(split="train", val_split="val", test_split="test")
    with pytest.raises(UserError, match=r"config.data.val_split=val: the images of this split have no labels"):
        splits.labelled(named(val=[""] * 30), data)


def test_one_class_says_how_many_images_have_no_label():
    with pytest.raises(UserError, match=r"only one class, 'a', has images; a classifier needs two. 10 images have no"):
        splits.labelled(lambda name: source_of(["a"] * 20 + [""] * 10), settings(val_split="", test_split=""))
