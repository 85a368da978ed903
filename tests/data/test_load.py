"""Files become records, or an error that names the line."""

import gzip
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilllens.data import kind_of, load_records

GOOD = {"instruction": "Say hi.", "input": "", "output": "hi"}
TALK = b'{"messages": [{"role": "user", "content": "a"}]%s}'
SAID = b'{"messages": [{"role": "user", "content": %s}]}'
SPOKEN = b'{"conversations": [{%s}]}'
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
            "completion": [{"role": "x", "content": "b"}],
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
        (b'{"text": "a", "text": "b"}', "broken JSON .an object has the field 'text' twice.$"),
        (b'{"text": "a"} and more', r"broken JSON .Extra data at column 15.$"),
        (
            b'{"messages": "[{\\"role\\": \\"user\\", \\"content\\": 1, \\"content\\": 2}]"}',
            "an object has the field 'content' twice",
        ),
        (TALK % b', "tools": [{"x": {"b": 1, "a": 2, "a": 3}}]', "has the field 'a' twice"),
        (b"[" * 100_000, "broken JSON .nested too deeply"),
        (b"[1]", r"\[1\] is not a JSON object"),
        (b'"text"', "'text' is not a JSON object"),
        (b"{}", r"fields \[\]; it needs instruction and output, prompt and completion"),
        (b'{"output": "a"}', "the record has no 'instruction', only .'output'."),
        (b'{"instruction": "a"}', "the record has no 'output', only .'instruction'."),
        (b'{"instruction": 1, "output": "a"}', "'instruction' is 1; it must be a text"),
        (b'{"instruction": " ", "output": "a"}', "'instruction' is empty"),
        (b'{"instruction": "a", "output": 3}', "is 3; it must be a text or a list of texts"),
        (b'{"instruction": "a", "output": ["a", ""]}', r"'output'\[1\] is empty"),
        (b'{"instruction": "a", "output": ["a", 2]}', r"'output'\[1\] is 2; it must be a text"),
        (b'{"instruction": "a", "output": "\\ud800"}', "half a surrogate pair at character 0"),
        (TALK % b', "tools": [{"\\ud800": 1}]', "'tools' has half a surrogate pair at character 3"),
        (SAID % b'"a", "calls": ["\\udfff"]', r"'messages'\[0\] has half a surrogate pair"),
        (b'{"prompt": "a"}', "the record has no 'completion'"),
        (b'{"prompt": [], "completion": "a"}', "'prompt' is ..; it must be a list of messages"),
        (b'{"messages": "a"}', "'messages' is 'a'; it must be a list of messages"),
        (b'{"messages": ["a"]}', r"'messages'\[0\] is 'a'; a message has a role"),
        (b'{"messages": [""]}', r"'messages'\[0\] is ''; a message has a role"),
        (b'{"prompt": [], "completion": [" "]}', "'prompt' is ..; it must be a list of messages"),
        (b'{"text": [""]}', "'text' is .''.; it must be a text"),
        (b'{"messages": [{"role": "user"}]}', r"'messages'\[0\] has no 'content'"),
        (TALK % b', "tools": "hammer"', "'tools' is 'hammer'; it must be a list of tools or the"),
        *(
            (TALK % b', "tools": %s' % tools, rf"'tools'{place} is .*; it must be a list of tools")
            for tools, place in (
                *((wrong, "") for wrong in (b"0", b"1.5", b"true", b"{}", b'"{}"', b'"1"', b'""')),
                *((wrong, r"\[0\]") for wrong in (b'[""]', b"[1]", b"[null]", b'"[1]"')),
                (b"[{}, 2]", r"\[1\]"),
            )
        ),
        (
            TALK % b', "chat_template_kwargs": [1]',
            r"'chat_template_kwargs' is \[1\]; it must be an",
        ),
        (b'{"instruction": "a", "output": "b", "system": 1}', "'system' is 1; it must be a text"),
        (b'{"instruction": "a", "output": "b", "history": "c"}', "'history' is 'c'; it must be a"),
        (b'{"instruction": "a", "output": "b", "history": [["c"]]}', r"'history'\[0\] is .*answer"),
        (b'{"instruction": "a", "output": "b", "history": [[1, 2]]}', r"\[0\] is 1; .* two texts"),
        (SAID % b"5", r"'messages'\[0\]\['content'\] is 5; it must be a text"),
        (SAID % b"null", r"'messages'\[0\] has no 'content'"),
        (SAID % b"[]", r"'messages'\[0\]\['content'\] is an empty list"),
        (SAID % b'["a"]', r"\['content'\]\[0\] is 'a'; only text parts .* can be trained on"),
        (
            SAID % b'[{"type": "text", "text": "a"}, {"type": "image_url", "image_url": "b"}]',
            r"\['content'\]\[1\] is a part of type 'image_url'; only text parts",
        ),
        (b'{"conversations": "a"}', "'conversations' is 'a'; it must be a list of turns"),
        (SPOKEN % b'"from": "alien", "value": "a"', r"\[0\]\['from'\] is 'alien'; known are human"),
        (SPOKEN % b'"from": "human", "value": 5', r"'conversations'\[0\]\['value'\] is 5; it must"),
        (SPOKEN % b'"from": "human"', r"'conversations'\[0\]\['value'\] is None; it must"),
        (SPOKEN % b'"from": "function_call", "value": "f(1)"', r"\[0\] is a function_call, so its"),
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
        ("a.json", b'[{"text": "a"},\n{"text": "b", "text": "c"}]', ":2: .*'text' twice"),
        ("a.json", b'[{"text": "a"},\n\n{"text": 5}]', ":3: 'text' is 5"),
        ("a.jsonl", b'\n{\n  "text": "a"\n}\n', ":2: broken JSON .*this looks like pretty-printed"),
        ("a.jsonl", b'[\n{"text": "a"}]\n', ":1: .*looks like a JSON list: name the file .json"),
        ("a.xlsx", b"a,b", ": unknown suffix '.xlsx'; known are .jsonl, "),
        ("a.csv", b"a,b\n1,2\n", ":2: the record has the fields .'a', 'b'.; it needs"),
        ("a.csv", b"text\n", ":1: the file holds no record"),
        ("a.csv", b"", ":1: the file holds no record"),
        ("a.csv", b"text,text\na,b\n", ":1: two columns of the header are called 'text'"),
        ("a.csv", b'text,id\n"a\nb",1\n\nc\n', ":5: the row has 1 cells, but the header names 2"),
        ("a.csv", b'text\na\n"b\n', ":3: broken CSV"),
        ("a.csv", b"text\n\xff\n", ":2: byte 0xff is not UTF-8"),
        ("a.parquet", b"PAR1 no", ": cannot be read as Parquet"),
        ("a.arrow", b"no", ": cannot be read as Arrow"),
        ("a.jsonl.gz", b"not gzip", ":1: broken gzip"),
        ("a.txt.gz", gzip.compress(b"story " * 99, mtime=0)[:-9], ":1: broken gzip"),
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


