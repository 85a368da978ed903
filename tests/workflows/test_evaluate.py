"""``evaluate``: what ``distilllens evaluate`` does, called from Python."""

import dataclasses
import json

import pytest
import torch
from evaluate.judge.judge_stub import MODEL, served
from transformers import AutoModelForCausalLM, AutoTokenizer

from distilllens.data import format_prompt
from distilllens.evaluate.table import read_table
from distilllens.generate.decoding import Decoding
from distilllens.workflows.compare import compare_results
from distilllens.workflows.evaluate import Plan, evaluate, next_steps

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


ALONE = {**WHAT, "references_only": True, "teacher": "teacher"}


def test_references_alone_are_samples(workshop):
    """Sums over each reference's tokens, as float64 forwards of the models themselves give them."""
    evaluate(Plan(**ALONE))
    table = read_table("results")
    found = table.samples["train"]["student"]
    assert found.keys() == {"perplexity", "log_perplexity", "kl"}
    assert table.answers == {"train": {"student": {}}} and table.settings["seeds"] == []
    tokenizer = AutoTokenizer.from_pretrained("student")
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(name, dtype=torch.float64).eval()
        for name in ("student", "teacher")
    )
    lines = (workshop / "train.jsonl").read_text().splitlines()
    sure, right = [], []
    for number, row in enumerate(map(json.loads, lines)):
        prompt = tokenizer(format_prompt(row))["input_ids"]
        ids = torch.tensor([tokenizer(format_prompt(row) + row["output"] + "<eos>")["input_ids"]])
        with torch.no_grad():
            q, p = (
                m(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1) for m in (student, teacher)
            )
        target = ids[0, len(prompt) :]
        nll = -q.gather(-1, target[:, None]).sum()
        kl = (p.exp() * (p - q)).sum()
        for metric, nats in (("log_perplexity", nll), ("perplexity", nll), ("kl", kl)):
            assert found[metric].examples[number] == number
            assert found[metric].counts[number, 0] == len(target)
            assert found[metric].totals[number, 0] == pytest.approx(float(nats), rel=1e-5)
        sure += q.max(-1).values.exp().tolist()
        right += (q.argmax(-1) == target).tolist()
    bins = table.calibration["train"]["student"]
    assert sum(bins.count) == len(sure) and sum(bins.correct) == sum(right)
    assert sum(bins.confidence) == pytest.approx(sum(sure), rel=1e-5)
    assert table.teacher["train"]["perplexity"].totals.shape == (8, 1)


def test_a_text_without_a_prompt_has_a_likelihood(workshop):
    """It cannot be answered; its first token, which nothing predicts, does not count."""
    (workshop / "text.jsonl").write_text('{"prompt": "", "completion": "the cat sat"}\n')
    plan = Plan(("student",), ("text.jsonl",), "results", references_only=True)
    evaluate(plan)
    found = read_table("results").samples["text"]["student"]["log_perplexity"]
    ids = torch.tensor(
        [[*AutoTokenizer.from_pretrained("student")("the cat sat<eos>")["input_ids"]]]
    )
    model = AutoModelForCausalLM.from_pretrained("student").eval()
    expected = model(ids, labels=ids).loss.item()  # transformers' own mean over 3 tokens
    assert found.counts.tolist() == [[3]]
    assert found.totals[0, 0] == pytest.approx(3 * expected, rel=1e-5)
    with pytest.raises(ValueError, match="the prompt has no tokens"):
        evaluate(dataclasses.replace(plan, references_only=False, output="other", seeds=(1,)))


def test_a_plan_is_made_from_another(workshop):
    """Its seeds stay none; a field of answers is refused when the plan is made."""
    plan = dataclasses.replace(Plan(**ALONE), output="others", limit=2)
    assert plan.seeds == ()
    evaluate(plan)
    assert (workshop / "others" / "train" / "student" / "references.jsonl").exists()
    short = Decoding(max_new_tokens=4, greedy=True)
    for field, value, named in (
        ("decoding", short, "--greedy, --max_new_tokens"),
        ("seeds", (1,), "--seeds"),
        ("batch_size", 8, "--batch_size"),
        ("judge", MODEL, "--judge"),
        ("backend", "vllm", "--backend"),
    ):
        with pytest.raises(ValueError, match=f"no answers, so {named} would do nothing"):
            dataclasses.replace(plan, **{field: value})
    with pytest.raises(ValueError, match="so --judge would do nothing"):
        evaluate(Plan(**ALONE), judge=object())
    assert not (workshop / "results").exists()


def test_folders_with_and_without_answers_side_by_side(workshop):
    """What both have is compared, with a note; of two without, everything."""
    evaluate(Plan(**ALONE))
    evaluate(
        Plan(("teacher",), ("train.jsonl",), "second", references_only=True, teacher="teacher")
    )
    evaluate(Plan(("teacher",), ("train.jsonl",), "whole", decoding=SHORT["decoding"]))
    said = compare_results(["results", "second"])
    assert "| teacher - student " in said and "| calibration |" in said
    assert "| KL(teacher ‖ model) (nats per token) | train" in said
    for word in ("answers", "cut at", "Rouge", "differ", " - |"):
        assert word not in said
    said = compare_results(["results", "whole"])
    assert (
        "results holds no answers (--references_only): only what is measured on the references is "
        "compared." in said
    )
    for word in ("differ in decoding", "differ in seeds", "differ in backend"):
        assert word not in said
    found = json.loads(compare_results(["results", "whole"], as_json=True))
    assert {c["metric"] for c in found["comparisons"]} == {"perplexity", "log_perplexity"}
    assert found["scores"]["rouge_l"]["train"].keys() == {"teacher"}
    with pytest.raises(ValueError, match=r"'rouge_l' is not in these results; they have perpl"):
        compare_results(["results", "second"], metrics=["rouge_l"])


def test_what_comes_next_after_references_alone():
    """The rows are likelihoods; a teacher can be added."""
    plan = Plan(("student",), ("train.jsonl",), "results", references_only=True)
    said = next_steps(plan)
    assert "every reference: results/BENCHMARK/MODEL/references.jsonl" in said
    assert "the same command with --teacher DIR" in said and "answer" not in said
