"""Ctrl-C at any moment is one line and status 130; SIGTERM ends a command without a traceback."""

import os
import signal
import subprocess
import sys

import pytest
from toys import recipe

PAIR = ["--teacher", "teacher", "--student", "student", "--prompt", "the cat"]
COMMANDS = {
    "train": ["--config", "recipe.yaml"],
    "cache": ["--config", "recipe.yaml", "--teacher_cache", "cache"],
    "inspect": [*PAIR, "--output", "page.html"],
    "report": ["out"],
    "evaluate": ["--model", "student", "--benchmark", "train.jsonl", "--output", "results"],
    "demo": [],
}


def stopped(command, moment, number):
    """``(status, output)`` of a command that gets a signal once a line holds ``moment``.

    Python names each module on standard error when it has been imported.
    """
    with subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "distilllens", command, *COMMANDS[command]],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    ) as process:
        said = []
        for line in process.stderr:
            said.append(line)
            if moment in line:
                process.send_signal(number)
                break
        else:
            pytest.fail(f"{moment!r} was never printed: {said[-5:]}")
        said += process.stderr
        return process.wait(60), "".join(line for line in said if "import time:" not in line)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_interrupted_import_is_one_line(workshop, command):
    """Every command, while it loads torch."""
    recipe(workshop)
    status, said = stopped(command, "torch.", signal.SIGINT)
    assert status == 130, said
    lines = [line for line in said.splitlines() if not line.startswith("loading ")]
    assert lines == ["distilllens: interrupted"]


@pytest.mark.parametrize(
    "moment",
    ["distilllens.errors\n", "loading the student", "loading the teacher"],
)
def test_an_interrupt_at_any_moment_is_one_line(workshop, moment):
    """Before the command line is there, while data are prepared, while a model is loaded."""
    recipe(workshop)
    status, said = stopped("train", moment, signal.SIGINT)
    assert status == 130, said
    assert said.splitlines()[-1].endswith("distilllens: interrupted")
    assert "Traceback" not in said and not (workshop / "out").exists()


@pytest.mark.parametrize("moment", ["torch.", "loading teacher"])
def test_termination_says_nothing(workshop, moment):
    """Nothing is left to do: what is written is complete or absent."""
    status, said = stopped("inspect", moment, signal.SIGTERM)
    assert status == -signal.SIGTERM
    assert "Traceback" not in said and not (workshop / "page.html").exists()
