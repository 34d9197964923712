"""Packed sets: the same images, order and losses as the folder, bytes that depend on nothing else, honest damage."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time

import dicom_files
import nibabel as nib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import tiny_runs
import tiny_volumes
from PIL import Image

import deblur_mae_jax as dm
from deblur_mae_jax import train
from deblur_mae_jax.data import (
    dataset,
    image_files,
    index,
    packed,
    packing,
    parquet,
    privacy,
    records,
    source_config,
)
from deblur_mae_jax.data.source import BadImage
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.pretrained import inherit


def write(root, count=24, masks=False):
    for i in range(count):
        label = ("benign", "malignant")[i % 2]
        pixels = np.kron(np.random.default_rng(i).integers(0, 256, (6, 8)), np.ones((6 + i % 3, 6))).astype(np.uint8)
        (root / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / label / f"p{i // 2:02d}_{i % 2}.png")
        if masks:
            Image.fromarray((pixels > 100).astype(np.uint8)).save(root / label / f"p{i // 2:02d}_{i % 2}_mask.png")
    (root / "benign" / "broken.png").write_bytes(b"x")
    return root


def load(root, split="all", name="packed", config="finetune", **fields):
    return dataset.load_source(tiny.resolved(config, data__name=name, data__root=str(root), **fields), split)


def contents(folder):
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.iterdir())
        if p.suffix in (".array_record", ".parquet")
    }


@pytest.mark.parametrize("encode", ["keep", "png", "raw"])
def test_a_packed_set_is_the_folder(tmp_path, encode):
    folder = write(tmp_path / "set", masks=True)
    dm.pack(folder, tmp_path / "packed", encode=encode, group_pattern=r"(p\d+)")
    one = index.build(load(folder, name="image_folder", data__group_pattern=r"(p\d+)"), masks=False)
    two = index.build(load(tmp_path / "packed"))
    assert two.fingerprint == one.fingerprint and two.canvas == one.canvas and two.hashes == one.hashes
    for field in ("names", "labels", "groups", "masked"):
        assert getattr(two.source, field) == getattr(one.source, field)
    for i in range(len(one)):
        np.testing.assert_array_equal(two.source.read(i), one.source.read(i))
        np.testing.assert_array_equal(two.source.masks(i), one.source.masks(i))
    assert "benign/broken.png" in (tmp_path / "packed" / "skipped.csv").read_text()
    masked = index.build(load(folder, name="image_folder", data__group_pattern=r"(p\d+)"), masks=True)
    assert index.build(load(tmp_path / "packed"), masks=True).fingerprint == masked.fingerprint


def test_jpeg_is_close(tmp_path):
    folder = write(tmp_path / "set")
    dm.pack(folder, tmp_path / "packed", encode="jpeg95")
    one, two = load(folder, name="image_folder"), load(tmp_path / "packed")
    assert abs(one.read(1).astype(int) - two.read(0)).mean() < 6  # the first of the folder is damaged


def test_nothing_is_decoded_or_listed_at_the_start(tmp_path, monkeypatch):
    dm.pack(write(tmp_path / "set"), tmp_path / "packed")

    def never(*arguments, **options):
        raise AssertionError("read")

    monkeypatch.setattr(packed.Records, "parts", never)
    monkeypatch.setattr(dataset.dicom, "most_are_dicom", never)
    found = index.build(load(tmp_path / "packed"))
    assert len(found) == 24 and found.source.size_of(0) == (36, 48)


def test_the_bytes_do_not_depend_on_the_workers(tmp_path):
    folder = write(tmp_path / "set", masks=True)
    config = source_config.config_for(str(folder))
    for name, workers in (("one", 1), ("two", 2)):
        packing.pack(config, tmp_path / name, workers=workers, shard_mb=0.001)
    assert contents(tmp_path / "one") == contents(tmp_path / "two") and len(contents(tmp_path / "one")) > 3


SLOW = """
import time
from deblur_mae_jax.data import packing, source_config
write = packing.write_shard
def slow(job):
    write(job)
    print("shard", flush=True)
    time.sleep(0.3)
