"""A judge on a real connection: verdicts, cache, failures, cost and the key."""

import json
import logging
import os
import random
import socket
import subprocess
import sys
import threading
import time
import traceback
import urllib.error
import urllib.request

import pytest
from evaluate.judge.judge_stub import MODEL, chat, judged, opinion, served
from processes import kill, python

pytest.importorskip("openai", reason="the judge needs openai")

from distilllens.evaluate.judge import judge as judge_room
from distilllens.evaluate.judge.judge import Judge
from distilllens.evaluate.judge.prompt import REMINDER, both_orders
from distilllens.evaluate.judge.verdicts import Case, Estimate, Verdict

KEY = "sk-stub-0123456789abcdefghij"
CASES = [Case(f"Question {n}?", f"answer {n}", f"reference {n}") for n in range(8)]
UNREAD = Verdict(None, None, None)


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    """Settings of this machine's environment are ignored."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def judge(tmp_path, url, **changes):
    """A judge with a cache in the folder, two retries and three at a time."""
    settings = {"cache": tmp_path / "judge.jsonl", "max_retries": 2, "timeout": 5, "concurrency": 3}
    return Judge(changes.pop("model", MODEL), base_url=url, **(settings | changes))


def expected(case):
    """The stub's verdict: its opinions, and half a point from the order where each comes first."""
    answer, reference = opinion(case.answer), opinion(case.reference)
    above = [answer + 1 - reference, answer - reference - 1]
    wins = [1.0 if gap > 0 else 0.5 if gap == 0 else 0.0 for gap in above]
    return Verdict(answer + 0.5, reference + 0.5, sum(wins) / 2)


EXPECTED = [expected(case) for case in CASES]


def test_verdicts(tmp_path):
    """Each case is asked in both orders, and the verdicts come in the order of the cases."""
    assert len({verdict.win for verdict in EXPECTED}) >= 3  # or the cases would prove little
    with served() as (stub, url):
        assert judge(tmp_path, url)(CASES) == EXPECTED
        assert stub.num_questions == 2 * len(CASES)
        assert len(stub.requests) == 2 * len(CASES) + 1  # the check
        asked = [body["messages"] for body in stub.requests]
    assert all(messages in asked for case in CASES for messages in both_orders(case))


def test_a_second_call_asks_nothing(tmp_path):
    """Another judge with the same cache asks nothing either, and needs neither server nor key."""
    with served() as (_, url):
        judge(tmp_path, url)(CASES)
    again = judge(tmp_path, url)
    assert again(CASES) == EXPECTED
    assert again(reversed(CASES)) == EXPECTED[::-1]
    assert again.spent.num_calls == again.num_unread == 0


def test_no_case(tmp_path):
    """Nothing is asked, and no file is made."""
    assert judge(tmp_path, "http://127.0.0.1:9/v1")([]) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changes", [{"model": "other"}, {"max_tokens": 99}])
def test_another_judge_has_its_own_replies(tmp_path, changes):
    """Model and limit of tokens are part of a reply's key."""
    with served() as (stub, url):
        judge(tmp_path, url)(CASES[:1])
        judge(tmp_path, url, **changes)(CASES[:1])
        assert stub.num_questions == 4


def test_another_server_has_its_own_replies(tmp_path):
    """The same name at two addresses may be two models; a slash at the end is no difference."""
    for _ in range(2):
        with served() as (stub, url):
            judge(tmp_path, url)(CASES[:1])
            judge(tmp_path, url + "/")(CASES[:1])
            assert stub.num_questions == 2


def test_equal_questions_are_asked_once(tmp_path):
    """A case that comes twice, and an answer that is its reference, whose two orders are one."""
    same = Case("Question?", "equal", "equal")
    with served() as (stub, url):
        found = judge(tmp_path, url)([CASES[0], same, CASES[0]])
        assert stub.num_questions == 3
    assert found == [EXPECTED[0], expected(same), EXPECTED[0]]
    assert found[1].win == 0.5


@pytest.mark.parametrize("concurrency", [1, 4])
def test_as_many_at_a_time_as_said(tmp_path, concurrency):
    """Not more, and if possible not fewer."""

    def slowly(_, body):
        time.sleep(0.05)
        return judged(body)

    with served(slowly) as (stub, url):
        assert judge(tmp_path, url, concurrency=concurrency)(CASES) == EXPECTED
        assert stub.most_busy == concurrency


