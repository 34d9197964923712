"""Reading a packed set while its files change or fail."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_packing import load, write

import deblur_mae_jax as dm
from deblur_mae_jax.data import packed
from deblur_mae_jax.data.source import BadImage
from deblur_mae_jax.errors import UserError


def test_a_set_that_is_packed_again_ends_a_run_that_reads_it(tmp_path):
    """Its records have other places: images would be read with the labels of others."""
    folder = write(tmp_path / "set")
    dm.pack(folder, tmp_path / "packed")
    source = load(tmp_path / "packed")
    (folder / "benign" / "p00_0.png").unlink()
    dm.pack(folder, tmp_path / "packed")
    packed._reader.cache_clear()
    with pytest.raises(UserError, match="was packed again while it was used"):
        source.read(5)


def test_a_file_that_became_unreadable_is_opened_again(tmp_path, monkeypatch):
    dm.pack(write(tmp_path / "set"), tmp_path / "packed")
    source = load(tmp_path / "packed")
    wanted, real = source.read(3), packed._reader

    class Stale:
        def read(self, numbers):
            raise RuntimeError("stale file handle")

    class Readers:
        stale = True

        def __call__(self, *place):
            return Stale() if self.stale else real(*place)

        def cache_clear(self):
            self.stale = False

    monkeypatch.setattr(packed, "_reader", Readers())
    monkeypatch.setattr(packed, "_opened", -packed.REOPEN)
    np.testing.assert_array_equal(source.read(3), wanted)


def test_a_shard_that_stays_unreadable_is_named_whenever_it_was_opened(tmp_path, monkeypatch):
    dm.pack(write(tmp_path / "set"), tmp_path / "packed")
    source = load(tmp_path / "packed")

    def gone(*place):
        raise RuntimeError("stale file handle")

    gone.cache_clear = lambda: None
    monkeypatch.setattr(packed, "_reader", gone)
    monkeypatch.setattr(packed, "_opened", -packed.REOPEN)
    for _ in range(2):  # opened anew, and not again within a minute
        with pytest.raises(BadImage, match=r"cannot be read \(stale file handle\)"):
            source.read(3)


def test_images_of_parquet_files_are_divided_into_shards(tmp_path):
    rng = np.random.default_rng(0)
    images = [dm_png(rng.integers(0, 256, (200, 200), np.uint8)) for _ in range(60)]
    (tmp_path / "hf").mkdir()
    pq.write_table(pa.table({"image": [{"bytes": image} for image in images]}), tmp_path / "hf" / "train.parquet")
    assert dm.pack(tmp_path / "hf", tmp_path / "packed", shard_mb=1).num_shards > 1


def dm_png(pixels):
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()
