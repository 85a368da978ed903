"""Training from a teacher at a server: with all tokens it is the teacher itself."""

import math

import pytest
import torch
import toys
from generate.predictions_stub import MODEL, Stub, serving

from distilllens.teacher import ServedTeacher

TOLERANCE = 1e-6  # of any weight after SGD steps of 0.1, as in test_invariance


def teacher(vocab=24):
    return toys.llama(4, 24, seed=1, vocab=vocab)


@pytest.fixture
def stub():
    with serving(Stub(teacher(), toys.tokenizer())) as found:
        yield found


def trainer(output, stub, **kwargs):
    """A trainer whose teacher is at a server."""
    settings = {"teacher_server": stub.url, "lens_weight": 0.0, "teacher_server_top_k": 24}
    return toys.trainer(output, teacher=None, **{**settings, **kwargs})


def trained(made):
    start = toys.weights(made.model)
    made.train()
    assert toys.drift(start, toys.weights(made.model)) > 1e-3, "the steps did nothing"
    return toys.weights(made.model), made.state.log_history


LOSSES = {
    "default": {},
    "forward KL": {"output_divergence": "forward_kl", "cross_entropy_weight": 0.5},
    "jsd": {"output_divergence": "jsd"},
    "on-policy": toys.FORMS["on-policy"],
    "half of the steps": {"on_policy_fraction": 0.5, "on_policy_max_new_tokens": 6},
}


@pytest.mark.parametrize("vocab", [22, 24, 26], ids="teacher of {} tokens".format)
@pytest.mark.parametrize("name", LOSSES)
def test_all_tokens_are_the_local_teacher(tmp_path, name, vocab):
    """With k = V: weights after three steps, losses, and those of an evaluation.

    The student has 24, of which its tokenizer knows 22.
    """
    if vocab > 22 and "on_policy_fraction" in LOSSES[name]:
        pytest.skip("a server is not asked for tokens that no tokenizer knows")
    settings = {**LOSSES[name], "eval_dataset": toys.dataset(3, seed=3)}
    local = toys.trainer(tmp_path / "b", teacher=teacher(vocab), **settings, lens_weight=0.0)
    with serving(Stub(teacher(vocab), toys.tokenizer())) as stub:
        served = trainer(tmp_path / "a", stub, **settings, teacher_server_top_k=26)
        (ours, log), (expected, expected_log) = trained(served), trained(local)
        log.append(served.evaluate())
        expected_log.append(local.evaluate())
    assert toys.drift(ours, expected) < TOLERANCE
    for a, b in zip(log, expected_log, strict=True):
        for key in (key for key in a if key in b and ("loss" in key or key == "entropy")):
            if key != "eval_loss" or "eval_lens_loss" not in b:
                assert math.isclose(a[key], b[key], rel_tol=1e-5), key
    tails = [row["teacher_tail"] for row in log if "teacher_tail" in row]
    assert len(tails) == 3 and max(tails) < 1e-4


def test_a_few_tokens_are_a_lower_bound(tmp_path, stub):
    """Reverse KL over four columns and the rest, from softmaxes in float64; the tail is logged."""
    made = trainer(tmp_path, stub, teacher_server_top_k=4, eval_dataset=toys.dataset(3, seed=3))
    found, words, student = made.evaluate(), toys.tokenizer(), toys.llama().double().eval()
    theirs = teacher().double().eval()
    nats, whole, tails = [], [], []
    for example in toys.examples(3, seed=3):
        prompt = words(example["prompt"])["input_ids"]
        ids = [*prompt, *words(example["completion"])["input_ids"], words.eos_token_id]
        with torch.no_grad():
            q, p = (m(torch.tensor([ids])).logits[0].softmax(-1) for m in (student, theirs))
        for at in range(len(prompt) - 1, len(ids) - 1):
            order = p[at].argsort(descending=True)
            qs, ps = q[at][order], p[at][order]
            whole.append(float((qs * (qs / ps).log()).sum()))
            qs, ps = (torch.cat([x[:4], x[4:].sum()[None]]) for x in (qs, ps))
            nats.append(float((qs * (qs / ps).log()).sum()))
            tails.append(float(ps[-1]))
    assert found["eval_output_loss"] == pytest.approx(sum(nats) / len(nats), rel=1e-5)
    assert found["eval_teacher_tail"] == pytest.approx(sum(tails) / len(tails), rel=1e-5)
    assert sum(nats) < sum(whole)
    assert "eval_lens_loss" not in found and found["eval_loss"] == found["eval_output_loss"]


