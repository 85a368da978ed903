"""Sources: what an entry of a mixture may say, and which records it gives."""

import gzip
import json

import pytest
from datasets import Dataset

from distilllens.data.sources import load_sources, sources_of
from distilllens.data.streams import RecordStream


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Ten instructions, six prompts and four texts, in files; a data set of two splits."""
    monkeypatch.chdir(tmp_path)
    write("a.jsonl", [{"instruction": f"i{n}", "output": f"o{n}", "id": n} for n in range(10)])
    write("b.jsonl", [{"prompt": f"p{n}", "completion": f"c{n}"} for n in range(6)])
    write("c.jsonl", [{"text": f"t{n}"} for n in range(4)])
    (tmp_path / "set").mkdir()
    write("set/train.jsonl", [{"prompt": f"s{n}", "completion": "c"} for n in range(3)])
    write("set/test.jsonl", [{"prompt": "e", "completion": "c"}])
    return tmp_path


def write(name, rows):
    """A file of JSON lines."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    opened = gzip.open if name.endswith(".gz") else open
    with opened(name, "wt") as file:
        file.write(text)


def firsts(records):
    """The first field of each record."""
    return [next(iter(record.values())) for record in records]


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([{"path": "a.jsonl", "rows": 2}, {"path": "b.jsonl"}], [2, 6]),
        # TRL: N = min(10 / 0.25, 6 / 0.75) = 8 rows.
        ([{"path": "a.jsonl", "fraction": 1}, {"path": "b.jsonl", "fraction": 3}], [2, 6]),
        # N = min(10 / 0.5, 6 / 0.3, 3 / 0.2) = 15: 7.5 rounds to the even 8, 4.5 to 4.
        (
            [
                {"path": "a.jsonl", "fraction": 0.5},
                {"path": "b.jsonl", "fraction": 0.3},
                {"path": "set", "fraction": 0.2},
            ],
            [8, 4, 3],
        ),
        ([{"path": "json", "data_files": ["b.jsonl"]}, {"path": "set", "split": "test"}], [6, 1]),
        ([{"path": "json", "data_files": {"train": "b.jsonl", "x": "a.jsonl"}}], [6]),
        ([{"path": "json", "data_files": "*.jsonl", "columns": ["prompt", "completion"]}], None),
        ([{"path": "set", "data_files": "test.jsonl"}], [1]),
        ([{"path": "set", "split": "train[1:]"}], [2]),
    ],
)
def test_rows_and_shares(data, entries, expected):
    """The first rows of each source; fractions by TRL's rule."""
    if expected is None:  # rows of other kinds have none of these columns
        with pytest.raises(ValueError, match=r"a.jsonl:1: the record has the fields \[\]"):
            load_sources(sources_of(entries))
        return
    found = load_sources(sources_of(entries))
    assert [len(records) for records in found] == expected


def test_tables_and_saved_folders_are_sources(data):
    """Parquet files, folders that datasets saved, compressed files."""
    table = Dataset.from_list([{"prompt": "x", "completion": "y"}] * 2)
    table.to_parquet("t.parquet")
    table.save_to_disk("saved")
    write("z.jsonl.gz", [{"prompt": "x", "completion": "y"}])
    paths = ["t.parquet", "saved", "z.jsonl.gz"]
    sources = sources_of([{"path": path} for path in paths])
    assert [len(records) for records in load_sources(sources)] == [2, 2, 1]
    assert len([*RecordStream(sources).records()]) == 5


def test_columns_are_all_that_is_read(data, caplog):
    """A field that is left out is neither read nor named."""
    (records,) = load_sources(
        sources_of([{"path": "a.jsonl", "columns": ["instruction", "output"]}])
    )
    assert records[0] == {"instruction": "i0", "output": "o0"} and not caplog.messages
    (records,) = load_sources(sources_of([{"path": "a.jsonl"}]))
    assert "'id' (in 10)" in caplog.text


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "datasets must be a list of entries"),
        (["a.jsonl"], r"datasets: entry 1 is 'a.jsonl'; write a mapping"),
        ([{"name": "x"}], "datasets: entry 1 has no path"),
        ([{"path": "a.jsonl", "wieght": 1}], "entry 1 has the unknown key 'wieght'"),
        ([{"path": "a.jsonl", "weight": 1}], r"unknown key 'weight'; did you mean fraction\?"),
        ([{"path": "a.jsonl", "splitt": "x"}], r"did you mean split\?"),
        ([{"path": 3}], "entry 1: path must be text, got 3"),
        ([{"path": "a.jsonl"}, {"path": "d.jsonl"}], "entry 2: d.jsonl: no such file or folder"),
        ([{"path": "a.jsonl", "rows": 0}], "rows must be a whole number, at least 1, got 0"),
        ([{"path": "a.jsonl", "fraction": 0}], "fraction must be a number above 0, got 0"),
        ([{"path": "a.jsonl", "fraction": True}], "fraction must be a number above 0, got True"),
        ([{"path": "a.jsonl", "rows": 1, "fraction": 1}], "set rows or fraction, not both"),
        ([{"path": "a.jsonl", "fraction": 1}, {"path": "b.jsonl"}], "in all entries or in none"),
        ([{"path": "a.jsonl", "columns": [1]}], r"columns must be a list of texts, got \[1\]"),
        ([{"path": "a.jsonl", "split": "test"}], "a.jsonl has no splits; leave split out"),
        ([{"path": "a.jsonl", "data_dir": "x"}], "is read as it is; leave data_dir out"),
    ],
)
def test_entries_that_cannot_be_used(data, entries, message):
    """One line each."""
    with pytest.raises(ValueError, match=message):
        sources_of(entries)


@pytest.mark.parametrize("load", [load_sources, RecordStream], ids=["whole", "streamed"])
def test_sources_of_unlike_forms_are_refused(data, load):
    """Instructions and prompts are trained on alike; text is not, and messages are not."""
    load(sources_of([{"path": "a.jsonl"}, {"path": "b.jsonl"}]))
    with pytest.raises(ValueError, match=r"records of b.jsonl are trained on as prompt and compl"):
        load(sources_of([{"path": "b.jsonl"}, {"path": "c.jsonl"}]))
    message = [{"role": "user", "content": "x"}]
    write("m.jsonl", [{"prompt": message, "completion": message}])
    mixed = sources_of([{"path": "a.jsonl"}, {"path": "m.jsonl"}])
    with pytest.raises(ValueError, match="or set chat to write instructions as messages"):
        load(mixed)
    load(mixed, chat=True)


def test_more_rows_than_there_are(data):
    """One line."""
    with pytest.raises(ValueError, match=r"b.jsonl has 6 records, fewer than rows: 7"):
        load_sources(sources_of([{"path": "b.jsonl", "rows": 7}]))


def test_a_share_that_is_no_row_is_refused(data):
    """0.02 of ten rows: the source would be named, and nothing of it read."""
    entries = [{"path": "a.jsonl", "fraction": 0.98}, {"path": "b.jsonl", "fraction": 0.02}]
    with pytest.raises(ValueError, match=r"b.jsonl gets no row: a fraction of 0.02 is less than"):
        load_sources(sources_of(entries))
