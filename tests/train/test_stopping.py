"""A signal ends a run with a checkpoint, a line on how to go on, and its own exit status."""

import json
import os
import signal
import subprocess
import time

import pytest
from processes import python
from toys import recipe

from distilllens.cli import main
from distilllens.train.stopping import StopSignals
from distilllens.train.trainer import DistillLensTrainer


def at_step(monkeypatch, step, *, number, where="training_step"):
    """Send this process a signal in the step after ``step``, or in another method then."""
    original, sent = getattr(DistillLensTrainer, where), []

    def signalled(self, *args, **kwargs):
        if self.state.global_step == step and not sent:
            sent.append(os.kill(os.getpid(), number))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(DistillLensTrainer, where, signalled)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_signal_saves_the_step_and_the_same_command_goes_on(
    workshop, monkeypatch, capsys, name, accumulated
):
    """Between two checkpoints; the run ends at the bits of one that was left alone."""
    number = getattr(signal, name)
    changes = {"save_steps": 3, "gradient_accumulation_steps": accumulated}
    recipe(workshop, output_dir="whole", **changes)
    assert main(["train", "--config", "recipe.yaml"]) == 0
    before = signal.getsignal(number)
    recipe(workshop, **changes)
    with monkeypatch.context() as m:
        at_step(m, 1, number=number)
        assert main(["train", "--config", "recipe.yaml"]) == 128 + number
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == (
        f"distilllens: stopped by {name} after step 2, which is saved in out/checkpoint-2; the "
        "same command goes on from there"
    )
    assert signal.getsignal(number) == before and not (workshop / "out/run.lock").exists()
    assert main(["train", "--config", "recipe.yaml"]) == 0
    assert "resuming from out/checkpoint-2" in capsys.readouterr().err
    whole = (workshop / "whole" / "model.safetensors").read_bytes()
    assert (workshop / "out" / "model.safetensors").read_bytes() == whole


@pytest.mark.parametrize("where", ["training_step", "evaluation_loop"])
@pytest.mark.parametrize("strategy", ["epoch", "steps"])
def test_what_is_due_at_the_last_step_is_not_lost(workshop, monkeypatch, capsys, where, strategy):
    """In its last step, or in the evaluation after it, an epoch's evaluation is still logged."""
    changes = {"eval_file": "train.jsonl", "eval_strategy": strategy, "eval_steps": 2}
    changes |= {"save_strategy": strategy, "max_steps": 6, "per_device_train_batch_size": 4}
    recipe(workshop, output_dir="whole", **changes)
    assert main(["train", "--config", "recipe.yaml"]) == 0
    recipe(workshop, **changes)
    with monkeypatch.context() as m:
        at_step(m, 1 if where == "training_step" else 2, number=signal.SIGTERM, where=where)
        assert main(["train", "--config", "recipe.yaml"]) == 143
    assert "after step 2" in capsys.readouterr().err.splitlines()[-1]
    assert main(["train", "--config", "recipe.yaml"]) == 0
    whole, found = steps_of(workshop / "whole"), steps_of(workshop / "out")
    assert whole == found and sum("eval" in what for _, what in whole) == 3


def test_a_signal_in_the_last_step_changes_nothing(workshop, monkeypatch, capsys):
    """All steps are taken: what is left is to save the model."""
    recipe(workshop)
    at_step(monkeypatch, 3, number=signal.SIGTERM)
    assert main(["train", "--config", "recipe.yaml"]) == 0
    assert (workshop / "out" / "model.safetensors").exists()


def steps_of(folder):
    """``(step, kind)`` of every row of a run's log."""
    rows = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    kinds = ("eval_loss", "train_loss", "loss")
    return [(row["step"], next(kind for kind in kinds if kind in row)) for row in rows]


CHILD = """
import time
from distilllens.train.stopping import StopSignals
with StopSignals() as signals:
    signals.on_train_begin(None, None, None)
    print("begun", flush=True)
    time.sleep(0.2)
    print("here", flush=True)
    while True:
        time.sleep(1)
"""


def test_a_second_signal_ends_the_process_at_once():
    """An echo within a second does not: launchers pass on what everyone got."""
    command = [python(), "-c", CHILD]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"begun\n"
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == b"here\n"
        time.sleep(1.2)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == -signal.SIGTERM


def test_outside_of_the_main_thread_no_handler_is_set():
    """Python allows none there; training goes on without."""
    from concurrent.futures import ThreadPoolExecutor

    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as signals, ThreadPoolExecutor(1) as pool:
        pool.submit(signals.on_train_begin, None, None, None).result()
        assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_data_loader_lives_through_ctrl_c_alone(number):
    """Its process inherits the handlers; Ctrl-C reaches all, the rest is meant for it."""
    with StopSignals() as signals:
        signals.on_train_begin(None, None, None)
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), number)
            os._exit(7)
        status = os.waitpid(child, 0)[1]
    assert os.waitstatus_to_exitcode(status) == (7 if number == signal.SIGINT else -number)
