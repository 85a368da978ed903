"""A run's data as its trainer reads it: prepared data sets, and the collator that batches them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from datasets import Dataset

from distilllens.targets import IGNORED, Targets
from distilllens.train._trl import prepare_without_student
from distilllens.train.config import DistillLensConfig
from distilllens.train.pairs import Pairs


@dataclass(frozen=True, eq=False)
class Collation:
    """Everything that decides which batches a run sees, without the student.

    Attributes:
        train_dataset, eval_dataset: tokenised, truncated and packed; ``eval_dataset`` may be a
            dictionary of data sets, or None.
        collator: rows -> a batch of tensors, ``labels`` among them.
        pairs: of a teacher with another tokenizer; None with one for both.
        aligned_with: of a teacher's own batches, the fingerprint of the student's tokenizer.
    """

    args: DistillLensConfig
    accelerator: Accelerator
    tokenizer: object
    train_dataset: object
    eval_dataset: object
    collator: object
    pairs: Pairs | None = None
    aligned_with: str | None = None

    @classmethod
    def of(cls, trainer) -> Collation:
        """That of a trainer."""
        return cls(
            trainer.args,
            trainer.accelerator,
            trainer.processing_class,
            trainer.train_dataset,
            trainer.eval_dataset,
            trainer.data_collator,
            trainer.pairs,
        )

    @classmethod
    def prepared(cls, args, tokenizer, train_dataset, eval_dataset=None) -> Collation:
        """That of a run of ``args``, for which no student is loaded and no trainer of ours made."""
        return cls.of(prepare_without_student(args, tokenizer, train_dataset, eval_dataset))

    @property
    def of_teacher(self) -> Collation:
        """The same data as the teacher reads them; with one tokenizer, as they are."""
        if self.pairs is None:
            return self
        tables = {kind: self.pairs.tables[kind] for kind, data in self.datasets() if data}
        train, evaluation = tables.pop("training"), tables
        if not isinstance(self.eval_dataset, dict):
            evaluation = next(iter(tables.values()), None)
        return replace(
            self,
            tokenizer=self.pairs.aligner.teacher.tokenizer,
            train_dataset=train,
            eval_dataset=evaluation,
            collator=self.pairs.collator,
            pairs=None,
            aligned_with=self.pairs.student_tokenizer,
        )

    @property
    def is_main(self) -> bool:
        """Whether this process is the first of all."""
        return self.accelerator.is_main_process

    @property
    def is_quiet(self) -> bool:
        """Whether this process shows no progress."""
        return self.args.disable_tqdm or not self.is_main

    def datasets(self) -> list[tuple[str, object]]:
        """``(kind, data set)`` of training and of each evaluation, as messages call them."""
        evaluation = self.eval_dataset
        if not isinstance(evaluation, dict):
            evaluation = {} if evaluation is None else {"": evaluation}
        names = {name: f"evaluation ({name})" if name else "evaluation" for name in evaluation}
        return [
            ("training", self.train_dataset),
            *((names[name], dataset) for name, dataset in evaluation.items()),
        ]

    def sizes(self) -> list[tuple[str, int, int]]:
        """``(kind, rows, target tokens)`` of each data set that is not streamed."""
        return [
            (kind, len(dataset), _num_targets(dataset))
            for kind, dataset in self.datasets()
            if isinstance(dataset, Dataset) and "labels" in dataset.column_names
        ]

    def batch(self, rows: list[tuple[Dataset, int]]) -> dict[str, torch.Tensor]:
        """The batch that the collator makes of rows, on the CPU, with ``targets`` for labels."""
        inputs = dict(self.collator([dataset[index] for dataset, index in rows]))
        return {"targets": Targets.of(inputs.pop("labels")), **inputs}

    def fit_padding(self, model):
        """Pad with a token that a model has an embedding for; padding is masked, so any does."""
        num_embeddings = model.get_input_embeddings().weight.shape[0]
        if (getattr(self.collator, "pad_token_id", None) or 0) >= num_embeddings:
            end = self.tokenizer.eos_token_id
            fits = end is not None and end < num_embeddings
            self.collator.pad_token_id = end if fits else 0

    def to_device(self, batch: dict) -> dict:
        """A batch on the accelerator's device."""
        device = self.accelerator.device
        return {
            name: value.to(device) if isinstance(value, torch.Tensor | Targets) else value
            for name, value in batch.items()
        }


def _num_targets(dataset):
    """The number of tokens that a position before them predicts."""
    total = 0
    for table in dataset.select_columns(["labels"]).with_format("arrow").iter(1000):
        labels = table["labels"].combine_chunks()
        values = torch.from_numpy(labels.flatten().to_numpy(zero_copy_only=False).copy())
        sizes = torch.from_numpy(labels.value_lengths().to_numpy(zero_copy_only=False).copy())
        is_target = values != IGNORED
        is_target[(sizes.cumsum(0) - sizes)[sizes > 0]] = False  # nothing predicts the first token
        total += int(is_target.sum())
    return total
