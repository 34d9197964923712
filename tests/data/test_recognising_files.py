"""What each file of a folder is: image or mask, split, class, patient, under the names that public sets use."""

import os
import re

import numpy as np
import pytest
import tiny
from PIL import Image

from deblur_mae_jax.data import dataset, index, layout, listing, naming, spelling, splits, summary
from deblur_mae_jax.errors import UserError


def picture(path, seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32)).astype(np.uint8)
    Image.fromarray(pixels).save(path, **options)


def mask(path, value=255):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((24, 32), np.uint8)
    pixels[5:12, 6:20] = value
    Image.fromarray(pixels).save(path)


def load(root, name="finetune", **fields):
    config = tiny.resolved(name, data__name="image_folder", data__root=str(root), **fields)
    return dataset.load_source(config)


def said(source):
    return " | ".join(source.notes)


# The masks of one image, as public sets name them: (image, its masks).
SETS = {
    "BUSI": ("benign/benign (1).png", ["benign/benign (1)_mask.png", "benign/benign (1)_mask_1.png"]),
    "BUS-BRA": ("Images/bus_0001-l.png", ["Masks/mask_0001-l.png"]),
    "TN3K": ("trainval-image/0001.jpg", ["trainval-mask/0001.png"]),
    "MMOTU": ("OTU_2d/images/1.JPG", ["OTU_2d/annotations/1.PNG"]),
    "HC18": ("training_set/000_HC.png", ["training_set/000_HC_Annotation.png"]),
    "ISIC": ("ISIC_0001.jpg", ["ISIC_0001_segmentation.png"]),
    "Kvasir": ("images/a.jpg", ["masks/a.png"]),
    "GT": ("original/7.png", ["GT/7.png"]),
    "ground truth": ("set/img/7.png", ["set/Ground Truth/7.png"]),
    "one folder per case": ("case1/image.png", ["case1/mask.png"]),
    "label": ("a/1.png", ["a/label/1.png"]),
    "unknown folder": ("pictures/1.png", ["silhouettes/1.png"]),
    "unknown ending": ("1.png", ["1_silhouette.png"]),
    "a word after the mask": ("A1.png", ["A1_mask_tumor.png"]),
    "another folder and ending": ("images/benign/b1.png", ["annot_roi/benign/b1_roi.png"]),
    "Supervisely": ("img/1.jpg", ["masks_machine/1.jpg.png"]),
}


@pytest.mark.parametrize("name", SETS)
def test_masks_are_never_images(tmp_path, name):
    image, masks = SETS[name]
    for i in range(3):
        change = lambda path, i=i: path.replace("1", str(i + 1)) if "1" in path else path.replace("7", str(7 + i))
        picture(tmp_path / change(image), i)
        for path in masks:
            mask(tmp_path / change(path))
    source = load(tmp_path, data__split="all")
    images = {n for n in source.names if "mask" not in n.lower() and "silhouette" not in n}
    assert images == set(source.names) and source.masked is not None and all(source.masked)
    assert source.masks(0).max() == 255 and set(np.unique(source.masks(0))) == {0, 255}
    if name == "BUSI":
        assert "several masks" in said(source)
    if "unknown" in name:
        assert "are read as masks" in said(source)


def test_files_that_are_named_like_masks_but_are_images_stay_images(tmp_path):
    for i in range(4):
        picture(tmp_path / "label" / f"{i}.png", i)
        picture(tmp_path / "normal" / f"n{i}_seg.png", i)
    source = load(tmp_path)
    assert len(source) == 8 and sorted(set(source.labels)) == ["label", "normal"]
    assert "4 files are named like masks" in said(source)


def test_a_mask_without_an_image_is_left_out_and_listed(tmp_path):
    picture(tmp_path / "images" / "a.png")
    mask(tmp_path / "masks" / "a.png")
    mask(tmp_path / "masks" / "b.png")
    source = load(tmp_path, "quickstart")
    assert source.names == ["images/a.png"]
    assert [(s.name, s.reason) for s in source.skipped] == [("masks/b.png", "a mask without an image of its name")]


def test_a_folder_of_black_and_white_images_is_read_and_said(tmp_path):
    for i in range(3):
        mask(tmp_path / f"{i}.png", 200 + i)
    found = index.build(load(tmp_path, "quickstart"))
    assert len(found) == 3 and "only 2 gray levels, as masks have (3 images" in found.notes[0]


