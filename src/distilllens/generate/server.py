"""An OpenAI-compatible server: connection, key, retries, parameters, and one-line errors."""

from __future__ import annotations

import logging
import math
import os
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from time import monotonic
from urllib.parse import urlsplit

logger = logging.getLogger(__name__)

OPENAI = "https://api.openai.com/v1"
KEY = "OPENAI_API_KEY"  # the variable that clients of such servers read
_BODY_TRIES = 3
_SHORTEST_KEY = 8  # shorter ones, such as "EMPTY", are placeholders and not secret
# Seconds for the answer to a first, tiny question; the server may load its model for it.
_FIRST_PATIENCE = 300.0
_READY = [{"role": "user", "content": "Reply with the one word: ready"}]


@dataclass(frozen=True)
class Reply:
    """One raw reply.

    Attributes:
        text: the reply as the model wrote it.
        cut: whether it was cut at the token limit.
        prompt_tokens: as counted by the server; 0 if it does not count.
        completion_tokens: the same.
    """

    text: str
    cut: bool
    prompt_tokens: int
    completion_tokens: int


class ServerFailed(OSError):
    """The server cannot be reached or does not answer properly, after all retries."""


class QuestionRefused(ValueError):
    """The server refuses this question, but may answer others."""


class Stopped(BaseException):
    """Ends a call and its retries. A BaseException: some versions of openai retry any Exception."""


