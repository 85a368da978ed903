"""DistillLensTrainer: an SFTTrainer whose loss also reads the models through the logit lens."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from pathlib import Path

import torch
from transformers import TrainingArguments

from distilllens.features import Features
from distilllens.files import write_atomically
from distilllens.lens import LogitLens, read_states
from distilllens.lens.streams import collected
from distilllens.sampling import draw_pairs, draw_tokens
from distilllens.targets import Targets
from distilllens.train import _trl
from distilllens.train.arguments import teacher_and_config
from distilllens.train.cache_needs import name_of
from distilllens.train.checks import (
    check_answers,
    check_arguments,
    check_counts,
    check_data,
    check_packed_weights,
)
from distilllens.train.collation import Collation
from distilllens.train.finite import check_weights
from distilllens.train.metrics import named_terms
from distilllens.train.model_card import may_write_card, model_card
from distilllens.train.on_policy import OnPolicyTrainer
from distilllens.train.on_policy_checks import check_prompts
from distilllens.train.overlap import measured_overlap
from distilllens.train.preparation import PreparedTrainer
from distilllens.train.projectors import (
    FeatureProjectors,
    depths_to_ask,
    read_with_raw,
    width_of,
)
from distilllens.train.redirect import run_inside_forward
from distilllens.train.routers import router_logits, router_loss
from distilllens.train.saving import make_saveable
from distilllens.train.sharding import check_parallelism, gather_head, weights_are_sharded
from distilllens.train.teachers import depths_of, filled, find_teacher, layer_map_of
from distilllens.train.tuned_lens import TunedLensTrainer

logger = logging.getLogger(__name__)


class DistillLensTrainer(PreparedTrainer, TunedLensTrainer, OnPolicyTrainer):
    """Train a student by cross-entropy, an output divergence and a lens divergence.

    Use it like ``SFTTrainer``: it takes the same data (and instruction/input/output records) and
    arguments, and writes the same checkpoints. It logs ``loss`` (the weighted total) and,
    unweighted and in nats per target token, ``output_loss``, ``lens_loss``, ``lens_loss/2:8`` ...
    and ``cross_entropy``; evaluation measures every term whatever its weight. TRL's
    ``mean_token_accuracy``, ``entropy``, ``num_tokens`` and, for a student with routers,
    ``aux_loss`` are logged too. A subclass may override ``compute_loss``: ``loss`` is what it
    returns, in training and evaluation.
    ``target_tokens_per_second`` counts the target tokens of all processes over the time since the
    last log, evaluations excluded.

    Args:
        model: the student, a model or its name.
        teacher_model: a model or its name; default ``args.teacher_model_name_or_path``. With
            ``args.teacher_cache``, ``train()`` first runs it once over the documents that are not
            in the cache; a complete cache needs no teacher. With neither, training is plain SFT and
            needs ``cross_entropy_weight`` > 0.
        args: a ``DistillLensConfig``. An ``SFTConfig`` or ``TrainingArguments``, also as the second
            argument, becomes one with the defaults of our fields; without a teacher, with
            ``cross_entropy_weight`` 1.

    Raises:
        ValueError: a model that the lens cannot read exactly in training, a layer map that does not
            fit the models, different tokenizers, sequences longer than a model's positions, no
            example left.

    Source: arXiv 2602.13567; docs/paper.md.
    """

    _tag_names = ["trl", "sft", "distilllens"]  # noqa: RUF012 - transformers reads it as a class attribute
    _name = "DistillLens"
    # compute_loss divides by the tokens of the whole optimizer step.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model,
        teacher_model=None,
        args: TrainingArguments | None = None,
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
        teacher_model, args = teacher_and_config(teacher_model, args)
        check_arguments(model, teacher_model, args, compute_loss_func)
        check_answers(args, eval_dataset, score_answers)
        check_prompts(args, teacher_model, train_dataset, kwargs.get("formatting_func"))
        self.score_answers, self.overlap = score_answers, None
        logger.info("loading the student, preparing the data")
        super().__init__(
            model=model,
            args=_trl.on_one_gpu(copy.copy(args)),  # SFTTrainer and _save_checkpoint write into it
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            peft_config=peft_config,
            compute_metrics=compute_metrics,
            **kwargs,
        )
        _trl.drop_fused_head(self.model)
        _trl.keep_routers_quiet(self.model)
        _trl.replace_progress_bar(self)
        _trl.count_tokens_of_targets(self)
        check_parallelism(self.accelerator, self.args)
        collation = Collation.of(self)
        check_counts(collation)
        check_weights("student", self.model)
        check_packed_weights(self.model)
        if self.args.should_save:
            make_saveable(self.model, self.processing_class)
        logger.info("checking the student's logit lens against its logits")
        self.student_lens = LogitLens(self.model)
        self.student_lens.check_trainable()
        check_data("student", self.student_lens.model, collation)
        collation.fit_padding(self.student_lens.model)
        self._depths = depths_of(self.student_lens.model.config, self.student_lens.num_layers)
        self.teacher, self._cache_needs = find_teacher(collation, teacher_model, self._depths)
        self.objective = args.objective(layer_map_of(args, self._depths, self.teacher))
        self.project = self._projectors()
        self.add_translators()
        self.add_answers()
        weights_are_sharded(self.args)

    def _projectors(self):
        """What brings the student's states to the teacher's width, trained along where it must."""
        if not self.objective.needs_features():
            return None
        widths = width_of(self.student_lens), width_of(self.teacher)
        depths = self.objective.feature_map.student_depths
        project = FeatureProjectors(depths, *widths, self.args.seed)
        return self.add_companion("feature_projectors", project) if project.maps else project

    def train(self, *args, **kwargs):
        """Fill the teacher cache with what it lacks, then train."""
        self.fill_teacher_cache()
        self.overlap = measured_overlap(Collation.of(self), self.teacher)
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
        collation = Collation.of(self)
        self.settle_teacher_translators(collation)
        self.teacher = filled(collation, self.teacher, self._depths, self._cache_needs)
        self._cache_needs = None

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The weighted total of a micro-batch over the target tokens of its optimizer step.

        The loss of routers, weighted by ``router_aux_loss_coef``, is a mean over micro-batches.
        ``return_outputs`` costs another forward, for logits without a gradient.
        """
        inner = self.accelerator.unwrap_model(model)
        total, aux_loss, named = run_inside_forward(model, inner, self._batch_terms, **inputs)
        num_tokens = named["loss"][1]
        whole = num_items_in_batch is None  # an evaluation
        if whole:
            loss = total / max(num_tokens, 1)
        else:
            loss = total / torch.as_tensor(num_items_in_batch).clamp(min=1)
            loss = loss * self.num_averaged
        self.note(named, loss)
        if aux_loss is not None:
            aux_loss = self.router_aux_loss_coef * aux_loss
            loss = loss + aux_loss / (1 if whole else self.current_gradient_accumulation_steps)
        if not return_outputs:
            return loss
        with torch.no_grad():
            return loss, model(**{k: v for k, v in inputs.items() if k != "labels"})

    def _batch_terms(self, labels, **inputs):
        everything = not self.model.training
        objective, draws = (self.objective, None) if everything else self._of_this_step(inputs)
        targets, layer_map = Targets.of(labels), objective.layer_map
        lens_pairs = layer_map if objective.needs_lens(everything) else None
        raw_pairs = objective.feature_map if objective.needs_features() else None
        depths, ours = (pairs.student_depths if pairs else () for pairs in (lens_pairs, raw_pairs))
        read = {"normalize": self.args.lens_norm, **inputs}
        teacher = teacher_head = features = end_read = None
        with self.accelerator.autocast():
            if self.teacher is not None and objective.needs_teacher(everything):
                theirs = depths_to_ask(self.teacher, lens_pairs, raw_pairs)
                end_read = self.teacher.begin(theirs, targets=targets, **read)
            with (
                collected(self.student_lens.anatomy, ours) as streams,
                router_logits(self.student_lens, self.aux_loss_enabled) as (asked, routed),
            ):
                student = read_states(self.student_lens, depths, **read, **asked)
            if end_read is not None:
                found = read_with_raw(self.teacher, end_read, raw_pairs, targets)
                teacher, teacher_head, raw = found
                rows = {depth: targets.rows(streams[depth]) for depth in ours}
                features = Features(rows, raw, self.project)
            with gather_head(self.model):
                terms = objective(
                    student,
                    self.student_lens.head,
                    teacher,
                    teacher_head,
                    targets,
                    measure_all=everything,
                    lens_draws=draws,
                    features=features,
                )
            aux_loss = None
            named = named_terms(terms, layer_map)
            if self.aux_loss_enabled:
                aux_loss = router_loss(self.student_lens.model, routed, inputs)
                named["aux_loss"] = (aux_loss.detach(), 1)  # a mean over micro-batches
        return terms.total, aux_loss, named

    def _of_this_step(self, inputs):
        """The objective with this step's weight and pairs, and the draws of its tokens or None."""
        # global_step is constant over the micro-batches of a step and restored from checkpoints.
        # seed, not data_seed: the latter keeps the order of the data while everything else varies.
        key = {"seed": self.args.seed, "step": self.state.global_step}
        weight = self.args.lens_weight_at(self.state.global_step, self.state.max_steps)
        objective, draws = self.of_policy(replace(self.objective, lens_weight=weight)), None
        if not objective.needs_lens():
            return objective, None
        if objective.lens_token_fraction < 1:
            where = {name: inputs.get(name) for name in ("attention_mask", "position_ids")}
            draws = draw_tokens(inputs["input_ids"], **where, **key)
        pairs = draw_pairs(objective.layer_map, self.args.lens_pair_fraction, **key)
        return objective.over(pairs), draws

    def log(self, logs, start_time=None):
        """Also log the weight of the lens in the last step, if it depends on the step."""
        if self.args.lens_weight_falls and self.model.training and "loss" in logs:
            step = max(self.state.global_step - 1, 0)
            logs["lens_weight"] = self.args.lens_weight_at(step, self.state.max_steps)
        super().log(logs, start_time)

    def create_model_card(self, model_name=None, dataset_name=None, tags=None):
        """Write README.md: teacher, layer map and weights of the loss; another README stays.

        ``dataset_name`` and ``tags``, a text or several, are added to the hub's metadata; of
        several data sets, files among them, all are named in the table.
        """
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
            lens_readout=self.args.lens_readout,
            on_policy_fraction=self.args.on_policy_fraction,
            datasets=dataset_name or (),
            more_tags=[tags] if isinstance(tags, str) else tags or (),
            adapter_folder=self.args.output_dir if hasattr(self.model, "peft_config") else None,
        )
        file = Path(self.args.output_dir) / "README.md"
        file.parent.mkdir(parents=True, exist_ok=True)
        if not may_write_card(file):
            logger.warning("%s is no model card of distilllens and stays; none is written", file)
            return
        write_atomically(file, card)
