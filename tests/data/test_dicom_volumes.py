"""CT and MR series as volumes: sorted by position, checked, equal to dcm2niix's, with masks."""

import os
import subprocess
import warnings

import dicom_files as made
import nibabel as nib
import numpy as np
import pydicom
import pytest
import tiny_volumes
from pydicom.dataset import Dataset

from deblur_mae_jax.data import dataset, dicom_series, index, privacy
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.pretrained import inherit


@pytest.fixture(autouse=True)
def a_key(tmp_path):
    privacy.use(tmp_path)
    yield
    privacy.use(None)


def load(root, split="all", name="dicom", **fields):
    config = tiny_volumes.config_of(data__name=name, data__root=str(root), **fields)
    return dataset.load_source(config, split)


def hounsfield(shape=(12, 20, 24), seed=0):
    """(slices, rows, columns), with air, so that no two slices and no two rows are alike."""
    units = np.random.default_rng(seed).integers(-1000, 1500, shape)
    units[:, :4] = -1000
    return units.astype(np.int16)


def expected(volume, low=-1000, high=1000):
    """The same as a volume in RAS orientation, scaled: columns run to the left, rows to the back."""
    ras = volume.transpose(2, 1, 0)[::-1, ::-1]
    return ((np.clip(ras, low, high) - low) / (high - low)).astype(np.float16)


def test_slices_are_sorted_by_position_whatever_their_names(tmp_path):
    volume = hounsfield()
    order = np.random.default_rng(1).permutation(12)
    made.slices(tmp_path / "set", volume, order=order)
    source = load(tmp_path / "set")
    assert len(source) == 1 and source.modalities == ["ct"]
    np.testing.assert_array_equal(source.read(0)[..., 0], expected(volume))
    assert source.header(0) == (24, 20, 12)
    assert source.grid_of(0).spacing == pytest.approx((0.7, 0.8, 2.5))
    assert any("volumes: 1, slices of a volume: 12 to 12, planes: axial 1" in note for note in source.notes)


ORIENTATIONS = {
    "axial": (1, 0, 0, 0, 1, 0), "axial, feet first": (1, 0, 0, 0, -1, 0), "sagittal": (0, 1, 0, 0, 0, -1),
    "coronal": (1, 0, 0, 0, 0, -1), "oblique": (0.9986295, 0.0, -0.0523360, 0.0, 1.0, 0.0),
}  # fmt: skip


@pytest.mark.parametrize("name", ORIENTATIONS)
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_series_agree_with_dcm2niix_to_the_voxel_and_the_affine(tmp_path, name, modality):
    import dcm2niix

    folder, out = tmp_path / "set", tmp_path / "nifti"
    made.slices(folder, hounsfield(), orientation=ORIENTATIONS[name], order=np.random.default_rng(2).permutation(12),
                modality=modality)  # fmt: skip
    out.mkdir()
    subprocess.run([dcm2niix.bin, "-z", "n", "-f", "v", "-o", str(out), str(folder)], check=True, capture_output=True)
    theirs = nib.as_closest_canonical(nib.load(out / "v.nii"))
    headers = [dicom_file for dicom_file in map(_header, sorted(folder.glob("*.dcm")))]
    series, left_out = dicom_series.build(headers)
    assert len(series) == 1 and not left_out
    ours = series[0].open(10**7)
    np.testing.assert_array_equal(ours.values(np.float32), np.asarray(theirs.dataobj, np.float32))
    np.testing.assert_allclose(ours.in_ras()[2], theirs.affine, atol=2e-4)


def _header(path):
    from deblur_mae_jax.data import dicom_file

    return dicom_file.header(str(path))


def reasons(root):
    try:
        return " | ".join(s.reason for s in load(root).skipped)
    except UserError as error:
        return str(error)


def test_a_wrong_window_is_one_clear_line(tmp_path):
    made.slices(tmp_path, hounsfield())
    with pytest.raises(UserError, match=r"config\.data\.ct_window=\(1\.0,\) must be two numbers \(low, high\)"):
        load(tmp_path, data__ct_window=(1.0,))


