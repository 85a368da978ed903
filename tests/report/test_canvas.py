"""Figures as SVG elements of a page, and as files."""

import errno
import os
import re
import warnings
import xml.etree.ElementTree as ElementTree

import pytest

pytest.importorskip("matplotlib")

from distilllens.report import canvas


def figure():
    """A figure with text and lines that a legend toggles and a choice shows."""
    drawn = canvas.new_figure()
    axes = drawn.subplots()
    canvas.frame(axes, "x < 1 & more", "y")
    for number in range(2):
        (line,) = axes.plot(
            [0, 1 / 3, 2 / 3], [0, 1, 2 + number], **canvas.style_of(number), label=str(number)
        )
        canvas.mark(line, series=f"s{number}", when=f"depth={number} student=1")
    return drawn


def test_a_page_gets_one_lean_svg_element():
    """Well-formed, without width, unused ids, style sheets or comments."""
    text = canvas.to_svg(figure(), "one", 'a "line"')
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg") and "width" not in root.attrib and root.get("viewBox")
    assert root.get("aria-label") == 'a "line"'
    assert not re.search(r"<!--|<style|<metadata|xlink|\d\.\d{3}|DejaVu", text)
    ids = re.findall(r' id="([^"]*)"', text)
    assert all(f"#{name}" in text for name in ids)
    assert "x &lt; 1 &amp; more" in text  # text stays text
    assert len(text) < 15_000


def test_colours_follow_the_page():
    """Every colour of a figure is a variable of the page."""
    text = canvas.to_svg(figure(), "one", "")
    assert not re.search(r"#[0-9a-f]{6}\b", text)
    assert {"teacher", "first", "ink", "muted", "grid"} <= set(re.findall(r"var\(--(\w+)\)", text))


def test_marked_artists_say_when_they_are_shown():
    """Groups carry the legend's series and the choices as data attributes."""
    text = canvas.to_svg(figure(), "one", "")
    assert '<g data-series="s0" data-when="depth=0 student=1">' in text


def test_two_figures_of_a_page_share_no_id():
    """Names of clip paths and markers depend on the figure's name, and on nothing else."""
    one, again, two = (canvas.to_svg(figure(), name, "") for name in ("one", "one", "two"))
    assert one == again
    ids = [set(re.findall(r' id="([^"]*)"', text)) for text in (one, two)]
    assert ids[0] and not ids[0] & ids[1]


def test_files_hold_what_was_chosen(tmp_path):
    """PNG and SVG are complete; lines of other choices are left out, the legend is drawn."""
    canvas.save(figure(), tmp_path / "chosen", {"depth": "0", "student": "1"})
    canvas.save(figure(), tmp_path / "none", {"depth": "7", "student": "1"})
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["chosen.png", "chosen.svg", "none.png", "none.svg"]
    assert (tmp_path / "chosen.png").read_bytes().startswith(b"\x89PNG\r\n")
    svg = (tmp_path / "chosen.svg").read_text()
    teacher, student = (canvas.style_of(number)["color"] for number in (0, 1))
    assert teacher in svg.split('id="legend')[1] and student not in svg
    assert teacher not in (tmp_path / "none.svg").read_text()


