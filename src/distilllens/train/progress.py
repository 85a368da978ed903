"""What a run shows of its log while it trains: a line per log where there is no bar."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from transformers import TrainerCallback

from distilllens.objective import TERMS

# Name in the log -> label; "loss" is the weighted total.
_LABELS = {"loss": "loss", **{term.log_name: term.short for term in TERMS}, "eval_loss": "eval"}


def losses(logs: Mapping) -> dict[str, str]:
    """Label -> value of the losses in a log, in nats; of an evaluation, the total alone."""
    return {label: f"{logs[name]:.3f}" for name, label in _LABELS.items() if name in logs}


class LogLines(TrainerCallback):
    """A line per log, for files and pipes, where a bar would be one long line."""

    def __init__(self):
        self._begun = None

    def on_step_begin(self, args, state, control, **kwargs):
        """Note when the first step of this start begins."""
        if self._begun is None:
            self._begun = (time.perf_counter(), state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Print the losses, and the time that is left at the speed so far."""
        found = losses(logs or {})
        if not found or not state.is_world_process_zero:
            return
        text = ", ".join(f"{label} {value}" for label, value in found.items())
        left = ""
        if self._begun and state.global_step > self._begun[1] and "loss" in logs:
            pace = (time.perf_counter() - self._begun[0]) / (state.global_step - self._begun[1])
            left = f", {pace:.3g} s a step"
            if rest := state.max_steps - state.global_step:
                left += f", {duration(rest * pace)} left"
        print(
            f"step {state.global_step} of {state.max_steps}: {text}{left}",
            file=sys.stderr,
            flush=True,
        )


class LastStepLogged(TrainerCallback):
    """The last step is logged, wherever it falls among ``logging_steps``."""

    def on_step_end(self, args, state, control, **kwargs):
        """Ask for a log; transformers' own callback has decided before whether this is the end."""
        if control.should_training_stop and str(args.logging_strategy.value) != "no":
            control.should_log = True


def duration(seconds: float) -> str:
    """Such as "42 s", "3 min 5 s" or "2 h 0 min 12 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (rest, "s")]
    while len(parts) > 1 and not parts[0][0]:
        parts.pop(0)
    return " ".join(f"{number} {unit}" for number, unit in parts)
