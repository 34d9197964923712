"""What headers of volumes say and leave out: sizes, units, orientation, scales, examinations, modalities."""

import types

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import tiny_volumes
from test_volume_files import load, notes, save, values

from deblur_mae_jax.commands import new_images
from deblur_mae_jax.data import volume_file, volume_reader
from deblur_mae_jax.data.source import BadImage
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.pretrained import inherit

NO_SIZE = "does not state the size of a voxel along every axis"


def opened(path):
    return volume_file.open_volume(str(path), 10**7)


def damaged_form(path, change):
    """A file whose qform is right (2 x 3 x 4 mm) and whose sform is changed."""
    image = nib.Nifti1Image(values(), None)
    image.set_qform(np.diag([-2.0, 3, 4, 1]), 1)
    image.set_sform(np.diag([-2.0, 3, 4, 1]), 1)
    for row in ("srow_x", "srow_y", "srow_z"):
        image.header[row] = change(np.array(image.header[row]))
    image._affine = None
    with open(path, "wb") as file:
        image.header["vox_offset"], image.header["magic"] = 352, b"n+1"
        file.write(image.header.binaryblock + b"\0" * 4 + values().tobytes(order="F"))
    return path


@pytest.mark.parametrize("change", [lambda row: 0 * row, lambda row: row * np.nan])
def test_an_sform_without_numbers_is_not_used(tmp_path, change):
    file = opened(damaged_form(tmp_path / "a.nii", change))
    assert file.zooms == (2.0, 3.0, 4.0) and any("sform is empty or damaged" in note for note in file.notes)
    np.testing.assert_allclose(np.abs(np.diag(file.affine)[:3]), (2, 3, 4))


def test_forms_that_differ_in_left_and_right_are_named(tmp_path):
    image = nib.Nifti1Image(values(), None)
    image.set_sform(np.diag([-1.0, 1, 2, 1]), 1)
    image.set_qform(np.diag([1.0, 1, 2, 1]), 1)
    nib.save(image, tmp_path / "a.nii")
    (note,) = opened(tmp_path / "a.nii").notes
    assert "LAS" in note and "RAS" in note and "voxels at the most" in note


def test_a_size_of_0_is_said(tmp_path):
    path = save(tmp_path / "a.nii", values(), np.diag([0.7, 0.7, 2, 1]))
    content = bytearray(path.read_bytes())
    content[88:92] = np.array([0], "<f4").tobytes()  # pixdim[3]
    content[252:256] = np.array([1, 0], "<i2").tobytes()  # qform alone
    path.write_bytes(content)
    assert any(NO_SIZE in note for note in opened(path).notes)


def test_mgh_without_geometry(tmp_path):
    image = nib.MGHImage(values().astype(np.float32), np.diag([2.0, 2, 2, 1]))
    image.header["goodRASFlag"] = 0
    nib.save(image, tmp_path / "a.mgz")
    file = opened(tmp_path / "a.mgz")
    assert not file.oriented and any("goodRASFlag 0" in note for note in file.notes)


def nrrd(path, *fields):
    voxels = values()
    header = ["NRRD0004", "type: short", "dimension: 3", "sizes: 12 10 8", "encoding: raw", "endian: little", *fields]
    path.write_bytes("\n".join(header).encode() + b"\n\n" + voxels.tobytes(order="F"))
    return path


DIRECTIONS = ("space: left-posterior-superior", "space directions: (1,0,0) (0,1,0) (0,0,0.2)")


@pytest.mark.parametrize(
    ("fields", "zooms"),
    [
        ((*DIRECTIONS, 'space units: "cm" "cm" "cm"'), (10, 10, 2)),
        (("spacings: 1 1 0.2", 'units: "cm" "cm" "cm"'), (10, 10, 2)),
        ((*DIRECTIONS, 'space units: "mm" "mm" "mm"'), (1, 1, 0.2)),
    ],
)
def test_units_of_nrrd(tmp_path, fields, zooms):
    assert opened(nrrd(tmp_path / "a.nrrd", *fields)).zooms == pytest.approx(zooms)


@pytest.mark.parametrize("units", ['"mm" "mm" "cm"', '"mm" "mm" "furlong"'])
def test_units_that_differ_between_axes_or_are_unknown_are_refused(tmp_path, units):
    with pytest.raises(BadImage, match="space units"):
        opened(nrrd(tmp_path / "a.nrrd", *DIRECTIONS, f"space units: {units}"))


@pytest.mark.parametrize(
    "fields", [("space: left-posterior-superior",), ("spacings: 0.5 0.6 nan", "thicknesses: nan nan 5")]
)
def test_sizes_that_nrrd_leaves_out_are_said(tmp_path, fields):
    assert any(NO_SIZE in note for note in opened(nrrd(tmp_path / "a.nrrd", *fields)).notes)


def meta(path, *more):
    sitk.WriteImage(sitk.GetImageFromArray(values().transpose(2, 1, 0)), str(path))
    text = path.read_text().replace("ElementDataFile", "\n".join([*more, "ElementDataFile"]))
    path.write_text(text)
    return path


