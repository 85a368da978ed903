"""Data sets of the hub give the records that are in their files."""

import json
from datetime import datetime

import pytest
from data import tool_records

from distilllens.data import load_hub, load_records, to_dataset

datasets = pytest.importorskip("datasets")
GOOD = {"instruction": "Say hi.", "output": "hi"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The cache of datasets, empty."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def folder_of(folder, form, rows, split="train"):
    """A folder as it lies on the hub, of one data file."""
    folder.mkdir(exist_ok=True, parents=True)
    file = folder / f"{split}.{form}"
    if form == "parquet":
        datasets.Dataset.from_list(rows).to_parquet(file)
    elif form == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif form == "json":
        file.write_text(json.dumps(rows))
    else:
        datasets.Dataset.from_list(rows).to_csv(file)
    return str(folder)


@pytest.mark.parametrize("form", ["jsonl", "json", "parquet", "csv"])
def test_hub_records_are_checked(tmp_path, form):
    """A column that a row does not fill is no field of its record; a bad row is named."""
    rows = [{**GOOD, "input": None, "note": None}, {**GOOD, "input": "x", "note": "y"}]
    folder = folder_of(tmp_path / "good", form, rows)
    assert load_hub(folder) == [GOOD, {**GOOD, "input": "x", "note": "y"}]
    broken = folder_of(tmp_path / "broken", form, [*rows, {**rows[0], "instruction": " "}])
    with pytest.raises(
        ValueError, match=r"(train\.(jsonl?:[13]|csv:4)|broken\[train\]:2): 'instruction' is"
    ):
        load_hub(broken)
    empty = dict.fromkeys(("text", "prompt", "completion"))
    rows = [empty | {"text": "a"}, empty | {"prompt": "b", "completion": "c"}]
    mixed = folder_of(tmp_path / "mixed", form, rows)
    with pytest.raises(ValueError, match=r": a 'prompt' record, but .* is a 'text' record"):
        load_hub(mixed)


CALL = {"a": None, "share": 0.94, "long": 0.123456789012345, "zip": "01234", "id": 10**17}
TALKS = [
    {
        "messages": [
            {"role": "user", "content": "12"},
            {"role": "assistant", "content": "x", "tool_calls": [{"arguments": CALL}]},
        ],
        "tools": [tool_records.tool("hill", "big"), {"x": {"default": None, "multipleOf": 0.01}}],
        "chat_template_kwargs": {"thinking": None},
    },
    {
        "messages": [{"role": "user", "content": "true", "name": "n"}],
        "tools": [{"x": {"y": [1, "1", None]}}],
        "chat_template_kwargs": {"depth": 0.3},
    },
]


@pytest.mark.parametrize("form", ["jsonl", "json"])
@pytest.mark.parametrize("load", [load_hub, load_records])
def test_conversations_reach_the_table_as_they_are_in_the_file(tmp_path, form, load):
    """At any depth: absent keys stay absent, nulls stay null, and numbers and texts stay equal."""
    records = load(folder_of(tmp_path / "talks", form, TALKS))
    assert records == TALKS
    rows = list(to_dataset(records))
    assert json.dumps(rows) == json.dumps(TALKS)


def test_cells_of_a_csv_file_are_texts(tmp_path):
    """pandas would read a number, and nothing where the answer is None."""
    folder = tmp_path / "cells"
    folder.mkdir()
    (folder / "train.csv").write_text("prompt,completion\n1,None\n007,NA\n")
    records = [{"prompt": "1", "completion": "None"}, {"prompt": "007", "completion": "NA"}]
    assert load_hub(str(folder)) == load_records(folder) == records


def test_files_with_settings_of_their_own_are_read_by_datasets(tmp_path):
    """A separator that the data set's card sets is observed; datasets' reason is told."""
    folder = tmp_path / "cells"
    folder.mkdir()
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: a.csv\n  sep: ';'\n---\n"
    )
    (folder / "a.csv").write_text("prompt;completion\na;b, c\n")
    assert load_hub(str(folder)) == [{"prompt": "a", "completion": "b, c"}]
    (folder / "a.csv").write_bytes(b"prompt;completion\n\xff;b\n")
    with pytest.raises(ValueError, match=r"'.*cells', split 'train': 'utf-8' codec can't decode"):
        load_hub(str(folder))


def test_a_changed_file_beside_a_readme_is_read_again(tmp_path):
    """datasets' cache of a folder whose README names the files does not see the change."""
    folder = tmp_path / "cells"
    for text in "ab":
        folder_of(folder, "parquet", [{"text": text}])
        (folder / "README.md").write_text(
            "---\nconfigs:\n- config_name: default\n  data_files: train.parquet\n---\n"
        )
        assert load_hub(str(folder)) == [{"text": text}]


