"""Exact match of an answer, as Super-NaturalInstructions defines it, for every script."""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Sequence

import regex

_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)
# Soft hyphens, joiners and marks of direction are invisible.
_PUNCTUATION = regex.compile(rf"[\p{{P}}\p{{Cf}}{regex.escape(string.punctuation)}]")


def exact_match(answer: str, references: Sequence[str]) -> float:
    """100.0 if the answer equals one of the references, else 0.0 (percent).

    Texts are compared in lower case, without punctuation (ASCII's symbols and Unicode's category
    P), with each run of white space as one space, and in Unicode's NFC. A text of nothing but
    punctuation keeps it: ``!!!`` equals neither an empty answer nor ``...``. Articles are kept,
    unlike in SQuAD's definition.

    Source: Wang et al. 2022 (Super-NaturalInstructions), as MiniLLM uses it; for ASCII texts with a
    letter or digit it is their definition.
    """
    answer = _normalized(answer)
    return 100.0 if any(answer == _normalized(reference) for reference in references) else 0.0


def _normalized(text):
    text = text.lower()
    if text.isascii():
        kept = text.translate(_ASCII_PUNCTUATION)
    else:
        text = unicodedata.normalize("NFC", text)
        kept = _PUNCTUATION.sub("", text)
    return " ".join(kept.split()) or " ".join(text.split())
