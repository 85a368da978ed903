"""A run's page: its sections in order, and in a browser."""

import csv
import json
import time

import pytest

pytest.importorskip("matplotlib")

import browser as browsers

from distilllens.report import Observations, Run, Sample, render_page, run_sections

NASTY = "</script><script>alert(1)</script>"
ROWS = [
    {"step": n, "loss": 3.0 / n, "lens_loss": 1.0 / n, "lens_loss/1:1": 1.0 / n} for n in (1, 2, 3)
]
RUN = Run(
    facts={"student": NASTY},
    rows=ROWS,
    recipe=f"a: {NASTY}",
    command=f"distilllens train {NASTY}",
    versions={"torch": "2"},
)


@pytest.fixture(scope="module")
def observed(inspected):
    """Two students compared with a teacher, and an answer of each."""
    sample = Sample(f"Why? {NASTY}", NASTY, (NASTY, "a " * 300, ""), (False, True, False))
    return Observations(
        inspection=inspected.found,
        students=("start", "student"),
        texts="the first 3 texts of a.jsonl",
        answered_by=("teacher", "start", "student"),
        samples=(sample,),
        questions="Asked.",
        missing=(f"The {NASTY} is missing.",),
    )


def test_all_that_is_there_is_shown_in_order(observed):
    """Summary, training, divergence, answers, and how to reproduce the run."""
    sections = run_sections(RUN, observed)
    assert [section.title for section in sections] == [
        "At a glance",
        "Training",
        "How far from the teacher",
        "Sample answers",
        "Reproduce this run",
    ]
    assert sections[0].text == f"The {NASTY} is missing."
    names = [row[0] for row in sections[2].parts[0].table.rows]
    assert list(dict.fromkeys(names)) == ["start", "student"]
    page = render_page("a run", "", sections)
    assert NASTY not in page and page.count("&lt;/script&gt;&lt;script&gt;") >= 7
    assert "http" not in page.replace("http://www.w3.org", "")


def test_what_is_not_there_leaves_no_empty_place():
    """Without models, versions or command, only the log and the recipe are shown."""
    sections = run_sections(Run({}, ROWS, "a: 1\n"), Observations())
    assert [s.title for s in sections] == ["At a glance", "Training", "Reproduce this run"]
    assert len(sections[-1].parts) == 1
    empty = run_sections(Run({}, (), ""), Observations())
    assert empty[1].parts == () and "Nothing was logged" in empty[1].text
    assert "<h2>Training</h2>" in render_page("a", "", empty)


@pytest.mark.skipif(browsers.CHROMIUM is None, reason="needs Chromium (Debian: apt install)")
def test_the_page_in_a_browser(observed, tmp_path):
    """No error, no request, as wide as the window, light and dark; CSV, scale, legend work."""
    path = tmp_path / "report.html"
    path.write_text(render_page("a run", "A lead.", run_sections(RUN, observed)), encoding="utf-8")
    browser = browsers.Browser(tmp_path / "profile")
    try:
        for width, dark in ((1440, False), (390, True), (1440, True), (390, False)):
            browser.open(path, width=width, height=900, dark=dark, touch=width < 500)
            assert browser.complaints() == [] and browser.requests() == [path.as_uri()]
            assert browser.run("document.documentElement.scrollWidth") == width
            ground = browser.run("getComputedStyle(document.body).backgroundColor")
            assert ground == ("rgb(15, 18, 22)" if dark else "rgb(246, 247, 249)")
        browser.open(path)
        shown = "[...document.querySelectorAll('#terms .drawing')].map(d => !!d.offsetParent)"
        assert browser.run(shown) == [True, False]
        browser.run("document.querySelector('#terms input[value=linear]').focus()")
        browser.press("ArrowRight")
        assert browser.run(shown) == [False, True]
        line = "document.querySelector('#terms .drawing:nth-child(2) [data-series=model-0]')"
        assert browser.run(f"{line}.getClientRects().length") > 0
        browser.click("#terms [data-toggle=model-0]")
        assert browser.run(f"{line}.getClientRects().length") == 0
        browser.run("document.querySelector('.listing').focus()")
        assert browser.run("document.activeElement.className") == "listing"
        browser.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        browser.click("#terms [data-csv]")
        head, *lines = _read(tmp_path / "terms.csv")
        found = json.loads(browser.run("document.getElementById('data').textContent"))
        assert head == ["what", "step", "value"]
        assert [[w, int(s), float(v)] for w, s, v in lines] == found["tables"]["terms"]["rows"]
        assert browser.complaints() == []
    finally:
        browser.close()


def _read(file):
    for _ in range(100):
        if file.exists():
            break
        time.sleep(0.1)
    with open(file, newline="", encoding="utf-8") as stream:
        return list(csv.reader(stream))
