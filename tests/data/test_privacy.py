"""The key of the names of DICOM images."""

import os

import pytest

from deblur_mae_jax.data import privacy
from deblur_mae_jax.errors import UserError


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    monkeypatch.setattr(privacy, "_keys", {})
    yield
    privacy.use(None)


def made_in(folder):
    privacy.use(folder)
    return privacy.key()


def test_a_drive_without_links_can_hold_a_key(tmp_path, monkeypatch):
    def link(*paths):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", link)
    key = made_in(tmp_path)
    privacy._keys.clear()
    assert made_in(tmp_path) == key and os.listdir(tmp_path) == [privacy.KEY_FILE]


def test_what_a_killed_process_left_is_in_nobodys_way(tmp_path):
    (tmp_path / f"{privacy.KEY_FILE}.{os.getpid()}.tmp").write_text("")
    assert len(made_in(tmp_path)) == 32


def test_a_damaged_key_is_one_clear_line(tmp_path, monkeypatch):
    (tmp_path / privacy.KEY_FILE).write_text("not a key")
    monkeypatch.setattr(privacy.time, "sleep", lambda seconds: None)
    with pytest.raises(UserError, match="does not hold 64 hexadecimal digits"):
        made_in(tmp_path)
