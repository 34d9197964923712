"""The scripts, as a user runs them."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import test_studies
import tiny
from PIL import Image

from deblur_mae_jax.data import audit, dataset, image_folder, index, manifest, splits
from deblur_mae_jax.data.phantoms import Phantoms
from deblur_mae_jax.data.source import subset
from deblur_mae_jax.errors import UserError

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import make_splits  # noqa: E402
import study  # noqa: E402
import tn3k_folds  # noqa: E402
import ultrabench_lists  # noqa: E402

from studies import results  # noqa: E402


def write_set(folder, patients=20):
    """Phantoms as PNG, two images of each patient, and a CSV that says who is who."""
    phantoms = Phantoms(3 * patients, 4, 48)
    rows = []
    for i in range(3 * patients):
        if i % 3 == 2:
            continue
        name = f"{phantoms.label(i)}/{i:03d}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(phantoms.read(i)[:, :, 0]).save(folder / name)
        rows.append((name, phantoms.label(i), f"patient {i // 3}"))
    with open(folder / "list.csv", "w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["path", "label", "group"])
        out.writerows(rows)
    return rows


def split_of(path):
    with open(path) as file:
        return {row["path"]: (row["split"], row["group"]) for row in csv.DictReader(file)}


def test_splits_of_names_with_several_views_need_a_pattern(tmp_path, capsys):
    for i in range(30):
        place = tmp_path / "set" / ("benign", "malignant")[i // 2 % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 255, (30, 40), np.uint8)
        Image.fromarray(pixels).save(place / f"bus_{i // 2:04d}-{'lr'[i % 2]}.png")
    arguments = [f"--root={tmp_path / 'set'}", f"--output={tmp_path / 'x.csv'}"]
    make_splits.make(make_splits.parse(arguments))
    out = capsys.readouterr().out
    assert "No copies were found" in out and "--group_pattern" in out and "No leak" not in out
    with open(tmp_path / "x.csv") as file:
        assert "group" not in next(csv.reader(file))
    make_splits.make(make_splits.parse([*arguments, r"--group_pattern=(bus_\d+)"]))
    assert "No leak was found" in capsys.readouterr().out
    where = {}
    for split, group in split_of(tmp_path / "x.csv").values():
        where.setdefault(group, set()).add(split)
    assert len(where) == 15 and all(len(s) == 1 for s in where.values())


def test_splits_keep_patients_whole_and_never_change(tmp_path, capsys):
    write_set(tmp_path)
    made = []
    for name in ("a.csv", "b.csv"):
        make_splits.make(make_splits.parse([f"--root={tmp_path / 'list.csv'}", f"--output={tmp_path / name}"]))
        made.append(split_of(tmp_path / name))
    assert made[0] == made[1]
    counts = {s: sum(v[0] == s for v in made[0].values()) for s in splits.SPLITS}
    assert counts["train"] >= 20 and counts["val"] >= 4 and counts["test"] >= 4
    where = {}
    for split, group in made[0].values():
        where.setdefault(group, set()).add(split)
    assert all(len(s) == 1 for s in where.values())
    assert "No leak was found" in capsys.readouterr().out
    assert (tmp_path / "a.html").exists()
    before = (tmp_path / "list.csv").read_text()
    with pytest.raises(UserError, match=r"--output: '.*list\.csv' exists and is not a list of splits"):
        make_splits.make(make_splits.parse([f"--root={tmp_path / 'list.csv'}", f"--output={tmp_path / 'list.csv'}"]))
    assert (tmp_path / "list.csv").read_text() == before
    make_splits.make(make_splits.parse([f"--root={tmp_path / 'list.csv'}", f"--output={tmp_path / 'a.csv'}"]))
    with pytest.raises(UserError, match="have no labels"):
        make_splits.make(make_splits.parse([f"--root={tmp_path / 'benign'}", f"--output={tmp_path / 'x.csv'}"]))


def write_tn3k(folder):
    """Five training and two test images in TN3K's folders, with one fold for all five numbers."""
    for part, count in (("trainval", 5), ("test", 2)):
        for number in range(count):
            for kind, suffix in (("image", "jpg"), ("mask", "png")):
                path = folder / f"{part}-{kind}" / f"{number:04d}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.zeros((40, 40), np.uint8)
                pixels[10:20, 10 + number : 30] = 255
                Image.fromarray(pixels).save(path)
    for number in range(5):
        listed = {"train": [n for n in range(5) if n != number], "val": [number]}
        (folder / f"tn3k-trainval-fold{number}.json").write_text(json.dumps(listed))


