"""Rouge-L and exact match during training, with the answers and scores of an evaluation."""

from __future__ import annotations

import difflib
import inspect
from typing import NamedTuple

from tqdm.auto import tqdm

from distilllens.evaluate.benchmarks import Example, examples_of
from distilllens.evaluate.exact import exact_match
from distilllens.evaluate.rouge import rouge_l
from distilllens.evaluate.tasks import prompts_of
from distilllens.generate.decoding import Decoding
from distilllens.generate.transformers_backend import (
    TransformersBackend,
    check_prompt_lengths,
    plan_batches,
)
from distilllens.loading import positions_of


class AnswerScorer:
    """Answers records with a fixed seed and scores the answers, as sums over a share of them.

    Prompts are encoded once and kept: a training calls its scorer at every evaluation.

    Args:
        limit: use only the first ``limit`` records.
        settings: arguments of ``Decoding``.

    Raises:
        ValueError: a setting is unknown or out of range.
    """

    def __init__(self, seed: int = 10, limit: int | None = None, batch_size: int = 32, **settings):
        known = [*inspect.signature(Decoding).parameters, "seed", "limit", "batch_size"]
        for name in settings:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise ValueError(
                    f"eval_generate_kwargs has no {name!r}{hint} (it knows {', '.join(known)})"
                )
        for name, value, low in (
            ("seed", seed, 0),
            ("limit", limit, 1),
            ("batch_size", batch_size, 1),
        ):
            if (value is not None or name == "batch_size") and (
                type(value) is not int or value < low
            ):
                raise ValueError(
                    f"eval_generate_kwargs: {name} must be a whole number from {low}, got {value!r}"
                )
        self.seed, self.limit, self.batch_size = seed, limit, batch_size
        self.decoding = Decoding(**settings)
        self._last = None

    def check(self, records: list[dict], tokenizer, config, *, chat: bool = False):
        """Refuse records that cannot be answered, before training starts.

        Args:
            chat: format instructions with the chat template instead of Alpaca's.

        Raises:
            ValueError: a record has no reference, or a prompt leaves no room for an answer.
        """
        encoded = self._encoded(records, tokenizer, chat)
        lengths = [*map(len, encoded.prompt_ids)]
        places = [example.place for example in encoded.examples]
        check_prompt_lengths(lengths, positions_of(config), self.decoding, places)

    def __call__(
        self,
        records: list[dict],
        model,
        tokenizer,
        share: tuple[int, int] = (0, 1),
        *,
        chat: bool = False,
    ):
        """``{metric: (sum, count)}`` of the answers to part ``share[0]`` of ``share[1]``."""
        encoded = self._encoded(records, tokenizer, chat)
        examples, prompts = encoded.examples, encoded.prompt_ids
        backend = TransformersBackend(model, tokenizer, self.decoding)
        batches = plan_batches([*map(len, prompts)], self.batch_size)[share[0] :: share[1]]
        sums, count = {"rouge_l": 0.0, "exact_match": 0.0}, 0
        # None shows the bar on terminals only.
        hidden = True if share[0] else None
        for batch in tqdm(batches, desc="answers", leave=False, disable=hidden):
            answers = backend.generate([prompts[n] for n in batch], seed=self.seed)
            for number, generation in zip(batch, answers, strict=True):
                references = examples[number].references
                sums["rouge_l"] += rouge_l(generation.text, references)
                sums["exact_match"] += exact_match(generation.text, references)
            count += len(batch)
        return {metric: (total, count) for metric, total in sums.items()}

    def _encoded(self, records, tokenizer, chat):
        """The examples and prompts of the records, from the last call if nothing has changed."""
        # A trainer may change the chat template or the vocabulary of its tokenizer after check().
        state = (len(records), tokenizer.chat_template, len(tokenizer), chat)
        last = self._last
        if last and last.records is records and last.tokenizer is tokenizer and last.state == state:
            return last
        examples = examples_of(records[: self.limit], "evaluation data", chat)
        prompt_ids = prompts_of(examples, tokenizer)
        self._last = _Encoded(records, tokenizer, state, examples, prompt_ids)
        return self._last


class _Encoded(NamedTuple):
    records: list[dict]
    tokenizer: object
    state: tuple
    examples: tuple[Example, ...]
    prompt_ids: list[list[int]]
