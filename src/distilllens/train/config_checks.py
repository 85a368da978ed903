"""Checks of the fields of ``DistillLensConfig``, made when they are set."""

from __future__ import annotations

import math
import os

from distilllens.layer_map import LayerMap
from distilllens.objective import WEIGHT_FIELDS
from distilllens.teacher.manifest import STORED

# Bounds of fields that transformers does not check; max_steps -1 means "not set".
_BOUNDS = {
    "adam_beta1": (0, 1),
    "adam_beta2": (0, 1),
    "data_seed": (0, 2**32 - 1),
    "dataloader_num_workers": (0, math.inf),
    "gradient_accumulation_steps": (1, 2**20),
    "learning_rate": (0, math.inf),
    "max_grad_norm": (0, math.inf),
    "max_length": (2, math.inf),
    "max_steps": (1, math.inf),
    "num_train_epochs": (1e-9, math.inf),
    "per_device_eval_batch_size": (1, 2**20),
    "per_device_train_batch_size": (1, 2**20),
    "save_total_limit": (0, math.inf),
    "seed": (0, 2**32 - 1),
    "warmup_steps": (0, math.inf),
    "weight_decay": (0, math.inf),
}
_SAVED = ("auto", "float32", "bfloat16", "float16")
_PACKING = ("bfd", "bfd_split", "wrapped")


def check_bounds(args):
    """Refuse numbers out of range, of fields that transformers does not check.

    Raises:
        ValueError: with the field, the value and the range.
    """
    for name, (low, high) in _BOUNDS.items():
        value = getattr(args, name)
        if value is None or (name == "max_steps" and value == -1):
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name} must be a number, got {value!r}")
        if not low <= value <= high:
            top = "" if high == math.inf else f" and at most {high}"
            raise ValueError(f"{name} must be at least {low:g}{top}, got {value}")
        if value == math.inf:
            raise ValueError(f"{name} must be finite, got {value}")


def check_precision(args):
    """Refuse fp16 on the CPU, where accelerate trains in float32 without a word.

    Raises:
        ValueError: with what to set instead.
    """
    if args.mixed_precision == "fp16" and args.use_cpu:
        asked = "fp16" if args.fp16 else "ACCELERATE_MIXED_PRECISION=fp16"
        raise ValueError(
            f"{asked} needs a GPU, and this run is on the CPU; leave it out for float32, or set "
            "bf16: true"
        )


def check_save_dtype(name):
    """Refuse a dtype in which no final model is saved.

    Raises:
        ValueError: with those that are known.
    """
    if name not in _SAVED:
        raise ValueError(f"save_dtype is one of {', '.join(_SAVED)}, got {name!r}")


def check_types(args):
    """Refuse values of a wrong type in the fields of distillation.

    Raises:
        ValueError: with the field and the value.
    """
    numbers = [
        *WEIGHT_FIELDS,
        "temperature",
        "lens_beta",
        "lens_pair_fraction",
        "lens_token_fraction",
    ]
    for name in numbers:
        value = getattr(args, name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name} must be a number, got {value!r}")
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")
    for name in ("output_divergence", "lens_divergence"):
        if not isinstance(getattr(args, name), str):
            raise ValueError(f"{name} must be a name, got {getattr(args, name)!r}")
    for name in (
        "output_divergence_kwargs",
        "lens_divergence_kwargs",
        "teacher_model_init_kwargs",
        "eval_generate_kwargs",
    ):
        value = getattr(args, name)
        if value is not None and not isinstance(value, dict):
            raise ValueError(f"{name} must be a mapping such as {{beta: 0.5}}, got {value!r}")
    for name in ("lens_norm", "eval_generate"):
        if not isinstance(getattr(args, name), bool):
            raise ValueError(f"{name} must be true or false, got {getattr(args, name)!r}")


def check_scope(args):
    """Refuse settings of the hosts that this objective does not support.

    Raises:
        ValueError: with the setting, and what to do instead.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != args.world_size:
        raise ValueError(
            f"{started} processes were started, but accelerate sees {args.world_size}: they "
            "would train separately and write to one folder; start them with torchrun, and "
            "unset contradicting ACCELERATE_* variables"
        )
    if args.loss_type != "nll":
        raise ValueError(
            f"loss_type {args.loss_type!r} is not supported; leave it at 'nll' and choose "
            "output_divergence, lens_divergence and the three weights"
        )
    if args.label_smoothing_factor:
        raise ValueError(
            f"label_smoothing_factor must be 0, got {args.label_smoothing_factor}: "
            "the cross-entropy is computed without smoothing"
        )
    # SFTConfig has put the new names of old strategies in their place.
    if args.packing and args.packing_strategy not in _PACKING:
        known = ", ".join(_PACKING)
        raise ValueError(f"packing_strategy is one of {known}, got {args.packing_strategy!r}")
    if args.teacher_cache is not None and (
        not isinstance(args.teacher_cache, str) or not args.teacher_cache.strip()
    ):
        raise ValueError(f"teacher_cache must be a folder, got {args.teacher_cache!r}")
    if args.teacher_cache_dtype not in STORED:
        raise ValueError(
            f"teacher_cache_dtype is one of {', '.join(STORED)}, got {args.teacher_cache_dtype!r}"
        )


def check_lens_layers(spec):
    """Refuse a text that describes no layer map.

    Raises:
        ValueError: with how to write one.
    """
    if spec != "auto" and not str(spec).strip().isdigit():
        LayerMap.parse(spec)
