"""What is known of FSDP and DeepSpeed: whole heads, sharded teachers, what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.tensor import DTensor
from transformers.integrations.deepspeed import set_hf_deepspeed_config

from distilllens.errors import one_line
from distilllens.head import Head
from distilllens.train._trl import (
    base_model_of,
    maybe_gather_lm_head_ctx,
    prepare_deepspeed,
    prepare_fsdp,
)
from distilllens.train.teacher_checks import SHARD, check_teacher_sharding, is_asked


def is_sharded(accelerator) -> bool:
    """Whether models are split over processes, by FSDP or DeepSpeed."""
    plugins = (getattr(accelerator.state, f"{name}_plugin", None) for name in ("deepspeed", "fsdp"))
    return any(plugin is not None for plugin in plugins)


def shards_teacher(accelerator, args) -> bool:
    """Whether the teacher of a run is split over processes, too."""
    return is_sharded(accelerator) and args.teacher_sharding == SHARD


def shard_teacher(teacher, accelerator):
    """The frozen teacher, sharded like the student under DeepSpeed or FSDP.

    ``accelerator.prepare_model(..., evaluation_mode=True)`` does not shard under FSDP2.
    """
    if accelerator.state.deepspeed_plugin is not None:
        return prepare_deepspeed(teacher, accelerator)
    return prepare_fsdp(teacher, accelerator)


def weights_are_sharded(args):
    """Tell transformers of DeepSpeed ZeRO-3 when all models are loaded; each was loaded whole."""
    if (config := getattr(args, "hf_deepspeed_config", None)) is not None:
        set_hf_deepspeed_config(config)


def gather_head(model):
    """A context in which the head's weight is whole under DeepSpeed ZeRO-3; else an empty one."""
    head = base_model_of(model).get_output_embeddings()
    if not _is_deepspeeds(head.weight):  # a whole teacher beside a student in shards, too
        return nullcontext()
    return maybe_gather_lm_head_ctx(head.weight, getattr(head, "bias", None))


def gathered_head(lens) -> Head:
    """The head of a frozen model whose weights may be sharded between its forwards.

    Gathered once a step, whatever the number of pairs: by FSDP2 from its tensors, by DeepSpeed
    ZeRO-3 in a context, at whose end the weights are in shards again.
    """
    with gather_head(lens.model):
        head = lens.head
        if _is_deepspeeds(lens.model.get_output_embeddings().weight):
            copied = torch.clone
        elif hasattr(head.weight, "full_tensor"):
            copied = DTensor.full_tensor
        else:
            return head
        bias = None if head.bias is None else copied(head.bias)
        return replace(head, weight=copied(head.weight), bias=bias)


def _is_deepspeeds(weight):
    """Whether DeepSpeed ZeRO-3 has this weight in shards."""
    return hasattr(weight, "ds_id")


def state_in_shards(accelerator) -> bool:
    """Whether FSDP saves checkpoints in shards, one file of each process."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    return plugin is not None and "SHARDED" in str(plugin.state_dict_type)


@contextmanager
def shard_errors() -> Iterator[None]:
    """What torch raises where a process cannot write or read its shard, as that process's error.

    torch tells all processes, by a ``CheckpointException``, which is no ``Exception``.

    Raises:
        OSError: of the file system, with the process in its text.
        RuntimeError: anything else.
    """
    try:
        yield
    except CheckpointException as error:
        rank, (cause, _) = min(error.failures.items())
        if isinstance(cause, OSError) and cause.errno is not None:
            raise OSError(cause.errno, f"{cause.strerror} (process {rank})") from error
        raise RuntimeError(f"{one_line(cause)} (process {rank})") from error


def check_parallelism(accelerator, args):
    """Refuse ways of sharding that split what the loss needs whole, and one that does not happen.

    Raises:
        ValueError: as ``check_teacher_sharding``; FSDP that accelerate replaces by plain data
            parallelism, as on a CPU; tensor, context or sequence parallelism; ``eval_generate`` of
            a sharded student.
    """
    kind = str(accelerator.distributed_type)
    check_teacher_sharding(vars(args))
    if (args.fsdp or is_asked("FSDP")) and not kind.endswith("FSDP"):
        raise ValueError(
            f"fsdp is set, but accelerate starts {kind.removeprefix('DistributedType.')}: every "
            "process would hold whole models; FSDP needs GPUs, so leave fsdp out"
        )
    config = accelerator.parallelism_config
    for kind in ("tp", "cp", "sp"):
        if config is not None and getattr(config, f"{kind}_enabled", False):
            raise ValueError(
                f"{kind}_size > 1 is not supported: a shard of a sequence or a head has no "
                "prediction of its own; use data parallelism or FSDP2"
            )
    if args.eval_generate and is_sharded(accelerator):
        raise ValueError(
            "eval_generate needs the whole student in every process; under FSDP or DeepSpeed "
            "choose by metric_for_best_model: loss, and run distilllens evaluate afterwards"
        )