def test_models_differ_in_more_than_colour():
    """No two of twelve students share colour, marker and dashes."""
    styles = [canvas.style_of(number) for number in range(13)]
    looks = {(s["color"], s["marker"], s.get("dashes")) for s in styles}
    assert len(looks) == 13


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, two):
    """Contrast ratio of WCAG 2, 1 to 21."""
    low, high = sorted((luminance(one), luminance(two)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_can_be_told_from_the_paper(scheme):
    """Text meets WCAG AA contrast on every background, lines the 3:1 of graphics."""
    named = {name: pair[scheme] for name, pair in canvas.COLOURS.items()}
    for ground in ("paper", "sheet", "full"):
        assert contrast(named["ink"], named[ground]) >= 4.5
    for ground in ("paper", "sheet"):
        assert contrast(named["muted"], named[ground]) >= 4.5
        assert contrast(named["link"], named[ground]) >= 4.5
    for name in ("teacher", *canvas.STUDENTS):
        assert contrast(named[name], named["paper"]) >= 3, name


def test_ticks_are_words():
    """Coordinates are rounded to two digits, tick labels are not."""
    figure = canvas.new_figure()
    axes = figure.subplots()
    axes.plot([0, 1], [0, 0.0005])
    axes.set_yticks([0.0005, -0.125], ["0.0005", "−0.125"])
    text = canvas.to_svg(figure, "a", "ticks")
    assert ">0.0005<" in text and ">−0.125<" in text
    assert not re.search(r'[" ]-?\d+\.\d{3,}', text)


NAMES = [
    "$\\frac$",
    "a$b$c",
    "$x",
    "_hidden",
    "_child",
    "a\\b",
    "{x}",
    "kd-0.0005",
    "#0072b2",
    "x^2_3",
]


def test_names_are_literal_in_files(tmp_path):
    """No formula, no colour, no number is made of a model's name, and none is left out."""
    drawn = canvas.new_figure()
    axes = drawn.subplots()
    canvas.frame(axes, "a $\\frac$ in a label", "y")
    for number, name in enumerate(NAMES):
        axes.plot([0, 1], [0, number], label=name, **canvas.style_of(number))
        axes.fill_between([0, 1], [0, number], [1, number])
    axes.set_title("a $title$ of {x}_1")
    canvas.save(drawn, tmp_path / "names", {})
    shown = [text.get_text() for text in drawn.legends[0].get_texts()]
    assert shown == NAMES
    svg = (tmp_path / "names.svg").read_text()  # each text is a path, beside a comment
    comments = re.findall("<!-- (.*?) -->", svg)
    assert set(NAMES) | {"a $\\frac$ in a label", "a $title$ of {x}_1"} <= set(comments)


def test_names_are_literal_in_pages():
    """Colours and coordinates change in tags alone, never in a text."""
    drawn = canvas.new_figure()
    axes = drawn.subplots()
    canvas.frame(axes, "depth", "y")
    for place, name in enumerate(NAMES):
        axes.text(0, place / 10, name)
    text = canvas.to_svg(drawn, "names", "")
    found = [element.text for element in ElementTree.fromstring(text).iter() if element.text]
    assert set(NAMES) <= {words.strip() for words in found}
    assert not re.search(r'[" ]-?\d+\.\d{3,}', re.sub(">[^<]*<", "><", text))


def test_characters_without_a_glyph_are_told_once(tmp_path, caplog):
    """Not for each character and file, and not for a page, whose text the browser draws."""
    canvas._told.clear()
    drawn = figure()
    drawn.axes[0].set_title("日本語")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        canvas.to_svg(drawn, "one", "")
        assert not caplog.records
        for name in ("one", "two"):
            canvas.save(drawn, tmp_path / name, {})
    assert [record.getMessage() for record in caplog.records] == [
        "the figures show boxes for characters that matplotlib's font does not have, such as 日; "
        "a page shows them"
    ]
    assert len(list(tmp_path.iterdir())) == 4


def test_other_warnings_of_a_figure_are_shown(monkeypatch):
    """Only those on glyphs are put together."""
    drawn = figure()
    monkeypatch.setattr(drawn, "savefig", lambda *a, **k: warnings.warn("other", stacklevel=1))
    with pytest.warns(UserWarning, match="other"):
        canvas._svg(drawn, "one", "path")


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_full_disk_names_the_figure(tmp_path, monkeypatch, suffix):
    """And nothing temporary is left."""

    def full(part, path):
        if path.suffix == f".{suffix}":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.replace(part, path)

    monkeypatch.setattr("distilllens.files.settle", full)
    with pytest.raises(OSError) as refused:
        canvas.save(figure(), tmp_path / "entropy", {})
    assert refused.value.filename == str(tmp_path / f"entropy.{suffix}")
    assert not list(tmp_path.glob("*.part"))
