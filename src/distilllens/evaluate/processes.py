"""One evaluation on several processes: rank and device of this one, and waiting for the others."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed

from distilllens.errors import first_line

# The others wait while the main process scores and calls a judge.
_TIMEOUT = timedelta(days=7)


@dataclass(frozen=True)
class Process:
    """One of ``size`` processes, as torchrun and accelerate start them."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the process that scores and writes."""
        return self.rank == 0

    @contextmanager
    def together(self):
        """Wait at the end of the block for all processes; a user error in one is raised in all.

        Raises:
            ValueError: the error of the process with the lowest rank that failed.
        """
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
    if size > 1 and not distributed.is_initialized():
        distributed.init_process_group("gloo", timeout=_TIMEOUT)
    return Process(rank, size, _device(device))


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
