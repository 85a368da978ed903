"""The inspector's page in a headless Chromium: mouse, keyboard and touch."""

import csv
import json
import time

import pytest

pytest.importorskip("matplotlib")

import browser as browsers
import toys

from distilllens.lens import inspect_models
from distilllens.report import inspector_sections, render_page

pytestmark = pytest.mark.skipif(
    browsers.CHROMIUM is None, reason="needs Chromium (Debian: apt install chromium)"
)
SIZES = {
    "desk": {"width": 1440, "height": 900},
    "phone": {"width": 390, "height": 844, "touch": True},
}


@pytest.fixture(scope="module")
def page(inspected, tmp_path_factory):
    """The page as a file."""
    sections = inspector_sections(inspected.found, inspected.names, inspected.text_of)
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(render_page("a & b", "A <lead>.", sections), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """One browser for all tests of this file."""
    opened = browsers.Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


def data(browser):
    return json.loads(browser.run("document.getElementById('data').textContent"))


def cell(side, row, token):
    """The selector of a cell of the teacher's table (side 0) or the student's."""
    return f'#lens .sides > div:nth-child({side + 1}) td[data-row="{row}"][data-token="{token}"]'


def ten(browser):
    """The words and percentages of the panel, a list for each model."""
    return browser.run(
        "[...document.querySelectorAll('#lens .ten ol')].map(list => [...list.children].map("
        "item => [item.querySelector('span').textContent, item.querySelector('b').textContent]))"
    )


def expected_ten(page_data, model, depth, token, text=0):
    """The same from the page's own data."""
    top, p, _ = page_data["lens"]["documents"][text]["cells"][model][depth]
    return [page_data["lens"]["words"][i] for i in top[token]], p[token]


def visible(browser, selector):
    """How many elements of a selector are drawn."""
    return browser.run(
        f"[...document.querySelectorAll({json.dumps(selector)})]"
        ".filter(e => e.getClientRects().length > 0).length"
    )


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_it_loads_alone_and_quietly(browser, page, size, dark):
    """It requests only its own file, logs nothing, and is not wider than the window."""
    browser.open(page, dark=dark, **SIZES[size])
    assert browser.requests() == [page.as_uri()]
    assert browser.complaints() == []
    width = SIZES[size]["width"]
    assert browser.run("[document.documentElement.scrollWidth, innerWidth]") == [width, width]
    assert visible(browser, "figure svg.plot") == 7
    ground = browser.run("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(15, 18, 22)" if dark else "rgb(246, 247, 249)")
    teacher = "document.querySelector('#entropy [data-series=model-0] path[style*=width]')"
    line = browser.run(f"getComputedStyle({teacher}).stroke")
    assert line == ("rgb(213, 217, 222)" if dark else "rgb(48, 54, 61)")


def test_names_and_tokens_are_text(browser, page, inspected):
    """Tags in names and tokens are shown as text and run nothing."""
    browser.open(page)
    assert browser.run("document.querySelector('h1').textContent") == "a & b"
    assert (
        browser.run(
            "[...document.querySelectorAll('td, h4, button, option')]"
            ".filter(e => e.textContent.includes('<b>kd</b>')).length"
        )
        > 3
    )
    words = data(browser)["lens"]["words"]
    assert "</script><script>alert(1)</script>" in words
    assert browser.run("document.scripts.length") == 2


@pytest.mark.parametrize("size", SIZES)
def test_pointing_at_a_cell_shows_its_ten_tokens(browser, page, size):
    """The panel lists those of teacher and student at the paired depths, most likely first."""
    browser.open(page, **SIZES[size])
    found = data(browser)
    pairs = found["lens"]["pairs"][0]
    row, token = 1, 3  # the row below the output
    student, teacher = pairs[len(pairs) - 1 - row]
    point = browser.tap if size == "phone" else browser.hover
    point(cell(1, row, token))
    for shown, model, depth in zip(ten(browser), (0, 1), (teacher, student), strict=True):
        words, p = expected_ten(found, model, depth, token)
        assert [word for word, _ in shown] == words
        assert len(shown) == 10
        assert [float(text.removesuffix(" %")) for _, text in shown] == pytest.approx(
            [100 * x for x in p], rel=0.06, abs=0.5
        )
    where = browser.run("document.querySelector('#lens .where').textContent")
    read = found["lens"]["words"][found["lens"]["documents"][0]["read"][token]]
    assert where.startswith(f"Token 4, {read} is followed by ")


def test_the_panel_returns_to_the_selection(browser, page):
    """When the mouse leaves the table, the panel returns to the clicked cell."""
    browser.open(page)
    browser.click(cell(0, 2, 1))
    clicked = ten(browser)
    browser.hover(cell(0, 0, 4))
    assert ten(browser) != clicked
    browser.hover("h1")
    assert ten(browser) == clicked


def test_keys_move_the_selection(browser, page):
    """Arrows, Home, End, within the table; Enter opens the panel and Escape closes it."""
    browser.open(page)
    found = data(browser)
    browser.run("document.querySelector('#lens select[name=lens-colour]').focus()")
    browser.press("Tab")

    def focused():
        return browser.run(
            "(() => { const d = document.activeElement.dataset; return [+d.row, +d.token]; })()"
        )

    assert focused() == [0, 0]
    for key, place in (
        ("ArrowRight", [0, 1]),
        ("ArrowDown", [1, 1]),
        ("ArrowDown", [2, 1]),
        ("ArrowLeft", [2, 0]),
        ("ArrowLeft", [2, 0]),
        ("ArrowUp", [1, 0]),
        ("End", [1, 11]),
        ("PageDown", [3, 11]),
        ("ArrowDown", [3, 11]),
        ("Home", [3, 0]),
    ):
        browser.press(key)
        assert focused() == place, key
        words, _ = expected_ten(found, 0, found["lens"]["pairs"][0][3 - place[0]][1], place[1])
        assert [word for word, _ in ten(browser)[0]] == words
    assert browser.run("document.querySelectorAll('#lens td[tabindex=\"0\"]').length") == 2
    browser.press("Tab")  # to the student's table, at the same place
    assert focused() == [3, 0]
    student = "document.querySelector('#lens .sides > div:nth-child(2)')"
    assert browser.run(f"{student}.contains(document.activeElement)")
    browser.press("Escape")
    assert visible(browser, "#lens .lists") == 0
    browser.press("Enter")
    assert visible(browser, "#lens .lists") == 1


def test_the_selected_cell_is_in_sight(browser, page):
    """Moving to the end scrolls both tables, together, and not the page sideways."""
    browser.open(page, **SIZES["phone"])
    browser.tap(cell(0, 0, 0))
    browser.press("End")
    time.sleep(0.2)  # scroll events come with the next frame
    left = browser.run("[...document.querySelectorAll('#lens .scroller')].map(s => s.scrollLeft)")
    assert left[0] == left[1] > 100
    inside = browser.run(
        "(() => { const a = document.activeElement.getBoundingClientRect(),"
        " b = document.querySelector('#lens .scroller').getBoundingClientRect();"
        " return a.left >= b.left && a.right <= b.right + 1; })()"
    )
    assert inside and browser.run("scrollX") == 0


def test_the_text_and_the_student_can_be_changed(browser, page, inspected):
    """The tables are rebuilt with the other student's depths and the other text's tokens."""
    browser.open(page)
    change = (
        "(() => {{ const s = document.querySelector('#lens select[name=lens-{}]');"
        " s.value = '{}'; s.dispatchEvent(new Event('change', {{bubbles: true}})); }})()"
    )
    browser.run(change.format("student", 2))
    browser.run(change.format("text", 1))
    rows, tokens = browser.run(
        "(() => { const body = document.querySelectorAll('#lens tbody')[1];"
        " return [body.rows.length, body.rows[0].cells.length - 1]; })()"
    )
    assert (rows, tokens) == (3, 7)
    words, _ = expected_ten(data(browser), 2, 2, 0, text=1)
    assert [word for word, _ in ten(browser)[1]] == words
    shade = "document.querySelector('#lens td').style.getPropertyValue('--v')"
    before = browser.run(shade)
    browser.run(change.format("colour", "entropy"))
    assert browser.run(shade) != before
    browser.run(change.format("colour", "jsd"))
    jsd = data(browser)["lens"]["documents"][1]["jsd"][1][2][0]
    assert float(browser.run(shade)) == pytest.approx(jsd / 0.6931, abs=1e-3)


def test_choices_and_legends_switch_what_is_drawn(browser, page):
    """Choosing a measure switches the drawing; a legend entry hides its lines."""
    browser.open(page)
    assert visible(browser, "#divergence svg.plot") == 1
    shown = (
        "[...document.querySelectorAll('#divergence .drawing')]"
        ".map(d => !d.classList.contains('off'))"
    )
    assert browser.run(shown) == [True, False, False]
    browser.click("#divergence label:nth-of-type(2) span")
    assert browser.run(shown) == [False, True, False]
    lines = "#divergence .drawing:nth-child(2) [data-series=model-2]"
    assert visible(browser, lines) > 0
    browser.click("#divergence [data-toggle=model-2]")
    assert visible(browser, lines) == 0
    assert visible(browser, lines.replace("model-2", "model-1")) > 0
    browser.click("#divergence [data-toggle=model-2]")
    assert visible(browser, lines) > 0


def test_the_penalty_follows_student_and_depth(browser, page):
    """Each student has its own depths; histogram and table follow the choice."""
    browser.open(page)
    assert visible(browser, "#penalty [name=penalty-depth2]") == 0
    browser.click("#penalty [name=penalty-depth1][value='1'] + span")
    drawn = "#penalty [data-when='depth1=1']"
    assert visible(browser, drawn) == 2 and visible(browser, "#penalty [data-when='depth1=2']") == 0
    assert visible(browser, "#penalty [data-when='student=1 depth1=1']") == 1
    browser.click("#penalty [name=penalty-student][value='2'] + span")
    assert visible(browser, drawn) == 0 and visible(browser, "#penalty table") == 1
    assert visible(browser, "#penalty [name=penalty-depth2] + span") == 3


def test_one_student_and_many_depths(browser, inspected, tmp_path):
    """A single student has no buttons, and five or more depths become a drop-down list."""
    deep = toys.llama(5, 16).eval()
    found = inspect_models(inspected.teacher, inspected.passages[:1], [deep], trained=[[(2, 2)]])
    path = tmp_path / "page.html"
    path.write_text(render_page("t", "l", inspector_sections(found, ["t", "s"], str)))
    browser.open(path)
    assert visible(browser, "#penalty fieldset") == 0 and visible(browser, "#penalty select") == 1
    assert visible(browser, "#confidence svg.plot") == visible(browser, "#penalty svg.plot") == 1
    assert visible(browser, "#penalty [data-when='depth1=2']") == 2
    browser.run("document.querySelector('#penalty select').focus()")
    browser.press("ArrowDown")
    assert visible(browser, "#penalty [data-when='depth1=2']") == 0
    assert visible(browser, "#penalty [data-when='depth1=3']") == 2
    assert browser.complaints() == []


def test_numbers_can_be_downloaded(browser, page, tmp_path):
    """The CSV of a figure holds the page's rows, and that of the lens table its cells."""
    browser.open(page)
    browser.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    found = data(browser)
    for selector, name in (("#entropy [data-csv]", "entropy"), ("#lens .files button", "lens")):
        browser.click(selector)
        file = tmp_path / f"{name}.csv"
        for _ in range(100):
            if file.exists():
                break
            time.sleep(0.1)
        with open(file, newline="", encoding="utf-8") as stream:
            head, *lines = csv.reader(stream)
        if name == "entropy":
            table = found["tables"]["entropy"]
            assert head == list(table["columns"])
            assert [line[0] for line in lines] == [row[0] for row in table["rows"]]
            assert [float(line[2]) for line in lines] == [row[2] for row in table["rows"]]
        else:
            assert head[:6] == ["model", "depth", "token", "read", "next", "entropy"]
            words, p = expected_ten(found, 0, 0, 0)
            assert lines[0][6::2] == words and [float(x) for x in lines[0][7::2]] == p
    assert browser.complaints() == []


def test_the_scheme_can_be_turned(browser, page):
    """The button switches between light and dark, whatever the system prefers."""
    browser.open(page, dark=True)
    colour = "getComputedStyle(document.body).backgroundColor"
    before = browser.run(colour)
    browser.click("#theme")
    assert browser.run(colour) == "rgb(246, 247, 249)" != before
    browser.click("#theme")
    assert browser.run(colour) == before


def test_the_browser_would_complain(browser, tmp_path):
    """The checks above can fail: they detect an error, a request and a wide page."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<img src='x.png'><p style='width:3000px'>wide</p><script>nothing.here()</script>"
    )
    browser.open(bad)
    assert browser.complaints() and len(browser.requests()) == 2
    assert browser.run("document.documentElement.scrollWidth") > 2000
