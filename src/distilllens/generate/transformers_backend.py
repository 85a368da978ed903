"""Answers of a causal LM to prompts, which do not depend on how the prompts are batched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager

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
from distilllens.generate.generation import Generation, generation
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
# Ways of batching, from the fastest to the safest: prompts with equal keys run as one batch. With
# the note for users.
_BATCHINGS: tuple[tuple[Callable, str | None], ...] = (
    (lambda index, ids: 0, None),
    (
        lambda index, ids: len(ids),
        "Left padding changes this model's logits, so only prompts of equal length are batched.",
    ),
    (
        lambda index, ids: index,
        "Batching changes this model's logits, so prompts run one at a time.",
    ),
)
_MAX_ERROR = 0.1  # of the spread of the logits; rounding stays far below, in 8 bits too


class TransformersBackend:
    """Generates with transformers' ``model.generate``, which supports the cache of every model.

    The answer to a prompt equals that of the naive program: one prompt at a time, a full forward
    for every token, ``argmax(logits / temperature + noise)`` with the noise of ``add_gumbel_``. It
    does not depend on the other prompts of a batch, their order, number or padding, except at near
    ties and, with ``top_p``, for tokens at the edge of the nucleus. Finished rows are removed from
    batch and cache when they are half of the batch.

    The constructor tests on a few tokens that padding, caching and removing rows leave the logits
    unchanged; if they do not, the model runs in smaller batches. Of the model's generation config
    only the end-of-sequence tokens are used; ``decoding`` sets everything else.

    The model is left unchanged: modes, generation config, random states. Every process generates by
    itself. Weights sharded over processes would need equal numbers of batches on all of them,
    which is not ensured here.

    Args:
        model: a causal LM of transformers, possibly wrapped by PEFT or DDP.
        tokenizer: the tokenizer that the model was trained with.

    Attributes:
        num_positions: the longest sequence that the model's configuration allows, or None.
        note: sentences for the user on padding and batching, or None.

    Raises:
        ValueError: the tokenizer has neither a padding nor an end-of-sequence token, or the
            model's generated logits differ from those of its forward.
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
        """Token ids of prompts, as ``encode_prompts``."""
        return encode_prompts(self._tokenizer, prompts)

    def generate(self, prompt_ids: list[list[int]], *, seed: int) -> list[Generation]:
        """One answer per prompt, in order; all prompts run as one batch if the model allows it.

        Raises:
            ValueError: a prompt has no tokens, or a logit is NaN or infinite.
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
            # Of an infinite score NaN, which is refused; an infinite gap is of one token alone.
            gaps[rows, step] = best[:, 0] - best[:, 1] + 0 * best[:, 0]
            return scores

        with undisturbed(self._model):
            answers = self._answers(prompt_ids, num_steps, score)
        return [self._generation(ids, row) for ids, row in zip(answers, gaps.cpu(), strict=True)]

    def _generation(self, ids, gaps):
        check_numbers(gaps := gaps[: len(ids)])
        near_ties = int((gaps <= NEAR_TIE).sum())
        return generation(self._tokenizer, ids, self._ends, near_ties)

    def _answers(self, prompts, num_steps, score) -> list[list[int]]:
        """The generated ids of every prompt, end token included.

        ``score(rows, step, logits)`` returns scores whose argmax is the next token: for the prompts
        ``rows``, an index tensor, after ``step`` tokens, from logits ``[len(rows), V]`` float32.
        """
        batches = {}
        for index, ids in enumerate(prompts):
            batches.setdefault(self._batch_key(index, ids), []).append(index)
        answers = [[] for _ in prompts]
        with _without_generation_config(self._model):
            for rows in batches.values():
                for row, ids in self._batch(prompts, rows, num_steps, score):
                    answers[row] += ids
        return answers

    def _batch(self, prompts, rows, num_steps, score):
        """Yield pieces of answers, ``(row, ids)``; finished rows are removed between pieces."""
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
                # Not batch_select_indices: caches of state-space layers do not have it, and caches
                # of hybrid models would apply it to only some of their layers.
                result.past_key_values.reorder_cache(going)
                cache = {"past_key_values": result.past_key_values}

    def _settings(self, max_new_tokens):
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=self._ends or None,
            # Fills finished rows. Not the tokenizer's padding token: an unfinished row might have
            # sampled it as its last token, and would then look padded on the right.
            pad_token_id=self._ends[0] if self._ends else None,
            return_dict_in_generate=True,
            disable_compile=True,
        )

    def _prove(self) -> str | None:
        """Choose the first of ``_BATCHINGS`` that keeps the logits of full forwards; its note."""
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
            # Mamba's models call the argument cache_params; older models have none.
            takes_cache = accepts(model, "past_key_values", by_name=True)
            self._can_cut = takes_cache and isinstance(first.past_key_values, Cache)
            truth = logits_of(model(**without_cache(model, {"input_ids": whole})))[0, 2:]
            exact = max(torch.finfo(dtype).eps for dtype in (truth.dtype, model.dtype)) ** 0.5 / 3
            check_numbers(truth)
            for batch_key, note in _BATCHINGS:
                self._batch_key = batch_key
                # The second row, longer if padding is tested, ends after its second token.
                pair = [short, long if note is None else long[:3]]
                error = spread_error(self._forced(pair, answer), truth.float())
                if error <= exact:
                    return note
        if not error <= _MAX_ERROR:
            raise ValueError(
                f"{type(model).__name__}.generate disagrees with the model's forward: the "
                f"logits are off by {error:.0%} of their spread, even one prompt at a time"
            )
        return note

    def _forced(self, prompts, answer):
        """Logits ``[len(answer), V]`` of the first prompt, forced to give that answer."""
        seen = {}

        def score(rows, step, scores):
            tokens = torch.full_like(rows, answer[step])
            if self._ends and step == 1:
                tokens[rows == 1] = self._ends[0]
            if len(own := scores[rows == 0]):  # empty when the other prompt runs alone
                seen[step] = own
            return torch.zeros_like(scores).scatter_(1, tokens.unsqueeze(1), 1.0)

        self._answers(prompts, len(answer), score)
        return torch.cat([seen[step] for step in range(len(answer))])


def plan_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices of prompts in batches, longest prompts first, equal lengths in their order.

    This keeps padding low, and if a batch does not fit into memory, the first one fails.

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
        ValueError: a prompt's length + max_new_tokens exceeds ``num_positions``; the message names
            the first.
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


def tempered(scores: Tensor, decoding: Decoding) -> Tensor:
    """``logits / temperature``, -inf outside the top-p nucleus; up to a constant per row."""
    # The best score becomes 0: a tiny temperature then overflows to -inf, never to inf - inf.
    scores = scores - scores.amax(dim=-1, keepdim=True)
    scores.div_(max(decoding.temperature, 1e-30))
    if decoding.top_p < 1:
        scores = TopPLogitsWarper(decoding.top_p)(None, scores)
    return scores


def check_numbers(values: Tensor) -> None:
    """Refuse NaN, which is also what infinite logits have become by now.

    Raises:
        ValueError: a value is NaN; the message lists likely causes.
    """
    if values.isnan().any():
        raise ValueError(
            "the model's logits are no numbers (NaN or infinite): its weights may be damaged, its "
            "training may have diverged, or its dtype may have too small a range"
        )


def spread_error(logits: Tensor, truth: Tensor) -> float:
    """|logits - truth| / |truth| after subtracting row means, which softmax ignores."""
    logits, truth = (x - x.mean(dim=-1, keepdim=True) for x in (logits, truth))
    return float((logits - truth).norm() / truth.norm().clamp(min=1e-30))


class _Scores(LogitsProcessor):
    """Passes the logits of a step to ``score(rows, step, logits)``."""

    def __init__(self, score, rows, start):
        self.score, self.rows, self.start = score, rows, start

    def __call__(self, input_ids, scores):
        return self.score(self.rows, input_ids.shape[1] - self.start, scores)


class _HalfEnded(StoppingCriteria):
    """Ends a call of ``generate`` as soon as half of its rows are finished."""

    def __init__(self, ends, width):
        self.ends, self.width = ends, width

    def __call__(self, input_ids, scores, **kwargs):
        ended = torch.isin(input_ids[:, self.width :], self.ends).any(dim=1)
        return (2 * ended.sum() >= len(ended)).expand(len(ended))


@contextmanager
def _without_generation_config(model):
    """Temporarily ignore the model's generation config: unset settings get transformers' defaults.

    Passing a complete config to each call is no substitute: transformers would replace its None
    settings by the model's.
    """
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