def test_gaps_tilts_and_other_faults_are_named(tmp_path):
    volume = hounsfield()
    made.slices(tmp_path / "gap", volume)
    os.unlink(tmp_path / "gap" / "0005.dcm")
    assert "a gap: slices are 2.5 mm apart, and 5 mm in one place" in reasons(tmp_path / "gap")
    made.slices(tmp_path / "few", volume[:5])
    assert "5 slices; a volume needs 8" in reasons(tmp_path / "few")

    def tilt(values, k):
        x, y, z = values.ImagePositionPatient
        values.ImagePositionPatient = [x, float(y) + 0.5 * k, z]

    made.slices(tmp_path / "tilt", volume, change=tilt)
    assert "the gantry is tilted by 11.3 degrees" in reasons(tmp_path / "tilt")

    def twice(values, k):
        values.ImagePositionPatient = [-10.0, -20.0, 5.0 + 2.5 * (k // 2)]

    made.slices(tmp_path / "twice", np.concatenate([volume, volume]), change=twice)
    assert "positions hold several slices" in reasons(tmp_path / "twice")
    made.slices(tmp_path / "pet", volume, modality="PT")
    assert "modality PT: only CT and MR" in reasons(tmp_path / "pet")

    def localiser(values, k):
        values.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    made.slices(tmp_path / "scout", volume, change=localiser)
    assert "a localiser" in reasons(tmp_path / "scout")


def test_one_series_with_two_orientations_and_two_acquisitions(tmp_path):
    made.slices(tmp_path / "set" / "a", hounsfield(seed=0))
    made.slices(tmp_path / "set" / "b", hounsfield(seed=1), orientation=ORIENTATIONS["coronal"])
    made.slices(tmp_path / "set" / "c", hounsfield((12, 20, 24), seed=2), series="1.2.3.1.2")

    def second(values, k):
        values.AcquisitionNumber = 2

    made.slices(tmp_path / "set" / "d", hounsfield((12, 20, 24), seed=3), series="1.2.3.1.2", change=second)
    source = load(tmp_path / "set")
    assert len(source) == 4 and len(set(source.names)) == 4 and len(set(source.groups)) == 1
    assert any("axial 3, coronal 1" in note for note in source.notes)
    for i, seed in ((0, 0), (2, 2), (3, 3)):
        np.testing.assert_array_equal(source.read(i)[..., 0], expected(hounsfield(seed=seed)))


def test_a_slope_of_each_slice(tmp_path):
    def slope(values, k):
        values.RescaleSlope, values.RescaleIntercept = 2, -1024 - 3 * k

    volume = hounsfield()
    made.slices(tmp_path / "set", volume, change=slope)
    units = (volume.astype(float) + 1024) * 2 - 1024 - 3 * np.arange(12)[:, None, None]
    np.testing.assert_allclose(load(tmp_path / "set").read(0)[..., 0], expected(units), atol=1e-3)


def test_enhanced_multi_frame_files(tmp_path):
    volume = hounsfield()
    values = made.base("1.2.840.10008.5.1.4.1.1.2.1", modality="CT")
    made.with_pixels(values, (volume + 1024).astype(np.uint16), bits=12)
    values.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    shared, measures, turn, change = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.8, 0.7], 2.5
    turn.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    change.RescaleSlope, change.RescaleIntercept = 1, -1024
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [turn]
    shared.PixelValueTransformationSequence = [change]
    values.SharedFunctionalGroupsSequence = [shared]
    order = np.random.default_rng(0).permutation(12)
    values.PixelData = (volume[order] + 1024).astype(np.uint16).tobytes()
    groups = []
    for k in order:
        frame, place = Dataset(), Dataset()
        place.ImagePositionPatient = [-10.0, -20.0, 5.0 + 2.5 * float(k)]
        frame.PlanePositionSequence = [place]
        groups.append(frame)
    values.PerFrameFunctionalGroupsSequence = groups
    made.save(values, tmp_path / "set" / "a.dcm")
    np.testing.assert_array_equal(load(tmp_path / "set").read(0)[..., 0], expected(volume))


def organs():
    mask = np.zeros((12, 20, 24), np.uint8)
    mask[3:7, 5:12, 4:14], mask[8:10, 13:18, 15:22] = 1, 2
    return mask


def segment(root, **fields):
    config = tiny_volumes.segmentation(data__name="dicom", data__root=str(root), data__folds=3, **fields)
    return inherit.resolve(config)[0]


@pytest.mark.parametrize("kind", ["DICOM SEG", "NIfTI"])
def test_masks_of_series(tmp_path, kind):
    from deblur_mae_jax import network
    from deblur_mae_jax.training import supervision

    rows = []
    for i in range(6):
        folder = tmp_path / "set" / f"{i}"
        made.slices(folder, hounsfield(seed=i), series=f"1.2.3.1.{i}", patient=f"P{i}", study=f"1.2.{i}")
        if kind == "DICOM SEG":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made.segmentation(tmp_path / "set" / f"seg{i}.dcm", folder, organs())
        else:
            affine = np.diag([-0.7, -0.8, 2.5, 1])
            affine[:3, 3] = 10, 20, 5
            (tmp_path / "masks").mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(organs().transpose(2, 1, 0), affine), tmp_path / "masks" / f"{i}.nii.gz")
            rows.append(f"1.2.3.1.{i},masks/{i}.nii.gz")
    fields = {}
    if rows:
        (tmp_path / "labels.csv").write_text("\n".join(["SeriesInstanceUID,mask", *rows]) + "\n")
        fields["data__labels"] = str(tmp_path / "labels.csv")
    config = segment(tmp_path / "set", **fields)
    found, labels = supervision.divided(config, network.identify(config))
    assert len(found) == 6 and labels.mask_values == [0, 1, 2]
    np.testing.assert_array_equal(found.source.masks(0), organs().transpose(2, 1, 0)[::-1, ::-1])


