"""Files are written whole or not at all."""

import os

import pytest

from jaxbig import atomic
from jaxbig.errors import UserError


def test_text_and_bytes_and_missing_folders(tmp_path):
    assert atomic.write(tmp_path / "a" / "b" / "text", "é\n").read_bytes() == "é\n".encode()
    assert atomic.write(tmp_path / "bytes", b"\x00\xff").read_bytes() == b"\x00\xff"
    assert os.stat(tmp_path / "bytes").st_mode & 0o777 == 0o666 & ~atomic._umask()


def test_a_failure_keeps_what_was_there_and_leaves_nothing_behind(tmp_path, monkeypatch):
    path = atomic.write(tmp_path / "file", "old")

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UserError, match=r"file: cannot be written .No space left on device."):
        atomic.write(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]