def test_a_map_hands_on_conversations_as_they_are():
    """SFTTrainer's own reading, row by row and in two processes, sees the same values."""
    table = to_dataset(TALKS)
    for processes in (None, 2):
        seen = table.map(lambda row: {"seen": json.dumps(dict(row))}, num_proc=processes)["seen"]
        assert [json.loads(row) for row in seen] == TALKS


@pytest.mark.parametrize("load", [load_hub, load_records])
def test_null_in_a_struct_of_a_table_is_an_absent_key(tmp_path, load):
    """Parquet gives every struct every key; a message's content may be null beside calls."""
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    rows = [{"messages": [call]}, {"messages": [{"role": "user", "content": "a"}]}]
    assert datasets.Dataset.from_list(rows)[1]["messages"][0]["tool_calls"] is None
    assert load(folder_of(tmp_path / "rows", "parquet", rows)) == rows


def test_dates_of_a_table_become_text(tmp_path):
    """Published conversations carry the time of each turn."""
    time = datetime(2024, 5, 6, 7, 8, 9)
    message = {"role": "user", "content": "a", "time": time}
    folder_of(tmp_path / "rows", "parquet", [{"messages": [message]}])
    (row,) = to_dataset(load_records(tmp_path / "rows"))
    assert row == {"messages": [{**message, "time": "2024-05-06T07:08:09"}]}
    with pytest.raises(ValueError, match=r"holds b'a', which JSON cannot"):
        to_dataset([{"messages": [{**message, "time": b"a"}]}])


@pytest.mark.parametrize("load", [load_hub, load_records])
def test_json_in_a_table_stays_as_it_is(tmp_path, load):
    """A Parquet file that datasets wrote with JSON columns keeps absent keys and nulls apart."""
    folder = tmp_path / "rows"
    folder.mkdir()
    rows = [{"messages": talk["messages"]} for talk in TALKS]
    table = datasets.Dataset.from_dict(
        {"messages": [json.dumps(row["messages"]) for row in rows]},
        features=datasets.Features({"messages": datasets.Json()}),
    )
    table.to_parquet(folder / "train.parquet")
    assert load(str(folder)) == rows


def test_parts_of_a_split(tmp_path):
    """The notation of datasets for parts and sums works for JSON files as for tables."""
    for form in ("jsonl", "parquet"):
        folder = folder_of(tmp_path / form, form, [{"text": str(n)} for n in range(10)])
        folder_of(tmp_path / form, form, [{"text": "t"}], split="test")
        assert [r["text"] for r in load_hub(folder, "train[2:4]+test")] == ["2", "3", "t"]
        assert len(load_hub(folder, "train[:50%]")) == 5
        with pytest.raises(ValueError, match=r"split 'none': Unknown split .none."):
            load_hub(folder, "none")


def test_an_empty_split_is_refused(tmp_path):
    """A split without rows is an error that names it."""
    folder = folder_of(tmp_path / "none", "jsonl", [{"text": "a"}])
    with pytest.raises(ValueError, match=r"none\[train\[:0\]\] holds no record"):
        load_hub(folder, "train[:0]")


@pytest.mark.parametrize("nested", [True, False])
def test_the_table_of_datasets_is_read_when_the_hub_is_out_of_reach(tmp_path, caplog, nested):
    """It may differ from the files if it holds more than texts; a warning says so, once."""
    rows = TALKS if nested else [GOOD]
    builder = datasets.load_dataset_builder(folder_of(tmp_path / "talks", "jsonl", rows))
    builder.download_and_prepare()
    (tmp_path / "cache" / "talks").rename(tmp_path / "cache" / "some___talks")
    assert len(load_hub("some/talks")) == len(rows)
    messages = [r.getMessage() for r in caplog.records if r.name.startswith("distilllens")]
    assert len(messages) == nested
    assert all("some/talks: the files are not read themselves" in text for text in messages)
    caplog.clear()
    load_hub("some/talks", warn=False)
    assert not [r for r in caplog.records if r.name.startswith("distilllens")]


def test_an_unreachable_hub_is_one_line(monkeypatch):
    """Any error of the hub's client becomes one line with data set and split."""

    def builder(*_, **__):
        raise ConnectionError("cannot reach it\nand more lines")

    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    with pytest.raises(ValueError, match=r"data set 'no/such', split 'test': cannot reach it$"):
        load_hub("no/such", "test")
