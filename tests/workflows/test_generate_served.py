"""``distilllens generate --server`` against a server written by hand."""

import hashlib
import json
import time
from pathlib import Path

import pytest
import toys
from evaluate.judge.judge_stub import chat, served

from distilllens.cli import main
from distilllens.data import format_prompt, load_records
from distilllens.workflows import generate_served

KEY = "sk-a-secret-of-many-letters"


@pytest.fixture
def shop(workshop, monkeypatch):
    """The workshop, with a key in the environment and no patience."""
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(generate_served, "_RETRIES", 0)
    return workshop


def answer(body):
    """What the stub says: a word that depends on the question and the seed."""
    asked = body["prompt"] if "prompt" in body else body["messages"]
    return hashlib.sha256(repr((asked, body.get("seed"))).encode()).hexdigest()[:6]


def completed(body, **changes):
    """A reply as OpenAI documents it, to a text or to messages."""
    if "messages" in body:
        return chat(answer(body), **changes)
    choice = {"index": 0, "finish_reason": "stop", "logprobs": None, "text": answer(body)}
    usage = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
    found = {"id": "x", "object": "text_completion", "created": 0, "model": "m", "usage": usage}
    return found | {"choices": [choice | changes]}


def generate(url, *flags, data="train.jsonl", output="answers.jsonl"):
    """The exit status of the command."""
    words = ["--model", "m", "--data", data, "--output", output, *flags]
    return main(["generate", "--server", url, *words])


def rows_of(path="answers.jsonl"):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_texts_are_completed(shop, capsys):
    """Each prompt and seed once, with its own seed; the answer takes the place of the output."""
    with served(lambda number, body: completed(body)) as (stub, url):
        status = generate(url, "--seeds", "1,2", "--max_new_tokens", "7", "--temperature", "0.5")
    assert status == 0
    records = load_records("train.jsonl")
    asked = [body for body in stub.requests if body["prompt"] != "Ready"]
    assert {body["prompt"] for body in asked} == {format_prompt(record) for record in records}
    assert len({body["seed"] for body in asked}) == len(asked) == 2 * len(records)
    assert all(0 <= body["seed"] < 2**31 for body in asked)
    for body in asked:
        assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 7, 0.5)
    said = {answer(body) for body in asked}
    assert {row["output"] for row in rows_of()} == said
    assert [row["instruction"] for row in rows_of()][::2] == [r["instruction"] for r in records]
    assert f"{2 * len(records)} rows of {2 * len(records)} answers" in capsys.readouterr().err


def test_messages_are_chatted(shop):
    """Of records, and of instructions by --chat; tools and template settings are sent along."""
    tools = [{"type": "function", "function": {"name": "f"}}]
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "old"}]
    row = {"messages": turns, "tools": tools, "chat_template_kwargs": {"enable_thinking": False}}
    Path("chats.jsonl").write_text(json.dumps(row) + "\n")
    with served(lambda number, body: completed(body)) as (stub, url):
        assert generate(url, "--greedy", data="chats.jsonl", output="chats-out.jsonl") == 0
        assert generate(url, "--greedy", "--chat", "--limit", "1") == 0
    body = stub.requests[1]
    assert body["messages"] == turns[:1] and body["tools"] == tools
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert body["temperature"] == 0 and "seed" not in body
    assert rows_of("chats-out.jsonl")[0]["messages"] == [
        turns[0], {"role": "assistant", "content": answer(body)}
    ]  # fmt: skip
    first = load_records("train.jsonl")[0]["instruction"]
    assert stub.requests[-1]["messages"] == [{"role": "user", "content": first}]


@pytest.mark.parametrize("size", [1, 4])
def test_so_many_requests_at_a_time(shop, size):
    """--batch_size of them, whose order does not matter."""

    def slow(number, body):
        time.sleep(0.05 if number % 2 else 0.1)
        return completed(body)

    with served(slow) as (stub, url):
        assert generate(url, "--batch_size", str(size)) == 0
    assert stub.most_busy == size
    asked = {body["prompt"]: answer(body) for body in stub.requests}
    expected = [asked[format_prompt(record)] for record in load_records("train.jsonl")]
    assert [row["output"] for row in rows_of()] == expected