class Server:
    """A client of one server, closed at the end of a ``with``; only this class holds the key.

    Args:
        base_url: the address above ``/chat/completions`` and ``/completions``.
        model: its name at the server.
        key_variable: the environment variable that holds the key.
        parameters: decoding parameters, sent with every question.
        retries: of openai's client, after 408, 409, 429, 5xx, lost connections and timeouts.
        timeout: seconds without a byte.

    Raises:
        ValueError: there is no key for OpenAI, or the key cannot be sent in a header.
        ImportError: openai is not installed.
    """

    # What messages call the server, and whoever needs openai.
    who, asker = "the server", "--server"

    def __init__(self, base_url, model, *, key_variable, parameters, retries, timeout):
        try:
            import openai
        except ImportError as error:
            hint = f"{self.asker} needs openai: pip install 'distilllens[judge]'"
            raise ImportError(hint) from error
        self.base_url, self.model, self.key_variable = base_url, model, key_variable
        self.parameters, self.retries, self.timeout = dict(parameters), retries, timeout
        self._dropped = set()
        self.num_calls = self.prompt_tokens = self.completion_tokens = 0
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._openai, self._last_try = openai, math.inf
        self._key = _key_in(key_variable, required=base_url == OPENAI)
        self._client = openai.OpenAI(
            api_key=self._key or "no-key",
            base_url=base_url,
            max_retries=retries,
            timeout=timeout,
            http_client=openai.DefaultHttpxClient(
                # A proxy from the environment cannot reach this machine's own loopback address.
                trust_env=not _is_loopback(base_url),
                event_hooks={"request": [self._raise_if_stopped]},
            ),
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._client.close()

    def stop(self):
        """End every call at its next try."""
        self._stop.set()

    def _raise_if_stopped(self, _):
        if self._stop.is_set() or monotonic() > self._last_try:
            raise Stopped

    @contextmanager
    def _first_question(self, patience: float):
        """In this block, a question that is not answered in time is not asked again.

        Raises:
            ServerFailed: the server has sent nothing for ``patience`` seconds.
        """
        whole, patience = self._client, min(patience, self.timeout)
        self._client = whole.with_options(timeout=patience)
        self._last_try = monotonic() + patience
        try:
            yield
        except Stopped:
            if self._stop.is_set():
                raise
            fault = ServerFailed(
                f"{self._name} has not answered a first, short question in {patience:g} s; see "
                f"whether it has loaded {self.model or 'its model'}"
            )
        else:
            return
        finally:
            self._client, self._last_try = whole, math.inf
        raise fault

    def settle_parameters(self, question: list[dict] | str = _READY):
        """Ask a tiny question, and drop the parameters that the server refuses by name.

        Raises:
            ValueError, OSError: as ``ask``.
        """
        intended = set(self.parameters) - {"max_tokens"}
        refused = self._first_refused(question)
        while refused:
            limit = [self.parameters.pop(name) for name in refused][-1]
            if refused[-1] == "max_tokens":  # OpenAI's newer models have another name for it
                self.parameters["max_completion_tokens"] = limit
            refused = self._first_refused(question)
        if missing := sorted(intended - set(self.parameters)):
            logger.warning("%s does not take %s", self.who, " and ".join(missing))
        self._dropped = {*missing}

    def _first_refused(self, question):
        with self._first_question(_FIRST_PATIENCE):
            return self._refused_parameters(question)

    def _refused_parameters(self, question):
        try:
            self._reply(question, {})
            return []
        except self._openai.APIError as error:
            named = []
            if getattr(error, "status_code", None) in (400, 422):
                body = str(error.body)
                named = [name for name in self.parameters if re.search(rf"\b{name}\b", body)]
            fault = self._fault(error)
        if named:
            return named
        raise fault

    def ask(self, question: list[dict] | str, **settings) -> Reply:
        """The model's reply to messages, or its continuation of a text.

        Args:
            settings: parameters of this question alone; those that the server does not take are
                left out.

        Raises:
            ValueError: the server refuses the key, the model or, ``QuestionRefused``, the question.
            OSError: ``ServerFailed``, there is no reply after all retries.
        """
        try:
            reply = self._reply(question, settings)
        except self._openai.APIError as error:
            fault = self._fault(error)
        else:
            with self._lock:
                self.num_calls += 1
                self.prompt_tokens += reply.prompt_tokens
                self.completion_tokens += reply.completion_tokens
            return reply
        # Not in the handler: a chained error would show the server's text, perhaps with the key.
        raise fault

    def _reply(self, question, settings):
        settings = {k: value for k, value in settings.items() if k not in self._dropped}
        settings = {"model": self.model, **self.parameters, **settings}
        for attempt in range(_BODY_TRIES):
            self._stop.wait(attempt / 2)
            try:
                if isinstance(question, str):
                    completion = self._client.completions.create(prompt=question, **settings)
                    choice = completion.choices[0]
                    text = choice.text
                else:
                    completion = self._client.chat.completions.create(messages=question, **settings)
                    choice = completion.choices[0]
                    text = choice.message.content or getattr(choice.message, "refusal", None) or ""
                used = completion.usage
                return Reply(
                    text=self._without_key(text),
                    cut=choice.finish_reason == "length",
                    prompt_tokens=used.prompt_tokens if used else 0,
                    completion_tokens=used.completion_tokens if used else 0,
                )
            except (ValueError, TypeError, AttributeError, LookupError):
                continue  # truncated JSON or a proxy's page: openai checks neither
        what = "completions" if isinstance(question, str) else "chat completions"
        raise ServerFailed(f"{self._name} sends no {what}; its address usually ends in /v1")

    @property
    def _name(self):
        return f"{self.who} {self.base_url}"

    def _fault(self, error):
        """The error to raise for one of openai's: one line, without the key."""
        tries = f"asked {self.retries + 1} times" if self.retries else "asked once"
        if isinstance(error, self._openai.APITimeoutError):
            return ServerFailed(f"{self._name} sent nothing for {self.timeout:g} s, {tries}")
        status = getattr(error, "status_code", None)
        if status is None:
            reason = self._excerpt(error.__cause__ or error)
            return ServerFailed(f"{self._name} cannot be reached, {tries}: {reason}")
        reason = self._excerpt(_message_in(error.body))
        if status == 401:  # the server's text may have parts of the key
            problem = "refuses the key in" if self._key else "needs a key; set"
            return ValueError(
                f"{self._name} {problem} the environment variable {self.key_variable} (401)"
            )
        if status == 403:
            return ValueError(
                f"{self._name} denies access to the key in {self.key_variable} (403): {reason}"
            )
        if status == 404:
            return ValueError(
                f"{self._name} knows no model {self.model!r}, or its address is wrong, which "
                f"usually ends in /v1 (404: {reason}){self._known_models()}"
            )
        if status in (400, 413, 422):
            return QuestionRefused(f"{self._name} refuses the question ({status}): {reason}")
        return ServerFailed(
            f"{self._name} fails for model {self.model!r}, {tries} ({status}): {reason}"
        )

    def _known_models(self):
        try:
            listed = self._client.with_options(max_retries=0, timeout=10).models.list()
            names = ", ".join(str(model.id) for model in listed.data)
        except Exception:  # the list is only a hint
            return ""
        return f"; it lists {self._excerpt(names)}" if names else ""

    def _excerpt(self, text):
        """A server's text on one line, without the key, of at most 200 characters."""
        line = " ".join(self._without_key(str(text)).split()) or "no reason given"
        return line if len(line) <= 200 else line[:197] + "..."

    def _without_key(self, text):
        return text.replace(self._key, "<key>") if len(self._key) >= _SHORTEST_KEY else text


def _message_in(body):
    """The reason in an error body: OpenAI's "message", FastAPI's "detail", or the whole body."""
    if isinstance(body, dict):
        return body.get("message") or body.get("detail") or body
    return body or ""


def _key_in(variable, *, required):
    key = os.environ.get(variable, "").strip()
    if required and not key:
        raise ValueError(
            f"the environment variable {variable} holds no key, and {OPENAI} needs one; set it, "
            "or name another server by base_url"
        )
    if not re.fullmatch(r"[!-~]*", key):
        raise ValueError(f"the key in {variable} holds white space or characters beyond ASCII")
    return key


def _is_loopback(base_url):
    host = urlsplit(base_url).hostname
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
