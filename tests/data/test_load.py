"""Files become records, or an error that names the line."""

import gzip
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilllens.data import load_hub, load_records

GOOD = {"instruction": "Say hi.", "input": "", "output": "hi"}
TALK = b'{"messages": [{"role": "user", "content": "a"}]%s}'
SHARED = os.environ.get("DISTILLLENS_SHARED")
# Rows as the README beside the files states them.
ROWS = {
    "dolly_train.jsonl": 11370,
    "dolly_dev.jsonl": 999,
    "dolly_rest.jsonl": 2076,
    "alpaca_train.jsonl": 51973,
    "eval_dolly.jsonl": 500,
    "eval_selfinst.jsonl": 242,
    "eval_selfinst_252.jsonl": 252,
    "eval_vicuna.jsonl": 80,
    "eval_sni.jsonl": 1694,
    "eval_unni_short.jsonl": 1050,
    "tinystories/tinystories_train.txt.gz": 10179,
    "tinystories/tinystories_valid.txt.gz": 535,
    "tinyshakespeare/input.txt": 1,
}


def write(path: Path, *records) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def refused(source, message: str):
    with pytest.raises(ValueError, match=message) as caught:
        load_records(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "record",
    [
        GOOD,
        {"instruction": "Say hi.", "output": ["hi", "hello"]},
        {"prompt": "a", "completion": "b"},
        {
            "prompt": [{"role": "user", "content": "a"}],
            "completion": [{"role": "x", "content": ""}],
        },
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": []}]},
        {"text": "Once upon a time"},
        {"instruction": "a", "output": "b", "text": "Alpaca's own files carry the prompt here"},
        {"instruction": "U+2028 \u2028 ends no line", "output": "é\u0085", "more": [1]},
    ],
)
def test_records_come_back_as_written(tmp_path, record):
    """Every kind survives the file unchanged, further fields too, in all four JSON forms."""
    line = json.dumps(record, ensure_ascii=False)
    (tmp_path / "a.jsonl").write_text(f"{line}\r\n\n{line}", encoding="utf-8", newline="")
    (tmp_path / "b.json").write_text(f"[{line} ,\n {line}]", encoding="utf-8")
    (tmp_path / "c.jsonl").write_text(f"\ufeff{line}\n{line}\n", encoding="utf-8")
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(f"{line}\n{line}".encode()))
    for name in ("a.jsonl", "b.json", "c.jsonl", "d.jsonl.gz"):
        assert load_records(tmp_path / name) == [record, record], name
    assert load_records(str(tmp_path)) == [record] * 8


TEXTS = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)


@given(texts=st.lists(TEXTS, min_size=1, max_size=5), as_ascii=st.booleans())
def test_any_text_survives_every_form(tmp_path_factory, texts, as_ascii):
    """Whatever Unicode a text holds, it comes back from .jsonl and .json as it was."""
    records = [{"text": text} for text in texts]
    lines = [json.dumps(record, ensure_ascii=as_ascii) for record in records]
    folder = tmp_path_factory.mktemp("any")
    (folder / "a.jsonl").write_bytes("\n".join(lines).encode())
    (folder / "b.json").write_bytes(f"[{','.join(lines)}]".encode())
    assert load_records(folder / "a.jsonl") == load_records(folder / "b.json") == records


