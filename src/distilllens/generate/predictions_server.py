"""A server that says what a model predicts in each place of a prompt."""

from __future__ import annotations

import re
from collections.abc import Sequence

from distilllens.generate.server import QuestionRefused, Server, ServerFailed

_TRIES = 3
_NAMED = re.compile(r"token_id:(\d+)")
_SHOWN = "it is asked for prompt_logprobs, as vLLM returns them, and for logprobs with echo"


class _Unnamed(QuestionRefused):
    """Tokens of a reply that cannot be told apart."""


_PATIENCE = 10.0  # seconds for a list of models, which needs no model
_FIRST_PATIENCE = 300.0  # for the predictions in a first, short prompt


def check_reachable(base_url: str, model: str | None, *, key_variable: str):
    """Refuse a server that does not answer, before anything is loaded for its sake.

    Args:
        model: its name at the server; None for the only one there.

    Raises:
        ValueError: no such model, or a key that is refused.
        OSError: the server does not answer.
        ImportError: openai is not installed.
    """
    settings = {"key_variable": key_variable, "retries": 1, "timeout": _PATIENCE}
    with PredictionsServer(base_url, model, **settings) as server:
        server.reach()


class PredictionsServer(Server):
    """A client for the most likely tokens in each place of a prompt, asked for in token ids.

    vLLM returns them as ``prompt_logprobs``. Of a server that does not, the completions API is
    asked for ``logprobs`` with ``echo`` and ``return_tokens_as_token_ids``: tokens named by their
    texts could not be told apart.

    Attributes:
        texts: token -> its text, as far as the server has said it.
    """

    who, asker = "the teacher's server", "teacher_server"

    def __init__(self, base_url, model, *, key_variable, retries, timeout):
        settings = {"key_variable": key_variable, "retries": retries, "timeout": timeout}
        super().__init__(base_url, model, parameters={}, **settings)
        self.texts, self._echo = {}, False

    def settle(self, ids: Sequence[int], top_k: int) -> list[dict[int, float]]:
        """The predictions in a first prompt: finds the model and how the server is asked.

        Raises:
            ValueError: no such model; a server without log-probabilities of prompts.
            OSError: as ``predictions``.
        """
        self.reach()
        with self._first_question(_FIRST_PATIENCE):
            return self._settled(ids, top_k)

    def reach(self):
        """Find the server, and the model's name if it has none; no prompt is sent.

        Raises:
            ValueError: no such model, or a key that is refused.
            OSError: the server does not answer.
        """
        if self.model is None:
            self.model = self._only_model()
        else:
            self._check_awake()

    def _settled(self, ids, top_k):
        try:
            found = self._asked(ids, top_k)
        except QuestionRefused as error:
            if "prompt_logprobs" not in str(error):
                raise QuestionRefused(
                    f"{error}; it was asked for {top_k} log-probabilities a position "
                    "(teacher_server_top_k)"
                ) from None
            found = None
        reason = ""
        if found is None:
            self._echo = True
            try:
                found = self._asked(ids, top_k)
            except _Unnamed:
                raise
            except QuestionRefused as error:
                reason = f"; {error}"
        if found is None:
            raise ValueError(
                f"{self._name} returns no log-probabilities of the tokens of a prompt: {_SHOWN}"
                f"{reason}"
            )
        return found

    def predictions(self, ids: Sequence[int], top_k: int) -> list[dict[int, float]]:
        """For each token but the first, token -> log-probability of the most likely in its place.

        Raises:
            ValueError: the server refuses the key, the model or, ``QuestionRefused``, the prompt.
            OSError: ``ServerFailed``, there is no answer after all retries.
        """
        found = self._asked(ids, top_k)
        if found is None:
            raise ServerFailed(f"{self._name} has stopped returning log-probabilities of prompts")
        return found

    def _asked(self, ids, top_k):
        if self._echo:
            body = {"return_tokens_as_token_ids": True}
            settings = {"echo": True, "logprobs": top_k, "extra_body": body}
        else:
            settings = {"extra_body": {"prompt_logprobs": top_k}}
        read = self._echoed if self._echo else self._listed
        try:
            for attempt in range(_TRIES):
                self._stop.wait(attempt / 2)
                try:
                    answer = self._client.completions.create(
                        model=self.model, prompt=[*ids], max_tokens=1, temperature=0, **settings
                    )
                    return read(answer.choices[0], len(ids))
                except (TypeError, AttributeError, LookupError, ValueError) as error:
                    if isinstance(error, QuestionRefused):
                        raise
                    continue  # a damaged body
        except self._openai.APIError as error:
            fault = self._fault(error)
        else:
            fault = ServerFailed(f"{self._name} sends no completions; its address ends in /v1")
        raise fault

    def _listed(self, choice, num_tokens):
        """vLLM's: the first token has no prediction, and others may be listed beside the top."""
        places = getattr(choice, "prompt_logprobs", None)
        if places is None:
            return None
        self._check_number(places, num_tokens)
        found = []
        for place in places[1:]:
            found.append({int(token): float(each["logprob"]) for token, each in place.items()})
            for token, each in place.items():
                if isinstance(text := each.get("decoded_token"), str):
                    self.texts[int(token)] = text
        return found

    def _echoed(self, choice, num_tokens):
        places = getattr(choice.logprobs, "top_logprobs", None) if choice.logprobs else None
        if places is None:
            return None
        places = places[:num_tokens]  # behind them is the token that it wrote
        self._check_number(places, num_tokens)
        found = []
        for place in places[1:]:
            named = {_NAMED.fullmatch(name): log for name, log in place.items()}
            if None in named:
                raise _Unnamed(
                    f"{self._name} names tokens by their texts, which several tokens may share; "
                    "it must take prompt_logprobs or return_tokens_as_token_ids, as vLLM does"
                )
            found.append({int(match[1]): float(log) for match, log in named.items()})
        return found

    def _check_number(self, places, num_tokens):
        if len(places) != num_tokens:
            raise QuestionRefused(
                f"{self._name} read {len(places)} tokens where {num_tokens} were sent: it adds or "
                "cuts tokens, so its predictions are of another text"
            )

    def _list(self):
        client = self._client.with_options(timeout=min(_PATIENCE, self.timeout))
        return [str(each.id) for each in client.models.list().data]

    def _check_awake(self):
        """Refuse a server that hangs, sooner than a prompt may take; it need not list models."""
        try:
            self._list()
        except self._openai.APITimeoutError:
            fault = ServerFailed(f"{self._name} does not say which models it has")
        except (self._openai.APIConnectionError, self._openai.AuthenticationError) as error:
            fault = self._fault(error)
        except Exception:  # what is wrong otherwise, the first prompt tells
            return
        else:
            return
        raise fault

    def _only_model(self):
        try:
            listed = self._list()
        except (TypeError, AttributeError, LookupError, ValueError):  # a proxy's page
            fault = ValueError(
                f"{self._name} lists no models as an OpenAI-compatible server does; its address "
                "usually ends in /v1"
            )
        except self._openai.APITimeoutError:
            fault = ServerFailed(f"{self._name} does not say which models it has")
        except self._openai.APIError as error:
            fault = self._fault(error)
            if getattr(error, "status_code", None) not in (None, 401, 403):
                fault = ValueError(
                    f"{self._name} does not list its models ({error.status_code}); name the "
                    "teacher by teacher_server_model"
                )
        else:
            if len(listed) == 1:
                return listed[0]
            fault = ValueError(
                f"{self._name} lists {self._excerpt(', '.join(listed)) if listed else 'no model'}; "
                "name the teacher by teacher_server_model"
            )
        raise fault
