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
    assert list(tmp_path.iterdir()) == [path]  # and nothing of the new one is left


def test_sha256(tmp_path):
    """That of the bytes."""
    (tmp_path / "x").write_bytes(b"abc")
    assert files.sha256(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()


def test_a_link_in_the_place_of_a_temporary_file_is_not_followed(tmp_path, monkeypatch):
    """What it points to stays; a link in the place of the file itself is replaced."""
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    (tmp_path / "note.json").symlink_to(mine)
    files.write_json(tmp_path / "note.json", 1)
    assert not (tmp_path / "note.json").is_symlink()
    files.part_of(tmp_path / "other.json").symlink_to(mine)
    with pytest.raises(OSError):
        files.write_json(tmp_path / "other.json", 2)
    assert mine.read_text() == "mine"


def test_only_names_of_ours_are_temporary_files_of_ours(tmp_path):
    """A suffix proves nothing."""
    ours = files.part_of(tmp_path / "shard-1a.safetensors")
    assert files.is_part_of(ours, "run.json", "shard-*.safetensors")
    assert files.is_part_of(tmp_path / "run.json.part", "run.json")
    for name in ("movie.mkv.part", "movie.mkv.123.part", "run.json", "run.json.part.bak", ".part"):
        assert not files.is_part_of(tmp_path / name, "run.json", "shard-*.safetensors"), name
