"""``distilllens train --num_processes``: it starts itself, and ends as its processes do."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from processes import python
from safetensors.torch import load_file
from toys import recipe

from distilllens.cli import launching, main
from distilllens.train.checkpoint import last_whole

TRAIN = ["-m", "distilllens", "train", "--config", "recipe.yaml"]
TWO = ["--num_processes", "2"]
# As a user's shell: no thread count, and none of torchrun's variables.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}


def run(*flags, start=None):
    """The exit status, and the lines on standard error; by new processes or forks."""
    command = [start or python(), *TRAIN, *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--num_processes", "0"], "num_processes must be a whole number of at least 1, got 0"),
        (["--num_processes", "two"], "at least 1, got 'two'"),
        (["--num_processes=-1"], "at least 1, got -1"),
        (["--num_processes"], "--num_processes takes one value, got none"),
        (["--num_processes", "2", "--num_processes", "3"], "--num_processes is given twice"),
        (["--accelerate_config", "fsdp"], "did you mean fsdp2?"),
        (["--num_processes", "2", "--learning_rate", "high"], "learning_rate"),
        (["--num_processes", "2", "--train_file", "none.jsonl"], "none.jsonl"),
        (["--accelerate_config", "fsdp2", "--fsdp", "true"], "accelerate_config and fsdp both"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(workshop, capsys, words, text):
    recipe(workshop)
    assert main(["train", "--config", "recipe.yaml", *words]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and text in said[0]
    assert not (workshop / "out").exists()


@pytest.mark.parametrize("where", ["flag", "recipe"])
def test_under_torchrun_it_is_refused(workshop, capsys, monkeypatch, where):
    """Two processes would each start two."""
    recipe(workshop, num_processes=2 if where == "recipe" else None)
    for name, value in {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    flags = ["--accelerate_config", "ddp"] if where == "flag" else []
    assert main(["train", "--config", "recipe.yaml", *flags]) == 2
    assert "would start processes, and this is already one of several" in capsys.readouterr().err


def test_one_process_is_the_command_itself(workshop, capsys):
    """Nothing is started; the fields in the recipe are none of the run."""
    recipe(workshop, num_processes=1, accelerate_config="ddp", max_steps=1)
    assert main(["train", "--config", "recipe.yaml"]) == 0
    assert "starting" not in capsys.readouterr().err
    assert "num_processes" not in (workshop / "out" / "run.json").read_text()


@pytest.mark.slow
def test_two_processes_train_as_one(workshop):
    """On the CPU really two, as the recipe says; the weights are those of one with twice the rows.

    Drift: sums of float32 in another order, over four steps at a learning rate of 0.01.
    """
    recipe(workshop, num_processes=2)
    status, said = run(start=sys.executable)
    assert status == 0, said
    assert "starting 2 processes on the CPU: ddp" in said and "on cpu, 2 processes" in said
    recipe(workshop, output_dir="alone", per_device_train_batch_size=4)
    assert run()[0] == 0
    two, one = (load_file(workshop / name / "model.safetensors") for name in ("out", "alone"))
    for name, value in one.items():
        assert torch.allclose(two[name], value, atol=1e-6, rtol=0), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "flags", "text"),
    [
        ({}, ["--accelerate_config", "fsdp2"], "needs GPUs, and use_cpu is set"),
        ({"lens_layers": "1:9"}, [], "teacher depth 9"),
        ({"train_file": "bad.jsonl"}, [], "bad.jsonl:2: broken JSON"),
        ({"eval_strategy": "epoch"}, [], "needs eval_file or dataset_test_split"),
    ],
    ids=["machine", "models", "data", "arguments"],
)
def test_a_failure_is_one_line_with_status_two(workshop, changes, flags, text):
    """Known to the command, or to its processes only: no page of torchrun's."""
    (workshop / "bad.jsonl").write_text('{"instruction": "the", "output": "cat"}\n{"instruction"\n')
    recipe(workshop, **changes)
    status, said = run(*TWO, *flags)
    errors = [line for line in said.splitlines() if "error" in line.lower()]
    assert status == 2 and len(errors) == 1 and text in errors[0], said
    assert "Traceback" not in said and not (workshop / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGKILL])
def test_signals_reach_the_processes(workshop, number):
    """They save and stop as one does; a process that is killed ends the others, and is named."""
    recipe(workshop, max_steps=5000, save_steps=4000, logging_steps=1000)
    with open("said.txt", "w+") as said:
        with subprocess.Popen([python(), *TRAIN, *TWO], stderr=said, env=ENVIRONMENT) as process:
            try:
                deadline = time.monotonic() + 120
                while not (workshop / "out" / "run.json").exists():
                    assert process.poll() is None and time.monotonic() < deadline
                    time.sleep(0.2)
                time.sleep(1)
                if number == signal.SIGKILL:
                    os.kill(int((workshop / "out" / "run.lock").read_text()), number)
                else:
                    process.send_signal(number)
                status = process.wait(60)
            finally:
                process.kill()
        said.seek(0)
        text = said.read()
    assert status == 128 + number, text
    if number == signal.SIGKILL:  # the other loses its connection, with a traceback of its own
        assert "error: process 0 of 2 was ended by SIGKILL" in text
        return
    assert "Traceback" not in text
    line = f"distilllens: stopped by {number.name} after step "
    assert text.count(line) == 1 and last_whole(workshop / "out") is not None


def test_a_recipe_that_is_no_file_is_refused(workshop, capsys):
    """Each process reads it; a pipe can be read once."""
    recipe(workshop)
    read, write = os.pipe()
    with os.fdopen(write, "w") as stream:
        stream.write((workshop / "recipe.yaml").read_text())
    assert main(["train", "--config", f"/dev/fd/{read}", "--num_processes", "2"]) == 2
    os.close(read)
    assert "is no file, and each process reads it" in capsys.readouterr().err


def test_the_fields_are_known_to_a_recipe(workshop):
    """They stay in a recipe that ``distilllens cache`` shares with training."""
    recipe(workshop, num_processes=2, teacher_cache="cache")
    assert yaml.safe_load((workshop / "recipe.yaml").read_text())["num_processes"] == 2
    assert main(["cache", "--config", "recipe.yaml"]) == 0


def test_a_check_that_is_killed_says_so(capfd):
    """As by a machine without memory: the line and the status of any process that a signal ends."""

    def killed():
        os.kill(os.getpid(), signal.SIGKILL)

    assert launching._checked_apart(killed) == 128 + signal.SIGKILL
    assert "checking the recipe was ended by SIGKILL" in capfd.readouterr().err