def test_lists_and_folders_keep_their_order(tmp_path):
    """A list is read as given, a folder by file name, and other files in it are not data."""
    one = write(tmp_path / "1.jsonl", {"text": "one"})
    two = write(tmp_path / "2.jsonl", {"text": "two"})
    (tmp_path / "README.md").write_text("not data")
    assert [r["text"] for r in load_records([two, str(one)])] == ["two", "one"]
    assert [r["text"] for r in load_records(tmp_path)] == ["one", "two"]


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz"])
def test_stories_are_split_at_their_separator(tmp_path, suffix):
    """A line <|endoftext|> ends a story; blank stories vanish; lines inside a story stay."""
    text = "One.\nTwo.\n<|endoftext|>\n\n<|endoftext|>\r\nThree <|endoftext|> still.\n"
    file = tmp_path / f"stories{suffix}"
    file.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    expected = [{"text": "One.\nTwo."}, {"text": "Three <|endoftext|> still."}]
    assert load_records(file) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"instruction": "\xff"}', "byte 0xff is not UTF-8 .*save it as UTF-8"),
        (b'{"instruction": ', "broken JSON .*column 17"),
        (b"[" * 100_000, "broken JSON .nested too deeply"),
        (b"[1]", r"\[1\] is not a JSON object"),
        (b'"text"', "'text' is not a JSON object"),
        (b"{}", r"fields \[\]; it needs instruction and output, prompt and completion"),
        (b'{"output": "a"}', "the record has no 'instruction', only .'output'."),
        (b'{"instruction": "a"}', "the record has no 'output', only .'instruction'."),
        (b'{"instruction": 1, "output": "a"}', "'instruction' is 1; it must be a text"),
        (b'{"instruction": " ", "output": "a"}', "'instruction' is empty"),
        (b'{"instruction": "a", "input": null, "output": "a"}', "'input' is None; it must be"),
        (b'{"instruction": "a", "output": "\\n"}', "'output' is empty"),
        (b'{"instruction": "a", "output": 3}', "is 3; it must be a text or a list of texts"),
        (b'{"instruction": "a", "output": []}', "'output' is an empty list; it needs at least"),
        (b'{"instruction": "a", "output": ["a", ""]}', r"'output'\[1\] is empty"),
        (b'{"instruction": "a", "output": ["a", 2]}', r"'output'\[1\] is 2; it must be a text"),
        (b'{"instruction": "a", "output": "\\ud800"}', "half a surrogate pair at character 0"),
        (b'{"prompt": "a"}', "the record has no 'completion'"),
        (b'{"prompt": "a", "completion": ""}', "'completion' is empty"),
        (b'{"prompt": [], "completion": "a"}', "'prompt' is ..; it must be a list of messages"),
        (b'{"messages": "a"}', "'messages' is 'a'; it must be a list of messages"),
        (b'{"messages": ["a"]}', r"'messages'\[0\] is 'a'; a message has a role"),
        (b'{"messages": [{"role": "user"}]}', r"'messages'\[0\] has no 'content'"),
        (TALK % b', "tools": "hammer"', "'tools' is 'hammer'; it must be a list of tools or the"),
        (
            TALK % b', "chat_template_kwargs": [1]',
            r"'chat_template_kwargs' is \[1\]; it must be an",
        ),
        (b'{"text": ["a"]}', "'text' is ..a..; it must be a text"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, message):
    """Any error in line 3 is reported as FILE:3, in one line."""
    good = json.dumps(GOOD).encode()
    file = tmp_path / "broken.jsonl"
    file.write_bytes(good + b"\n\n" + line + b"\n" + good)
    refused(file, f"^{re.escape(str(file))}:3: .*{message}")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", ":1: the file holds no record; it needs at least one"),
        ("a.jsonl", b"\n \n", ":1: the file holds no record"),
        ("a.json", b"", ":1: the file holds no record"),
        ("a.json", b"[]", ":1: the file holds no record"),
        ("a.txt", b"\n<|endoftext|>\n", ":1: the file holds no record"),
        ("a.txt", b"a\nb\xc3", ":2: byte 0xc3 is not UTF-8"),
        ("a.json", b'{"text": "a"}', ":1: .*one list of objects, .*one object a line is .jsonl"),
        ("a.json", b'[{"text": "a"},\n{"text" "b"}]', ":2: broken JSON"),
        ("a.json", b'[{"text": "a"},\n\n{"text": ""}]', ":3: 'text' is empty"),
        ("a.jsonl.gz", b"not gzip", ":1: broken gzip"),
        ("a.txt.gz", gzip.compress(b"story " * 99, mtime=0)[:-9], ":1: broken gzip"),
        ("a.csv", b"a,b", ": unknown suffix '.csv'; known are .jsonl, "),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, content, message):
    """Empty, unreadable or unknown files are refused by name."""
    file = tmp_path / name
    file.write_bytes(content)
    refused(file, f"^{re.escape(str(file))}{message}")


def test_missing_sources_are_named(tmp_path):
    """No file, an empty folder and an empty list are refused."""
    refused(tmp_path / "none.jsonl", "none.jsonl: no such file or folder")
    refused(tmp_path, "no data file in this folder; known are .jsonl")
    refused([], "no data file was named")


def test_mixed_kinds_are_refused_with_both_lines(tmp_path):
    """Two kinds of record in one file, or in two, are refused, naming both places."""
    mixed = write(tmp_path / "m.jsonl", GOOD, GOOD, {"text": "a"})
    refused(mixed, "m.jsonl:3: a 'text' record, but .*m.jsonl:1 is a 'instruction' record")
    other = write(tmp_path / "o.jsonl", {"text": "a"})
    good = write(tmp_path / "g.jsonl", GOOD)
    refused([other, good], "g.jsonl:1: a 'instruction' record, but .*o.jsonl:1 is a 'text' record")


@pytest.mark.skipif(not SHARED, reason="DISTILLLENS_SHARED is unset")
@pytest.mark.parametrize(("name", "rows"), ROWS.items())
def test_real_files_have_the_rows_they_state(name, rows):
    """Every shared data file loads, with the row count of its README."""
    assert len(load_records(Path(SHARED, "data", name))) == rows


def test_hub_rows_are_checked_and_stripped_of_absent_columns(monkeypatch):
    """A hub table's empty columns are no fields, and its rows are named NAME[SPLIT]:ROW."""
    datasets = pytest.importorskip("datasets")
    rows = [{**GOOD, "note": None}, {**GOOD, "note": "x"}]
    tables = {"good": rows, "empty": rows[:0], "bad": [*rows, {**GOOD, "output": ""}]}
    tables["mixed"] = [{"text": "a"}, {"text": None, "prompt": "b", "completion": "c"}]

    def load_dataset(name, config, split):
        assert (config, split) == (None, "train")
        return tables[name]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_hub("good") == [GOOD, {**GOOD, "note": "x"}]
    with pytest.raises(ValueError, match=r"^bad\[train\]:2: 'output' is empty"):
        load_hub("bad")
    with pytest.raises(ValueError, match=r"^empty\[train\] holds no record"):
        load_hub("empty")
    with pytest.raises(ValueError, match=r"^mixed\[train\] mixes records of .*'prompt', 'text'"):
        load_hub("mixed")


def test_an_unreachable_hub_is_one_line(monkeypatch):
    """Any error of the hub's client becomes one line with data set and split."""
    datasets = pytest.importorskip("datasets")

    def load_dataset(*_, **__):
        raise ConnectionError("cannot reach it\nand more lines")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ValueError, match=r"data set 'no/such', split 'test': cannot reach it$"):
        load_hub("no/such", "test")
