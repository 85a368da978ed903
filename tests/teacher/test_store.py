"""The folder of a teacher cache: it is complete and as it was written, or it is not read."""

import json

import pytest
import torch
from safetensors.torch import save_file
from teacher.small_caches import MANIFEST, documents, small, written

from distilllens.stored import DamagedFile
from distilllens.teacher import CachedTeacher, cache, manifest, store


def test_the_head_comes_back(tmp_path):
    """Weight, bias, scale and cap."""
    written(tmp_path, {})
    head = store.read_head(tmp_path, MANIFEST, "cpu")
    assert torch.equal(head.weight, torch.ones(7, 5))
    assert torch.equal(head.bias, torch.ones(7))
    assert (head.scale, head.softcap) == (2.0, 30.0)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": torch.ones(7, 4)}, r"no head for states of 5 numbers: {'weight': \[7, 4\]}"),
        ({"wte": torch.ones(7, 5)}, r"no head for states of 5 numbers: {'wte': \[7, 5\]}"),
        ({"weight": torch.ones(5)}, r"no head for states of 5 numbers: {'weight': \[5\]}"),
        ({"weight": torch.ones(7, 5), "bias": torch.ones(5)}, r"'bias': \[5\]"),
        ({"weight": torch.full((7, 5), float("nan"))}, "weight holds the number nan"),
        ({"weight": torch.ones(7, 5), "bias": torch.full((7,), -float("inf"))}, "bias holds"),
    ],
)
def test_a_head_that_is_none_is_named(tmp_path, tensors, message):
    """Of another model, or not finite; in a cache of version 0.1.0 no hash would tell."""
    save_file(tensors, tmp_path / store.HEAD)
    with pytest.raises(DamagedFile, match=message):
        store.read_head(tmp_path, MANIFEST, "cpu")


def test_a_mark_counts_only_while_its_files_are_there(tmp_path):
    """A shard or head that is gone, short or long makes the cache incomplete, and is named."""
    written(tmp_path, documents())
    store.read_mark(tmp_path, MANIFEST)
    for path in (next(tmp_path.glob("shard-*")), tmp_path / store.HEAD):
        whole = path.read_bytes()
        for damaged in (whole[:-1], whole + b"x"):
            path.write_bytes(damaged)
            with pytest.raises(DamagedFile, match=rf"{path.name} has {len(damaged)} bytes instead"):
                store.read_mark(tmp_path, MANIFEST)
        path.unlink()
        with pytest.raises(DamagedFile, match=path.name):
            store.read_mark(tmp_path, MANIFEST)
        path.write_bytes(whole)
    store.read_mark(tmp_path, MANIFEST)


def test_a_changed_head_is_named(tmp_path):
    """One bit."""
    written(tmp_path, documents())
    path = tmp_path / store.HEAD
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DamagedFile, match=f"the contents of .*{store.HEAD} have changed"):
        store.read_mark(tmp_path, MANIFEST)


SHARD = f"shard-{'0' * 32}.safetensors"
SHA = "0" * 64
HEAD = {"bytes": 1, "sha256": SHA}
# A mark that no writer leaves -> what the message says.
MARKS = {
    "empty": ({}, "the entry 'shards' is missing"),
    "a list": ([], "the content is"),
    "no shard": ({"shards": {}, "head": HEAD, "manifest": SHA}, "names no shard"),
    "a list of shards": ({"shards": [SHARD]}, "'shards' is .*must be an object"),
    "a size of text": ({"shards": {SHARD: "9"}}, f"shards.{SHARD}"),
    "no hash": ({"shards": {SHARD: {"bytes": 9}}}, "index_sha256"),
    "sizes alone": ({"shards": {SHARD: 9}}, "the entry 'head' is missing"),
    "a number for a hash": (
        {"shards": {SHARD: {"bytes": 9, "index_sha256": 3}}},
        "index_sha256.*must be text",
    ),
    "a missing shard": (
        {"shards": {SHARD: 9}, "head": None, "manifest": SHA},
        "'head' is null",
    ),
    "a path": (
        {"shards": {"../shard": 9}, "head": "real", "manifest": SHA},
        r"has no shard '\.\./shard'",
    ),
    "negative": (
        {"shards": {"real": -9}, "head": "real", "manifest": SHA},
        r"bytes instead of -9",
    ),
}


