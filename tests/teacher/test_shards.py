"""Shards of a teacher cache: rows come back bit for bit, or their damage is named."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from teacher.small_caches import MANIFEST, documents, key, opened, small, written

from distilllens.stored import DamagedFile
from distilllens.teacher import shards

INT8 = small(stored="int8")


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_rows_come_back_bit_for_bit(tmp_path, dtype):
    """Over several shards, in any order, in the teacher's own dtype."""
    torch.manual_seed(0)
    rows = {key(n): torch.randn(n % 4, 3, 5, dtype=getattr(torch, dtype)) for n in range(1, 40)}
    found = written(tmp_path, rows, small(dtype=dtype))
    assert len(list(tmp_path.glob("shard-*"))) > 5
    assert len(found) == len(rows)
    assert found.num_rows == sum(map(len, rows.values()))
    for name in reversed(rows):
        states = found.rows(found.find(name))
        assert states.dtype == getattr(torch, dtype)
        assert torch.equal(states, rows[name])
    assert found.find(key("elsewhere")) is None


def test_keys_that_begin_alike_are_told_apart(tmp_path):
    """The index sorts by eight bytes and compares all sixteen."""
    rows = {b"x" * 8 + bytes([n] * 8): torch.full((1, 3, 5), float(n)) for n in range(5)}
    found = written(tmp_path, rows)
    for name, states in rows.items():
        assert torch.equal(found.rows(found.find(name)), states)
    assert found.find(b"x" * 16) is None


def test_shards_that_begin_alike_do_not_meet(tmp_path):
    """Two processes whose first document is the same one each keep what follows."""
    rows = torch.randn(2, 3, 5)
    for other in (1, 2):
        written(tmp_path, {key(0): rows, key(other): rows})
    found = opened(tmp_path)
    assert all(found.find(key(n)) is not None for n in range(3))


def test_no_shard_holds_nothing(tmp_path):
    """No document is found, and nothing fails."""
    found = shards.Shards(tmp_path, MANIFEST, {})
    assert (len(found), found.num_rows, found.find(key(1))) == (0, 0, None)


@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=5, max_size=5),
    st.floats(2**-10, 2**10, width=32),
)
def test_int8_is_within_half_a_step(row, stretch):
    """Every number is off by at most half of the row's largest over 127; a row of 0 stays 0."""
    rows = torch.tensor([row, [0.0] * 5]) * stretch
    states, scales = shards.quantize(rows)
    assert states.dtype == torch.int8
    back = shards.dequantize(states, scales, torch.float32)
    bound = rows.abs().amax(-1, keepdim=True) / 254
    assert ((back - rows).abs() <= bound * (1 + 1e-4) + 1e-30).all()


def test_int8_takes_a_quarter(tmp_path):
    """Stored as bytes with one scale a state; read in the teacher's dtype."""
    rows = torch.randn(6, 3, 5)
    found = written(tmp_path, {key(1): rows}, INT8)
    back = found.rows(found.find(key(1)))
    assert back.dtype == torch.float32
    assert 0 < (back - rows).abs().max() < rows.abs().max() / 250
    assert (INT8.row_bytes, MANIFEST.row_bytes) == (3 * (5 + 4), 3 * 5 * 4)


@pytest.mark.parametrize("manifest", [MANIFEST, INT8], ids=["auto", "int8"])
def test_no_changed_bit_is_read(tmp_path, manifest):
    """One bit of each byte of a shard in turn: refused at opening, or when its rows are read.

    So wherever damage is, in the names of tensors, in keys, bounds, checksums, states or scales.
    """
    written(tmp_path, documents(3), manifest, shard_bytes=10**6)
    (path,) = shards.shard_files(tmp_path)
    assert shards.damage_of(path, manifest) is None
    whole = path.read_bytes()
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1 << at % 8
        path.write_bytes(changed)
        damage = shards.damage_of(path, manifest)
        if damage is None:  # blanks after the header mean nothing
            assert whole[at : at + 1] == b" ", at
        else:
            assert str(path) in damage
    path.write_bytes(whole)
    assert shards.damage_of(path, manifest) is None


def test_only_the_damaged_document_is_refused(tmp_path):
    """The others of its shard are still read, and the message has file and number."""
    rows = documents(3)
    found = written(tmp_path, rows, shard_bytes=10**6)
    (path,) = shards.shard_files(tmp_path)
    whole = path.read_bytes()
    at = whole.index(rows[key(1)].numpy().tobytes())
    path.write_bytes(whole[: at + 3] + bytes([whole[at + 3] ^ 0x40]) + whole[at + 4 :])
    found = opened(tmp_path)
    for number, (name, states) in enumerate(rows.items()):
        if number == 1:
            with pytest.raises(DamagedFile, match=f"{path.name}: the states of document 1 have"):
                found.rows(found.find(name))
        else:
            assert torch.equal(found.rows(found.find(name)), states)


