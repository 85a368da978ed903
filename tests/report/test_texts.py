"""Text on a page is escaped, and truncated or empty answers are marked."""

from distilllens.report.texts import Answers, Facts, Listing, Sample

NASTY = '</pre><script>alert("1")</script>&amp;'
ESCAPED = "&lt;/pre&gt;&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&amp;amp;"


def test_every_text_is_escaped():
    """Questions, references, answers, names, facts and lines run nothing."""
    sample = Sample(NASTY, NASTY, (NASTY,), (False,))
    for part in (Answers((NASTY,), (sample,)), Facts(NASTY, {NASTY: NASTY}), Listing(NASTY, NASTY)):
        html = part.html()
        assert "<script>" not in html and html.count(ESCAPED) >= 3


def test_models_stand_in_order_beside_the_reference():
    """One column per model after the reference; truncated and empty answers are marked."""
    sample = Sample("q", "r", (" one ", "two", " \n"), (False, True, False))
    html = Answers(("teacher", "start", "student"), (sample,)).html()
    names = [part.split("</h4>")[0] for part in html.split("<h4>")[1:]]
    assert names == ["reference", "teacher", "start", "student"]
    said = [part.split("</p>")[0] for part in html.split('<p class="said" dir="auto">')[1:]]
    assert said[:2] == ["r", "one"]
    assert said[2].startswith("two<i") and "truncated" in said[2]
    assert "(empty)" in said[3]


def test_right_and_wrong_answers_are_marked():
    """In words, not by colour alone; the reference has no mark, and no mark is the default."""
    sample = Sample("q", "r", ("r", "s"), (False, False), (True, False))
    html = Answers(("teacher", "student"), (sample,)).html()
    columns = html.split("<h4>")[1:]
    assert ["mark" in column for column in columns] == [False, True, True]
    assert ">right</p>" in columns[1] and ">wrong</p>" in columns[2]
    assert "mark" not in Answers(("a",), (Sample("q", "r", ("r",), (False,)),)).html()


def test_lines_can_be_scrolled_by_keys():
    """A listing takes the focus and has a name."""
    html = Listing("Command", "distilllens train").html()
    assert 'tabindex="0"' in html and 'aria-label="Command"' in html
