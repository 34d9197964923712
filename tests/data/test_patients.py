"""Which images show the same patient: spellings, numbered folders, fields that a source does not read."""

import dicom_files
import nibabel as nib
import numpy as np
import pydicom
import pytest
import tiny
from PIL import Image

from deblur_mae_jax import network
from deblur_mae_jax.data import dataset, layout, naming, packing, source_config, spelling
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.training import supervision


def picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 32)).astype(np.uint8)).save(path)


def mask(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((24, 32), np.uint8)
    pixels[5:12, 6:20] = 255
    Image.fromarray(pixels).save(path)


def load(root, name="image_folder", split="all", **fields):
    return dataset.load_source(tiny.resolved("finetune", data__name=name, data__root=str(root), **fields), split)


def said(source):
    return " | ".join(source.notes)


@pytest.mark.parametrize("names", [("P01", "p01"), ("Mu\u0308ller1", "M\u00fcller1"), ("case 7", "case  7 ")])
def test_one_patient_in_several_spellings_is_one(names):
    notes = []
    found = spelling.one_patient([*names, "P02"], notes)
    assert found[0] == found[1] != found[2]
    assert ("'P01', 'p01' are taken as one name" in notes[0]) if names[0] == "P01" else not notes


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("007", "7", "12"), "1 patients may be counted twice, because their names differ in leading zeros alone"),
        (("P01", "P1"), "'P01', 'P1'"),
        (("2.02301E+11", "x"), "'2.02301E+11' is a long number that a table program has shortened"),
        (("P01", "P02", "P10", "P100", "1.5E", "10"), ""),
    ],
)
def test_doubtful_names_of_patients_are_said(names, words):
    notes = []
    assert spelling.one_patient(names, notes) == list(names)
    assert (words in " | ".join(notes)) if words else not notes


def test_a_patient_of_another_spelling_in_another_split_is_found(tmp_path):
    for split, patient in (("train", "P01"), ("val", "P02"), ("test", "p01")):
        for label in ("benign", "malignant"):
            for i in range(3):
                picture(tmp_path / split / label / patient / f"{label}{i}.png", seed=hash((split, label, i)) % 999)
    config = tiny.resolved("finetune", data__name="image_folder", data__root=str(tmp_path), data__split="train",
                           data__val_split="val", data__test_split="test")  # fmt: skip
    index, _ = supervision.divided(config, network.identify(config))
    assert set(index.source.groups) == {"P01", "P02"}
    assert "'P01', 'p01' are taken as one name" in said(index.source)


@pytest.mark.parametrize("ids", [("P001", "p001"), ("P001", " P001")])
def test_one_patient_id_in_two_spellings_is_one_patient(tmp_path, ids):
    for i, name in enumerate(ids * 2):
        path = dicom_files.still(tmp_path / f"{i}.dcm")
        values = pydicom.dcmread(path)
        values.PatientID = name
        values.save_as(path)
    source = load(tmp_path, "dicom")
    assert len(set(source.groups)) == 1 and "P001" not in said(source)


def test_folders_of_few_numbered_patients_with_masks_are_groups(tmp_path):
    for patient in range(5):
        for i in range(2):
            picture(tmp_path / f"P{patient:02d}" / f"us{i}.png", 10 * patient + i)
            mask(tmp_path / f"P{patient:02d}" / f"us{i}_mask.png")
    source = load(tmp_path)
    assert set(source.groups) == {f"P{n:02d}" for n in range(5)} and "look like patients" in said(source)


def test_classes_below_patients_are_advised_a_csv(tmp_path):
    for patient in range(4):
        for i, label in enumerate(("benign", "malignant")):
            picture(tmp_path / f"P{patient:02d}" / label / "us.png", 10 * patient + i)
    text = said(load(tmp_path))
    assert "if they are patients and benign and malignant the classes, a CSV with the column 'label'" in text


def test_a_folder_of_augmented_images_is_no_class(tmp_path):
    for folder in ("original", "augmented"):
        for i, label in enumerate(("benign", "malignant")):
            for j in range(3):
                picture(tmp_path / folder / label / f"{label}{j}.png", 100 * len(folder) + 10 * i + j)
    source = load(tmp_path)
    assert set(source.labels) == {"benign", "malignant"} and len(source) == 12
    assert "'augmented' holds the folders benign, malignant, as the classes are called" in said(source)


