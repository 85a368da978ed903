"""Sums that checkpoints carry on: the log goes on as if the run had never been interrupted."""

from __future__ import annotations

import logging
from typing import NotRequired, TypedDict

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from distilllens.stored import DamagedFile, check_stored
from distilllens.train.metrics import TermSums, wide

logger = logging.getLogger(__name__)


class _Entries(TypedDict):
    since: int
    loss: float
    terms: dict[str, list[float]]
    num_tokens: NotRequired[int]
    processes: NotRequired[int]


class CarriedSums(TrainerCallback, ExportableState):
    """The losses and tokens of all steps of a run, and the terms since its last log.

    Attributes:
        terms: since the last log, of this process.
        entries: what the next checkpoint gets.
    """

    def __init__(self):
        self.terms = TermSums()
        self._loss, self._tokens, self._since, self.entries = 0.0, 0, 0, {}

    def add(self, loss: torch.Tensor, num_tokens: torch.Tensor | int = 0):
        """Add the loss of a micro-batch, as it counts for its step on this process."""
        self._loss = self._loss + wide(loss.detach())
        self._tokens = self._tokens + num_tokens

    def num_tokens(self, reduce) -> int:
        """The tokens of the run so far, padding excluded; ``reduce`` sums over processes."""
        return int(reduce(torch.as_tensor(self._tokens)))

    def mean_loss(self, step: int, num_processes: int, reduce) -> float:
        """Mean over the steps so far, all processes together; ``reduce`` sums over them."""
        return self._total(reduce) / num_processes / max(step - self._since, 1)

    def gather(self, reduce, num_processes: int):
        """Note the sums of all processes for the checkpoint that is saved next."""
        terms = {name: [*both] for name, both in self.terms.totals(reduce).items()}
        self.entries = {"since": self._since, "loss": self._total(reduce), "terms": terms}
        self.entries |= {"num_tokens": self.num_tokens(reduce), "processes": num_processes}

    def state(self) -> dict:
        """What transformers writes to trainer_state.json."""
        # The host, asked to restore callbacks itself, makes one without arguments and sets these.
        return {"args": {}, "attributes": {"entries": self.entries}}

    def restart(self, stored: dict, step: int, num_processes: int, *, main: bool):
        """Begin at 0, or go on from a checkpoint; the main process takes the sums of all.

        Args:
            stored: ``state()`` at the checkpoint; empty in older ones.
            step: of the checkpoint, or 0.
            num_processes: of now; the loss of each counts as often as there are processes.
        """
        self.__init__()
        if step == 0:
            return
        try:
            entries = stored.get("attributes", {}).get("entries")
            entries = check_stored(entries, _Entries, "trainer_state.json")
        except (DamagedFile, AttributeError):
            self._since = step
            logger.info("train_loss will be a mean over the steps after step %d", step)
            return
        self._since = entries["since"]
        scale = num_processes / entries.get("processes", num_processes)
        self._loss = entries["loss"] * scale if main else 0.0
        self._tokens = entries.get("num_tokens", 0) if main else 0
        self.terms.resume(entries["terms"], main=main)

    def _total(self, reduce):
        own = self._loss
        if not isinstance(own, torch.Tensor):
            own = torch.tensor(own, dtype=torch.float64)
        return float(reduce(own))
