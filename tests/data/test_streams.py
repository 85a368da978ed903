"""Streams of records: every row once, in an order that a seed decides, read when it is needed."""

import json
import logging
from collections import Counter
from itertools import islice

import pytest
from data.test_sources import data, write  # noqa: F401 - a fixture
from datasets import Dataset

from distilllens.data import load_hub, load_records, to_training_examples
from distilllens.data.load import rows_of
from distilllens.data.sources import Source, file_source, sources_of
from distilllens.data.streams import PLACE, RecordStream


def read(stream, num=None):
    """The examples of one pass, without their places."""
    rows = islice(stream.dataset(), num)
    return [{name: value for name, value in row.items() if name != PLACE} for row in rows]


def as_text(rows):
    return sorted(json.dumps(row, sort_keys=True) for row in rows)


RICH = [
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None,
      "tool_calls": [{"function": {"name": "f", "arguments": {"x": 0.94, "y": None}}}]}],
     "tools": [{"type": "function", "function": {"name": "f"}}]},
    {"messages": [{"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]},
]  # fmt: skip


@pytest.mark.parametrize("form", ["jsonl", "json", "csv", "txt", "parquet", "hub", "hub table"])
def test_a_stream_has_the_examples_of_the_whole(data, form):  # noqa: F811
    """Of every form of file, and of a data set; each record is as it is in its file."""
    rows = [{"text": f"text {n}"} for n in range(7)]
    folder = data / "x"
    folder.mkdir()
    name = f"train.{ {'hub': 'jsonl', 'hub table': 'parquet'}.get(form, form) }"
    if name.endswith("parquet"):
        Dataset.from_list(rows).to_parquet(folder / name)
    elif form == "json":
        (folder / name).write_text(json.dumps(rows, indent=1))
    elif form == "csv":
        (folder / name).write_text("text\n" + "".join(f"{row['text']}\n" for row in rows))
    elif form == "txt":
        (folder / name).write_text("\n<|endoftext|>\n".join(row["text"] for row in rows))
    else:
        write(str(folder / name), rows)
    is_hub = form.startswith("hub")
    source = Source("x") if is_hub else file_source([str(folder / name)])
    whole = load_hub("x") if is_hub else load_records(folder / name)
    stream = RecordStream((source,), buffer_size=3)
    assert as_text(read(stream)) == as_text(to_training_examples(whole))
    assert [*stream.records()] == whole == rows


def test_conversations_are_as_they_are_in_their_file(data):  # noqa: F811
    """Nothing of a table: no key of another message, no number rounded."""
    write("m.jsonl", RICH)
    stream = RecordStream((file_source(["m.jsonl"]),), buffer_size=0)
    assert read(stream) == RICH
    assert [row[PLACE] for row in stream.dataset()] == ["m.jsonl:1", "m.jsonl:2"]


def test_a_seed_decides_the_order(data):  # noqa: F811
    """Every row once a pass, of all files together; another seed or pass has another order."""
    source = file_source(["a.jsonl", "b.jsonl"][:1] * 3)
    streams = [RecordStream((source,), seed=seed, buffer_size=8) for seed in (1, 1, 2)]
    one, same, other = map(read, streams)
    assert one == same != other and as_text(one) == as_text(other)
    dataset = streams[0].dataset()
    dataset.set_epoch(1)
    assert [row["prompt"] for row in dataset] != [row["prompt"] for row in one]
    plain = RecordStream((source,), buffer_size=0)
    expected = to_training_examples(load_records(["a.jsonl"] * 3))
    assert read(plain) == expected


def test_shares_are_probabilities(data):  # noqa: F811
    """One of four rows is of the first source; a short source begins again until all have ended."""
    write("long.jsonl", [{"prompt": f"l{n}", "completion": "c"} for n in range(3000)])
    entries = [{"path": "long.jsonl", "fraction": 3}, {"path": "b.jsonl", "fraction": 1}]
    rows = read(RecordStream(sources_of(entries), buffer_size=0))
    counts = Counter(row["prompt"][0] for row in rows)
    assert counts["l"] == 3000
    # 1000 expected; the standard deviation of the number until the 3000th is sqrt(3000 / 9) * 2.
    assert abs(counts["p"] - 1000) < 150
    assert len({row["prompt"] for row in rows}) == 3006


def test_only_the_first_rows(data):  # noqa: F811
    """``rows`` counts records with a target, over all files of a source."""
    write("e.jsonl", [{"prompt": "x", "completion": ""}] * 2 + [{"prompt": "y", "completion": "z"}])
    entries = [{"path": "json", "data_files": ["e.jsonl", "b.jsonl"], "rows": 3}]
    stream = RecordStream(sources_of([*entries, {"path": "a.jsonl", "rows": 2}]), buffer_size=0)
    assert [row["prompt"] for row in read(stream)][:3] == ["y", "p0", "p1"]
    assert len(read(stream)) == 5


def test_nothing_is_read_before_it_is_needed(data):  # noqa: F811
    """A broken line ends a stream where it stands, with file and line."""
    with open("a.jsonl", "a") as file:
        file.write("{broken\n")
    stream = RecordStream((file_source(["a.jsonl"]),), buffer_size=0)
    assert len(read(stream, 10)) == 10
    with pytest.raises(ValueError, match=r"^a.jsonl:11: broken JSON"):
        read(stream)
    write("k.jsonl", [{"text": "t"}, {"prompt": "p", "completion": "c"}])
    with pytest.raises(
        ValueError, match=r"^k.jsonl:2: a 'prompt' record, but the first of k.jsonl"
    ):
        read(RecordStream((file_source(["k.jsonl"]),)))


def test_a_line_is_read_at_a_time(tmp_path):
    """Of a file that another program is still writing, the first lines are there."""
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a"}\n' * 3 + "{")
    assert [where for where, _ in islice(rows_of(file), 3)] == [f"{file}:{n}" for n in (1, 2, 3)]


def test_records_without_a_target_are_said(data, caplog):  # noqa: F811
    """Once a source, with the first."""
    write("e.jsonl", [{"text": "a"}, {"text": " "}, {"text": ""}])
    with caplog.at_level(logging.WARNING):
        assert len(read(RecordStream((file_source(["e.jsonl"]),)))) == 1
    assert caplog.messages == [
        "leaving out records of e.jsonl without a target; the first is e.jsonl:2"
    ]
    write("e.jsonl", [{"text": ""}])
    with pytest.raises(ValueError, match=r"e.jsonl holds no record with a target"):
        RecordStream((file_source(["e.jsonl"]),))


def test_the_fingerprint_is_of_contents(data):  # noqa: F811
    """Not of places; of another byte, share or number of rows."""

    def of(**entry):
        return RecordStream(sources_of([entry])).fingerprint()

    first = of(path="a.jsonl")
    (data / "moved").mkdir()
    (data / "moved/d.jsonl").write_bytes((data / "a.jsonl").read_bytes())
    assert of(path="moved/d.jsonl") == first == of(path="a.jsonl")
    assert len({first, of(path="a.jsonl", rows=2), of(path="a.jsonl", fraction=2)}) == 3
    text = (data / "a.jsonl").read_text()
    (data / "a.jsonl").write_text(text.replace("i9", "j9"))
    assert of(path="a.jsonl") != first


def test_parts_of_a_split_are_not_streamed(data):  # noqa: F811
    """One line, with the splits there are."""
    with pytest.raises(ValueError, match=r"cannot stream split 'train\[:1\]' of 'set': it has tr"):
        RecordStream((Source("set", split="train[:1]"),))
