"""``evaluate``: what ``distilllens evaluate`` does, called from Python."""

import json

import pytest
from evaluate.judge.judge_stub import MODEL, served

from distilllens.generate.decoding import Decoding
from distilllens.workflows.evaluate import Plan, evaluate

WHAT = {"models": ("student",), "benchmarks": ("train.jsonl",), "output": "results"}
SHORT = {"decoding": Decoding(max_new_tokens=4, greedy=True), "limit": 2}


def test_a_judge_by_name(workshop, monkeypatch):
    """Its scores are in the table and its replies in the folder."""
    pytest.importorskip("openai")
    monkeypatch.setenv("JUDGE_KEY", "sk-1")
    with served() as (_, url):
        evaluate(Plan(**WHAT, **SHORT, judge=MODEL, judge_url=url, judge_key="JUDGE_KEY"))
    scores = json.loads((workshop / "results" / "scores.json").read_text())["scores"]
    assert {"rouge_l", "judge"} <= scores.keys()
    assert (workshop / "results" / "judge.jsonl").exists()


@pytest.mark.parametrize("field", ["judge_url", "judge_budget"])
def test_a_field_of_a_judge_needs_one(workshop, field):
    """It is named, and nothing is written."""
    with pytest.raises(ValueError, match=f"--{field} goes with --judge MODEL"):
        evaluate(Plan(**WHAT, **SHORT, **{field: 1}))
    assert not (workshop / "results").exists()
