"""Records with another answer, and records that have none yet."""

import json

import pytest

from distilllens.data import load_prompts, load_records, with_answer

USER, OLD, NEW = (
    {"role": role, "content": text}
    for role, text in (("user", "q"), ("assistant", "old"), ("assistant", "A"))
)


@pytest.mark.parametrize(
    "record, expected",
    [
        ({"instruction": "q", "output": ["a", "b"]}, {"instruction": "q", "output": "A"}),
        ({"instruction": "q", "id": 1}, {"instruction": "q", "id": 1, "output": "A"}),
        ({"prompt": "q", "completion": "a"}, {"prompt": "q", "completion": "A"}),
        ({"prompt": [USER], "completion": [OLD]}, {"prompt": [USER], "completion": [NEW]}),
        ({"messages": [USER, OLD, USER, OLD]}, {"messages": [USER, OLD, USER, NEW]}),
        ({"messages": [USER]}, {"messages": [USER, NEW]}),
        (  # the former answer in another form
            {"instruction": "q", "output": "a", "text": "q a", "completion": "a"},
            {"instruction": "q", "output": "A"},
        ),
        ({"prompt": "q", "messages": [USER, OLD]}, {"prompt": "q", "messages": [USER, NEW]}),
    ],
)
def test_the_answer_takes_the_place_of_the_former(record, expected, tmp_path):
    """The record itself stays as it is; the new one is read as one of the same kind."""
    before = json.dumps(record)
    assert with_answer(record, "A") == expected and json.dumps(record) == before
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(with_answer(record, "A")) + "\n")
    assert load_records(path, warn=False) == [expected]
    path.write_text(before + "\n")
    ((place, loaded),) = load_prompts(path)
    assert place == f"{path}:1" and with_answer(loaded, "A") == expected


@pytest.mark.parametrize(
    "row, message",
    [
        ({"text": "a"}, "a text has no prompt to answer"),
        ({"messages": [OLD]}, "'messages' holds nothing before the answer: no prompt"),
        ({"messages": []}, r"'messages' is \[\]; it must be a list of messages"),
        ({"conversations": [{"from": "no", "value": "a"}]}, "'from'] is 'no'; known are"),
        ({"completion": "a"}, "the record has no 'prompt'"),
        ({"id": 1}, "it needs instruction and"),
        ([1], "is not a JSON object"),
    ],
)
def test_a_record_without_a_prompt_is_named(row, message, tmp_path):
    """With its file and line."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": [USER]}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=rf"rows.jsonl:2: .*{message}"):
        load_prompts(path)


@pytest.mark.parametrize("content", ["", None, []])
def test_a_completion_that_says_nothing_is_left_out(content, tmp_path, caplog):
    """As one of text; a call of a tool is something."""
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    said = [{"role": "assistant", "content": content}]
    rows = [said, [NEW], [{"role": "assistant", "content": "", "tool_calls": [call]}]]
    text = "".join(json.dumps({"prompt": [USER], "completion": row}) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(text)
    records = load_records(tmp_path / "rows.jsonl")
    assert [record["completion"] for record in records] == rows[1:]
    assert "1 " in caplog.text
