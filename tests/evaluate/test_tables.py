"""Scores side by side."""

import json

import numpy as np
import pytest
import torch

from distilllens.evaluate.board import board
from distilllens.evaluate.calibration import Calibration
from distilllens.evaluate.scores import Samples
from distilllens.evaluate.table import ResultTable
from distilllens.evaluate.tables import as_json, as_markdown

# Sure of 0.95 ten times, right eight times.
BINS = Calibration().add(torch.full((10,), 0.95), torch.arange(10) < 8)


def samples(values, first=0):
    """One seed, one value an example."""
    values = np.array(values, dtype=float)[:, None]
    return Samples(np.arange(first, first + len(values)), values, np.ones_like(values))


def table(folder, models, *, sha="aa", more=(), **settings):
    """A folder with the Rouge-L of models on "test", and on whatever benchmarks are added."""
    names = ("test", *more)
    found = {name: {m: {"rouge_l": samples(v)} for m, v in models.items()} for name in names}
    about = {"mean_tokens": 3.0, "finished": 0.5, "near_ties": 2}
    return ResultTable(
        folder,
        {
            "models": dict.fromkeys(models),
            "benchmarks": {name: {"sha256": sha} for name in names},
            "decoding": {"temperature": 1.0},
            "seeds": [10],
            "chat": False,
            **dict.fromkeys(("limit", "max_prompt_length", "dtype", "backend", *MODELS)),
            **settings,
        },
        found,
        {name: dict.fromkeys(models, about) for name in names},
        {name: dict.fromkeys(models, BINS) for name in names},
    )


MODELS = ("teacher", "sbert", "judge")
GOOD, BAD = [30.0, 31.0, 29.0, 33.0] * 3, [10.0, 12.0, 9.0, 11.0] * 3


def test_the_table_says_who_is_better():
    """In Markdown and in JSON, the second model against the first."""
    found = board([table("r", {"kd": BAD, "lens": GOOD})])
    text = as_markdown(found)
    assert "| kd          | 10.50 ± 0.34 |" in text
    assert "| lens - kd   | +20.25 [" in text and "] better |" in text
    row = ("kd", "3.0", "50.0 %", "2", "0.1500", "0.1500", "0.0000")
    assert row in [tuple(map(str.strip, line.split("|")))[2:-1] for line in text.splitlines()]
    read = json.loads(json.dumps(as_json(found)))
    assert read["scores"]["rouge_l"]["test"]["lens"]["mean"] == 30.75
    (comparison,) = read["comparisons"]
    assert (comparison["first"], comparison["second"]) == ("lens", "kd")
    assert comparison["verdict"] == "better"


def test_several_benchmarks_have_an_average():
    """Of scores and of differences; one benchmark has none."""
    found = board([table("r", {"kd": BAD, "lens": GOOD}, more=("other",))])
    assert list(found.scores["rouge_l"]) == ["test", "other", "average"]
    pair = found.comparisons["rouge_l"]["lens", "kd"]
    assert pair["average"].difference == pytest.approx(20.25)
    widths = [pair[name].high - pair[name].low for name in ("test", "average")]
    assert widths[1] < widths[0]  # two independent benchmarks say more than one
    assert list(board([table("r", {"kd": BAD})]).scores["rouge_l"]) == ["test"]


def test_equal_names_of_two_folders_are_told_apart():
    """By the name of the folder."""
    found = board([table("a/one", {"kd": BAD}), table("a/two", {"kd": GOOD, "lens": GOOD})])
    assert found.models == ("one/kd", "two/kd", "lens")
    found = board([table("a/one", {"kd": BAD}), table("b/one", {"kd": GOOD})])
    assert found.models == ("a_one/kd", "b_one/kd")
    with pytest.raises(ValueError, match="one is named twice"):
        board([table("one", {"kd": BAD}), table("one", {"kd": BAD})])


