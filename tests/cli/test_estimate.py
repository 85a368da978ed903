"""distilllens estimate: its table, its JSON, and bad input in one line."""

import json

import pytest
from toys import recipe

from distilllens.cli import main


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--device", "h1000"], "--device 'h1000' is not known; did you mean h100?; known: h100, "),
        (["--device", "abacus"], "known: h100, h200, a100-80gb, a100-40gb, l40s, rtx4090, a10g"),
        (["--num_devices", "0"], "--num_devices must be at least 1, got 0"),
        (["--num_devices", "x"], "--num_devices: must be a whole number"),
        (["--price", "-1"], "--price must be a number of at least 0 for an hour, got -1.0"),
        (["--price", "nan"], "--price must be a number of at least 0"),
        (["--model_name_or_path", "empty"], "no readable config.json"),
        (["--teacher_model_name_or_path", "nowhere/at/all"], "nowhere"),
        (["--num_device", "2"], "unknown argument --num_device"),
        (["--lens_weight", "-1"], "lens_weight"),
        (["--train_file", "none.jsonl"], "none.jsonl"),
        (["--device"], "--device: expected one argument"),
    ],
)
def test_bad_input_is_one_line(workshop, capsys, flags, message):
    """Before a model is loaded, and most of it before torch is."""
    (workshop / "empty").mkdir()
    recipe(workshop)
    assert main(["estimate", "--config", "recipe.yaml", *flags]) == 2
    *stages, line = capsys.readouterr().err.splitlines()
    assert message in line and len(stages) <= 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a list", "must be a mapping"),
        ("a: [", "broken YAML"),
        ("learning_rat: 1", "learning_rat"),
    ],
)
def test_a_recipe_that_does_not_parse(workshop, capsys, text, message):
    """File and reason."""
    (workshop / "recipe.yaml").write_text(text)
    assert main(["estimate", "--config", "recipe.yaml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "recipe.yaml" in line and message in line


def test_table_and_json(workshop, capsys):
    """The table is for people; JSON has the same numbers in bytes, and nothing is written."""
    recipe(workshop)
    before = sorted(workshop.rglob("*"))
    command = ["estimate", "--config", "recipe.yaml", "--device", "a100-80gb", "--price", "1.5"]
    assert main([*command, "--num_devices=4"]) == 0
    table = capsys.readouterr().out
    for words in (
        "4 x NVIDIA A100 80GB SXM",
        "rows fit",
        "FSDP2, teacher live",
        "cost",
        "  optimizer",
    ):
        assert words in table
    assert main([*command, "--num_devices", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    parts = {k: v for k, v in found["memory"].items() if k not in ("total", "available")}
    assert found["memory"]["total"] == sum(parts.values()) and found["num_devices"] == 4
    assert found["unknown"] == [] and sorted(workshop.rglob("*")) == before


@pytest.mark.parametrize(
    ("flags", "number"),
    [
        (["--num_processes", "4"], 4),
        (["--accelerate_config", "fsdp2", "--num_processes", "2"], 2),
        (["--num_processes", "4", "--num_devices", "8"], 8),
    ],
)
def test_processes_are_devices(workshop, capsys, flags, number):
    """Of a command of train, unless the devices are counted."""
    recipe(workshop)
    command = ["estimate", "--config", "recipe.yaml", "--device", "h100", "--json", *flags]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["num_devices"] == number


def test_help_names_every_device(capsys):
    """Those of the table, and the flags of its own."""
    from distilllens.workflows.estimate_devices import NAMES

    assert main(["estimate", "--help"]) == 0
    text = capsys.readouterr().out
    for word in (*NAMES, "--num_devices", "--price", "--json"):
        assert word in text
