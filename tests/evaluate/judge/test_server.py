"""Requests to a judge's server, retries, and the errors for its failures."""

import logging
import sys
import threading
import time
import traceback

import pytest
from evaluate.judge.judge_stub import MODEL, chat, served

pytest.importorskip("openai", reason="the judge needs openai")

from distilllens.evaluate.judge.server import QuestionRefused, Server, ServerFailed

KEY = "sk-stub-0123456789abcdefghij"
VARIABLE = "JUDGE_TEST_KEY"
QUESTION = [{"role": "user", "content": "hello"}]
PARAMETERS = {"temperature": 0, "seed": 0, "max_tokens": 64}


def connected(url, **changes):
    """A Server with two retries and a timeout of five seconds."""
    settings = {"key_variable": VARIABLE, "parameters": PARAMETERS, "retries": 2, "timeout": 5.0}
    return Server(url, changes.pop("model", MODEL), **(settings | changes))


def first(*replies, then="fine"):
    """Behave in these ways, one request after another, and then well."""

    def behave(number, _):
        found = replies[number] if number < len(replies) else then
        if isinstance(found, type):
            raise found
        return found

    return behave


def fault_of(error):
    """The text of an error, which is one line and has no error behind it."""
    error = error.value
    assert "\n" not in str(error) and error.__cause__ is None and error.__context__ is None
    return str(error)


def test_what_is_sent(monkeypatch):
    """Model, messages and the three parameters, nothing else; the key in its header."""
    monkeypatch.setenv(VARIABLE, f" {KEY}\n")
    with served() as (stub, url), connected(url) as server:
        server.ask(QUESTION)
        assert stub.requests == [{"model": MODEL, "messages": QUESTION, **PARAMETERS}]
        assert stub.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_a_server_here_needs_no_key(monkeypatch):
    """Without the variable a stand-in is sent, and no other key of the environment."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with served() as (stub, url), connected(url) as server:
        server.ask(QUESTION)
        assert stub.headers[0]["Authorization"] == "Bearer no-key"
        assert KEY not in str(stub.headers)


def test_a_proxy_of_the_environment_is_passed_by(monkeypatch):
    """This machine's own servers are asked directly."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with served() as (_, url), connected(url, retries=0) as server:
        assert server.ask(QUESTION).text == "ready"


@pytest.mark.parametrize(
    ("body", "text", "cut"),
    [
        (chat("a", finish_reason="length"), "a", True),
        (chat("a", usage=None), "a", False),
        (chat(None, message={"role": "assistant", "content": None, "refusal": "no"}), "no", False),
        (chat(None), "", False),
    ],
    ids=["cut", "no usage", "refusal", "nothing"],
)
def test_replies(body, text, cut):
    """Text, whether it was cut, and tokens where the server counts them."""
    with served(first(body)) as (_, url), connected(url) as server:
        reply = server.ask(QUESTION)
    assert (reply.text, reply.cut) == (text, cut)
    counted = (100, 10) if body["usage"] else (0, 0)
    assert (reply.prompt_tokens, reply.completion_tokens) == counted
    assert (server.prompt_tokens, server.completion_tokens, server.num_calls) == (*counted, 1)


ERROR = {"error": {"message": "what is wrong"}}
SOON = {"Retry-After-Ms": "20"}  # or each of these tests would wait for half a second


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_what_passes_is_retried(status):
    """An overloaded server is asked again."""
    with served(first((status, SOON, ERROR))) as (stub, url), connected(url) as server:
        assert server.ask(QUESTION).text == "fine"
        assert len(stub.requests) == 2


def test_a_dropped_connection_is_retried():
    """So is a server that hangs up."""
    with served(first(ConnectionError)) as (stub, url), connected(url) as server:
        assert server.ask(QUESTION).text == "fine"
        assert len(stub.requests) == 2


def test_the_wait_that_the_server_names_is_kept():
    """Retry-After: 1 is a second at least, where the first wait would be half of one."""
    busy = (429, {"Retry-After": "1"}, ERROR)
    with served(first(busy)) as (stub, url), connected(url) as server:
        server.ask(QUESTION)
        assert stub.times[1] - stub.times[0] >= 1.0


def test_waits_grow():
    """The second is longer than the first: 0.5 s and 1 s, less at most a quarter."""
    failing = (500, {}, ERROR)
    with served(first(failing, failing)) as (stub, url), connected(url) as server:
        server.ask(QUESTION)
        once, twice = stub.times[1] - stub.times[0], stub.times[2] - stub.times[1]
        assert once >= 0.375 and twice >= 0.75


