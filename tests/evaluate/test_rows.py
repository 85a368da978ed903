"""Rows of results are joined by example, and damaged ones are named by file and line."""

import json
import math

import pytest

from distilllens.evaluate.rows import read_answers, read_parts, read_references
from distilllens.stored import DamagedFile


def answer(example, **more):
    """A finished answer."""
    row = {"example": example, "seed": 10, "answer": "京", "num_tokens": 2, "finished": True}
    return row | {"near_ties": 0, "rouge_l": 50.0, "exact_match": 0.0} | more


def reference(example, **more):
    """The likelihood of a reference."""
    return {"example": example, "nll": 4.0, "num_tokens": 2, "kl": 0.5} | more


def written(folder, rows):
    """A file of those rows."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def without(row, name):
    """The row without an entry."""
    return {key: value for key, value in row.items() if key != name}


def test_reordered_rows_are_the_same_rows(tmp_path):
    """Whatever the order of the lines."""
    rows = [answer(n, rouge_l=float(n)) for n in range(5)]
    path = written(tmp_path, rows[::-1])
    assert read_answers(path, 10) == read_answers(path, 10, range(5)) == rows
    rows = [reference(n, nll=float(n)) for n in range(5)]
    assert read_references(written(tmp_path, rows[::-1])) == rows


BAD_ANSWERS = {
    "above 100 %": (answer(1, rouge_l=1e9), "rouge_l is 1e+09; it must be from 0 to 100"),
    "below 0": (answer(1, exact_match=-1), "exact_match is -1; it must be from 0 to 100"),
    "no cosine": (answer(1, sbert=1.5), "sbert is 1.5; it must be from -1 to 1"),
    "another scale": (answer(1, judge=0.5), "judge is 0.5; it must be from 1 to 10"),
    "a reference's": (answer(1, judge_reference=11), "judge_reference is 11; it must be from 1"),
    "wins": (answer(1, judge_win=101), "judge_win is 101; it must be from 0 to 100"),
    "tokens": (answer(1, num_tokens=-1), "num_tokens is -1; it must be at least 0"),
    "ties": (answer(1, near_ties=-1), "near_ties is -1; it must be at least 0"),
    "a text": (answer(1, rouge_l="50"), "the entry 'rouge_l' is \"50\"; it must be a finite"),
    "not a number": (
        answer(1, rouge_l=math.nan),
        "the entry 'rouge_l' is NaN; it must be a finite",
    ),
    "no answer": (answer(1, answer=None), "the entry 'answer' is null; it must be text"),
    "an entry less": (without(answer(1), "near_ties"), "the entry 'near_ties' is missing"),
    "no example": (answer("one"), "the entry 'example' is \"one\"; it must be a whole number"),
    "a list": ([1], "the content is [1]; it must be an object"),
    "another seed": (answer(1, seed=20), "the answer is of seed 20, the file of seed 10"),
    "twice": (answer(0), "example 0 is there already, on line 1"),
    "unknown": (answer(7), "example 7 is none of the 2 of this evaluation"),
}


@pytest.mark.parametrize("case", BAD_ANSWERS)
def test_a_bad_answer_is_named(tmp_path, case):
    """File, line, entry, value and what would be right."""
    row, message = BAD_ANSWERS[case]
    path = written(tmp_path, [answer(0), row])
    with pytest.raises(DamagedFile) as refused:
        read_answers(path, 10, range(2))
    assert str(refused.value).startswith(f"{path}:2: {message}")


BAD_REFERENCES = {
    "negative": (reference(1, nll=-1.0), "nll is -1; it must be at least -0.001"),
    "not a number": (reference(1, nll=math.nan), "nll is nan; it must be at least -0.001"),
    "null": (reference(1, nll=None), "nll is null; it must be a number"),
    "true": (reference(1, kl=True), "kl is True; it must be a number"),
    "a text": (reference(1, kl="1"), "kl is '1'; it must be a number"),
    "no tokens": (reference(1, num_tokens=0), "num_tokens is 0; it must be at least 1"),
    "twice": (reference(0), "example 0 is there already, on line 1"),
    "unknown": (reference(7), "example 7 is none of the 2 of this evaluation"),
}


@pytest.mark.parametrize("case", BAD_REFERENCES)
def test_a_bad_reference_is_named(tmp_path, case):
    """The same for the likelihoods."""
    row, message = BAD_REFERENCES[case]
    path = written(tmp_path, [reference(0), row])
    with pytest.raises(DamagedFile) as refused:
        read_references(path, range(2))
    assert str(refused.value).startswith(f"{path}:2: {message}")


def test_a_missing_example_is_named(tmp_path):
    """The first of them, and how many there are."""
    path = written(tmp_path, [answer(0), answer(2)])
    with pytest.raises(DamagedFile, match=r"rows\.jsonl: example 1 is missing \(2 of 4 are\)"):
        read_answers(path, 10, range(4))


def test_what_is_possible_is_read(tmp_path):
    """Infinite nats, a verdict that the judge did not give, a rounded divergence."""
    rows = [reference(0, nll=math.inf, kl=math.inf), reference(1, kl=None), reference(2, kl=-1e-9)]
    assert read_references(written(tmp_path, rows), range(3)) == rows
    rows = [answer(0, judge=None, judge_reference=None, judge_win=None)]
    assert read_answers(written(tmp_path, rows), 10) == rows


def test_a_part_loses_torn_lines_only(tmp_path):
    """A whole line that is no answer is damage, not an interruption."""
    path = written(tmp_path, [answer(0)])
    path.write_text(path.read_text() + '{"example": 1, "ans\n' + json.dumps(answer(2)))
    assert read_parts(path, 10) == {0: answer(0), 2: answer(2)}
    path.write_text(path.read_text() + "\n" + json.dumps(answer(3, rouge_l=101)))
    with pytest.raises(DamagedFile, match=r"rows\.jsonl:4: rouge_l is 101"):
        read_parts(path, 10)
