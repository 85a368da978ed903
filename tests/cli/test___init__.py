"""The commands: what is unknown is named, with what was probably meant."""

import argparse

import pytest

from distilllens.cli import COMMANDS, CommandParser, is_flag, main


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "invalid choice: 'trian'"),
        (["trian"], "did you mean train?"),
        (["--modle", "x"], "unrecognized arguments: --modle x"),
        (["evaluate", "--modle", "x"], "unrecognized arguments: --modle x; did you mean --model?"),
        (["evaluate", "--modle=x"], "did you mean --model?"),
        (["evaluate", "-model", "x"], "did you mean --model?"),
        (["evaluate", "--model", "a", "--greedily"], "did you mean --greedy?"),
        (["evaluate", "--max-new-tokens", "3"], "did you mean --max_new_tokens?"),
        (["inspect", "--studnt", "a", "b"], "arguments: --studnt a b; did you mean --student?"),
        (["inspect", "--model", "a", "--dtype", "float8"], "did you mean float"),
        (["demo", "--stepz", "3"], "did you mean --steps?"),
        (["compare", "a", "--metrics", "rouge_l"], "did you mean --metric?"),
        (["report", "run", "--", "-more"], "unrecognized arguments: -more"),
        (["evaluate", "--greedy=yes"], "--greedy takes no value, got 'yes'"),
    ],
)
def test_an_unknown_word_is_one_line_with_a_question(capsys, argv, message):
    """Before anything is missed because of it."""
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and "--help)" in line


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_asks(capsys, command):
    """The flag that all have, misspelt; and no question where nothing is near."""
    assert main([command, "--hepl"]) == 2
    assert "did you mean --help?" in capsys.readouterr().err
    assert main([command, "--qqqq", "1"]) == 2
    error = capsys.readouterr().err
    assert "--qqqq" in error and "did you mean" not in error


# (command, a flag of it that takes one value or several)
FLAGS = [
    (command, flag)
    for command, flags in {
        "demo": "output steps seed",
        "prune": "model blocks by limit max_length dtype output data",
        "merge": "output dtype",
        "generate": "model data output limit seeds temperature backend",
        "evaluate": "model benchmark output limit seeds teacher judge_url batch_size",
        "inspect": "teacher student model prompt data lens_layers output figures",
        "report": "output limit",
        "compare": "metric",
    }.items()
    for flag in flags.split()
]


@pytest.mark.parametrize(("command", "flag"), FLAGS)
def test_a_flag_without_a_value_is_not_a_folder(capsys, command, flag):
    """An empty variable of a shell: as a path, "" would be the folder that one is in."""
    for words in ([f"--{flag}", ""], [f"--{flag}="], [f"--{flag}", "1", ""]):
        assert main([command, *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"error: --{flag} is empty; give it a value, or leave it out" in line


@pytest.mark.parametrize("argv", [["compare", ""], ["report", ""], [""], ["compare", "a", ""]])
def test_an_argument_without_a_value_is_not_a_folder(capsys, argv):
    """The same of what has no flag."""
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "an argument is empty" in line


SEVERAL = {"model": "evaluate", "benchmark": "evaluate", "student": "inspect", "metric": "compare"}
LISTS = [(command, "data") for command in ("prune", "generate", "inspect")]
LISTS += [(command, flag) for flag, command in SEVERAL.items()]


@pytest.mark.parametrize(("command", "flag"), LISTS)
def test_a_list_that_is_given_in_parts_is_whole(monkeypatch, command, flag):
    """The files of the first part are not dropped for those of the second."""
    parsers = []
    monkeypatch.setattr(CommandParser, "parse_args", lambda parser, argv: parsers.append(parser))
    with pytest.raises((AttributeError, TypeError)):  # the command gets no values
        main([command, "-"])
    given = argparse.Namespace()
    for value in ("1", "2"):
        parsers[0]._option_string_actions[f"--{flag}"](parsers[0], given, [value])
    assert getattr(given, flag) == ["1", "2"]


@pytest.mark.parametrize("word", ["--a", "-a", "--a=b c", "--a-b", "--"])
def test_flags(word):
    """One or two dashes and a letter."""
    assert is_flag(word)


@pytest.mark.parametrize("word", ["-1", "-1e-3", "-.5", "- a", "-", "a", "", "-a b", "a=b", "--1"])
def test_values(word):
    """Numbers, texts with spaces, and lists as YAML writes them."""
    assert not is_flag(word)


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        ("evaluate", "--seeds"),
        ("generate", "--seeds"),
        ("study", "--config"),
        ("prune", "--output"),
        ("merge", "--output"),
        ("inspect", "--teacher"),
        ("demo", "--steps"),
    ],
)
def test_a_flag_of_one_value_that_is_given_twice_is_refused(command, flag, capsys):
    """The first value would be lost without a word."""
    assert main([command, flag, "1", flag, "2"]) == 2
    assert f"{flag} is given twice; give it once" in capsys.readouterr().err
