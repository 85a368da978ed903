"""On-policy steps: the student answers the prompts of a batch, and is compared on its answers."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from itertools import islice, takewhile

import torch
from datasets import Dataset
from torch import Tensor

from distilllens.generate.decoding import Decoding
from distilllens.generate.generation import Generation
from distilllens.generate.transformers_backend import TransformersBackend, plan_batches
from distilllens.loading import positions_of
from distilllens.objective import Objective
from distilllens.sampling import answer_seed, draw_step
from distilllens.targets import IGNORED, has_target, prompt_length, target_positions
from distilllens.teacher import ServedTeacher
from distilllens.teacher.documents import pieces
from distilllens.train.attention import attention_of_changing_shapes
from distilllens.train.logged_trainer import LoggedTrainer
from distilllens.train.sharding import is_sharded

logger = logging.getLogger(__name__)
# Prompts that are answered as one batch, unless a micro-batch has more rows.
_TOGETHER = 32
# What is measured against a reference: the student's own answer is none.
_OF_REFERENCES = ("cross_entropy", "mean_token_accuracy")
# Name in the log -> what an answer counts.
_COUNTED = {
    "on_policy_truncated": lambda answer: not answer.finished,
    "on_policy_empty": lambda answer: answer.finished and answer.num_tokens == 1,
    "on_policy_length": lambda answer: answer.num_tokens,
}
# So many answers in a row, none of them of use, are a reason to warn.
_MANY = 32
_ADVICE = {
    "on_policy_truncated": "at step %d, the last %d answers of the student were all cut at "
    "on_policy_max_new_tokens, so none shows it where to end: raise that limit, or train on the "
    "answers of the data first (on_policy_from)",
    "on_policy_empty": "at step %d, the last %d answers of the student all ended at once, so there "
    "is only an end for it to learn from: train on the answers of the data first (on_policy_from)",
}


class OnPolicyTrainer(LoggedTrainer):
    """A trainer in some of whose steps the student writes the answers.

    Such a step, drawn by ``on_policy_fraction``, keeps the prompts of its batch. The student
    answers them all before its first micro-batch, so the targets of the step are known when its
    loss is divided by them. The answers take the place of those in the data, and everything else
    is as in any other step: the teacher runs once on them.

    An answer depends on weights, prompt, seed and step alone, so neither accumulation, processes
    nor an interruption change it. The log has the share of steps that were on-policy
    (``on_policy_steps``), of answers that were cut (``on_policy_truncated``) or ended at once
    (``on_policy_empty``), and their mean length in tokens (``on_policy_length``).

    The trainer has ``teacher``, live ones or one at a server, and ``student_lens``.
    """

    _backend = None

    def add_answers(self):
        """Prepare what writes answers, if the run has on-policy steps.

        Raises:
            ValueError: weights that are sharded, rows without a prompt, prompts that leave no room
                for an answer, a model whose generation differs from its forward.
        """
        if not self.args.on_policy_fraction:
            return
        if is_sharded(self.accelerator):
            raise ValueError(
                "on_policy_fraction needs the whole student in every process, and FSDP and "
                "DeepSpeed shard it; train with DDP or on one process"
            )
        dataset = self.train_dataset
        if isinstance(dataset, Dataset) and "labels" in dataset.column_names:
            rows = dataset.select_columns(["labels"]).with_format(None)
            lengths = [prompt_length(row["labels"]) for row in rows]
            where = "row {} of the training data, as they are encoded and counted from 0,"
            self._check_prompts(lengths, where)
        decoding = Decoding(
            max_new_tokens=self.args.on_policy_max_new_tokens,
            temperature=float(self.args.on_policy_temperature),
        )
        with self.accelerator.autocast():
            self._backend = TransformersBackend(self.model, self.processing_class, decoding)
        self._in_a_row = dict.fromkeys(_ADVICE, 0)
        if self._backend.note:
            logger.info("the student's answers: %s", self._backend.note)

    @property
    def is_on_policy(self) -> bool:
        """Whether the student writes the answers of the step in progress.

        It depends on nothing but seed and step.
        """
        args, step = self.args, self.state.global_step
        if self._backend is None or step / max(self.state.max_steps, 1) < args.on_policy_from:
            return False
        return draw_step(seed=args.seed, step=step) < args.on_policy_fraction

    def of_policy(self, objective: Objective) -> Objective:
        """The objective of the step in progress: without a cross-entropy where it is on-policy."""
        return replace(objective, cross_entropy_weight=0.0) if self.is_on_policy else objective

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of a step and their targets; of an on-policy one, with its answers."""
        if self._backend is None:
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.is_on_policy:
            if self._since is None:  # the time to write is a part of the step's
                self._since = time.perf_counter()
            batches = self._answered([*islice(epoch_iterator, num_batches)])
            epoch_iterator, num_batches = iter(batches), len(batches)
        self._count({"on_policy_steps": (float(self.is_on_policy), 1)})
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _answered(self, batches: list[dict]) -> list[dict]:
        """Micro-batches with the student's answers behind their prompts."""
        prompts = [prompts_of(batch) for batch in batches]
        together = [ids for each in prompts for ids in each]
        self._check_prompts([*map(len, together)], "a row of this step's data")
        size = max(_TOGETHER, self.args.per_device_train_batch_size)
        seed = answer_seed(seed=self.args.seed, step=self.state.global_step)
        with self.accelerator.autocast(), attention_of_changing_shapes(packing=False):
            answers = written(self._backend, together, size, seed)
        # The student's vocabulary may have more rows of padding.
        embedded = (lens.model.get_input_embeddings() for lens in self._teacher_lenses())
        known = min((each.weight.shape[0] for each in embedded), default=len(self.processing_class))
        answers = [readable(answer, known) for answer in answers]
        counted = {name: sum(map(count, answers)) for name, count in _COUNTED.items()}
        self._count({name: (total, len(answers)) for name, total in counted.items()})
        for name in _ADVICE if answers else ():
            self._warn(name, counted[name], len(answers))
        answers = iter(answers)
        return [
            self._batch(each, [*islice(answers, len(each))]) if each else batch
            for each, batch in zip(prompts, batches, strict=True)
        ]

    def _teacher_lenses(self):
        """Of the teachers that run here: a server tells neither its positions nor its tokens."""
        if isinstance(self.teacher, ServedTeacher):
            return []
        return [each.lens for each in getattr(self.teacher, "sources", [self.teacher])]

    def _batch(self, prompts, answers):
        """Prompts and answers as the collator batches rows of the data."""
        rows = [
            {"input_ids": [*ids, *answer.ids], "labels": [IGNORED] * len(ids) + [*answer.ids]}
            for ids, answer in zip(prompts, answers, strict=True)
        ]
        batch = self.data_collator(rows)
        if int(target_positions(batch["labels"]).sum()) != sum(a.num_tokens for a in answers):
            raise ValueError(
                "on_policy_fraction: the data_collator makes other targets than the labels of the "
                "rows that it gets; use SFTTrainer's own collator"
            )
        return batch

    def _count(self, named):
        device = self.accelerator.device
        terms = {name: (torch.tensor(float(x), device=device), n) for name, (x, n) in named.items()}
        self._carried.terms.add(terms)

    def _check_prompts(self, lengths: list[int], where: str):
        """Refuse rows without a prompt, and prompts that leave no room for an answer.

        Args:
            where: what to call a row, with a place for its number.

        Raises:
            ValueError: with the first such row, or the longest prompt.
        """
        if 0 in lengths:
            raise ValueError(
                f"on_policy_fraction: {where.format(lengths.index(0))} begins with a target, and "
                "has no prompt to answer"
            )
        longest, asked = max(lengths, default=0), self.args.on_policy_max_new_tokens
        teachers = (("teacher", lens) for lens in self._teacher_lenses())
        for who, lens in (("student", self.student_lens), *teachers):
            positions = positions_of(lens.model.config)
            if positions is not None and longest + asked > positions:
                raise ValueError(
                    f"the longest prompt of the training data has {longest} tokens, and with "
                    f"on_policy_max_new_tokens {asked} that is beyond the {who}'s {positions} "
                    "positions; lower on_policy_max_new_tokens, or leave long prompts out "
                    "(max_prompt_length)"
                )

    def note(self, named, loss):
        """Count the terms; on-policy without those that compare with a reference."""
        if self.model.training and self.is_on_policy:
            named = {name: term for name, term in named.items() if name not in _OF_REFERENCES}
        super().note(named, loss)

    def _warn(self, name, num_counted, num_answers):
        """Warn once, as soon as many answers in a row were of no use."""
        count = self._in_a_row[name]
        if count >= _MANY:  # which was said
            return
        count = self._in_a_row[name] = count + num_answers if num_counted == num_answers else 0
        if count >= _MANY and self.is_world_process_zero():
            logger.warning(_ADVICE[name], self.state.global_step + 1, count)


