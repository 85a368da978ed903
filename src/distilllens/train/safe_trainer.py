"""The host made safe: complete checkpoints, no step past the end, no step that is not finite."""

from __future__ import annotations

import copy
import logging
from collections import deque
from pathlib import Path

import torch
from trl import SFTTrainer

from distilllens.masking import masked
from distilllens.train.checkpoint import last_whole, mark_whole, rotate
from distilllens.train.finite import check_weights, first_not_finite, is_finite

logger = logging.getLogger(__name__)
_SHOWN_TOKENS = 12


class SafeTrainer(SFTTrainer):
    """``SFTTrainer`` that keeps what it has: its user is ``DistillLensTrainer``.

    Raises:
        ValueError: while training: a gradient that is not finite. No step is taken with it, and the
            last checkpoint stays. While saving: weights that are not finite.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # (loss, ids) of the optimizer step in progress.
        self._micro_batches = deque(maxlen=max(1, self.args.gradient_accumulation_steps))

    def _send_telemetry(self):
        """Nothing is sent anywhere."""

    def _run_epoch(self, *args, **kwargs):
        # transformers takes a step before it compares the steps taken with the last one.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def training_step(self, model, inputs, num_items_in_batch=None):
        """One micro-batch; its loss is remembered until its optimizer step is known to be sound."""
        ids = inputs.get("input_ids")
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._micro_batches.append((loss.detach(), ids))
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm)
        micro_batches = list(self._micro_batches)
        self._micro_batches.clear()
        # fp16 scales the loss until gradients overflow, and skips those steps itself.
        if self.accelerator.scaler is None and not is_finite(norm):
            raise ValueError(self._not_finite(float(norm), micro_batches))
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

    def save_model(self, output_dir=None, _internal_call=False):
        """Save the model, if its weights are finite."""
        bad = torch.tensor(int(first_not_finite(self.model) is not None))
        if self.accelerator.reduce(bad.to(self.accelerator.device), reduction="sum") > 0:
            check_weights("student", self.model)
            raise ValueError("the weights of the student are not finite on another process")
        super().save_model(output_dir, _internal_call)

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
        super()._load_best_model()

    @property
    def _deciding_metric(self):
        return f"eval_{(self.args.metric_for_best_model or '').removeprefix('eval_')}"

    def _save_checkpoint(self, model, trial):
        # Delete an older checkpoint only after the newer one is complete on the disk.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            run_dir = self._get_output_dir(trial=trial)
            newest = Path(run_dir) / f"checkpoint-{self.state.global_step}"
            mark_whole(newest)
            best = self.state.best_model_checkpoint
            rotate(run_dir, limit, [newest, *([best] if best else [])])


def _without_secrets(args):
    """A copy of training arguments without the hub's token, and with secrets masked in mappings."""
    args = copy.copy(args)
    args.hub_token = None
    for name, value in vars(args).items():
        if isinstance(value, dict):
            setattr(args, name, masked(value))
    return args