def test_a_shard_of_another_cache_is_not_taken(tmp_path):
    """Of the same documents, so of the same name and size: the mark has another hash."""
    names = {}
    for folder, scale in (("a", 1.0), ("b", 2.0)):
        (tmp_path / folder).mkdir()
        written(tmp_path / folder, {k: scale * v for k, v in documents().items()})
        files = shards.shard_files(tmp_path / folder)
        names[folder] = {p.name: shards.Shard(p, MANIFEST).index_digest for p in files}
    assert names["a"].keys() == names["b"].keys()
    shards.Shards(tmp_path / "a", MANIFEST, names["a"])
    with pytest.raises(DamagedFile, match="its index is not the one that was written"):
        shards.Shards(tmp_path / "a", MANIFEST, names["b"])


def change(tensors, **changes):
    """Tensors with others in their place; None takes one away."""
    return {name: t for name, t in (tensors | changes).items() if t is not None}


# What no writer leaves: tensors of a shard with two documents of two rows.
FORMS = {
    "no states": lambda t: change(t, states=None),
    "a number for keys": lambda t: change(t, keys=torch.tensor(3, dtype=torch.uint8)),
    "no document": lambda t: change(t, keys=t["keys"][:0], starts=t["starts"][:0]),
    "no keys": lambda t: change(t, keys=None),
    "another dtype": lambda t: change(t, states=t["states"].half()),
    "another width": lambda t: change(t, states=t["states"][..., :4].contiguous()),
    "another depth": lambda t: change(t, states=t["states"][:, :2].contiguous()),
    "a row less": lambda t: change(t, states=t["states"][:3].contiguous()),
    "a foreign tensor": lambda t: change(t, lm_head=torch.ones(2, 2)),
    "falling bounds": lambda t: change(t, starts=torch.tensor([0, 9, 4])),
    "negative bounds": lambda t: change(t, starts=torch.tensor([-2, 2, 4])),
    "fewer bounds": lambda t: change(t, starts=torch.tensor([0, 4])),
    "other keys": lambda t: change(t, keys=t["keys"].flip(0)),
    "fewer checksums": lambda t: change(t, checksums=t["checksums"][:1].contiguous()),
    "scales": lambda t: change(t, scales=torch.ones(4, 3)),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_file_of_another_form_is_refused_at_opening(tmp_path, name):
    """The file is in the message."""
    written(tmp_path, documents(2), shard_bytes=10**6)
    (path,) = shards.shard_files(tmp_path)
    save_file(FORMS[name](load_file(path)), path)
    with pytest.raises(DamagedFile, match=path.name):
        shards.Shard(path, MANIFEST)


@pytest.mark.parametrize("manifest", [MANIFEST, INT8], ids=["auto", "int8"])
@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_old_rows_that_are_not_finite_are_named(tmp_path, manifest, number):
    """Shards of format 1 have no checksums; a number that is not finite is no state."""
    written(tmp_path, documents(3), manifest, shard_bytes=10**6)
    (path,) = shards.shard_files(tmp_path)
    tensors = load_file(path)
    del tensors["checksums"]
    save_file(tensors, path)
    assert shards.damage_of(path, manifest) is None
    tensors["scales" if manifest is INT8 else "states"][3].view(-1)[1] = float(number)
    save_file(tensors, path)
    damage = shards.damage_of(path, manifest)
    assert damage == f"{path}: document 1 holds the number {number}"


@pytest.mark.parametrize("content", [b"", b"\xff" * 999, b"text"])
def test_an_unreadable_shard_is_named(tmp_path, content):
    """Whatever fills its place."""
    written(tmp_path, documents(2), shard_bytes=10**6)
    (path,) = shards.shard_files(tmp_path)
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match=f"{path.name} is not readable"):
        shards.Shard(path, MANIFEST)


def test_a_link_in_the_place_of_a_temporary_file_is_not_followed(tmp_path):
    """What it points to stays, and the shard is a file."""
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    path = tmp_path / "head.safetensors"
    shards.part_of(path).symlink_to(mine)
    shards.write_tensors(path, {"weight": torch.ones(2)})
    assert mine.read_text() == "mine"
    assert path.is_file() and not path.is_symlink()
