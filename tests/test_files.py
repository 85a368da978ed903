"""Files are whole or not there."""

import hashlib

import pytest

from distilllens import files


def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch):
    """Whatever happens before the new file has its name, the old one stays as it was."""
    path = tmp_path / "note.json"
    files.write_json(path, {"a": "ä"})
    assert path.read_text(encoding="utf-8") == '{\n "a": "ä"\n}\n'

    def full(path):
        raise OSError("No space left on device")

    monkeypatch.setattr(files, "flush", full)
    with pytest.raises(OSError, match="No space"):
        files.write_json(path, {"a": 2})
    assert "ä" in path.read_text(encoding="utf-8")


def test_sha256(tmp_path):
    """That of the bytes."""
    (tmp_path / "x").write_bytes(b"abc")
    assert files.sha256(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()
