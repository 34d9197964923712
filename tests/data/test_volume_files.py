"""Volumes as they are found: formats, geometry that contradicts itself, stored types, label maps, layouts, moves."""

import gzip
import os
import struct

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import tiny_volumes

from deblur_mae_jax.data import dataset, grid, index, volume_file, volume_reader
from deblur_mae_jax.data.source import BadImage
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.pretrained import inherit


def values(seed=0, shape=(12, 10, 8)):
    return np.random.default_rng(seed).integers(1, 600, shape).astype(np.int16)


def labels(shape=(12, 10, 8)):
    out = np.zeros(shape, np.uint8)
    out[2:6, 3:7, 2:5], out[7:10, 3:7, 2:5] = 1, 2
    return out


def save(path, array, affine=None, **geometry):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, np.eye(4) if affine is None else affine)
    if "slope" in geometry:
        image.header.set_slope_inter(*geometry["slope"])
    nib.save(image, path)
    return path


def load(root, modality="mr", split="all", **fields):
    config = tiny_volumes.config_of(data__name="nifti", data__root=f"{root}={modality}", **fields)
    return dataset.load_source(config, split)


def segment(root, **fields):
    config = tiny_volumes.segmentation(data__name="nifti", data__root=f"{root}=mr", data__folds=3, **fields)
    return dataset.load_source(inherit.resolve(config)[0], "all")


def notes_of(source):
    return " | ".join(index.build(source, masks=True, max_bad_fraction=0.9).notes)


def notes(source):
    return " | ".join(index.build(source, max_bad_fraction=0.9).notes)


@pytest.mark.parametrize(
    "name", ["a.nii", "a.nii.gz", "A.NII.GZ", "A.NII", "a.hdr", "a.mgz", "gzip.nii", "plain.nii.gz"]
)
def test_formats_and_suffixes(tmp_path, name):
    array = values()
    affine = np.diag([1.5, 2, 3, 1])
    small = tmp_path / name.lower()
    if name in ("gzip.nii", "plain.nii.gz"):
        save(tmp_path / "a.nii", array, affine)
        content = (tmp_path / "a.nii").read_bytes()
        (tmp_path / "a.nii").unlink()
        (tmp_path / name).write_bytes(gzip.compress(content) if name == "gzip.nii" else content)
    elif name == "a.hdr":
        nib.save(nib.Nifti1Pair(array, affine), small)
    elif name == "a.mgz":
        nib.save(nib.MGHImage(array.astype(np.int32), affine), small)
    else:
        save(small, array, affine)
        os.rename(small, tmp_path / name)
    source = load(tmp_path)
    assert len(source) == 1 and source.header(0) == (12, 10, 8)
    save(tmp_path / "twin" / "t.nii", array, affine)
    np.testing.assert_array_equal(source.read(0), load(tmp_path / "twin").read(0))
    assert source.grid_of(0).spacing == pytest.approx((1.5, 2, 3))
    assert ("the suffix is wrong" in notes(source)) == (name in ("gzip.nii", "plain.nii.gz"))


@pytest.mark.parametrize(("unit", "size"), [("mm", 2.0), ("cm", 20.0), ("um", 0.002), ("inch", None)])
def test_units_of_nrrd_are_converted_or_refused(tmp_path, unit, size):
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(values())
    image.SetSpacing((2.0, 2.0, 2.0))
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"), useCompression=False)
    head, data = (tmp_path / "a.nrrd").read_bytes().split(b"\n\n", 1)
    words = b" ".join([b'"' + unit.encode() + b'"'] * 3)
    (tmp_path / "a.nrrd").write_bytes(head + b"\nspace units: " + words + b"\n\n" + data)
    if size is None:
        with pytest.raises(BadImage, match="space units 'inch' are none of mm"):
            volume_file.open_volume(str(tmp_path / "a.nrrd"), 10**7)
    else:
        np.testing.assert_allclose(volume_file.open_volume(str(tmp_path / "a.nrrd"), 10**7).zooms, [size] * 3)


