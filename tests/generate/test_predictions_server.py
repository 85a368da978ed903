"""A server asked for the likely tokens in each place of a prompt."""

import time
from contextlib import nullcontext

import pytest
import torch
import toys
from generate.predictions_stub import MODEL, Stub, serving

from distilllens.generate import predictions_server
from distilllens.generate.predictions_server import PredictionsServer, check_reachable
from distilllens.generate.server import QuestionRefused, ServerFailed

IDS = [3, 4, 5, 6, 7]


def connected(stub, model=MODEL, **settings):
    settings = {"key_variable": "NO_KEY", "retries": 1, "timeout": 5.0, **settings}
    return PredictionsServer(stub.url, model, **settings)


@pytest.mark.parametrize("style", ["prompt_logprobs", "echo"])
def test_predictions_are_those_of_the_model(style):
    """Of each token but the first: the top, and the token itself, as the model's softmax has it."""
    model = toys.llama()
    with serving(Stub(model, toys.tokenizer(), style=style)) as stub, connected(stub) as server:
        found = server.settle(IDS, 3)
        assert server.predictions(IDS, 3) == found and len(found) == len(IDS) - 1
    with torch.no_grad():
        logs = model(torch.tensor([IDS])).logits[0].softmax(-1).log()
    for place, own, row in zip(found, IDS[1:], logs, strict=False):
        top = row.topk(3)
        assert {*top.indices.tolist(), own} == {*place}
        for token, log in place.items():
            assert log == pytest.approx(float(row[token]), abs=1e-5)
    if style == "prompt_logprobs":
        assert server.texts[own] == toys.tokenizer().decode([own])


REPLIES = {
    "no list": (500, {"error": {"message": "no"}}),
    "no json": (200, "<html>"),
    "no choices": (200, {"choices": []}),
    "no logprob": (200, {"choices": [{"text": "x", "prompt_logprobs": [None, *[{"3": {}}] * 4]}]}),
}


@pytest.mark.parametrize("name", REPLIES)
def test_a_reply_that_cannot_be_read_is_one_line(name):
    """After as many tries as for any reply."""
    with (
        serving(Stub(toys.llama(), fail=lambda number: REPLIES[name])) as stub,
        connected(stub) as server,
        pytest.raises(ServerFailed) as error,
    ):
        server.predictions(IDS[:6], 3)
    assert "\n" not in str(error.value) and len(stub.requests) in (2, 3)


@pytest.mark.parametrize("page", ["<html>", [1, 2]], ids=["a page", "a list"])
def test_a_list_of_models_that_is_none_is_one_line(page):
    """The address of a proxy, or of a server without its /v1."""
    stub = Stub(toys.llama())
    stub.listing = page
    with (
        serving(stub) as stub,
        connected(stub, model=None) as server,
        pytest.raises(ValueError, match=r"lists no models as an OpenAI-compatible server .*/v1"),
    ):
        server.settle(IDS, 3)


@pytest.mark.parametrize("model", [MODEL, None], ids=["named", "not named"])
def test_a_server_that_hangs_is_told_before_a_prompt_is_sent(model, monkeypatch):
    """A prompt may take minutes; a list of models does not."""
    monkeypatch.setattr(predictions_server, "_PATIENCE", 0.2)
    stub = Stub(toys.llama())
    stub.listing = stub.HANGS
    with (
        serving(stub) as stub,
        connected(stub, model=model, retries=0, timeout=60.0) as server,
        pytest.raises(ServerFailed, match="does not say which models it has"),
    ):
        server.settle(IDS, 3)
    assert stub.requests == []


def test_a_first_prompt_without_an_answer_is_not_asked_again(monkeypatch):
    """The server lists its models, and its model hangs: told after one patience, not after six."""
    monkeypatch.setattr(predictions_server, "_FIRST_PATIENCE", 0.2)
    stub = Stub(toys.llama(), fail=lambda number: time.sleep(1.0))
    with (
        serving(stub) as stub,
        connected(stub, retries=5, timeout=600.0) as server,
        pytest.raises(ServerFailed, match=r"not answered a first, short question in 0.2 s.*teach"),
    ):
        server.settle(IDS, 3)
    assert len(stub.requests) == 1


def test_a_first_prompt_is_asked_again_after_other_failures():
    """A server that is busy for a moment; afterwards its own timeout counts again."""
    busy = (503, {"error": {"message": "loading"}})
    stub = Stub(toys.llama(), fail=lambda number: busy if number == 0 else None)
    with serving(stub) as stub, connected(stub) as server:
        assert len(server.settle(IDS, 3)) == len(IDS) - 1
        assert server._client.timeout == 5.0 and server._last_try == float("inf")
    assert len(stub.requests) == 2


REACHED = {
    "named": (MODEL, [MODEL], None),
    "the only one": (None, [MODEL], None),
    "two": (None, ["a", "b"], "lists a, b; name the teacher by teacher_server_model"),
    "not listed": ("alias", [MODEL], None),
}


@pytest.mark.parametrize("name", REACHED)
def test_a_server_is_reached_without_a_prompt(name):
    """Before anything is loaded; a name that is not listed may be another's."""
    model, listed, match = REACHED[name]
    with serving(Stub(toys.llama())) as stub:
        stub.models = listed
        with pytest.raises(ValueError, match=match) if match else nullcontext():
            check_reachable(stub.url, model, key_variable="NO_KEY")
    assert stub.requests == []


@pytest.mark.parametrize("model", [MODEL, None], ids=["named", "not named"])
def test_nobody_at_the_address_is_one_line(model):
    """Whether the model is named or not."""
    with pytest.raises(ServerFailed, match=r"asked 2 times: .*refused") as error:
        check_reachable("http://127.0.0.1:9/v1", model, key_variable="NO_KEY")
    assert "\n" not in str(error.value)


def test_another_number_of_tokens_is_another_text():
    """A server that adds a token, a beginning of sequence, would shift all predictions."""
    stub = Stub(toys.llama())
    complete = stub._rows
    stub._rows = lambda ids, k: complete([0, *ids], k)
    with (
        serving(stub),
        connected(stub) as server,
        pytest.raises(QuestionRefused, match="read 6 tokens where 5 were sent"),
    ):
        server.settle(IDS, 3)


def test_a_server_without_echo_says_so_with_its_reason():
    """As ``transformers serve``, which refuses fields that it does not know."""
    refusal = (422, {"detail": "Unexpected fields in the request: {'prompt_logprobs'}"})
    with (
        serving(Stub(toys.llama(), fail=lambda number: refusal)) as stub,
        connected(stub) as server,
        pytest.raises(ValueError, match=r"returns no log-prob.*with echo; .*\(422\): Unexpected"),
    ):
        server.settle(IDS, 3)


def test_a_key_is_sent_and_never_shown(monkeypatch):
    """A refusal that quotes it."""
    monkeypatch.setenv("THE_KEY", "sk-very-secret-key")
    refusal = (400, {"error": {"message": "sk-very-secret-key may not ask"}})
    with (
        serving(Stub(toys.llama(), fail=lambda number: refusal)) as stub,
        connected(stub, key_variable="THE_KEY") as server,
        pytest.raises(QuestionRefused, match="<key> may not ask") as error,
    ):
        server.predictions(IDS, 3)
    assert "secret" not in str(error.value)