def test_a_server_that_stays_away():
    """Nobody listens: an OSError after the retries."""
    with served() as (_, url):
        pass
    with connected(url, retries=1) as server, pytest.raises(ServerFailed) as error:
        server.ask(QUESTION)
    assert f"{url} cannot be reached, asked 2 times: " in fault_of(error)


def test_a_server_that_says_nothing():
    """A timeout is retried, then an OSError."""
    with (
        served(first(TimeoutError, TimeoutError)) as (stub, url),
        connected(url, retries=1, timeout=0.2) as server,
        pytest.raises(ServerFailed) as error,
    ):
        server.ask(QUESTION)
    assert fault_of(error).endswith("sent nothing for 0.2 s, asked 2 times")
    assert len(stub.requests) == 2


def test_a_server_that_keeps_failing():
    """The error has the last status and its reason."""
    failing = first(then=(503, {}, ERROR))
    with (
        served(failing) as (_, url),
        connected(url, retries=0) as server,
        pytest.raises(ServerFailed) as error,
    ):
        server.ask(QUESTION)
    assert fault_of(error).endswith("fails for model 'stub', asked once (503): what is wrong")


PAGE = (200, {"Content-Type": "text/html"}, b"<html>welcome</html>")
GARBAGE = [b'{"choices": [{"mess', {"choices": []}, {"choices": 5}]


@pytest.mark.parametrize(
    "garbage", [PAGE, *((200, {}, body) for body in GARBAGE)], ids=lambda g: str(g[2])
)
def test_garbage_is_asked_again(garbage):
    """A body that is not a chat completion is retried."""
    with served(first(garbage)) as (stub, url), connected(url) as server:
        assert server.ask(QUESTION).text == "fine"
        assert len(stub.requests) == 2


def test_nothing_but_garbage():
    """Three bodies that are no chat completion are an OSError."""
    with (
        served(first(then=PAGE)) as (stub, url),
        connected(url) as server,
        pytest.raises(ServerFailed) as error,
    ):
        server.ask(QUESTION)
    assert "sends no chat completions; its address usually ends in /v1" in fault_of(error)
    assert len(stub.requests) == 3


@pytest.mark.parametrize(
    ("status", "body", "kind", "said"),
    [
        (401, ERROR, ValueError, r"refuses the key in the environment variable JUDGE_TEST_KEY"),
        (
            403,
            ERROR,
            ValueError,
            r"denies access to the key in JUDGE_TEST_KEY \(403\): what is wrong",
        ),
        (404, ERROR, ValueError, r"no model 'stub', .* /v1 \(404: what is wrong\); it lists stub$"),
        (400, ERROR, QuestionRefused, r"refuses the question \(400\): what is wrong$"),
        (422, {"detail": "odd"}, QuestionRefused, r"refuses the question \(422\): odd$"),
        (413, b"too\nlong" * 99, QuestionRefused, r"\(413\): too longtoo .*\.\.\.$"),
        (
            402,
            ERROR,
            ServerFailed,
            r"fails for model 'stub', asked 3 times \(402\): what is wrong$",
        ),
    ],
)
def test_what_stays_is_not_retried(monkeypatch, status, body, kind, said):
    """One request, one line that says what would be right."""
    monkeypatch.setenv(VARIABLE, KEY)
    with (
        served(first(then=(status, {}, body))) as (stub, url),
        connected(url) as server,
        pytest.raises(kind, match=said) as error,
    ):
        server.ask(QUESTION)
    assert len(stub.requests) == 1
    assert len(fault_of(error)) < 400


def test_a_key_that_is_not_there(monkeypatch):
    """OpenAI is not called without a key; another server decides whether it needs one."""
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(ValueError, match=f"environment variable {VARIABLE} holds no key, and http"):
        connected("https://api.openai.com/v1")
    with (
        served(first((401, {}, ERROR))) as (_, url),
        connected(url) as server,
        pytest.raises(ValueError, match=f"needs a key; set the environment variable {VARIABLE}"),
    ):
        server.ask(QUESTION)


