"""CSVs as people and table programs write them."""

import numpy as np
import pytest
import tiny
from PIL import Image

from deblur_mae_jax.data import dataset, index, splits
from deblur_mae_jax.data import table as tables
from deblur_mae_jax.errors import UserError


@pytest.fixture
def images(tmp_path):
    for label in ("benign", "malignant"):
        (tmp_path / label).mkdir()
        for i in range(10):
            pixels = np.random.default_rng(i).integers(0, 256, (24, 32)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / label / f"{label}_{i}.png")
    return tmp_path


def rows(images):
    return [f"{p.parent.name}/{p.name}" for p in sorted(images.glob("*/*.png"))]


def load(images, text, split="all", encoding="utf-8", **fields):
    content = text if isinstance(text, bytes) else text.encode(encoding)
    (images / "list.csv").write_bytes(content)
    config = tiny.resolved("finetune", data__name="manifest", data__root=str(images / "list.csv"), **fields)
    return dataset.load_source(config, split)


def listed(images, header, cell, encoding="utf-8", delimiter=",", **fields):
    lines = [header, *(cell(path, i) for i, path in enumerate(rows(images)))]
    return load(images, "\n".join(lines).replace(",", delimiter) + "\n", encoding=encoding, **fields)


def said(source):
    return " | ".join(source.notes)


def label(path):
    return path.split("/")[0]


@pytest.mark.parametrize("start", ["", "\n", "# exported by hand\n", "sep=,\n", "\n# twice\n\n"])
def test_lines_before_the_header_are_no_rows(images, start):
    source = load(images, f"{start}path,label\n" + "".join(f"{p},{label(p)}\n" for p in rows(images)))
    assert len(source) == 20 and set(source.labels) == {"benign", "malignant"}
    damaged = load(images, f"{start}path,label\nbenign/benign_0.png,a,b,c\nbenign/benign_1.png,a\n")
    assert len(damaged) == 1 and len(damaged.skipped) == 1


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_delimiters_and_encodings(images, delimiter, encoding):
    source = listed(images, "path,label,note", lambda p, i: f"{p},{label(p)},größer", encoding, delimiter)
    assert len(source) == 20 and set(source.labels) == {"benign", "malignant"}
    assert ("Windows-1252" in said(source)) == (encoding == "cp1252")


def test_headers_may_have_blanks_and_capitals(images):
    source = listed(images, " Path , LABEL ,Group", lambda p, i: f" {p} , {label(p)} , P{i // 2} ")
    assert len(set(source.groups)) == 10 and set(source.labels) == {"benign", "malignant"}


