"""The judge's server: connection, key, retries, parameters, and errors of one line."""

from __future__ import annotations

import logging
import os
import re
import threading
from ipaddress import ip_address
from urllib.parse import urlsplit

from distilllens.evaluate.judge.replies import Reply

logger = logging.getLogger(__name__)

OPENAI = "https://api.openai.com/v1"
_TRIES_OF_A_BODY = 3
_SHORTEST_KEY = 8  # what is shorter stands for no key, such as "EMPTY"
_READY = [{"role": "user", "content": "Reply with the one word: ready"}]


class Gone(OSError):
    """The server does not answer as a server should, retries and all."""


class Refused(ValueError):
    """The server will not have this question."""


class Stopped(BaseException):
    """Ends the retries of a call; some versions of openai would retry after any Exception."""


class Server:
    """Connections to one server for the length of a ``with``; the key is known only in here.

    Args:
        base_url: where ``/chat/completions`` is.
        model: its name there.
        key_variable: the environment variable that holds the key.
        parameters: of decoding, sent with every question.
        retries: openai's own, of 408, 409, 429, 5xx, lost connections and timeouts.
        timeout: seconds without a byte.

    Raises:
        ValueError: OpenAI without a key, or a key that no header can hold.
        ImportError: openai is missing.
    """

    def __init__(self, base_url, model, *, key_variable, parameters, retries, timeout):
        try:
            import openai
        except ImportError as error:
            hint = "a judge needs openai: pip install 'distilllens[judge]'"
            raise ImportError(hint) from error
        self.base_url, self.model, self.key_variable = base_url, model, key_variable
        self.parameters, self.retries, self.timeout = dict(parameters), retries, timeout
        self.num_calls = self.prompt_tokens = self.completion_tokens = 0
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._openai = openai
        self._key = _key_in(key_variable, required=base_url == OPENAI)
        self._client = openai.OpenAI(
            api_key=self._key or "no-key",
            base_url=base_url,
            max_retries=retries,
            timeout=timeout,
            http_client=openai.DefaultHttpxClient(
                # A proxy of the environment cannot know this machine's own addresses.
                trust_env=not _is_loopback(base_url),
                event_hooks={"request": [self._raise_if_stopped]},
            ),
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._client.close()

    def stop(self):
        """Let every call end at its next try."""
        self._stop.set()

    def _raise_if_stopped(self, _):
        if self._stop.is_set():
            raise Stopped

    def settle_parameters(self):
        """Ask something tiny, leaving out those parameters that the server names in a refusal.

        Raises:
            ValueError, OSError: as ``ask``.
        """
        wished = set(self.parameters) - {"max_tokens"}
        while refused := self._refused_parameters():
            limit = [self.parameters.pop(name) for name in refused][-1]
            if refused[-1] == "max_tokens":  # what OpenAI's newer models call otherwise
                self.parameters["max_completion_tokens"] = limit
        if missing := sorted(wished - set(self.parameters)):
            logger.warning("the judge's server does not take %s", " and ".join(missing))

    def _refused_parameters(self):
        try:
            self._reply(_READY)
            return []
        except self._openai.APIError as error:
            named = []
            if getattr(error, "status_code", None) in (400, 422):
                said = str(error.body)
                named = [name for name in self.parameters if re.search(rf"\b{name}\b", said)]
            fault = self._fault(error)
        if named:
            return named
        raise fault

    def ask(self, messages: list[dict]) -> Reply:
        """The model's reply.

        Raises:
            ValueError: a key or a model that the server refuses, or (``Refused``) this question.
            OSError: (``Gone``) no reply after all retries.
        """
        try:
            reply = self._reply(messages)
        except self._openai.APIError as error:
            fault = self._fault(error)
        else:
            with self._lock:
                self.num_calls += 1
                self.prompt_tokens += reply.prompt_tokens
                self.completion_tokens += reply.completion_tokens
            return reply
        # Not in the handler: a chained error would show what the server said, the key too.
        raise fault

    def _reply(self, messages):
        for attempt in range(_TRIES_OF_A_BODY):
            self._stop.wait(attempt / 2)
            try:
                completion = self._client.chat.completions.create(
                    model=self.model, messages=messages, **self.parameters
                )
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
                continue  # half a JSON, or the page of a proxy: openai checks neither
        raise Gone(f"{self._name} sends what is no chat completion; mostly its address ends in /v1")

    @property
    def _name(self):
        return f"the judge's server {self.base_url}"

    def _fault(self, error):
        """The error that stands for one of openai's: one line, without the key."""
        tries = f"asked {self.retries + 1} times" if self.retries else "asked once"
        if isinstance(error, self._openai.APITimeoutError):
            return Gone(f"{self._name} sent nothing for {self.timeout:g} s, {tries}")
        status = getattr(error, "status_code", None)
        if status is None:
            reason = self._line(error.__cause__ or error)
            return Gone(f"{self._name} cannot be reached, {tries}: {reason}")
        said = self._line(_message_in(error.body))
        if status == 401:  # what it says may hold parts of the key
            held = "refuses the key in" if self._key else "wants a key; set"
            return ValueError(
                f"{self._name} {held} the environment variable {self.key_variable} (401)"
            )
        if status == 403:
            return ValueError(
                f"{self._name} forbids it to the key in {self.key_variable} (403): {said}"
            )
        if status == 404:
            return ValueError(
                f"{self._name} knows no model {self.model!r}, or its address is wrong, which "
                f"mostly ends in /v1 (404: {said}){self._known_models()}"
            )
        if status in (400, 413, 422):
            return Refused(f"{self._name} refuses the question ({status}): {said}")
        return Gone(f"{self._name} fails for model {self.model!r}, {tries} ({status}): {said}")

    def _known_models(self):
        try:
            listed = self._client.with_options(max_retries=0, timeout=10).models.list()
            names = ", ".join(str(model.id) for model in listed.data)
        except Exception:  # it would only have been helpful
            return ""
        return f"; it lists {self._line(names)}" if names else ""

    def _line(self, text):
        line = " ".join(self._without_key(str(text)).split()) or "no reason given"
        return line if len(line) <= 200 else line[:197] + "..."

    def _without_key(self, text):
        return text.replace(self._key, "<key>") if len(self._key) >= _SHORTEST_KEY else text


def _message_in(body):
    """The reason in the body of an error: OpenAI's "message", FastAPI's "detail", or all of it."""
    if isinstance(body, dict):
        return body.get("message") or body.get("detail") or body
    return body or ""


def _key_in(variable, *, required):
    key = os.environ.get(variable, "").strip()
    if required and not key:
        raise ValueError(
            f"the environment variable {variable} holds no key, and {OPENAI} wants one; set it, "
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