SPLITS = [
    ("train", "val", "test"), ("Training", "Validation", "Testing"), ("train", "dev", "test"),
    ("training_set", "val_set", "test_set"), ("images/train", "images/val", "images/test"),
    ("train_images", "val_images", "test_images"), ("data/train", "data/valid", "data/test"),
    ("imagesTr", "imagesVa", "imagesTs"),
]  # fmt: skip


@pytest.mark.parametrize("folders", SPLITS)
def test_split_folders_keep_their_meaning_beside_other_files(tmp_path, folders):
    for k, folder in enumerate(folders):
        for i in range(3):
            picture(tmp_path / folder / "a" / f"{i}.png", i + 10 * k)
            picture(tmp_path / folder / "b" / f"{i}.png", i + 10 * k + 5)
    picture(tmp_path / "overview.png")
    source = load(tmp_path, "quickstart")
    assert len(source) == 6 and all(folders[0] in name for name in source.names)
    assert set(source.labels) == {"a", "b"} and source.unused == {"val": 6, "test": 6}
    assert [s.name for s in source.skipped] == ["overview.png"] and "beside the split" in source.skipped[0].reason
    assert all(folders[2] in name for name in load(tmp_path, data__split="test").names)


def test_one_class_that_is_called_like_a_split_stays_a_class(tmp_path):
    for i in range(3):
        picture(tmp_path / "test" / f"{i}.png", i)
        picture(tmp_path / "control" / f"{i}.png", i + 5)
    source = load(tmp_path)
    assert set(source.labels) == {"test", "control"} and source.splits is None


def test_linked_folders_are_read_once(tmp_path):
    for i in range(3):
        picture(tmp_path / "elsewhere" / "malignant" / f"{i}.png", i)
        picture(tmp_path / "set" / "benign" / f"{i}.png", i + 5)
    os.symlink("../elsewhere/malignant", tmp_path / "set" / "malignant")
    os.symlink("..", tmp_path / "set" / "benign" / "loop")
    os.symlink("nothing", tmp_path / "set" / "gone.png")
    os.symlink("ring", tmp_path / "set" / "ring")
    os.mkfifo(tmp_path / "set" / "pipe")
    source = load(tmp_path / "set")
    assert source.labels == ["benign"] * 3 + ["malignant"] * 3
    reasons = {s.name: s.reason for s in source.skipped}
    assert reasons == {
        "benign/loop": "a link to a folder that is read elsewhere", "gone.png": "a link to nothing",
        "ring": "cannot be reached: Too many levels of symbolic links", "pipe": "no regular file",
    }  # fmt: skip
    assert "linked folders that are read too: 1" in said(source)


@pytest.mark.parametrize("pool", ["all", "pool"])
def test_links_that_divide_a_pool_into_splits_and_classes_are_followed(tmp_path, pool):
    for i in range(12):
        picture(tmp_path / pool / f"{i}.png", i)
        split, label = ("train", "test")[i % 3 == 0], ("benign", "malignant")[i % 2]
        (tmp_path / split / label).mkdir(parents=True, exist_ok=True)
        os.symlink(f"../../{pool}/{i}.png", tmp_path / split / label / f"{i}.png")
    source = load(tmp_path, data__split="train")
    assert len(source) == 8 and set(source.labels) == {"benign", "malignant"}
    assert "read through a link to it" in source.skipped[0].reason
    (tmp_path / "train" / "malignant" / "again.png").symlink_to(tmp_path / pool / "0.png")
    with pytest.raises(UserError, match=r"are links to the same file .* whose class or split is therefore not clear"):
        load(tmp_path)


def test_a_few_links_to_images_of_a_class_do_not_move_them(tmp_path):
    for i in range(6):
        picture(tmp_path / "benign" / f"{i}.png", i)
        picture(tmp_path / "malignant" / f"{i}.png", 10 + i)
    (tmp_path / "favourites").mkdir()
    os.symlink("../benign/0.png", tmp_path / "favourites" / "x.png")
    source = load(tmp_path)
    assert len(source) == 12 and set(source.labels) == {"benign", "malignant"}


