"""Text parts of a page: answers side by side, facts, and listings to copy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

_MARKS = {
    None: "",
    True: '<p class="mark right">right</p>',
    False: '<p class="mark wrong">wrong</p>',
}


@dataclass(frozen=True)
class Sample:
    """A question with its reference and the answer of each model.

    Args:
        answers: one per model.
        cut: for each answer, whether it was truncated at the maximum length.
        right: for each answer, whether to mark it as right or wrong; empty for no marks.
    """

    question: str
    reference: str
    answers: tuple[str, ...]
    cut: tuple[bool, ...]
    right: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Answers:
    """Samples one below the other, each with its answers side by side (stacked on a phone)."""

    models: tuple[str, ...]
    samples: tuple[Sample, ...]

    def html(self) -> str:
        """The part of the page."""
        return "".join(self._sample(n, sample) for n, sample in enumerate(self.samples, 1))

    def _sample(self, number, sample):
        answers = [("reference", sample.reference, False, None)]
        marks = sample.right or [None] * len(sample.answers)
        answers += zip(self.models, sample.answers, sample.cut, marks, strict=True)
        columns = "".join(
            f'<div><h4>{escape(name)}</h4><p class="said" dir="auto">{_answer(text, cut)}</p>'
            f"{_MARKS[right]}</div>"
            for name, text, cut, right in answers
        )
        return (
            f'<article class="card wide"><h3>Question {number}</h3>'
            f'<p class="said asked" dir="auto">{escape(sample.question)}</p>'
            f'<div class="answers">{columns}</div></article>'
        )


@dataclass(frozen=True)
class Facts:
    """Names and values below a heading."""

    title: str
    facts: Mapping[str, str]

    def html(self) -> str:
        """The part of the page."""
        rows = "".join(
            f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>"
            for name, value in self.facts.items()
        )
        return (
            f'<div class="card wide"><h3>{escape(self.title)}</h3>'
            f'<dl class="facts">{rows}</dl></div>'
        )


@dataclass(frozen=True)
class Listing:
    """Lines to read and copy, such as a command or a recipe."""

    title: str
    text: str

    def html(self) -> str:
        """The part of the page; the lines can be focused and scrolled with the keyboard."""
        label = escape(self.title)
        return (
            f'<div class="card wide"><h3>{label}</h3><pre class="listing" tabindex="0" '
            f'role="region" aria-label="{label}">{escape(self.text)}</pre></div>'
        )


def _answer(text, cut):
    if not text.strip():
        return '<i class="none">(empty)</i>'
    return escape(text.strip()) + ("<i class=none> … (truncated)</i>" if cut else "")
