"""The page is one file with its numbers in it."""

import json
import re
from html.parser import HTMLParser

import pytest

pytest.importorskip("matplotlib")

from distilllens.report.canvas import new_figure
from distilllens.report.page import (
    Drawing,
    Plot,
    Section,
    Widget,
    render_page,
    save_figures,
    to_json,
)
from distilllens.report.parts import Choice, Table


class Outline(HTMLParser):
    """Every tag with its attributes, and the contents of scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "script" and self.lasttag == "script":
            self.scripts[-1] += data


def page(text="plain", **changes):
    """A page of one plot with two drawings and a widget."""
    drawings = tuple(Drawing(new_figure(), text, f"which={i}") for i in (1, 2))
    table = Table(("name", "value"), ((text, 0.5), ("b", float("inf")), ("c", None)))
    choice = Choice("which", "Which", {"1": "one way", "2": "other/way"})
    plot = Plot("plot", text, text, drawings, table, (choice,), **changes)
    widget = Widget("lens", text, text, {"word": text}, "lens_table.js")
    return [Section(text, text, (plot, widget, table))]


def data_of(html):
    """The contents of the page's data block."""
    (block,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    return json.loads(block)


@pytest.mark.parametrize(
    "text", ["plain", "</script><script>alert(1)</script>", "$title ${x}", "<!--"]
)
def test_text_stays_text(text):
    """Text in prompts and names never adds tags, and is preserved in the data."""
    html = render_page(text, text, page(text))
    plain = render_page("plain", "plain", page())
    assert [tag for tag, _ in Outline(html).tags] == [tag for tag, _ in Outline(plain).tags]
    assert data_of(html)["tables"]["plot"]["rows"][0] == [text, 0.5]
    assert data_of(html)["lens"] == {"word": text}


def test_nothing_is_asked_of_the_network():
    """No tag refers to anything outside of the page."""
    for tag, attributes in Outline(render_page("t", "l", page())).tags:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            target = attributes.get(name, "#")
            assert target.startswith("#") or target == "data:,", (tag, attributes)
    assert not re.search(
        r"@import|url\((?!#)|https?://(?!www\.w3\.org)", render_page("t", "l", page())
    )


def test_numbers_that_are_not_finite_are_text():
    """JSON has no infinity; a missing value is null."""
    rows = data_of(render_page("t", "l", page()))["tables"]["plot"]["rows"]
    assert rows[1:] == [["b", "inf"], ["c", None]]
    assert to_json({"a": [float("nan")]}) == '{"a":["nan"]}'


def test_every_drawing_is_saved(tmp_path):
    """Files are named after the plot and the label of its choice."""
    save_figures(page(), tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        f"plot-{label}.{kind}" for label in ("one-way", "other-way") for kind in ("png", "svg")
    ]
