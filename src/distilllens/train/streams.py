"""Streamed data: the same batches for any number of workers and processes, and after a resume."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from datasets import IterableDataset
from torch.utils.data import IterableDataset as TorchStream
from torch.utils.data import get_worker_info
from trl import SFTTrainer

from distilllens.errors import named
from distilllens.targets import IGNORED
from distilllens.train.stream_checks import check_stream_settings

logger = logging.getLogger(__name__)


class StreamError(ValueError):
    """A stream cannot be read on; the message is one line."""


class StreamedTrainer(SFTTrainer):
    """``SFTTrainer`` whose streamed data are read as if they were one endless list of rows.

    Every process, and every worker of a data loader, reads the whole stream and takes its batches
    out of it. So a batch does not depend on their number, and two processes take the step of one. A
    stream that has ended begins again; a resume reads past the rows that were trained on.

    Raises:
        StreamError: a row or file that cannot be read; the steps before it are saved.
    """

    def get_train_dataloader(self):
        """That of SFTTrainer; a stream is read again and again."""
        prepared = self.train_dataset
        if not isinstance(prepared, IterableDataset):
            return super().get_train_dataloader()
        self.train_dataset = StreamRows(
            prepared, self._train_batch_size, self.accelerator.num_processes
        )
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset = prepared

    def get_eval_dataloader(self, eval_dataset=None):
        """That of SFTTrainer; a stream is read once, and every process gets as many batches."""
        named_set = isinstance(eval_dataset, str)
        prepared = self.eval_dataset if eval_dataset is None else eval_dataset
        prepared = self.eval_dataset[eval_dataset] if named_set else prepared
        if isinstance(prepared, IterableDataset):
            processes = self.accelerator.num_processes
            eval_dataset = StreamRows(prepared, self.args.eval_batch_size, processes, passes=1)
        return super().get_eval_dataloader(eval_dataset)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of a step."""
        try:
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        except StreamError as error:
            raise StreamError(f"{_plain(error)}{self._saved()}") from error

    def _saved(self):
        """Save the steps so far; returns where they are, in words."""
        step = self.state.global_step
        if step == 0:
            return ""
        folder = Path(self.args.output_dir) / f"checkpoint-{step}"
        if self._saved_step != step:
            self._save_checkpoint(self.model, trial=None)
        return (
            f"; the {step} steps before it are saved: mend the data, and go on in another "
            f"output_dir with resume_from_checkpoint {folder}"
        )


class StreamRows(TorchStream):
    """The rows of a prepared stream in the order of one process that reads it alone.

    Args:
        dataset: a ``datasets.IterableDataset``; it begins again with its next epoch, for which it
            may be shuffled anew.
        batch_size: rows of a batch on each of ``num_processes``.
        passes: None for no end. Otherwise rows without a target follow the last one, until every
            process has a whole batch.
    """

    def __init__(
        self,
        dataset: IterableDataset,
        batch_size: int,
        num_processes: int,
        passes: int | None = None,
    ):
        super().__init__()
        self.dataset, self.passes = dataset, passes
        self.num_in_batch = batch_size * num_processes
        self.is_filled = num_processes > 1

    def __iter__(self) -> Iterator[dict]:
        worker = get_worker_info()
        own, of = (worker.id, worker.num_workers) if worker else (0, 1)
        for number, row in enumerate(self._rows(own == 0)):
            if number // self.num_in_batch % of == own:  # data loaders ask workers in turn
                yield row

    def _rows(self, tell):
        num, first = 0, None
        # Of its own: workers share the number of the epoch of a data set that they are handed.
        dataset = self.dataset.with_format(None)
        for turn in count() if self.passes is None else range(self.passes):
            before = num
            for row in _rows_of(dataset, turn):
                first = row if first is None else first
                num += 1
                yield row
            if num == before:
                raise StreamError("the streamed data hold no row with a response token")
            if self.passes is None and turn == 0 and tell:
                logger.info("the stream has ended after %d rows, and begins again", num)
        for _ in range(-num % self.num_in_batch if self.is_filled else 0):
            yield {**first, "labels": [IGNORED] * len(first["labels"])}


def _rows_of(dataset, epoch):
    dataset.set_epoch(epoch)
    try:
        # Unlike iter(dataset), this reads all of it in a worker, too.
        for batch in dataset.iter(batch_size=1):
            yield {name: values[0] for name, values in batch.items()}
    except StreamError:
        raise
    except Exception as error:  # readers of files and of the hub raise errors of any kind
        raise StreamError(named(error)) from error


def truncated(dataset: IterableDataset, limit: int | None, mode: str) -> IterableDataset:
    """Rows of at most ``limit`` tokens, the first or the last ones by TRL's ``truncation_mode``."""
    if limit is None:
        return dataset
    kept = slice(-limit, None) if mode == "keep_end" else slice(limit)
    return dataset.map(lambda row: {name: row[name][kept] for name in ("input_ids", "labels")})


def settle_streams(args, train_dataset, eval_dataset):
    """Refuse settings that need data of a known length; each process makes its own batches.

    Raises:
        ValueError: with the field.
    """
    sets = eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset]
    for dataset in (train_dataset, *sets):
        if getattr(dataset, "_distributed", None) is not None:
            raise ValueError(
                "a stream is shared out among the processes by the trainer: hand it over whole, "
                "without split_dataset_by_node"
            )
    if isinstance(train_dataset, IterableDataset):
        check_stream_settings(vars(args))
    if any(isinstance(dataset, IterableDataset) for dataset in (train_dataset, *sets)):
        # As SFTTrainer does for training data: batches of unequal lengths cannot be dispatched.
        args.accelerator_config.dispatch_batches = False


def _plain(error):
    """What an error says, without the traceback that a worker of a data loader puts before it."""
    last = str(error).strip().splitlines()[-1]
    return last.partition(f"{StreamError.__name__}: ")[2] or last