def test_the_folds_of_tn3k_become_manifests(tmp_path, capsys):
    write_tn3k(tmp_path)
    tn3k_folds.main([f"--root={tmp_path}"])
    assert "fold4.csv: 4 train, 1 val, 2 test" in capsys.readouterr().out
    config = tiny.resolved("segment_images", data__name="manifest", data__root=str(tmp_path / "fold3.csv"))
    found = {split: dataset.load_source(config, split) for split in ("train", "val", "test")}
    assert {split: len(source.names) for split, source in found.items()} == {"train": 4, "val": 1, "test": 2}
    assert found["val"].names == ["trainval-image/0003.jpg"] and found["val"].masks(0).any()
    (tmp_path / "tn3k-trainval-fold0.json").write_text(json.dumps({"train": [0, 1, 2, 3], "val": [3]}))
    with pytest.raises(SystemExit, match="2"):
        tn3k_folds.main([f"--root={tmp_path}"])
    assert "lists 5 images (4 different ones), and 'trainval-image' holds 5" in capsys.readouterr().err


def write_ultrabench(root):
    """MMOTU, POCUS and AUL's liver task as the package writes them, six images in each split."""
    rng = np.random.default_rng(0)
    pathologies = ("regular", "pneumonia", "covid")
    for name, about in (
        ("mmotu_v1.0.0", lambda n: {"label": n % 2}),
        ("mmotu_v1.0.1", lambda n: {"label": n % 2, "tumor_mask_binary": f"masks/{n}.png"}),
        ("pocus_v1.0.1", lambda n: {"label": n % 3, "pathology": pathologies[n % 3], "source": f"video {n // 2}"}),
        ("aul_liver_v1.0.1", lambda n: {"liver_mask": f"masks/{n}.png" if n != 1 else None, "label": 0}),
    ):
        folder = root / name
        for part in ("images", "masks"):
            (folder / part).mkdir(parents=True)
        for number in range(18):
            Image.fromarray(rng.integers(0, 255, (40, 40), np.uint8)).save(folder / "images" / f"{number}.png")
            mask = (np.arange(1600).reshape(40, 40) % 40 < 9 + number).astype(np.uint8)
            Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
        for part, split in enumerate(("train", "validation", "test")):
            listed = [{"image": f"images/{n}.png", **about(n)} for n in range(6 * part, 6 * part + 6)]
            (folder / f"{split}.json").write_text(json.dumps(listed))


def test_the_tasks_of_ultrabench_become_manifests(tmp_path, capsys):
    write_ultrabench(tmp_path)
    ultrabench_lists.main([f"--root={tmp_path}"])
    out = capsys.readouterr().out
    assert "segment_aul_liver.csv: 5 train, 6 val, 6 test; 1 without a mask are left out" in out
    assert "not there: classify aul_mass, classify butterfly" in out
    with open(tmp_path / "classify_pocus.csv") as file:
        rows = list(csv.DictReader(file))
    assert rows[2] == {"path": "pocus_v1.0.1/images/2.png", "label": "2 covid", "split": "train", "group": "video 1"}
    # The newest version of a set.
    assert (tmp_path / "classify_mmotu.csv").read_text().count("mmotu_v1.0.1/") == 18
    config = tiny.resolved("segment_images", data__name="manifest", data__root=str(tmp_path / "segment_mmotu.csv"))
    source = dataset.load_source(config, "test")
    assert len(source.names) == 6 and set(np.unique(source.masks(0))) == {0, 1}
    (tmp_path / "mmotu_v1.0.1" / "test.json").write_text("{")
    with pytest.raises(UserError, match="is not a list of UltraBench's examples"):
        ultrabench_lists.main([f"--root={tmp_path}"])
    with pytest.raises(UserError, match="holds no folder that UltraBench wrote"):
        ultrabench_lists.main([f"--root={tmp_path / 'pocus_v1.0.1'}"])


def test_ultrabench_plans_the_tasks_that_are_there(tmp_path):
    write_ultrabench(tmp_path)
    ultrabench_lists.main([f"--root={tmp_path}"])
    (tmp_path / "weights.pth").touch()
    options = [f"--finetune_root={tmp_path}", f"--init_from={tmp_path / 'weights.pth'}", "--seeds=0"]
    runs = test_studies.planned(tmp_path, "ultrabench", *options)
    assert [run.method for run in runs] == [
        "mmotu, linear probe", "mmotu, fine-tuned", "pocus, linear probe", "pocus, fine-tuned", "aul_liver, U-Net++",
        "mmotu, U-Net++",
    ]  # fmt: skip
    assert {run.overrides["init_from"] for run in runs} == {str(tmp_path / "weights.pth")}
    assert runs[0].overrides["data.root"].endswith("classify_mmotu.csv") and runs[4].config == "unetpp:vit"
    path = ROOT / "studies" / "ultrabench.py"
    arguments = study.parse([str(path), f"--output={tmp_path}", *options])
    facts = results.facts_of(study.load(path, "cpu"), runs, arguments)
    assert facts["methods"]["camus, U-Net++"]["state"] == "needs segment_camus.csv"
    assert study.load(f"{path}:resnet", "cpu")["methods"]["camus, U-Net++"]["finetune"] == "unetpp:resnet"
    with pytest.raises(UserError, match="Choices: beit, convnext"):
        study.load(f"{path}:lenet", "cpu")
    with pytest.raises(UserError, match="needs --init_from"):
        test_studies.planned(tmp_path, "ultrabench")