@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd", ".MHA"])
def test_metaimage_and_nrrd_lie_where_nifti_lies(tmp_path, suffix):
    image = sitk.GetImageFromArray(values().transpose(2, 1, 0))
    image.SetSpacing((1.5, 2.0, 3.0))
    image.SetOrigin((4.0, 5.0, 6.0))
    image.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
    sitk.WriteImage(image, str(tmp_path / f"a{suffix.lower()}"))
    sitk.WriteImage(image, str(tmp_path / "twin.nii"))
    if suffix.isupper():
        os.rename(tmp_path / f"a{suffix.lower()}", tmp_path / f"a{suffix}")
    ours = volume_file.open_volume(str(tmp_path / f"a{suffix}"), 10**6)
    twin = volume_file.open_volume(str(tmp_path / "twin.nii"), 10**6)
    np.testing.assert_array_equal(ours.values(), twin.values())
    np.testing.assert_allclose(ours.in_ras()[2], twin.in_ras()[2], atol=1e-5)
    assert ours.in_ras()[1] == pytest.approx(twin.in_ras()[1])
    (tmp_path / "twin.nii").unlink()
    assert len(load(tmp_path)) == 1 and not load(tmp_path).skipped  # .raw belongs to .mhd


def test_without_simpleitk_such_files_are_listed(tmp_path, monkeypatch):
    sitk.WriteImage(sitk.GetImageFromArray(values()), str(tmp_path / "a.nrrd"))
    save(tmp_path / "b.nii", values())
    monkeypatch.setitem(__import__("sys").modules, "SimpleITK", None)
    found = index.build(load(tmp_path), max_bad_fraction=0.6)
    assert len(found) == 1 and "need SimpleITK: pip install" in found.skipped[0].reason


def test_hidden_files_folders_called_nii_and_links(tmp_path):
    save(tmp_path / "set" / "v0.nii" / "v0.nii", values())
    save(tmp_path / "elsewhere" / "v1.nii.gz", values(1))
    (tmp_path / "set" / "._v0.nii").write_bytes(b"\0\5\x16\7")
    os.symlink("../elsewhere", tmp_path / "set" / "more")
    (tmp_path / "set" / "notes.txt").write_text("x")
    source = load(tmp_path / "set")
    assert len(source) == 2 and [s.name for s in source.skipped] == ["notes.txt"]


def test_ct_is_read_by_its_values_and_not_by_its_stored_type(tmp_path):
    units = values().astype(float) * 3 - 1000
    stored = np.clip((units + 1024) / 8, 0, 255).astype(np.uint8)
    save(tmp_path / "a" / "bytes.nii", stored, slope=(8, -1024))
    save(tmp_path / "a" / "words.nii", (stored * 8.0 - 1024).astype(np.int16))
    source = load(tmp_path / "a", "ct")
    np.testing.assert_array_equal(source.read(0), source.read(1))
    assert notes(source) == "" and "as CT in Hounsfield units has" in notes(load(tmp_path / "a", "mr"))
    save(tmp_path / "b" / "windowed.nii", stored)
    save(tmp_path / "b" / "windowed_as_words.nii", stored.astype(np.int16))
    source = load(tmp_path / "b", "ct")
    np.testing.assert_array_equal(source.read(0), source.read(1))
    assert source.read(0).max() > 0.5 and f"{volume_reader.WINDOWED} (2 images" in notes(source)
    save(tmp_path / "c" / "unit.nii", (stored / 255).astype(np.float32))
    assert volume_reader.SCALED in notes(load(tmp_path / "c", "ct"))
    save(tmp_path / "d" / "offset.nii", (units + 1024).astype(np.int16))
    assert "holds no air" in notes(load(tmp_path / "d", "ct"))
    save(tmp_path / "e" / "z.nii", np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32))
    assert "nearly uniform after config.data.ct_window" in notes(load(tmp_path / "e", "ct"))


