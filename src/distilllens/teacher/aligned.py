"""A teacher with another tokenizer: it reads the same documents as its own tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from distilllens.head import Head
from distilllens.lens import LayerStates
from distilllens.targets import IGNORED, Targets
from distilllens.teacher.documents import cut
from distilllens.teacher.source import TeacherSource
from distilllens.vocabularies import Compared, Vocabularies


class Paired(NamedTuple):
    """A document of the student as the teacher reads it.

    Attributes:
        input_ids: the teacher's tokens.
        labels: of them; a target is the token behind a position that is compared.
        places: the numbers of the compared targets among the student's, in the same order.
        weight: of each.
    """

    input_ids: list[int]
    labels: list[int]
    places: list[int]
    weight: float = 1.0


class PaddingCollator:
    """Rows of ``input_ids`` and ``labels`` -> a batch, padded on the right."""

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, rows: list[Mapping]) -> dict[str, Tensor]:
        """``input_ids``, ``attention_mask`` and ``labels``, each ``[B, T]``."""
        ids = [torch.as_tensor(row["input_ids"]) for row in rows]
        labels = [torch.as_tensor(row["labels"]) for row in rows]
        pad = partial(pad_sequence, batch_first=True)
        return {
            "input_ids": pad(ids, padding_value=self.pad_token_id),
            "attention_mask": pad([torch.ones_like(row) for row in ids]),
            "labels": pad(labels, padding_value=IGNORED),
        }


class AlignedTeacher:
    """A teacher around another, which is asked for the student's documents in its own tokens.

    Its states are those at the positions that can be compared, and say which these are.

    Args:
        source: a teacher that reads batches of its own tokens, live or cached.
        documents: the key of a document of the student -> what the teacher reads.
        vocabularies: of the two tokenizers.
        collator: of the teacher's batches.
    """

    def __init__(
        self,
        source: TeacherSource,
        documents: Mapping[bytes, Paired],
        vocabularies: Vocabularies,
        collator: PaddingCollator,
    ):
        self.source, self.documents, self.collator = source, documents, collator
        self.vocabularies, self.num_layers = vocabularies, source.num_layers

    def read(self, depths, *, normalize, targets, **inputs) -> tuple[LayerStates, Head]:
        """States ``[M, Dt]`` at the M of N targets that are compared, and the head for them.

        Raises:
            ValueError: a document that is not among those that were paired.
        """
        return self.begin(depths, normalize=normalize, targets=targets, **inputs)()

    def begin(self, depths, *, normalize, targets, **inputs):
        """What ``read`` returns, from a call that ends it."""
        documents = cut(targets=targets, **inputs)
        paired = [self._paired(document) for document in documents]
        starts = torch.tensor([0, *(each.num_targets for each in documents)]).cumsum(0).tolist()
        places = [s + place for s, each in zip(starts, paired, strict=False) for place in each[2]]
        weights = [each.weight for each in paired for _ in each.places]
        # A sharded teacher runs on all processes at once, also without a document.
        empty = Paired([self.collator.pad_token_id], [IGNORED], [])
        batch = self.collator([each._asdict() for each in paired or [empty]])
        device = targets.mask.device
        batch = {name: value.to(device) for name, value in batch.items()}
        theirs = Targets.of(batch.pop("labels"))
        end_read = self.source.begin(depths, normalize=normalize, targets=theirs, **batch)
        compared = Compared(
            torch.tensor(places, dtype=torch.long, device=device),
            torch.tensor(weights, dtype=torch.float32, device=device),
            self.vocabularies,
        )
        return partial(_with_places, end_read, compared)

    def _paired(self, document):
        try:
            return self.documents[document.key]
        except KeyError:
            raise ValueError(
                f"a document of {document.num_tokens} tokens is not among the data that the "
                "trainer was made with, and with cross_tokenizer only those have been read by "
                "the teacher's tokenizer; pass it as eval_dataset"
            ) from None


def _with_places(end_read, compared):
    states, head = end_read()
    return replace(states, compared=compared), head
