"""DistillLensTrainer: an SFTTrainer whose loss also reads the models through the logit lens."""

from __future__ import annotations

import copy
import logging
import time
from dataclasses import replace
from pathlib import Path

import torch
from datasets import IterableDataset

from distilllens.data import format_instruction
from distilllens.files import write_atomically
from distilllens.lens import LogitLens, read_states
from distilllens.sampling import draw_pairs, draw_tokens
from distilllens.targets import Targets
from distilllens.train import _trl
from distilllens.train.cache_fill import fill_cache
from distilllens.train.cache_needs import name_of
from distilllens.train.checks import check_answers, check_arguments, check_counts, check_data
from distilllens.train.collation import Collation
from distilllens.train.config import DistillLensConfig
from distilllens.train.finite import check_weights
from distilllens.train.metrics import TermSums, named_terms
from distilllens.train.model_card import may_write_card, model_card
from distilllens.train.preparation import PreparedTrainer
from distilllens.train.redirect import run_inside_forward
from distilllens.train.safe_trainer import SafeTrainer
from distilllens.train.saving import make_saveable
from distilllens.train.sharding import check_parallelism, gather_head
from distilllens.train.teachers import (
    cached_depths,
    check_cached_depths,
    find_teacher,
    layer_map_of,
)

logger = logging.getLogger(__name__)