def test_large_mr_values_stay_finite(tmp_path):
    for name, factor in (("a", 1e30), ("b", 1e-25), ("c", 1.0)):
        save(tmp_path / f"{name}.nii", (values() * factor).astype(np.float32))
    source = load(tmp_path)
    for i in range(3):
        assert np.isfinite(source.read(i)).all()
        np.testing.assert_allclose(source.read(i), source.read(2), atol=2e-3)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: save(p, (values() * np.exp(1j)).astype(np.complex64)), "complex numbers: save their magnitude"),
        (lambda p: save(p, np.zeros((8, 8, 8, 3), np.int16)), "3 volumes in one file: split them first"),
        (lambda p: save(p, np.zeros((8, 8), np.int16)), "2 dimensions"),
        (lambda p: save(p, np.full((8, 8, 8), np.nan, np.float32)), "NaN"),
        (lambda p: save(p, np.full((8, 8, 8), 7, np.int16)), "all its voxels have the same value"),
        (lambda p: p.write_bytes(b""), "empty file"),
        (lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    ],
)
@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_what_is_no_volume_is_named(tmp_path, make, reason, modality):
    make(tmp_path / "a.nii")
    save(tmp_path / "b.nii", values())
    found = index.build(load(tmp_path, modality), max_bad_fraction=0.6)
    assert len(found) == 1 and reason in found.skipped[0].reason


def test_colours_of_voxels(tmp_path):
    rgb = np.zeros((8, 8, 8), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    save(tmp_path / "a.nii", rgb)
    with pytest.raises(BadImage, match="3 colours, not one number"):
        volume_file.open_volume(str(tmp_path / "a.nii"), 10**6)


def contradicting(path, sform, qform, pixdim):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(values(), np.diag([*qform, 1]))
    image.set_qform(np.diag([*qform, 1]), 1)
    image.set_sform(np.diag([*sform, 1]), 2)
    image.header["pixdim"][1:4] = pixdim
    nib.save(image, path)


@pytest.mark.parametrize(
    ("sform", "qform", "spacing", "chosen"),
    [
        ((1, 1, 1), (1.3, 1.3, 10), (1.3, 1.3, 10), "qform"),  # ACDC
        ((0.5, 0.5, 6), (1, 1, 1), (0.5, 0.5, 6), "sform"),  # pixdim was never set
        ((0.5, 0.5, 6), (0.7, 0.7, 6), (0.5, 0.5, 6), "sform"),
        ((2, 2, 2), (2, 2, 2), (2, 2, 2), ""),
    ],
)
def test_contradicting_geometry_is_said_and_kept(tmp_path, sform, qform, spacing, chosen):
    contradicting(tmp_path / "a.nii.gz", sform, qform, qform)
    source = load(tmp_path)
    assert source.grid_of(0).spacing == pytest.approx(spacing)
    assert (f"the {chosen} is used" in notes(source)) == bool(chosen)
    out = nib.load(source.grid_of(0).save(labels(), tmp_path / "out" / "a")).header
    before = nib.load(tmp_path / "a.nii.gz").header
    for field in ("pixdim", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "qoffset_x"):
        np.testing.assert_array_equal(out[field], before[field], err_msg=field)


@pytest.mark.parametrize(("degrees", "refused"), [(0.2, False), (1.0, True), (30.0, True)])
def test_a_tilted_gantry_is_refused_as_in_dicom(tmp_path, degrees, refused):
    tilt = np.diag([1.0, 1.0, 1.0, 1.0])
    tilt[1, 2] = np.tan(np.radians(degrees))
    save(tmp_path / "a.nii.gz", values(), tilt)
    if not refused:
        assert load(tmp_path).grid_of(0).spacing == pytest.approx((1, 1, 1), abs=1e-4)
        return
    with pytest.raises(BadImage, match=rf"shear: two axes are {degrees:.1f} degrees from a right angle.*dcm2niix"):
        volume_file.open_volume(str(tmp_path / "a.nii.gz"), 10_000)


def test_labels_that_resampling_removes_are_said(tmp_path):
    for number in range(3):
        save(tmp_path / f"{number}.nii.gz", values(number))
        mask = labels()
        mask[mask == 2] = 0
        mask[11, 9, 7] = 2
        save(tmp_path / f"{number}_seg.nii.gz", mask)
    assert "spacing removes" not in notes_of(segment(tmp_path))
    said = notes_of(segment(tmp_path, data__spacing=(2.5, 2.5, 2.5)))
    assert "config.data.spacing removes label 2 from its training mask; evaluation keeps it" in said


def test_the_voxels_that_are_read_cover_the_same_space(tmp_path):
    """One slice of 5 mm at 2 mm becomes two of 2.5 mm."""
    save(tmp_path / "a.nii.gz", values(shape=(12, 10, 1)), np.diag([1.0, 1.0, 5.0, 1.0]))
    grid_of = load(tmp_path, data__spacing=(2.0, 2.0, 2.0)).grid_of(0)
    assert grid_of.spacing == pytest.approx((1, 1, 5)) and grid_of.spacing_read == pytest.approx((2, 2, 2.5))


def test_units_and_missing_orientation(tmp_path):
    image = nib.Nifti1Image(values(), np.diag([500, 500, 2000, 1.0]))
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "a.nii")
    source = load(tmp_path)
    assert source.grid_of(0).spacing == pytest.approx((0.5, 0.5, 2)) and "converted to mm" in notes(source)
    written = source.grid_of(0).save(labels(), tmp_path / "out" / "a")
    assert volume_file.open_volume(str(written), 10**6).zooms == pytest.approx((0.5, 0.5, 2))
    (tmp_path / "b").mkdir()
    nib.save(nib.Nifti1Image(values(), None), tmp_path / "b" / "b.nii")
    assert volume_file.NO_ORIENTATION in notes(load(tmp_path / "b"))
    (tmp_path / "c").mkdir()
    nib.save(nib.AnalyzeImage(values(), None), tmp_path / "c" / "c.hdr")
    assert volume_file.ANALYZE in notes(load(tmp_path / "c"))