def mumbling(times, about="Question 0?"):
    """A judge whose replies on one case are unreadable until it was reminded so often."""

    def behave(_, body):
        messages = body["messages"]
        if about in messages[0]["content"] and len(messages) < 1 + 2 * times:
            return "hard to say"
        return judged(body)

    return behave


def test_an_unreadable_reply_is_asked_for_again(tmp_path):
    """The conversation continues with a reminder, at most twice."""
    with served(mumbling(2)) as (stub, url):
        asked = judge(tmp_path, url)
        assert asked(CASES) == EXPECTED and asked.num_unread == 0
        longest = max((body["messages"] for body in stub.requests), key=len)
        assert [m["content"] for m in longest[1:]] == ["hard to say", REMINDER] * 2
        assert stub.num_questions == 2 * len(CASES) + 4


def said_by(caplog):
    return [r.getMessage() for r in caplog.records if r.name == judge_room.__name__]


def test_no_verdict(tmp_path, caplog):
    """A case that stays unreadable is counted and reported, and not asked again."""
    with served(mumbling(9)) as (stub, url):
        asked = judge(tmp_path, url)
        for _ in range(2):
            assert asked(CASES) == [UNREAD, *EXPECTED[1:]]
            assert asked.num_unread == 2
            assert stub.num_questions == 2 * len(CASES) + 4
    assert said_by(caplog) == ["the judge gave no scores in 2 of 16 judgments"] * 2


def test_one_unreadable_order_is_no_verdict(tmp_path):
    """A single order would favour a position."""

    def behave(_, body):
        unread = body["messages"][0] == both_orders(CASES[0])[1][0]
        return "hard to say" if unread else judged(body)

    with served(behave) as (_, url):
        asked = judge(tmp_path, url)
        assert asked(CASES) == [UNREAD, *EXPECTED[1:]]
        assert asked.num_unread == 1


def test_a_reply_cut_at_the_limit_is_asked_for_again(tmp_path):
    """Its last number may be half of one."""

    def behave(number, body):
        cut = chat("SCORES: 5 1", finish_reason="length")
        return cut if number and len(body["messages"]) == 1 else judged(body)

    with served(behave) as (_, url):
        assert judge(tmp_path, url)(CASES[:2]) == EXPECTED[:2]


def test_a_question_that_is_refused(tmp_path, caplog):
    """A refused case has no verdict; the others are judged, and a later call asks it again."""
    too_long = (400, {}, {"error": {"message": "context length exceeded"}})

    def behave(_, body):
        return too_long if "Question 0?" in body["messages"][0]["content"] else judged(body)

    with served(behave) as (stub, url):
        asked = judge(tmp_path, url)
        assert asked(CASES) == [UNREAD, *EXPECTED[1:]]
        (said,) = said_by(caplog)
        assert said.startswith("the judge gave no scores in 2 of 16 judgments; 2 were refused, ")
        assert said.endswith("(400): context length exceeded")
        stub.behave = lambda _, body: judged(body)
        assert asked(CASES) == EXPECTED


def test_a_judge_that_goes_away(tmp_path):
    """One line says what is kept; the same call then ends as an uninterrupted one."""
    gone = threading.Event()

    def behave(number, body):
        if number >= 6 and gone.is_set():
            raise ConnectionError
        return judged(body)

    cache = tmp_path / "judge.jsonl"
    gone.set()
    with served(behave) as (stub, url):
        asked = judge(tmp_path, url, max_retries=0)
        with pytest.raises(OSError, match=r"cannot be reached, .*; 5 replies are kept in "):
            asked(CASES)
        assert len(cache.read_text().splitlines()) == 5 == asked.spent.num_calls
        gone.clear()
        done = stub.num_questions
        assert judge(tmp_path, url)(CASES) == EXPECTED
        assert stub.num_questions - done == 2 * len(CASES) - 5


def test_a_key_that_expires(tmp_path):
    """Its error is not retried and ends the retries of others; replies so far are kept."""

    def behave(number, body):
        if number < 4:
            return judged(body)
        return (401 if number == 5 else 500), {}, {"error": {"message": "no"}}

    with served(behave) as (_, url):
        start = time.monotonic()
        with pytest.raises(ValueError, match=r"set the environment variable OPENAI_API_KEY"):
            judge(tmp_path, url, max_retries=6)(CASES)
        assert time.monotonic() - start < 10  # all its waits are 17 s at least
        assert judge(tmp_path, url).estimate(CASES).num_cached == 3


