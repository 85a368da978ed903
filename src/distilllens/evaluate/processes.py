"""One evaluation on several processes: who I am, which device is mine, waiting for the others."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed

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

    def wait(self):
        """Return once every process is here."""
        if self.size > 1:
            distributed.barrier()


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
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} cannot be used: {reason}") from error
    return device