def test_tiny_voxels_are_no_singular_affine(tmp_path):
    save(tmp_path / "a.nii", values(), np.diag([5e-4, 5e-4, 5e-4, 1]))
    assert volume_file.open_volume(str(tmp_path / "a.nii"), 10**6).zooms == pytest.approx((5e-4,) * 3)
    header = nib.Nifti1Header()
    header["sform_code"], header["srow_x"], header["srow_y"] = 1, [1, 0, 0, 0], [0, 1, 0, 0]
    nib.save(nib.Nifti1Image(values(), None, header), tmp_path / "b.nii")
    with pytest.raises(BadImage, match="singular"):
        volume_file.open_volume(str(tmp_path / "b.nii"), 10**6)


@pytest.mark.parametrize(
    ("shift", "fits"), [((0.2, 0, 0), True), ((0.3, 0, 0), False), ((0, 0, 2.9), True), ((0, 0, 3.1), False)]
)
def test_a_mask_may_lie_half_a_voxel_of_its_own_axis_beside(tmp_path, shift, fits):
    for i in range(3):
        save(tmp_path / "images" / f"{i}.nii", values(i), np.diag([0.5, 0.5, 6, 1]))
        affine = np.diag([0.5, 0.5, 6, 1.0])
        affine[:3, 3] = shift
        save(tmp_path / "masks" / f"{i}.nii", labels(), affine)
    source = segment(tmp_path)
    if fits:
        np.testing.assert_array_equal(source.masks(0), labels())
    else:
        with pytest.raises(BadImage, match=r"does not match.*at most half a voxel"):
            source.masks(0)


def test_a_mask_without_orientation_is_laid_on_its_volume(tmp_path):
    affine = np.eye(4)
    affine[:3, 3] = -(np.array(labels().shape) - 1) / 2
    save(tmp_path / "images" / "a.nii", values(), affine)
    (tmp_path / "masks").mkdir()
    nib.save(nib.Nifti1Image(labels(), None), tmp_path / "masks" / "a.nii")
    mask, said = segment(tmp_path).examine_mask(0)
    np.testing.assert_array_equal(mask, labels())
    assert volume_reader.VOXEL_ON_VOXEL in said


@pytest.mark.parametrize("change", ["0.9999", "1.000015", "0.5", "above 255", "negative"])
def test_values_of_label_maps(tmp_path, change):
    truth = {
        "0.9999": labels() * np.float32(0.9999), "1.000015": labels() * np.float32(1.000015),
        "0.5": labels() * np.float32(0.5), "above 255": labels().astype(np.int16) * 300,
        "negative": -labels().astype(np.int16),
    }[change]  # fmt: skip
    save(tmp_path / "images" / "a.nii", values())
    save(tmp_path / "masks" / "a.nii", truth)
    if change.startswith(("0.9", "1.0")):
        mask, said = segment(tmp_path).examine_mask(0)
        np.testing.assert_array_equal(mask, labels())
        assert "rounded" in str(said)
        return
    with pytest.raises(BadImage, match=r"0\.5|600|-2"):
        segment(tmp_path).masks(0)
    names = {"0.5": "0.5=a,1=b", "above 255": "300=a,600=b", "negative": "-1=a,-2=b"}[change]
    np.testing.assert_array_equal(segment(tmp_path, data__mask_values=names).masks(0), labels())


