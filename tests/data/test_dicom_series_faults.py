"""Series that could be read wrongly: each is left out with its reason, or read with a note."""

import dicom_files as made
import highdicom
import numpy as np
import pydicom
import pytest
from test_dicom_volumes import a_key, expected, hounsfield, load  # noqa: F401, a fixture

from deblur_mae_jax.data.source import BadImage
from deblur_mae_jax.errors import UserError

OTHER = "1.2.3.9.9"


def every(**fields):
    """A change of all slices."""

    def change(values, number):
        for name, value in fields.items():
            setattr(values, name, value)

    return change


def from_the_seventh(name, value=None):
    """A change of a half of the slices: a field is set, or deleted."""

    def change(values, number):
        if number >= 6 and value is None:
            delattr(values, name)
        elif number >= 6:
            setattr(values, name, value)

    return change


@pytest.mark.parametrize(
    ("change", "modality", "reason"),
    [
        (every(PhotometricInterpretation="PALETTE COLOR"), "MR", "PhotometricInterpretation 'PALETTE COLOR'"),
        (every(RescaleType="Z_EFF", RescaleSlope=0.1), "CT", "RescaleType is 'Z_EFF'"),
        (every(ImagePositionPatient=[1.0, 2.0]), "CT", "another number of values than 3, 6 and 2"),
        (every(BurnedInAnnotation="YES"), "CT", "text is burned in"),
        (from_the_seventh("BurnedInAnnotation", "YES"), "MR", "text is burned in"),
        (from_the_seventh("RescaleIntercept"), "CT", "6 of 12 slices do not state RescaleIntercept"),
        (from_the_seventh("ImagePositionPatient", [1.0, 2.0]), "CT", "another number of values than 3, 6 and 2"),
    ],
)
def test_a_series_that_cannot_be_understood_is_left_out_and_others_are_read(tmp_path, change, modality, reason):
    made.slices(tmp_path / "set" / "a", hounsfield(), change=change, modality=modality)
    made.slices(tmp_path / "set" / "b", hounsfield((9, 20, 24), seed=1), series=OTHER)
    source = load(tmp_path / "set")
    assert source.header(len(source) - 1) == (24, 20, 9)
    assert any(reason in item.reason for item in source.skipped), source.skipped


@pytest.mark.parametrize(
    ("change", "modality", "note"),
    [
        (every(LossyImageCompression="01"), "CT", "lossily compressed"),
        (every(PhotometricInterpretation="MONOCHROME1"), "MR", "inverted display (MONOCHROME1)"),
        (from_the_seventh("AcquisitionNumber", 2), "CT", "slices of 2 acquisitions are put together"),
    ],
)
def test_what_is_assumed_of_a_series_is_noted(tmp_path, change, modality, note):
    made.slices(tmp_path / "set", hounsfield(), change=change, modality=modality)
    source = load(tmp_path / "set")
    _, notes = source.examine(0)
    assert len(source) == 1 and any(note in line for line in [*notes, *source.notes]), (notes, source.notes)