@pytest.mark.parametrize("key", ["sk-one\nsk-two", "sk-é-0123456789", "sk 0123456789"])
def test_a_key_that_no_header_holds(monkeypatch, key):
    """It is refused before anything is sent, and not shown."""
    monkeypatch.setenv(VARIABLE, key)
    with pytest.raises(ValueError, match="white space or characters beyond ASCII") as error:
        connected("http://127.0.0.1:9/v1")
    assert key not in str(error.value)


def refusing(*names, wording):
    """A server that refuses one of these parameters at a time."""

    def behave(number, body):
        for name in names:
            if name in body:
                return 400, {}, wording(name)
        return "fine"

    return behave


def as_openai(name):
    instead = " Use 'max_completion_tokens' instead." if name == "max_tokens" else ""
    message = f"Unsupported parameter: '{name}' is not supported with this model.{instead}"
    return {"error": {"message": message, "param": name, "code": "unsupported_parameter"}}


def as_pydantic(name):
    return {"detail": [{"type": "extra_forbidden", "loc": ["body", name], "msg": "no extra"}]}


@pytest.mark.parametrize("wording", [as_openai, as_pydantic])
@pytest.mark.parametrize(
    ("names", "left"),
    [
        ([], {"temperature", "seed", "max_tokens"}),
        (["seed"], {"temperature", "max_tokens"}),
        (["temperature", "max_tokens"], {"seed", "max_completion_tokens"}),
        (["seed", "temperature", "max_tokens", "max_completion_tokens"], set()),
    ],
)
def test_parameters_that_a_server_does_not_take(caplog, wording, names, left):
    """Parameters that it names are left out; the token limit is tried under its other name."""
    with served(refusing(*names, wording=wording)) as (stub, url), connected(url) as server:
        server.settle_parameters()
        server.ask(QUESTION)
    assert set(server.parameters) == left == set(stub.requests[-1]) - {"model", "messages"}
    warned = [r.getMessage() for r in caplog.records if r.name.startswith("distilllens")]
    lost = [name for name in ("seed", "temperature") if name not in left]
    assert warned == ([f"the judge's server does not take {' and '.join(lost)}"] if lost else [])


def test_a_refusal_that_names_no_parameter():
    """It is the question's, and nothing is left out."""
    with (
        served(first((400, {}, ERROR))) as (stub, url),
        connected(url) as server,
        pytest.raises(QuestionRefused, match="what is wrong"),
    ):
        server.settle_parameters()
    assert len(stub.requests) == 1 and server.parameters == PARAMETERS


def test_stopping_ends_the_retries():
    """A call in its long row of retries ends at the next one."""
    with served(first(then=(500, {}, ERROR))) as (stub, url), connected(url, retries=5) as server:
        ended = []

        def ask():
            try:
                server.ask(QUESTION)
            except BaseException as error:
                ended.append(type(error).__name__)

        thread = threading.Thread(target=ask)
        thread.start()
        while not stub.requests:
            time.sleep(0.01)
        server.stop()
        thread.join(timeout=5)
        assert ended == ["Stopped"] and len(stub.requests) == 1


def test_openai_is_optional(monkeypatch):
    """Without it one line says how to install it."""
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r"pip install 'distilllens\[judge\]'"):
        connected("http://127.0.0.1:9/v1")


ECHO = {"error": {"message": f"I was given {KEY}", "headers": {"Authorization": f"Bearer {KEY}"}}}


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 422, 500])
def test_the_key_is_shown_nowhere(monkeypatch, caplog, status):
    """Not in what a server that repeats it makes of reply, error, traceback, log and repr."""
    monkeypatch.setenv(VARIABLE, KEY)
    caplog.set_level(logging.DEBUG)
    for name in ("openai", "httpx", "httpx2", "httpcore", "httpcore2", "distilllens"):
        caplog.set_level(logging.DEBUG, logger=name)
    said = f"I was given {KEY}" if status == 200 else (status, SOON, ECHO)
    shown = []
    with served(first(then=said)) as (stub, url), connected(url, retries=1) as server:
        for call in (server.settle_parameters, lambda: server.ask(QUESTION)):
            try:
                shown.append(repr(call()))
            except Exception as error:
                shown += [*traceback.format_exception(error), repr(error), repr(vars(error))]
        shown.append(repr(server))
    assert all(KEY in headers["Authorization"] for headers in stub.headers)
    assert "HTTP" in caplog.text and len("".join(shown)) > 100
    if status != 401:
        assert "given <key>" in "".join(shown)
    assert KEY not in caplog.text + "".join(shown)
    assert KEY[3:-3] not in caplog.text + "".join(shown)