SPEAKERS = ("system", "human", "gpt", "tool", "user", "assistant", "observation")
ROLES = ("system", "user", "assistant", "tool", "user", "assistant", "tool")
PARTS = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]


def said(role, content, **more):
    return {"role": role, "content": content, **more}


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (
            {"conversations": [{"from": name, "value": "x"} for name in SPEAKERS], "id": 1},
            {"messages": [said(role, "x") for role in ROLES], "id": 1},
        ),
        (
            {"conversations": [{"from": "human", "value": "x"}], "system": "Be kind."},
            {"messages": [said("system", "Be kind."), said("user", "x")]},
        ),
        (
            {"conversations": [said("system", "y"), said("user", "x")], "system": "Be kind."},
            {"messages": [said("system", "y"), said("user", "x")], "system": "Be kind."},
        ),
        (
            {"conversations": [{"from": "function_call", "value": '{"name": "f"}'}]},
            {
                "messages": [
                    said(
                        "assistant",
                        "",
                        tool_calls=[{"type": "function", "function": {"name": "f"}}],
                    )
                ]
            },
        ),
        (
            {"prompt": "x", "prompt_id": "y", "messages": [said("user", "x")]},
            {"prompt": "x", "prompt_id": "y", "messages": [said("user", "x")]},
        ),
        ({"messages": [said("user", PARTS)]}, {"messages": [said("user", "ab")]}),
        (
            {"prompt": [said("user", PARTS)], "completion": [said("assistant", "c")]},
            {"prompt": [said("user", "ab")], "completion": [said("assistant", "c")]},
        ),
        ({"messages": json.dumps([said("user", "x")])}, {"messages": [said("user", "x")]}),
        (
            {**GOOD, "input": None, "system": None, "history": None, "output": "b"},
            {"instruction": "Say hi.", "output": "b"},
        ),
        ({**GOOD, "history": '[["a", "b"]]'}, {**GOOD, "history": [["a", "b"]]}),
    ],
)
def test_spellings_of_other_tools_are_read(tmp_path, written, read):
    """ShareGPT's turns, UltraChat's rows, text parts and null become messages and fields."""
    assert load_records(write(tmp_path / "a.jsonl", written)) == [read]


