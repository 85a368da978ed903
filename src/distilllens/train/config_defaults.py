"""Fields of ``DistillLensConfig`` that follow from others, or from the machine."""

from __future__ import annotations

import torch
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from distilllens.loss_terms import TERMS


def follow_the_machine(args):
    """Set what is not set and depends on the machine: precision, checkpointing, pinned memory."""
    # Without use_cpu, accelerate takes each process of torchrun on a CPU for a single one.
    args.use_cpu = args.use_cpu or not torch.accelerator.is_available()
    accelerator = not args.use_cpu
    if args.bf16 is None:
        # Off on CPUs with products in bfloat16, too: short steps and small models are slower with
        # it (docs/performance.md), and runs and caches of one recipe would depend on the processor.
        has_bf16 = accelerator and (not torch.cuda.is_available() or torch.cuda.is_bf16_supported())
        args.bf16 = has_bf16 and not args.fp16
    if args.activation_checkpointing is None:
        asked = args.gradient_checkpointing
        args.activation_checkpointing = accelerator if asked is None else asked
    # Without an accelerator, pinned memory only causes a warning.
    args.dataloader_pin_memory = args.dataloader_pin_memory and accelerator
    if args.gradient_checkpointing_kwargs and not args.activation_checkpointing_kwargs:
        args.activation_checkpointing_kwargs = args.gradient_checkpointing_kwargs


def load_models_whole(args):
    """Let models be loaded whole, in the memory of each process, also under DeepSpeed ZeRO-3.

    transformers would put them in shards while it loads them, and the lens is proved on whole
    weights. ``sharding.weights_are_sharded`` says so again once they are loaded.
    """
    if args.deepspeed_plugin is not None:
        args.deepspeed_plugin.zero3_init_flag = False
        unset_hf_deepspeed_config()


def follow_the_answers(args):
    """Set what ``eval_generate`` asks of evaluations and checkpoints.

    Raises:
        ValueError: no evaluations, or checkpoints at other steps.
    """
    if not args.eval_generate:
        return
    if str(getattr(args.eval_strategy, "value", args.eval_strategy)) == "no":
        raise ValueError(
            "eval_generate needs evaluations: set eval_strategy and save_strategy to epoch, or "
            "both to steps"
        )
    if args.eval_steps is None:
        args.eval_steps = args.save_steps
    if args.eval_steps != args.save_steps and str(args.eval_strategy).endswith("steps"):
        raise ValueError(
            f"eval_generate keeps the best evaluated checkpoint, so eval_steps "
            f"({args.eval_steps}) and save_steps ({args.save_steps}) must be equal"
        )
    args.load_best_model_at_end = True
    if args.metric_for_best_model is None:
        args.metric_for_best_model = "rouge_l"


def follow_the_metric(args):
    """Set whether larger values of ``metric_for_best_model`` are better.

    transformers takes them to be, unless the name ends in "loss".
    """
    if args.greater_is_better is None and args.metric_for_best_model is not None:
        name = args.metric_for_best_model.removeprefix("eval_")
        ours = {term.log_name for term in TERMS} | {"entropy"}
        args.greater_is_better = not (name.split("/")[0] in ours or name.endswith("loss"))
