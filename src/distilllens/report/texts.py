"""The parts of a page that are text: answers side by side, facts, and lines to copy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Sample:
    """A question with its reference, and what each model said.

    Args:
        answers: one a model; None where the model said nothing at all.
        cut: for each, whether it was cut at the longest answer asked for.
    """

    question: str
    reference: str
    answers: tuple[str, ...]
    cut: tuple[bool, ...]


@dataclass(frozen=True)
class Answers:
    """Samples under each other, the models side by side (on a phone under each other)."""

    models: tuple[str, ...]
    samples: tuple[Sample, ...]

    def html(self) -> str:
        """The part of the page."""
        return "".join(self._sample(n, sample) for n, sample in enumerate(self.samples, 1))

    def _sample(self, number, sample):
        said = [("reference", sample.reference, False)]
        said += zip(self.models, sample.answers, sample.cut, strict=True)
        columns = "".join(
            f'<div><h4>{escape(name)}</h4><p class="said" dir="auto">{_words(text, cut)}</p></div>'
            for name, text, cut in said
        )
        return (
            f'<article class="card wide"><h3>Question {number}</h3>'
            f'<p class="said asked" dir="auto">{escape(sample.question)}</p>'
            f'<div class="answers">{columns}</div></article>'
        )


@dataclass(frozen=True)
class Facts:
    """Names and values under a heading."""

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
    """Lines to read and to copy: a command, a recipe."""

    title: str
    text: str

    def html(self) -> str:
        """The part of the page; the lines can be reached and scrolled by keys."""
        label = escape(self.title)
        return (
            f'<div class="card wide"><h3>{label}</h3><pre class="listing" tabindex="0" '
            f'role="region" aria-label="{label}">{escape(self.text)}</pre></div>'
        )


def _words(text, cut):
    if not text.strip():
        return '<i class="none">nothing</i>'
    return escape(text.strip()) + ("<i class=none> … cut here</i>" if cut else "")