def test_null_inside_a_conversation_is_no_absent_key(tmp_path):
    """Only a field of the record itself vanishes when it is null."""
    record = {"messages": [said("user", "x", a=None)], "chat_template_kwargs": {"b": None}}
    file = write(tmp_path / "a.jsonl", {**record, "tools": None})
    assert load_records(file) == [record]


def test_texts_and_messages_are_two_kinds(tmp_path):
    """SFTTrainer decides by the first row whether to append the end-of-sequence token."""
    talk = {"prompt": [said("user", "a")], "completion": [said("assistant", "b")]}
    file = write(tmp_path / "a.jsonl", {"prompt": "a", "completion": "b"}, talk)
    refused(file, "a.jsonl:2: a 'prompt' record of messages, but .*:1 is a 'prompt' record;")


def test_unused_fields_are_named_once(tmp_path, caplog):
    """One warning names every field that nothing reads, and how many records hold it."""
    rows = [{**GOOD, "id": n, "source": "x" if n else "", "system": "y"} for n in range(3)]
    load_records([write(tmp_path / "a.jsonl", *rows), write(tmp_path / "b.jsonl", *rows)])
    (record,) = caplog.records
    assert record.getMessage() == (
        f"nothing reads these fields of the 6 records from {tmp_path / 'a.jsonl'}:1 on: "
        "'id' (in 6), 'source' (in 4)"
    )
    caplog.clear()
    load_records(tmp_path / "a.jsonl", warn=False)
    load_records(
        write(tmp_path / "c.jsonl", {"messages": [said("user", "a")], "tools": [{"b": 1}]})
    )
    assert not caplog.records
    load_records(write(tmp_path / "c.jsonl", {"prompt": "a", "completion": "b", "tools": [{}]}))
    assert "'tools' (in 1)" in caplog.text


TARGETS = (
    {"instruction": "a", "output": "b"},
    {"prompt": "a", "completion": "b"},
    {"messages": [said("user", "a")]},
    {"text": "a"},
)
# Rows without a target, and what is said where they are refused.
EMPTY = [
    ({**GOOD, "output": ""}, "'output' is empty"),
    ({**GOOD, "output": " \n"}, "'output' is empty"),
    ({**GOOD, "output": None}, "the record has no 'output'"),
    ({**GOOD, "output": None, "text": "the prompt"}, "the record has no 'output'"),
    ({**GOOD, "output": []}, "'output' is an empty list"),
    ({"prompt": "a", "completion": ""}, "'completion' is empty"),
    ({"prompt": [said("user", "a")], "completion": []}, "'completion' is ..; it must be a list"),
    ({"messages": []}, "'messages' is ..; it must be a list of messages"),
    ({"conversations": None}, "the record has no 'messages'"),
    ({"text": ""}, "'text' is empty"),
]


@pytest.mark.parametrize(("empty", "message"), EMPTY)
def test_rows_without_a_target_are_left_out_and_counted(tmp_path, caplog, empty, message):
    """One warning counts them; evaluation refuses them; a file of nothing else is refused."""
    good = next(row for row in TARGETS if kind_of(row) == kind_of({"messages": None, **empty}))
    if isinstance(empty.get("prompt"), list):
        good = {"prompt": empty["prompt"], "completion": [said("assistant", "b")]}
    file = write(tmp_path / "a.jsonl", good, empty, good, empty)
    assert load_records(file) == [good, good]
    (record,) = caplog.records
    assert record.getMessage() == (
        f"leaving out 2 of 4 records that have no target; the first is {file}:2"
    )
    with pytest.raises(ValueError, match=f"a.jsonl:2: {message}"):
        load_records(file, skip_empty=False)
    refused(
        write(tmp_path / "b.jsonl", empty, empty), "b.jsonl:1: the file holds 2 records, but all"
    )


CSV = """,instruction,input,output,note,history
0,"Say ""hi"".",,None,,
1,"Two
lines",more,"a, b",3,"[[""q"", ""a""]]"
"""


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_csv_cells_become_fields(tmp_path, suffix):
    """Quotes and line ends inside cells stay; an empty cell is no field; lists may be JSON."""
    file = tmp_path / f"a{suffix}"
    content = ("\ufeff" + CSV.replace("\n", "\r\n").replace("Two\r\n", "Two\n")).encode()
    file.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    assert load_records(file) == [
        {"": "0", "instruction": 'Say "hi".', "output": "None"},
        {
            "": "1",
            "instruction": "Two\nlines",
            "input": "more",
            "output": "a, b",
            "note": "3",
            "history": [["q", "a"]],
        },
    ]


