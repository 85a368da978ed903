"""The host made safe: complete checkpoints, no step past the end, no step that is not finite."""

from __future__ import annotations

import copy
import logging
import re
import shutil
from collections import deque
from dataclasses import asdict
from pathlib import Path
from signal import Signals

import torch
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTTrainer

from distilllens.masking import masked
from distilllens.train._trl import (
    OTHER_INTERVALS,
    OTHER_TRANSFORMERS,
    CountingDocuments,
    LossProgress,
    base_model_of,
    end_training,
    hidden_messages,
    mask_repeated_training_rows,
    missing_head,
)
from distilllens.train.carried import CarriedSums
from distilllens.train.checkpoint import last_whole, mark_whole, rotate, versions_of
from distilllens.train.elastic import StepRows, rows_to_keep, settle
from distilllens.train.finite import NotFinite, check_weights, first_not_finite, is_finite
from distilllens.train.lost import faults_told
from distilllens.train.metrics import num_tokens
from distilllens.train.model_card import versions
from distilllens.train.run_folder import run_id, step_rows
from distilllens.train.saving import recast, saved_or_removed
from distilllens.train.sharding import shard_errors, state_in_shards
from distilllens.train.stopping import Stopped, StopSignals

logger = logging.getLogger(__name__)
_SHOWN_TOKENS = 12


