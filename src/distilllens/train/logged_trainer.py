"""What a run logs: sums over counts, and the loss that ``compute_loss`` returns."""

from __future__ import annotations

import time

import torch

from distilllens.targets import Targets
from distilllens.train import _trl
from distilllens.train.attention import attention_of_changing_shapes
from distilllens.train.metrics import TermSums, wide
from distilllens.train.safe_trainer import SafeTrainer


class LoggedTrainer(SafeTrainer):
    """``SafeTrainer`` whose means do not depend on how tokens are batched.

    ``compute_loss`` hands its terms to ``note``. ``loss`` is what it returns, also if a subclass
    overrides it.

    Attributes:
        score_answers: of ``eval_generate``, or None.
    """

    score_answers = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._eval_terms = TermSums()
        self._own_loss = None  # of the last call of compute_loss: loss, its sum, its targets
        self._since = None  # start of the training time of the next log; None before a step

    def train(self, *args, **kwargs):
        """Train; times begin anew."""
        self._since = None
        return super().train(*args, **kwargs)

    def evaluate(self, *args, **kwargs):
        """Evaluate; the model is then as it was: the log of an epoch may follow the evaluation."""
        training = self.model.training
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self.model.train(training)

    def get_eval_dataloader(self, eval_dataset=None):
        """All evaluation data, also with ``dataloader_drop_last``, which is for training."""
        dropped, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = dropped

    def training_step(self, model, inputs, num_items_in_batch=None):
        """A micro-batch; loading and the batches that a resume skips are before its time."""
        if self._since is None:
            self._since = time.perf_counter()
        with attention_of_changing_shapes(self.args.packing):
            loss = super().training_step(model, inputs, num_items_in_batch)
        self._carried.terms.add(self._returned(loss, inputs, num_items_in_batch))
        return loss

    @property
    def num_averaged(self) -> int:
        """The processes whose gradients are averaged, and whose targets are counted together."""
        return self.accelerator.num_processes if self.args.average_tokens_across_devices else 1

    def note(self, named, loss):
        """Count the terms of a micro-batch, as ``named_terms`` makes them; ``loss`` is its own."""
        total, num_tokens = named.pop("loss")
        (self._carried.terms if self.model.training else self._eval_terms).add(named)
        self._own_loss = (loss.detach(), total, num_tokens)

    def _returned(self, loss, inputs, num_items=None):
        """``loss`` for the log: what ``compute_loss`` returned, a subclass's too, as a sum."""
        own, self._own_loss = self._own_loss, None
        if own is None:  # a subclass that does not call ours
            num_tokens = len(Targets.of(inputs["labels"]))
            own = (loss.new_zeros(()), loss.new_zeros(()), num_tokens)
        own_loss, total, num_tokens = own
        more = wide(loss.detach()) - wide(own_loss)
        if num_items is None:
            more = more * num_tokens
        else:
            more = more * torch.as_tensor(num_items).clamp(min=1) / self.num_averaged
        # Where they are equal, which infinite losses may be, our sum is exact.
        more = more.masked_fill(loss.detach() == own_loss, 0)
        return {"loss": (wide(total) + more, num_tokens)}

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """The loss; logits too, of another forward, if metrics or predictions ask for them."""
        inputs = self._prepare_inputs(inputs)
        packing = self.args.packing if self.args.eval_packing is None else self.args.eval_packing
        size = self.args.eval_batch_size
        _trl.mask_repeated_rows(inputs, self.accelerator, size, packed=bool(packing))
        steady = attention_of_changing_shapes(bool(packing))
        with torch.no_grad(), self.compute_loss_context_manager(), steady:
            outputs = None
            given = dict(inputs)  # which a subclass may change
            loss = self.compute_loss(model, given, return_outputs=not prediction_loss_only)
            if not prediction_loss_only:
                loss, outputs = loss
        self._eval_terms.add(self._returned(loss, inputs))
        if outputs is None:
            return loss.detach(), None, None
        return loss.detach(), outputs.logits, inputs["labels"]

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
        means["num_tokens"] = self._carried.num_tokens(self._sum_over_processes)
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
            logs["num_tokens"] = self._carried.num_tokens(self._sum_over_processes)
            now = time.perf_counter()
            began, self._since = now if self._since is None else self._since, now
            num_tokens = self._carried.terms.num_tokens
            logs["target_tokens_per_second"] = num_tokens / max(self._since - began, 1e-9)
        super().log(logs, start_time)


def _is_evaluation_time(name):
    return name.startswith("eval_") and name.endswith("_runtime")
