"""Pixels of DICOM files whose header and stream disagree, or whose lookup tables are unusual."""

import dicom_files as made
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame

from deblur_mae_jax.data import dicom_file
from deblur_mae_jax.data.dicom_pixels import FrameReader
from deblur_mae_jax.data.source import BadImage


def read(path, **fields):
    return FrameReader(**fields).read(dicom_file.header(str(path)), 0)


def gray(path, **fields):
    return read(path, **fields)[0][..., 0]


ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x01"  # with a conversion to YCbCr


@pytest.mark.parametrize("photometric", ["YBR_FULL_422", "YBR_FULL", "RGB"])
@pytest.mark.parametrize("marked", [False, True])
def test_colours_are_converted_once(tmp_path, photometric, marked):
    """By pydicom, which reads the header, or by the decoder, which reads Adobe's marker in the stream."""
    colours = np.zeros((48, 64, 3), np.uint8)
    colours[:, :32], colours[:, 32:] = (200, 60, 20), (20, 90, 200)
    path = made.still(tmp_path / "a.dcm", colours, photometric=photometric, syntax="jpeg")
    values = pydicom.dcmread(path)
    stream = get_frame(values.PixelData, 0, number_of_frames=1)
    if marked:
        stream = stream[:2] + ADOBE + stream[2:]
    values.PixelData = encapsulate([stream])
    values.save_as(path)
    pixels = read(path, channels=3, crop="none")[0].astype(int)
    assert abs(pixels[24, 10] - (200, 60, 20)).max() <= 3 and abs(pixels[24, 50] - (20, 90, 200)).max() <= 3


def test_colours_of_jpeg_2000_are_converted_once(tmp_path):
    colours = np.zeros((48, 64, 3), np.uint8)
    colours[:, :32], colours[:, 32:] = (200, 60, 20), (20, 90, 200)
    for photometric in ("RGB", "YBR_RCT", "YBR_FULL"):
        path = made.still(tmp_path / f"{photometric}.dcm", colours, photometric=photometric, syntax="jpeg2000")
        pixels = read(path, channels=3, crop="none")[0].astype(int)
        assert abs(pixels[24, 10] - (200, 60, 20)).max() <= 3, photometric


def table_of(name, entries, first, bits, values):
    item = Dataset()
    for part, value in (("Descriptor", [entries, first, bits]), ("Data", values.astype("u1").tobytes())):
        tag = pydicom.tag.Tag(pydicom.datadict.tag_for_keyword(f"{name}{part}"))
        item.add_new(tag, "US" if part == "Descriptor" else "OW", value)
    return item


def test_lookup_tables_of_8_bits_may_have_more_than_256_entries(tmp_path):
    stored = np.tile(np.arange(0, 4096, 64, dtype=np.uint16), (48, 1))
    want = stored // 16
    item = table_of("LUT", 4096, 0, 8, np.arange(4096) // 16)
    path = made.still(tmp_path / "voi.dcm", stored, bits=12, VOILUTSequence=[item], WindowCenter=None, WindowWidth=None)
    np.testing.assert_array_equal(gray(path, crop="none"), want)
    item = table_of("LUT", 4096, 0, 8, np.arange(4096) // 16)
    item.ModalityLUTType = "US"
    path = made.still(tmp_path / "modality.dcm", stored, bits=12, ModalityLUTSequence=[item], WindowCenter=None,
                      WindowWidth=None)  # fmt: skip
    assert abs(gray(path, window="0,255", crop="none") - want.astype(int)).max() <= 1
    path = made.still(tmp_path / "palette.dcm", stored, bits=12, photometric="PALETTE COLOR")
    values = pydicom.dcmread(path)
    for colour, shift in (("Red", 0), ("Green", 1), ("Blue", 2)):
        values.update(table_of(f"{colour}PaletteColorLookupTable", 4096, 0, 8, (np.arange(4096) // 16) >> shift))
    values.save_as(path)
    pixels = read(path, channels=3, crop="none")[0]
    for channel, shift in enumerate((0, 1, 2)):
        np.testing.assert_array_equal(pixels[..., channel], want >> shift)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"PhotometricInterpretation": "HSV"}, "'HSV' is none of"), ({"HighBit": 15}, "HighBit is 15")],
)
def test_headers_that_cannot_be_honoured_are_refused(tmp_path, changes, message):
    frame = np.zeros((48, 64), np.uint16)
    with pytest.raises(BadImage, match=message):
        read(made.still(tmp_path / "a.dcm", frame, bits=12, **changes), crop="none")


def test_ct_without_an_intercept_is_said_where_a_window_is_in_hounsfield_units(tmp_path):
    frame = np.full((48, 64), 1000, np.uint16)
    path = made.still(tmp_path / "a.dcm", frame, bits=12, modality="CT")
    assert any("without RescaleIntercept" in note for note in read(path, window="lung", crop="none")[1])


def test_a_few_markers_do_not_make_a_picture_without_a_window_black(tmp_path):
    """12 bits, tissue up to 250, and two pixels at 4095."""
    frame = np.random.default_rng(0).integers(0, 251, (60, 80)).astype(np.uint16)
    frame[0, :2] = 4095
    found = gray(made.still(tmp_path / "a.dcm", frame, bits=12), crop="none")
    assert np.percentile(found, 99) > 200


@pytest.mark.parametrize(("photometric", "padding"), [("MONOCHROME1", 0), ("MONOCHROME2", 4095)])
@pytest.mark.parametrize("window", [None, (500, 400)])
def test_padding_is_black(tmp_path, photometric, padding, window):
    frame = np.random.default_rng(0).integers(300, 700, (60, 80)).astype(np.uint16)
    frame[:, :20] = padding
    path = made.still(tmp_path / "a.dcm", frame, bits=12, photometric=photometric)
    values = pydicom.dcmread(path)
    values.add_new("PixelPaddingValue", "US", padding)
    if window:
        values.WindowCenter, values.WindowWidth = window
    values.save_as(path)
    found = gray(path, crop="none")
    assert not found[:, :20].any() and np.ptp(found[:, 20:]) > 200


def test_a_jpeg_frame_that_ends_early_is_refused(tmp_path):
    path = made.still(tmp_path / "a.dcm", made.picture(), syntax="jpeg")
    values = pydicom.dcmread(path)
    stream = get_frame(values.PixelData, 0, number_of_frames=1)
    cut = stream[: len(stream) // 2] + bytes(len(stream) - len(stream) // 2)
    values.PixelData = encapsulate([cut])
    values.save_as(path)
    with pytest.raises(BadImage, match="the JPEG ends early"):
        gray(path, crop="none")
