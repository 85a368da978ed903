"""Rows of JSON lines survive a crash at any byte."""

import json

import pytest

from distilllens.jsonl import append_rows, parse_row, read_rows, sort_rows, whole_rows, write_rows

ROWS = [{"n": 0, "text": "é\u2028\n"}, {"n": 1}, {"n": 2, "text": "京"}]


def test_appended_rows_are_read_back(tmp_path):
    """In order, whatever separators their texts hold; a missing file is None."""
    path = tmp_path / "rows.jsonl"
    assert read_rows(path) is None
    append_rows(path, ROWS[:1])
    append_rows(path, ROWS[1:])
    assert read_rows(path) == whole_rows(path) == ROWS
    write_rows(path, ROWS[1:])
    assert read_rows(path) == ROWS[1:]


def test_a_file_cut_at_any_byte_keeps_its_whole_rows(tmp_path):
    """Appending after the cut neither loses a row nor joins two."""
    path = tmp_path / "rows.jsonl"
    append_rows(path, ROWS)
    content = path.read_bytes()
    ends = [at for at, byte in enumerate(content) if byte == ord("\n")]
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        kept = [row for row, end in zip(ROWS, ends, strict=True) if end <= cut]
        assert whole_rows(path) == kept
        append_rows(path, [{"n": 3}])
        assert whole_rows(path) == [*kept, {"n": 3}]


def test_sorting_drops_torn_lines(tmp_path):
    """The order of arrival does not show."""
    path = tmp_path / "rows.jsonl"
    append_rows(path, ROWS[::-1])
    with open(path, "ab") as stream:
        stream.write(b'{"n": 9, "te')
    sort_rows(path)
    lines = path.read_bytes().splitlines()
    assert lines == sorted(lines) and [json.loads(line)["n"] for line in lines] == [0, 1, 2]


@pytest.mark.parametrize("line", [b"", b"7", b"[1]", b'"text"', b'{"a"', b"\xff", b"null"])
def test_a_line_that_is_no_object_is_none(line):
    """Torn, of another type, or not even text."""
    assert parse_row(line) is None
