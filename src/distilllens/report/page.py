"""Sections, plots and widgets, and how they become one self-contained HTML page."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from distilllens.report.canvas import COLOURS, save, to_svg
from distilllens.report.parts import Choice, Entry, Table, when_attribute

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Drawing:
    """A matplotlib figure; ``when`` lists the choices for which it is shown."""

    figure: Any
    description: str
    when: str = ""


@dataclass(frozen=True)
class Plot:
    """A figure of the page with its title, caption, switches and numbers.

    Args:
        name: one word, unique on the page; also the name of the CSV file.
        caption: how to read the figure.
        table: the numbers behind the figure, stored in the page's data.
        shown: (when, table): small tables beside or below the drawing.
    """

    name: str
    title: str
    caption: str
    drawings: tuple[Drawing, ...]
    table: Table
    choices: tuple[Choice, ...] = ()
    legend: tuple[Entry, ...] = ()
    shown: tuple[tuple[str, Table], ...] = ()

    def html(self) -> str:
        """The part of the page."""
        drawings = "".join(
            f'<div class="drawing"{when_attribute(drawing.when)}>'
            f"{to_svg(drawing.figure, f'{self.name}{number}', drawing.description)}</div>"
            for number, drawing in enumerate(self.drawings)
        )
        shown = "".join(f"<div{when_attribute(w)}>{table.html()}</div>" for w, table in self.shown)
        return (
            f'<figure class="card" id="{self.name}" data-figure><h3>{escape(self.title)}</h3>'
            f'{self._switches()}<div class="sheet"><div>{drawings}</div>'
            f"<div>{shown}<figcaption>{escape(self.caption)}</figcaption>"
            f'<p class="files"><button type="button" class="quiet" data-csv="{self.name}">'
            "Download as CSV</button></p></div></div></figure>"
        )

    def _switches(self):
        choices = "".join(choice.html(self.name) for choice in self.choices)
        keys = "".join(entry.html() for entry in self.legend)
        legend = f'<div class="legend" role="group" aria-label="Show or hide">{keys}</div>'
        return f'<div class="switches">{choices}{legend if keys else ""}</div>'

    def save(self, folder: Path):
        """Write every drawing as PNG and SVG, with the initial choices."""
        chosen = {choice.name: choice.value for choice in self.choices}
        for drawing, stem in zip(self.drawings, self.stems(), strict=True):
            save(drawing.figure, folder / stem, chosen | _words(drawing))

    def stems(self) -> list[str]:
        """The name of each drawing's files, without a suffix."""
        return [self._stem(_words(drawing)) for drawing in self.drawings]

    def _stem(self, words):
        labels = [c.options[words[c.name]] for c in self.choices if c.name in words]
        parts = (re.sub(r"[^\w.]+", "-", part).strip("-.") for part in (self.name, *labels))
        return "-".join(filter(None, parts))


@dataclass(frozen=True)
class Widget:
    """A part that a script of its own builds from the page's data.

    Args:
        data: any JSON value; the script finds it in the page's data under ``name``.
        script: name of a file in this folder.
    """

    name: str
    title: str
    caption: str
    data: Any
    script: str

    def html(self) -> str:
        """The part of the page, empty until the script runs."""
        return (
            f'<section class="card wide" id="{self.name}"><h3>{escape(self.title)}</h3>'
            f'<p class="how">{escape(self.caption)}</p><div data-widget></div></section>'
        )


@dataclass(frozen=True)
class Section:
    """A heading, a lead text, and parts."""

    title: str
    text: str
    parts: tuple[Plot | Widget | Table, ...] = ()

    def html(self) -> str:
        """The part of the page."""
        parts = "".join(part.html() for part in self.parts)
        return (
            f"<section><h2>{escape(self.title)}</h2><p>{escape(self.text)}</p>"
            f'<div class="cards">{parts}</div></section>'
        )


def render_page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The whole page, in a light and a dark scheme; it loads nothing from elsewhere.

    All text is escaped. The numbers are in one JSON block, ``#data``: ``tables`` by plot name, and
    the data of each widget by its name.
    """
    parts = [part for section in sections for part in section.parts]
    data: dict[str, Any] = {"tables": {}}
    for part in parts:
        if isinstance(part, Plot):
            data["tables"][part.name] = {"columns": part.table.columns, "rows": part.table.rows}
        elif isinstance(part, Widget):
            data[part.name] = part.data
    scripts = ["page.js", *dict.fromkeys(p.script for p in parts if isinstance(p, Widget))]
    return Template(_file("page.html")).substitute(
        title=escape(title),
        lead=escape(lead),
        body="\n".join(section.html() for section in sections),
        style=_colours() + _file("page.css"),
        data=to_json(data),
        script="\n".join(map(_file, scripts)),
    )


def save_figures(sections: Sequence[Section], folder: Path):
    """Write every plot as PNG and SVG into an existing folder."""
    for section in sections:
        for part in section.parts:
            if isinstance(part, Plot):
                part.save(folder)


def figure_names(sections: Sequence[Section]) -> list[str]:
    """The names of the files that ``save_figures`` writes."""
    plots = [part for section in sections for part in section.parts if isinstance(part, Plot)]
    return [f"{stem}.{kind}" for plot in plots for stem in plot.stems() for kind in ("svg", "png")]


def to_json(value: Any) -> str:
    """Compact JSON that is safe inside ``<script>``.

    Floats have six significant digits; those that are not finite become strings.
    """
    text = json.dumps(_short(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # "</script>" or "<!--" in a token must not end the block.
    return text.replace("<", "\\u003c")


def _words(drawing):
    """The choices of a drawing: name -> value."""
    return dict(word.split("=") for word in drawing.when.split())


def _colours():
    light, dark = (
        "".join(f"--{name}:{pair[at]};" for name, pair in COLOURS.items()) for at in (0, 1)
    )
    dark = f"color-scheme:dark;{dark}"
    return (
        f":root{{color-scheme:light;{light}}}\n"
        f"@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}}}}}\n"
        f":root[data-theme=dark]{{{dark}}}\n"
    )


def _file(name):
    return (_HERE / name).read_text(encoding="utf-8")


def _short(value):
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_short(item) for item in value]
    return value
