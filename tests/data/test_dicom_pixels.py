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


def big_endian(values, path, words):
    """Write a file in Explicit VR Big Endian; `words`: 16-bit pixels, or two of 8 bits in a word."""
    values.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRBigEndian
    values.PixelData = words.astype(">u2").tobytes()
    values["PixelData"].VR = "OW"
    pydicom.dcmwrite(path, values, implicit_vr=False, little_endian=False, enforce_file_format=True)
    return path


@pytest.mark.parametrize(("bits", "factor"), [(8, 1), (16, 1), (16, 256)])
def test_palettes_of_big_endian_files(tmp_path, bits, factor):
    numbers = made.picture()
    entries = {"Red": np.arange(256), "Green": np.arange(256)[::-1], "Blue": np.full(256, 30)}
    values = made.with_pixels(made.base(), numbers[None], photometric="PALETTE COLOR")
    for colour, table in entries.items():
        # Entries of 8 bits are words of two, the first one in the lower byte.
        words = table * factor if bits == 16 else table[::2] + 256 * table[1::2]
        setattr(values, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, bits])
        setattr(values, f"{colour}PaletteColorLookupTableData", words.astype(">u2").tobytes())
    pairs = numbers.ravel()[::2] + 256 * numbers.ravel()[1::2].astype(int)
    path = big_endian(values, tmp_path / "a.dcm", pairs)
    wanted = np.stack([table[numbers] for table in entries.values()], axis=-1)
    np.testing.assert_array_equal(read(path, channels=3, crop="none")[0], wanted)


def test_a_lookup_table_of_a_big_endian_file(tmp_path):
    stored = np.arange(2400).reshape(40, 60)
    values = made.with_pixels(made.base(made.CT, modality="CT"), stored[None].astype(np.uint16), bits=12)
    item = Dataset()
    item.LUTDescriptor = [4096, 0, 12]
    item.add_new(0x00283006, "OW", (4095 - np.arange(4096)).astype(">u2").tobytes())
    values.VOILUTSequence = [item]
    path = big_endian(values, tmp_path / "a.dcm", stored)
    np.testing.assert_array_equal(gray(path), np.rint((4095 - stored) / 4095 * 255))


def test_jpeg_of_12_bits(tmp_path):
    import imagecodecs

    ramp = np.linspace(0, 4000, 2400).reshape(40, 60).astype(np.uint16)
    values = made.with_pixels(made.base(made.CT, modality="CT"), ramp[None], bits=12)
    values.PixelData = encapsulate([bytes(imagecodecs.jpeg_encode(ramp, level=95, bitspersample=12))])
    values["PixelData"].is_undefined_length = True
    values.file_meta.TransferSyntaxUID = pydicom.uid.UID("1.2.840.10008.1.2.4.51")
    path = made.save(values, tmp_path / "a.dcm")
    assert np.abs(gray(path, window="0,4000").astype(int) - np.rint(ramp / 4000 * 255)).max() <= 1


def test_padding_with_bits_above_those_that_are_stored(tmp_path):
    stored = np.full((40, 60), 1000, np.uint16)
    stored[:10] = 63536 & 4095
    path = made.still(tmp_path / "a.dcm", stored, sop_class=made.CT, modality="CT", bits=12, PixelPaddingValue=63536)
    assert (gray(path, window="0,4000")[:10] == 0).all()


def test_regions_of_different_scales_give_no_size(tmp_path):
    regions = [made.region(0, 0, 29, 39, delta=0.01), made.region(30, 0, 59, 39, delta=0.03)]
    header = dicom_file.header(str(made.still(tmp_path / "a.dcm", SequenceOfUltrasoundRegions=regions)))
    assert header.spacing == () and "different scales" in header.unread[0]


def test_pixels_that_are_not_square_are_noted(tmp_path):
    path = made.still(tmp_path / "a.dcm", PixelAspectRatio=[2, 1])
    assert any("PixelAspectRatio" in note for note in read(path)[1])
