"""Every private or versioned name of trl and transformers that we lean on, each with its reason.

Written against trl 1.16 and transformers 5.23; an upgrade is checked here first.
"""

from __future__ import annotations

import copy
import time

import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import rotate_checkpoints
from trl import SFTTrainer
from trl.models import prepare_deepspeed
from trl.models.utils import prepare_fsdp
from trl.trainer.utils import maybe_gather_lm_head_ctx

from distilllens.objective import TERMS
from distilllens.targets import without_targets

__all__ = [
    "LossProgress",
    "base_model_of",
    "count_tokens_of_targets",
    "drop_fused_head",
    "end_training",
    "forget_evaluation",
    "mask_repeated_rows",
    "maybe_gather_lm_head_ctx",
    "prepare_deepspeed",
    "prepare_fsdp",
    "prepare_without_student",
    "replace_progress_bar",
    "rotate_checkpoints",
]


def base_model_of(model):
    """The transformers model inside a PEFT one; any other model is its own base."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def drop_fused_head(model):
    """Take off the forward that SFTTrainer hangs on the instance.

    The loss here never calls it, and a deep copy of the student would run the original's weights.
    """
    base_model_of(model).__dict__.pop("forward", None)


def count_tokens_of_targets(trainer):
    """Have transformers count ``labels[..., 1:]`` for every student.

    It counts nothing for a forward that takes no loss arguments, and the first position as well for
    a class without a loss type (GPT-2), though no loss ever predicts that one.
    """
    trainer.model_accepts_loss_kwargs = True
    trainer._loss_shifts_labels = True


class _Preparer(SFTTrainer):
    def _send_telemetry(self):
        """Nothing is sent anywhere."""


def prepare_without_student(args, tokenizer, train_dataset, eval_dataset=None) -> SFTTrainer:
    """A plain SFTTrainer around a model of one narrow block, for its data sets and its collator.

    SFTTrainer prepares data in its constructor and asks for a model there, of which it only changes
    the special tokens; what it prepares is what the trainer of the real student would prepare.
    """
    args = copy.copy(args)  # SFTTrainer writes into it
    args.model_init_kwargs = None
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=2, n_layer=1, n_head=1, n_positions=8)
    return _Preparer(
        GPT2LMHeadModel(config),
        args=args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
    )


class LossProgress(ProgressCallback):
    """The training bar with the loss and its terms behind it, instead of a line per log."""

    _SHORT = (
        ("loss", "loss"),
        *((term.log_name, term.short) for term in TERMS),
        ("eval_loss", "eval"),
    )

    def __init__(self):
        super().__init__()
        self._shown = {}

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Show the newest value of each term."""
        if not state.is_world_process_zero or self.training_bar is None:
            return
        self._shown |= {short: f"{logs[key]:.3f}" for key, short in self._SHORT if key in logs}
        self.training_bar.set_postfix(self._shown, refresh=False)


def replace_progress_bar(trainer):
    """Put LossProgress where transformers put its own bar (none when tqdm is disabled)."""
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(LossProgress())


def mask_repeated_rows(inputs, accelerator, packed: bool):
    """Mask the labels of padding rows in the last evaluation batch of several processes.

    accelerate repeats samples from the start so that every process has a full batch, and offers to
    cut them off again only in what it gathers. Rows stay; their labels go. Packed rows hold an
    unknown number of documents and are left alone.
    """
    state = accelerator.gradient_state
    if accelerator.num_processes == 1 or not state.end_of_dataloader or state.remainder <= 0:
        return
    labels = inputs["labels"]
    if "attention_mask" in inputs:
        rows = torch.arange(len(labels), device=labels.device)[:, None]
        count = len(labels)
    elif not packed:  # padding-free: one row, documents begin at position 0
        rows = (inputs["position_ids"] == 0).cumsum(-1) - 1
        count = int(rows.max()) + 1
    else:
        return
    own = state.remainder - accelerator.process_index * count
    inputs["labels"] = without_targets(labels, rows >= own)


def forget_evaluation(model, accelerator):
    """Let a model that was evaluated before training be wrapped for training after all.

    ``Trainer.evaluate`` marks the bare model as prepared; ``train`` then finds the mark, takes the
    model for a wrapped one, and two processes train apart without a word (transformers 5.23).
    """
    if accelerator.num_processes > 1 and getattr(model, "_is_accelerate_prepared", False):
        model._is_accelerate_prepared = False
        accelerator._models = [other for other in accelerator._models if other is not model]
        if model.__dict__.pop("_original_forward", None) is not None:
            model.__dict__.pop("forward", None)  # the autocast, which preparing hangs on again


def end_training(accelerator):
    """Leave the process group so that the interpreter can exit.

    gloo's thread drops the tensors of its last collective under the GIL; an interpreter that shuts
    down meanwhile holds the GIL while it joins that thread, and hangs. A moment lets it finish.
    """
    if accelerator.num_processes > 1:
        time.sleep(0.5)
    accelerator.end_training()
