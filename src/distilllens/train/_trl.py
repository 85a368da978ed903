"""Every private or versioned name of trl and transformers that we use, each with its reason.

Written for trl 1.16 and transformers 5.23; check this file first after an upgrade.
"""

from __future__ import annotations

import copy
import logging
import re
import sys
import time
from contextlib import contextmanager
from datetime import timedelta

import torch
from datasets import IterableDataset
from torch import distributed
from torch.distributed import distributed_c10d
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.trainer_callback import ProgressCallback
from trl import SFTTrainer
from trl.models import prepare_deepspeed
from trl.models.utils import prepare_fsdp
from trl.trainer.utils import maybe_gather_lm_head_ctx

from distilllens.targets import without_targets
from distilllens.train.preparation import PreparedTrainer
from distilllens.train.progress import LastStepLogged, LogLines, losses

logger = logging.getLogger(__name__)
__all__ = [
    "OTHER_INTERVALS",
    "OTHER_TRANSFORMERS",
    "CountingDocuments",
    "LossProgress",
    "base_model_of",
    "count_tokens_of_targets",
    "default_store",
    "drop_fused_head",
    "end_training",
    "forget_evaluation",
    "hidden_messages",
    "invalid_generation_fields",
    "keep_routers_quiet",
    "mask_repeated_rows",
    "mask_repeated_training_rows",
    "maybe_gather_lm_head_ctx",
    "missing_head",
    "on_one_gpu",
    "prepare_deepspeed",
    "prepare_fsdp",
    "prepare_without_student",
    "replace_progress_bar",
    "set_timeout",
]


def on_one_gpu(args):
    """Training arguments with which a process that was not launched trains on its first GPU.

    transformers would wrap the model in ``nn.DataParallel`` where several are visible, which
    SFTTrainer refuses once the model is loaded. ``_n_gpu`` has no public name that can be set.
    """
    if (visible := args.n_gpu) > 1:
        args._n_gpu = 1
        logger.warning(
            "%d GPUs are visible, and this process trains on the first; to train on all: "
            "--accelerate_config ddp, or accelerate launch",
            visible,
        )
    return args


def base_model_of(model):
    """The transformers model inside a PEFT one; any other model is its own base."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


# A key of a batch, which no model sees.
_DOCUMENTS = "documents_of_rows"

# What transformers logs at a resume: versions, which we tell ourselves, and intervals, of which
# those that are set count here.
OTHER_TRANSFORMERS = "You are resuming training from a checkpoint trained with"
OTHER_INTERVALS = r"Warning: The following arguments do not match (?!.*per_device_train_batch_size)"


def missing_head(model) -> str:
    """The pattern of its complaint that a tied head is missing; it is saved as the embedding."""
    embedding = model.get_input_embeddings().weight
    tied = [n for n, p in model.named_parameters(remove_duplicate=False) if p is embedding]
    names = "|".join(map(re.escape, tied))
    return rf"There were missing keys in the checkpoint model loaded: \['({names})'\]\.$"


@contextmanager
def hidden_messages(*patterns: str):
    """Hide what the trainer of transformers logs in this block, if it begins as a pattern."""

    def other(record):
        text = record.getMessage()
        return not any(re.match(pattern, text, flags=re.DOTALL) for pattern in patterns)

    loggers = [logging.getLogger(f"transformers.{name}") for name in ("trainer", "trainer_utils")]
    for each in loggers:
        each.addFilter(other)
    try:
        yield
    finally:
        for each in loggers:
            each.removeFilter(other)


def invalid_generation_fields(generation_config) -> list[str]:
    """Fields with which transformers refuses to save a generation configuration; often none.

    Raises:
        ValueError: it is refused for another reason.
    """
    try:
        generation_config.validate(strict=True)
    except ValueError as error:
        # The names are known from the message alone.
        if fields := re.findall(r"^- `(\w+)`:", str(error), flags=re.MULTILINE):
            return fields
        raise
    return []


def drop_fused_head(model):
    """Remove the forward that SFTTrainer sets on the instance.

    Our loss never calls it, and in a deep copy of the student it would run the original's weights.
    """
    base_model_of(model).__dict__.pop("forward", None)


def count_tokens_of_targets(trainer):
    """Make transformers count ``labels[..., 1:]`` for every student.

    By default it counts nothing for a forward without loss arguments, and for a class without a
    loss type (GPT-2) it also counts the first position, which no loss ever predicts.
    """
    trainer.model_accepts_loss_kwargs = True
    trainer._loss_shifts_labels = True


def keep_routers_quiet(model):
    """Let a student's own forward return no router logits, which SFTTrainer asks it for.

    Our loss asks the backbone for them, and a forward around stand-ins for the blocks has none.
    """
    config = model.config.get_text_config()
    if getattr(config, "output_router_logits", False):
        config.output_router_logits = False


class _Preparer(PreparedTrainer):
    def _send_telemetry(self):
        """Nothing is sent anywhere."""


def prepare_without_student(args, tokenizer, train_dataset, eval_dataset=None) -> SFTTrainer:
    """A plain SFTTrainer around a model of one narrow block, for its data sets and its collator.

    SFTTrainer prepares data in its constructor, which needs a model but changes only the special
    tokens of its configuration. The data are the same as with the real student.
    """
    args = copy.copy(args)  # SFTTrainer writes into it
    args.model_init_kwargs = args.router_aux_loss_coef = None
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id")}
    shape = {"n_embd": 2, "n_layer": 1, "n_head": 1, "n_positions": 8}
    config = GPT2Config(vocab_size=len(tokenizer), **shape, **special)
    return _Preparer(
        GPT2LMHeadModel(config),
        args=args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
    )


class LossProgress(ProgressCallback):
    """A training bar that shows the loss and its terms, instead of one line per log."""

    def __init__(self):
        super().__init__()
        self._shown = {}

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Show the latest value of each term."""
        if not state.is_world_process_zero or self.training_bar is None:
            return
        self._shown |= losses(logs or {})
        self.training_bar.set_postfix(self._shown, refresh=False)

    def close(self):
        """Leave the bars as they are, so that what is printed next gets a line of its own."""
        for bar in (self.prediction_bar, self.training_bar):
            if bar is not None:
                bar.close()
        self.training_bar = self.prediction_bar = None


