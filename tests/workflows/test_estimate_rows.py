"""Rows by hand: lengths, batches, and what is not known."""

import json

import pytest
import toys

from distilllens.data import streams
from distilllens.data.sources import Source
from distilllens.workflows.estimate_rows import Rows, rows_of, unknown_rows

ROWS = Rows(4, ((10, 4), (20, 10), (30, 15), (20, 11)), whole=True)


def test_lengths_are_those_of_the_tokenizer():
    """A word is a token of the toy; the prompt has no target, and an end of sequence follows."""
    examples = [
        {"prompt": "the cat", "completion": " sat"},
        {"prompt": "the", "completion": " dog ran on"},
        {"prompt": "the cat", "completion": " sat"},
    ]
    found = rows_of(examples, toys.tokenizer(), 64)
    assert found.sample == ((4, 2), (5, 4), (4, 2))
    assert (found.num, found.whole, found.unique) == (3, True, pytest.approx(2 / 3))
    assert rows_of(examples, toys.tokenizer(), 3).sample == ((3, 1), (3, 2), (3, 1))


def test_a_batch_is_padded_to_its_longest_row():
    """A batch of one row is its length; larger ones tend to the longest."""
    alone, many = ROWS.batch(1, 64), ROWS.batch(64, 64)
    assert alone.length == pytest.approx(20, abs=1.5) and alone.longest == 30
    assert (many.rows, many.length, many.longest) == (64, 30, 30)
    assert many.targets == pytest.approx(640, rel=0.05)


def test_packs_are_full():
    """Rows of a pack fill its length; without padding the batch is one row of them all."""
    packed = ROWS.batch(2, 64, packing=True)
    assert (packed.rows, packed.length, packed.longest) == (1, 128, 128)
    assert packed.targets == pytest.approx(128 * 40 / 80)
    free = ROWS.batch(8, 64, free=True)
    assert free.rows == 1 and free.length == pytest.approx(160, rel=0.1)


def test_unknown_rows_are_as_long_as_they_may_be():
    """Every token but the first is a target."""
    rows = unknown_rows(128)
    assert rows.num is None and rows.sample == ((128, 127),)


@pytest.mark.parametrize("shares", [None, (0.75, 0.25)])
def test_few_rows_of_a_stream_are_read(tmp_path, monkeypatch, shares):
    """64 and the first of each source, not a buffer of 1,000; each source has its part."""
    for name, prompt in (("a", "the"), ("b", "the cat sat")):
        row = json.dumps({"prompt": prompt, "completion": " dog"})
        (tmp_path / f"{name}.jsonl").write_text(f"{row}\n" * 500)
    files = [str(tmp_path / f"{name}.jsonl") for name in "ab"]
    sources = [
        Source(file, files=(file,), fraction=shares and shares[n]) for n, file in enumerate(files)
    ]
    read, original = [], streams.read_record

    def counted(*args, **kwargs):
        read.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(streams, "read_record", counted)
    found = rows_of(streams.RecordStream(tuple(sources)), toys.tokenizer(), 64)
    assert found.num is None and len(found.sample) == 64 and len(read) <= 64 + 2 + 2
    part = sum(tokens == 3 for tokens, _ in found.sample) / 64
    assert part == pytest.approx(0.5 if shares is None else 0.75, abs=0 if shares is None else 0.15)


def test_a_few_long_rows_are_no_mean():
    """Of 2,000 rows eight are long: they are the longest, and count for what they are."""
    examples = [{"prompt": "the", "completion": " cat"} for _ in range(2000)]
    for at in range(100, 900, 100):
        examples[at + 1] = {"prompt": "the", "completion": " cat" * 50}
    found = rows_of(examples, toys.tokenizer(), None)
    true = (1992 * 3 + 8 * 52) / 2000
    assert found.tokens == pytest.approx(true, rel=0.1)
    batch = found.batch(16, 1024)
    assert batch.length == pytest.approx(3, abs=3) and batch.longest == 52
    assert found.batch(1, 1024).targets == pytest.approx(2, rel=0.1)