def test_classes_that_are_numbered_like_patients_are_said(tmp_path):
    for patient in range(5):
        picture(tmp_path / f"P{patient:02d}" / "us.png", patient)
    source = load(tmp_path)
    assert set(source.labels) == {f"P{n:02d}" for n in range(5)} and "are numbered like patients" in said(source)
    pattern = said(source).partition("group_pattern=")[2].partition('"')[2].partition('"')[0]
    assert set(load(tmp_path, data__group_pattern=pattern).groups) == set(source.labels)


@pytest.mark.parametrize(
    "names", [("BIRADS3", "BIRADS4"), ("benign", "malignant"), ("grade01", "grade02"), ("a1", "b2")]
)
def test_classes_are_not_taken_for_patients(names):
    assert not naming.like_numbered_patients(names)


def test_a_pattern_finds_the_patients_of_a_packed_set(tmp_path):
    for patient in range(4):
        for i in range(2):
            picture(tmp_path / "images" / "benign" / f"p{patient}_{i}.png", 10 * patient + i)
    packing.pack(source_config.config_for(str(tmp_path / "images"), ""), tmp_path / "packed")
    source = load(tmp_path / "packed", "packed", data__group_pattern=r"(?:^|/)(p\d+)")
    assert set(source.groups) == {"p0", "p1", "p2", "p3"}
    with pytest.raises(UserError, match="matches no name"):
        load(tmp_path / "packed", "packed", data__group_pattern="(zzz)")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data__labels", "labels.csv", r"config\.data\.labels='labels\.csv' is not used by .*image_folder: classes of"),
        ("data__columns", "group=x", r"config\.data\.columns='group=x' is not used.* use it: dicom, manifest, nifti"),
    ],
)
def test_a_field_that_a_source_does_not_read_is_refused(tmp_path, field, value, message):
    picture(tmp_path / "benign" / "a.png")
    with pytest.raises(UserError, match=message):
        load(tmp_path, **{field: value})


def dicom_folder(tmp_path):
    for i, patient in enumerate(("A", "A", "B", "B")):
        path = dicom_files.still(tmp_path / "files" / f"im{i}.dcm")
        values = pydicom.dcmread(path)
        values.PatientID, values.StudyInstanceUID = patient, f"1.2.3.{i}"
        values.save_as(path)
    return tmp_path / "files"


@pytest.mark.parametrize(
    "cell", ["im{}.dcm", "files/im{}.dcm", "{root}/im{}.dcm", "IM{}.dcm", "files\\im{}", "./im{}.dcm"]
)
def test_paths_in_the_labels_of_dicom_files_are_read_as_in_other_lists(tmp_path, cell):
    root = dicom_folder(tmp_path)
    lines = [f"{cell.replace('{}', str(i)).replace('{root}', str(root))},{'ab'[i % 2]}" for i in range(4)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *lines]) + "\n")
    source = load(root, "dicom", data__labels=str(tmp_path / "labels.csv"))
    assert source.labels == ["a", "b", "a", "b"]


def test_a_patient_that_only_some_rows_state_is_that_of_all_its_pictures(tmp_path):
    root = dicom_folder(tmp_path)
    (tmp_path / "labels.csv").write_text("path,label,group\nim0.dcm,a,first\nim1.dcm,b,\nim2.dcm,a,\nim3.dcm,b,\n")
    source = load(root, "dicom", data__labels=str(tmp_path / "labels.csv"))
    assert source.groups[0] == source.groups[1] != source.groups[2] == source.groups[3]
    assert "1 pictures have no patient in config.data.labels" in said(source)


def test_a_patient_of_a_table_of_dicom_files_has_one_name_in_all_splits(tmp_path):
    root = dicom_folder(tmp_path)
    rows = ["im0.dcm,p,train", "im1.dcm,q,train", "im2.dcm,q,test", "im3.dcm,r,test"]
    (tmp_path / "labels.csv").write_text("\n".join(["path,group,split", *rows]) + "\n")
    train, test = (
        load(root, "dicom", split, data__labels=str(tmp_path / "labels.csv")).groups for split in ("train", "test")
    )
    assert train[1] == test[0] and len({*train, *test}) == 3


def test_a_patient_id_beside_another_identifier_is_read_as_a_column_of_patients(tmp_path):
    root = dicom_folder(tmp_path)
    rows = ["im0.dcm,p9", "im1.dcm,P9", "im2.dcm,NA", "im3.dcm,NA"]
    (tmp_path / "labels.csv").write_text("\n".join(["path,PatientID", *rows]) + "\n")
    source = load(root, "dicom", data__labels=str(tmp_path / "labels.csv"))
    assert source.groups[0] == source.groups[1] != source.groups[2] == source.groups[3]
    assert "'NA' means that it is not known" in said(source) and "p9" not in said(source)