def replace_progress_bar(trainer):
    """Replace the progress bar of transformers by ours, or by lines (none if tqdm is disabled)."""
    trainer.add_callback(LastStepLogged())
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(LossProgress() if sys.stderr.isatty() else LogLines())


def mask_repeated_rows(inputs, accelerator, batch_size: int, *, packed: bool):
    """Mask the labels of padding rows in the last evaluation batch of several processes.

    accelerate repeats samples from the start so that every process gets a full batch, and removes
    them again only from tensors that it gathers. Packed rows hold an unknown number of documents
    and are left as they are.

    Args:
        batch_size: of the data loader.
    """
    state = accelerator.gradient_state
    if accelerator.num_processes == 1 or not state.end_of_dataloader or state.remainder <= 0:
        return
    if accelerator.even_batches and ("attention_mask" in inputs or not packed):
        _mask_rows(inputs, state.remainder, accelerator, batch_size)


def _rows_of_each(accelerator, batch_size):
    """Rows of a batch of one process."""
    return batch_size // (accelerator.num_processes if accelerator.split_batches else 1)


def _mask_rows(inputs, num_left, accelerator, batch_size, documents=None):
    """Mask the rows behind the ``num_left`` that the last batches of all processes have.

    Args:
        documents: of packed rows, how many each holds.
    """
    labels, count = inputs["labels"], _rows_of_each(accelerator, batch_size)
    is_flat = len(labels) == 1 and "attention_mask" not in inputs and "position_ids" in inputs
    if len(labels) > count:
        return  # a collator that makes several rows of one: whose they are is not known
    if is_flat:  # documents begin at position 0; so does each token of the padding behind them
        rows = (inputs["position_ids"] == 0).cumsum(-1) - 1
    else:
        rows, count = torch.arange(len(labels), device=labels.device)[:, None], len(labels)
    own = max(num_left - accelerator.process_index * count, 0)
    if is_flat and documents is not None:
        own = int(documents[:own].sum())
    inputs["labels"] = without_targets(labels, rows >= own)


class CountingDocuments:
    """A collator that also notes how many documents each packed row holds."""

    def __init__(self, collator):
        self.collator = collator

    def __call__(self, rows):
        batch = self.collator(rows)
        batch[_DOCUMENTS] = torch.tensor([len(row.get("seq_lengths", [0])) for row in rows])
        return batch


def mask_repeated_training_rows(trainer, batches):
    """Mask the labels of the rows that fill up the last step of an epoch on several processes.

    accelerate repeats rows from the start of the epoch so that every process gets a whole batch. A
    step would train on them twice, and be another one than on one process.
    """
    accelerator, found = trainer.accelerator, [b.pop(_DOCUMENTS, None) for b in batches]
    processes, dataset = accelerator.num_processes, trainer.train_dataset
    if processes == 1 or not batches or not _fills_up(trainer):
        return
    size = trainer._train_batch_size
    num_left = len(dataset) % (_rows_of_each(accelerator, size) * processes)
    # The state of accelerate knows the remainder too, but not after a resume within an epoch.
    if num_left and accelerator.gradient_state.end_of_dataloader:
        _mask_rows(batches[-1], num_left, accelerator, size, found[-1])


def _fills_up(trainer):
    """Whether accelerate repeats rows at the end of an epoch: it leaves some ways to batch alone.

    ``batch_rebalance`` makes the groups of each process itself, of unequal sizes.
    """
    args = trainer.args
    by_itself = args.dataloader_drop_last or args.train_sampling_strategy == "batch_rebalance"
    is_stream = isinstance(trainer.train_dataset, IterableDataset)
    return trainer.accelerator.even_batches and not by_itself and not is_stream


def forget_evaluation(model, accelerator):
    """Allow a model that was evaluated before training to be wrapped for training.

    ``Trainer.evaluate`` marks the bare model as prepared. ``train`` then takes it for a wrapped
    one, and two processes silently train apart (transformers 5.23).
    """
    if accelerator.num_processes > 1 and getattr(model, "_is_accelerate_prepared", False):
        model._is_accelerate_prepared = False
        accelerator._models = [other for other in accelerator._models if other is not model]
        if model.__dict__.pop("_original_forward", None) is not None:
            model.__dict__.pop("forward", None)  # autocast, which preparing adds again


def default_store():
    """``(store, rank, size)`` of the process group; without one, ``(None, 0, 1)``."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return None, 0, 1
    size = distributed.get_world_size()
    return distributed_c10d._get_default_store(), distributed.get_rank(), size


def set_timeout(seconds: float):
    """Let the process group wait so long; transformers 5.23 forgets ``ddp_timeout`` on the CPU."""
    if default_store()[2] > 1:
        distributed_c10d._set_pg_timeout(timedelta(seconds=seconds))


def end_training(accelerator):
    """Leave the process group so that the interpreter can exit.

    gloo's thread needs the GIL to free the tensors of its last collective. An interpreter that
    shuts down meanwhile holds the GIL while it joins that thread, and hangs. A short sleep avoids
    this.
    """
    if accelerator.num_processes > 1:
        time.sleep(0.5)
    accelerator.end_training()
