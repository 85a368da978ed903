"""Answers that need no model."""

import pytest

from distilllens.evaluate.benchmarks import examples_of
from distilllens.evaluate.exact import exact_match
from distilllens.evaluate.rouge import rouge_l
from distilllens.evaluate.scores import Score
from distilllens.evaluate.trivial import best_trivial, trivial_scores, why_useless

RECORDS = [
    {"instruction": "Is it red?", "input": "the cat", "output": "no"},
    {"instruction": "Is it big?", "output": ["yes", "no"]},
    {"instruction": "Say the old cat sat", "output": "the old cat sat"},
    {"instruction": "Is it old?", "output": "yes"},
]


def test_three_answers_are_scored_by_hand():
    """ "no" and "yes" are references of two examples each: the first of them counts."""
    found = trivial_scores(examples_of(RECORDS, "test"))
    assert found["exact_match"] == {
        "an empty answer": 0.0,
        "the most frequent reference": 50.0,
        "the question repeated": 0.0,
    }
    assert found["rouge_l"]["an empty answer"] == 0.0
    assert found["rouge_l"]["the most frequent reference"] == 50.0
    # Four words of "Say the old cat sat" in order: precision 4/5, recall 1.
    assert found["rouge_l"]["the question repeated"] == pytest.approx(100 * (8 / 9) / 4)
    noted = {"trivial": {"test": found}}
    assert best_trivial(noted, "test", "exact_match") == ("the most frequent reference", 50.0)
    for settings in ({}, {"trivial": None}, {"trivial": {"other": found}}):
        assert best_trivial(settings, "test", "rouge_l") is None


def test_references_that_all_differ_are_no_answer():
    """One of them would only match itself; an example that names one twice accepts it once."""
    records = [{**RECORDS[0]}, {**RECORDS[2], "output": ["the old cat sat", "the old cat sat"]}]
    found = trivial_scores(examples_of(records, "test"))
    assert set(found["rouge_l"]) == {"an empty answer", "the question repeated"}


def test_they_are_the_metrics_of_the_answers():
    """The same functions score both."""
    (example,) = examples_of(RECORDS[2:3], "test")
    found = trivial_scores([example])
    for metric, function in (("rouge_l", rouge_l), ("exact_match", exact_match)):
        expected = function(example.question, example.references)
        assert found[metric]["the question repeated"] == expected


@pytest.mark.parametrize(
    ("metric", "mean", "trivial", "why"),
    [
        ("rouge_l", 5.0, 5.0, "Rouge-L does not beat a trivial answer (x: 5.00 %)"),
        ("rouge_l", 5.1, 5.0, None),
        ("rouge_l", 0.9, 0.0, "Rouge-L is near 0"),
        ("rouge_l", 1.0, None, None),
        ("exact_match", 55.0, 60.0, "exact match does not beat a trivial answer (x: 60.00 %)"),
        ("exact_match", 0.0, 0.0, None),  # free texts equal no reference: that is said elsewhere
        ("kl", 0.1, 60.0, None),
        ("sbert", 0.1, None, None),
    ],
)
def test_a_score_must_beat_them(metric, mean, trivial, why):
    """Only metrics of texts, which trivial answers have too."""
    found = Score(mean, None, None, (mean,), 1)
    assert why_useless(metric, found, None if trivial is None else ("x", trivial)) == why
