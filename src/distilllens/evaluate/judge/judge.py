"""The LLM judge: scores of answers and references from an OpenAI-compatible server."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from urllib.parse import urlsplit

from tqdm.auto import tqdm

from distilllens.evaluate.judge.prompt import both_orders, read_scores, with_reminder
from distilllens.evaluate.judge.replies import ReplyCache, key_of
from distilllens.evaluate.judge.server import OPENAI, QuestionRefused, Server, ServerFailed, Stopped
from distilllens.evaluate.judge.verdicts import Case, Estimate, Verdict, verdict_of

logger = logging.getLogger(__name__)

SEED = 0
# An unreadable reply is answered with a reminder: repeating the question would repeat the reply.
ASKS = 3
_PRICES = {"gpt-4o-mini": (0.15, 0.60), "gpt-4o-mini-2024-07-18": (0.15, 0.60)}
_BYTES_PER_TOKEN, _TOKENS_PER_REPLY = 4, 80


class Judge:
    """Scores answers and their references from 1 to 10, in both orders, with a model of one server.

    Equals asking ``model`` twice per case at temperature 0 (``PROMPT`` in ``judge/prompt.py``, once
    with the answer and once with the reference first) and averaging. Replies are read from
    ``cache`` if they are there, so an interrupted run that is repeated gives the same verdicts.

    Args:
        model: its name at the server.
        base_url: the server's address, usually ending in /v1; None is OPENAI_BASE_URL if that is
            set, else OpenAI.
        key_variable: the environment variable that holds the key. If it is not set, servers other
            than OpenAI are called without a key.
        cache: a JSON Lines file, created when needed.
        max_retries: after 408, 409, 429, 5xx, a lost connection or a timeout. The waits double from
            half a second to eight, or are set by the server, up to two minutes.
        timeout: seconds without a byte.
        concurrency: number of simultaneous questions.
        max_tokens: maximum length of a reply; reasoning models need thousands.
        prices: USD per million prompt and completion tokens; known for gpt-4o-mini at OpenAI.

    Raises:
        ValueError: a setting is invalid, or the cache file holds something else.

    Attributes:
        num_unread: number of judgments (a case in one order) without scores in the last call.
        spent: the measured calls, tokens and cost of this object so far, an ``Estimate``.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        key_variable: str = "OPENAI_API_KEY",
        cache: Path,
        max_retries: int = 6,
        timeout: float = 120.0,
        concurrency: int = 4,
        max_tokens: int = 512,
        prices: tuple[float, float] | None = None,
    ):
        self.model = model
        self.base_url = (base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI).rstrip("/")
        self.key_variable = key_variable
        self.cache = Path(cache)
        self.max_retries, self.timeout, self.concurrency = max_retries, timeout, concurrency
        self.max_tokens = max_tokens
        self.prices = _PRICES.get(model) if prices is None and self.base_url == OPENAI else prices
        _check_settings(self)
        self.num_unread = 0
        self.spent = Estimate(0, 0, 0, 0, self._usd(0, 0), measured=True)
        self._parameters = None  # those that the server accepts; set by check()

    def check(self) -> None:
        """Ask one tiny question, to test the server, the key and the model.

        Parameters that the server refuses are left out from then on, with a warning.

        Raises:
            ValueError: there is no key, or the server refuses the key, the model or the address.
            OSError: the server cannot be reached or fails.
            ImportError: openai is not installed.
        """
        with self._server(self._decoding(), min(2, self.max_retries)) as server:
            server.settle_parameters()
            self._parameters = server.parameters

    def estimate(self, cases: Iterable[Case]) -> Estimate:
        """The cost of judging the cases that are not in the cache; needs neither server nor key."""
        replies = ReplyCache(self.cache)
        chains = self._chains(cases)
        nexts = [self._next(messages, replies)[1] for messages in chains.values()]
        nexts = [messages for messages in nexts if messages]
        texts = (message["content"] for messages in nexts for message in messages)
        prompt = sum(len(text.encode("utf-8", "replace")) for text in texts) // _BYTES_PER_TOKEN
        completion = _TOKENS_PER_REPLY * len(nexts)
        cached = len(chains) - len(nexts)
        return Estimate(len(nexts), cached, prompt, completion, self._usd(prompt, completion))

    def __call__(self, cases: Iterable[Case], progress: bool | None = None) -> list[Verdict]:
        """The verdict of each case, in order.

        Every reply is cached as it arrives. A case has no verdict if the judge's replies were still
        unreadable after two reminders, or if the server refused the question itself (too long, for
        example); ``num_unread`` counts such judgments, and one warning reports them.

        Args:
            progress: show a progress bar; None shows it on terminals.

        Raises:
            ValueError, OSError, ImportError: as ``check``, which runs first unless it has run
                before or every reply is cached. After an OSError the same call resumes.
        """
        cases = list(cases)
        replies = ReplyCache(self.cache)
        chains = self._chains(cases)
        asks = [m for m in chains.values() if self._next(m, replies)[1]]
        refusals = []
        if asks:
            if self._parameters is None:
                self.check()
            try:
                refusals = self._ask_all(asks, replies, progress)
            except ServerFailed as failure:
                kept = f"{len(replies)} replies are kept in {self.cache}"
                raise OSError(f"{failure}; {kept}, the same call resumes from there") from None
            finally:
                replies.close()
        read = {key: self._next(messages, replies)[0] for key, messages in chains.items()}
        self.num_unread = sum(scores is None for scores in read.values())
        if self.num_unread:
            why = f"; {len(refusals)} were refused, the last: {refusals[-1]}" if refusals else ""
            logger.warning(
                "the judge gave no scores in %d of %d judgments%s", self.num_unread, len(read), why
            )
        return [self._verdict(case, read) for case in cases]

    def _chains(self, cases):
        """key -> first messages of every judgment; equal judgments are asked once."""
        return {self._key(m): m for case in cases for m in both_orders(case)}

    def _decoding(self):
        return {"temperature": 0, "seed": SEED, "max_tokens": self.max_tokens}

    def _key(self, messages):
        # With all decoding parameters, even those the server refuses: a key needs no server.
        question = {"model": self.model, "base_url": self.base_url, "messages": messages}
        return key_of(question | self._decoding())

    def _server(self, parameters, retries):
        return Server(
            self.base_url,
            self.model,
            key_variable=self.key_variable,
            parameters=parameters,
            retries=retries,
            timeout=self.timeout,
        )

    def _next(self, messages, replies):
        """``(scores, None)`` if a reply has them, else ``(None, messages to ask next)``."""
        for _ in range(ASKS):
            reply = replies.get(self._key(messages))
            if reply is None:
                return None, messages
            if scores := read_scores(reply.text, cut=reply.cut):
                return scores, None
            messages = with_reminder(messages, reply.text)
        return None, None

    def _verdict(self, case, read):
        answer_first, reference_first = (read[self._key(m)] for m in both_orders(case))
        return verdict_of([answer_first, reference_first and reference_first[::-1]])

    def _ask_all(self, asks, replies, progress):
        """Ask until every judgment is settled; returns the server's reasons for refusals."""
        quiet = None if progress is None else not progress
        refusals = []
        with self._server(self._parameters, self.max_retries) as server:
            pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="judge")
            try:
                futures = [pool.submit(self._settle, m, replies, server) for m in asks]
                with tqdm(total=len(asks), desc="judge", unit=" judgments", disable=quiet) as bar:
                    for future in as_completed(futures):
                        if not isinstance(
                            future.exception(), Stopped
                        ):  # an error elsewhere stopped it
                            refusals += future.result()
                            bar.update()
            finally:
                server.stop()  # ends the questions that are still running, after an error
                pool.shutdown(cancel_futures=True)
                self._count(server)
        return refusals

    def _settle(self, messages, replies, server):
        """Ask, with reminders, until one judgment has scores; returns the refusals (0 or 1)."""
        while due := self._next(messages, replies)[1]:
            try:
                reply = server.ask(due)
            except QuestionRefused as refusal:
                return [str(refusal)]
            except BaseException:
                server.stop()
                raise
            about = {"model": self.model, "base_url": self.base_url, "messages": due}
            replies.add(self._key(due), reply, **about)
        return []

    def _count(self, server):
        prompt = self.spent.prompt_tokens + server.prompt_tokens
        completion = self.spent.completion_tokens + server.completion_tokens
        calls = self.spent.num_calls + server.num_calls
        usd = self._usd(prompt, completion)
        self.spent = Estimate(calls, 0, prompt, completion, usd, measured=True)

    def _usd(self, prompt, completion):
        if self.prices is None:
            return None
        return (prompt * self.prices[0] + completion * self.prices[1]) / 1e6


