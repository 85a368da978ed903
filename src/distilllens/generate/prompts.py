"""Between text and tokens: how a prompt is read, padded, and where an answer ends."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distilllens.data import encode_messages


def encode_prompts(tokenizer, prompts: Sequence[str | list[dict]]) -> list[list[int]]:
    """Token ids of prompts as SFTTrainer's sequences begin: with the special tokens in front.

    Messages go through the tokenizer's chat template. What some tokenizers add behind a text (an
    end-of-sequence token) comes behind the answer in training, and is left out.
    """
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    read = iter(_encode_texts(tokenizer, texts))
    return [
        next(read)
        if isinstance(prompt, str)
        else encode_messages(prompt, tokenizer, {}, add_generation_prompt=True)
        for prompt in prompts
    ]


def _encode_texts(tokenizer, prompts):
    if not prompts:
        return []
    encoded = tokenizer(list(prompts), return_special_tokens_mask=True, verbose=False)
    found = []
    for ids, special in zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True):
        end = len(ids)
        while 0 in special and special[end - 1]:
            end -= 1
        found.append(ids[:end])
    return found


def check_prompts(prompt_ids: Sequence[Sequence[int]]) -> None:
    """Refuse prompts without a token.

    Raises:
        ValueError: with the number of the first one.
    """
    for number, ids in enumerate(prompt_ids, 1):
        if not ids:
            raise ValueError(f"prompt {number} has no tokens; a model answers at least one")


def left_padded(prompts: list[list[int]], pad: int, device) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, ``[B, T]`` int64."""
    width = max(map(len, prompts))
    ids = [[pad] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def padding_token(
    pad: int | None, ends: Sequence[int], num_embeddings: int
) -> tuple[int, str | None]:
    """The id to pad with, and a sentence where it is not the tokenizer's own.

    Raises:
        ValueError: no padding token and nothing to take its place.
    """
    if pad is not None and pad < num_embeddings:
        return pad, None
    if not ends:
        raise ValueError(
            "the tokenizer has neither a padding nor an end-of-sequence token that the model "
            "knows, and the model's generation config names no eos_token_id; set the tokenizer's "
            "eos_token or pad_token"
        )
    return ends[0], (
        "The tokenizer has no padding token that the model knows; prompts are padded with an "
        "end-of-sequence token, which is masked out."
    )


def end_tokens(*sources) -> list[int]:
    """The ids that end an answer, in order: each source is an id, several, or None."""
    found = []
    for source in sources:
        found += [source] if isinstance(source, int) else list(source or ())
    return list(dict.fromkeys(found))


def up_to_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    """The ids up to and including the first that ends an answer."""
    for place, token in enumerate(ids):
        if token in ends:
            return ids[: place + 1]
    return ids
