"""Parquet files and WebDataset tars as other programs write them: names of columns, damaged files, links, masks."""

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from PIL import Image

from deblur_mae_jax.data import dataset
from deblur_mae_jax.errors import UserError


def load(root, name, split="all", **fields):
    return dataset.load_source(tiny.resolved("finetune", data__name=name, data__root=str(root), **fields), split)


def said(source):
    return " | ".join(source.notes)


def png(seed):
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 32)).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def table(path, image="image", **columns):
    path.parent.mkdir(exist_ok=True)
    count = len(next(iter(columns.values())))
    pq.write_table(pa.table({image: [{"bytes": png(i)} for i in range(count)], **columns}), path)


def tar(path, files, links=()):
    with tarfile.open(path, "w") as out:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))
        for name, kind, target in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            out.addfile(member)


@pytest.mark.parametrize("patient", ["PatientID", "Patient ID", "patient_id", "MRN"])
def test_columns_of_parquet_are_found_as_those_of_a_csv(tmp_path, patient):
    table(tmp_path / "a.parquet", Label=["x", "y"], **{patient: ["1", "2"]}, age=[4, 5])
    source = load(tmp_path, "parquet")
    assert source.labels == ["x", "y"] and source.groups == ["1", "2"]
    assert "columns that are not used: age" in said(source)


def test_a_class_called_none_is_a_class_where_classes_are_declared(tmp_path):
    columns = pa.table({"image": [{"bytes": png(i)} for i in range(3)], "label": [0, 1, -1]})
    features = {"label": {"names": ["none", "mild"], "_type": "ClassLabel"}}
    described = columns.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(described, tmp_path / "a.parquet")
    assert load(tmp_path, "parquet").labels == ["none", "mild", ""]
    table(tmp_path / "a.parquet", label=["none", "mild", "mild"])
    source = load(tmp_path, "parquet")
    assert source.labels == ["", "mild", "mild"] and "1 images have no label: 'none' means" in said(source)


def test_pictures_of_masks_are_no_labels(tmp_path):
    table(tmp_path / "a.parquet", label=[{"bytes": png(9)}, {"bytes": png(8)}])
    source = load(tmp_path, "parquet")
    assert source.labels is None and "columns that are not used: label" in said(source)


def test_entries_of_json_are_found_as_the_columns_of_a_csv(tmp_path):
    tar(tmp_path / "a.tar", {"1.png": png(1), "1.json": json.dumps({"Label": "x", "PatientID": "7"}).encode()})
    source = load(tmp_path / "a.tar", "webdataset")
    assert source.labels == ["x"] and source.groups == ["7"]


def test_every_parquet_file_has_its_own_column_of_images(tmp_path):
    table(tmp_path / "a.parquet", label=["x"])
    table(tmp_path / "b.parquet", image="img", label=["y"])
    source = load(tmp_path, "parquet")
    assert [source.read(i).shape for i in range(len(source.names))] == [(24, 32, 1)] * 2


def test_labels_have_one_spelling_in_all_splits(tmp_path):
    table(tmp_path / "train-0.parquet", label=[0, 1, 1])
    table(tmp_path / "test-0.parquet", label=[0.0, 1.0, None])
    assert {x for split in ("train", "test") for x in load(tmp_path, "parquet", split).labels} == {"0", "1", ""}


def test_one_damaged_parquet_file_costs_its_images_alone(tmp_path):
    table(tmp_path / "a.parquet", label=["x"])
    (tmp_path / "b.parquet").write_bytes(b"PAR1 cut off")
    source = load(tmp_path, "parquet")
    assert len(source.names) == 1
    assert [(s.name, s.damaged) for s in source.skipped] == [("b.parquet", True)]
    (tmp_path / "a.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(UserError, match="is not a Parquet file, or damaged"):
        load(tmp_path, "parquet")


def test_a_tar_that_is_cut_off_counts_as_damaged(tmp_path):
    tar(tmp_path / "a.tar", {f"{i}.png": png(i) for i in range(8)})
    content = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(content[: len(content) // 3 + 100])
    source = load(tmp_path / "a.tar", "webdataset")
    assert 0 < len(source.names) < 8 and source.skipped[-1].damaged


def test_files_that_a_tar_links_are_images_too(tmp_path):
    links = [
        ("b.png", tarfile.LNKTYPE, "a.png"),
        ("c/d.png", tarfile.SYMTYPE, "../a.png"),
        ("e.png", tarfile.SYMTYPE, "x"),
    ]
    tar(tmp_path / "a.tar", {"a.png": png(1)}, links)
    source = load(tmp_path / "a.tar", "webdataset")
    assert len(source.names) == 3
    for index in range(3):
        np.testing.assert_array_equal(source.read(index), source.read(0))
    assert [s.reason for s in source.skipped] == ["a link to no file of the tar"]


def test_a_sample_with_an_image_and_a_mask_is_not_guessed(tmp_path):
    tar(tmp_path / "a.tar", {"a.png": png(1), "a.tif": png(2), "b.png": png(3)})
    source = load(tmp_path / "a.tar", "webdataset")
    assert len(source.names) == 1
    (left,) = source.skipped
    assert left.damaged and "(.png, .tif): which of them is meant is not clear" in left.reason


def test_names_with_dots_say_why_they_are_left_out(tmp_path):
    tar(tmp_path / "a.tar", {"1.2.840.0.png": png(1), "b.png": png(3)})
    assert "its name has several dots" in load(tmp_path / "a.tar", "webdataset").skipped[0].reason
