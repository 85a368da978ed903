"""Rouge-L of a model in training: the same answers and the same score as an evaluation's."""

from __future__ import annotations

import difflib
import inspect

from tqdm.auto import tqdm

from distilllens.evaluate.benchmarks import examples_of
from distilllens.evaluate.exact import exact_match
from distilllens.evaluate.rouge import rouge_l
from distilllens.generate.decoding import Decoding
from distilllens.generate.prompts import encode_prompts
from distilllens.generate.transformers_backend import (
    TransformersBackend,
    check_prompt_lengths,
    plan_batches,
)
from distilllens.loading import positions_of


class AnswerScorer:
    """Answers records with one fixed seed and scores the answers, as sums over a share of them.

    Args:
        limit: only the first so many records.
        settings: of ``Decoding``.

    Raises:
        ValueError: an unknown setting, or one out of range.
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

    def check(self, records: list[dict], tokenizer, config):
        """Refuse records that cannot be answered, before any training.

        Raises:
            ValueError: records without a reference, or a prompt that leaves no room for an answer.
        """
        examples = self._examples(records)
        lengths = [*map(len, encode_prompts(tokenizer, [e.prompt for e in examples]))]
        places = [example.place for example in examples]
        check_prompt_lengths(lengths, positions_of(config), self.decoding, places)

    def __call__(self, records: list[dict], model, tokenizer, share: tuple[int, int] = (0, 1)):
        """``{metric: (sum, count)}`` of the answers to part ``share[0]`` of ``share[1]``."""
        examples = self._examples(records)
        backend = TransformersBackend(model, tokenizer, self.decoding)
        prompts = backend.encode([example.prompt for example in examples])
        batches = plan_batches([*map(len, prompts)], self.batch_size)[share[0] :: share[1]]
        sums, count = {"rouge_l": 0.0, "exact_match": 0.0}, 0
        # None: only where somebody is looking. Training has a bar of its own.
        hidden = True if share[0] else None
        for batch in tqdm(batches, desc="answers", leave=False, disable=hidden):
            found = backend.generate([prompts[n] for n in batch], seed=self.seed)
            for number, generation in zip(batch, found, strict=True):
                references = examples[number].references
                sums["rouge_l"] += rouge_l(generation.text, references)
                sums["exact_match"] += exact_match(generation.text, references)
            count += len(batch)
        return {metric: (total, count) for metric, total in sums.items()}

    def _examples(self, records):
        return examples_of(records[: self.limit], "evaluation data")