LAYOUTS = {
    "BraTS 2021": ("BraTS_{k:03d}/BraTS_{k:03d}_t1.nii.gz", "BraTS_{k:03d}/BraTS_{k:03d}_seg.nii.gz"),
    "BraTS 2023": ("BraTS-GLI-{k:05d}-000/BraTS-GLI-{k:05d}-000-t1n.nii",
                   "BraTS-GLI-{k:05d}-000/BraTS-GLI-{k:05d}-000-seg.nii"),
    "MSD": ("imagesTr/hippocampus_{k:03d}.nii.gz", "labelsTr/hippocampus_{k:03d}.nii.gz"),
    "nnU-Net": ("imagesTr/case_{k:03d}_0000.nii.gz", "labelsTr/case_{k:03d}.nii.gz"),
    "BTCV": ("img/img{k:04d}.nii.gz", "label/label{k:04d}.nii.gz"),
    "LiTS": ("volume-{k}.nii", "segmentation-{k}.nii"),
    "KiTS": ("case_{k:05d}/imaging.nii.gz", "case_{k:05d}/segmentation.nii.gz"),
    "FeTA": ("sub-{k:03d}/anat/sub-{k:03d}_T2w.nii.gz", "sub-{k:03d}/anat/sub-{k:03d}_dseg.nii.gz"),
    "ACDC": ("patient{k:03d}/patient{k:03d}_frame01.nii.gz", "patient{k:03d}/patient{k:03d}_frame01_gt.nii.gz"),
    "AMOS": ("imagesTr/amos_{k:04d}.nii.gz", "labelsTr/amos_{k:04d}.nii.gz"),
    "CAMUS": ("patient{k:04d}/patient{k:04d}_2CH_ED.nii.gz", "patient{k:04d}/patient{k:04d}_2CH_ED_gt.nii.gz"),
    "plain": ("images/a{k}.nii", "masks/a{k}.nii"),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_label_maps_of_public_sets_are_masks(tmp_path, name):
    for k in range(1, 4):
        image, mask = (pattern.format(k=k) for pattern in LAYOUTS[name])
        save(tmp_path / image, values(k))
        save(tmp_path / mask, labels())
    source = load(tmp_path)
    assert len(source) == 3 and all(source.masked) and not source.skipped
    np.testing.assert_array_equal(source.masks(0), labels())


def test_sequences_and_channels_of_one_patient_share_it_and_its_mask(tmp_path):
    for k in range(3):
        for kind in ("t1", "t2", "flair"):
            save(tmp_path / "a" / f"case_{k:03d}" / f"case_{k:03d}_{kind}.nii.gz", values(k))
        save(tmp_path / "a" / f"case_{k:03d}" / f"case_{k:03d}_seg.nii.gz", labels())
        for channel in range(2):
            save(tmp_path / "b" / "imagesTr" / f"c{k}_{channel:04d}.nii.gz", values(k))
        save(tmp_path / "b" / "labelsTr" / f"c{k}.nii.gz", labels())
        for kind in ("T1", "T2"):
            save(tmp_path / "c" / f"IXI{k:03d}-Guys-{kind}.nii.gz", values(k))
            save(tmp_path / "d" / ("anna", "bert", "carl")[k] / f"{kind}.nii.gz", values(k))
        for i in range(1, 3):
            save(tmp_path / "e" / f"amos_{10 * k + i:04d}.nii.gz", values(k))
    for name, count in (("a", 9), ("b", 6), ("c", 6), ("d", 6)):
        source = load(tmp_path / name)
        assert len(source) == count and len(set(source.groups)) == 3, name
        if name in "ab":
            assert all(source.masked)
    assert "each is a volume of its own" in " ".join(load(tmp_path / "b").notes)
    assert load(tmp_path / "e").groups is None  # numbers of cases, not channels


def test_sessions_and_sequences_are_no_patients(tmp_path):
    for k in range(3):
        for session in ("ses-01", "ses-02"):
            save(tmp_path / f"sub-strokecase{k:04d}" / session / "dwi.nii.gz", values(k))
    assert len(set(load(tmp_path).groups)) == 3


def test_label_maps_under_other_names_are_said(tmp_path):
    for k in range(3):
        save(tmp_path / f"p{k}" / "t1.nii.gz", values(k))
        save(tmp_path / f"p{k}" / "ribbon.nii.gz", labels())
    assert "as label maps do (3 images" in notes(load(tmp_path))


def test_split_folders_of_volumes(tmp_path):
    for split in ("train", "val", "test"):
        for k in range(2):
            save(tmp_path / split / f"{split}{k}.nii", values(k))
    save(tmp_path / "stray.nii", values())
    source = load(tmp_path, split="train+pool")
    assert len(source) == 2 and source.unused == {"val": 2, "test": 2}
    assert [s.name for s in source.skipped] == ["stray.nii"]


def test_moved_and_renamed_folders_are_the_same_data(tmp_path):
    for place in ("lung", "brain"):
        for k in range(2):
            save(tmp_path / "old" / place / f"{k}.nii", values(k))
    root = lambda base, a, b: f"{tmp_path / base / a}=ct;{tmp_path / base / b}=mr"
    build = lambda text: index.build(
        dataset.load_source(tiny_volumes.config_of(data__name="nifti", data__root=text), "all")
    )
    first = build(root("old", "lung", "brain"))
    os.rename(tmp_path / "old", tmp_path / "new")
    os.rename(tmp_path / "new" / "lung", tmp_path / "new" / "a")
    os.rename(tmp_path / "new" / "brain", tmp_path / "new" / "zz")
    second = build(root("new", "a", "zz"))
    assert first.earlier and second.earlier != first.earlier  # version 0.1 counted the names of the folders
    assert second.fingerprint == first.fingerprint and second.source.modalities == first.source.modalities


@pytest.mark.parametrize("name", ["a=b", "a;b", "x=ct;y"])
def test_signs_in_paths(tmp_path, name):
    save(tmp_path / name / "ct" / "v.nii", values())
    for root in (str(tmp_path / name), f"{tmp_path / name}=ct", f"{tmp_path / name}=MRI"):
        config = tiny_volumes.config_of(data__name="nifti", data__root=root)
        assert dataset.load_source(config, "all").modalities == ["mr" if root.endswith("MRI") else "ct"]
    with pytest.raises(UserError, match="names the modality 'pet'"):
        load(tmp_path / name, "pet")


def test_csvs_of_volumes(tmp_path):
    for k in range(3):
        save(tmp_path / f"{k}.nii.gz", values(k))
        save(tmp_path / f"{k}_gt.nii.gz", labels())
    (tmp_path / "list.csv").write_text(
        "File Name;Modality;mask;patient_id\n0;ct;0_gt.nii.gz;p1\n1.nii.gz;nan;nan;p1 \n2.NII.gz;MRI;2_gt.nii.gz;2.0\n"
    )
    source = load(tmp_path / "list.csv")
    assert source.modalities == ["ct", "mr", "mr"] and source.masked == [True, False, True]
    assert source.groups[0] == source.groups[1] == "p1" and source.read(2).shape == (12, 10, 8, 1)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (-1.0, 1.0, 1.0), (0.0, 1.0, 1.0), (float("nan"), 1.0, 1.0)])
