"""What report_to gives to other programs: the log of the run, offline."""

import json
import os
import subprocess
import sys

import pytest
from toys import recipe

NAMES = ("loss", "output_loss", "lens_loss", "lens_loss/1:1")


@pytest.fixture
def run(workshop):
    """Train with both loggers; returns the folder and the log of the run."""
    pytest.importorskip("tensorboard")
    pytest.importorskip("wandb")
    recipe(workshop, report_to=["tensorboard", "wandb"], hub_token="hf_a_secret_of_the_test")
    offline = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "PYTHONWARNINGS": "default"}
    done = subprocess.run(
        [sys.executable, "-m", "distilllens", "train", "--config", "recipe.yaml"],
        env=os.environ | offline,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    state = json.loads((workshop / "out/trainer_state.json").read_text())
    return workshop, [row for row in state["log_history"] if "loss" in row]


def test_tensorboard_and_wandb_have_the_log(run):
    folder, log = run
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = folder.rglob("events.out.tfevents.*")
    read = EventAccumulator(str(events.parent)).Reload()
    for name in NAMES:
        values = [event.value for event in read.Scalars(f"train/{name}")]
        assert values == pytest.approx([row[name] for row in log]) and len(values) == 4
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    kept = file.read_bytes()
    assert all(name.encode() in kept for name in NAMES)
    assert b"hf_a_secret_of_the_test" not in kept + events.read_bytes()
