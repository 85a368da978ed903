"""One evaluation on several processes: rank and device of this one, and waiting for the others."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from distilllens.errors import first_line
from distilllens.lost import faults_told

# The others wait while the main process scores and calls a judge.
_TIMEOUT = timedelta(days=7)


@dataclass(frozen=True)
class Process:
    """One of ``size`` processes, as torchrun and accelerate start them.

    Args:
        store: through which they tell each other of faults; None where others have made the group.
    """

    rank: int
    size: int
    device: torch.device
    store: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that scores and writes."""
        return self.rank == 0

    @contextmanager
    def together(self):
        """Wait at the end of the block for all processes; an error in one ends all.

        Raises:
            ValueError: the error of the process with the lowest rank that failed.
            LostProcess: another process is gone, or had an error that is not its user's.
        """

        def group():
            return self.store, self.rank, self.size if self.store else 1

        with faults_told(group, f"{_TIMEOUT.days} days"), self._user_errors_shared():
            yield

    @contextmanager
    def _user_errors_shared(self):
        error = None
        try:
            yield
        except (ValueError, OSError, ImportError) as raised:
            if self.size == 1:
                raise
            error = raised
        if self.size == 1:
            return
        messages = [None] * self.size
        distributed.all_gather_object(messages, error and (str(error) or type(error).__name__))
        if failed := [message for message in messages if message]:
            raise ValueError(failed[0]) from error


def this_process(device: str | None = None) -> Process:
    """This process, from the environment variables that torchrun and accelerate set.

    Args:
        device: of torch; by default an accelerator if there is one, else the CPU.

    Raises:
        ValueError: the device cannot be used.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    store = None
    if size > 1 and not distributed.is_initialized():
        store, rank, size = next(distributed.rendezvous("env://", rank, size))
        group = {"store": store, "rank": rank, "world_size": size}
        distributed.init_process_group("gloo", timeout=_TIMEOUT, **group)
    return Process(rank, size, _device(device), store)


def _device(name):
    if name is None:
        kind = torch.accelerator.current_accelerator(check_available=True)
        name = "cpu" if kind is None else kind.type
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.empty(1, device=device)
    except Exception as error:  # RuntimeError or AssertionError, depending on the build of torch
        raise ValueError(f"--device {name} cannot be used: {first_line(error)}") from error
    return device
