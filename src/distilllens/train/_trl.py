"""Every private or versioned name of trl and transformers that we lean on, each with its reason.

Written against trl 1.16 and transformers 5.23; an upgrade is checked here first.
"""

from __future__ import annotations

import time

import torch
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import rotate_checkpoints
from trl.models import prepare_deepspeed
from trl.models.utils import prepare_fsdp
from trl.trainer.utils import maybe_gather_lm_head_ctx

from distilllens.head import Head

__all__ = [
    "LossProgress",
    "base_model_of",
    "count_tokens_of_targets",
    "drop_fused_head",
    "end_training",
    "forget_evaluation",
    "gather_head",
    "gathered_head",
    "mask_repeated_rows",
    "replace_progress_bar",
    "rotate_checkpoints",
    "shard_teacher",
]


def base_model_of(model):
    """The transformers model inside a PEFT one; any other model is its own base."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def drop_fused_head(model):
    """Take off the forward that SFTTrainer hangs on the instance.

    The loss here never calls it, and a deep copy of the student would run the original's weights.
    """
    base_model_of(model).__dict__.pop("forward", None)


def gather_head(model):
    """A context in which the head's weight is whole under DeepSpeed ZeRO-3; else an empty one."""
    head = base_model_of(model).get_output_embeddings()
    return maybe_gather_lm_head_ctx(head.weight, getattr(head, "bias", None))


def gathered_head(lens) -> Head:
    """The head of a frozen model whose weights may lie sharded between its forwards (FSDP2)."""
    head = lens.head
    if not hasattr(head.weight, "full_tensor"):
        return head
    bias = None if head.bias is None else head.bias.full_tensor()
    return Head(head.weight.full_tensor(), bias, head.scale, head.softcap)


def count_tokens_of_targets(trainer):
    """Have transformers count ``labels[..., 1:]`` for every student.

    It counts nothing for a forward that takes no loss arguments, and the first position as well for
    a class without a loss type (GPT-2), though no loss ever predicts that one.
    """
    trainer.model_accepts_loss_kwargs = True
    trainer._loss_shifts_labels = True


def shard_teacher(teacher, accelerator):
    """The frozen teacher, sharded like the student under DeepSpeed or FSDP.

    ``accelerator.prepare_model(..., evaluation_mode=True)`` does not shard under FSDP2.
    """
    if accelerator.state.deepspeed_plugin is not None:
        return prepare_deepspeed(teacher, accelerator)
    return prepare_fsdp(teacher, accelerator)


class LossProgress(ProgressCallback):
    """The training bar with the loss and its terms behind it, instead of a line per log."""

    _SHORT = (
        ("loss", "loss"),
        ("output_loss", "output"),
        ("lens_loss", "lens"),
        ("cross_entropy", "ce"),
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
    """Unlabel the rows that fill up the last evaluation batch of several processes.

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
    inputs["labels"] = labels.masked_fill(rows >= own, -100)


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