def test_a_segmentation_of_another_grid_is_refused(tmp_path):
    folder = tmp_path / "set" / "a"
    made.slices(folder, hounsfield())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.segmentation(tmp_path / "set" / "seg.dcm", folder, organs())
    path = tmp_path / "set" / "seg.dcm"
    values = pydicom.dcmread(path)
    for frame in values.PerFrameFunctionalGroupsSequence:
        frame.PlanePositionSequence[0].ImagePositionPatient[0] += 0.3
    values.save_as(path)
    config = segment(tmp_path / "set")
    with pytest.raises(UserError, match="not on the voxels of its series"):
        index.build(dataset.load_source(config, "all"), masks=True)


def test_segmentations_that_name_one_segment_differently_or_no_series_are_listed(tmp_path):
    folder = tmp_path / "set" / "ct"
    made.slices(folder, hounsfield())
    for name, label in (("liver", "part 1"), ("spleen", "another organ")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made.segmentation(tmp_path / "set" / f"{name}.dcm", folder, (organs() == 1).astype(np.uint8))
        values = pydicom.dcmread(tmp_path / "set" / f"{name}.dcm")
        values.SegmentSequence[0].SegmentLabel = label
        values.save_as(tmp_path / "set" / f"{name}.dcm")
    found = load(tmp_path / "set")
    reasons = [item.reason for item in found.skipped]
    assert len(reasons) == 2 and found.masks is None
    assert all("name segment 1 differently" in reason and "organ" not in reason for reason in reasons)
    values.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3.999"
    values.save_as(tmp_path / "set" / "spleen.dcm")
    found = load(tmp_path / "set")
    assert [item.reason for item in found.skipped] == ["a segmentation of a series that is no volume here"]
    assert found.masked == [True]


def test_segmentations_that_number_their_segments_differently_are_not_merged(tmp_path):
    for i in range(3):
        folder = tmp_path / "set" / f"{i}"
        made.slices(folder, hounsfield(seed=i), series=f"1.2.3.1.{i}", patient=f"P{i}", study=f"1.2.{i}")
        path = tmp_path / "set" / f"seg{i}.dcm"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made.segmentation(path, folder, organs())
        values = pydicom.dcmread(path)
        for segment_, label in zip(
            values.SegmentSequence, [("Liver", "Spleen"), ("liver ", "Spleen"), ("Spleen", "Liver")][i], strict=True
        ):
            segment_.SegmentLabel = label
        values.save_as(path)
    found = load(tmp_path / "set")
    [left_out] = found.skipped
    assert (
        "the label of its segment 1 has another number in most" in left_out.reason and "Spleen" not in left_out.reason
    )
    assert sorted(found.masked) == [False, True, True]
    values.SegmentSequence[0].SegmentLabel, values.SegmentSequence[1].SegmentLabel = "Hepar", "Spleen"
    values.save_as(path)  # another word for the same organ, as far as anybody can tell
    found = load(tmp_path / "set")
    assert found.masked == [True] * 3 and "segment 1 has 2 different names" in " | ".join(found.notes)


def test_a_packed_set_holds_no_hash_without_a_key(tmp_path):
    import deblur_mae_jax as dm

    made.slices(tmp_path / "set" / "ct", hounsfield(), series="1.2.3.1.7")
    dm.pack(f"{tmp_path / 'set'}=ct", tmp_path / "packed")
    one = load(tmp_path / "set")
    text = b"".join(path.read_bytes() for path in (tmp_path / "packed").rglob("*") if path.is_file())
    assert one.keys and one.keys[0].encode() not in text


def test_slices_beside_the_line_are_no_volume(tmp_path):
    def change(values, k):
        if 4 <= k < 8:
            x, y, z = values.ImagePositionPatient
            values.ImagePositionPatient = [x + 30, y, z]

    made.slices(tmp_path / "set" / "ct", hounsfield(), change=change)
    with pytest.raises(UserError, match=r"the slices are not on one straight line: one is 30\.0 mm away from it"):
        load(tmp_path / "set")


def test_a_folder_of_series_is_found_by_itself(tmp_path):
    made.slices(tmp_path / "set", hounsfield())
    for root in (str(tmp_path / "set"), f"{tmp_path / 'set'}=ct"):
        source = load(root, name="nifti")
        assert len(source) == 1 and source.notes[0].startswith("most files are DICOM")


def test_predictions_are_written_on_the_grid_of_the_series(tmp_path):
    made.slices(tmp_path / "set", hounsfield())
    source = load(tmp_path / "set")
    labels = organs().transpose(2, 1, 0)[::-1, ::-1]
    path = source.grid_of(0).save(labels, tmp_path / "out")
    image = nib.load(path)
    np.testing.assert_array_equal(np.asarray(nib.as_closest_canonical(image).dataobj), labels)
    np.testing.assert_allclose(image.affine @ [0, 0, 0, 1], [10, 20, 5, 1], atol=1e-5)


def test_moved_files_are_the_same_data(tmp_path):
    made.slices(tmp_path / "a", hounsfield())
    first = index.build(load(tmp_path / "a")).fingerprint
    os.rename(tmp_path / "a", tmp_path / "b")
    assert index.build(load(tmp_path / "b")).fingerprint == first


@pytest.mark.slow
def test_series_are_trained_on_and_segmented(tmp_path):
    from deblur_mae_jax import train
    from deblur_mae_jax.commands import predict

    for i in range(6):
        folder = tmp_path / "set" / f"{i}"
        made.slices(folder, hounsfield((16, 20, 24), seed=i), series=f"1.2.3.1.{i}", patient=f"P{i}", study=f"1.2.{i}")
        mask = np.zeros((16, 20, 24), np.uint8)
        mask[4:10, 5:12, 4:14] = 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made.segmentation(tmp_path / "set" / f"seg{i}.dcm", folder, mask)
    root = str(tmp_path / "set")
    config = tiny_volumes.config_of(data__name="dicom", data__root=root, task__contrast="none")
    train.train_and_evaluate(config, tmp_path / "dae")
    config = tiny_volumes.segmentation(
        data__name="dicom", data__root=root, data__folds=3, init_from=str(tmp_path / "dae")
    )
    train.train_and_evaluate(config, tmp_path / "segmenter")
    out = predict.run(tmp_path / "segmenter", root, str(tmp_path / "out"))
    assert len(list(out.glob("*.nii.gz"))) == 6


# Series as scanners write them. Each of them was divided, joined or read wrongly in silence.


def changing(folder, change, volume=None, **options):
    """A series whose slices are changed by `change(values, number)`."""
    made.slices(folder, hounsfield((24, 20, 24)) if volume is None else volume, change=change, **options)
    return load(folder)


def test_noise_of_directions_and_pixel_sizes_divides_nothing(tmp_path):
    def noise(values, k):
        e = 0.0005 + 1e-6 * (-1) ** k
        values.ImageOrientationPatient = [1, e, 0, -e, 1, 0]
        values.PixelSpacing = [0.35155 + 1e-9 * (-1) ** k] * 2

    source = changing(tmp_path, noise)
    assert len(source) == 1 and source.size_of(0)[2] == 24


def test_a_time_of_each_slice_divides_nothing(tmp_path):
    def times(values, k):
        values.TriggerTime, values.AcquisitionTime = 10.0 * k, f"1200{k:02d}"

    assert len(changing(tmp_path, times)) == 1


@pytest.mark.parametrize("tell", ["EchoTime", "AcquisitionTime", "TemporalPositionIdentifier", "AcquisitionNumber"])
def test_repeated_places_are_divided_by_what_differs(tmp_path, tell):
    volume = hounsfield((24, 20, 24))

    def change(values, k):
        values.ImagePositionPatient = [-10.0, -20.0, 2.5 * (k // 2)]
        value = f"12000{k % 2}" if tell == "AcquisitionTime" else str(k % 2 + 1)
        values[tell] = pydicom.DataElement(tell, pydicom.datadict.dictionary_VR(tell), value)

    source = changing(tmp_path, change, volume)
    assert sorted(source.size_of(i)[2] for i in range(len(source))) == [12, 12]
    found = {source.read(i)[..., 0].tobytes() for i in range(2)}
    assert found == {expected(volume[first::2]).tobytes() for first in (0, 1)}


def test_alternating_acquisitions_are_said(tmp_path):
    def change(values, k):
        values.AcquisitionNumber = k % 2 + 1

    source = changing(tmp_path, change)
    assert len(source) == 1 and any("2 acquisitions are put together" in note for note in source.examine(0)[1])


def test_two_patients_with_one_series_uid_are_two_volumes(tmp_path):
    def change(values, k):
        values.PatientID = f"P{k // 12}"

    source = changing(tmp_path, change)
    assert len(source) == 2 and len(set(source.groups)) == 2


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("ImageType", ["ORIGINAL", "PRIMARY", "MOSAIC"], "a mosaic"),
        ("ImageOrientationPatient", [2, 0, 0, 0, 2, 0], "two unit vectors"),
        ("PixelSpacing", [0, 0], "pixel size is no number"), ("RescaleSlope", 0, "RescaleSlope is 0"),
        ("ImageType", ["DERIVED", "SECONDARY", "MIP"], "projection"),
        ("NumberOfFrames", 2, "2 frames without positions"),
    ],
)  # fmt: skip
def test_headers_that_no_volume_has_are_named(tmp_path, field, value, reason):
    made.slices(tmp_path, hounsfield(), change=lambda values, k: setattr(values, field, value))
    assert reason in reasons(tmp_path)


def test_reformatted_series_are_volumes(tmp_path):
    def change(values, k):
        values.ImageType = ["DERIVED", "SECONDARY", "REFORMATTED"]

    assert len(changing(tmp_path, change)) == 1


@pytest.mark.filterwarnings("ignore:Invalid value")
def test_one_damaged_position_stops_nothing(tmp_path):
    made.slices(tmp_path, hounsfield())
    path = sorted(tmp_path.glob("*.dcm"))[0]
    values = pydicom.dcmread(path)
    values.ImagePositionPatient = ["nan", "0", "0"]
    values.save_as(path)
    source = load(tmp_path)
    assert source.size_of(0)[2] == 11 and any("is no number" in s.reason for s in source.skipped)


def test_echoes_of_an_enhanced_file_are_volumes(tmp_path):
    volume = hounsfield((24, 20, 24))
    values = made.base("1.2.840.10008.5.1.4.1.1.4.1", modality="MR")
    made.with_pixels(values, (volume + 1024).astype(np.uint16), bits=12)
    shared, measures, turn = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, turn.ImageOrientationPatient = [0.8, 0.7], [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [turn]
    values.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for k in range(24):
        frame, place, echo = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [-10.0, -20.0, 2.5 * (k // 2)]
        echo.EffectiveEchoTime = (10.0, 30.0)[k % 2]
        frame.PlanePositionSequence, frame.MREchoSequence = [place], [echo]
        groups.append(frame)
    values.PerFrameFunctionalGroupsSequence = groups
    made.save(values, tmp_path / "set" / "a.dcm")
    source = load(tmp_path / "set")
    assert [source.size_of(i) for i in range(len(source))] == [(24, 20, 12)] * 2
    want = [np.argmax(volume[first::2].transpose(2, 1, 0)[::-1, ::-1]) for first in (0, 1)]
    for i in range(2):
        assert source.read(i)[..., 0].ravel()[want[i]] == source.read(i).max()


def notes_of(source):
    return " | ".join(index.build(source).notes)


def test_a_series_whose_slices_drift_is_left_out(tmp_path):
    """Each step is within a tenth of the others, but their errors add up."""

    def stretched(values, k):
        values.ImagePositionPatient[2] = 5.0 + 2.5 * min(k, 20) + 2.7 * max(k - 20, 0)

    made.slices(tmp_path / "set", hounsfield((40, 6, 6)), change=stretched)
    with pytest.raises(
        UserError, match=r"slices are 2\.5 to 2\.7 mm apart: .* a slice would be .* mm away from its position"
    ):
        load(tmp_path / "set")


def test_slightly_uneven_slices_are_read_with_a_note(tmp_path):
    def stretched(values, k):
        values.ImagePositionPatient[2] = 5.0 + 2.5 * min(k, 6) + 2.7 * max(k - 6, 0)

    made.slices(tmp_path / "set", hounsfield((12, 6, 6)), change=stretched)
    assert "slices are read as evenly spaced; one of them is then" in notes_of(load(tmp_path / "set"))


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_padding_is_no_measurement(tmp_path, modality):
    volume = np.abs(hounsfield()) if modality == "MR" else hounsfield()
    volume[:, 10:] = 0 if modality == "MR" else -1000

    def padded(values, k):
        values.PixelPaddingValue = 4095
        stored = (volume[k] + 1024).astype(np.uint16)
        stored[10:] = 4095
        values.PixelData = stored.tobytes()

    intercept = lambda values, k: setattr(values, "RescaleIntercept", -1024)
    made.slices(tmp_path / "plain", volume, modality=modality, change=intercept)
    made.slices(tmp_path / "padded", volume, modality=modality, change=padded)
    plain, found = load(tmp_path / "plain"), load(tmp_path / "padded")
    np.testing.assert_array_equal(found.read(0), plain.read(0))
    assert "PixelPaddingValue" in notes_of(found) and "PixelPaddingValue" not in notes_of(plain)


def test_ct_without_an_intercept_is_said_although_its_padding_is_negative(tmp_path):
    def signed(values, k):
        del values.RescaleIntercept, values.RescaleSlope
        values.PixelRepresentation, values.PixelPaddingValue = 1, -2000
        stored = np.abs(hounsfield()[k])
        stored[:2] = -2000
        values.PixelData = stored.astype(np.int16).tobytes()

    made.slices(tmp_path / "set", hounsfield(), change=signed)
    said = notes_of(load(tmp_path / "set"))
    assert "CT without RescaleIntercept" in said and "CT without a value below 0" in said


def test_a_series_without_the_size_of_its_pixels_is_named(tmp_path):
    made.slices(tmp_path / "set", hounsfield(), change=lambda values, k: delattr(values, "PixelSpacing"))
    with pytest.raises(UserError, match="size of its pixels is unknown"):
        load(tmp_path / "set")
