"""The commands: what is unknown is named, with what was probably meant."""

import pytest

from distilllens.cli import COMMANDS, is_flag, main


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


@pytest.mark.parametrize("word", ["--a", "-a", "--a=b c", "--a-b", "--"])
def test_flags(word):
    """One or two dashes and a letter."""
    assert is_flag(word)


@pytest.mark.parametrize("word", ["-1", "-1e-3", "-.5", "- a", "-", "a", "", "-a b", "a=b", "--1"])
def test_values(word):
    """Numbers, texts with spaces, and lists as YAML writes them."""
    assert not is_flag(word)