@pytest.mark.parametrize("policy", [{}, toys.FORMS["on-policy"]], ids=["data", "on-policy"])
def test_a_step_does_not_depend_on_how_tokens_are_batched(tmp_path, stub, policy):
    """Accumulated, padding-free and packed batches ask for the same documents."""
    layouts = [{}, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}]
    if not policy:
        layouts += [{"padding_free": True, "max_length": None}]
        layouts += [{"packing": True, "max_length": 64, "per_device_train_batch_size": 1}]
    settings = {"data": toys.dataset(4), "max_steps": 1, "teacher_server_top_k": 3, **policy}
    (first, log), *others = (trained(trainer(tmp_path, stub, **settings, **e)) for e in layouts)
    for weights, other_log in others:
        assert toys.drift(first, weights) < TOLERANCE
        for key in ("loss", "output_loss", "teacher_tail"):
            assert math.isclose(log[0][key], other_log[0][key], rel_tol=1e-5), key


def test_a_resumed_run_is_the_run(tmp_path, stub):
    """Stopped behind the second of four steps and resumed: the same bits."""
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole, again = (trainer(tmp_path / name, stub, **settings) for name in ("whole", "again"))
    whole.train()
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert toys.drift(toys.weights(whole.model), toys.weights(again.model)) == 0


def test_a_server_that_fails_for_a_while_changes_nothing(tmp_path):
    """Errors of the server, and a body that is no JSON, are asked again."""
    failures = {2: (503, {"error": {"message": "busy"}}), 4: (200, "no json"), 7: (500, "{}")}
    with serving(Stub(teacher(), toys.tokenizer(), fail=failures.get)) as stub:
        ours, _ = trained(trainer(tmp_path / "a", stub))
    with serving(Stub(teacher(), toys.tokenizer())) as stub:
        expected, _ = trained(trainer(tmp_path / "b", stub))
    assert toys.drift(ours, expected) == 0


@pytest.mark.parametrize("style", ["echo", "prompt_logprobs"])
def test_both_ways_of_asking_are_one(tmp_path, stub, style):
    """vLLM's prompt_logprobs, and the completions API's echo with token ids."""
    with serving(Stub(teacher(), style=style)) as other:
        ours, _ = trained(trainer(tmp_path / "a", other, teacher_server_top_k=5))
    expected, _ = trained(trainer(tmp_path / "b", stub, teacher_server_top_k=5))
    assert toys.drift(ours, expected) == 0


SERVERS = {
    "name": ({}, {"teacher_server_model": "other"}, "knows no model 'other'.*it lists teacher"),
    "too many": ({"most": 5}, {}, r"max allowed: 5; .*24 log-.*\(teacher_server_top_k\)"),
    "chat only": ({"style": "none"}, {}, "returns no log-probabilities of the tokens of a prompt"),
    "texts": ({"style": "texts"}, {}, "names tokens by their texts"),
    "tokenizer": (
        {"tokenizer": toys.tokenizer(toys.WORDS[::-1])},
        {},
        r"another tokenizer than the student: token \d+ is '\w+' there, and '\w+'",
    ),
}


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_that_will_not_do_is_refused(tmp_path, name):
    """One line, before the first step."""
    settings, asked, match = SERVERS[name]
    with (
        serving(Stub(teacher(), **settings)) as stub,
        pytest.raises(ValueError, match=match) as error,
    ):
        trainer(tmp_path, stub, **asked)
    assert "\n" not in str(error.value)


def test_fewer_tokens_than_asked_for_are_refused(tmp_path, stub):
    """A server that lists five however many it is asked for."""
    complete = stub._rows
    stub._rows = lambda ids, k: [dict([*row.items()][:5]) for row in complete(ids, k)]
    with pytest.raises(ValueError, match=r"returned 5 of the 24 .* teacher_server_top_k: 5"):
        trainer(tmp_path, stub)


def test_one_model_needs_no_name(tmp_path, stub):
    """Of several at the server, one must be named."""
    made = trainer(tmp_path, stub)
    assert isinstance(made.teacher, ServedTeacher) and made.teacher.name.startswith(MODEL)
    stub.models.append("another")
    with pytest.raises(ValueError, match="lists teacher, another; name the teacher by teacher_ser"):
        trainer(tmp_path, stub)


def test_a_named_tokenizer_is_compared(tmp_path, stub):
    """That of the teacher, in a folder here, must be the student's."""
    toys.tokenizer(toys.WORDS[::-1]).save_pretrained(tmp_path / "words")
    with pytest.raises(ValueError, match="different tokenizers"):
        trainer(tmp_path, stub, teacher_tokenizer_name_or_path=str(tmp_path / "words"))


def test_no_server_is_one_line(tmp_path, stub, monkeypatch):
    """Nobody at the address."""
    monkeypatch.setattr("distilllens.train.server_teacher._RETRIES", 0)
    with pytest.raises(OSError, match="cannot be reached, asked once"):
        trainer(tmp_path, stub, teacher_server="http://127.0.0.1:9/v1")
