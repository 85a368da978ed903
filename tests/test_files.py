"""Files are whole or not there."""

import errno
import hashlib
import io
import os
from pathlib import Path

import pytest

from distilllens import files, jsonl
from distilllens.evaluate.judge.replies import Reply, ReplyCache


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


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
WRITERS = {
    "text": lambda path: files.write_atomically(path, "a"),
    "bytes": lambda path: files.write_atomically(path, b"a"),
    "json": lambda path: files.write_json(path, 1),
    "rows": lambda path: jsonl.write_rows(path, [{}]),
    "appended": lambda path: jsonl.append_rows(path, [{}]),
    "a reply": lambda path: ReplyCache(path).add("a", Reply("b", False, 1, 1)),
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("step", ["open", "write", "sync"])
def test_a_full_disk_names_the_file(tmp_path, monkeypatch, kind, step):
    """The system names it only where it cannot be opened; nothing temporary is left."""
    path = tmp_path / "file"

    def full(*args):
        raise FULL

    class Full(io.FileIO):
        write = full

    def opened(file, mode):
        return open(file, mode) if mode == "rb" else Full(file, mode)

    if step == "open":
        monkeypatch.setattr(os, "open", full)
    elif step == "write":
        for module in (files, jsonl):
            monkeypatch.setattr(module, "open", opened, raising=False)
    elif kind == "a reply":
        pytest.skip("a reply is flushed, not synchronized")
    else:
        monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as refused:
        WRITERS[kind](path)
    assert (refused.value.errno, refused.value.filename) == (errno.ENOSPC, str(path))
    assert not list(tmp_path.glob("*.part"))


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
    with pytest.raises(ValueError, match="is a symbolic link, through which nothing is written"):
        files.write_json(tmp_path / "other.json", 2)
    assert mine.read_text() == "mine"


def test_rows_are_not_appended_through_a_link(tmp_path):
    """Nor through one to nothing, which would make a file elsewhere."""
    (tmp_path / "rows.jsonl").symlink_to(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"rows\.jsonl is a symbolic link, through which nothing"):
        jsonl.append_rows(tmp_path / "rows.jsonl", [{}])
    assert not (tmp_path / "nothing").exists()


def test_only_names_of_ours_are_temporary_files_of_ours(tmp_path):
    """A suffix proves nothing."""
    ours = files.part_of(tmp_path / "shard-1a.safetensors")
    assert files.is_part_of(ours, "run.json", "shard-*.safetensors")
    for name in (
        "run.json.part",
        "run.json.1a.part",
        "movie.mkv.part",
        "movie.mkv.123.part",
        "run.json",
        "run.json.part.bak",
        ".part",
    ):
        assert not files.is_part_of(tmp_path / name, "run.json", "shard-*.safetensors"), name


def test_folders_that_two_processes_made_are_removed_once(tmp_path, monkeypatch):
    """The reason of the failure is kept, whoever removes the folders first; full ones stay."""
    folder, rmdir = tmp_path / "a" / "b", Path.rmdir

    def after_another(path):
        rmdir(path)
        rmdir(path)

    monkeypatch.setattr(Path, "rmdir", after_another)
    with pytest.raises(ValueError, match="the reason"), files.unmade_on_failure(folder):
        folder.mkdir(parents=True)
        raise ValueError("the reason")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="the reason"), files.unmade_on_failure(folder):
        folder.mkdir(parents=True)
        (tmp_path / "a" / "kept").write_text("")
        raise ValueError("the reason")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["kept"]


def test_sizes_in_words():
    """Three digits, in powers of a thousand."""
    found = [files.in_bytes(size) for size in (1250, 3.4e6, 21.3e9, 4e12)]
    assert found == ["1.25 kB", "3.4 MB", "21.3 GB", "4 TB"]
