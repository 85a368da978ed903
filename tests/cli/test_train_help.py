"""The help of ``distilllens train``: the fields that people use, in groups, with their defaults."""

import re
from dataclasses import fields
from inspect import get_annotations

import pytest
import toys

from distilllens.cli import main
from distilllens.cli.train_arguments import make_parser
from distilllens.cli.train_help import GROUPS
from distilllens.train.config import DistillLensConfig
from distilllens.workflows.train_inputs import JobArguments

OWN = [
    field
    for owner in (JobArguments, DistillLensConfig)
    for field in fields(owner)
    if field.name in get_annotations(owner)
]
SHOWN = [name for group in GROUPS.values() for name in group]


@pytest.fixture
def printed(capsys, monkeypatch):
    """The help that a command prints."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(*argv):
        assert main(list(argv)) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return run


def entries(text):
    """Field -> its entry, white space collapsed."""
    found = {}
    for entry in re.split(r"\n  --", text)[1:]:
        entry = " ".join(entry.split("\n\n")[0].split())
        found[entry.split()[0]] = entry
    return found


@pytest.mark.parametrize("command", ["train", "cache"])
def test_fields_are_shown_once_with_their_defaults(printed, command):
    """Our own and the common ones of TRL; one spelling each."""
    text = printed(command, "--help")
    found = entries(text)
    assert set(SHOWN) <= found.keys() and len(SHOWN) == len(set(SHOWN))
    for title in GROUPS:
        assert f"\n{title}:\n" in text
    for name in SHOWN:
        assert len(re.findall(rf"^  --{name}\b", text, re.M)) == 1, name
        assert "(default: " in found[name] or name == "output_dir", name
    assert re.findall(r"^  --\w+-[\w-]+", text, re.M) == ["  --help-all"]
    assert "--no_" not in text.replace("--no_FIELD", "")
    assert len(text.splitlines()) < 250


def test_our_own_fields_are_in_a_group():
    """All but the older name of another."""
    assert {field.name for field in OWN} - set(SHOWN) == {"gradient_checkpointing"}


def test_the_defaults_are_the_fields(printed):
    """As declared; what None means is in words."""
    found = entries(printed("train", "--help"))
    for field in OWN:
        if field.name in SHOWN and field.default is not None:
            shown = str(field.default)
            shown = shown.lower() if isinstance(field.default, bool) else shown
            assert found[field.name].endswith(f"(default: {shown})"), field.name
    assert found["learning_rate"].endswith("(default: 2e-05)")
    assert found["lr_scheduler_type"].endswith("(default: linear)")
    assert found["bf16"].startswith("bf16 true|false")
    assert found["output_dir"].endswith("(required)")


def test_help_all_shows_every_field(printed):
    """Those of TRL and transformers behind ours."""
    found = entries(printed("train", "--help-all"))
    every = {action.dest for action in make_parser("train", "")._actions} - {"help"}
    assert every <= found.keys()
    assert printed("train", "--help_all").count("\n") > 400


def test_errors_name_a_flag_in_one_spelling(workshop, capsys):
    """The dashed spelling works, and is not repeated to the user."""
    from distilllens.cli import main

    toys.recipe(workshop)
    assert main(["train", "--config", "recipe.yaml", "--max_steps", "two"]) == 2
    assert "argument --max_steps: must be a whole number, got 'two'" in capsys.readouterr().err
