"""Images, tables and pictures in DICOM that were once read wrongly without a word."""

import os

import dicom_files
import numpy as np
import pytest
import tiny
from PIL import Image

from deblur_mae_jax.data import dataset, raster, spelling, splits
from deblur_mae_jax.errors import UserError


def picture(path, seed=0, side=24):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, 32)).astype(np.uint8)).save(path)


def load(root, name="image_folder", split="all", **fields):
    return dataset.load_source(tiny.resolved("finetune", data__name=name, data__root=str(root), **fields), split)


def said(source):
    return " | ".join(source.notes)


def test_a_split_without_patients_does_not_hide_those_of_the_others(tmp_path):
    rows = ["path,split,group,label"]
    for i in range(8):
        picture(tmp_path / f"{i}.png", i)
        rows.append(f"{i}.png,{'train' if i < 6 else 'test'},{'P' + str(i // 2) if i < 6 else ''},{'ab'[i % 2]}")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    parts = [load(tmp_path / "list.csv", "manifest", split) for split in ("train", "test")]
    assert parts[1].groups is None
    joined = splits.concatenate(parts)
    assert joined.groups == ["P0", "P0", "P1", "P1", "P2", "P2", "", ""]


@pytest.mark.parametrize("frames", [6, 20])
def test_a_clip_that_is_cut_off_is_still_cropped(tmp_path, frames):
    clip = np.zeros((frames, 100, 150), np.uint8)
    clip[:, :6] = 200  # a bar with a name
    clip[:, 20:80, 30:120] = np.random.default_rng(0).integers(60, 250, (frames, 60, 90))
    values = dicom_files.with_pixels(dicom_files.base(dicom_files.US_CLIP), clip)
    dicom_files.save(values, tmp_path / "whole.dcm")
    content = (tmp_path / "whole.dcm").read_bytes()
    (tmp_path / "whole.dcm").write_bytes(content[: -100 * 150 // 2])
    source = load(tmp_path, "dicom", data__frames="all")
    shapes = set()
    for index in range(len(source.names) - 1):
        shapes.add(source.read(index).shape)
    assert shapes == {(60, 90, 1)}


def test_a_clip_of_a_still_picture_is_cropped_as_the_picture(tmp_path):
    still = np.zeros((4, 100, 150), np.uint8)
    still[:, 20:80, 30:120] = np.random.default_rng(0).integers(60, 250, (60, 90))
    for name, frames in (("clip", still), ("one", still[:1])):
        kind = dicom_files.US_CLIP if len(frames) > 1 else dicom_files.US
        dicom_files.save(dicom_files.with_pixels(dicom_files.base(kind), frames), tmp_path / name / "a.dcm")
    assert (
        load(tmp_path / "clip", "dicom").read(0).shape == load(tmp_path / "one", "dicom").read(0).shape == (60, 90, 1)
    )


def test_an_empty_dicom_file_is_damaged(tmp_path):
    dicom_files.save(dicom_files.with_pixels(dicom_files.base(), dicom_files.picture()[None]), tmp_path / "a.dcm")
    (tmp_path / "b.dcm").write_bytes(b"")
    (left,) = load(tmp_path, "dicom").skipped
    assert left.damaged and left.reason == "empty file (0 bytes)"


def test_a_dicom_file_that_may_not_be_read_is_damaged(tmp_path, monkeypatch):
    from deblur_mae_jax.data import dicom_file

    def refused(path, *_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(dicom_file, "open", refused, raising=False)
    assert dicom_file.why_not("a.dcm") == "cannot be read: Permission denied"


def test_pixels_of_two_sizes_are_said_to_be_no_squares(tmp_path):
    values = dicom_files.with_pixels(dicom_files.base(), dicom_files.picture()[None])
    values.PixelSpacing = [0.5, 2.0]
    dicom_files.save(values, tmp_path / "a.dcm")
    source = load(tmp_path, "dicom")
    assert any("not square" in note for note in source.examine(0)[1])


def test_small_pictures_in_dicom_are_refused_as_small_files(tmp_path):
    values = dicom_files.with_pixels(dicom_files.base(), dicom_files.picture(6, 200)[None])
    dicom_files.save(values, tmp_path / "a.dcm")
    with pytest.raises(Exception, match=r"under data\.min_side=16"):
        load(tmp_path, "dicom", data__min_side=16).read(0)


def test_links_of_two_classes_to_one_file_elsewhere_are_refused(tmp_path):
    picture(tmp_path / "pool" / "1.png")
    for name in ("benign", "malignant"):
        picture(tmp_path / "set" / name / "0.png", len(name))
        os.symlink(tmp_path / "pool" / "1.png", tmp_path / "set" / name / "1.png")
    with pytest.raises(UserError, match=r"are links to the same file '1\.png', whose class or split"):
        load(tmp_path / "set")


def test_annotated_copies_are_left_out(tmp_path):
    for name in ("0.png", "0 annotated.png", "1.png", "1_measured.png", "marked.png"):
        picture(tmp_path / "a" / name, len(name))
    assert sorted(load(tmp_path).names) == ["a/0.png", "a/1.png", "a/marked.png"]


@pytest.mark.parametrize(
    ("names", "note"),
    [(("007", "7.0"), "leading zeros alone"), (("1.23457e+11", "2"), "table program has shortened"),
     (("1E+11", "2"), "table program has shortened")],
)  # fmt: skip
def test_numbers_that_a_table_has_damaged_are_named(names, note):
    notes = []
    spelling.one_patient(names, notes)
    assert note in " | ".join(notes)


def test_cells_in_which_excel_keeps_zeros_are_plain_numbers(tmp_path):
    for i in range(3):
        picture(tmp_path / f"{i}.png", i)
    rows = 'path,group,label\n0.png,"=""007""",a\n1.png,\'007,b\n2.png,007,a\n'
    (tmp_path / "list.csv").write_text(rows)
    assert set(load(tmp_path / "list.csv", "manifest").groups) == {"007"}


@pytest.mark.parametrize("header", ["#,path,label", "# path,label", "# made by a program\n#,path,label"])
def test_a_header_may_start_as_a_comment(tmp_path, header):
    picture(tmp_path / "0.png")
    row = "1,0.png,a" if header.endswith("#,path,label") else "0.png,a"
    (tmp_path / "list.csv").write_text(f"{header}\n{row}\n")
    assert load(tmp_path / "list.csv", "manifest").labels == ["a"]


def test_a_comment_that_names_columns_is_no_header(tmp_path):
    picture(tmp_path / "0.png")
    (tmp_path / "list.csv").write_text("# path, label: of the image\npath,label\n0.png,a\n")
    assert load(tmp_path / "list.csv", "manifest").labels == ["a"]


def test_a_pnm_file_may_have_several_comments(tmp_path):
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5\n# one\n# two\n60 40\n# three\n255\n" + bytes(2400))
    assert raster.pnm_header(path)[:3] == (60, 40, 255)


def test_a_path_that_is_also_a_folder_is_completed(tmp_path):
    picture(tmp_path / "p1.png")
    (tmp_path / "p1").mkdir()
    (tmp_path / "list.csv").write_text("path,label\np1,a\n")
    source = load(tmp_path / "list.csv", "manifest")
    assert len(source.names) == 1 and source.read(0).shape == (24, 32, 1)


def test_folders_of_masks_in_another_unicode_form_are_found(tmp_path):
    composed, apart = "M\u00fcller", "Mu\u0308ller"
    picture(tmp_path / "images" / composed / "0.png")
    mask = np.zeros((24, 32), np.uint8)
    mask[4:9, 5:20] = 255
    (tmp_path / "masks" / apart).mkdir(parents=True)
    Image.fromarray(mask).save(tmp_path / "masks" / apart / "0.png")
    config = tiny.resolved("segment_images", data__name="image_folder", data__root=str(tmp_path))
    assert dataset.load_source(config, "all").masked == [True]


def test_patients_of_a_table_match_as_those_of_a_csv(tmp_path):
    for i, patient in enumerate(("P01", "12")):
        values = dicom_files.with_pixels(
            dicom_files.base(patient=patient, study=f"1.2.{i}"), dicom_files.picture()[None]
        )
        dicom_files.save(values, tmp_path / "set" / f"{i}.dcm")
    (tmp_path / "labels.csv").write_text('PatientID,label\np01,a\n"=""12""",b\n')
    source = load(tmp_path / "set", "dicom", data__labels=str(tmp_path / "labels.csv"))
    assert sorted(source.labels) == ["a", "b"]