def test_every_fold_tests_once():
    labels = ["a", "b", "b"] * 20
    groups = [f"p{i // 2}" for i in range(60)]
    tested = np.stack([splits.divide(labels, groups, 5, k, 1) == "test" for k in range(5)])
    assert (tested.sum(axis=0) == 1).all()
    for k in range(5):
        part = splits.divide(labels, groups, 5, k, 1)
        assert 0.5 < (part == "train").mean() < 0.7


def test_the_audit_finds_what_was_hidden(tmp_path, capsys):
    rows = write_set(tmp_path)
    first, second = (tmp_path / rows[i][0] for i in (0, 4))
    same = tmp_path / "benign" / "zz_same.png"
    alike = tmp_path / "benign" / "zz_alike.png"
    same.write_bytes(first.read_bytes())
    picture = Image.open(second)
    picture.resize((picture.width + 6, picture.height + 6)).save(alike)  # as another export would be
    table = [("path", "label", "split", "group")]
    table += [(name, label, "train", group) for name, label, group in rows]
    table += [
        ("benign/zz_same.png", "benign", "test", "new"),
        ("benign/zz_alike.png", "benign", "test", rows[8][2]),
    ]
    with open(tmp_path / "splits.csv", "w", newline="") as file:
        csv.writer(file).writerows(table)
    leaks = make_splits.make(
        make_splits.parse(
            [
                "--audit_only",
                f"--root={tmp_path / 'splits.csv'}",
                f"--output={tmp_path / 'splits.csv'}",
            ]
        )
    )
    found = {p.kind: {p.first, p.second} for p in leaks.pairs}
    assert found["identical"] == {rows[0][0], "benign/zz_same.png"}
    assert found["near-identical"] == {rows[4][0], "benign/zz_alike.png"}
    assert "benign/zz_alike.png" in found["same patient"]
    assert sum(p.kind == "near-identical" for p in leaks.pairs) == 1
    assert "LEAK" in capsys.readouterr().out and "Pairs" in (tmp_path / "splits.html").read_text()


def test_the_near_duplicates_that_a_public_set_lists_are_found(real_data):
    """Put into two splits on purpose; BUSI names the earlier image that each repeats."""
    with open(real_data / "busi" / "manifest.csv") as file:
        rows = list(csv.DictReader(file))
    by_name = {Path(row["file"]).stem: row["file"] for row in rows}
    listed = [(by_name[row["near_dup_of"]], row["file"]) for row in rows if row["near_dup_of"] in by_name]
    names = sorted({name for pair in listed for name in pair})
    later = {second for _, second in listed}
    data = tiny.resolved("finetune", data__root=str(real_data / "busi" / "manifest.csv"), data__split="all",
                         data__max_side=0).data  # fmt: skip
    source = manifest.source(data, 1)
    wanted = np.array([i for i, name in enumerate(source.names) if name in set(names)])
    usable = index.build(subset(source, wanted))
    is_later = np.array([name in later for name in usable.source.names])
    where = {"train": np.flatnonzero(~is_later), "test": np.flatnonzero(is_later)}
    found = {frozenset((p.first, p.second)) for p in audit.compare(usable, where).pairs}
    across = [pair for pair in listed if pair[0] not in later]
    assert len(across) > 60
    assert sum(frozenset(pair) in found for pair in across) > 0.95 * len(across)


def test_identical_images_with_different_labels_are_listed(tmp_path):
    write_set(tmp_path, 6)
    data = tiny.resolved("finetune", data__root=str(tmp_path), data__split="all", data__max_side=0).data
    usable = index.build(image_folder.source(data, 1))
    labels = usable.source.labels
    other = next(i for i, label in enumerate(labels) if label != labels[0])
    usable.hashes[other] = usable.hashes[0]
    leaks = audit.compare(usable, {"train": np.arange(len(usable))}, near=False)
    assert not leaks.any and leaks.contradictions == [
        (usable.source.names[0], labels[0], usable.source.names[other], labels[other])
    ]
    assert "different labels in 1 pair of identical images" in leaks.contradiction()[0]


def test_images_that_pre_training_saw_are_listed(tmp_path):
    rows = write_set(tmp_path, 6)
    data = tiny.resolved("finetune", data__root=str(tmp_path), data__split="all", data__max_side=0).data
    usable = index.build(image_folder.source(data, 1))
    where = {"train": np.arange(4), "test": np.arange(4, len(usable))}
    seen = {usable.hashes[2], usable.hashes[5]}
    leaks = audit.compare(usable, where, pretrained=seen)
    assert leaks.pretraining == [usable.source.names[5]] and leaks.any
    assert "pre-training also used 1 evaluated image" in leaks.lines()[-1]
    assert not audit.compare(usable, where).pretraining_known
    assert len(rows) == len(usable)
