"""Cut a batch into documents, each with a key that shuffling, padding and packing do not change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise

import torch
from torch import Tensor

from distilllens.targets import Targets, target_positions

KEY_BYTES = 16


@dataclass(frozen=True, slots=True)
class Document:
    """A sequence of tokens that attend to each other.

    Attributes:
        key: blake2b of the token ids and of which of them predict a target.
        num_tokens: its length.
        num_targets: how many of its positions predict a target.
    """

    key: bytes
    num_tokens: int
    num_targets: int


def cut(
    input_ids: Tensor,
    targets: Targets,
    *,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    **inputs,
) -> list[Document]:
    """The documents of a batch that have a target, in the order of the targets.

    So ``targets.rows(hidden)`` is the concatenation of the documents' rows, in order.

    Args:
        input_ids: ``[B, T]``.
        targets: of the batch.
        attention_mask: ``[B, T]``, 0 on padding.
        position_ids: ``[B, T]``, starting from 0 in each packed document.
        inputs: other inputs of the model; ignored.
    """
    tables = (input_ids, targets.mask)
    parts = pieces(tables, attention_mask=attention_mask, position_ids=position_ids)
    found = [_document(ids, valid.bool()) for ids, valid in parts]
    return [document for document in found if document.num_targets]


def pieces(
    tables: Sequence[Tensor],
    *,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
) -> Iterator[list[Tensor]]:
    """The documents of a batch: of each, its part of every table, int32 on the CPU.

    A document begins at the start of a row and wherever ``position_ids`` are 0; padding belongs to
    none.

    Args:
        tables: ``[B, T]`` each, of numbers that int32 holds.
        attention_mask: ``[B, T]``, 0 on padding.
        position_ids: ``[B, T]``, starting from 0 in each packed document.
    """
    like = tables[0]
    real = torch.ones_like(like) if attention_mask is None else attention_mask
    begins = torch.zeros_like(like) if position_ids is None else position_ids == 0
    tables = (*tables, real != 0, begins.expand(like.shape))
    # One copy: every copy from an accelerator waits for it.
    *tables, real, begins = torch.stack([each.to(torch.int32) for each in tables]).cpu()
    real, begins = real.bool(), begins.bool()
    for row in range(len(like)):
        kept = real[row]
        parts = [table[row][kept] for table in tables]
        cuts = sorted({0, len(parts[0]), *begins[row][kept].nonzero().flatten().tolist()})
        for start, stop in pairwise(cuts):
            yield [part[start:stop] for part in parts]


def document_of(input_ids: list[int], labels: list[int]) -> Document:
    """The document that ``cut`` finds where these tokens are a row or a part of one."""
    ids = torch.tensor([input_ids], dtype=torch.int32)
    mask = target_positions(torch.tensor([labels], dtype=torch.int64))
    return _document(ids[0], mask[0])


def _document(ids, valid):
    digest = blake2b(ids.numpy().tobytes(), digest_size=KEY_BYTES)
    digest.update(valid.numpy().tobytes())
    return Document(digest.digest(), len(ids), int(valid.sum()))
