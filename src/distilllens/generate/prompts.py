"""Prompts as token ids, their padding, and where an answer ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from distilllens.data import encode_messages
from distilllens.data.encode import with_one_bos


def encode_prompts(
    tokenizer,
    prompts: Sequence[str | list[dict]],
    records: Sequence[Mapping] | None = None,
    names: Sequence[str] | None = None,
) -> list[list[int]]:
    """Token ids of prompts as SFTTrainer's sequences start, leading special tokens included.

    Messages are written by the tokenizer's chat template. Trailing special tokens that some
    tokenizers add to a text are left out: in training they follow the answer.

    Args:
        records: the record of each prompt, or its ``template_fields``; its ``tools`` and
            ``chat_template_kwargs`` go to the chat template.
        names: names of the prompts in messages; by default "prompt 1" and so on.

    Raises:
        ValueError: as ``encode_messages``, with the name of the prompt.
    """
    records = [{}] * len(prompts) if records is None else records
    names = [f"prompt {n}" for n in range(1, len(prompts) + 1)] if names is None else names
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    encoded = iter(_encode_texts(tokenizer, texts))
    found = []
    for prompt, record, name in zip(prompts, records, names, strict=True):
        if isinstance(prompt, str):
            found.append(next(encoded))
            continue
        try:
            found.append(encode_messages(prompt, tokenizer, record, add_generation_prompt=True))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return found


def _encode_texts(tokenizer, prompts):
    if not prompts:
        return []
    encoded = tokenizer(list(prompts), return_special_tokens_mask=True, verbose=False)
    prompt_ids = []
    for ids, special in zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True):
        end = len(ids)
        while 0 in special and special[end - 1]:
            end -= 1
        prompt_ids.append(with_one_bos(ids[:end], tokenizer))
    return prompt_ids


def check_prompts(prompt_ids: Sequence[Sequence[int]]) -> None:
    """Refuse empty prompts.

    Raises:
        ValueError: a prompt has no tokens; the message has its number, from 1.
    """
    for number, ids in enumerate(prompt_ids, 1):
        if not ids:
            raise ValueError(f"prompt {number} has no tokens; it needs at least one")


def left_padded(prompts: list[list[int]], pad: int, device) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, ``[B, T]`` int64."""
    width = max(map(len, prompts))
    ids = [[pad] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def padding_token(
    pad: int | None, ends: Sequence[int], num_embeddings: int
) -> tuple[int, str | None]:
    """The token id to pad with, and a note if it is not the tokenizer's padding token.

    Raises:
        ValueError: there is neither a padding token nor an end-of-sequence token.
    """
    if pad is not None and pad < num_embeddings:
        return pad, None
    if not ends:
        raise ValueError(
            "the tokenizer has neither a padding nor an end-of-sequence token that the model "
            "knows, and the model's generation config has no eos_token_id; set the tokenizer's "
            "eos_token or pad_token"
        )
    return ends[0], (
        "The tokenizer has no padding token that the model knows; prompts are padded with an "
        "end-of-sequence token, which is masked out."
    )


def end_tokens(*sources) -> list[int]:
    """The ids that end an answer, without repeats; each source is an id, several ids, or None."""
    ends = []
    for source in sources:
        ends += [source] if isinstance(source, int) else list(source or ())
    return list(dict.fromkeys(ends))


def up_to_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    """The ids up to and including the first end token."""
    for place, token in enumerate(ids):
        if token in ends:
            return ids[: place + 1]
    return ids
