"""A log as lines, and times in words."""

import pytest
from transformers import TrainerControl, TrainerState

from distilllens.train.progress import LogLines, duration, losses


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.6, "1 min 0 s"), (185, "3 min 5 s"), (7212, "2 h 0 min 12 s")],
)
def test_times_in_words(seconds, text):
    """Rounded to seconds, without leading zeros."""
    assert duration(seconds) == text


def test_a_log_in_words(capsys):
    """The terms of the loss alone; of other processes and other logs nothing."""
    assert losses({"loss": 1.25, "lens_loss": 0.5, "epoch": 1}) == {
        "loss": "1.250",
        "lens": "0.500",
    }
    state = TrainerState(global_step=3, max_steps=10, is_world_process_zero=True)
    lines, control = LogLines(), TrainerControl()
    lines.on_log(None, state, control, logs={"loss": 2.0, "cross_entropy": 3.0})
    lines.on_log(None, state, control, logs={"train_runtime": 2.0})
    state.is_world_process_zero = False
    lines.on_log(None, state, control, logs={"loss": 2.0})
    assert capsys.readouterr().err == "step 3 of 10: loss 2.000, ce 3.000\n"
