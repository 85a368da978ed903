"""One evaluation on several processes: who I am, which device is mine, waiting for the others."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed

from distilllens.errors import first_line

# The main process scores, and may ask a judge, while the others wait.
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Process:
    """One of ``size`` processes, as torchrun and accelerate start them; alone by default."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True in the one process that scores and writes."""
        return self.rank == 0

    @contextmanager
    def together(self):
        """Leave the block with the other processes; a user's mistake of one is raised by all.

        Raises:
            ValueError: what the first process that failed has to say.
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
        said = [None] * self.size
        distributed.all_gather_object(said, error and (str(error) or type(error).__name__))
        if said := [text for text in said if text]:
            raise ValueError(said[0]) from error


def this_process(device: str | None = None) -> Process:
    """This process, by the variables that torchrun and accelerate set.

    Raises:
        ValueError: a device that torch does not know or this machine does not have.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1 and not distributed.is_initialized():
        distributed.init_process_group("gloo", timeout=_PATIENCE)
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
    except Exception as error:  # RuntimeError, AssertionError: torch has one for each build
        raise ValueError(f"--device {name} cannot be used: {first_line(error)}") from error
    return device
