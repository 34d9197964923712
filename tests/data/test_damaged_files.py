"""Damaged files of every format are read or refused: a small share of `benchmarks/fuzz_readers.py`."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import damaged_files as damaged
from deblur_mae_jax.data import table
from deblur_mae_jax.errors import UserError

EACH = 12


@pytest.mark.parametrize("kind", damaged.FORMATS)
@pytest.mark.filterwarnings("ignore")  # decoders warn of what they then refuse
def test_damaged_files_are_read_or_refused(tmp_path, kind):
    random = np.random.default_rng(sum(map(ord, kind)))
    good = damaged.good_file(kind, tmp_path)
    assert damaged.read(kind, good) == "read"
    outcomes = [damaged.read(kind, damaged.mutated(good, tmp_path / f"{i}", random)) for i in range(EACH)]
    assert set(outcomes) <= {"read", "refused"} and (kind == "csv" or "refused" in outcomes)


@given(st.text(max_size=200))
@settings(max_examples=60, deadline=None)
def test_any_text_is_a_table_or_one_clear_line(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("tables") / "a.csv"
    path.write_bytes(b"path,label\n" + text.encode("utf-8", "surrogatepass"))
    try:
        found = table.read(path, "all")
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert all(set(row) == {"path", "label"} for row in found.rows)