class SafeTrainer(SFTTrainer):
    """``SFTTrainer`` that keeps what it has: its user is ``DistillLensTrainer``.

    Attributes:
        saves_final_model: whether who trains saves the final model, and removes older checkpoints
            after it.

    Raises:
        ValueError: while training: a gradient that is not finite. No step is taken with it, and the
            last checkpoint stays. While saving: weights that are not finite.
        Stopped: with ``StopSignals`` among the callbacks, after a signal; its step is saved.
    """

    saves_final_model = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # (loss, ids) of the optimizer step in progress.
        self._micro_batches = deque()
        self._saved_step = None
        self._signals = self._callback(StopSignals)
        self._carried = CarriedSums()
        self.add_callback(self._carried)

    def _callback(self, kind):
        """The callback of a kind, or None."""
        found = (c for c in self.callback_handler.callbacks if isinstance(c, kind))
        return next(found, None)

    def _send_telemetry(self):
        """Nothing is sent anywhere."""

    def _init_training_state(self, max_steps, epoch_steps, epochs, checkpoint, trial):
        with hidden_messages(OTHER_INTERVALS):
            found = super()._init_training_state(max_steps, epoch_steps, epochs, checkpoint, trial)
        # A checkpoint holds the intervals of its run; those that are set now count.
        self.state.compute_steps(self.args, max_steps)
        self._saved_step = None
        self._carried = self._callback(CarriedSums)
        carried = self.state.stateful_callbacks.setdefault(CarriedSums.__name__, {})
        step, main = self.state.global_step, self.is_world_process_zero()
        self._carried.restart(carried, step, self.accelerator.num_processes, main=main)
        if checkpoint is not None:
            _warn_of_differences(Path(checkpoint))
        return found

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        hidden = [OTHER_TRANSFORMERS] if versions_of(resume_from_checkpoint) else []
        student = base_model_of(self.accelerator.unwrap_model(self.model))
        with hidden_messages(*hidden, missing_head(student)):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _run_epoch(self, *args, **kwargs):
        # transformers takes a step before it compares the steps taken with the last one.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)
        self._stop_if_asked()

    def _maybe_log_save_evaluate(self, tr_loss, grad_norm, model, trial, epoch, *args, **kwargs):
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, epoch, *args, **kwargs)
        # After the last step of an epoch follow what is due at its end, and another call.
        if self.state.epoch < epoch + 1:
            self._stop_if_asked()

    def _stop_if_asked(self):
        """Save a checkpoint and raise ``Stopped`` if any process has got a signal."""
        step = self.state.global_step
        if self._signals is None or step >= self.state.max_steps:
            return  # all steps are taken: what is left is to save the model
        if not (number := self._signals.agreed(self.accelerator)):
            return
        if self._saved_step != step:
            self._save_checkpoint(self.model, trial=None)
        # Launchers end all processes once one has ended.
        self.accelerator.wait_for_everyone()
        end_training(self.accelerator)
        folder = Path(self.args.output_dir) / f"checkpoint-{step}"
        raise Stopped(
            number,
            f"stopped by {Signals(number).name} after step {step}, which is saved in {folder}; "
            "the same command goes on from there",
        )

    def training_step(self, model, inputs, num_items_in_batch=None):
        """One micro-batch; its loss is remembered until its optimizer step is known to be sound."""
        ids = inputs.get("input_ids")
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._carried.add(loss, num_tokens(inputs))
        self._micro_batches.append((loss.detach(), ids))
        if len(self._micro_batches) > self.args.gradient_accumulation_steps:
            self._micro_batches.popleft()
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm)
        micro_batches = list(self._micro_batches)
        self._micro_batches.clear()
        # fp16 scales the loss until gradients overflow, and skips those steps itself.
        if self.accelerator.scaler is None and not is_finite(norm):
            raise NotFinite(self._not_finite(float(norm), micro_batches))
        return norm

    def _not_finite(self, norm, micro_batches):
        """What to say of a gradient that is not finite; it is the same on all processes."""
        step = self.state.global_step + 1
        found = [(float(loss), ids) for loss, ids in micro_batches if not is_finite(loss)]
        cause = f"the gradient is not finite ({norm}) at step {step}"
        if found:
            loss, ids = found[0]
            cause = f"the loss is not finite ({loss}) at step {step}"
            if ids is not None:
                tokenizer = getattr(self.processing_class, "tokenizer", self.processing_class)
                rows = (tokenizer.decode(row[:_SHOWN_TOKENS].tolist()) for row in ids)
                cause += f", in the rows that begin with {', '.join(map(repr, rows))}"
        kept = last_whole(self.args.output_dir, contents=False)
        kept = f"{kept} is the last checkpoint" if kept else "there is no checkpoint so far"
        return f"{cause}; {kept}: lower learning_rate, set max_grad_norm, or check data and models"

    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        """Train; ``training_loss`` is the mean over all steps of the run, after a resume too.

        Resumed with another number of processes, the accumulation follows, so that a step keeps its
        rows.

        Raises:
            ValueError: it cannot.
        """
        checkpoint = resume_from_checkpoint
        if checkpoint is True:
            checkpoint = get_last_checkpoint(self.args.output_dir)
        if checkpoint and Path(checkpoint).is_dir():
            begun = step_rows(self.args.output_dir)
            settle(self.args, rows_to_keep(begun, checkpoint, self.args))
        try:
            with faults_told(self.args.ddp_timeout), shard_errors():
                output = super().train(resume_from_checkpoint, *args, **kwargs)
        except BaseException:
            if (progress := self._callback(LossProgress)) is not None:
                progress.close()
            raise
        return output._replace(training_loss=output.metrics["train_loss"])

    def log(self, logs, start_time=None):
        """Log; ``train_loss`` is the mean over all steps of the run, after a resume too.

        Runtime and speed are those since the last start.
        """
        if "train_loss" in logs:
            processes, step = self.accelerator.num_processes, self.state.global_step
            reduce = self._sum_over_processes
            logs["train_loss"] = self._carried.mean_loss(step, processes, reduce)
        super().log(logs, start_time)

    def _sum_over_processes(self, sums):
        if self.accelerator.num_processes == 1:
            return sums
        return self.accelerator.reduce(sums.to(self.accelerator.device), reduction="sum")

    def save_model(self, output_dir=None, _internal_call=False):
        """Save the model, if its weights are finite; the caller's, unlike checkpoints, recast."""
        bad = torch.tensor(int(first_not_finite(self.model) is not None))
        if self.accelerator.reduce(bad.to(self.accelerator.device), reduction="sum") > 0:
            check_weights("student", self.model)
            raise NotFinite("the weights of the student are not finite on another process")
        if not _internal_call and state_in_shards(self.accelerator):
            # transformers saves nothing but the shards of checkpoints.
            self._save(output_dir, self.accelerator.get_state_dict(self.model))
        super().save_model(output_dir, _internal_call)
        dtype = getattr(self.args, "save_dtype", "auto")
        if not _internal_call and self.args.should_save and dtype != "auto":
            recast(Path(output_dir or self.args.output_dir), dtype)

    def _save(self, output_dir=None, state_dict=None):
        # transformers pickles the arguments beside every model.
        args, self.args = self.args, _without_secrets(self.args)
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.args = args

    def _determine_best_metric(self, metrics, trial):
        # transformers keeps the first of equal checkpoints; the last one has learned the most.
        best = self.state.best_metric
        is_best = super()._determine_best_metric(metrics, trial)
        if not is_best and best is not None and metrics.get(self._deciding_metric) == best:
            self.state.best_global_step = self.state.global_step
            return True
        return is_best

    def _load_best_model(self):
        name = self._deciding_metric
        scores = {row["step"]: row[name] for row in self.state.log_history if name in row}
        if len(scores) > 1 and len({*scores.values()}) == 1:
            logger.warning(
                "%s is %g at all %d evaluations, so it does not tell checkpoints apart; the last "
                "one is kept",
                *(name, next(iter(scores.values())), len(scores)),
            )
        with hidden_messages(
            missing_head(base_model_of(self.accelerator.unwrap_model(self.model)))
        ):
            super()._load_best_model()

    @property
    def _deciding_metric(self):
        return f"eval_{(self.args.metric_for_best_model or '').removeprefix('eval_')}"

    def get_train_dataloader(self):
        """That of SFTTrainer; packed rows say how many documents they hold, if that matters."""
        collator = self.data_collator
        if self.args.packing and self.accelerator.num_processes > 1:
            self.data_collator = CountingDocuments(collator)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = collator

    def _get_num_items_in_batch(self, batch_samples, device):
        # Targets are counted here, over the micro-batches of a step, before they are trained on.
        mask_repeated_training_rows(self, batch_samples)
        return super()._get_num_items_in_batch(batch_samples, device)

    def _finalize_training(self, *args, **kwargs):
        if not self.saves_final_model:
            return super()._finalize_training(*args, **kwargs)
        # With a limit of 1 it would delete the newest checkpoint before that model is saved.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    def _save_checkpoint(self, model, trial):
        self._carried.gather(self._sum_over_processes, self.accelerator.num_processes)
        run_dir, step = Path(self._get_output_dir(trial=trial)), self.state.global_step
        newest, writes = run_dir / f"checkpoint-{step}", self.args.should_save
        # Delete an older checkpoint only after the newer one is complete on the disk.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with saved_or_removed(newest, newest.name, writes=writes), shard_errors():
                if writes:  # remains of a save that was killed
                    shutil.rmtree(newest, ignore_errors=True)
                self.accelerator.wait_for_everyone()
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if writes:
                    run = run_id(run_dir)
                    more = {"run": run} if run else {}
                    more["step_rows"] = asdict(StepRows.of_args(self.args))
                    mark_whole(newest, versions=versions(), **more)
        finally:
            self.args.save_total_limit = limit
        self._saved_step = step
        if writes:
            best = self.state.best_model_checkpoint
            rotate(run_dir, limit, [newest, *([best] if best else [])])


def _warn_of_differences(checkpoint):
    """Say what keeps a resumed run from the weights of one that was not interrupted."""
    now = versions()
    changed = [
        f"{name} {version} (now {now.get(name, 'none')})"
        for name, version in versions_of(checkpoint).items()
        if version != now.get(name)
    ]
    if changed:
        logger.warning(
            "%s was written with other versions, so the run may end at other weights than without "
            "the interruption: %s",
            checkpoint,
            ", ".join(changed),
        )
    # optimizer.pt, optimizer.bin, optimizer_0 of FSDP, global_step8 of DeepSpeed
    if not any(re.match(r"optimizer|global_step\d", path.name) for path in checkpoint.iterdir()):
        logger.warning(
            "%s holds no state of the optimizer (save_only_model), which begins anew: the run ends "
            "at other weights than without the interruption",
            checkpoint,
        )


def _without_secrets(args):
    """A copy of training arguments without the hub's token and with other secrets masked."""
    args = copy.copy(args)
    args.hub_token = None
    for name, value in vars(args).items():
        if isinstance(value, dict | list | tuple):
            setattr(args, name, masked(value))
    return args
