"""One answer: generated tokens, and the text that they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Generation:
    """One answer.

    ``near_ties`` counts the steps whose two best scores, noise included, are within 1e-4 nats:
    there, floating-point rounding may have decided. At all other steps a float32 model gives the
    same token in every batch; in 16 bits, rounding of the logits is coarser than 1e-4.
    """

    text: str  # without special tokens
    num_tokens: int  # generated tokens, end-of-sequence token included
    finished: bool  # ended in an end-of-sequence token, not cut at max_new_tokens
    near_ties: int
    ids: tuple[int, ...] = field(default=(), repr=False, compare=False)  # those of ``num_tokens``


def generation(tokenizer, ids: list[int], ends: Sequence[int], near_ties: int) -> Generation:
    """Generated ids as a Generation. Its text excludes an end token that is not a special token."""
    finished = bool(ids) and ids[-1] in ends
    text = tokenizer.decode(ids[:-1] if finished else ids, skip_special_tokens=True)
    return Generation(text, len(ids), finished, near_ties, tuple(ids))


def continuation(tokenizer, prompt_ids: Sequence[int], answer: Generation) -> str:
    """The text of an answer as it continues the text of its prompt, white space included.

    ``answer.text`` is decoded alone: a SentencePiece tokenizer then drops the space in front of its
    first word, without which prompt and answer would run together.
    """
    ids = answer.ids[:-1] if answer.finished else answer.ids
    before, whole = (
        tokenizer.decode(part, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for part in ([*prompt_ids], [*prompt_ids, *ids])
    )
    # A prompt may end within a character, which its answer completes.
    return whole.removeprefix(before) if whole.startswith(before) else answer.text