def test_an_interrupted_run(tmp_path, monkeypatch):
    """Ctrl-C ends it, with the replies so far in the cache.

    Raised where the main thread waits: a real signal may fall into a callback that swallows it.
    """

    judgments = iter(range(1, 100))

    class Interrupted(judge_room.tqdm):
        def update(self, n=1):
            if next(judgments) == 3:
                raise KeyboardInterrupt

    def behave(number, body):
        if number >= 7:
            time.sleep(0.1)
        return judged(body)

    with served(behave) as (stub, url):
        with monkeypatch.context() as pressed, pytest.raises(KeyboardInterrupt):
            pressed.setattr(judge_room, "tqdm", Interrupted)
            judge(tmp_path, url)(CASES)
        done = stub.num_questions
        assert 3 <= done < 2 * len(CASES)
        assert judge(tmp_path, url)(CASES) == EXPECTED
        assert stub.num_questions == 2 * len(CASES)


RUN = """
import sys
from distilllens.evaluate.judge.judge import Judge
from distilllens.evaluate.judge.verdicts import Case
cases = [Case(f"Question {n}?", f"answer {n}", f"reference {n}") for n in range(8)]
Judge("stub", base_url=sys.argv[1], cache=sys.argv[2], concurrency=2)(cases)
"""


@pytest.mark.slow
def test_a_run_that_was_killed(tmp_path):
    """Interrupted and called again, it gives the verdicts of an uninterrupted run."""
    enough = threading.Event()

    def behave(number, body):
        if number > 6:
            enough.set()
            time.sleep(0.5)
        return judged(body)

    with served(behave) as (stub, url):
        command = [python(), "-c", RUN, url, str(tmp_path / "judge.jsonl")]
        process = subprocess.Popen(command)
        try:
            assert enough.wait(60)
        finally:
            kill(process)
        stub.behave = lambda _, body: judged(body)
        known = judge(tmp_path, url).estimate(CASES).num_cached
        assert 4 <= known <= 8
        done = stub.num_questions
        assert judge(tmp_path, url)(CASES) == EXPECTED
        assert stub.num_questions - done == 2 * len(CASES) - known


