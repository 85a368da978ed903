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