class DistillLensTrainer(PreparedTrainer, SafeTrainer):
    """Train a student by cross-entropy, an output divergence and a lens divergence.

    Use it like ``SFTTrainer``: it takes the same data (and instruction/input/output records) and
    arguments, and writes the same checkpoints. It logs ``loss`` (the weighted total) and,
    unweighted and in nats per target token, ``output_loss``, ``lens_loss``, ``lens_loss/2:8`` ...
    and ``cross_entropy``; evaluation measures every term whatever its weight.
    ``target_tokens_per_second`` counts the target tokens of all processes over the time since the
    last log, evaluations excluded.

    Args:
        model: the student, a model or its name.
        teacher_model: a model or its name; default ``args.teacher_model_name_or_path``. With
            ``args.teacher_cache``, ``train()`` first runs it once over the documents that are not
            in the cache; a complete cache needs no teacher. With neither, training is plain SFT and
            needs ``cross_entropy_weight`` > 0.
        args: a ``DistillLensConfig``.

    Raises:
        ValueError: a model that the lens cannot read exactly in training, a layer map that does not
            fit the models, different tokenizers, sequences longer than a model's positions, no
            example left.

    Source: arXiv 2602.13567; docs/paper.md.
    """

    _tag_names = ["trl", "distilllens"]  # noqa: RUF012 - transformers reads it as a class attribute
    _name = "DistillLens"
    # compute_loss divides by the tokens of the whole optimizer step.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model,
        teacher_model=None,
        args: DistillLensConfig | None = None,
        *,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        peft_config=None,
        compute_loss_func=None,
        compute_metrics=None,
        score_answers=None,
        **kwargs,
    ):
        args = args if args is not None else DistillLensConfig(output_dir="distilllens-student")
        teacher_model = teacher_model or getattr(args, "teacher_model_name_or_path", None)
        check_arguments(model, teacher_model, args, compute_loss_func, compute_metrics)
        check_answers(args, eval_dataset, score_answers)
        self.score_answers = score_answers
        logger.info("loading the student, preparing the data")
        super().__init__(
            model=model,
            args=copy.copy(args),  # SFTTrainer and _save_checkpoint write into it
            train_dataset=_formatted(train_dataset),
            eval_dataset=_formatted(eval_dataset),
            processing_class=processing_class,
            peft_config=peft_config,
            **kwargs,
        )
        _trl.drop_fused_head(self.model)
        _trl.replace_progress_bar(self)
        _trl.count_tokens_of_targets(self)
        check_parallelism(self.accelerator, self.args)
        collation = Collation.of(self)
        check_counts(collation)
        check_weights("student", self.model)
        if self.args.should_save:
            make_saveable(self.model, self.processing_class)
        logger.info("checking the student's logit lens against its logits")
        self.student_lens = LogitLens(self.model)
        self.student_lens.check_trainable()
        check_data("student", self.student_lens.model, collation)
        collation.fit_padding(self.student_lens.model)
        layers = self.student_lens.num_layers
        self.teacher, self._cache_needs = find_teacher(collation, teacher_model, layers)
        self.objective = args.objective(layer_map_of(args, layers, self.teacher))
        self._eval_terms = TermSums()
        self._since = None  # start of the training time of the next log; None before a step

    def train(self, *args, **kwargs):
        """Fill the teacher cache with what it lacks, then train."""
        self.fill_teacher_cache()
        self._since = None
        return super().train(*args, **kwargs)

    def fill_teacher_cache(self):
        """Run the teacher over the documents that are missing from ``args.teacher_cache``.

        ``train()`` calls it. Before that, ``evaluate()`` runs the teacher itself.

        Raises:
            ValueError: the folder holds a cache of another kind.
            OSError: too little disk space, or a disk error.
        """
        if self._cache_needs is None:
            return
        collation, layers = Collation.of(self), self.student_lens.num_layers
        depths = cached_depths(collation, self.teacher, layers)
        cached = fill_cache(collation, self.teacher, depths, self._cache_needs)
        check_cached_depths(collation, cached, layers)
        self.teacher, self._cache_needs = cached, None

    def training_step(self, *args, **kwargs):
        """A micro-batch; loading and the batches that a resume skips are before its time."""
        if self._since is None:
            self._since = time.perf_counter()
        return super().training_step(*args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The weighted total of a micro-batch over the target tokens of its optimizer step."""
        if return_outputs:
            raise ValueError("return_outputs is not supported: no logits are built")
        training = self.model.training
        inner = self.accelerator.unwrap_model(model)
        total, named, num_tokens = run_inside_forward(model, inner, self._batch_terms, **inputs)
        (self._carried.terms if training else self._eval_terms).add(named)
        if num_items_in_batch is None:
            return total / max(num_tokens, 1)
        loss = total / torch.as_tensor(num_items_in_batch).clamp(min=1)
        if self.args.average_tokens_across_devices:
            # The count is over all processes, and data parallelism averages their gradients.
            loss = loss * self.accelerator.num_processes
        return loss

    def _batch_terms(self, labels, **inputs):
        objective, everything, draws = self.objective, not self.model.training, None
        if self.model.training and objective.needs_lens():
            objective, draws = self._drawn(objective, inputs)
        targets, layer_map = Targets.of(labels), objective.layer_map
        needs_lens = objective.needs_lens(everything)
        depths = layer_map.student_depths if needs_lens else ()
        read = {"normalize": self.args.lens_norm, **inputs}
        teacher = teacher_head = None
        with self.accelerator.autocast():
            student = read_states(self.student_lens, depths, **read)
            if self.teacher is not None and objective.needs_teacher(everything):
                depths = layer_map.teacher_depths if needs_lens else ()
                teacher, teacher_head = self.teacher.read(depths, targets=targets, **read)
            with gather_head(self.model):
                terms = objective(
                    student,
                    self.student_lens.head,
                    teacher,
                    teacher_head,
                    targets,
                    measure_all=everything,
                    lens_draws=draws,
                )
        return terms.total, named_terms(terms, layer_map), terms.num_tokens

    def _drawn(self, objective, inputs):
        """The objective over this step's pairs, and the draws of its tokens (None: all of them)."""
        # global_step is constant over the micro-batches of a step and restored from checkpoints.
        # seed, not data_seed: the latter keeps the order of the data while everything else varies.
        key = {"seed": self.args.seed, "step": self.state.global_step}
        draws = None
        if objective.lens_token_fraction < 1:
            where = {name: inputs.get(name) for name in ("attention_mask", "position_ids")}
            draws = draw_tokens(inputs["input_ids"], **where, **key)
        pairs = draw_pairs(objective.layer_map, self.args.lens_pair_fraction, **key)
        return replace(objective, layer_map=pairs), draws

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """The loss alone: evaluation builds no logits either."""
        inputs = self._prepare_inputs(inputs)
        packing = self.args.packing if self.args.eval_packing is None else self.args.eval_packing
        _trl.mask_repeated_rows(inputs, self.accelerator, packing)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs).detach(), None, None

    def evaluation_loop(self, *args, metric_key_prefix="eval", **kwargs):
        """The loop of transformers, with sums over counts instead of its means of means."""
        self._eval_terms = TermSums()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self.model_wrapped is self.model and not (
            self.is_fsdp_enabled or self.is_deepspeed_enabled
        ):
            _trl.forget_evaluation(self.model, self.accelerator)
        if self.args.eval_generate and metric_key_prefix == "eval":
            self._eval_terms.add(self._answer_terms())
        means = self._eval_terms.means(self._sum_over_processes)
        output.metrics.update({f"{metric_key_prefix}_{key}": value for key, value in means.items()})
        return output

    def _answer_terms(self):
        """Scores of the answers to this process's share of the evaluation data: sums and counts."""
        accelerator = self.accelerator
        share = (accelerator.process_index, accelerator.num_processes)
        with accelerator.autocast():
            found = self.score_answers(self.model, self.processing_class, share)
        device = accelerator.device
        return {k: (torch.tensor(v, device=device), count) for k, (v, count) in found.items()}

    def log(self, logs, start_time=None):
        """Replace the trainer's own loss by the means since the last log, and add the speed."""
        # An evaluation is logged at its end, with its duration, which is no training time.
        if self._since is not None:
            self._since += sum(value for name, value in logs.items() if _is_evaluation_time(name))
        if self.model.training and "loss" in logs:
            logs |= self._carried.terms.means(self._sum_over_processes)
            now = time.perf_counter()
            began, self._since = now if self._since is None else self._since, now
            num_tokens = self._carried.terms.num_tokens
            logs["target_tokens_per_second"] = num_tokens / max(self._since - began, 1e-9)
        super().log(logs, start_time)

    def create_model_card(self, model_name=None, dataset_name=None, tags=None):
        """Write README.md: teacher, layer map and weights of the loss; another README stays."""
        if not self.is_world_process_zero():
            return
        teacher = self.args.teacher_model_name_or_path
        if teacher is None and self.teacher is not None:
            teacher = name_of(self.teacher)
        card = model_card(
            model_name or Path(self.args.output_dir).name,
            self.student_lens.model.config.name_or_path or "a model object",
            teacher,
            self.objective,
            self.args.lens_norm,
            adapter_folder=str(self.args.output_dir) if _is_adapter(self.model) else None,
        )
        file = Path(self.args.output_dir) / "README.md"
        file.parent.mkdir(parents=True, exist_ok=True)
        if not may_write_card(file):
            logger.warning("%s is no model card of distilllens and stays; none is written", file)
            return
        write_atomically(file, card)


def _is_adapter(model):
    return hasattr(model, "peft_config")


def _is_evaluation_time(name):
    return name.startswith("eval_") and name.endswith("_runtime")


def _formatted(dataset):
    """Turn instruction records into prompt and completion; SFTTrainer reads all other kinds."""
    if isinstance(dataset, dict):
        return type(dataset)({key: _formatted(value) for key, value in dataset.items()})
    columns = getattr(dataset, "column_names", None)
    unknown = columns is None and isinstance(dataset, IterableDataset)
    if not {"instruction", "output"} <= set(next(iter(dataset), ()) if unknown else columns or ()):
        return dataset
    formatted = dataset.map(format_instruction, remove_columns=columns)
    # The rows of a generator may each have columns of their own.
    return formatted.select_columns(["prompt", "completion"]) if unknown else formatted
