"""Which mask belongs to which volume, which volumes are of one patient, and what is said of doubtful scales."""

import os

import numpy as np
import pytest
import test_volume_files as files
import tiny_volumes
from scipy import ndimage

from deblur_mae_jax import network
from deblur_mae_jax.data import index, naming
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.pretrained import inherit
from deblur_mae_jax.training import supervision


def folder(root, names, seed=0):
    for number, name in enumerate(names):
        files.save(root / f"{name}.nii.gz", files.values(seed + number))


def masks(root, names):
    """Masks that each fill a place of their own."""
    for number, name in enumerate(names):
        mask = np.zeros((12, 10, 8), np.uint8)
        mask[3 * number : 3 * number + 2, 2:6, 2:6] = 1
        files.save(root / f"{name}.nii.gz", mask)


def first_row(source, name):
    return int(np.nonzero(source.masks(source.names.index(name)))[0].min())


def test_a_later_examination_does_not_get_the_mask_of_an_earlier_one(tmp_path):
    folder(tmp_path / "images", ["p1_T1", "p1_fu_T1", "p2_T1", "p2_fu_T1"])
    masks(tmp_path / "masks", ["p1", "p2"])
    source = files.segment(tmp_path)
    assert dict(zip(source.names, source.masked, strict=True)) == {
        f"{tmp_path.name}/images/{name}.nii.gz": "fu" not in name for name in ("p1_T1", "p1_fu_T1", "p2_T1", "p2_fu_T1")
    }
    assert source.groups == ["p1", "p1", "p2", "p2"]


def test_each_examination_has_its_own_mask(tmp_path):
    folder(tmp_path, [f"{case}_{sequence}" for case in ("p1", "p1_fu") for sequence in ("T1", "T2")])
    masks(tmp_path, ["p1_seg", "p1_fu_seg"])
    source = files.segment(tmp_path)
    rows = [first_row(source, f"{tmp_path.name}/{name}.nii.gz") for name in ("p1_T1", "p1_T2", "p1_fu_T1", "p1_fu_T2")]
    assert rows == [0, 0, 3, 3]
    assert any("share" in note for note in source.notes)


@pytest.mark.parametrize("rest", ["T1", "art", "t1n", "venous phase"])
def test_the_rest_of_a_name_may_be_a_sequence(rest):
    assert naming.is_same_visit(rest)


@pytest.mark.parametrize("rest", ["fu", "fu_T1", "visit2", "T1_baseline", "m06", "ses-02_T1w"])
def test_the_rest_of_a_name_may_be_another_visit(rest):
    assert not naming.is_same_visit(rest)


@pytest.mark.parametrize("place", ["", "masks/"])
def test_masks_of_different_organs_are_not_joined(tmp_path, place):
    folder(tmp_path / ("images" if place else "."), ["a1", "a2"])
    masks(tmp_path / place, ["a1_liver", "a1_spleen", "a2_liver", "a2_spleen"])
    source = files.segment(tmp_path)
    assert not any(source.masked or [])
    assert len([s for s in source.skipped if "called liver and spleen" in s.reason]) == 4


def test_numbered_masks_are_joined(tmp_path):
    folder(tmp_path / "images", ["a1", "a2"])
    masks(tmp_path / "masks", ["a1_lesion_1", "a2_lesion_1"])
    masks(tmp_path / "masks", ["a1_mask", "a1_mask_1", "a2_mask", "a2_mask_1"])
    source = files.segment(tmp_path)
    joined = source.masks(source.names.index(f"{tmp_path.name}/images/a1.nii.gz"))
    assert {0, 3} <= set(np.nonzero(joined)[0])


def csv(root, rows):
    table = root / "list.csv"
    table.write_text("\n".join(rows))
    return table


def test_a_csv_says_that_it_joins_different_organs(tmp_path):
    folder(tmp_path, ["a1", "a2"])
    masks(tmp_path, ["liver1", "spleen1"])
    source = files.segment(csv(tmp_path, ["path,mask", "a1.nii.gz,liver1.nii.gz;spleen1.nii.gz", "a2.nii.gz,"]))
    assert any("called liver and spleen" in note for note in source.notes)


def test_volumes_of_a_csv_with_one_mask_are_one_patient(tmp_path):
    names = [f"p{i}_{sequence}" for i in range(4) for sequence in ("art", "ven")]
    folder(tmp_path, names)
    masks(tmp_path, [f"p{i}_seg" for i in range(4)])
    source = files.segment(csv(tmp_path, ["path,mask", *(f"{n}.nii.gz,{n[:2]}_seg.nii.gz" for n in names)]))
    assert len(set(source.groups)) == 4
    assert all(source.groups[i] == source.groups[i + 1] for i in range(0, 8, 2))


def test_channels_in_a_csv_are_one_patient(tmp_path):
    folder(tmp_path, names := ["a_0000", "a_0001", "b_0000", "b_0001"])
    source = files.load(csv(tmp_path, ["path", *(f"{n}.nii.gz" for n in names)]))
    assert source.groups == ["a", "a", "b", "b"]