def test_csv_holds_conversations_and_json_texts(tmp_path):
    """Messages are the JSON text of a list; a completion that is JSON but no messages is a text."""
    talk, file = [said("user", "a")], tmp_path / "a.csv"
    cell = json.dumps(talk).replace('"', '""')
    file.write_text(f'messages\n"{cell}"\n')
    assert load_records(file) == [{"messages": talk}]
    file.write_text(f'prompt,completion\n"{cell}","{cell}"\n')
    assert load_records(file) == [{"prompt": talk, "completion": talk}]
    file.write_text('prompt,completion\n,"[1, 2]"\n"[]","{}"\n')
    assert load_records(file) == [
        {"prompt": "", "completion": "[1, 2]"},
        {"prompt": "[]", "completion": "{}"},
    ]
    file.write_text(f'messages\n"{talk!s}"\n')
    refused(file, r"a.csv:2: 'messages' is \"\[\{'role'.*; it must be a list of messages")


def test_csv_cells_may_be_long(tmp_path):
    """A cell may be longer than the limit of Python's csv, which stays as it was."""
    import csv

    limit = csv.field_size_limit()
    (tmp_path / "a.csv").write_text(f"text\n{'x' * (limit + 1)}\n")
    assert len(load_records(tmp_path / "a.csv")[0]["text"]) == limit + 1
    assert csv.field_size_limit() == limit


def test_tables_are_read_as_files_and_folders(tmp_path):
    """Parquet, and what datasets saves; errors name the row; a folder of splits is refused."""
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list([{**GOOD, "n": n} for n in range(5)])
    records = list(table)
    table.to_parquet(tmp_path / "a.parquet")
    assert load_records(tmp_path / "a.parquet") == records
    table.select([4, 2]).save_to_disk(tmp_path / "saved", num_shards=2)
    assert load_records(tmp_path / "saved") == [records[4], records[2]]
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(tmp_path / "splits")
    refused(tmp_path / "splits", "a data set of the splits test, train; name one of these folders")
    assert load_records(tmp_path / "splits" / "train") == records
    datasets.Dataset.from_list([GOOD, {**GOOD, "instruction": None}]).to_parquet(
        tmp_path / "b.parquet"
    )
    refused(tmp_path / "b.parquet", "b.parquet:1: the record has no 'instruction'")


def test_tables_beside_other_data_in_a_folder_are_not_read(tmp_path, caplog):
    """The same data may lie there in two forms; a warning says which one is read."""
    write(tmp_path / "a.jsonl", {"text": "a"})
    (tmp_path / "a.csv").write_text("text\na\n")
    assert load_records(tmp_path) == [{"text": "a"}]
    assert "a.jsonl is read, and tables are not: a.csv" in caplog.text


def test_a_record_knows_its_place(tmp_path):
    """File and line, also where records before it were left out; it is a plain dict otherwise."""
    empty = {**GOOD, "output": ""}
    file = write(tmp_path / "a.jsonl", GOOD, empty, {**GOOD, "output": None, "topic": None}, GOOD)
    found = load_records(file)
    assert found == [GOOD, GOOD]
    assert [record.place for record in found] == [f"{file}:1", f"{file}:4"]


def test_a_chat_template_reads_tools_of_instructions(tmp_path, caplog):
    """They are checked then, and named as unused without one."""
    file = write(tmp_path / "a.jsonl", GOOD | {"tools": [{"type": "function"}], "topic": "b"})
    load_records(file)
    assert "nothing reads these fields of the 1 records" in caplog.text and "'tools'" in caplog.text
    caplog.clear()
    load_records(file, chat=True)
    assert "'topic'" in caplog.text and "'tools'" not in caplog.text
    bad = write(tmp_path / "b.jsonl", GOOD, GOOD | {"tools": "none"})
    with pytest.raises(ValueError, match=r"b\.jsonl:2: 'tools' is 'none'; it must be a list of"):
        load_records(bad, chat=True)


def test_text_of_a_table_that_looks_like_json_is_text(tmp_path):
    """Unless it is messages, of which no field is lost."""
    file = tmp_path / "a.csv"
    file.write_text('prompt,completion\nask,"[{""a"": 1, ""a"": 2}]"\n')
    assert load_records(file) == [{"prompt": "ask", "completion": '[{"a": 1, "a": 2}]'}]
    turn = '[{""role"": ""user"", ""content"": ""a"", ""content"": ""b""}]'
    file.write_text(f'prompt,completion\nask,"{turn}"\n')
    refused(file, r"a.csv:2: an object has the field 'content' twice")