def test_a_server_that_goes_away(shop, capsys):
    """One line; the same command goes on with what is missing, and ends at the same bytes."""
    with served(lambda number, body: completed(body)) as (_, url):
        assert generate(url, output="whole.jsonl") == 0

    def failing(number, body):
        return completed(body) if number < 4 else (500, {}, {"message": "down"})

    with served(failing) as (_, url):
        assert generate(url, "--batch_size", "1") == 2
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert (
        "fails for model 'm', asked once (500): down; 3 answers are in answers.jsonl.part" in last
    )
    assert not Path("answers.jsonl").exists()
    with served(lambda number, body: completed(body)) as (stub, url):
        assert generate(url) == 0
        assert len(stub.requests) == 1 + 8 - 3
        assert generate(url) == 0  # nothing to do
        assert len(stub.requests) == 1 + 8 - 3
    assert Path("answers.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()


def test_answers_that_were_cut_and_prompts_that_are_refused(shop, capsys):
    """Both are left out and counted; a refusal is named with its place."""

    def behave(number, body):
        if number == 2:
            return 400, {}, {"message": "the prompt is too long"}
        return completed(body, finish_reason="length" if number == 3 else "stop")

    with served(behave) as (_, url):
        assert generate(url, "--batch_size", "1") == 0
    said = capsys.readouterr().err
    assert "train.jsonl:2 is not answered: the server" in said and "prompt is too long" in said
    assert "left out: 1 answer that did not end within" in said
    assert "left out: 1 empty answer" in said
    assert len(rows_of()) == 6


def test_the_key_is_sent_and_written_nowhere(shop, capsys):
    """It comes from the variable that is named; a refusal names the variable."""

    def behave(number, body):
        return completed(body) if number < 3 else (401, {}, {"message": f"bad key {KEY}"})

    with served(behave) as (stub, url):
        flags = ["--server_key", "MY_KEY", "--batch_size", "1"]
        assert generate(url, *flags) == 2
        said = capsys.readouterr().err
    assert stub.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert "refuses the key in the environment variable MY_KEY (401)" in said and KEY not in said
    for file in shop.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--server", "localhost:8000"], "--server 'localhost:8000' is no address such as http"),
        (["--server", "http://u:p@host/v1"], "--server holds a password"),
        (["--server", "http://h/v1", "--backend", "vllm"], "--backend is for a model that runs"),
        (
            ["--server", "http://h/v1", "--dtype", "float32"],
            "--dtype is for a model that runs here",
        ),
        (["--server", "http://h/v1", "--max_prompt_length", "9"], "--max_prompt_length is for a m"),
        (["--server_key", "MY_KEY"], "--server_key belongs to --server, and none is named"),
        (
            ["--server", "http://h/v1", "--server_key", "NO_SUCH_KEY"],
            "--server_key: the environment variable NO_SUCH_KEY holds no key; set it",
        ),
    ],
)
def test_flags_that_a_server_does_not_heed(shop, capsys, flags, message):
    """One line each, before anything is asked."""
    words = ["--model", "m", "--data", "train.jsonl", "--output", "answers.jsonl"]
    assert main(["generate", *words, *flags]) == 2
    assert message in capsys.readouterr().err


def test_trained_on_what_a_server_said(shop):
    """The file is training data of a student."""
    with served(lambda number, body: completed(body)) as (_, url):
        assert generate(url) == 0
    toys.recipe(
        shop, train_file="answers.jsonl", teacher_model_name_or_path=None,
        cross_entropy_weight=1.0, max_steps=1,
    )  # fmt: skip
    assert main(["train", "--config", "recipe.yaml"]) == 0
