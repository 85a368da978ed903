"""The files of a teacher cache."""

import json
from hashlib import blake2b

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distilllens import Head
from distilllens.teacher import cache, store

MANIFEST = store.Manifest(
    teacher="t",
    tokenizer="k",
    num_layers=4,
    depths=[1, 3],
    normed=True,
    dtype="float32",
    stored="auto",
    width=5,
    precision="no",
    head={"scale": 2.0, "softcap": 30.0},
    teacher_name="somebody",
    teacher_files=None,
    data={"max_length": 64},
    library="0.1.0",
)


def key(number):
    return blake2b(str(number).encode(), digest_size=16).digest()


def written(folder, documents, manifest=MANIFEST, shard_bytes=200):
    store.write_manifest(folder, manifest)
    store.write_head(folder, Head(torch.ones(7, 5), torch.ones(7)))
    writer = store.ShardWriter(folder, manifest, shard_bytes)
    for name, rows in documents.items():
        writer.add(name, rows)
    writer.flush()
    store.write_mark(folder)
    return store.Shards(folder, manifest, list(store.read_mark(folder)["shards"]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rows_come_back_bit_for_bit(tmp_path, dtype):
    """Over several shards, in any order, in the teacher's own dtype."""
    torch.manual_seed(0)
    documents = {
        key(n): torch.randn(n % 4, 3, 5, dtype=getattr(torch, dtype)) for n in range(1, 40)
    }
    manifest = store.Manifest(**{**vars(MANIFEST), "dtype": dtype})
    shards = written(tmp_path, documents, manifest)
    assert len(list(tmp_path.glob("shard-*"))) > 5
    assert len(shards) == len(documents)
    assert shards.num_rows == sum(map(len, documents.values()))
    for name in reversed(documents):
        rows = shards.rows(shards.find(name))
        assert rows.dtype == getattr(torch, dtype)
        assert torch.equal(rows, documents[name])
    assert shards.find(key("elsewhere")) is None


def test_keys_that_begin_alike_are_told_apart(tmp_path):
    """The index sorts by eight bytes and compares all sixteen."""
    documents = {b"x" * 8 + bytes([n] * 8): torch.full((1, 3, 5), float(n)) for n in range(5)}
    shards = written(tmp_path, documents)
    for name, rows in documents.items():
        assert torch.equal(shards.rows(shards.find(name)), rows)
    assert shards.find(b"x" * 16) is None


def test_shards_that_begin_alike_do_not_meet(tmp_path):
    """Two processes whose first document is the same one each keep what follows."""
    rows = torch.randn(2, 3, 5)
    for other in (1, 2):
        written(tmp_path, {key(0): rows, key(other): rows})
    names = list(store.read_mark(tmp_path)["shards"])
    shards = store.Shards(tmp_path, MANIFEST, names)
    assert all(shards.find(key(n)) is not None for n in range(3))


def test_an_empty_cache_finds_nothing(tmp_path):
    """A run without a document is no crash."""
    shards = written(tmp_path, {})
    assert (len(shards), shards.num_rows, shards.find(key(1))) == (0, 0, None)


def test_the_head_comes_back(tmp_path):
    """Weight, bias, scale and cap."""
    written(tmp_path, {})
    head = store.read_head(tmp_path, MANIFEST, "cpu")
    assert torch.equal(head.weight, torch.ones(7, 5))
    assert torch.equal(head.bias, torch.ones(7))
    assert (head.scale, head.softcap) == (2.0, 30.0)


@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=5, max_size=5),
    st.floats(2**-10, 2**10, width=32),
)
def test_int8_is_within_half_a_step(row, stretch):
    """Every number is off by at most half of the row's largest over 127; a row of 0 stays 0."""
    rows = torch.tensor([row, [0.0] * 5]) * stretch
    states, scales = store.quantize(rows)
    assert states.dtype == torch.int8
    back = store.dequantize(states, scales, torch.float32)
    bound = rows.abs().amax(-1, keepdim=True) / 254
    assert ((back - rows).abs() <= bound * (1 + 1e-4) + 1e-30).all()


def test_int8_takes_a_quarter(tmp_path):
    """Stored as bytes with one scale a state; read in the teacher's dtype."""
    manifest = store.Manifest(**{**vars(MANIFEST), "stored": "int8"})
    rows = torch.randn(6, 3, 5)
    shards = written(tmp_path, {key(1): rows}, manifest)
    back = shards.rows(shards.find(key(1)))
    assert back.dtype == torch.float32
    assert 0 < (back - rows).abs().max() < rows.abs().max() / 250
    assert (manifest.row_bytes, MANIFEST.row_bytes) == (3 * (5 + 4), 3 * 5 * 4)


def test_the_first_difference_is_named():
    """Names, data settings and the library's version are no difference."""
    other = {**vars(MANIFEST), "teacher_name": "x", "data": {}, "library": "9"}
    assert MANIFEST.difference(store.Manifest(**other)) is None
    other["depths"] = [1, 2]
    assert MANIFEST.difference(store.Manifest(**other)) == "depths was [1, 3] and is now [1, 2]"


def test_a_manifest_of_another_format_or_broken_is_refused(tmp_path):
    """One line that says what to do."""
    assert store.read_manifest(tmp_path) is None
    store.write_manifest(tmp_path, MANIFEST)
    assert store.read_manifest(tmp_path) == MANIFEST
    file = tmp_path / store.MANIFEST
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 2}))
    with pytest.raises(ValueError, match="format 2, this version reads 1"):
        store.read_manifest(tmp_path)
    for text in ("{", "[]", "{}", '{"format": 1}', '{"format": 1, "colour": 2}'):
        file.write_text(text)
        with pytest.raises(ValueError, match="not readable"):
            store.read_manifest(tmp_path)


def test_a_mark_counts_only_while_its_files_are_there(tmp_path):
    """A shard or head that is gone, short or long makes the cache incomplete."""
    written(tmp_path, {key(n): torch.randn(2, 3, 5) for n in range(9)})
    assert store.read_mark(tmp_path) is not None
    shard = next(tmp_path.glob("shard-*"))
    whole = shard.read_bytes()
    for damaged in (whole[:-1], whole + b"x"):
        shard.write_bytes(damaged)
        assert store.read_mark(tmp_path) is None
    shard.write_bytes(whole)
    assert store.read_mark(tmp_path) is not None
    (tmp_path / store.HEAD).unlink()
    assert store.read_mark(tmp_path) is None


def test_a_damaged_shard_is_named(tmp_path):
    """Of the right size and unreadable: the file is in the message."""
    written(tmp_path, {key(1): torch.randn(2, 3, 5)})
    shard = next(tmp_path.glob("shard-*"))
    shard.write_bytes(b"\xff" * shard.stat().st_size)
    with pytest.raises(ValueError, match=f"{shard.name} is not readable"):
        store.Shards(tmp_path, MANIFEST, [shard.name])


@pytest.mark.parametrize("name", ["movie.mkv.part", "notes.part"])
def test_files_of_others_are_neither_taken_nor_deleted(tmp_path, name):
    """A folder with somebody's download is no empty cache."""
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=f"{name} is there"):
        cache.check_writable(tmp_path)
    store.drop_remains(tmp_path)
    assert (tmp_path / name).read_text() == "mine"


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
