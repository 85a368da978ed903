"""``compare_results``: what ``distilllens compare`` does, called from Python."""

import json

import pytest

from distilllens.generate.decoding import Decoding
from distilllens.workflows.compare import compare_results
from distilllens.workflows.evaluate import Plan, evaluate


@pytest.fixture
def results(workshop):
    """The results of student and teacher, a folder each."""
    for name in ("student", "teacher"):
        decoding = Decoding(max_new_tokens=4, greedy=True)
        evaluate(Plan((name,), ("train.jsonl",), f"results/{name}", decoding=decoding))
    return ["results/student", "results/teacher"]


def test_results_side_by_side(results):
    """As Markdown of some metrics, or as JSON of all."""
    assert "| teacher - student |" in compare_results(results)
    assert "perplexity" not in compare_results(results, metrics=["rouge_l"])
    found = json.loads(compare_results(results, as_json=True))
    assert set(found["scores"]) >= {"rouge_l", "exact_match", "perplexity"}


def test_a_metric_that_was_not_measured(results):
    """It is named beside those that were."""
    with pytest.raises(ValueError, match="'bleu' is not in these results; they have rouge_l"):
        compare_results(results, metrics=["bleu"])