def test_names_that_are_not_utf8_can_be_written(tmp_path):
    picture(tmp_path / "a" / "0.png")
    os.rename(os.fsencode(tmp_path / "a" / "0.png"), os.fsencode(tmp_path / "a") + b"/gr\xf6\xdfer.png")
    source = load(tmp_path, "quickstart")
    assert source.names == ["a/gr%F6%DFer.png"] and source.read(0).shape == (24, 32, 1)
    source.names[0].encode()
    index.build(source, cache=tmp_path / "index.json")
    index.write_skipped(tmp_path / "skipped.csv", source.skipped)


def test_hidden_and_system_files_are_ignored(tmp_path):
    picture(tmp_path / "a.png")
    for name in ("._a.png", ".hidden/b.png", "__MACOSX/a.png", "@eaDir/a.png", "Thumbs.db"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    source = load(tmp_path, "quickstart")
    assert source.names == ["a.png"] and not source.skipped


def test_one_class_in_two_spellings_is_one_class_and_an_empty_one_is_said(tmp_path):
    for i in range(3):
        picture(tmp_path / "benign" / f"{i}.png", i)
        picture(tmp_path / "Benign" / f"{i + 3}.png", i)
        picture(tmp_path / "malignant" / f"{i}.png", i)
    (tmp_path / "normal").mkdir()
    source = load(tmp_path)
    assert sorted(set(source.labels)) == ["Benign", "malignant"]
    assert "'Benign', 'benign' are taken as one name" in said(source) and "'normal' holds no file" in said(source)


def test_the_folder_around_all_classes_is_no_class(tmp_path):
    for i in range(2):
        for label in ("benign", "malignant"):
            picture(tmp_path / "Dataset_BUSI_with_GT" / label / f"{i}.png", i)
    source = load(tmp_path)
    assert set(source.labels) == {"benign", "malignant"} and "its sub-folders are the classes" in said(source)


def test_a_class_with_a_number_is_no_patient(tmp_path):
    for i in range(2):
        for label in ("covid19", "normal", "pneumonia"):
            picture(tmp_path / "COVID_dataset" / label / f"{i}.png", i)
    source = load(tmp_path)
    assert set(source.labels) == {"covid19", "normal", "pneumonia"} and source.groups is None


@pytest.mark.parametrize("other", ["malignant_1_mask.png", "spleen_1_seg.png"])
def test_a_mask_of_another_word_and_the_same_number_is_another_images(tmp_path, other):
    for i in (1, 2):
        picture(tmp_path / "images" / f"benign_{i}.png", i)
    mask(tmp_path / "masks" / "benign_2_mask.png")
    mask(tmp_path / "masks" / other)
    source = load(tmp_path, "quickstart")
    assert source.masked == [False, True] and [s.name for s in source.skipped] == [f"masks/{other}"]


def test_patients_come_from_the_pattern(tmp_path):
    for patient in ("0001", "0002"):
        for side in "lr":
            picture(tmp_path / "benign" / f"bus_{patient}-{side}.png")
    picture(tmp_path / "benign" / "other.png")
    source = load(tmp_path, data__group_pattern=r"(bus_\d+)")
    assert source.groups == ["bus_0001", "bus_0001", "bus_0002", "bus_0002", ""]
    assert "1 names do not match config.data.group_pattern, the first 'benign/other.png'" in said(source)
    with pytest.raises(UserError, match="not a regular expression"):
        load(tmp_path, data__group_pattern="(")
    with pytest.raises(UserError, match="matches no name"):
        load(tmp_path, data__group_pattern="xyz")


def test_views_of_one_patient_are_suggested(tmp_path):
    for patient in ("0001", "0002", "0003"):
        for side in "lr":
            picture(tmp_path / "benign" / f"bus_{patient}-{side}.png")
    source = load(tmp_path)
    assert source.groups is None
    suggested = re.search(r'config.data.group_pattern="(.+?)" makes 3 patients of 6 images', said(source))
    grouped = load(tmp_path, data__group_pattern=suggested[1])
    assert sorted(set(grouped.groups)) == ["bus_0001", "bus_0002", "bus_0003"]


@pytest.mark.parametrize(
    ("stems", "count"),
    [
        ([f"image_{i:02d}" for i in range(20)], None), ([f"benign ({i})" for i in range(20)], None),
        ([f"p{i // 4:03d}_{i % 4}" for i in range(20)], 5), ([f"{i // 2}_left" for i in range(8)], None),
        ([f"case12{i // 2}_{'left' if i % 2 else 'right'}" for i in range(8)], 4),
        ([f"clip{i // 10}_frame{i % 10:03d}" for i in range(30)], 3), (["a", "b"], None),
    ],
)  # fmt: skip
def test_names_of_views(stems, count):
    found = re.search(r"makes (\d+) patients of (\d+) images$", naming.views(sorted(set(stems))))
    assert (found and int(found[1])) == count


def test_a_suggested_pattern_matches_every_class():
    stems = [f"{label}_bus_{i:04d}-{side}" for label in ("benign", "malignant") for i in range(5) for side in "lr"]
    said = naming.views(stems)
    assert r'group_pattern="(?:^|[-_ /])(bus_\d+)" makes 5 patients of 20 images' in said
    stems = [f"{label}_{i:04d}-{side}" for label in ("benign", "malignant") for i in range(5) for side in "lr"]
    assert naming.views(stems).endswith("makes 5 patients of 10 images; 10 names do not match it")


def test_colours_are_said_and_gray_in_three_channels_is_not(tmp_path):
    gray = np.random.default_rng(0).integers(0, 255, (24, 32), np.uint8)
    red = np.stack([gray, gray // 4, gray // 4], axis=-1)
    for name, pixels in (("gray", gray), ("three", np.stack([gray] * 3, axis=-1)), ("red", red)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    notes = {name: load(tmp_path).examine(i)[1] for i, name in enumerate(load(tmp_path).names)}
    assert notes["gray.png"] == notes["three.png"] == [] and "read as its luma" in notes["red.png"][0]


@pytest.mark.parametrize("labelled,unlabelled", [("labeled", "unlabeled"), ("annotated", "unannotated")])
def test_labelled_images_beside_unlabelled_ones_are_no_pictures_made_from_them(tmp_path, labelled, unlabelled):
    for i in range(4):
        picture(tmp_path / labelled / ("benign" if i % 2 else "malignant") / f"{i}.png", i)
        picture(tmp_path / unlabelled / f"{i}.png", 10 + i)
    source = load(tmp_path)
    assert source.labels == ["benign"] * 2 + ["malignant"] * 2 + [""] * 4 and not source.skipped


@pytest.mark.parametrize("breast,msk", [("Breast/{}", "MSK/{}"), ("Breast_{}", "MSK_{}")])
def test_musculoskeletal_images_are_no_masks(tmp_path, breast, msk):
    for i in range(4):
        picture(tmp_path / f"{breast.format(i)}.png", i)
        picture(tmp_path / f"{msk.format(i)}.png", 10 + i)
    source = load(tmp_path)
    assert len(source) == 8 and source.masked is None and "4 files are named like masks" in said(source)


def test_a_mask_with_a_number_is_that_of_the_image_with_this_number(tmp_path):
    for i, number in enumerate(("", "_1", "_2")):
        picture(tmp_path / f"scan{number}.png", i)
        mask(tmp_path / f"scan_mask{number}.png")
    source = load(tmp_path)
    assert source.names == ["scan.png", "scan_1.png", "scan_2.png"] and source.masked == [True] * 3
    assert "several masks" not in said(source)


def test_folders_of_patients_are_groups(tmp_path):
    for label in ("benign", "malignant"):
        for patient in range(3):
            for i in range(2):
                picture(tmp_path / label / f"p{label[0]}{patient}" / f"{i}.png", patient)
    source = load(tmp_path)
    assert source.groups == ["pb0", "pb0", "pb1", "pb1", "pb2", "pb2", "pm0", "pm0", "pm1", "pm1", "pm2", "pm2"]
    assert "6 patients are taken from the folders" in said(source)


def test_many_folders_of_patients_are_no_classes(tmp_path):
    for patient in range(14):
        picture(tmp_path / f"patient_{patient:03d}" / "0.png", patient)
    source = load(tmp_path, "quickstart")
    assert source.labels is None and len(set(source.groups)) == 14 and "they are groups, not classes" in said(source)


@pytest.mark.parametrize("outer", [("hospital_A", "hospital_B"), ("fold1", "fold2", "fold3")])
def test_sites_that_hold_the_same_classes_are_no_classes(tmp_path, outer):
    for site in outer:
        for name in ("benign", "malignant"):
            picture(tmp_path / site / name / "1.png")
    found = load(tmp_path)
    assert not found.labels and "all hold the folders benign, malignant" in said(found)
    with pytest.raises(UserError, match=r"have no labels.*not clear which of them are the classes.*'label'"):
        splits.labelled(lambda split: load(tmp_path), tiny.resolved("finetune").data)


@pytest.mark.parametrize("inner", [("left", "right"), ("2019", "2020"), ("axial", "sagittal")])
def test_classes_that_hold_the_same_folders_stay_classes(tmp_path, inner):
    for name in ("benign", "malignant"):
        for view in inner:
            picture(tmp_path / name / view / "1.png")
    found = load(tmp_path)
    assert set(found.labels) == {"benign", "malignant"} and "the first are taken as the classes" in said(found)


def test_an_empty_folder_is_named(tmp_path):
    (tmp_path / "readme.txt").write_text("x")
    config = tiny.resolved("finetune", data__name="image_folder", data__root=str(tmp_path))
    for look in (dataset.build_index, lambda config: splits.labelled(lambda split: load(tmp_path), config.data)):
        with pytest.raises(UserError, match=f"no image found in '{tmp_path}'"):
            look(config)


def test_folders_below_the_classes_are_mentioned(tmp_path):
    for name, other in (("anna", "carl"), ("bert", "dora")):
        picture(tmp_path / "benign" / name / "0.png")
        picture(tmp_path / "malignant" / other / "0.png", 1)
    assert "if they are patients, give config.data.group_pattern" in said(load(tmp_path))


def test_the_table_names_everything_once(tmp_path):
    for i in range(6):
        picture(tmp_path / "benign" / f"{i}.png", i)
        picture(tmp_path / "malignant" / f"{i}.png", i + 10)
    mask(tmp_path / "benign" / "0_mask.png")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "clip.mpg").write_bytes(b"\0\0\1\xba" + bytes(99))
    (tmp_path / "benign" / "bad.png").write_bytes(b"x")
    text = "\n".join(summary.lines(summary.rows(index.build(load(tmp_path)))))
    assert "images    12, 32 x 24 pixels" in text and "masks     1 of 12" in text
    assert "classes   benign 6, malignant 6" in text and "none are named" in text
    assert "patients  not known" in text and "'clip.mpg': not an image file (a video" in text
    assert all(len(line) <= 120 for line in text.splitlines())


def test_counts_of_left_out_files_are_by_reason():
    from deblur_mae_jax.data.source import Skipped

    lines = summary.left_out([Skipped(f"{i}.png", f"{i} x 3 pixels, under data.min_side=16") for i in range(3)])
    assert lines == ["3 files, the first '0.png': 0 x 3 pixels, under data.min_side=16"]


def test_what_a_name_means():
    assert naming.of_folder("labelsTs") == ("test", "mask") and naming.of_folder("benign") == ("", "")
    assert naming.of_folder("trainval-image") == ("train", "image") and naming.of_folder("test2") == ("", "")
    assert naming.of_mask("segmentation-0").case == "0" and naming.of_mask("1_binary_binary").case == "1"
    assert naming.of_mask("unmasked") is None
    values, lines = spelling.canonical(["benign", " benign ", "Benign", "nan", "1", "1.0", "1.0", "001"])
    assert values == ["benign", "benign", "benign", "", "1", "1", "1", "001"] and len(lines) == 2


def test_a_folder_that_cannot_be_opened_is_listed(tmp_path, monkeypatch):
    picture(tmp_path / "a" / "0.png")
    (tmp_path / "b").mkdir()
    real = os.scandir

    def refuse(folder):
        if str(folder).endswith("b"):
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr(listing.os, "scandir", refuse)
    found = listing.walk(tmp_path)
    assert [(s.name, s.reason) for s in found.skipped] == [("b", "the folder cannot be opened: Permission denied")]
    assert layout.arrange(found.files, lambda base: base[:-4], lambda path: False).cases[0].label == "a"


def test_a_list_of_splits_that_is_not_read_is_mentioned(tmp_path):
    picture(tmp_path / "benign" / "0.png")
    picture(tmp_path / "unlabelled" / "1.png")
    (tmp_path / "manifest.csv").write_text("path,label,split,group\nbenign/0.png,benign,train,p1\n")
    (tmp_path / "other.csv").write_text("a,b\n")
    source = load(tmp_path)
    assert source.labels == ["benign", ""] and "1 images in 'unlabelled' have no class" in said(source)
    assert said(source).count("lists images with splits or patients and is not read") == 1