def test_units_and_scales_of_metaimage(tmp_path):
    plain = opened(meta(tmp_path / "a.mhd"))
    scaled = opened(meta(tmp_path / "b.mhd", "DistanceUnits = cm", "ElementToIntensityFunctionSlope = 2",
                         "ElementToIntensityFunctionOffset = -1024"))  # fmt: skip
    assert scaled.zooms == pytest.approx(tuple(10 * size for size in plain.zooms)) and not scaled.plain_bytes
    np.testing.assert_array_equal(scaled.values(np.float32), plain.values(np.float32) * 2 - 1024)
    with pytest.raises(BadImage, match="the slope not 0"):
        opened(meta(tmp_path / "c.mhd", "ElementToIntensityFunctionSlope = 0"))


def test_metaimage_without_sizes(tmp_path):
    path = meta(tmp_path / "a.mhd")
    path.write_text("\n".join(line for line in path.read_text().splitlines() if "ElementSpacing" not in line) + "\n")
    assert any(NO_SIZE in note for note in opened(path).notes)


def test_voxels_that_cannot_be_read_are_named_without_the_places_of_other_machines(tmp_path):
    path = meta(tmp_path / "a.mhd")
    raw = tmp_path / "a.raw"
    raw.write_bytes(raw.read_bytes()[:100])
    with pytest.raises(BadImage, match=r"^damaged: its voxels cannot be read$"):
        opened(path).values()


@pytest.mark.parametrize(
    ("low", "high", "odd", "said"),
    [
        (0, 255, -1, volume_reader.WINDOWED), (0, 255, 256, volume_reader.WINDOWED),
        (0.0, 1.0, 1.02, volume_reader.SCALED), (24, 3000, -2000, volume_reader.NO_AIR),
    ],
)  # fmt: skip
def test_a_few_odd_voxels_do_not_change_how_ct_is_read(low, high, odd, said):
    voxels = np.random.default_rng(0).uniform(low, high, (20, 20, 20)).astype(np.float32)
    if said == volume_reader.NO_AIR:
        voxels[:4] = odd  # padding around a round field of view
    else:
        voxels[0, 0, 0] = odd
    assert said in volume_reader._window(voxels, False, (-1000.0, 1000.0))[1]


def test_hounsfield_units_stay_so():
    voxels = np.random.default_rng(0).uniform(-1000, 1500, (20, 20, 20)).astype(np.float32)
    voxels[:4] = -2000
    assert volume_reader._window(voxels, False, (-1000.0, 1000.0)) == ((-1000.0, 1000.0), [])


@pytest.mark.parametrize("names", [("baseline_t1", "followup_t1"), ("ses-01_T1", "ses-02_T1")])
def test_a_mask_that_names_no_examination_is_given_to_none_of_several(tmp_path, names):
    folder = tmp_path / "set" / "mr" / "p1"
    for number, name in enumerate(names):
        save(folder / f"{name}.nii.gz", values(number))
    save(folder / "seg.nii.gz", (values() > 300).astype(np.uint8))
    source = load(tmp_path / "set", modality="mr")
    assert source.masked is None or not any(source.masked)


def test_sequences_of_one_examination_share_a_mask(tmp_path):
    folder = tmp_path / "set" / "mr" / "p1"
    for number, name in enumerate(["t1", "flair"]):
        save(folder / f"{name}.nii.gz", values(number))
    save(folder / "seg.nii.gz", (values() > 300).astype(np.uint8))
    assert load(tmp_path / "set", modality="mr").masked == [True, True]


def test_folders_of_two_modalities_are_refused(tmp_path):
    save(tmp_path / "set" / "mr" / "p1" / "ct" / "a.nii.gz", values())
    config = tiny_volumes.config_of(data__name="nifti", data__root=str(tmp_path / "set"))
    from deblur_mae_jax.data import dataset

    with pytest.raises(UserError, match=r"folders of several modalities \(ct, mr\)"):
        dataset.load_source(config, "all")


class Silent:
    def print(self, line):
        pass

    def update(self, line, force=False):
        pass


def new(root, **fields):
    """The names of new volumes for a network that was trained with these fields."""
    config = inherit.resolve(tiny_volumes.segmentation(**fields))[0]
    network = types.SimpleNamespace(axes=3, kind="segment")
    trained = types.SimpleNamespace(network=network, path="/nonexistent", notes=[], config=config)
    return new_images.index_of(trained, str(root), Silent()).source.names


def test_one_new_volume_needs_its_modality(tmp_path):
    path = save(tmp_path / "a.nii.gz", values())
    with pytest.raises(UserError, match=r"^--input: '.*a.nii.gz' does not say its modality; write .*a.nii.gz=ct"):
        new(path)
    assert new(f"{path}=mr") == ["a.nii.gz"]


@pytest.mark.parametrize(
    ("header", "row", "columns"),
    [
        ("vol_file,modality", "a.nii.gz,mr", "path=vol_file"),
        ("path,modality,patient_id,case_id", "a.nii.gz,mr,1,2", ""),
    ],
)
def test_a_csv_of_new_volumes_may_have_the_columns_of_the_training(tmp_path, header, row, columns):
    save(tmp_path / "a.nii.gz", values())
    (tmp_path / "list.csv").write_text(f"{header}\n{row}\n")
    assert len(new(tmp_path / "list.csv", data__columns=columns)) == 1


def test_one_new_dicom_slice_is_no_volume(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"\0" * 128 + b"DICM")
    with pytest.raises(UserError, match=r"a DICOM series is read from its folder"):
        new(tmp_path / "a.dcm")


def test_notes_reach_the_summary(tmp_path):
    (tmp_path / "set").mkdir()
    nrrd(tmp_path / "set" / "a.nrrd")
    assert NO_SIZE in notes(load(tmp_path / "set"))
