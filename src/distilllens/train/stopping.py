"""A signal that asks a run to end: the step in progress is finished and saved first."""

from __future__ import annotations

import os
import signal
import threading
import time

import torch
from transformers import TrainerCallback

# SLURM can be asked to send SIGUSR1 some time before the end; Windows has none.
_SIGNALS = [
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)
]
# Launchers pass on a signal that their processes may have got themselves.
_ECHO_SECONDS = 1.0


class Stopped(KeyboardInterrupt):
    """Training has ended at a signal, with a checkpoint of the last step.

    Attributes:
        status: the exit status of a process that the signal ends, 128 + its number.
    """

    def __init__(self, number: int, text: str):
        super().__init__(text)
        self.status = 128 + number


class StopSignals(TrainerCallback):
    """Notes SIGTERM, SIGINT and SIGUSR1 during training; a second one ends the process at once.

    A context manager: at its end the handlers of before are back. Outside of the main thread,
    Python cannot handle signals, and none is noted.
    """

    def __init__(self):
        self._number, self._since, self._before = 0, 0.0, {}
        self._process = os.getpid()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        while self._before:
            signal.signal(*self._before.popitem())

    def on_train_begin(self, args, state, control, **kwargs):
        """Handle the signals from now on; a run that has not begun has nothing to save."""
        if threading.current_thread() is threading.main_thread() and not self._before:
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}

    def on_train_end(self, args, state, control, **kwargs):
        """The last checkpoint is saved: a signal ends the process as it did before."""
        self.__exit__()

    def _note(self, number, frame):
        if os.getpid() != self._process:  # a data loader's, which inherits the handlers
            if number != signal.SIGINT:  # which Ctrl-C sends to everyone: the step needs its data
                _end(number)
        elif not self._number:
            self._number, self._since = number, time.monotonic()
        elif time.monotonic() - self._since > _ECHO_SECONDS:
            _end(number)

    def agreed(self, accelerator) -> int:
        """The number of a signal that any process has got, the same on all of them; 0: none."""
        if accelerator.num_processes == 1:
            return self._number
        own = torch.tensor([self._number], device=accelerator.device)
        return int(accelerator.gather(own).max())


def _end(number):
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