def _check_settings(judge):
    # No message repeats a value that may be a key.
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", judge.key_variable):
        raise ValueError(
            "key_variable must be the name of an environment variable, in capitals, such as "
            "OPENAI_API_KEY; it is never the key itself"
        )
    url = urlsplit(judge.base_url)
    if url.username is not None or url.password is not None or url.query or url.fragment:
        raise ValueError(
            "base_url must hold no user, password, query or fragment; a key goes into the "
            f"environment variable {judge.key_variable}"
        )
    if not re.fullmatch(r"https?://[^/:]+(:[0-9]+)?(/.*)?|https?://\[.*", judge.base_url):
        raise ValueError(
            f"base_url is {judge.base_url!r}; it must be such as http://localhost:8000/v1"
        )
    if not judge.model:
        raise ValueError("the judge's model has no name; give its name at the server")
    least = {"max_retries": 0, "concurrency": 1, "max_tokens": 1}
    for name, lowest in least.items():
        if getattr(judge, name) < lowest:
            raise ValueError(f"{name} is {getattr(judge, name)!r}; it must be at least {lowest}")
    if judge.timeout <= 0:
        raise ValueError(f"timeout is {judge.timeout!r}; it must be above 0 seconds")
    if judge.prices is not None and (len(judge.prices) != 2 or min(judge.prices) < 0):
        raise ValueError(
            f"prices are {judge.prices!r}; they must be two, USD per million prompt tokens and "
            "per million completion tokens"
        )