def test_a_folder_of_another_modality_is_named(tmp_path):
    folder(tmp_path / "mr", ["a"])
    folder(tmp_path / "ct", ["b"])
    assert any("folders name another modality" in note for note in files.load(tmp_path, "ct").notes)
    assert not any("another modality" in note for note in files.load(tmp_path / "mr", "mr").notes)


@pytest.mark.parametrize("modality", ["MRT", "us"])
def test_a_row_of_an_unknown_modality_is_left_out(tmp_path, modality):
    folder(tmp_path, ["a", "b"])
    rows = [f"a.nii.gz,{modality}", "b.nii.gz,mr"]
    source = files.load(csv(tmp_path, ["path,modality", *rows]))
    assert len(source) == 1 and f"its modality is '{modality}'; choices: ct, mr" in source.skipped[0].reason
    with pytest.raises(files.UserError, match=f"the first is .*its modality is '{modality}'"):
        files.load(csv(tmp_path, ["path,modality", rows[0]]))


@pytest.mark.parametrize("inside,outside", [(0, 1), (2, 1)])
def test_an_inverted_mask_of_a_volume_is_noted(tmp_path, inside, outside):
    folder(tmp_path / "images", ["a", "b"])
    for name in "ab":
        files.save(
            tmp_path / "masks" / f"{name}.nii.gz", np.where(files.labels() > 0, inside, outside).astype(np.uint8)
        )
    found = index.build(files.segment(tmp_path), masks=True)
    assert any("is it inverted" in note for note in found.notes)


def test_ct_that_is_scaled_in_two_ways_is_said(tmp_path):
    skull = np.zeros((12, 10, 8), np.int16)
    skull[3:9, 3:7, 2:6] = np.random.default_rng(0).integers(20, 60, (6, 4, 4))
    for name, top in (("a", 90), ("b", 180), ("c", 255)):
        skull[4, 4, 4] = top
        files.save(tmp_path / f"{name}.nii.gz", skull)
    source = files.load(tmp_path, "ct")
    tissue = [float(source.read(i)[5, 5, 4, 0]) for i in range(3)]
    assert tissue[0] == tissue[1] != tissue[2]
    assert any("SCALED IN TWO WAYS: 1 of 3" in note for note in index.build(source).notes)


def test_mr_with_a_background_that_is_not_zero_is_said(tmp_path):
    for name, background in (("a", 0), ("b", -5)):
        values = np.full((12, 10, 8), background, np.int16)
        values[3:9, 3:7, 2:6] = np.random.default_rng(0).integers(200, 600, (6, 4, 4))
        files.save(tmp_path / f"{name}.nii.gz", values)
    assert "voxels are -5" in files.notes(files.load(tmp_path))
    (tmp_path / "b.nii.gz").unlink()
    assert "if that is the background" not in files.notes(files.load(tmp_path))


@pytest.mark.parametrize("header,data", [("a.mhd", "a.raw"), ("a.hdr", "a.img")])
def test_a_change_of_the_data_file_is_seen(tmp_path, header, data):
    import nibabel as nib
    import SimpleITK as sitk

    def write(number):
        values = files.values(number)
        if header.endswith("mhd"):
            sitk.WriteImage(sitk.GetImageFromArray(values), str(tmp_path / "set" / header))
        else:
            nib.save(nib.Nifti1Pair(values, np.eye(4)), tmp_path / "set" / header)

    (tmp_path / "set").mkdir()
    write(0)
    stat = os.stat(tmp_path / "set" / header)
    load = lambda: files.load(tmp_path / "set", data__decoded=str(tmp_path / "decoded"))
    before = load().read(0).copy()
    write(1)
    os.utime(tmp_path / "set" / header, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    os.utime(tmp_path / "set" / data, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    assert not np.array_equal(before, load().read(0))


@pytest.mark.parametrize(("thin", "refused"), [(False, True), (True, False)])
def test_soft_edges_are_refused_and_one_thin_label_is_not(tmp_path, thin, refused):
    for number in range(6):
        files.save(tmp_path / f"{number}.nii.gz", files.values(number))
        mask = np.zeros((12, 10, 8))
        mask[2:10, 1:9, 1:7] = 4
        if thin:
            mask[2:10, 6:9, 1:7], mask[4, 2, 2:6] = 3, 2
        else:
            mask = ndimage.uniform_filter(mask, 3)
        files.save(tmp_path / f"{number}_seg.nii.gz", np.rint(mask).astype(np.uint8))
    config = inherit.resolve(tiny_volumes.segmentation(data__name="nifti", data__root=f"{tmp_path}=mr", data__folds=3))[
        0
    ]
    prepare = lambda: supervision.prepare(config, network.check(config), None, None)
    if refused:
        with pytest.raises(UserError, match=r"3 values of the masks.*only occur between regions"):
            prepare()
    else:
        assert prepare()[1].mask_values == [0, 2, 3, 4]