def test_only_what_is_the_same_is_compared():
    """Another file of the same name is another benchmark; notes list the ones left out."""
    first = table("one", {"kd": BAD}, more=("other",))
    found = board([first, table("two", {"lens": GOOD})])
    assert list(found.scores["rouge_l"]) == ["test"]
    assert found.notes == ("other is left out: not every folder has it.",)
    with pytest.raises(ValueError, match="one, two share no benchmark: the first has test, other"):
        board([first, table("two", {"lens": GOOD}, sha="bb")])


def test_differences_of_decoding_are_told():
    """A note says that greedy is compared with sampled answers."""
    other = table("two", {"lens": GOOD}, decoding={"temperature": 0.5})
    found = board([table("one", {"kd": BAD}), other])
    assert found.notes[0].startswith("The folders differ in decoding (one: {'temperature': 1.0}; ")
    assert found.notes[0] in as_markdown(found)


def test_comparisons_are_on_the_examples_that_both_have():
    """A folder with a limit is compared on its own examples, and its scores are unchanged."""
    short = table("two", {"lens": GOOD})
    short.samples["test"]["lens"]["rouge_l"] = samples([50.0, 50.0], first=2)
    found = board([table("one", {"kd": BAD}), short])
    pair = found.comparisons["rouge_l"]["lens", "kd"]["test"]
    assert pair.difference == 40.0  # 50 - (9 + 11) / 2
    assert pair.verdict == "too few examples to tell"
    assert found.scores["rouge_l"]["test"]["kd"].num_examples == 12
    assert found.notes == ("lens - kd on test: on the 2 examples that both have.",)


def test_one_metric_can_be_asked_for():
    """Only the tables of the chosen metric are shown."""
    rows = table("r", {"kd": BAD})
    rows.samples["test"]["kd"]["exact_match"] = samples([0.0, 100.0, 0.0, 0.0])
    found = board([rows])
    assert "exact match" in as_markdown(found)
    assert "exact match" not in as_markdown(found, ["rouge_l"])


def tokens(counts):
    """Likelihoods of references of so many tokens."""
    counts = np.array(counts, dtype=float)[:, None]
    return Samples(np.arange(len(counts)), 2 * counts, counts)


def test_what_was_measured_differently_is_not_compared():
    """Perplexity on other tokens and KL to another teacher are shown but not compared."""
    one, two = (table(n, {m: GOOD}, teacher=n) for n, m in (("one", "kd"), ("two", "lens")))
    for found, counts in ((one, [3] * 12), (two, [4] * 12)):
        for row in found.samples["test"].values():
            row["perplexity"], row["kl"] = tokens(counts), tokens([5] * 12)
    both = board([one, two])
    assert set(both.scores) == {"rouge_l", "perplexity", "kl"}
    assert both.comparisons["perplexity"] == {} == both.comparisons["kl"]
    assert both.comparisons["rouge_l"]
    assert "The folders differ in the teacher: its metrics are not compared." in both.notes


def test_a_judge_is_compared_where_both_have_a_verdict():
    """A verdict that one model lacks is left out for the other too."""
    found = table("r", {"kd": BAD, "lens": GOOD})
    for model, values in (("kd", [1.0, 9.0] * 6), ("lens", [2.0, np.nan] * 6)):
        values = np.array(values)[:, None]
        there = np.isfinite(values)
        judged = Samples(np.arange(12), np.nan_to_num(values), there.astype(float))
        found.samples["test"][model]["judge"] = judged
    pair = board([found]).comparisons["judge"]["lens", "kd"]["test"]
    assert pair.difference == 1.0


def test_json_has_no_infinity():
    """Infinity and NaN become null."""
    found = table("r", {"kd": BAD})
    found.samples["test"]["kd"]["perplexity"] = Samples(
        np.arange(12), np.full((12, 1), np.inf), np.ones((12, 1))
    )
    with np.errstate(invalid="ignore"):
        text = json.dumps(as_json(board([found])), allow_nan=False)
    assert '"mean": null' in text
