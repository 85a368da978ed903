"""A finished evaluation knows its files."""

import pytest

from distilllens.evaluate.seal import SEAL, is_sealed, seal, unseal
from distilllens.stored import DamagedFile


@pytest.fixture
def sealed(tmp_path):
    """A folder with two files, sealed."""
    (tmp_path / "a").mkdir()
    for name in ("a/one", "two"):
        (tmp_path / name).write_text(name)
    seal(tmp_path, [tmp_path / "two", tmp_path / "a" / "one"])
    return tmp_path


def test_unchanged_files_are_known(sealed):
    """Until the seal is taken off; a folder without one has none."""
    assert is_sealed(sealed)
    unseal(sealed)
    assert not is_sealed(sealed)
    unseal(sealed)


def test_a_change_of_the_same_size_is_named(sealed):
    """The file, and both hashes."""
    (sealed / "a" / "one").write_text("a/onf")
    with pytest.raises(DamagedFile, match=r"one has changed since it was finished \(its SHA-256"):
        is_sealed(sealed)


def test_a_deleted_file_is_to_be_made_again(sealed):
    """It is no damage, and the evaluation is no longer finished."""
    (sealed / "two").unlink()
    assert not is_sealed(sealed)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"files": []}', '{"files": {"two": 1}}'])
def test_a_damaged_seal_is_named(sealed, text):
    """It is not taken for none."""
    (sealed / SEAL).write_text(text)
    with pytest.raises(DamagedFile, match=r"complete\.json"):
        is_sealed(sealed)
