"""The manifest of a teacher cache."""

import json
from dataclasses import asdict

import pytest
from teacher.small_caches import MANIFEST, small

from distilllens.teacher import manifest


def test_the_first_difference_is_named():
    """Names, data settings, the library's version and the format are no difference."""
    other = small(teacher_name="x", data={}, library="9", format=1)
    assert MANIFEST.difference(other) is None
    assert MANIFEST.digest == other.digest
    other = small(depths=[1, 2])
    assert MANIFEST.difference(other) == "depths was [1, 3] and is now [1, 2]"
    assert MANIFEST.digest != other.digest


def test_it_comes_back(tmp_path):
    """Every entry; a folder without one has none."""
    assert manifest.read_manifest(tmp_path) is None
    manifest.write_manifest(tmp_path, MANIFEST)
    assert manifest.read_manifest(tmp_path) == MANIFEST


def test_another_format_is_refused(tmp_path):
    """One line that says what to do."""
    manifest.write_manifest(tmp_path, small(format=3))
    with pytest.raises(ValueError, match=r"format 3, this version reads 1 and 2; write it anew"):
        manifest.read_manifest(tmp_path)


# An entry and a value that no cache has there -> what the message says it must be.
WRONG = [
    ("format", "1", "a whole number"),
    ("format", True, "a whole number"),
    ("num_layers", 4.5, "a whole number"),
    ("num_layers", 0, "at least 1"),
    ("width", -5, "at least 1"),
    ("width", None, "a whole number"),
    ("depths", {}, "a list"),
    ("depths", [1, 9], "different depths from 0 to 4"),
    ("depths", [1, 1], "different depths from 0 to 4"),
    ("depths", [-1], "different depths from 0 to 4"),
    ("normed", 1, "true or false"),
    ("dtype", "int7", "one of float64, float32, bfloat16, float16"),
    ("stored", "int4", "one of auto, int8"),
    ("head", [], "an object"),
    ("head", {"scale": 1.0}, None),
    ("head", {"scale": float("nan"), "softcap": None}, "a finite number"),
    ("head", {"scale": 1.0, "softcap": "30"}, "a finite number or null"),
    (
        "head",
        {"scale": 0.0, "softcap": None},
        "a scale that is not 0 and a softcap above 0 or null",
    ),
    ("head", {"scale": 1.0, "softcap": -3}, "a scale that is not 0 and a softcap above 0 or null"),
    ("data", 3, "an object"),
    ("teacher", None, "text"),
    ("colour", 2, None),
]


@pytest.mark.parametrize(("entry", "value", "right"), WRONG)
def test_an_entry_that_no_cache_has_is_named(tmp_path, entry, value, right):
    """File, entry, what it must be, and what to do."""
    manifest.write_manifest(tmp_path, MANIFEST)
    file = tmp_path / manifest.MANIFEST
    file.write_text(json.dumps({**json.loads(file.read_text()), entry: value}))
    with pytest.raises(ValueError, match="restore the file, or name another folder") as caught:
        manifest.read_manifest(tmp_path)
    message = str(caught.value)
    assert str(file) in message and f"'{entry}" in message and "\n" not in message
    assert right is None or f"must be {right};" in message


@pytest.mark.parametrize("entry", sorted(asdict(MANIFEST)))
def test_a_changed_entry_is_refused_whichever_it_is(tmp_path, entry):
    """Also those that are only told: a wrong one would be wrong advice. 0.1.0 wrote no hash."""
    manifest.write_manifest(tmp_path, MANIFEST)
    file = tmp_path / manifest.MANIFEST
    found = json.loads(file.read_text())
    other = {
        "data": {"max_length": 7},
        "depths": [1, 2],
        "dtype": "float64",
        "format": 1,
        "head": {"scale": 1.5, "softcap": None},
        "normed": not found["normed"],
        "num_layers": 9,
        "stored": "int8",
        "teacher_files": {"config": "other"},
        "width": 7,
    }
    changed = {**found, entry: other.get(entry, "other")}
    file.write_text(json.dumps(changed))
    with pytest.raises(
        ValueError, match=r"manifest\.json was changed: .*; no teacher cache can be"
    ):
        manifest.read_manifest(tmp_path)
    del changed["sha256"]
    file.write_text(json.dumps(changed))
    assert getattr(manifest.read_manifest(tmp_path), entry) == changed[entry] != found[entry]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"null", b'{"format": 1}', b"\xff"])
def test_a_file_that_is_no_manifest_is_refused(tmp_path, content):
    """Torn, of another program, or no text at all."""
    file = tmp_path / manifest.MANIFEST
    file.write_bytes(content)
    with pytest.raises(ValueError, match="no teacher cache can be read or written there") as caught:
        manifest.read_manifest(tmp_path)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)
