"""A finished evaluation knows its settings and its files."""

import json

import pytest

from distilllens.evaluate.seal import (
    SEAL,
    check_settings,
    has_all,
    read_seal,
    unseal,
    write_seal,
)
from distilllens.stored import DamagedFile

SETTINGS, FILES = {"seeds": [0, 1], "limit": None}, ["two", "a/one"]


@pytest.fixture
def sealed(tmp_path):
    """A folder with two files, sealed."""
    (tmp_path / "a").mkdir()
    for name in FILES:
        (tmp_path / name).write_text(name)
    write_seal(tmp_path, SETTINGS, FILES)
    return tmp_path


def test_unchanged_files_are_known(sealed):
    """Until the seal is taken off; a folder without one has none."""
    assert has_all(sealed, read_seal(sealed), FILES)
    unseal(sealed)
    assert read_seal(sealed) is None
    unseal(sealed)


def test_a_change_of_the_same_size_is_named(sealed):
    """The file, and both hashes."""
    (sealed / "a" / "one").write_text("a/onf")
    with pytest.raises(DamagedFile, match=r"one has changed since it was finished \(its SHA-256"):
        has_all(sealed, read_seal(sealed), FILES)


def test_a_deleted_file_is_to_be_made_again(sealed):
    """It is no damage, and the evaluation is no longer finished."""
    (sealed / "two").unlink()
    assert not has_all(sealed, read_seal(sealed), FILES)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["two"], "names a/one, which is no file of the settings"),
        (["two", "a/one", "b"], "does not name b, which is a file of the settings"),
        (["two", "a/other"], "names a/one, which is no file of the settings"),
    ],
)
def test_other_files_than_those_of_the_settings_are_named(sealed, files, message):
    """A name that was changed in the seal is not taken for a file that was deleted."""
    with pytest.raises(DamagedFile, match=message) as refused:
        has_all(sealed, read_seal(sealed), files)
    assert str(refused.value).startswith(str(sealed / SEAL))


@pytest.mark.parametrize("changed", [{"seeds": [0, 0]}, {"seeds": [1, 0]}, {"limit": 1}, {"a": 0}])
def test_changed_settings_are_named(sealed, changed):
    """Any entry; in another order they are the same, and the first versions did not note them."""
    seal, file = read_seal(sealed), sealed / "evaluation.json"
    check_settings(seal, dict(reversed(SETTINGS.items())), file)
    with pytest.raises(DamagedFile, match=r"the settings have changed since the eval.*\(its SHA"):
        check_settings(seal, SETTINGS | changed, file)
    del seal["settings"]
    check_settings(seal, SETTINGS | changed, file)


@pytest.mark.parametrize(
    "value", ["", "{", [], {}, {"files": []}, {"files": {"two": 1}}, {"files": {}, "settings": 1}]
)
def test_a_damaged_seal_is_named(sealed, value):
    """It is not taken for none."""
    text = value if isinstance(value, str) else json.dumps(value)
    (sealed / SEAL).write_text(text)
    with pytest.raises(DamagedFile, match=r"complete\.json"):
        read_seal(sealed)