def test_series_of_one_patient_id_have_the_patient_that_some_rows_state(tmp_path):
    rows = ["SeriesInstanceUID,group"]
    for number, patient in enumerate(("A", "A", "B", "B")):
        volume = np.random.default_rng(number).normal(0, 100, (8, 16, 16))
        series, study = f"1.2.3.{number}.1", f"1.2.3.{number}"
        dicom_files.slices(tmp_path / "files" / series, volume, series=series, study=study, patient=patient)
        rows += [f"{series},first"] if number == 0 else [f"{series},"] if number == 1 else []
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    config = source_config.config_for(
        str(tmp_path / "files"), "dicom", volumes=True, labels=str(tmp_path / "labels.csv")
    )
    source = dataset.load_source(config)
    assert source.groups[0] == source.groups[1] != source.groups[2] == source.groups[3]
    assert "1 series have no patient in config.data.labels" in said(source)


def test_images_that_share_a_mask_are_one_patient():
    names = [f"{i}.png" for i in range(7)]
    masks = [["m1"], ["m1"], ["m1", "m2"], ["m2"], [], ["m3"], ["m3"]]
    notes = []
    found = layout.one_patient_per_mask([""] * 7, masks, names, notes)
    assert found == ["0.png"] * 4 + [""] + ["5.png"] * 2 and "3 masks" in notes[0]
    found = layout.one_patient_per_mask(["", "p", "", "q", "q", "r", "r"], masks, names, notes := [])
    assert found == ["p", "p", "p", "p", "p", "r", "r"] and "2 masks" in notes[0]
    known = ["a", "a", "a", "a", "", "r", "r"]
    notes = []
    assert layout.one_patient_per_mask(known, masks, names, notes) == known and notes == []


def test_one_empty_mask_of_all_healthy_images_makes_no_patient():
    notes = []
    assert layout.one_patient_per_mask([""] * 20, [["empty"]] * 20, [f"{i}" for i in range(20)], notes) == [""] * 20
    assert "shared by more than 8 images" in notes[0]


@pytest.mark.parametrize(
    ("files", "patients"),
    [
        ("T1/p0 T1/p1 T2/p0 T2/p1", "p0 p1 p0 p1"),
        ("siteA/T1/001 siteA/T2/001 siteB/T1/001 siteB/T2/001", "siteA/001 siteA/001 siteB/001 siteB/001"),
        ("siteA/001 siteA/002 siteB/001 siteB/002", "- - - -"),
        ("ct/000 ct/001 mr/000 mr/001", "- - - -"),  # each counts its own patients
        ("ct/anna01 pet/anna01 ct/bert02 pet/bert02", "anna01 anna01 bert02 bert02"),
        ("smith/T1 smith/T2 jones/T1 jones/T2", "smith smith jones jones"),
        ("smith/visit1/T1 smith/visit2/T1 jones/visit1/T1", "smith smith jones"),
        ("smith/2020-01-02/T1 smith/2021-03-04/T1 jones/2020-01-02/T1", "smith smith jones"),
        ("smith/visit1/T1/image smith/visit1/T2/image jones/visit1/T1/image", "smith smith jones"),
        ("visit1/p01 visit2/p01 visit1/p02", "p01 p01 p02"),
        ("P001/1 P001/2 P002/1 P002/2", "P001 P001 P002 P002"),
    ],
)
def test_patients_of_volumes_whose_names_repeat(files, patients):
    folders, _, stems = zip(*(name.rpartition("/") for name in files.split()), strict=True)
    assert [group or "-" for group in layout.volumes_of_one(stems, folders)] == patients.split()


def test_patients_by_the_names_of_a_csv_are_those_of_all_its_splits(tmp_path):
    rows = ["path,modality,split"]
    for name, split in (("P1/T1", "train"), ("P1/T2", "test"), ("P2/T1", "train"), ("P2/T2", "test")):
        path = tmp_path / f"{name}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(np.ones((8, 8, 8), np.float32), np.eye(4)), path)
        rows.append(f"{name}.nii.gz,mr,{split}")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    for split in ("train", "test"):
        config = source_config.config_for(str(tmp_path / "list.csv"), "nifti")
        config.data.split = split
        assert dataset.load_source(config).groups == ["P1", "P2"]