def test_impossible_spacings_are_one_clear_line(tmp_path, spacing):
    save(tmp_path / "a.nii", values())
    with pytest.raises(UserError, match=r"config\.data\.spacing=.*three lengths above 0"):
        load(tmp_path, data__spacing=spacing)


def test_label_maps_carry_no_texts(tmp_path):
    image = nib.Nifti1Image(values(), np.eye(4))
    image.header["descrip"], image.header["db_name"] = b"Zzyzx", b"Zzyzx"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"PatientName=Zzyzx"))
    nib.save(image, tmp_path / "a.nii")
    path = load(tmp_path).grid_of(0).save(labels(), tmp_path / "out")
    assert b"Zzyzx" not in gzip.decompress(path.read_bytes())
    assert struct.unpack_from("<h", gzip.decompress(path.read_bytes()), 70)[0] == 2  # uint8


@pytest.mark.parametrize("name", ["a.nii.gz", "gzip.nii", "a.mgz", "a.mha", "a.mhd", "a.nrrd"])
def test_damaged_compressed_voxels_are_refused(tmp_path, name):
    """One bit in the middle: the values change, but only the checksum at the end says so."""
    array = values(shape=(24, 24, 24))
    if name.startswith("gzip"):
        nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "a.nii.gz")
        (tmp_path / "a.nii.gz").rename(tmp_path / name)
    elif name.endswith((".nii.gz", ".mgz")):
        kind = nib.MGHImage if name.endswith(".mgz") else nib.Nifti1Image
        nib.save(kind(array.astype(np.float32), np.eye(4)), tmp_path / name)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / name), useCompression=True)
    volume = volume_file.open_volume(str(tmp_path / name), 10**6)
    assert volume.values().shape == array.shape
    path = next(tmp_path.glob("*.zraw"), tmp_path / name)
    whole = bytearray(path.read_bytes())
    for place in range(len(whole) // 2, len(whole) // 2 + 8):
        damaged = bytearray(whole)
        damaged[place] ^= 16
        path.write_bytes(damaged)
        with pytest.raises(BadImage, match="damaged"):
            volume_file.open_volume(str(tmp_path / name), 10**6).values()


def test_a_volume_of_another_modality_is_checked_and_packed_anew(tmp_path):
    """CT and MR have other windows, and other doubts about their values."""
    import deblur_mae_jax as dm

    save(tmp_path / "set" / "a.nii", (values().astype(np.float32) - 700).astype(np.int16))
    cache, found = tmp_path / "index.json", {}
    for modality in ("ct", "mr"):
        built = index.build(load(tmp_path / "set", modality), cache=cache)
        found[modality] = built.hashes, built.notes
        dm.pack(f"{tmp_path / 'set'}={modality}", tmp_path / "packed")
        config = tiny_volumes.config_of(data__name="packed", data__root=str(tmp_path / "packed"))
        packed = index.build(dataset.load_source(config, "all"))
        assert packed.source.modalities == [modality] and packed.hashes == built.hashes
    assert found["ct"][0] != found["mr"][0] and "is it CT" in " ".join(found["mr"][1])


def test_a_full_disk_costs_the_cache_and_not_the_volumes(tmp_path, monkeypatch, caplog):
    for name in "ab":
        save(tmp_path / "set" / f"{name}.nii", values())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(volume_reader.np, "save", full)
    built = index.build(load(tmp_path / "set", data__decoded=str(tmp_path / "decoded")))
    assert len(built) == 2 and not built.skipped and not list((tmp_path / "decoded").glob("*.tmp"))
    assert caplog.text.count("No space left on device") == 1


def test_voxels_that_would_become_too_many_are_refused(tmp_path):
    save(tmp_path / "a.nii", values())
    save(tmp_path / "b.nii", values(), np.diag([500.0, 500.0, 500.0, 1.0]))
    built = index.build(load(tmp_path, data__spacing=(1.0, 1.0, 1.0), data__check="header"), max_bad_fraction=0.9)
    assert len(built) == 1 and "voxels after config.data.spacing" in built.skipped[0].reason
    assert "a voxel has 500 x 500 x 500 mm" in built.skipped[0].reason


def test_a_label_map_is_known_by_its_mark_and_never_half_written(tmp_path, monkeypatch):
    """A prediction may replace its own label maps, also those of a table that was lost."""
    save(tmp_path / "a.nii", values())
    place = load(tmp_path).grid_of(0)
    path = place.save(labels(), tmp_path / "out")
    assert grid.is_label_map(path)

    def full(image, draft):
        draft.write_bytes(b"part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib, "save", full)
    before = path.read_bytes()
    with pytest.raises(OSError, match="No space left"):
        place.save(labels(), tmp_path / "out")
    assert path.read_bytes() == before and len(list(tmp_path.glob("*out*"))) == 1
