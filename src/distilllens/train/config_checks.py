"""Checks of the fields of ``DistillLensConfig``, made when they are set.

What needs no torch is also checked by the command line, before torch is imported.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import cache
from types import NoneType
from typing import Literal, get_args, get_origin, get_type_hints

_ABOVE_0, _BELOW_1 = math.nextafter(0, 1), math.nextafter(1, 0)
# Bounds of fields that the libraries do not check; max_steps -1 means "not set".
_BOUNDS = {
    "adam_beta1": (0, _BELOW_1),
    "adam_beta2": (0, _BELOW_1),
    "adam_epsilon": (0, 1),
    "cross_entropy_weight": (0, math.inf),
    "data_seed": (0, 2**32 - 1),
    "dataloader_num_workers": (0, 2**12),
    "dataloader_prefetch_factor": (1, 2**20),
    "dataset_num_proc": (1, 2**12),
    "dataset_shuffle_buffer": (0, 2**40),
    "ddp_bucket_cap_mb": (1, math.inf),
    "ddp_timeout": (1, 2**31),
    "eval_accumulation_steps": (1, math.inf),
    "eval_delay": (0, math.inf),
    "eval_steps": (_ABOVE_0, math.inf),
    "feature_weight": (0, math.inf),
    "gradient_accumulation_steps": (1, 2**20),
    "learning_rate": (0, math.inf),
    "lens_beta": (_ABOVE_0, _BELOW_1),
    "lens_pair_fraction": (_ABOVE_0, 1),
    "lens_token_fraction": (_ABOVE_0, 1),
    "lens_weight": (0, math.inf),
    "lens_weight_until": (_ABOVE_0, 1),
    "logging_steps": (_ABOVE_0, math.inf),
    "lora_alpha": (1, math.inf),
    "lora_dropout": (0, _BELOW_1),
    "lora_r": (1, 2**20),
    "max_grad_norm": (0, math.inf),
    "max_length": (2, math.inf),
    "max_prompt_length": (1, math.inf),
    "max_steps": (1, math.inf),
    "neftune_noise_alpha": (0, math.inf),
    "num_train_epochs": (1e-9, math.inf),
    "on_policy_fraction": (0, 1),
    "on_policy_from": (0, _BELOW_1),
    "on_policy_max_new_tokens": (1, 2**20),
    "on_policy_temperature": (_ABOVE_0, math.inf),
    "output_weight": (0, math.inf),
    "per_device_eval_batch_size": (1, 2**20),
    "per_device_train_batch_size": (1, 2**20),
    "router_aux_loss_coef": (0, math.inf),
    "save_steps": (_ABOVE_0, math.inf),
    "save_total_limit": (0, math.inf),
    "seed": (0, 2**32 - 1),
    "teacher_server_top_k": (1, 2**20),
    "temperature": (_ABOVE_0, math.inf),
    "test_split_size": (_ABOVE_0, math.inf),
    "torch_empty_cache_steps": (1, math.inf),
    "warmup_steps": (0, math.inf),
    "weight_decay": (0, math.inf),
}
_SAVED = ("auto", "float32", "bfloat16", "float16")
_MAPPINGS = (
    "output_divergence_kwargs",
    "lens_divergence_kwargs",
    "teacher_model_init_kwargs",
    "eval_generate_kwargs",
    "model_init_kwargs",
    "dataset_kwargs",
    "lr_scheduler_kwargs",
    "activation_checkpointing_kwargs",
    "gradient_checkpointing_kwargs",
    "liger_kernel_config",
)
_NAMES = (
    "output_divergence",
    "lens_divergence",
    "lens_readout",
    "lens_weight_schedule",
    "lens_token_weights",
    "feature_loss",
)
_MOST_PADDED = 2**20
_PACKING = ("bfd", "bfd_split", "wrapped")


@cache
def kinds_of(part: type) -> dict[str, set]:
    """Field of a dataclass -> the types it takes: ``int | None`` is {int, NoneType}."""
    hints = get_type_hints(part)
    return {field.name: _kinds(hints[field.name]) for field in fields(part)}


def _kinds(hint):
    if get_origin(hint) is Literal:
        return {type(value) for value in get_args(hint)}
    if get_origin(hint) in (list, dict):
        return {get_origin(hint)}
    return set().union(*map(_kinds, get_args(hint))) or {hint}


@cache
def items_of(part: type) -> dict[str, type]:
    """Field of a dataclass that takes a list -> the type of its elements."""
    hints = get_type_hints(part)
    found = {field.name: _items(hints[field.name]) for field in fields(part)}
    return {name: items for name, items in found.items() if items is not None}


def _items(hint):
    if get_origin(hint) is list:
        return next(iter(get_args(hint)), str)
    return next((found for each in get_args(hint) if (found := _items(each))), None)


def settle_numbers(args):
    """Refuse what is no number in a field of numbers; 4.0 becomes 4 where they are whole.

    Raises:
        ValueError: with the field and the value.
    """
    defaults = {field.name: field.default for field in fields(args)}
    for name, kinds in kinds_of(type(args)).items():
        if not {int, float} & kinds or kinds - {int, float, NoneType}:
            continue
        value = getattr(args, name)
        if value is None and (NoneType in kinds or defaults[name] in (None, MISSING)):
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name} must be a number, got {value!r}")
        if isinstance(value, float) and float not in kinds:
            if not value.is_integer():
                raise ValueError(f"{name} must be a whole number, got {value}")
            setattr(args, name, int(value))


def check_bounds(args):
    """Refuse numbers out of range, of a dataclass or a mapping of its fields that are set.

    Raises:
        ValueError: with the field, the value and the range.
    """
    values = args if isinstance(args, Mapping) else vars(args)
    for name, (low, high) in _BOUNDS.items():
        value = values.get(name)
        if value is None or (name == "max_steps" and value == -1):
            continue
        if not low <= value <= high:
            bottom = "above 0" if low == _ABOVE_0 else f"at least {low:g}"
            top = "" if high == math.inf else f" and at most {high}"
            top = " and below 1" if high == _BELOW_1 else top
            raise ValueError(f"{name} must be {bottom}{top}, got {value}")
        if value == math.inf:
            raise ValueError(f"{name} must be finite, got {value}")


def check_finite(values: Mapping):
    """Refuse numbers that no field can use, wherever a field has no bounds of its own.

    Raises:
        ValueError: with the field and the value.
    """
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")
        if isinstance(value, int) and abs(value) >= 2**63:
            raise ValueError(f"{name} must be below 2^63, got {str(value)[:20]}...")


def check_texts(args):
    """Refuse texts of no meaning, of fields that transformers does not check.

    Raises:
        ValueError: with the field, the value and what would be right.
    """
    padding = str(args.pad_to_multiple_of).lower()
    is_number = re.fullmatch(r"[0-9]{1,9}", padding) and 1 <= int(padding) <= _MOST_PADDED
    if not is_number and padding not in ("auto", "none", "null"):
        raise ValueError(
            f'pad_to_multiple_of must be "auto" or a whole number from 1 to {_MOST_PADDED}, '
            f"got {args.pad_to_multiple_of!r}"
        )
    if args.optim_args and not all(part.count("=") == 1 for part in args.optim_args.split(",")):
        raise ValueError(
            f'optim_args must be settings such as "rank=64,scale=0.1", got {args.optim_args!r}'
        )


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


def check_device(args):
    """Refuse what needs a GPU on the CPU.

    Raises:
        ValueError: with what to do instead.
    """
    needs = {
        "use_liger_kernel": "the loss does not need it, it is computed without liger's kernels",
        "activation_offloading": "activations are in the CPU's memory already",
    }
    for name, why in needs.items():
        if args.use_cpu and getattr(args, name):
            raise ValueError(
                f"{name} needs a GPU, and this run is on the CPU; leave it out ({why})"
            )


def check_divergences(args):
    """Refuse divergences and parameters that do not exist or are out of range.

    Raises:
        ValueError: with the field.
    """
    from distilllens.divergence import parameters

    sides = ("output_divergence", "lens_divergence")
    given = [(name, getattr(args, name), {}) for name in sides]
    given += [
        (f"{name}_kwargs", getattr(args, name), getattr(args, f"{name}_kwargs") or {})
        for name in sides
    ]
    if args.lens_divergence == "jsd" and "beta" not in (args.lens_divergence_kwargs or {}):
        given.append(("lens_beta", "jsd", {"beta": args.lens_beta}))
    for field, name, settings in given:
        try:
            parameters(name, settings)
        except ValueError as error:
            raise ValueError(f"{field}: {error}") from error


def check_types(args):
    """Refuse values of a wrong type in the fields of distillation.

    Raises:
        ValueError: with the field and the value.
    """
    from distilllens.objective import WEIGHT_FIELDS

    numbers = [
        *WEIGHT_FIELDS,
        "temperature",
        "lens_beta",
        "lens_pair_fraction",
        "lens_token_fraction",
        "lens_weight_until",
    ]
    for name in numbers:
        value = getattr(args, name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name} must be a number, got {value!r}")
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")
    for name in _NAMES:
        if not isinstance(getattr(args, name), str):
            raise ValueError(f"{name} must be a name, got {getattr(args, name)!r}")
    for name in _MAPPINGS:
        value = getattr(args, name)
        example = " such as {beta: 0.5}" if name.endswith("divergence_kwargs") else ""
        if value is not None and not isinstance(value, dict):
            raise ValueError(f"{name} must be a mapping{example}, got {value!r}")
    for name in ("lens_norm", "lens_detach_head", "eval_generate"):
        if not isinstance(getattr(args, name), bool):
            raise ValueError(f"{name} must be true or false, got {getattr(args, name)!r}")


def check_scope(args):
    """Refuse settings of the hosts that this objective does not support.

    Raises:
        ValueError: with the setting, and what to do instead.
    """
    from distilllens.teacher.manifest import STORED

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
