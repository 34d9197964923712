"""2-D images from DICOM: every photometric interpretation and transfer syntax, regions, clips, labels, privacy."""

import os
import warnings
import zipfile

import dicom_files as made
import numpy as np
import pyarrow.parquet
import pydicom
import pytest
import tiny
from dicom_files import picture
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from deblur_mae_jax.data import (
    dataset,
    decode,
    dicom_file,
    dicom_pixels,
    dicom_series,
    dicom_windows,
    index,
    packing,
    privacy,
    splits,
)
from deblur_mae_jax.data.dicom_pixels import FrameReader
from deblur_mae_jax.data.source import BadImage
from deblur_mae_jax.errors import UserError


@pytest.fixture(autouse=True)
def a_key(tmp_path):
    privacy.use(tmp_path)
    yield
    privacy.use(None)


def load(root, split="all", name="finetune", source="dicom", **fields):
    config = tiny.resolved(name, data__name=source, data__root=str(root), **fields)
    return dataset.load_source(config, split)


def read(path, **fields):
    return FrameReader(**fields).read(dicom_file.header(str(path)), 0)


def gray(path, **fields):
    return read(path, **fields)[0][..., 0]


def test_the_files_of_these_tests_hold_what_the_standard_asks_for(tmp_path):
    made.still(tmp_path / "picture.dcm")
    clip(tmp_path / "clip.dcm", np.zeros((4, 5, 6), np.uint8))
    made.slices(tmp_path / "series", np.zeros((8, 5, 6)))
    for path in (tmp_path / "picture.dcm", tmp_path / "clip.dcm", tmp_path / "series" / "0000.dcm"):
        assert made.faults(pydicom.dcmread(path)) == []
    values = pydicom.dcmread(path)
    del values.StudyDate
    values.FrameOfReferenceUID = ""
    assert {"FrameOfReferenceUID: TagEmpty", "StudyDate: TagMissing"} <= set(made.faults(values))


@pytest.mark.parametrize("syntax", ["native", "implicit", "rle", "jpeg", "jpeg2000", "jpegls", "jpeg_lossless"])
@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1", "RGB"])
def test_photometry_and_compression(tmp_path, syntax, photometric):
    frame = np.dstack([picture()] * 3) if photometric == "RGB" else picture()
    if photometric == "RGB" and syntax in ("jpeg", "jpeg_lossless"):
        return  # a JPEG of RGB colours has its own test; the encoder of lossless JPEG takes gray only
    path = made.still(tmp_path / "a.dcm", frame, syntax=syntax, photometric=photometric)
    want = 255 - picture() if photometric == "MONOCHROME1" else picture()
    assert abs(gray(path, crop="none").astype(int) - want).max() <= (3 if syntax == "jpeg" else 0)
    assert read(path, channels=3, crop="none")[0].shape == (40, 60, 3)


def coloured():
    out = np.zeros((40, 60, 3), np.uint8)
    out[..., 0], out[..., 1], out[..., 2] = picture(), picture()[::-1], 90
    return out


def test_ybr_full_is_converted(tmp_path):
    ybr = np.asarray(Image.fromarray(coloured()).convert("YCbCr"))
    path = made.still(tmp_path / "a.dcm", ybr, photometric="YBR_FULL")
    assert abs(read(path, channels=3, crop="none")[0].astype(int) - coloured()).max() <= 3


@pytest.mark.parametrize("label", ["YBR_FULL_422", "RGB"])
def test_a_jpeg_is_read_as_its_stream_says(tmp_path, label):
    """Many devices write RGB in the header and YCbCr in the stream."""
    nearly_gray = np.dstack([picture(), np.clip(picture() + 4.0, 0, 255), picture()]).astype(np.uint8)
    path = made.still(tmp_path / "a.dcm", nearly_gray, syntax="jpeg", photometric=label)
    pixels, notes = read(path, channels=3, crop="none")
    assert abs(pixels.astype(int) - nearly_gray).max() <= 5
    assert (dicom_pixels.YBR_NAMED_RGB in notes) == (label == "RGB")


def test_a_jpeg_without_markers_is_known_by_its_chroma(tmp_path):
    stream = made.jpeg(np.dstack([picture()] * 3))
    length = int.from_bytes(stream[4:6], "big")
    bare = stream[:2] + stream[4 + length :]  # without the JFIF segment
    values = made.with_pixels(made.base(), np.dstack([picture()] * 3)[None], photometric="RGB")
    values.file_meta.TransferSyntaxUID = made.SYNTAXES["jpeg"]
    values.PixelData = pydicom.encaps.encapsulate([bare])
    values["PixelData"].is_undefined_length = True
    pixels, notes = read(made.save(values, tmp_path / "a.dcm"), channels=3, crop="none")
    assert abs(pixels.astype(int) - picture()[..., None]).max() <= 5 and dicom_pixels.YBR_NAMED_RGB in notes