@pytest.mark.parametrize("name", MARKS)
def test_a_mark_that_no_writer_leaves_is_no_mark(tmp_path, name):
    """The cache counts as incomplete; the entry is named."""
    mark, message = MARKS[name]
    written(tmp_path, documents())
    file = tmp_path / store.MARK
    real = json.loads(file.read_text())
    if isinstance(mark, dict) and mark.get("head") == "real":
        mark = mark | {"head": real["head"], "manifest": real["manifest"]}
        mark["shards"] = {
            next(iter(real["shards"])) if n == "real" else n: s for n, s in mark["shards"].items()
        }
    file.write_text(json.dumps(mark))
    with pytest.raises(DamagedFile, match=message) as caught:
        store.read_mark(tmp_path, MANIFEST)
    assert store.MARK in str(caught.value) or "negative" in name


def test_a_manifest_that_is_not_the_marked_one_is_refused(tmp_path):
    """The scale of the head is a number like any other; notes may differ."""
    written(tmp_path, documents())
    manifest.write_manifest(tmp_path, small(library="9", data={}))
    assert cache.manifest_of(tmp_path).library == "9"
    manifest.write_manifest(tmp_path, small(head={"scale": 2.5, "softcap": 30.0}))
    for read in (cache.manifest_of, cache.depths_of, CachedTeacher):
        with pytest.raises(DamagedFile, match=r"manifest.json does not have the hash in complete"):
            read(tmp_path)


@pytest.mark.parametrize("name", ["movie.mkv.part", "notes.part", "shard-1.safetensors.txt"])
def test_files_of_others_are_neither_taken_nor_deleted(tmp_path, name):
    """A folder with somebody's download is no empty cache."""
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=f"{name} is there"):
        cache.check_writable(tmp_path)
    store.drop_remains(tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_shards_of_others_are_left_alone(tmp_path):
    """A cache beside which somebody keeps tensors: they are no shards of ours."""
    written(tmp_path, documents())
    others = [tmp_path / name for name in ("shard-00001.safetensors", "model.safetensors")]
    for other in others:
        save_file({"weight": torch.ones(3)}, other)
    before = len(CachedTeacher(tmp_path)._shards)
    store.drop_remains(tmp_path)
    store.write_mark(tmp_path, MANIFEST)
    assert len(CachedTeacher(tmp_path)._shards) == before
    assert all(other.exists() for other in others)
    assert not any("00001" in name for name in cache.shard_names(tmp_path))


@pytest.mark.parametrize("name", [manifest.MANIFEST, store.MARK, store.HEAD, "shard"])
def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path, name):
    """Before anything is written; what is in it stays."""
    written(tmp_path, documents())
    path = next(tmp_path.glob("shard-*")) if name == "shard" else tmp_path / name
    path.unlink()
    path.mkdir()
    (path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=rf"{path.name} is a folder and must be a file; remove it"):
        cache.check_writable(tmp_path)
    with pytest.raises(ValueError, match=path.name):
        CachedTeacher(tmp_path)
    assert (path / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("name", [manifest.MANIFEST, store.MARK, store.HEAD, "shard"])
def test_a_link_is_read_and_replaced_but_never_written_through(tmp_path, name):
    """A cache whose files lie elsewhere is read; a writer replaces the link, not its target."""
    folder = tmp_path / "cache"
    written(folder, documents())
    path = next(folder.glob("shard-*")) if name == "shard" else folder / name
    there = tmp_path / "elsewhere"
    path.rename(there)
    path.symlink_to(there)
    before = there.read_bytes()
    assert CachedTeacher(folder).num_documents == 9
    written(folder, documents())
    assert not path.is_symlink() and path.is_file()
    assert there.read_bytes() == before


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    """What it points to is not truncated."""
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / store.LOCK).symlink_to(mine)
    with (
        pytest.raises(ValueError, match="cannot open its file 'lock'"),
        store.locked(tmp_path / "cache"),
    ):
        pass
    assert mine.read_text() == "mine"
