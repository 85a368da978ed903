"""Tables, choices and legend entries of a page, as HTML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from itertools import zip_longest
from typing import Any

from distilllens.report.canvas import COLOURS

# With this many options or more, a drop-down list replaces the buttons.
_MANY = 5
_SHAPES = {
    "o": '<circle cx="14" cy="6" r="3.5"/>',
    "s": '<rect x="10.5" y="2.5" width="7" height="7"/>',
    "^": '<path d="M14 1.5 18 9.5H10z"/>',
    "D": '<path d="M14 1.5 18.5 6 14 10.5 9.5 6z"/>',
    "v": '<path d="M14 10.5 18 2.5H10z"/>',
    "P": '<path d="M12.5 2h3v2.5H18v3h-2.5V10h-3V7.5H10v-3h2.5z"/>',
    "X": '<path d="M10.5 3.5 12 2l2 2 2-2 1.5 1.5-2 2.5 2 2.5L16 10l-2-2-2 2-1.5-1.5 2-2.5z"/>',
}


@dataclass(frozen=True)
class Table:
    """Rows for a CSV file or a table on the page: text, numbers, or None for a missing value."""

    columns: tuple[str, ...]
    rows: tuple[tuple, ...]

    def html(self) -> str:
        """The table as HTML; floats have four significant digits, columns of words begin left."""
        words = [all(map(_is_words, cells)) for cells in zip_longest(*self.rows)]
        # The first column begins left in any case.
        marks = [' class="words"' if at and each else "" for at, each in enumerate(words)]
        head = "".join(
            f'<th scope="col"{mark or ""}>{escape(name)}</th>'
            for name, mark in zip_longest(self.columns, marks[: len(self.columns)])
        )
        rows = "".join(f"<tr>{''.join(map(_cell, row, marks))}</tr>" for row in self.rows)
        return (
            f'<div class="scroll"><table class="numbers"><thead><tr>{head}</tr></thead>'
            f"<tbody>{rows}</tbody></table></div>"
        )


@dataclass(frozen=True)
class Choice:
    """A choice between options; it shows the parts of a plot that are marked ``name=value``.

    Args:
        options: value (one word) -> label.
        chosen: the initial value; default: the first option.
        when: other choices for which this one is offered.
    """

    name: str
    label: str
    options: Mapping[str, str]
    chosen: str = ""
    when: str = ""

    @property
    def value(self) -> str:
        """The initial value."""
        return self.chosen or next(iter(self.options))

    def html(self, plot: str) -> str:
        """Buttons, a drop-down list for many options, or a hidden input for a single one."""
        if len(self.options) == 1:
            return f'<input type="hidden" data-choice="{self.name}" value="{escape(self.value)}">'
        make = self._list if len(self.options) >= _MANY else self._buttons
        return make(f'name="{plot}-{self.name}" data-choice="{self.name}"')

    def _list(self, attributes):
        options = "".join(
            f'<option value="{escape(value)}"{" selected" * (value == self.value)}>'
            f"{escape(label)}</option>"
            for value, label in self.options.items()
        )
        return (
            f'<label class="choice"{when_attribute(self.when)}>{escape(self.label)} '
            f"<select {attributes}>{options}</select></label>"
        )

    def _buttons(self, attributes):
        options = "".join(
            f'<label><input type="radio" {attributes} value="{escape(value)}"'
            f"{' checked' * (value == self.value)}><span>{escape(label)}</span></label>"
            for value, label in self.options.items()
        )
        return (
            f'<fieldset class="choice"{when_attribute(self.when)}>'
            f"<legend>{escape(self.label)}</legend>{options}</fieldset>"
        )


@dataclass(frozen=True)
class Entry:
    """A legend entry, which toggles the artists that ``canvas.mark`` put in its series.

    Args:
        style: as returned by ``canvas.style_of`` (color, dashes, marker), or color and "area".
    """

    series: str
    label: str
    style: Mapping[str, Any]

    def html(self) -> str:
        """A button with a sample of the line or area, in the colours of the page."""
        return (
            f'<button type="button" data-toggle="{escape(self.series)}" aria-pressed="true">'
            f"{self._sample()}{escape(self.label)}</button>"
        )

    def _sample(self):
        name = next(n for n, (light, _) in COLOURS.items() if light == self.style["color"])
        if "area" in self.style:
            shape = f'<rect x="4" width="20" height="12" opacity="{self.style["area"]}"/>'
        else:
            dashes = " ".join(map(str, self.style.get("dashes", ())))
            shape = f'<path class="line" d="M0 6h28" stroke-dasharray="{dashes}"/>'
            shape += _SHAPES.get(self.style.get("marker"), "")
        size = 'width="28" height="12" aria-hidden="true"'
        return f'<svg {size} style="--c:var(--{name})">{shape}</svg>'


def when_attribute(words: str) -> str:
    """The HTML attribute that shows a part for some choices only."""
    return f' data-when="{escape(words)}"' if words else ""


def _is_words(value):
    return isinstance(value, str) and value[:1].isalpha()


def _cell(value, mark=""):
    if isinstance(value, float):
        value = f"{value:.4g}"
    return f"<td{mark}>{escape('' if value is None else str(value))}</td>"
