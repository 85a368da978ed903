"""Exact match of an answer, as Super-NaturalInstructions defines it."""

from __future__ import annotations

import string
from collections.abc import Sequence

_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(answer: str, references: Sequence[str]) -> float:
    """100.0 if the answer equals one of the references, else 0.0 (percent).

    Texts are compared in lower case, without ASCII punctuation, and with each run of white space as
    one space. Articles are kept, unlike in SQuAD's definition.

    Source: Wang et al. 2022 (Super-NaturalInstructions), as MiniLLM uses it.
    """
    answer = _normalized(answer)
    return 100.0 if any(answer == _normalized(reference) for reference in references) else 0.0


def _normalized(text):
    return " ".join(text.lower().translate(_WITHOUT_PUNCTUATION).split())