def test_an_inverted_series_is_turned_round(tmp_path):
    plain, inverted = tmp_path / "plain", tmp_path / "inverted"
    made.slices(plain, hounsfield() + 1000, modality="MR")
    made.slices(inverted, 1500 - hounsfield(), modality="MR", change=every(PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_allclose(load(inverted).read(0), load(plain).read(0), atol=2e-3)


def test_burned_in_text_is_allowed_by_the_user(tmp_path):
    made.slices(tmp_path / "set", hounsfield(), change=every(BurnedInAnnotation="YES"))
    source = load(tmp_path / "set", data__allow_burned_in=True)
    assert len(source) == 1 and any("text is burned in: 12" in note for note in source.notes)


@pytest.mark.parametrize("issuer", [{"IssuerOfPatientID": "HOSPITAL"}, {"PatientID": "p1"}])
def test_two_spellings_of_a_patient_do_not_divide_a_volume(tmp_path, issuer):
    ((field, value),) = issuer.items()
    made.slices(tmp_path / "set", hounsfield((16, 20, 24)), change=from_the_seventh(field, value))
    source = load(tmp_path / "set")
    assert len(source) == 1 and source.header(0) == (24, 20, 16)


def test_two_patients_of_one_series_have_names_of_their_own(tmp_path):
    for number in range(2):
        made.slices(tmp_path / "set" / str(number), hounsfield(seed=number), patient=f"P{number}")
    source = load(tmp_path / "set")
    assert len(set(source.names)) == len(set(source.keys)) == len(set(source.groups)) == 2


def test_magnitude_and_phase_are_volumes_of_their_own(tmp_path):
    for number, kind in enumerate("MP"):
        made.slices(tmp_path / "set" / kind, hounsfield(seed=number), modality="MR",
                    change=every(ImageType=["ORIGINAL", "PRIMARY", kind, "ND"]))  # fmt: skip
    assert len(load(tmp_path / "set")) == 2


def test_two_slices_without_a_position_of_an_enhanced_file(tmp_path):
    values = made.base("1.2.840.10008.5.1.4.1.1.4.1", modality="MR")
    made.with_pixels(values, (hounsfield() + 1024).astype(np.uint16), bits=12)
    values.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "MIXED"]
    values.PerFrameFunctionalGroupsSequence = [pydicom.Dataset() for _ in range(10)]
    made.save(values, tmp_path / "set" / "a.dcm")
    made.slices(tmp_path / "set" / "b", hounsfield(), series=OTHER)
    source = load(tmp_path / "set")
    assert "12 frames, and positions of 10" in source.skipped[0].reason


def test_a_coarse_segmentation_is_refused(tmp_path):
    """Each of its voxels would mark one voxel of the series, and leave those between unmarked."""
    folder = tmp_path / "set" / "ct"
    made.slices(folder, hounsfield())
    files = [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]
    mask = np.zeros((12, 10, 12), np.uint8)
    mask[3:7, 3:7, 2:8] = 1
    code = highdicom.sr.CodedConcept("123037004", "SCT", "Anatomical Structure")
    segment = highdicom.seg.SegmentDescription(1, "part 1", code, code, highdicom.seg.SegmentAlgorithmTypeValues.MANUAL)
    made_of = highdicom.seg.Segmentation(
        files, mask, highdicom.seg.SegmentationTypeValues.BINARY, [segment], pydicom.uid.generate_uid(), 1,
        pydicom.uid.generate_uid(), 1, "Maker", "Model", "1", "1",
        pixel_measures=highdicom.PixelMeasuresSequence([1.6, 1.4], 2.5, 2.5),
        plane_orientation=highdicom.PlaneOrientationSequence("PATIENT", [1, 0, 0, 0, 1, 0]),
        plane_positions=[highdicom.PlanePositionSequence("PATIENT", list(f.ImagePositionPatient)) for f in files],
    )  # fmt: skip
    made_of.save_as(tmp_path / "set" / "seg.dcm")
    source = load(tmp_path / "set")
    with pytest.raises(BadImage, match=r"voxels of 2.5 x 1.6 x 1.4 mm, its series of 2.5 x 0.8 x 0.7 mm"):
        source.examine_mask(0)


def test_a_segmentation_that_leaves_out_empty_frames_is_read(tmp_path):
    folder = tmp_path / "set" / "ct"
    made.slices(folder, hounsfield())
    mask = np.zeros((12, 20, 24), np.uint8)
    mask[2:10:2, 4:9, 5:12] = 1
    made.segmentation(tmp_path / "set" / "seg.dcm", folder, mask)
    found, _ = load(tmp_path / "set").examine_mask(0)
    np.testing.assert_array_equal(found[..., 0] if found.ndim == 4 else found, mask.transpose(2, 1, 0)[::-1, ::-1])


def test_a_segmentation_is_of_the_slices_that_it_names(tmp_path):
    axial, coronal = tmp_path / "set" / "axial", tmp_path / "set" / "coronal"
    made.slices(axial, hounsfield())
    made.slices(coronal, hounsfield(seed=1), orientation=(1, 0, 0, 0, 0, -1))
    mask = np.zeros((12, 20, 24), np.uint8)
    mask[3:9, 4:9, 5:12] = 1
    made.segmentation(tmp_path / "set" / "seg.dcm", axial, mask)
    source = load(tmp_path / "set")
    assert sorted(source.masked) == [False, True] and not source.skipped


@pytest.mark.parametrize("key", ["path of a slice", "path of the folder", "SOPInstanceUID"])
def test_a_row_may_name_a_volume_by_any_of_its_slices(tmp_path, key):
    for number in range(2):
        made.slices(tmp_path / "set" / f"s{number}", hounsfield(seed=number), series=f"1.2.3.{number}")
    uids = [pydicom.dcmread(tmp_path / "set" / f"s{n}" / "0005.dcm").SOPInstanceUID for n in range(2)]
    names = {"path of a slice": ["s0/0005.dcm", "s1/0005.dcm"], "path of the folder": ["s0", "s1"]}.get(key, uids)
    rows = "".join(f"{name},{label}\n" for name, label in zip(names, "ab", strict=True))
    (tmp_path / "labels.csv").write_text(f"{'path' if key.startswith('path') else key},label\n{rows}")
    source = load(tmp_path / "set", data__labels=str(tmp_path / "labels.csv"))
    assert sorted(source.labels) == ["a", "b"] and not any("name no DICOM" in note for note in source.notes)


def test_rows_that_contradict_each_other_in_one_volume(tmp_path):
    made.slices(tmp_path / "set", hounsfield())
    (tmp_path / "labels.csv").write_text("path,label\n0001.dcm,a\n0002.dcm,b\n")
    with pytest.raises(UserError, match="different contents for the slices of one volume"):
        load(tmp_path / "set", data__labels=str(tmp_path / "labels.csv"))


def test_the_values_are_those_that_were_written(tmp_path):
    made.slices(tmp_path / "set", hounsfield(), change=every(RescaleType="HU"))
    np.testing.assert_array_equal(load(tmp_path / "set").read(0)[..., 0], expected(hounsfield()))
