"""Answers scored during training."""

import json

import pytest
import toys
from data import tool_records

from distilllens.cli import main
from distilllens.evaluate import tasks
from distilllens.evaluate.answer_scorer import AnswerScorer
from distilllens.generate.transformers_backend import Generation, TransformersBackend

RECORDS = [
    {"instruction": e["prompt"], "output": [e["completion"].strip(), "the cat"]}
    for e in toys.examples(7)
]


def scorer(**settings):
    """A scorer of short answers."""
    return AnswerScorer(max_new_tokens=6, batch_size=2, **settings)


def test_it_scores_what_an_evaluation_scores(tmp_path, monkeypatch):
    """With seed 10 the mean equals that of ``distilllens evaluate``."""
    monkeypatch.chdir(tmp_path)
    toys.llama().save_pretrained("student")
    toys.tokenizer().save_pretrained("student")
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(r) + "\n" for r in RECORDS))
    flags = ["--seeds", "10", "--max_new_tokens", "6", "--output", "results"]
    assert main(["evaluate", "--model", "student", "--benchmark", "dev.jsonl", *flags]) == 0
    scores = json.loads((tmp_path / "results" / "scores.json").read_text())["scores"]
    found = scorer()(RECORDS, toys.llama(), toys.tokenizer())
    for metric in ("rouge_l", "exact_match"):
        total, count = found[metric]
        assert count == 7
        assert total / count == pytest.approx(scores[metric]["dev"]["student"]["mean"])
    assert found["rouge_l"][0] > 0


def test_shares_add_up():
    """The shares of three processes add up; a limit takes the first records."""
    model, tokenizer = toys.llama(), toys.tokenizer()
    whole = scorer()(RECORDS, model, tokenizer)["rouge_l"]
    parts = [scorer()(RECORDS, model, tokenizer, (rank, 3))["rouge_l"] for rank in range(3)]
    assert sum(total for total, _ in parts) == pytest.approx(whole[0])
    assert [count for _, count in parts] == [3, 2, 2]
    assert scorer(limit=3)(RECORDS, model, tokenizer)["rouge_l"][1] == 3


def test_prompts_are_checked_before_training():
    """A prompt that leaves no room for an answer, and records without a reference."""
    config = toys.llama(positions=16).config
    with pytest.raises(ValueError, match="evaluation data example 0: the prompt has"):
        scorer().check(RECORDS, toys.tokenizer(), config)
    with pytest.raises(ValueError, match="evaluation data example 0: a 'text' record has no ref"):
        scorer().check([{"text": "the cat"}], toys.tokenizer(), toys.llama().config)
    scorer().check(RECORDS, toys.tokenizer(), toys.llama().config)


def test_prompts_are_encoded_once(monkeypatch):
    """The check encodes for all later evaluations, unless records or tokenizer change."""
    model, tokenizer, scored, encoded = toys.llama(), toys.tokenizer(), scorer(), []
    encode = tasks.encode_prompts

    def counted(tokenizer, prompts, *more):
        encoded.append(len(prompts))
        return encode(tokenizer, prompts, *more)

    monkeypatch.setattr(tasks, "encode_prompts", counted)
    scored.check(RECORDS, tokenizer, model.config)
    first = scored(RECORDS, model, tokenizer)
    assert scored(RECORDS, model, tokenizer) == first and encoded == [7]
    assert scored(RECORDS[:3], model, tokenizer) != first and encoded == [7, 3]
    tokenizer.chat_template = "another"
    assert scored(RECORDS, model, tokenizer) == first and encoded == [7, 3, 7]
    tokenizer.add_tokens("hello")
    scored(RECORDS, model, tokenizer)
    assert encoded == [7, 3, 7, 7]


def test_tools_and_template_settings_are_in_the_prompts(monkeypatch):
    """The model's input starts with what the template writes for them."""
    model, tokenizer, read = toys.llama(), tool_records.tokenizer(), []
    generate = TransformersBackend.generate

    def watched(self, prompt_ids, *, seed):
        read.extend(tokenizer.batch_decode(prompt_ids))
        return generate(self, prompt_ids, seed=seed)

    monkeypatch.setattr(TransformersBackend, "generate", watched)
    scorer()(tool_records.messages(), model, tokenizer)
    assert len(read) == 4
    for written in tool_records.WRITTEN:
        assert any(text.startswith(f"{written} user".strip()) for text in read)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temprature": 1.0}, "no 'temprature'; did you mean temperature"),
        ({"seed": -1}, "seed must be a whole number from 0, got -1"),
        ({"limit": 0}, "limit must be a whole number from 1, got 0"),
        ({"limit": True}, "limit must be a whole number from 1, got True"),
        ({"batch_size": 2.0}, "batch_size must be a whole number from 1, got 2.0"),
        ({"top_p": 0}, "top_p must be above 0"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    """The message has the remedy."""
    with pytest.raises(ValueError, match=message):
        AnswerScorer(**settings)


def test_chinese_answers_are_told_apart(monkeypatch):
    """A right answer scores 100, a wrong one 0: the checkpoint that gives it is the better one."""
    records = [{"prompt": "the cat", "completion": "今天天气很好。"}]
    tokenizer = toys.tokenizer()
    for answer, expected in (("今天天气很好。", 100.0), ("再见", 0.0)):

        def said(self, prompt_ids, *, seed, answer=answer):
            return [Generation(answer, 3, True, 0) for _ in prompt_ids]

        monkeypatch.setattr(TransformersBackend, "generate", said)
        found = scorer()(records, toys.llama(), tokenizer)
        assert found == {"rouge_l": (expected, 1), "exact_match": (expected, 1)}


def test_chat_asks_with_the_chat_template():
    """Five tokens, for which a model of 16 positions has room; Alpaca's prompt has more."""
    records = [{"instruction": "the cat", "output": "sat"}]
    config, scorer = toys.llama(positions=16).config, AnswerScorer(max_new_tokens=4)
    scorer.check(records, tool_records.tokenizer(), config, chat=True)
    with pytest.raises(ValueError, match="evaluation data example 0"):
        scorer.check(records, tool_records.tokenizer(), config)
