"""``write_inspection``: what ``distilllens inspect`` does, called from Python."""

import json
import re

import pytest
import toys

pytest.importorskip("matplotlib")

from distilllens.workflows.inspect import write_inspection

PAIR = {"teacher": "teacher", "students": ["student"]}


def lens(path):
    """The lens table in a page's own data."""
    pattern = r'<script type="application/json" id="data">(.*?)</script>'
    (block,) = re.findall(pattern, path.read_text(encoding="utf-8"), re.S)
    return json.loads(block)["lens"]


def test_a_page_and_figures(workshop, capsys):
    """Paths may be text; the line says what was written, and nothing is printed."""
    line = write_inspection(
        "page.html", **PAIR, prompt="the cat sat", lens_layers="1:2", figures="figures"
    )
    assert re.fullmatch(r"wrote page.html \(0.\d MB\), and the figures into figures", line)
    assert capsys.readouterr().out == ""
    found = lens(workshop / "page.html")
    assert [model["name"] for model in found["models"]] == ["teacher", "student"]
    assert found["trained"] == [[1]]
    page = (workshop / "page.html").read_text()
    assert "Read from one prompt, in float32. Paired depths, student:teacher: 1:2." in page
    assert (workshop / "figures" / "entropy.svg").exists()


def test_the_defaults_are_those_of_the_command(workshop):
    """Eight records, 512 tokens, depths as training pairs them."""
    from distilllens.cli import main

    write_inspection(workshop / "python.html", **PAIR, data=["train.jsonl"])
    flags = ["--teacher", "teacher", "--student", "student", "--data", "train.jsonl"]
    assert main(["inspect", *flags, "--output", "command.html"]) == 0
    assert (workshop / "python.html").read_bytes() == (workshop / "command.html").read_bytes()
    assert len(lens(workshop / "python.html")["documents"]) == len(toys.examples(8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (PAIR, "either --prompt or --data"),
        (PAIR | {"model": "student", "prompt": "cat"}, "--model stands alone"),
        (PAIR | {"data": ["train.jsonl"], "limit": 0}, "--limit must be at least 1, got 0"),
    ],
)
def test_arguments_are_checked(workshop, arguments, message):
    """As those of the command are, and nothing is written."""
    with pytest.raises(ValueError, match=message):
        write_inspection("page.html", **arguments)
    assert not (workshop / "page.html").exists()


def test_a_tuned_lens_is_fitted_to_the_records_that_are_not_shown(workshop):
    """The last depth stays what it is, the others are read anew; the page says how."""
    arguments = {**PAIR, "data": ["train.jsonl"], "limit": 3}
    write_inspection("logit.html", **arguments)
    write_inspection("tuned.html", **arguments, lens_readout="tuned")
    pages = [(workshop / f"{name}.html").read_text() for name in ("logit", "tuned")]
    assert "through a lens tuned on the records behind them" in pages[1]
    assert "tuned" not in pages[0].split("Read from")[1][:200]
    before, after = (lens(workshop / f"{name}.html") for name in ("logit", "tuned"))
    assert len(before["documents"]) == len(after["documents"]) == 3
    assert before != after


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": "the cat", "lens_readout": "tuned"}, "tuned needs --data"),
        ({"data": ["train.jsonl"], "lens_readout": "tuned", "limit": 800}, "has no more"),
        ({"data": ["train.jsonl"], "lens_readout": "raw"}, "is logit or tuned, got 'raw'"),
    ],
)
def test_a_tuned_lens_that_cannot_be_fitted(workshop, arguments, message):
    """One line, before models are read."""
    with pytest.raises(ValueError, match=message):
        write_inspection("page.html", **PAIR, **arguments)
