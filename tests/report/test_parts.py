"""Tables, choices and legends as HTML."""

import pytest

pytest.importorskip("matplotlib")

from distilllens.report.canvas import style_of
from distilllens.report.parts import Choice, Entry, Table

SCRIPT = "<script>x</script>"


def test_text_is_escaped_everywhere():
    """Names of models come from the user."""
    parts = [
        Table((SCRIPT,), ((SCRIPT, 1.0),)).html(),
        Choice("a", SCRIPT, {"1": SCRIPT, "2": "b"}).html("plot"),
        Choice("a", SCRIPT, {str(n): SCRIPT for n in range(9)}).html("plot"),
        Entry("s", SCRIPT, style_of(1)).html(),
    ]
    for text in parts:
        assert "<script" not in text and "&lt;script&gt;" in text


def test_few_options_are_buttons_many_a_list_one_is_no_choice():
    """The chosen value is marked; a single one becomes a hidden input."""
    few = Choice("a", "A", {"1": "x", "2": "y"}, "2").html("plot")
    assert few.count('type="radio"') == 2 and 'value="2" checked' in few
    many = Choice("a", "A", {str(n): "x" for n in range(6)}, "3", "b=1").html("plot")
    assert '<option value="3" selected>' in many and ' data-when="b=1"' in many
    assert Choice("a", "A", {"1": "x"}).html("plot") == (
        '<input type="hidden" data-choice="a" value="1">'
    )


def test_numbers_have_four_digits_and_nothing_is_blank():
    """A missing value is an empty cell, a whole number stays whole."""
    html = Table(("a", "b", "c", "d"), (("x", 0.123456, 12345, None),)).html()
    for cell in ("<td>x</td>", ">0.1235</td>", ">12345</td>", "<td></td>"):
        assert cell in html


def test_columns_of_words_begin_left():
    """Numbers are read from their ends; a sentence, or a name, from its beginning."""
    html = Table(
        ("method", "why", "seconds"), (("a", "better by 1", 2.5), ("b", "worse", 3))
    ).html()
    assert (
        '<th scope="col" class="words">why</th>' in html and '<td class="words">worse</td>' in html
    )
    assert '<th scope="col">seconds</th>' in html and "<td>2.5</td>" in html
    assert "<th" in Table(("method", "why"), ()).html()
