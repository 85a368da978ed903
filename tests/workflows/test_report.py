"""``write_report``: what ``distilllens report`` does, called from Python."""

import pytest
from workflows.test_train import arguments

pytest.importorskip("matplotlib")

from distilllens.workflows.report import write_report
from distilllens.workflows.train import run_job


def test_a_page_without_the_command_line(workshop):
    """In the run's folder, or where it is wanted."""
    run_job(*arguments())
    assert write_report("out", limit=1) == "the report is out/report.html"
    page = (workshop / "out" / "report.html").read_text(encoding="utf-8")
    assert "Training run: out" in page and "student, distilled from teacher." in page
    assert write_report(workshop / "out", "page.html", limit=1) == "the report is page.html"
    with pytest.raises(ValueError, match="--limit must be at least 1, got 0"):
        write_report("out", limit=0)