packing.write_shard = slow
packing.pack(source_config.config_for({source!r}), {out!r}, shard_mb=0.001)
"""


def test_packing_goes_on_where_it_was_killed(tmp_path):
    folder = write(tmp_path / "set", 60)
    config = source_config.config_for(str(folder))
    packing.pack(config, tmp_path / "whole", shard_mb=0.001)
    code = SLOW.format(source=str(folder), out=str(tmp_path / "killed"))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=tiny.ROOT)
    for _ in range(3):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "killed" / "dataset.json").exists()
    done = packing.pack(config, tmp_path / "killed", shard_mb=0.001)
    assert 3 <= done.reused < done.num_shards and contents(tmp_path / "killed") == contents(tmp_path / "whole")
    time.sleep(0.01)
    Image.fromarray(np.zeros((36, 48), np.uint8) + 9).save(folder / "benign" / "p00_0.png")
    assert packing.pack(config, tmp_path / "killed", shard_mb=0.001).reused == done.num_shards - 1


@pytest.mark.slow
def test_training_on_a_packed_set_gives_the_losses_of_the_folder(tmp_path):
    folder = write(tmp_path / "set")
    dm.pack(folder, tmp_path / "packed")
    common = {"optim__steps": 3, "log__every_steps": 1, "data__store": "streaming"}
    tiny_runs.run(tmp_path / "a", data__name="image_folder", data__root=str(folder), **common)
    tiny_runs.run(tmp_path / "b", data__name="packed", data__root=str(tmp_path / "packed"), **common)
    assert tiny_runs.lines(tmp_path / "a") == tiny_runs.lines(tmp_path / "b")
    assert len(tiny_runs.lines(tmp_path / "a")) == 3


def test_damage_is_named(tmp_path):
    dm.pack(write(tmp_path / "set"), tmp_path / "packed")
    shard = next((tmp_path / "packed").glob("*.array_record"))
    content = bytearray(shard.read_bytes())
    for at in range(2000, len(content), 97):
        content[at] ^= 255
    shard.write_bytes(content)
    packed._reader.cache_clear()
    source = load(tmp_path / "packed")
    with pytest.raises(BadImage, match=r"shard '.*' cannot be read|damaged: a record"):
        for i in range(len(source)):
            source.read(i)
    shard.unlink()
    with pytest.raises(UserError, match="lacks the shard 'data-00000"):
        load(tmp_path / "packed")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data__max_side": 20}, r"config\.data\.max_side=20, but .* was packed with 1024"),
        ({"model__in_chans": 3}, "in_chans=3, but .* was packed with 1"),
        ({"data__root": "/nothing/there"}, "does not exist"),
    ],
)
def test_settings_that_do_not_fit_are_one_clear_line(tmp_path, fields, message):
    dm.pack(write(tmp_path / "set"), tmp_path / "packed")
    with pytest.raises(UserError, match=message):
        wanted = {"data__name": "packed", "data__root": str(tmp_path / "packed")} | fields
        dataset.load_source(tiny.resolved("quickstart", **wanted))
    (tmp_path / "packed" / "dataset.json").write_text("{")
    with pytest.raises(UserError, match="is not a packed set"):
        load(tmp_path / "packed")
    with pytest.raises(UserError, match="--encode: unknown name 'zip'"):
        dm.pack(tmp_path / "set", tmp_path / "p2", encode="zip")
    with pytest.raises(UserError, match=r"field of config.data: unknown name 'max_sides'"):
        dm.pack(tmp_path / "set", tmp_path / "p2", max_sides=3)


def test_splits_and_patients_of_a_csv(tmp_path):
    write(tmp_path / "set")
    rows = [f"{p.parent.name}/{p.name},{p.parent.name},{('train', 'val', 'test')[i % 3]},{i // 2}"
            for i, p in enumerate(sorted((tmp_path / "set").glob("*/p*.png")))]  # fmt: skip
    (tmp_path / "set" / "list.csv").write_text("\n".join(["path,label,split,group", *rows]) + "\n")
    dm.pack(tmp_path / "set" / "list.csv", tmp_path / "packed")
    train = load(tmp_path / "packed", "train")
    assert len(train) == 8 and train.unused == {"val": 8, "test": 8} and len(set(train.groups)) == 8
    with pytest.raises(UserError, match="'fold' is not a split"):
        load(tmp_path / "packed", "fold")


def test_dicom_is_packed_without_identifiers(tmp_path):
    for i in range(6):
        dicom_files.still(tmp_path / "set" / f"{i}.dcm", np.roll(dicom_files.picture(), i, axis=1), patient=f"Zzyzx{i}")
    dm.pack(tmp_path / "set", tmp_path / "packed", crop="none")
    source = load(tmp_path / "packed", data__crop="none")
    assert len(source) == 6 and len(set(source.groups)) == 6
    np.testing.assert_array_equal(source.read(0), load(tmp_path / "set", name="dicom", data__crop="none").read(0))
    for path in (tmp_path / "packed").iterdir():
        assert b"Zzyzx" not in path.read_bytes() and b".dcm" not in path.read_bytes()
    assert (tmp_path / "packed_private").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("max_side", [1024, 32])
def test_packed_pictures_keep_the_size_of_their_pixels(tmp_path, max_side):
    region = dicom_files.region(0, 0, 59, 39, delta=0.02)
    for i in range(3):
        dicom_files.still(tmp_path / "set" / f"{i}.dcm", SequenceOfUltrasoundRegions=[region])
    dm.pack(tmp_path / "set", tmp_path / "packed", max_side=max_side)
    packed, files = (load(tmp_path / name, name=kind, data__max_side=max_side).grid_of(0)
                     for name, kind in (("packed", "packed"), ("set", "dicom")))  # fmt: skip
    assert packed.unit == files.unit == "mm" and packed.spacing == pytest.approx(files.spacing)


def test_volumes(tmp_path):
    for i in range(3):
        values = np.random.default_rng(i).integers(-1000, 1000, (12, 10, 8)).astype(np.int16)
        for folder, array in (("images", values), ("masks", (values > 500).astype(np.uint8))):
            (tmp_path / "set" / folder).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.diag([1, 1, 3.0, 1])), tmp_path / "set" / folder / f"{i}.nii.gz")
    dm.pack(f"{tmp_path / 'set'}=ct", tmp_path / "packed", spacing=(2.0, 2.0, 3.0))
    fields = {"data__spacing": (2.0, 2.0, 3.0)}
    config = tiny_volumes.segmentation(data__name="nifti", data__root=f"{tmp_path / 'set'}=ct", **fields)
    one = dataset.load_source(inherit.resolve(config)[0], "all")
    config = tiny_volumes.segmentation(data__name="packed", data__root=str(tmp_path / "packed"), **fields)
    two = dataset.load_source(inherit.resolve(config)[0], "all")
    assert two.modalities == one.modalities and two.names == one.names
    for i in range(3):
        np.testing.assert_array_equal(two.read(i), one.read(i))
        np.testing.assert_array_equal(two.masks(i), one.masks(i))
        np.testing.assert_array_equal(two.grid_of(i).truth(), one.grid_of(i).truth())
        assert two.grid_of(i).spacing == one.grid_of(i).spacing
    assert index.build(two, masks=True).fingerprint == index.build(one, masks=True).fingerprint
    with pytest.raises(UserError, match="holds volumes, this run takes 2-D images"):
        load(tmp_path / "packed")


def test_a_part_of_a_volume_is_read_from_the_blocks_that_hold_it(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "BLOCK", 8)
    for i, shape in enumerate([(20, 17, 8), (9, 24, 30)]):
        values = np.random.default_rng(i).integers(-1000, 1000, shape).astype(np.int16)
        tiny_volumes.save(tmp_path / "set" / f"{i}.nii.gz", values, dtype=np.int16)
    dm.pack(f"{tmp_path / 'set'}=ct", tmp_path / "packed")
    config = tiny_volumes.config_of(data__name="packed", data__root=str(tmp_path / "packed"))
    source = dataset.load_source(inherit.resolve(config)[0], "all")
    fetched = []
    fetch = packed.Records.fetch
    monkeypatch.setattr(packed.Records, "fetch", lambda *a: fetched.extend(a[2]) or fetch(*a))
    random = np.random.default_rng(0)
    for i in range(2):
        whole = source.read(i)
        assert source.lazy(i).shape == whole.shape == (*source.size_of(i), 1)
        for _ in range(20):
            ends = [np.sort(random.choice(side + 1, 2, replace=False)) for side in whole.shape[:3]]
            part = tuple(slice(a, b) for a, b in ends)
            fetched.clear()
            np.testing.assert_array_equal(source.lazy(i)[part], whole[part])
            assert len(fetched) == np.prod([-(-b // 8) - a // 8 for a, b in ends])


def test_label_maps_of_packed_volumes_keep_their_place(tmp_path):
    """Saved for the packed set and for the file, a label map has the same value at every place in space."""
    affine = np.array([[0, -2.0, 0, 30], [1.5, 0, 0, -40], [0, 0, 3.0, 7], [0, 0, 0, 1]])
    path = tiny_volumes.save(tmp_path / "set" / "a.nii.gz", tiny_volumes.cube(), affine)
    dm.pack(f"{path.parent}=ct", tmp_path / "packed")
    saved = []
    for name, root in (("nifti", f"{path.parent}=ct"), ("packed", tmp_path / "packed")):
        config = tiny_volumes.config_of(data__name=name, data__root=str(root))
        grid = dataset.load_source(inherit.resolve(config)[0], "all").grid_of(0)
        labels = np.random.default_rng(0).integers(0, 4, (14, 12, 10)).astype(np.uint8)
        saved.append(nib.as_closest_canonical(nib.load(grid.save(grid.finish(labels), tmp_path / name))))
    np.testing.assert_array_equal(saved[0].get_fdata(), saved[1].get_fdata())
    np.testing.assert_allclose(saved[0].affine, saved[1].affine)


@pytest.mark.slow
def test_streamed_cubes_of_packed_volumes_give_the_losses_of_the_folder(tmp_path):
    """The folder is held in memory whole; of the packed set, the cubes of each step alone are read."""
    for i in range(4):
        shape = (40, 34 + i, 48) if i % 2 else (20, 40, 36)  # smaller and larger than the cube of 32
        tiny_volumes.save(tmp_path / "set" / f"{i}.nii.gz", tiny_volumes.cube(i, shape))
    dm.pack(f"{tmp_path / 'set'}=ct", tmp_path / "packed")
    losses = []
    for store, name, root in (("resident", "nifti", f"{tmp_path / 'set'}=ct"), ("streaming", "packed", "packed")):
        config = tiny_volumes.config_of(
            data__name=name, data__root=str(tmp_path / root), data__store=store, optim__steps=3
        )
        train.train_and_evaluate(config, tmp_path / store)
        losses.append(tiny_runs.lines(tmp_path / store))
    assert losses[0] == losses[1] and len(losses[0]) == 3


def test_webdataset_tars(tmp_path):
    write(tmp_path / "set")
    files = sorted((tmp_path / "set").glob("*/p*.png"))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for path in files:
            for suffix, content in ((".png", path.read_bytes()), (".cls", path.parent.name.encode()),
                                    (".json", json.dumps({"patient_id": path.stem[:3]}).encode())):  # fmt: skip
                member = tarfile.TarInfo(f"{path.parent.name}_{path.stem}{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    dm.pack(tmp_path / "a.tar", tmp_path / "packed")
    source = load(tmp_path / "packed")
    assert len(source) == 24 and set(source.labels) == {"benign", "malignant"} and len(set(source.groups)) == 12
    np.testing.assert_array_equal(source.read(0)[..., 0], np.asarray(Image.open(files[0])))
    (tmp_path / "b.tar").write_bytes(b"x" * 2000)
    assert "not a plain tar" in str(load(tmp_path / "b.tar", name="webdataset").skipped)
    with pytest.raises(UserError, match=r"no \.tar in"):
        load(tmp_path / "set", name="webdataset")


def test_hugging_face_parquet(tmp_path):
    write(tmp_path / "set")
    files = sorted((tmp_path / "set").glob("*/p*.png"))
    names = ["benign", "malignant"]
    info = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    for split, part in (("train", files[:16]), ("test", files[16:])):
        table = pa.table({
            "image": [{"bytes": p.read_bytes(), "path": p.name} for p in part],
            "label": [names.index(p.parent.name) for p in part], "patient_id": [p.stem[:3] for p in part],
        }).replace_schema_metadata({"huggingface": json.dumps(info)})  # fmt: skip
        (tmp_path / "hf").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "hf" / f"{split}-00000-of-00001.parquet", row_group_size=5)
    dm.pack(tmp_path / "hf", tmp_path / "packed")
    train = load(tmp_path / "packed", "train")
    assert len(train) == 16 and train.unused == {"test": 8} and set(train.labels) <= set(names)
    np.testing.assert_array_equal(train.read(3)[..., 0], np.asarray(Image.open(files[3])))
    assert load(tmp_path / "hf", "train", name="parquet").unused == {"test": 8}
    with pytest.raises(UserError, match=r"'val' is not a split of .* Choices: test, train, all"):
        load(tmp_path / "hf", "val", name="parquet")
    (tmp_path / "hf" / "bad.parquet").write_bytes(b"PAR1 and nothing")
    assert [s.name for s in load(tmp_path / "hf", "train", name="parquet").skipped] == ["bad.parquet"]


def test_the_script_says_what_it_did(tmp_path, capfd):
    sys.path.insert(0, str(tiny.ROOT / "scripts"))
    import pack_data

    write(tmp_path / "set")
    pack_data.main([str(tmp_path / "set"), str(tmp_path / "packed"), "--workers=1", r"--data=group_pattern=(p\d+)"])
    said = capfd.readouterr().err
    assert "images 24, shards 1, files left out 1" in said and "--config.data.name=packed" in said
    assert len(set(load(tmp_path / "packed").groups)) == 12
    with pytest.raises(UserError, match="must be FIELD=VALUE"):
        pack_data.main([str(tmp_path / "set"), str(tmp_path / "packed"), "--data=group"])
    program = [sys.executable, str(tiny.ROOT / "scripts" / "pack_data.py"), "/nothing/there", str(tmp_path / "x")]
    done = subprocess.run(program, capture_output=True, text=True, env=os.environ)  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith("error: config.data.root")


# What packing must never do: remove other files, mix two states of a set, or keep what identifies a patient.


def test_no_file_but_its_own_is_removed(tmp_path):
    (tmp_path / "set").mkdir()
    for i in range(4):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 30)).astype(np.uint8)).save(
            tmp_path / "set" / f"data-{i:05d}.png"
        )
    for out in (tmp_path / "set", tmp_path / "set" / "inside"):
        with pytest.raises(UserError, match="is in SOURCE"):
            dm.pack(tmp_path / "set", out)
    other = tmp_path / "other"
    other.mkdir()
    (other / "data-notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds other files, such as 'data-notes\.txt'"):
        dm.pack(tmp_path / "set", other)
    dm.pack(tmp_path / "set", tmp_path / "packed")
    (tmp_path / "packed" / "data-notes.txt").write_text("mine")
    dm.pack(tmp_path / "set", tmp_path / "packed", encode="raw")
    assert (tmp_path / "packed" / "data-notes.txt").exists() and len(list((tmp_path / "set").iterdir())) == 4


def test_a_set_whose_packing_stopped_is_not_read(tmp_path, monkeypatch):
    """The shards are new, the index is old: every name would give another image."""
    folder = write(tmp_path / "set")
    dm.pack(folder, tmp_path / "packed")
    (folder / "benign" / "p00_0.png").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_write_index", lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            dm.pack(folder, tmp_path / "packed")
    with pytest.raises(UserError, match="is not a packed set"):
        load(tmp_path / "packed")
    assert dm.pack(folder, tmp_path / "packed").num_images == len(load(tmp_path / "packed")) == 23


def test_an_index_of_another_state_is_refused(tmp_path):
    dm.pack(write(tmp_path / "set"), tmp_path / "packed")
    table = pq.read_table(tmp_path / "packed" / "index.parquet")
    pq.write_table(table.slice(0, 3), tmp_path / "packed" / "index.parquet")
    with pytest.raises(UserError, match="is not the one that"):
        load(tmp_path / "packed")
    facts = json.loads((tmp_path / "packed" / "dataset.json").read_text())
    del facts["shards"], facts["masks"]
    (tmp_path / "packed" / "dataset.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="lacks masks, shards"):
        load(tmp_path / "packed")


def test_a_damaged_shard_is_packed_again(tmp_path):
    folder = write(tmp_path / "set")
    dm.pack(folder, tmp_path / "packed")
    before = contents(tmp_path / "packed")
    shard = next((tmp_path / "packed").glob("*.array_record"))
    shard.write_bytes(shard.read_bytes()[:-100])
    assert dm.pack(folder, tmp_path / "packed").reused == 0 and contents(tmp_path / "packed") == before


def test_what_could_not_be_read_for_a_moment_is_packed_by_the_next_start(tmp_path, monkeypatch):
    folder, real = write(tmp_path / "set"), image_files.Files.examine
    count = dm.pack(folder, tmp_path / "whole").num_images

    def gone(self, number):
        if str(self.paths[number]).endswith(("p01_0.png", "p02_1.png")):
            raise OSError(5, "Input/output error")
        return real(self, number)

    monkeypatch.setattr(image_files.Files, "examine", gone)
    assert dm.pack(folder, tmp_path / "packed").num_images == count - 2
    monkeypatch.undo()
    packed = dm.pack(folder, tmp_path / "packed")
    assert packed.num_images == count and packed.reused == 0
    assert dm.pack(folder, tmp_path / "packed").reused == packed.num_shards


def test_later_runs_know_which_images_a_packed_set_held(tmp_path):
    folder = write(tmp_path / "set")
    dm.pack(folder, tmp_path / "packed")
    index.build(load(folder, name="image_folder"), cache=tmp_path / "folder.json")
    index.build(load(tmp_path / "packed"), cache=tmp_path / "packed.json")
    seen = index.hashes_of_index(tmp_path / "packed.json")
    assert seen and seen == index.hashes_of_index(tmp_path / "folder.json")


def test_settings_of_sources_without_files_are_no_old_shards(tmp_path):
    fields = {"num_images": 4, "split": "train"}
    dm.pack("", tmp_path / "packed", name="phantoms", side=40, **fields)
    assert dm.pack("", tmp_path / "packed", name="phantoms", side=64, **fields).reused == 0
    assert max(load(tmp_path / "packed").read(0).shape) == 64


def test_the_index_of_dicom_holds_no_hash_without_a_key(tmp_path):
    dicom_files.still(tmp_path / "set" / "a.dcm", SOPInstanceUID="1.9.0", modality="OT")
    dm.pack(tmp_path / "set", tmp_path / "packed")
    content = (tmp_path / "packed" / "index.parquet").read_bytes()
    assert privacy.digest("1.9.0", "0").encode() not in content
    facts = json.loads((tmp_path / "packed" / "dataset.json").read_text())
    assert facts["source"] == "dicom"


def test_only_dicom_needs_a_key(tmp_path):
    dm.pack(write(tmp_path / "set"), tmp_path / "packed")
    assert not (tmp_path / "packed_private").exists()
    dicom_files.still(tmp_path / "dicom" / "a.dcm")
    (tmp_path / "two_private").write_text("a file")
    with pytest.raises(UserError, match="two_private"):
        dm.pack(tmp_path / "dicom", tmp_path / "two")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shard_mb": 0}, "shard_mb=0 must be above 0"), ({"max_pixels": "abc"}, r"max_pixels='abc' must be a number"),
        ({"sides": 3}, "field of config.data"),
    ],
)  # fmt: skip
def test_bad_settings_of_packing_are_one_clear_line(tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        dm.pack(write(tmp_path / "set"), tmp_path / "packed", **fields)


def split_folders(root):
    for split, count in (("train", 4), ("test", 2)):
        for i in range(count):
            pixels = np.random.default_rng(i + 10 * count).integers(0, 256, (20, 30)).astype(np.uint8)
            (root / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / split / f"{i}.png")
    return root


def test_one_split_is_packed_if_it_is_named(tmp_path):
    folder = split_folders(tmp_path / "set")
    assert dm.pack(folder, tmp_path / "all").num_images == 6
    assert dm.pack(folder, tmp_path / "test", split="test").num_images == 2


def png(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_splits_of_shards_in_folders(tmp_path):
    """As Hugging Face and WebDataset name them: `default/train/0000.parquet`, `set-train-000000.tar`."""
    for number, split in enumerate(("train", "test")):
        images = [
            png(np.random.default_rng(10 * number + i).integers(0, 256, (20, 30)).astype(np.uint8)) for i in range(3)
        ]
        path = tmp_path / "parquet" / "default" / split / "0000.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table({"image": [{"bytes": b, "path": ""} for b in images], "label": [0, 1, -1]}), path)
        for folder, name in (("tars", f"{split}/00000.tar"), ("named", f"set-{split}-000000.tar")):
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            with tarfile.open(tmp_path / folder / name, "w") as tar:
                for i, content in enumerate(images):
                    for suffix, text in ((".png", content), (".txt", b"a long caption of what the picture shows " * 3)):
                        member = tarfile.TarInfo(f"{i}{suffix}")
                        member.size = len(text)
                        tar.addfile(member, io.BytesIO(text))
    for folder in ("parquet", "tars", "named"):
        config = source_config.config_for(str(tmp_path / folder))
        source = dataset.load_source(config)
        assert sorted(source.splits) == ["test"] * 3 + ["train"] * 3 and len(set(source.names)) == 6
        assert len(dataset.load_source(config, "test")) == 3
        # Without names of classes, -1 is a class like any other; the captions of the tars are no classes.
        assert source.labels == (["0", "1", "-1"] * 2 if folder == "parquet" else None)


def test_one_tar_among_images_is_no_set_of_tars(tmp_path):
    folder = split_folders(tmp_path / "set")
    with tarfile.open(folder / "backup.tar", "w") as tar:
        tar.add(folder / "train" / "0.png", "0.png")
    packed = dm.pack(folder, tmp_path / "packed")
    assert packed.num_images == 6 and "backup.tar" in (tmp_path / "packed" / "skipped.csv").read_text()


def test_the_line_for_the_run_names_the_settings(tmp_path, capfd):
    sys.path.insert(0, str(tiny.ROOT / "scripts"))
    import audit_data
    import pack_data

    write(tmp_path / "set")
    pack_data.main([str(tmp_path / "set"), str(tmp_path / "packed"), "--workers=1", "--max_side=32"])
    line = next(line for line in capfd.readouterr().err.splitlines() if line.startswith("use it with"))
    fields = dict(part.removeprefix("--config.").replace(".", "__").split("=") for part in line.split()[3:])
    assert fields.pop("data__max_side") == "32"
    pack_data.main([str(tmp_path / "set"), str(tmp_path / "three channels"), "--workers=1", "--channels=3"])
    line = next(line for line in capfd.readouterr().err.splitlines() if line.startswith("use it with"))
    assert f"root='{tmp_path}/three channels'" in line and line.endswith("--config.model.in_chans=3")
    assert len(load(fields["data__root"], data__max_side=32)) == 24
    audit_data.main([str(tmp_path / "packed"), f"--output={tmp_path / 'audit.html'}", "--no_crops"])
    with pytest.raises(UserError, match="--output: cannot write"):
        audit_data.main([str(tmp_path / "set"), "--output=/proc/none/a.html"])


def test_what_packing_left_out_is_said_by_the_run(tmp_path):
    dm.pack(write(tmp_path / "set"), tmp_path / "packed")
    assert "left out when the set was packed: 1 (see its skipped.csv)" in load(tmp_path / "packed").notes


def test_the_number_of_an_unknown_class_is_no_class():
    assert parquet._texts([0, -1, 1, None], ["benign", "malignant"]) == ["benign", "", "malignant", ""]


def test_a_set_that_is_being_packed_is_not_packed_again(tmp_path):
    folder = write(tmp_path / "set")
    code = SLOW.format(source=str(folder), out=str(tmp_path / "packed"))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=tiny.ROOT)
    process.stdout.readline()
    with pytest.raises(UserError, match="is being packed by another process"):
        packing.pack(source_config.config_for(str(folder)), tmp_path / "packed", shard_mb=0.001)
    assert process.wait() == 0
    process.stdout.close()
    packing.pack(source_config.config_for(str(folder)), tmp_path / "packed", shard_mb=0.001)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_set_with_many_damaged_images_is_not_packed(tmp_path):
    folder = write(tmp_path / "set", 8)
    for i in range(4):
        (folder / "benign" / f"bad{i}.png").write_bytes(b"x")
    with pytest.raises(
        UserError, match=r"5 of 13 images cannot be used, more than config\.data\.max_bad_fraction=0\.2"
    ):
        dm.pack(folder, tmp_path / "packed")
    assert not (tmp_path / "packed" / "dataset.json").exists()
    assert dm.pack(folder, tmp_path / "packed", max_bad_fraction=0.9).num_images == 8


def test_a_lossy_set_is_another_set_than_the_folder(tmp_path):
    folder = write(tmp_path / "set")
    dm.pack(folder, tmp_path / "png", encode="png")
    dm.pack(folder, tmp_path / "jpeg", encode="jpeg95")
    one, other = (index.build(load(tmp_path / name)) for name in ("png", "jpeg"))
    assert one.fingerprint != other.fingerprint
    assert other.hashes[0] == index.pixel_hash(other.source.read(0)) != one.hashes[0]


def test_a_shard_that_was_copied_in_part_is_refused(tmp_path):
    dm.pack(write(tmp_path / "set"), tmp_path / "packed")
    shard = next((tmp_path / "packed").glob("*.array_record"))
    size = shard.stat().st_size
    os.truncate(shard, size // 2)
    with pytest.raises(UserError, match=f"has {size // 2} bytes instead of {size}"):
        load(tmp_path / "packed")


def test_a_full_disk_is_one_line(tmp_path):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    folder = write(tmp_path / "set")
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(UserError, match=r"OUT: cannot write to '.*': .*start again to go on"):
            dm.pack(folder, tmp_path / "packed")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert dm.pack(folder, tmp_path / "packed").num_images == 24


def test_compressed_tars_are_listed(tmp_path):
    write(tmp_path / "set", 4)
    for name, mode in (("a.tar", "w"), ("b.tar.gz", "w:gz"), ("c.tgz", "w:gz")):
        (tmp_path / "tars").mkdir(exist_ok=True)
        with tarfile.open(tmp_path / "tars" / name, mode) as tar:
            tar.add(tmp_path / "set" / "malignant" / "p00_1.png", f"{name[0]}.png")
    packed_set = dm.pack(tmp_path / "tars", tmp_path / "packed", name="webdataset")
    assert packed_set.num_images == 1
    listed = (tmp_path / "packed" / "skipped.csv").read_text()
    assert "b.tar.gz" in listed and "c.tgz" in listed and "decompress" in listed