@pytest.mark.parametrize(
    ("header", "use"),
    [("image,class", "label"), ("file_name,diagnosis", "label"), ("path,label,patient_id", "group"),
     ("path,label,Patient ID", "group"), ("path,pathology", "label"), ("path,label,subset", "split")],
)  # fmt: skip
def test_other_names_of_columns_are_used_and_said(images, header, use):
    more = ",train" if "subset" in header else ",{}" if header.count(",") == 2 else ","
    source = listed(images, header, lambda p, i: f"{p},{label(p)}" + more.format(i // 2))
    assert set(source.labels) == {"benign", "malignant"} and f"is used as {use}" in said(source)
    if use == "group":
        assert len(set(source.groups)) == 10


def test_several_columns_that_may_be_meant_are_a_question(images):
    with pytest.raises(UserError, match=r"patient_id, case_id. Did you mean group=patient_id"):
        listed(images, "path,label,patient_id,case_id", lambda p, i: f"{p},{label(p)},{i},{i}")
    source = listed(
        images, "path,label,patient_id,case_id", lambda p, i: f"{p},{label(p)},{i // 2},{i}",
        data__columns="group=case_id",
    )  # fmt: skip
    assert len(set(source.groups)) == 20
    off = listed(images, "path,label,patient_id", lambda p, i: f"{p},{label(p)},{i // 2}", data__columns="group=")
    assert off.groups is None
    with pytest.raises(UserError, match=r"config.data.columns: unknown name 'patient'.*Choices"):
        load(images, "path\na.png\n", data__columns="patient=x")
    with pytest.raises(UserError, match=r"column of .*: unknown name 'lable'. Did you mean 'label'"):
        listed(images, "path,label", lambda p, i: f"{p},{label(p)}", data__columns="label=lable")


@pytest.mark.parametrize("missing", ["nan", "NaN", "", "NA", "null", "None", "#N/A", "<NA>", "Unlabelled"])
def test_unknown_labels_and_patients_are_no_names(images, missing):
    source = listed(
        images, "path,label,group",
        lambda p, i: f"{p},{label(p) if i % 2 else missing},{missing if i % 2 else 'p1'}",
    )  # fmt: skip
    assert source.labels.count("") == 10 and source.groups.count("") == 10 and set(source.groups) == {"", "p1"}
    if missing:
        assert f"10 rows have no label: '{missing}' means that it is not known" in said(source)
    found = splits.labelled(lambda split: source, tiny.resolved("finetune", data__folds=3).data)
    assert found.classes == ["benign", "malignant"] and len(found.source) == 10


def test_names_that_differ_by_blanks_capitals_or_a_decimal_point_are_one(images):
    source = listed(
        images, "path,label,group",
        lambda p, i: f"{p},{label(p) + ' ' * (i % 2) if i % 3 else label(p).upper()},{i // 2}{'' if i % 2 else '.0'}",
    )  # fmt: skip
    assert set(source.labels) == {"benign", "malignant"} and len(set(source.groups)) == 10
    assert "'benign', 'BENIGN' are taken as one name: 'benign'" in said(source)


@pytest.mark.parametrize(
    "names", [("train", "validation", "test"), ("Train", "Val", "Test"), ("training", "dev", "testing")]
)
def test_splits_by_other_names(images, names):
    def cell(p, i):
        return f"{p},{label(p)},{names[0] if i % 5 < 3 else names[1] if i % 5 == 3 else names[2]}"

    source = listed(images, "path,label,split", cell, split="train")
    assert len(source) == 12 and source.unused == {"val": 4, "test": 4}
    found = splits.labelled(
        lambda split: load(images, (images / "list.csv").read_text(), split),
        tiny.resolved("finetune", data__split="train", data__val_split="val", data__test_split="test").data,
    )
    assert {name: int((found.split == name).sum()) for name in ("train", "val", "test")} == {
        "train": 12, "val": 4, "test": 4,
    }  # fmt: skip


def test_rows_without_a_split_are_counted(images):
    source = listed(
        images, "path,label,split", lambda p, i: f"{p},{label(p)},{'train' if i % 2 else ''}", split="train"
    )
    assert len(source) == 10 and source.unused == {"no split": 10}


@pytest.mark.parametrize("split", ["train", "train+pool", "all"])
def test_a_column_of_splits_without_any_is_no_column(images, split):
    found = listed(images, "path,label,split", lambda p, i: f"{p},{label(p)},{['', 'nan'][i % 2]}", split=split)
    assert len(found) == 20 and found.splits is None
    assert "no row names a split" in said(found)


def test_damaged_lines_are_listed_and_the_rest_is_read(images):
    good = "\n".join(f"{p},{label(p)}" for p in rows(images))
    text = f"path,label\n{good}\n".encode() + b"benign/be" + bytes(40) + b",benign\nbenign/x.png,a,b,c\n,benign\n"
    source = load(images, text)
    assert len(source) == 20
    reasons = {s.name: s.reason for s in source.skipped}
    assert reasons["list.csv, line 22"] == "damaged: the line holds NUL bytes"
    assert "more cells than columns" in str(reasons) and "no path" in str(reasons)


@pytest.mark.parametrize("text", ["", "\n\n", "a,b\n1,2\n", b"\x89PNG\r\n\x1a\n" + bytes(4000), b"\0\0\0path\n"])
def test_what_is_no_list_is_one_clear_line(images, text):
    with pytest.raises(UserError, match=r"config\.data\.root") as caught:
        load(images, text)
    assert "\n" not in str(caught.value)


def test_paths_as_windows_and_people_write_them(images, monkeypatch):
    monkeypatch.setenv("HOME", str(images))
    first = rows(images)
    source = load(
        images,
        "path\n" + "\n".join([
            first[0].replace("/", "\\"), first[1].removesuffix(".png"), first[2].upper(), f"./{first[3]}",
            f"~/{first[4]}", str(images / first[5]), "benign/none.png",
        ]) + "\n",
    )  # fmt: skip
    read = [i for i in range(len(source)) if source.stamp(i) is not None]
    assert len(source) == 7 and len(read) == 6 and all(source.read(i).shape == (24, 32, 1) for i in read)
    for line in ("backslashes in paths are read", "paths without extension are completed", "capitals in paths"):
        assert f"1 rows: {line}" in said(source)


def test_one_file_in_two_spellings_is_refused(images):
    first = rows(images)[0]
    with pytest.raises(UserError, match="twice \\(also as"):
        load(images, f"path\n{first}\n./{first}\n")


def test_masks_may_be_several_and_missing(images):
    for name in ("m1", "m2"):
        Image.fromarray(np.full((24, 32), 1 if name == "m1" else 2, np.uint8)).save(images / f"{name}.png")
    first = rows(images)
    source = load(images, f"path;mask\n{first[0]};\n{first[1]};nan\n{first[2]};m1.png\n")
    assert source.masked == [False, False, True]
    source = load(images, f"path,mask\n{first[0]},m1.png; m2.png\n")
    assert source.masks(0).max() == 2


def test_masks_that_are_listed_as_images_are_left_out_and_listed(images):
    """As a user's `glob("**/*.png")` writes them; in a folder they would be recognised."""
    for path in images.glob("benign/*.png"):  # soft borders, so that the gray levels do not give them away
        Image.open(path).save(path.with_name(f"{path.stem}_mask.png"))
    source = listed(images, "path,label", lambda p, i: f"{p},{label(p)}")
    assert len(source) == 20 and not any("mask" in name for name in source.names)
    assert len(source.skipped) == 10
    assert source.skipped[0].reason == (
        "it is named like the mask of 'benign/benign_0.png', another row: masks belong into the column `mask`"
    )


def test_masks_that_other_rows_name_are_no_images(images):
    (images / "drawn").mkdir()
    for path in images.glob("benign/*.png"):
        Image.open(path).save(images / "drawn" / path.name.replace("benign", "by_hand"))

    def cell(path, i):
        start = ("./drawn/", "drawn\\")[i % 2]
        return f"{path}," + (start + path.split("/")[1].replace("benign", "by_hand") if label(path) == "benign" else "")

    source = listed(images, "path,mask", cell)
    assert len(source) == 20 and sum(source.masked) == 10
    assert {item.reason.split(" '")[0] for item in source.skipped} == {"it is the mask of"} and len(
        source.skipped
    ) == 10


def test_images_that_are_only_called_like_masks_are_images(images):
    (images / "benign" / "lesion_mask.png").write_bytes((images / "benign" / "benign_0.png").read_bytes())
    source = listed(images, "path,label", lambda p, i: f"{p},{label(p)}")
    assert len(source) == 21 and not source.skipped


def test_patients_by_pattern_from_a_csv(images):
    source = listed(images, "path,label", lambda p, i: f"{p},{label(p)}", data__group_pattern=r"_(\d)")
    assert len(set(source.groups)) == 10
    source = listed(images, "path,group", lambda p, i: f"{p},{i}", data__group_pattern=r"_(\d)")
    assert "is not used: the patients are in column 'group'" in said(source)


def test_a_column_that_is_needed_is_named(images):
    with pytest.raises(UserError, match="has no column path or file or filename or image; its columns are a, b"):
        load(images, "a,b\n1,2\n")


def test_ditto_marks_join_no_rows(images):
    lines = [f"{path},{label(path)},{chr(34) if i % 2 else 'x'}" for i, path in enumerate(rows(images))]
    source = load(images, "\n".join(["path,label,note", *lines]) + "\n")
    assert len(source) == 20 and not source.skipped and "does not close it" in said(source)


def test_quotes_that_are_never_closed_join_no_rows(images):
    lines = [f"{path},{label(path)},x" for path in rows(images)]
    for i in (3, 11):
        lines[i] = lines[i][:-1] + '"susp'
    assert len(load(images, "\n".join(["path,label,note", *lines]) + "\n")) == 20


def test_cells_of_several_lines_are_one_cell(images):
    lines = [f'{path},"large, irregular\nmass, dark",{label(path)}' for path in rows(images)]
    source = load(images, "\n".join(["path,note,label", *lines]) + "\n")
    assert len(source) == 20 and set(source.labels) == {"benign", "malignant"}
    assert source.notes[:1] == ["columns that are not used: note"] and not source.skipped


def test_a_stray_quote_loses_no_other_row(images):
    """An inch sign in a cell, or a quote that opens one and is not closed, beside rows that are quoted properly."""
    for stray in ('3.5" probe', '"convex'):
        lines = [f'{path},"large, irregular",{label(path)}' for path in rows(images)]
        first = lines[3].partition(",")[0]
        lines[3] = f"{first},{stray},{label(first)}"
        source = load(images, "\n".join(["path,note,label", *lines]) + "\n")
        assert len(source) == 20 and not source.skipped and set(source.labels) == {"benign", "malignant"}
    quoted = [f'"{path}","{label(path)}"' for path in rows(images)]
    quoted[2] = quoted[2].replace('","', '" probe","')
    assert len(load(images, "\n".join(['"path","label"', *quoted]) + "\n")) == 20


@pytest.mark.parametrize("name", ["set", "fold", "phase"])
def test_a_column_that_holds_splits_is_used_as_split(images, name):
    words = ["train", "Training", "val", "TEST"]
    lines = [f"{path},{label(path)},{words[i % 4]}" for i, path in enumerate(rows(images))]
    source = load(images, "\n".join([f"path,label,{name}", *lines]) + "\n")
    assert set(source.splits) == {"train", "val", "test"} and f"column '{name}'" in said(source)
    source = load(images, "\n".join([f"path,label,{name}", *lines]) + "\n", data__columns="split=")
    assert len(source) == 20 and source.splits is None
    numbers = [f"{path},{label(path)},{i % 4}" for i, path in enumerate(rows(images))]
    assert load(images, "\n".join([f"path,label,{name}", *numbers]) + "\n").splits is None


def test_a_workbook_is_named(images):
    (images / "manifest.csv").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(UserError, match="is an Excel workbook; save it as CSV"):
        tables.read(images / "manifest.csv", "all")


def test_damaged_rows_count_as_images_that_cannot_be_used(images):
    lines = [f"{path},{label(path)}" + (",3" if i < 5 else "") for i, path in enumerate(rows(images))]
    with pytest.raises(UserError, match=r"5 of 20 images cannot be used, more than config.data.max_bad_fraction"):
        index.build(load(images, "\n".join(["path,label", *lines]) + "\n"), max_bad_fraction=0.2)


def test_a_name_that_may_be_two_files_is_said(images):
    first = rows(images)[0]
    twin = (images / first).with_suffix(".jpg")
    twin.write_bytes((images / first).read_bytes())
    lines = [f"{path.removesuffix('.png')},{label(path)}" for path in rows(images)]
    assert "1 rows may mean several files" in said(load(images, "\n".join(["path,label", *lines]) + "\n"))


def test_a_comma_in_the_header_moves_no_cell(images):
    lines = [f"{path},12,{label(path)},train" for path in rows(images)]
    lines[1] = lines[1].replace(",12,", ",12,5,")
    source = load(images, "\n".join(['path,"size, mm",label,split', *lines]) + "\n")
    assert len(source) == 19 and set(source.labels) == {"benign", "malignant"} and set(source.splits) == {"train"}
    assert "more cells than columns" in source.skipped[0].reason


def test_a_column_of_words_is_no_mask(images):
    cell = lambda path, i: f"{path},P{i},{('cyst', 'solid mass')[i % 2]}"
    source = listed(images, "path,patient,annotation", cell)
    assert source.masks is None and len(set(source.groups)) == 20
    assert "column 'annotation' is not used as mask: its cells, such as 'cyst', name no files" in said(source)
    source = listed(images, "path,annotation", lambda path, i: f"{path},masks/{i}.png")
    assert all(source.masked) and "column 'annotation' of 'list.csv' is used as mask" in said(source)