def prompts_of(batch: dict[str, Tensor]) -> list[list[int]]:
    """What stands before the last answer of each document of a batch that has a target, as ids.

    Of a conversation of several answers, the last is the student's to write, and those before it
    stay as they are in the data.
    """
    where = {name: batch.get(name) for name in ("attention_mask", "position_ids")}
    parts = (
        (ids.tolist(), labels.tolist())
        for ids, labels in pieces((batch["input_ids"], batch["labels"]), **where)
    )
    return [ids[: prompt_length(labels)] for ids, labels in parts if has_target(labels)]


def written(
    backend: TransformersBackend, prompts: list[list[int]], batch_size: int, seed: int
) -> list[Generation]:
    """An answer to each prompt, in their order; prompts of like length run together."""
    answers = {}
    for rows in plan_batches([*map(len, prompts)], batch_size):
        found = backend.generate([prompts[row] for row in rows], seed=seed)
        answers |= zip(rows, found, strict=True)
    return [answers[row] for row in range(len(prompts))]


def readable(answer: Generation, num_tokens: int) -> Generation:
    """An answer up to the first token that a teacher of so many tokens cannot read."""
    ids = tuple(takewhile(lambda token: token < num_tokens, answer.ids))
    if len(ids) == len(answer.ids):
        return answer
    return replace(answer, ids=ids, num_tokens=len(ids), finished=False)
