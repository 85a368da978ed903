"""What a command prints: stages, warnings with a prefix, and nothing of its libraries."""

import contextlib
import logging
import os
import subprocess
import sys
import warnings

import pytest
from toys import recipe
from tqdm import tqdm

from distilllens.cli import COMMANDS, main
from distilllens.cli.terminal import command_output, quiet_libraries

NAMES = ("distilllens", "accelerate", "peft", "transformers", "trl")
STAGES = [
    "loading torch, transformers and trl",
    "loading the tokenizer and the data",
    "loading the student, preparing the data",
    "checking the student's logit lens against its logits",
    "loading the teacher teacher",
    "student    student: 7,408 parameters, float32",
]


def state():
    """All that a command may change."""
    loggers = [logging.getLogger(name) for name in NAMES]
    handlers = [(logger.level, *logger.handlers) for logger in loggers]
    return handlers, warnings.showwarning, os.environ.get("HF_DATASETS_DISABLE_PROGRESS_BARS")


def test_stages_and_warnings(capsys):
    """A stage is a line, a warning has a prefix; both go to standard error."""
    with command_output():
        logging.getLogger("distilllens.train.trainer").info("loading %s", "the teacher")
        logging.getLogger("distilllens.data").warning("%d records left out", 3)
        logging.getLogger("distilllens.data").debug("no news")
    out, err = capsys.readouterr()
    assert (out, err) == ("", "loading the teacher\ndistilllens: warning: 3 records left out\n")


@pytest.mark.parametrize(("rank", "level"), [("0", None), ("1", "ERROR")])
def test_torch_itself_warns_in_the_main_process_alone(monkeypatch, rank, level):
    """Each of N processes would print its warning of unused parameters."""
    monkeypatch.setenv("RANK", rank)
    monkeypatch.delenv("TORCH_CPP_LOG_LEVEL", raising=False)
    with command_output():
        assert os.environ.get("TORCH_CPP_LOG_LEVEL") == level
    assert "TORCH_CPP_LOG_LEVEL" not in os.environ


def test_tries_to_reach_the_hub_are_not_shown(capsys):
    """What comes of them is said once."""
    with command_output():
        hub = logging.getLogger("huggingface_hub.utils._http")
        hub.warning("'...' thrown while requesting HEAD https://huggingface.co/x")
        hub.warning("Retrying in 1s [Retry 1/5].")
        hub.warning("the hub is old")
    assert capsys.readouterr().err == "distilllens: warning: the hub is old\n"


def test_warnings_of_libraries_look_like_ours(capsys):
    """Those that matter, in one line; harmless and deprecated things are left out."""
    with warnings.catch_warnings(), command_output():
        warnings.simplefilter("always")
        logging.getLogger("trl.trainer.sft_trainer").warning("padding-free needs flash attention")
        logging.getLogger("trl.trainer.sft_trainer").info("not important")
        logging.getLogger("transformers.tokenization").warning(
            "Token indices sequence length is longer than the specified maximum (623 > 512)"
        )
        warnings.warn("the disk is\n  slow", UserWarning, stacklevel=1)
        warnings.warn("will be removed in 6.0", FutureWarning, stacklevel=1)
    assert capsys.readouterr().err.splitlines() == [
        "distilllens: warning: padding-free needs flash attention",
        "distilllens: warning: the disk is slow",
    ]


def test_verbose_leaves_the_libraries_alone():
    """Their handlers, bars and warnings stay as they are; only our own logger is changed."""
    before = state()
    with command_output(verbose=True):
        quiet_libraries()
        (own, *libraries), *others = state()
        assert own != before[0][0] and (libraries, *others) == (before[0][1:], *before[1:])


def test_bars_of_transformers_are_hidden_until_the_end():
    """Downloads keep theirs, in so far as they had one."""
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.is_progress_bar_enabled(), are_progress_bars_disabled()
    with command_output():
        quiet_libraries()
        assert not transformers_logging.is_progress_bar_enabled()
        assert are_progress_bars_disabled() == before[1]
    assert (transformers_logging.is_progress_bar_enabled(), are_progress_bars_disabled()) == before
    quiet_libraries()  # outside of a command: nothing
    assert transformers_logging.is_progress_bar_enabled() == before[0]


def test_nothing_stays_behind(capsys):
    """Not after a block, an error in it, a block within a block, or a command."""
    before = state()
    with pytest.raises(KeyError), command_output():
        with command_output():
            quiet_libraries()
            logging.getLogger("distilllens").warning("once")
        assert state() != before
        raise KeyError
    assert state() == before and capsys.readouterr().err == "distilllens: warning: once\n"
    assert main(["compare", "nowhere"]) == 2 and state() == before


@pytest.mark.parametrize("rank", ["0", "1"])
def test_the_first_process_alone_prints(capsys, monkeypatch, rank):
    """The others have the same to say."""
    monkeypatch.setenv("RANK", rank)
    with command_output():
        logging.getLogger("distilllens").warning("slow")
    assert capsys.readouterr().err == ("distilllens: warning: slow\n" if rank == "0" else "")


def test_a_line_does_not_break_a_bar(capsys):
    """The bar is cleared, the line is written, the bar is drawn again below it."""
    with (
        command_output(),
        tqdm(total=2, file=sys.stderr, ncols=20, bar_format="{n}/{total}") as bar,
    ):
        logging.getLogger("distilllens").info("a line")
        bar.update(2)
    lines = [line.split("\r")[-1].strip() for line in capsys.readouterr().err.split("\n")]
    assert lines == ["a line", "2/2", ""]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_verbose(capsys, command):
    """Before or behind the command, and in its help."""
    for argv in (["--verbose", command], [command, "--verbose"]):
        assert main([*argv, "--no_such_flag"]) == 2
        assert "--verbose" not in capsys.readouterr().err
    with contextlib.suppress(SystemExit):  # argparse's own help ends so
        main([command, "--help"])
    assert "--verbose" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_is_quiet(workshop):
    """Stages, what is trained, a line a log and the result; with --verbose the libraries' too."""
    recipe(workshop)
    command = [sys.executable, "-m", "distilllens", "train", "--config", "recipe.yaml"]
    # The suite hides bars of transformers by this variable.
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_DISABLE_PROGRESS_BARS"}

    def printed(*flags):
        done = subprocess.run([*command, *flags], capture_output=True, text=True, env=environment)
        assert done.returncode == 0 and done.stdout == "", done.stderr
        return done.stderr

    quiet = printed()
    lines = [line for line in quiet.splitlines() if line]
    estimate = [lines.pop(2).split()[0] for _ in range(3)]
    assert estimate == ["memory", "time", "disk"] and lines[:6] == STAGES
    steps = [line for line in lines if line.startswith("step ")]
    assert [line.split(":")[0] for line in steps] == [f"step {n} of 4" for n in range(1, 5)]
    assert lines[-1] == "the final model and its tokenizer are in out" and "it/s" not in quiet
    assert len(lines) < 24, "what a run says of itself fits a screen"
    verbose = printed("--verbose", "--output_dir", "again")
    assert "Tokenizing training data" in verbose and "Loading weights" in verbose
    assert [line for line in verbose.splitlines() if line in STAGES] == STAGES
