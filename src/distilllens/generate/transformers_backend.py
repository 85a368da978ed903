"""Answers of a causal LM to prompts: the same texts however the prompts are batched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    Cache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TopPLogitsWarper,
)

from distilllens.generate.decoding import Decoding, add_gumbel_, noise_keys
from distilllens.generate.prompts import (
    check_prompts,
    encode_prompts,
    end_tokens,
    left_padded,
    padding_token,
    up_to_end,
)
from distilllens.lens.probe import accepts, logits_of, probe_ids, undisturbed, unwrap, without_cache
from distilllens.loading import positions_of

NEAR_TIE = 1e-4  # nats between the two best scores
# What runs as one batch, from the fastest way to the safest, and what to say of it.
_WAYS: tuple[tuple[Callable, str | None], ...] = (
    (lambda index, ids: 0, None),
    (
        lambda index, ids: len(ids),
        "Left padding changes what this model says, so only prompts of equal length are batched.",
    ),
    (
        lambda index, ids: index,
        "Batching changes what this model says, so prompts run one at a time.",
    ),
)
_REFUSED = 0.1  # of the spread of the logits; rounding stays far below, in 8 bits too


@dataclass(frozen=True)
class Generation:
    """One answer.

    ``near_ties`` counts the steps whose two best scores, noise included, lay within 1e-4: there the
    rounding of floats may have decided. Elsewhere a float32 model gives the same token in every
    batch; one in 16 bits rounds its own logits more coarsely than that.
    """

    text: str  # special tokens left out
    num_tokens: int  # generated, the end-of-sequence token included
    finished: bool  # ended by itself, not cut at max_new_tokens
    near_ties: int


class TransformersBackend:
    """Generates with transformers' ``model.generate``, which knows every model's caches.

    A prompt's answer equals that of the naive program: one prompt at a time, the whole forward for
    every token, ``argmax(logits / temperature + noise)`` with the noise of ``add_gumbel_``. Neither
    neighbours in the batch nor their order, padding and number matter, but for near ties and, with
    ``top_p``, tokens on the edge of the share. Rows that have ended are cut out of the cache when
    they are half of the batch.

    That padding, cache and cutting are harmless is tried out on a few tokens at the start; a model
    they harm runs in smaller batches. Only ``decoding`` decides: of the model's own generation
    config its end-of-sequence tokens are kept, and nothing else.

    The model is left as it was: modes, generation config, random states. One process generates by
    itself; weights that are sharded over processes need equal batches, which nobody ensures here.

    Args:
        model: a causal LM of transformers, or PEFT or DDP around one.
        tokenizer: its tokenizer, the one it was trained with.

    Attributes:
        num_positions: the longest sequence that the model's configuration allows, or None.
        note: what a user should know of how prompts run, in sentences, or None.

    Raises:
        ValueError: neither a padding nor an end-of-sequence token; a model that generates
            something else than its forward says.
    """

    def __init__(self, model, tokenizer, decoding: Decoding):
        self.decoding = decoding
        self._model, self._tokenizer = unwrap(model), tokenizer
        num_rows = self._model.get_input_embeddings().weight.shape[0]
        own = self._model.generation_config.eos_token_id
        self._ends = [end for end in end_tokens(own, tokenizer.eos_token_id) if end < num_rows]
        self._pad, padding = padding_token(tokenizer.pad_token_id, self._ends, num_rows)
        self.num_positions = positions_of(self._model.config)
        self.note = " ".join(filter(None, (padding, self._prove()))) or None

    def encode(self, prompts: Sequence[str | list[dict]]) -> list[list[int]]:
        """Token ids of prompts as they begin a training sequence."""
        return encode_prompts(self._tokenizer, prompts)

    def generate(self, prompt_ids: list[list[int]], *, seed: int) -> list[Generation]:
        """One answer to each prompt, in their order; all run at once where the model allows it.

        Raises:
            ValueError: a prompt without a token; scores that are no numbers.
        """
        check_prompts(prompt_ids)
        if not prompt_ids:
            return []
        num_steps, device = self.decoding.max_new_tokens, self._model.device
        keys = noise_keys(prompt_ids, seed, num_steps).to(device)
        gaps = torch.full((len(prompt_ids), num_steps), torch.inf, device=device)

        def score(rows, step, scores):
            if not self.decoding.greedy:
                add_gumbel_(scores := tempered(scores, self.decoding), keys[rows, step])
            best = scores.topk(2).values
            gaps[rows, step] = best[:, 0] - best[:, 1]
            return scores

        with undisturbed(self._model):
            answers = self._answers(prompt_ids, num_steps, score)
        return [self._generation(ids, row) for ids, row in zip(answers, gaps.cpu(), strict=True)]

    def _generation(self, ids, gaps):
        check_numbers(gaps := gaps[: len(ids)])
        near_ties = int((gaps <= NEAR_TIE).sum())
        return generation(self._tokenizer, ids, self._ends, near_ties)

    def _answers(self, prompts, num_steps, score) -> list[list[int]]:
        """Generated ids of every prompt, an end token included.

        ``score(rows, step, logits)`` gives the scores whose argmax is the next token: of the
        prompts ``rows``, an index tensor, after ``step`` tokens, from ``[len(rows), V]`` float32.
        """
        batches = {}
        for index, ids in enumerate(prompts):
            batches.setdefault(self._together(index, ids), []).append(index)
        found = [[] for _ in prompts]
        with _without_generation_config(self._model):
            for rows in batches.values():
                for row, ids in self._batch(prompts, rows, num_steps, score):
                    found[row] += ids
        return found

    def _batch(self, prompts, rows, num_steps, score):
        """Pieces of answers, as ``(row, ids)``; rows that have ended are cut out in between."""
        ids, mask = left_padded([prompts[row] for row in rows], self._pad, self._model.device)
        rows, ends = (
            torch.tensor(x, dtype=ids.dtype, device=ids.device) for x in (rows, self._ends)
        )
        cache, done = {}, 0
        while len(rows) and done < num_steps:
            width = ids.shape[1]
            criteria = [_HalfEnded(ends, width)] if self._can_cut else []
            result = self._model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=self._settings(num_steps - done),
                logits_processor=LogitsProcessorList([_Scores(score, rows, width - done)]),
                stopping_criteria=StoppingCriteriaList(criteria),
                **cache,
            )
            new = result.sequences[:, width:]
            for row, tokens in zip(rows.tolist(), new.tolist(), strict=True):
                yield row, up_to_end(tokens, self._ends)
            done += new.shape[1]
            going = torch.isin(new, ends).any(dim=1).logical_not().nonzero().squeeze(-1)
            rows, ids = rows[going], new[going, -1:]
            mask = torch.cat([mask[going], mask.new_ones(len(going), new.shape[1])], dim=1)
            if len(rows) and done < num_steps:
                # Not batch_select_indices: state-space layers lack it, mixed ones cut only half.
                result.past_key_values.reorder_cache(going)
                cache = {"past_key_values": result.past_key_values}

    def _settings(self, max_new_tokens):
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=self._ends or None,
            # What ended rows go on with. Not the tokenizer's padding: a row that goes on might
            # have sampled it as its last token, and would look padded on the right.
            pad_token_id=self._ends[0] if self._ends else None,
            return_dict_in_generate=True,
            disable_compile=True,
        )

    def _prove(self) -> str | None:
        """Take the first of ``_WAYS`` that keeps the logits of whole forwards; its note."""
        model = self._model
        ids = [i for i in probe_ids(model, 2, 16).flatten().tolist() if i not in self._ends]
        short, long, answer = ids[:3], ids[3:10], ids[10:14]
        whole = torch.tensor([[*short, *answer[:-1]]], device=model.device)
        with undisturbed(model):
            with _without_generation_config(model):
                inputs = {
                    "input_ids": whole[:, :3],
                    "attention_mask": torch.ones_like(whole[:, :3]),
                }
                first = model.generate(**inputs, generation_config=self._settings(1))
            # Mamba's models call it cache_params, older ones have none.
            takes_cache = accepts(model, "past_key_values", by_name=True)
            self._can_cut = takes_cache and isinstance(first.past_key_values, Cache)
            truth = logits_of(model(**without_cache(model, {"input_ids": whole})))[0, 2:]
            exact = max(torch.finfo(dtype).eps for dtype in (truth.dtype, model.dtype)) ** 0.5 / 3
            check_numbers(truth)
            for together, note in _WAYS:
                self._together = together
                # A row beside it, longer where that is padding, ends after its second token.
                pair = [short, long if note is None else long[:3]]
                error = spread_error(self._forced(pair, answer), truth.float())
                if error <= exact:
                    return note
        if not error <= _REFUSED:
            raise ValueError(
                f"{type(model).__name__} generates something else than its forward says: the "
                f"logits are off by {error:.0%} of their spread, even one prompt at a time"
            )
        return note

    def _forced(self, prompts, answer):
        """Logits ``[len(answer), V]`` of the first prompt while it is made to give that answer."""
        seen = {}

        def score(rows, step, scores):
            tokens = torch.full_like(rows, answer[step])
            if self._ends and step == 1:
                tokens[rows == 1] = self._ends[0]
            if len(own := scores[rows == 0]):  # empty where the other prompt runs by itself
                seen[step] = own
            return torch.zeros_like(scores).scatter_(1, tokens.unsqueeze(1), 1.0)

        self._answers(prompts, len(answer), score)
        return torch.cat([seen[step] for step in range(len(answer))])


def plan_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices of prompts in batches, longest prompts first, equal lengths in their order.

    So little is padding, and a batch that does not fit the memory fails at once.

    Raises:
        ValueError: ``batch_size`` < 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def check_prompt_lengths(
    lengths: Sequence[int], num_positions: int | None, decoding: Decoding, names: Sequence[str]
) -> None:
    """Refuse prompts that leave no room for a whole answer.

    Raises:
        ValueError: the first prompt whose length + max_new_tokens is beyond ``num_positions``.
    """
    longest = decoding.max_new_tokens
    for length, name in zip(lengths, names, strict=True):
        if num_positions is not None and length + longest > num_positions:
            room = num_positions - longest
            raise ValueError(
                f"{name}: the prompt has {length} tokens, and with --max_new_tokens {longest} that "
                f"is beyond the model's {num_positions} positions; lower --max_new_tokens"
                + (f", or leave such prompts out by --max_prompt_length {room}" if room > 0 else "")
            )


def generation(tokenizer, ids: list[int], ends: Sequence[int], near_ties: int) -> Generation:
    """Generated ids as a Generation; the end token is no text, though a tokenizer may think so."""
    finished = bool(ids) and ids[-1] in ends
    text = tokenizer.decode(ids[:-1] if finished else ids, skip_special_tokens=True)
    return Generation(text, len(ids), finished, near_ties)


def tempered(scores: Tensor, decoding: Decoding) -> Tensor:
    """``logits / temperature`` with what lies beyond ``top_p`` at -inf; up to a constant a row."""
    # The best score becomes 0: a tiny temperature then overflows to -inf, never to inf - inf.
    scores = scores - scores.amax(dim=-1, keepdim=True)
    scores.div_(max(decoding.temperature, 1e-30))
    if decoding.top_p < 1:
        scores = TopPLogitsWarper(decoding.top_p)(None, scores)
    return scores


def check_numbers(values: Tensor) -> None:
    """Refuse NaN, which any infinite or undefined logit makes of what is computed with it.

    Raises:
        ValueError: with what may be the matter.
    """
    if values.isnan().any():
        raise ValueError(
            "the model's logits are no numbers (NaN or infinite): its weights may be damaged, its "
            "training may have diverged, or its dtype is too narrow for it"
        )


def spread_error(found: Tensor, truth: Tensor) -> float:
    """|found - truth| / |truth|, both without the mean of their rows, which softmax ignores."""
    found, truth = (x - x.mean(dim=-1, keepdim=True) for x in (found, truth))
    return float((found - truth).norm() / truth.norm().clamp(min=1e-30))


class _Scores(LogitsProcessor):
    """Hands the logits of a step to ``score(rows, step, logits)``."""

    def __init__(self, score, rows, start):
        self.score, self.rows, self.start = score, rows, start

    def __call__(self, input_ids, scores):
        return self.score(self.rows, input_ids.shape[1] - self.start, scores)


class _HalfEnded(StoppingCriteria):
    """Ends a call of ``generate`` as soon as half of its rows have ended."""

    def __init__(self, ends, width):
        self.ends, self.width = ends, width

    def __call__(self, input_ids, scores, **kwargs):
        ended = torch.isin(input_ids[:, self.width :], self.ends).any(dim=1)
        return (2 * ended.sum() >= len(ended)).expand(len(ended))


@contextmanager
def _without_generation_config(model):
    """Inside, the model has no wishes of its own: what a call leaves open is transformers' default.

    Not a complete config given to each call: a setting of None there would be filled in from the
    model's.
    """
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