def test_a_jpeg_of_true_rgb_stays_rgb(tmp_path):
    import imagecodecs

    stream = imagecodecs.jpeg8_encode(coloured(), level=99, colorspace="rgb", outcolorspace="rgb", subsampling="444")
    values = made.with_pixels(made.base(), coloured()[None], photometric="RGB")
    values.file_meta.TransferSyntaxUID = made.SYNTAXES["jpeg"]
    values.PixelData = pydicom.encaps.encapsulate([stream])
    values["PixelData"].is_undefined_length = True
    path = made.save(values, tmp_path / "a.dcm")
    assert abs(read(path, channels=3, crop="none")[0].astype(int) - coloured()).max() <= 6


def test_palettes(tmp_path):
    values = made.with_pixels(made.base(), picture()[None], photometric="PALETTE COLOR")
    for i, name in enumerate(("Red", "Green", "Blue")):
        table = (np.arange(256, dtype=np.uint16) * 257) if i != 1 else np.zeros(256, np.uint16)
        setattr(values, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(values, f"{name}PaletteColorLookupTableData", table.tobytes())
    pixels, _ = read(made.save(values, tmp_path / "a.dcm"), channels=3, crop="none")
    np.testing.assert_array_equal(pixels[..., 0], picture())
    assert pixels[..., 1].max() == 0


def test_windows(tmp_path):
    units = np.linspace(-1000, 1000, 2400).reshape(40, 60).astype(np.int16)
    path = made.still(
        tmp_path / "a.dcm", (units + 1024).astype(np.uint16), bits=12, modality="CT", sop_class=made.CT,
        RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400,
    )  # fmt: skip
    expect = lambda low, high: np.rint(np.clip((units.astype(float) - low) / (high - low), 0, 1) * 255)
    assert abs(gray(path) - expect(-160, 239)).max() <= 1
    assert abs(gray(path, window="lung") - expect(-1350, 150)).max() <= 1
    assert abs(gray(path, window="-100,300") - expect(-100, 300)).max() <= 1
    values = pydicom.dcmread(path)
    del values.WindowCenter, values.WindowWidth
    values.save_as(path)
    pixels, notes = read(path)
    assert abs(pixels[..., 0] - expect(units.min(), units.max())).max() <= 1 and dicom_windows.NO_WINDOW in notes
    with pytest.raises(UserError, match="must be 'low,high' or one of lung"):
        load(tmp_path, data__window="wide")


def test_gray_stored_as_colour_and_doppler(tmp_path):
    frame = np.dstack([picture()] * 3)
    frame[0, 0] = (255, 0, 0)
    assert read(made.still(tmp_path / "a.dcm", frame, photometric="RGB"), crop="none")[1] == []
    frame[:10, :10] = (255, 0, 0)
    pixels, notes = read(made.still(tmp_path / "b.dcm", frame, photometric="RGB"), crop="none")
    assert notes == [decode.COLOUR.format("up to 5")] and pixels[5, 5, 0] == 76


def test_the_share_of_coloured_pixels_is_in_the_index_of_a_packed_set(tmp_path):
    frame = np.dstack([picture()] * 3)
    frame[:10, :12] = (255, 0, 0)
    made.still(tmp_path / "in" / "a.dcm", frame, photometric="RGB", SequenceOfUltrasoundRegions=[
        made.region(0, 0, 29, 19),
    ])  # fmt: skip
    made.still(tmp_path / "in" / "b.dcm")
    packing.pack(tiny.resolved("finetune", data__name="dicom", data__root=str(tmp_path / "in")), tmp_path / "out")
    shares = pyarrow.parquet.read_table(tmp_path / "out" / "index.parquet")["color_frac"].to_pylist()
    assert sorted(shares) == [0, pytest.approx(120 / 600)]


def scan(height=60, width=80, seed=0):
    """A picture with text at the top and a bright sector below."""
    out = np.zeros((height, width), np.uint8)
    out[2:6, 2:30] = 255
    out[12:55, 15:70] = np.random.default_rng(seed).integers(60, 200, (43, 55))
    return out


def test_ultrasound_regions_are_the_crop_and_give_the_spacing(tmp_path):
    flow = made.region(0, 0, 10, 10, data_type=2)
    path = made.still(tmp_path / "a.dcm", scan(), SequenceOfUltrasoundRegions=[made.region(15, 12, 69, 54), flow])
    np.testing.assert_array_equal(gray(path), scan()[12:55, 15:70])
    assert gray(path, crop="none").shape == (60, 80)
    source = load(tmp_path)
    assert source.header(0) == (43, 55) and source.grid_of(0).spacing == pytest.approx((0.1, 0.1))
    assert source.grid_of(0).unit == "mm" and "0.1 to 0.1 mm" in str(source.notes)


def test_without_regions_the_fan_is_found(tmp_path):
    path = made.still(tmp_path / "a.dcm", scan())
    assert np.abs(np.array(gray(path).shape) - (43, 55)).max() <= 4
    moving = np.stack([scan(seed=i) for i in range(6)])
    path = made.save(made.with_pixels(made.base(made.US_CLIP), moving), tmp_path / "b.dcm")
    assert np.abs(np.array(gray(path).shape) - (43, 55)).max() <= 4


def clip(path, frames, **options):
    values = made.with_pixels(made.base(made.US_CLIP, **options), frames)
    values.FrameTime = 100.0
    return made.save(values, path)


@pytest.mark.parametrize(
    ("frames", "want"),
    [("uniform(4)", [0, 10, 19, 29]), ("every(1.0 s)", [0, 10, 20]), ("all", list(range(30))), ("first", [0]),
     ("middle", [15])],
)  # fmt: skip
def test_frames_of_a_clip(tmp_path, frames, want):
    moving = np.stack([np.roll(picture(), 3 * i, axis=1) for i in range(30)])
    clip(tmp_path / "a.dcm", moving)
    source = load(tmp_path, data__frames=frames, data__crop="none")
    assert [int(name[-5:]) for name in source.names] == want and len(set(source.groups)) == 1
    for i, number in enumerate(want):
        np.testing.assert_array_equal(source.read(i)[..., 0], moving[number])


def test_frames_that_hardly_differ_are_dropped(tmp_path):
    rng = np.random.default_rng(0)
    different = [np.kron(rng.integers(0, 255, (5, 6)), np.ones((8, 10))).astype(np.uint8) for _ in range(3)]
    clip(tmp_path / "a.dcm", np.stack([different[i // 4] for i in range(12)]))
    found = index.build(load(tmp_path, data__frames="all", data__crop="none"), max_bad_fraction=0.9)
    assert len(found) == 3 and [s.reason for s in found.skipped] == ["nearly equal to an earlier frame of its clip"] * 9


def test_bad_choices_are_one_clear_line(tmp_path):
    made.still(tmp_path / "a.dcm")
    for frames in ("uniform(0)", "some", "every(0 s)", "every(1..2 s)"):
        with pytest.raises(UserError, match=r"config\.data\.frames"):
            load(tmp_path, data__frames=frames)
    with pytest.raises(UserError, match=r"config\.data\.crop: unknown name 'fan'"):
        load(tmp_path, data__crop="fan")


def test_what_holds_no_picture_is_named(tmp_path):
    made.still(tmp_path / "a.dcm")
    for number, (uid, modality) in enumerate([("1.2.840.10008.5.1.4.1.1.88.33", "SR"), ("1.2.840.10008.1.3.10", ""),
                                              ("1.2.840.10008.5.1.4.1.1.104.1", "DOC")]):  # fmt: skip
        made.save(made.base(uid, modality=modality), tmp_path / f"{number}.dcm")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty.dcm").write_bytes(b"")
    (tmp_path / "cut.dcm").write_bytes((tmp_path / "a.dcm").read_bytes()[:200])
    (tmp_path / "copy.dcm").write_bytes((tmp_path / "a.dcm").read_bytes())
    source = load(tmp_path)
    reasons = " | ".join(sorted(s.reason for s in source.skipped))
    assert len(source) == 1 and len(source.skipped) == 7
    for what in ("a structured report", "a DICOMDIR", "an encapsulated document", "not a DICOM file", "a copy of"):
        assert what in reasons


def test_a_file_without_preamble_and_damaged_pixels(tmp_path):
    path = made.still(tmp_path / "a.dcm")
    bare = tmp_path / "bare" / "b"
    bare.parent.mkdir()
    values = pydicom.dcmread(path)
    values.SOPInstanceUID = pydicom.uid.generate_uid()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(bare, values, implicit_vr=False, little_endian=True)
    bare.write_bytes(bare.read_bytes()[132:])
    assert dicom_file.is_dicom(str(bare)) and len(load(tmp_path)) == 2
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(BadImage, match="damaged"):
        read(path)


def test_sizes_are_refused_from_the_header(tmp_path):
    path = made.still(tmp_path / "a.dcm")
    values = pydicom.dcmread(path)
    values.Rows = values.Columns = 60000
    values.save_as(path)
    with pytest.raises(BadImage, match=r"60000 x 60000 pixels, over data.max_pixels"):
        read(path)


def test_burned_in_text_is_refused_cut_away_or_allowed(tmp_path):
    made.still(tmp_path / "a.dcm", scan(), BurnedInAnnotation="YES")
    assert len(load(tmp_path)) == 0 and "text is burned in" in str(load(tmp_path).skipped)
    assert len(load(tmp_path, data__allow_burned_in=True)) == 1
    made.still(
        tmp_path / "a.dcm", scan(), BurnedInAnnotation="YES",
        SequenceOfUltrasoundRegions=[made.region(15, 12, 69, 54)],
    )  # fmt: skip
    assert len(load(tmp_path)) == 1 and "text is burned in: 1 (cropped" in str(load(tmp_path).notes)
    assert len(load(tmp_path, data__crop="none")) == 0


def test_patients_are_hashed_and_constant_ones_are_studies(tmp_path):
    for i in range(6):
        made.still(tmp_path / f"{i}.dcm", patient=f"P{i // 2}", study=f"1.2.{i}")
    source = load(tmp_path)
    assert len(set(source.groups)) == 3 and not any("P1" in g for g in source.groups)
    assert load(tmp_path).groups == source.groups  # the key of the workdir
    fold = lambda source: splits.folds(["a"] * len(source), source.groups, 3).tolist()
    privacy.use(tmp_path / "other")
    assert load(tmp_path).groups != source.groups
    assert fold(load(tmp_path)) == fold(source)  # splits do not depend on the key
    for i in range(6):
        made.still(tmp_path / f"{i}.dcm", patient="anonymous" if i else "", study=f"1.2.{i}")
    source = load(tmp_path)
    assert len(set(source.groups)) == 6
    said = " | ".join(source.notes)
    assert "have the same PatientID" in said and "without a PatientID: 1" in said


def test_an_issuer_that_only_some_files_state_makes_no_second_patient(tmp_path):
    def issued(i, patient, issuer):
        made.still(tmp_path / f"{i}.dcm", patient=patient, study=f"1.2.{i}")
        values = pydicom.dcmread(tmp_path / f"{i}.dcm")
        values.IssuerOfPatientID = issuer
        values.save_as(tmp_path / f"{i}.dcm")

    for i, (patient, issuer) in enumerate([("A", "X"), ("A", ""), ("B", "X"), ("B", "Y"), ("B", ""), ("C", "")]):
        issued(i, patient, issuer)
    source = load(tmp_path)
    said = " | ".join(source.notes)
    assert len(set(source.groups)) == 5
    assert "1 PatientIDs have an IssuerOfPatientID in some files only" in said
    assert "1 PatientIDs have several issuers, and none in some files" in said


@pytest.mark.parametrize("key", ["SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID", "path"])
def test_labels_from_a_csv(tmp_path, key):
    rows = []
    for i in range(12):
        made.still(tmp_path / "set" / f"{i}.dcm", patient=f"P{i}", study=f"1.2.{i}", series=f"1.3.{i}")
        values = pydicom.dcmread(tmp_path / "set" / f"{i}.dcm")
        cell = f"{i}.dcm" if key == "path" else values[key].value
        rows.append(f"{cell},{'ab'[i % 2]},{('train', 'validation', 'test')[i // 4]}")
    rows = [*rows[:-1], "9.9.9,a,train"]
    (tmp_path / "labels.csv").write_text("\n".join([f"{key},label,split", *rows]) + "\n")
    fields = {"data__labels": str(tmp_path / "labels.csv")}
    source = load(tmp_path / "set", **fields)
    assert source.labels[0] == "a" and sorted(set(source.splits)) == ["", "test", "train", "val"]
    assert any("DICOM files without a row in config.data.labels: 1" in n for n in source.notes)
    assert any("rows of config.data.labels that name no DICOM file: 1" in n for n in source.notes)
    train = load(tmp_path / "set", "train", **fields)
    assert len(train) == 4 and train.unused == {"val": 4, "test": 3}
    config = tiny.resolved("finetune", data__name="dicom", data__root=str(tmp_path / "set"), data__split="train",
                           data__val_split="val", data__test_split="test", **fields)  # fmt: skip
    found = splits.labelled(lambda split: dataset.load_source(config, split), config.data)
    assert found.classes == ["a", "b"] and len(found.source) == 11


def test_masks_from_a_csv_are_cut_like_their_pictures(tmp_path):
    mask = np.zeros((60, 80), np.uint8)
    mask[20:40, 30:50] = 1
    rows = ["PatientID,mask"]
    for name in "abc":
        made.still(tmp_path / "set" / f"{name}.dcm", scan(), patient=name,
                   SequenceOfUltrasoundRegions=[made.region(15, 12, 69, 54)])  # fmt: skip
        rows.append(f"{name},masks/{name}_DOE.png")
    clip(tmp_path / "set" / "clip.dcm", np.stack([scan(seed=i) for i in range(9)]))
    rows.append("P1,masks/a_DOE.png")
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks" / "a_DOE.png")
    Image.fromarray(mask[:50]).save(tmp_path / "masks" / "b_DOE.png")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    source = load(tmp_path / "set", data__labels=str(tmp_path / "labels.csv"))
    np.testing.assert_array_equal(source.masks(0), mask[12:55, 15:70])
    np.testing.assert_array_equal(source.grid_of(0).truth(), mask[12:55, 15:70])
    assert source.masked[:3] == [True] * 3 and not any(source.masked[3:])
    assert any("clips with a mask in config.data.labels: 1" in note for note in source.notes)
    with pytest.raises(BadImage, match="its mask is 80 x 50 pixels, the image 80 x 60"):
        source.masks(1)
    with pytest.raises(BadImage, match="mask") as error:
        source.masks(2)
    assert "DOE" not in str(error.value)
    small = load(tmp_path / "set", data__labels=str(tmp_path / "labels.csv"), data__max_side=28)
    assert small.masks(0).shape == small.read(0).shape[:2] == (22, 28)


@pytest.mark.parametrize("patient", ["patient_id", "Patient ID", "PatientID"])
@pytest.mark.parametrize("key", ["SOPInstanceUID", "path"])
def test_a_patient_beside_a_picture_is_its_group(tmp_path, key, patient):
    rows = []
    for i in range(6):
        made.still(tmp_path / "set" / f"{i}.dcm", patient=f"P{i}")
        values = pydicom.dcmread(tmp_path / "set" / f"{i}.dcm")
        rows.append(f"{f'{i}.dcm' if key == 'path' else values[key].value},X{i // 3},{'ab'[i % 2]}")
    (tmp_path / "labels.csv").write_text("\n".join([f"{key},{patient},label", *rows]) + "\n")
    source = load(tmp_path / "set", data__labels=str(tmp_path / "labels.csv"))
    assert len(set(source.groups)) == 2 and source.labels == list("ababab")


def test_damaged_rows_of_the_labels_are_counted_without_their_cells(tmp_path):
    for i in range(3):
        made.still(tmp_path / "set" / f"{i}.dcm", patient=f"P{i}")
    (tmp_path / "labels.csv").write_text("PatientID,label\nP0,a\nP1,malignant, grade 2\nP2,b\n")
    text = " ".join(load(tmp_path / "set", data__labels=str(tmp_path / "labels.csv")).notes)
    assert "left out: 1, the first in line 3: more cells than columns" in text and "grade" not in text


def test_optional_numbers_that_are_damaged_lose_no_picture(tmp_path):
    path = made.still(tmp_path / "a.dcm")
    values = pydicom.dcmread(path)
    values.PixelSpacing = [0.3, 0.3]
    values.FrameTime = 33.3
    values.save_as(path)
    path.write_bytes(path.read_bytes().replace(b"0.3\\0.3", b"0,3\\0,3").replace(b"33.3", b"33,3"))
    source = load(tmp_path)
    assert len(source) == 1 and "FrameTime of 1 files, PixelSpacing of 1 files" in " ".join(source.notes)
    source.read(0)


def test_colours_that_contradict_the_channels_are_refused(tmp_path):
    path = made.still(tmp_path / "a.dcm")
    values = pydicom.dcmread(path)
    values.PhotometricInterpretation = "RGB"
    values.save_as(path)
    with pytest.raises(BadImage, match="SamplesPerPixel is 1, but PhotometricInterpretation 'RGB' has 3"):
        load(tmp_path).read(0)


def test_labels_that_contradict_each_other_are_refused(tmp_path):
    made.still(tmp_path / "set" / "a.dcm")
    (tmp_path / "labels.csv").write_text("PatientID,label\nP1,a\nP1,b\n")
    with pytest.raises(UserError, match="rows with the same PatientID and different contents"):
        load(tmp_path / "set", data__labels=str(tmp_path / "labels.csv"))


def test_a_folder_of_dicom_is_found_by_itself(tmp_path):
    for i in range(3):
        made.still(tmp_path / "set" / f"IM{i}", patient=f"P{i}")
    source = load(tmp_path / "set", source="image_folder")
    assert len(source) == 3 and source.notes[0].startswith("most files are DICOM")
    Image.fromarray(picture()).save(tmp_path / "set" / "a.png")
    assert "read with config.data.name=dicom" not in str(load(tmp_path / "set", source="image_folder").skipped)


def test_without_pydicom_it_is_one_clear_line(tmp_path, monkeypatch):
    made.still(tmp_path / "a.dcm")
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(UserError, match=r"need pydicom.*\[dicom\]"):
        load(tmp_path)


def test_the_key_is_private_and_stable(tmp_path):
    assert privacy.pseudonym("a") == privacy.pseudonym("a") != privacy.pseudonym("b")
    path = tmp_path / privacy.KEY_FILE
    assert path.stat().st_mode & 0o777 == 0o600 and len(path.read_text().strip()) == 64
    first = privacy.pseudonym("a")
    privacy._keys.clear()
    assert privacy.pseudonym("a") == first


def canary(folder):
    """Plant a name in every text element that a picture can have."""
    for i in range(6):
        values = made.with_pixels(made.base(), np.roll(scan(), 5 * i, axis=1)[None])
        for name in pydicom.datadict.keyword_dict:
            tag = pydicom.datadict.tag_for_keyword(name)
            kind = pydicom.datadict.dictionary_VR(tag)
            free = kind in ("LO", "SH", "PN", "LT", "ST", "UT", "UC") and name not in values
            if free and 0x0008 <= tag >> 16 <= 0x4010 and "DataSetTrailing" not in name:
                setattr(values, name, made.NAME)
        values.PatientID = f"{made.NAME}{i}"
        made.save(values, folder / f"{i}.dcm")


def test_no_planted_name_reaches_the_workdir(tmp_path, capfd):
    from deblur_mae_jax import train

    canary(tmp_path / "set")
    (tmp_path / "set" / "broken.dcm").write_bytes((tmp_path / "set" / "0.dcm").read_bytes()[:700])
    config = tiny.config("quickstart", data__name="dicom", data__root=str(tmp_path / "set"), optim__steps=2,
                         data__max_bad_fraction=0.5)  # fmt: skip
    train.train_and_evaluate(config, tmp_path / "run")
    planted = [made.NAME.encode(), made.NAME.split("^")[0].encode(), b"Planted"]
    seen = 0
    for place, _, files in os.walk(tmp_path / "run"):
        for name in files:
            path = os.path.join(place, name)
            with open(path, "rb") as file:
                content = file.read()
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    content += b"".join(archive.read(n) for n in archive.namelist())
            seen += len(content)
            assert not any(word in content for word in planted), path
    said = capfd.readouterr()
    assert seen > 10_000 and not any(word.decode() in said.out + said.err for word in planted)


# Pictures whose header is legal and unusual, or is often wrong. Each of them was read as another picture.


def deep():
    """12-bit values, in steps of 16."""
    return picture().astype(np.uint16) * 16


@pytest.mark.parametrize("syntax", ["native", "jpeg2000", "jpegls", "jpeg_lossless"])
@pytest.mark.parametrize("kind", ["signed", "overlay"])
def test_bits_beyond_those_stored_are_no_part_of_a_value(tmp_path, syntax, kind):
    """Values of 12 bits in words of 16: negative ones, or with an overlay in the bits above."""
    if kind == "signed":
        values = deep().astype(np.int16) - 2048
        words = (values & 0xFFF).astype(np.uint16)
    else:
        values, words = deep(), deep() | 0x8000
    path = made.still(tmp_path / "a.dcm", words, bits=12, syntax=syntax, signed=kind == "signed")
    low, high = int(values.min()), int(values.max())
    want = np.rint((values.astype(float) - low) / (high - low) * 255)
    assert abs(gray(path, crop="none") - want).max() <= 1


def test_groups_of_an_enhanced_file_are_used_in_two_dimensions(tmp_path):
    transform, window, shared = Dataset(), Dataset(), Dataset()
    transform.RescaleSlope, transform.RescaleIntercept, transform.RescaleType = 1, -1024, "HU"
    window.WindowCenter, window.WindowWidth = 40, 400
    shared.PixelValueTransformationSequence, shared.FrameVOILUTSequence = [transform], [window]
    units = np.linspace(-1000, 1000, 2400).reshape(40, 60)
    path = made.still(
        tmp_path / "a.dcm", (units + 1024).astype(np.uint16), bits=12, modality="CT", sop_class=made.CT,
        SharedFunctionalGroupsSequence=[shared],
    )  # fmt: skip
    want = np.rint(np.clip((np.floor(units + 1024) - 1024 + 160) / 399, 0, 1) * 255)
    assert abs(gray(path) - want).max() <= 1 and abs(gray(path, window="soft") - want).max() <= 1


@pytest.mark.parametrize(
    "fields",
    [
        {"WindowCenter": None, "WindowWidth": None}, {"WindowCenter": 1000, "WindowWidth": 0}, {"WindowCenter": 1000},
        {"WindowCenter": 1000, "WindowWidth": None},
    ],
)  # fmt: skip
def test_a_window_without_a_width_is_no_window(tmp_path, fields):
    path = made.still(tmp_path / "a.dcm", deep(), bits=12, **fields)
    pixels, notes = read(path, crop="none")
    assert abs(pixels[..., 0].astype(int) - picture()).max() <= 1 and dicom_windows.NO_WINDOW in notes
    stated = any(value is not None for value in fields.values())
    assert (dicom_windows.NO_WIDTH in notes) == stated


def test_a_sigmoid_window(tmp_path):
    path = made.still(
        tmp_path / "a.dcm", deep(), bits=12, WindowCenter=2000, WindowWidth=1000, VOILUTFunction="SIGMOID"
    )
    want = 255 / (1 + np.exp(-4 * (deep() - 2000.0) / 1000))
    assert abs(gray(path, crop="none") - want).max() <= 1


@pytest.mark.parametrize("fields", [{"RescaleSlope": 100, "RescaleIntercept": 0}, {"RescaleIntercept": -1024}])
def test_rescaled_bytes_have_their_own_range(tmp_path, fields):
    path = made.still(tmp_path / "a.dcm", picture(), **fields)
    pixels, notes = read(path, crop="none")
    np.testing.assert_array_equal(pixels[..., 0], picture())
    assert dicom_windows.NO_WINDOW in notes


def test_a_slope_of_zero_is_refused(tmp_path):
    with pytest.raises(BadImage, match="RescaleSlope is 0"):
        gray(made.still(tmp_path / "a.dcm", picture(), RescaleSlope=0, RescaleIntercept=0))


def test_padding_does_not_stretch_the_range(tmp_path):
    values = deep().astype(np.int16)
    values[:5] = -32768
    path = made.still(tmp_path / "a.dcm", values, bits=16, signed=True)
    header = pydicom.dcmread(path)
    header.add_new("PixelPaddingValue", "SS", -32768)
    header.save_as(path)
    shown = gray(path, crop="none")
    assert shown[:5].max() == 0 and shown[5:].min() <= 1 and shown.max() == 255 and shown[20].mean() > 100


@pytest.mark.parametrize(("bits", "shift"), [(12, 4), (16, 8)])
def test_deep_colours_keep_their_highest_bits(tmp_path, bits, shift):
    frame = coloured().astype(np.uint16) << shift
    path = made.still(tmp_path / "a.dcm", frame, photometric="RGB", bits=bits)
    np.testing.assert_array_equal(read(path, channels=3, crop="none")[0], coloured())


@pytest.mark.parametrize("table", ["12 bits named 16", "negative first value as unsigned"])
def test_lookup_tables_as_devices_write_them(tmp_path, table):
    item = Dataset()
    signed = table != "12 bits named 16"
    item.add_new("LUTDescriptor", "US", [4096, 65536 - 2048 if signed else 0, 16])
    item.add_new("LUTData", "US", list(range(4096)))
    values = deep().astype(np.int16) - 2048 if signed else deep()
    path = made.still(tmp_path / "a.dcm", values, bits=16, signed=signed, VOILUTSequence=[item])
    assert abs(gray(path, crop="none") - deep() / 4095 * 255).max() <= 1


def test_headers_that_lack_a_field_are_named_or_read(tmp_path):
    whole = [made.region(10, 5, 39, 29), made.region(10, 5, 39, 29)]
    whole[0].RegionDataType = None
    del whole[1].PhysicalDeltaX
    made.still(tmp_path / "a.dcm", SequenceOfUltrasoundRegions=whole, PixelSpacing=None, ImagerPixelSpacing=None)
    assert load(tmp_path).read(0).shape == (25, 30, 1)
    for field, value, message in (
        ("BitsStored", None, "its header lacks BitsStored"), ("PhotometricInterpretation", "GREY", "'GREY' is none of"),
    ):  # fmt: skip
        path = made.still(tmp_path / "b" / "b.dcm", syntax="rle")
        header = pydicom.dcmread(path)
        setattr(header, field, value)
        header.save_as(path)
        with pytest.raises(BadImage, match=message):
            gray(path, crop="none")


def test_text_that_no_region_cuts_away_is_refused(tmp_path):
    made.still(tmp_path / "a.dcm", BurnedInAnnotation="YES", SequenceOfUltrasoundRegions=[made.region(0, 0, 59, 39)])
    made.still(tmp_path / "b.dcm", patient="P2")
    source = load(tmp_path)
    assert len(source) == 1 and any("burned in" in s.reason for s in source.skipped)


def test_the_class_of_a_file_says_that_it_is_ultrasound(tmp_path):
    path = made.still(tmp_path / "a.dcm", scan(), modality="")
    assert dicom_file.header(str(path)).modality == "US" and gray(path).shape != scan().shape
    path = made.still(tmp_path / "c.dcm", modality="ct", sop_class=made.CT)
    assert dicom_file.header(str(path)).modality == "CT"


def test_times_between_frames(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (30, 40, 60)).astype(np.uint8)
    values = made.with_pixels(made.base(made.US_CLIP), frames)
    values.FrameTimeVector = [0.0] + [500.0] * 29
    header = dicom_file.header(str(made.save(values, tmp_path / "a.dcm")))
    assert header.frame_seconds == 0.5 and len(dicom_file.chosen_frames("every(1.0 s)", header)) == 15
    del values.FrameTimeVector
    made.save(values, tmp_path / "b" / "b.dcm")
    notes = load(tmp_path / "b", data__frames="every(1.0 s)").notes
    assert any("25 frames per second are assumed" in note for note in notes)


def test_a_row_belongs_to_what_its_most_specific_identifier_names(tmp_path):
    for i in range(4):
        made.still(tmp_path / "set" / f"{i}.dcm", picture() // (i + 1), patient=f"P{i // 2}", SOPInstanceUID=f"1.9.{i}")
    table = tmp_path / "labels.csv"
    table.write_text("SOPInstanceUID,PatientID,label\n1.9.0,P0,benign\n1.9.2,P1,benign\n1.9.3,P1,malignant\n")
    source = load(tmp_path / "set", data__labels=str(table))
    assert source.labels == ["benign", "", "benign", "malignant"]
    assert any("DICOM files without a row in config.data.labels: 1" in note for note in source.notes)


def test_names_of_patients_in_a_csv_are_not_repeated(tmp_path):
    for i in range(2):
        made.still(tmp_path / "set" / f"{i}.dcm", picture() // (i + 1), patient=f"P{i}")
    table = tmp_path / "labels.csv"
    table.write_text("PatientID,patient,label\nP0,Smith^John,benign\nP1,SMITH^John,malignant\n")
    source = load(tmp_path / "set", data__labels=str(table), data__columns="group=patient")
    text = " ".join([*source.notes, *source.names, *source.groups])
    assert "spelled in several ways" in text and "smith" not in text.lower()


def test_two_pictures_with_one_uid_are_told_from_copies(tmp_path):
    for i, frame in enumerate((picture(), picture(), 255 - picture())):
        made.still(tmp_path / f"{i}.dcm", frame, SOPInstanceUID="1.9.1")
    (tmp_path / "3.dcm").write_bytes((tmp_path / "0.dcm").read_bytes())
    reasons = sorted(s.reason for s in load(tmp_path).skipped)
    assert [r for r in reasons if r.startswith("a copy")] and [r for r in reasons if "other contents" in r]


def pet(path, **changes):
    """A PET slice of 5,000 Bq/ml and more, 1 h after 370 MBq of F-18 (half-life 6,586 s), of 70 kg."""
    agent = Dataset()
    agent.RadionuclideTotalDose, agent.RadionuclideHalfLife = 370e6, 6586.2
    agent.RadiopharmaceuticalStartTime = "110000"
    for name in [n for n in changes if n.startswith("Radio")]:
        setattr(agent, name, changes.pop(name))
    fields = {
        "Units": "BQML", "CorrectedImage": ["DECY", "ATTN", "SCAT"], "DecayCorrection": "START", "PatientWeight": 70,
        "SeriesDate": "20260131", "SeriesTime": "120000", "AcquisitionDate": "20260131", "AcquisitionTime": "120100",
        "RadiopharmaceuticalInformationSequence": [agent], "RescaleSlope": 10, "RescaleIntercept": 0,
    } | changes  # fmt: skip
    fields = {name: value for name, value in fields.items() if value is not None}
    return made.still(path, deep(), bits=12, modality="PT", sop_class="1.2.840.10008.5.1.4.1.1.128", **fields)


@pytest.mark.parametrize("reference", ["START", "ADMIN"])
def test_pet_is_read_as_uptake_where_all_fields_are_there(tmp_path, reference):
    pixels, notes = read(pet(tmp_path / "a.dcm", DecayCorrection=reference), window="0,15")
    left = 2 ** (-3600 / 6586.2) if reference == "START" else 1.0
    uptake = deep() * 10.0 * 70_000 / (370e6 * left)
    assert abs(pixels[..., 0] - np.clip(uptake / 15, 0, 1) * 255).max() <= 1
    assert any("standardised uptake" in note for note in notes)
    assert not any("uptake" in note for note in read(tmp_path / "a.dcm")[1])  # without a window nothing depends on it


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [
        ({"RadiopharmaceuticalStartTime": "1130"}, 1800), ({"RadiopharmaceuticalStartTime": "11"}, 3600),
        ({"RadiopharmaceuticalStartTime": "113000.5"}, 1800),
        ({"RadiopharmaceuticalStartDateTime": "202601311130"}, 1800),
        ({"RadiopharmaceuticalStartDateTime": "20260131100000+0000", "TimezoneOffsetFromUTC": "+0100"}, 3600),
        ({"RadiopharmaceuticalStartDateTime": "20260131110000.0+0100", "TimezoneOffsetFromUTC": "+0100"}, 3600),
    ],
)  # fmt: skip
def test_times_of_an_injection_may_be_short_or_in_another_zone(tmp_path, changes, seconds):
    pixels, _ = read(pet(tmp_path / "a.dcm", **changes), window="0,15")
    uptake = deep() * 10.0 * 70_000 / (370e6 * 2 ** (-seconds / 6586.2))
    assert abs(pixels[..., 0] - np.clip(uptake / 15, 0, 1) * 255).max() <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RadiopharmaceuticalStartDateTime": "20260131100000+0000"}, "TimezoneOffsetFromUTC"),
        ({"RadionuclideTotalDose": 370}, "must be in Bq, not MBq"),
        ({"Units": "CNTS"}, "'CNTS'"), ({"CorrectedImage": ["DECY"]}, "ATTN and DECY"),
        ({"PatientWeight": None}, "without PatientWeight"), ({"DecayCorrection": "NONE"}, "DecayCorrection 'NONE'"),
        ({"RadionuclideTotalDose": None}, "without RadionuclideTotalDose"),
        ({"SeriesTime": "130000"}, "after AcquisitionTime"),
        ({"RadiopharmaceuticalStartTime": "123000"}, "after the injection"), ({"SeriesTime": None}, "SeriesTime"),
    ],
)  # fmt: skip
def test_pet_without_a_field_is_no_uptake(tmp_path, changes, message):
    with pytest.raises(BadImage, match=message):
        read(pet(tmp_path / "a.dcm", **changes), window="0,15")


def test_errors_of_a_table_of_labels_name_its_field(tmp_path):
    made.still(tmp_path / "set" / "a.dcm")
    table = tmp_path / "labels.csv"
    table.write_text("number,colour\n1,2\n")
    with pytest.raises(UserError, match=r"^config\.data\.labels: ") as caught:
        load(tmp_path / "set", data__labels=str(table))
    assert "config.data.root" not in str(caught.value)


@pytest.mark.parametrize("place", range(12))
def test_a_damaged_element_leaves_the_file_out_or_changes_nothing(tmp_path, place):
    """pydicom converts an element when it is asked for, which may be long after the header was read."""
    path = made.still(tmp_path / "a.dcm", syntax="jpeg", ImageType=["ORIGINAL", "PRIMARY"], LossyImageCompression="01")
    whole = FrameReader().read(dicom_file.header(str(path)), 0)[0]
    content = bytearray(path.read_bytes())
    starts = [
        at for at in range(300, len(content) - 8) if content[at : at + 2] in (b"US", b"CS") and content[at + 3] == 0
    ]
    at = starts[place % len(starts)]
    content[at + 2] += 1  # its length becomes odd
    path.write_bytes(content)
    try:
        header = dicom_file.header(str(path))
        dicom_series.build([header])
        np.testing.assert_array_equal(FrameReader().read(header, 0)[0], whole)
    except BadImage as error:
        assert len(str(error)) > 8 and "\n" not in str(error)


def test_pydicom_prints_nothing(tmp_path, caplog):
    path = made.still(tmp_path / "a.dcm", syntax="jpeg")
    values = pydicom.dcmread(path)
    values.PixelData = encapsulate([b"no jpeg, and of an even length"])
    values.save_as(path)
    with pytest.raises(BadImage, match="cannot be decoded"):
        gray(path, crop="none")
    assert not caplog.records


def test_a_video_is_named_by_its_compression(tmp_path):
    path = made.still(tmp_path / "a.dcm", syntax="jpeg")
    values = pydicom.dcmread(path)
    values.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.102"
    values.save_as(path)
    with pytest.raises(BadImage, match=r"its compression \(MPEG-4 .*\) cannot be read"):
        gray(path, crop="none")
