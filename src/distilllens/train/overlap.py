"""How much of a teacher with another tokenizer a run compares, said before its first step."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from distilllens.teacher import AlignedTeacher, TeacherSource
from distilllens.train.collation import Collation
from distilllens.train.pairs import LEAST_SHARE

logger = logging.getLogger(__name__)
_NUM_ROWS = 32


@dataclass(frozen=True)
class Overlap:
    """What is compared.

    Attributes:
        positions: the share of the target tokens of the training data.
        tokens: how many are shared, and how many the student and the teacher have.
        mass: the teacher's probability on the shared tokens, at compared positions of the first
            rows of the training data; None where sorted probabilities are compared.
    """

    positions: float
    tokens: tuple[int, int, int]
    mass: float | None

    def __str__(self):
        shared, ours, theirs = self.tokens
        text = f"{self.positions:.1%} of the target tokens are compared"
        if self.mass is None:
            return f"{text}, by sorted probabilities ({ours:,} and {theirs:,} tokens)"
        return (
            f"{text}; {shared:,} tokens are shared ({ours:,} and {theirs:,}) and hold "
            f"{self.mass:.1%} of the teacher's probability"
        )


def measured_overlap(collation: Collation, teacher: TeacherSource | None) -> Overlap | None:
    """The overlap of a run whose teacher has another tokenizer; None for any other.

    Raises:
        ValueError: the shared tokens hold less than half of the teacher's probability.
    """
    if not isinstance(teacher, AlignedTeacher):
        return None
    words, mass = teacher.vocabularies, None
    if words.rule == "shared":
        mass = _shared_mass(collation, teacher)
        if mass < LEAST_SHARE:
            raise ValueError(
                f"the tokens that student and teacher share hold only {mass:.1%} of the "
                f"teacher's probability; at least {LEAST_SHARE:.0%} are needed, so choose models "
                "whose tokenizers are closer, or cross_tokenizer: uld, which names no token"
            )
    tokens = len(words.shared), len(words.student_ids), len(words.teacher_ids)
    found = Overlap(collation.pairs.share(), tokens, mass)
    logger.info("two tokenizers: %s", found)
    return found


def _shared_mass(collation, teacher):
    """The same rows on every process: a sharded teacher runs on all of them at once."""
    dataset, size = collation.train_dataset, collation.args.per_device_train_batch_size
    rows, parts = range(min(len(dataset), max(size, _NUM_ROWS))), []
    for start in range(0, len(rows), size):
        batch = collation.batch([(dataset, row) for row in rows[start : start + size]])
        batch = collation.to_device(batch)
        with torch.no_grad(), collation.accelerator.autocast():
            states, head = teacher.read((), normalize=True, **batch)
            parts.append(teacher.vocabularies.shared_mass(head, states.final, 1))
    return float(torch.cat(parts).mean())
