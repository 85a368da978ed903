"""Files of ours are read back only in the shape in which we write them."""

import json
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import pytest

from distilllens.stored import DamagedFile, check_stored, read_stored, read_stored_rows


class Entry(TypedDict):
    bytes: int
    sha256: NotRequired[str]


class Late(TypedDict):
    """Its annotations are text, as those of a file that imports them from the future."""

    bytes: "int"
    sha256: "NotRequired[str]"


@dataclass(frozen=True)
class Score:
    value: float
    name: str = "kl"


GOOD = [
    (3, int),
    (3, float),
    (0.5, float),
    (True, bool),
    (None, type(None)),
    ("a", str | None),
    (None, str | None),
    ([1, 2], list[int]),
    ({"a": [0.5]}, dict[str, list[float]]),
    ({"bytes": 3}, Entry),
    ({"bytes": 3}, Late),
    ({"bytes": 3, "sha256": "ab", "later": []}, Entry),
    ({"m": {"bytes": 3}, "n": 4}, dict[str, Entry | int]),
    ({"anything": [None]}, Any),
]


@pytest.mark.parametrize(("value", "shape"), GOOD)
def test_what_has_the_shape_comes_back_as_it_is(tmp_path, value, shape):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(value))
    assert read_stored(path, shape) == value


def test_a_dataclass_comes_back_as_an_instance():
    assert check_stored([{"value": 2}], list[Score], "a") == [Score(2, "kl")]


BAD = [
    ("3", int, 'the content is "3"; it must be a whole number'),
    (True, int, "the content is true; it must be a whole number"),
    (1.5, int, "the content is 1.5; it must be a whole number"),
    (True, float, "the content is true; it must be a finite number"),
    (float("inf"), float, "it must be a finite number"),
    (float("nan"), float, "it must be a finite number"),
    (None, str, "the content is null; it must be text"),
    (3, str | None, "the content is 3; it must be text or null"),
    ({}, list[int], "the content is {}; it must be a list"),
    ([], dict[str, int], "the content is []; it must be an object"),
    ([1, "b"], list[int], "the entry '[1]' is \"b\"; it must be a whole number"),
    ({"a": {"b": []}}, dict[str, dict[str, int]], "the entry 'a.b' is []"),
    ([], Entry, "the content is []; it must be an object"),
    ({}, Entry, "the entry 'bytes' is missing"),
    ({"bytes": 1, "sha256": 3}, Entry, "the entry 'sha256' is 3; it must be text"),
    ({"m": {"bytes": []}}, dict[str, Entry | int], "the entry 'm.bytes' is []"),
    ({"m": []}, dict[str, Entry | int], "'m' is []; it must be an object or a whole number"),
    ({}, Score, "the entry 'value' is missing"),
    ({"value": 1, "more": 2}, Score, "unknown entry 'more'"),
    ({"value": "x" * 60}, Score, "..."),
]


@pytest.mark.parametrize(("value", "shape", "message"), BAD)
def test_another_shape_is_named_with_file_and_entry(tmp_path, value, shape, message):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(value))
    with pytest.raises(DamagedFile) as found:
        read_stored(path, shape)
    assert str(found.value).startswith(f"{path}: ")
    assert message in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing"),
        (b"", "broken JSON"),
        (b"{", "broken JSON"),
        (b"\xff", "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b"1" * 5000, "broken JSON"),
    ],
)
def test_what_is_no_json_is_named(tmp_path, content, message):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    for read in (read_stored, read_stored_rows):
        if content != b"" or read is read_stored:  # no line, no row
            with pytest.raises(DamagedFile, match=message):
                read(path, int)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(DamagedFile, match="cannot be read"):
        read_stored(tmp_path, int)


def test_rows_are_named_by_their_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"bytes": 1}\n{"bytes": 2}\n')
    assert read_stored_rows(path, Entry) == [{"bytes": 1}, {"bytes": 2}]
    path.write_text('{"bytes": 1}\n{"bytes": null}\n')
    with pytest.raises(DamagedFile, match=r"a\.jsonl:2: the entry 'bytes' is null"):
        read_stored_rows(path, Entry)