def test_a_torn_and_shuffled_cache(tmp_path):
    """The verdicts are the same for any torn end and any order of the file."""
    path = tmp_path / "judge.jsonl"
    with served(mumbling(1)) as (_, url):
        judge(tmp_path, url)(CASES)
        lines = path.read_text().splitlines(keepends=True)
        for seed in range(6):
            random.Random(seed).shuffle(lines)
            text = "".join(lines)
            path.write_text(text[: len(text) * seed // 5 - 3 * (0 < seed < 5)])
            assert judge(tmp_path, url)(CASES) == EXPECTED


def test_estimate(tmp_path):
    """Calls that the cache lacks, a token for four bytes, 80 for a reply, and the price."""
    found = judge(tmp_path, "http://127.0.0.1:9/v1", prices=(2.0, 10.0)).estimate(CASES)
    size = sum(len(m["content"].encode()) for c in CASES for (m,) in both_orders(c))
    usd = (size // 4 * 2.0 + 16 * 80 * 10.0) / 1e6
    assert found == Estimate(16, 0, size // 4, 16 * 80, usd)
    assert list(tmp_path.iterdir()) == []
    with served() as (_, url):
        judge(tmp_path, url)(CASES[:3])
        found = judge(tmp_path, url).estimate(CASES)
        assert (found.num_calls, found.num_cached, found.usd) == (10, 6, None)
        assert judge(tmp_path, url).estimate(CASES[:3]) == Estimate(0, 6, 0, 0, None)


def test_an_estimate_knows_of_reminders(tmp_path):
    """A conversation that broke off needs one call, with all its messages."""
    cut = threading.Event()

    def behave(number, body):
        if len(body["messages"]) > 1 and cut.is_set():
            raise ConnectionError
        return mumbling(1)(number, body)

    cut.set()
    with served(behave) as (_, url):
        asked = judge(tmp_path, url, max_retries=0, concurrency=1)
        with pytest.raises(OSError, match="1 replies are kept"):
            asked(CASES[:1])
        found = asked.estimate(CASES[:1])
    prompts = [messages[0]["content"] for messages in both_orders(CASES[0])]
    size = sum(map(len, [*prompts, "hard to say", REMINDER]))
    assert (found.num_calls, found.num_cached, found.prompt_tokens) == (2, 0, size // 4)


def test_known_prices(tmp_path):
    """gpt-4o-mini at OpenAI: 0.15 and 0.60 USD a million; elsewhere nobody knows."""
    known = Judge("gpt-4o-mini", cache=tmp_path / "judge.jsonl").estimate(CASES)
    expected = (known.prompt_tokens * 0.15 + known.completion_tokens * 0.60) / 1e6
    assert known.usd == pytest.approx(expected) and known.usd > 0
    assert Judge("gpt-x", cache=tmp_path / "judge.jsonl").estimate(CASES).usd is None
    elsewhere = judge(tmp_path, "http://localhost:1/v1", model="gpt-4o-mini")
    assert elsewhere.estimate(CASES).usd is None


def test_what_was_spent(tmp_path):
    """The tokens that the server counted, over all calls of the object."""
    with served() as (_, url):
        asked = judge(tmp_path, url, prices=(1.0, 2.0))
        asked(CASES[:2])
        asked(CASES[:3])
    assert asked.spent == Estimate(6, 0, 600, 60, (600 + 120) / 1e6, measured=True)


def test_the_check_is_made_once(tmp_path):
    """Explicitly, or by the first call that has something to ask."""
    with served() as (stub, url):
        asked = judge(tmp_path, url)
        asked.check()
        assert len(stub.requests) == 1 and stub.num_questions == 0
        asked(CASES[:1])
        asked(CASES[:2])
        assert len(stub.requests) - stub.num_questions == 1


def test_the_check_fails_before_anything_is_asked(tmp_path):
    """A key, a model or an address that is wrong."""
    with served(lambda *_: (404, {}, {"error": {"message": "?"}})) as (stub, url):
        with pytest.raises(ValueError, match=r"knows no model 'stub'"):
            judge(tmp_path, url)(CASES)
        assert stub.num_questions == 0
    with pytest.raises(OSError, match=r"cannot be reached, asked 3 times"):
        judge(tmp_path, url, max_retries=9).check()
    with pytest.raises(ValueError, match="environment variable OPENAI_API_KEY holds no key"):
        Judge("gpt-4o-mini", cache=tmp_path / "judge.jsonl").check()


def test_what_a_server_does_not_take_is_left_out(tmp_path):
    """The questions go without the parameters that the check's question was refused for."""

    def behave(_, body):
        if "seed" in body:
            return 422, {}, {"detail": [{"loc": ["body", "seed"]}]}
        return judged(body)

    with served(behave) as (stub, url):
        assert judge(tmp_path, url)(CASES) == EXPECTED
        assert len(stub.requests) == 2 * len(CASES) + 2
        assert all({"temperature", "max_tokens"} <= set(body) for body in stub.requests)


def test_the_address_of_the_environment(tmp_path, monkeypatch):
    """OPENAI_BASE_URL counts where no address is given."""
    with served() as (_, url):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        assert Judge(MODEL, cache=tmp_path / "judge.jsonl")(CASES) == EXPECTED


def test_the_key_is_written_nowhere(tmp_path, monkeypatch, caplog):
    """Not in cache, log, errors or repr, even if a server repeats it in every reply and error."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    for name in ("openai", "httpx", "httpx2", "httpcore", "httpcore2"):
        caplog.set_level(logging.DEBUG, logger=name)

    def behave(number, body):
        if number == 6:
            return 403, {}, {"error": {"message": f"{KEY} is over its limit"}}
        return f"Your key is {KEY}.\n{judged(body)}"

    with served(behave) as (stub, url):
        asked = judge(tmp_path, url, concurrency=1)
        with pytest.raises(ValueError, match="<key> is over its limit") as error:
            asked(CASES)
        assert stub.headers[0]["Authorization"] == f"Bearer {KEY}"
    cache = (tmp_path / "judge.jsonl").read_text()
    assert cache.count("Your key is <key>.") == 5 and "HTTP" in caplog.text
    errors = "".join(traceback.format_exception(error.value)) + repr(error.value)
    shown = [cache, caplog.text, errors, repr(asked), repr(vars(asked)), str(asked.spent)]
    assert [text for text in shown if KEY in text or KEY[3:-3] in text] == []


def test_the_bar(tmp_path, capsys):
    """It is shown on request, and by default not if the output is a file."""
    with served() as (_, url):
        judge(tmp_path, url)(CASES[:1])
        assert capsys.readouterr().err == ""
        judge(tmp_path, url)(CASES, progress=True)
        assert "judge: 100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": ""}, "model has no name"),
        ({"key_variable": KEY}, "must be the name of an environment variable, in capitals"),
        ({"base_url": f"http://me:{KEY}@localhost/v1"}, "must hold no user, password, query"),
        ({"base_url": f"http://localhost/v1?key={KEY}"}, "into the environment variable OPENAI_"),
        ({"base_url": "localhost:8000"}, "'localhost:8000'; it must be such as http://localhost"),
        ({"base_url": "http://localhost:x/v1"}, "it must be such as http://localhost"),
        ({"max_retries": -1}, "max_retries is -1; it must be at least 0"),
        ({"concurrency": 0}, "concurrency is 0; it must be at least 1"),
        ({"max_tokens": 0}, "max_tokens is 0; it must be at least 1"),
        ({"timeout": 0}, "timeout is 0; it must be above 0 seconds"),
        ({"prices": (1.0,)}, "must be two"),
        ({"prices": (1.0, -1.0)}, "must be two"),
    ],
)
def test_settings_that_cannot_be(tmp_path, changes, said):
    """The message has value and remedy, and does not repeat a value that may be a key."""
    settings = {"model": MODEL, "cache": tmp_path / "judge.jsonl"} | changes
    with pytest.raises(ValueError, match=said) as error:
        Judge(settings.pop("model"), **settings)
    assert KEY not in str(error.value)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def wait_for(url, process):
    """Until the server there is well, two minutes at most."""
    for _ in range(1200):
        assert process.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    raise AssertionError("the server did not start")


@pytest.fixture(scope="module")
def transformers_server(tmp_path_factory):
    """``transformers serve`` with two models in folders: ``(base_url, folder)``."""
    for package in ("fastapi", "uvicorn", "pydantic", "rich"):
        pytest.importorskip(package, reason="transformers serve needs transformers[serving]")
    from evaluate.judge import judge_models

    folder = tmp_path_factory.mktemp("serve")
    judge_models.save_constant(folder / "constant")
    judge_models.save_babbling(folder / "babbling")
    port = free_port()
    code = "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", code, "serve", "--host", "127.0.0.1", "--port", str(port)]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            [*command, "--device", "cpu"], env=os.environ | offline, stdout=log, stderr=log
        )
        try:
            wait_for(f"http://127.0.0.1:{port}", process)
            yield f"http://127.0.0.1:{port}/v1", folder
        finally:
            process.terminate()
            process.wait(timeout=30)


@pytest.mark.slow
def test_a_model_that_looks_at_the_place_only(transformers_server, tmp_path):
    """A server of transformers whose model says "SCORES: 7 4" to all: both orders make it a tie."""
    url, folder = transformers_server
    asked = judge(tmp_path, url, model=str(folder / "constant"), timeout=60)
    asked.check()
    assert asked(CASES[:3]) == [Verdict(5.5, 5.5, 0.5)] * 3
    replies = [json.loads(line) for line in (tmp_path / "judge.jsonl").read_text().splitlines()]
    assert [r["text"] for r in replies] == ["SCORES: 7 4"] * 6
    assert asked.spent.num_calls == 6 and asked.spent.completion_tokens == 6 * 4


@pytest.mark.slow
def test_a_model_that_babbles(transformers_server, tmp_path):
    """A random model is reminded twice in each order, and gives no verdict."""
    url, folder = transformers_server
    asked = judge(tmp_path, url, model=str(folder / "babbling"), timeout=60, max_tokens=8)
    assert asked(CASES[:1]) == [UNREAD]
    assert asked.num_unread == 2 and asked.spent.num_calls == 6


@pytest.mark.slow
def test_a_model_that_is_not_there(transformers_server, tmp_path):
    """The check reports it in one line; this server returns a server error for it."""
    url, folder = transformers_server
    with pytest.raises(OSError, match=r"fails for model '.*nothing', asked once \(500\)") as error:
        judge(tmp_path, url, model=str(folder / "nothing"), max_retries=0).check()
    assert "\n" not in str(error.value)
