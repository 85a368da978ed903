"""Fields that are set and change nothing, because what they belong to is off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What a field belongs to: why it is off, whether it is, and its fields. Evaluations measure the
# output and the lens whatever they weigh; the second list of a weight is of training alone.
_LENS = (
    "lens_divergence",
    "lens_beta",
    "lens_divergence_kwargs",
    "lens_readout",
    "lens_pair_weights",
    "lens_token_weights",
)
_LENS_IN_TRAINING = (
    "lens_pair_fraction",
    "lens_token_fraction",
    "lens_weight_schedule",
    "lens_weight_until",
    "lens_detach_head",
)
_OUTPUT = ("output_divergence", "output_divergence_kwargs")
_ON_POLICY = ("on_policy_from", "on_policy_max_new_tokens", "on_policy_temperature")
_TEACHER = ("teacher_model_name_or_path", "teacher_cache", "teachers", "teacher_server")
_OF_A_TEACHER = ("teacher_model_init_kwargs", "temperature", "feature_loss")
_LORA = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_task_type")
_LORA += ("lora_modules_to_save", "lora_target_parameters", "use_rslora", "use_dora")
_LORA += ("peft_type",)
_BNB = ("bnb_4bit_quant_type", "bnb_4bit_quant_storage", "use_bnb_nested_quant")
_HUB = ("hub_model_id", "hub_strategy", "hub_private_repo", "hub_always_push", "hub_revision")


def idle_fields(values: Mapping[str, Any], given) -> dict[str, list[str]]:
    """Why fields change nothing -> those of ``given`` of which that is so.

    Args:
        values: field -> value of all fields of a run.
        given: the names of those that were set.
    """
    found = {why: [name for name in names if name in given] for why, names in _idle(values)}
    return {why: names for why, names in found.items() if names}


def idle_teacher(values: Mapping[str, Any]) -> str | None:
    """The field of a teacher that is asked for nothing; None where there is none.

    Args:
        values: field -> value of all fields of a run.
    """
    asked = ("output_weight", "lens_weight", "feature_weight")
    if any(values[name] for name in asked) or _evaluates(values):
        return None
    return next((name for name in _TEACHER if values[name] is not None), None)


def _evaluates(values):
    return _word(values["eval_strategy"]) != "no"


def _word(value):
    return str(getattr(value, "value", value))


def _idle(values):
    """``(why, fields)`` of all that is off."""
    has_teacher = any(values[name] is not None for name in _TEACHER)
    if not has_teacher:
        yield "there is no teacher", [*_OUTPUT, *_LENS, *_LENS_IN_TRAINING, *_OF_A_TEACHER]
    else:
        measured = _evaluates(values)
        if not values["lens_weight"]:
            names = _LENS_IN_TRAINING if measured else _LENS + _LENS_IN_TRAINING
            yield "lens_weight is 0", names
        elif values["lens_divergence"] != "jsd":
            yield f"lens_divergence is {values['lens_divergence']}", ["lens_beta"]
        if not values["output_weight"] and not measured:
            yield "output_weight is 0", _OUTPUT
        if not values["feature_weight"]:
            yield "feature_weight is 0", ["feature_loss"]
    if not values["on_policy_fraction"]:
        yield "on_policy_fraction is 0", _ON_POLICY
    entries = values["teachers"] or ()
    if values["teacher_cache"] is None and not any(entry.get("cache") for entry in entries):
        yield "there is no teacher_cache", ["teacher_cache_dtype"]
    yield from _idle_of_hosts(values)


def _idle_of_hosts(values):
    for field, names in (
        ("use_peft", _LORA),
        ("load_in_4bit", _BNB),
        ("packing", [] if values.get("eval_packing") else ["packing_strategy"]),
        ("eval_generate", ["eval_generate_kwargs"]),
        ("push_to_hub", _HUB),
        ("activation_checkpointing", ["activation_checkpointing_kwargs"]),
        ("dataset_streaming", ["dataset_shuffle_buffer"]),
    ):
        if field in values and not values[field]:
            yield f"{field} is not set", names
    for kind in ("eval", "logging", "save"):
        if (strategy := _word(values[f"{kind}_strategy"])) not in ("steps", "best"):
            more = ["eval_delay"] if (kind, strategy) == ("eval", "no") else []
            yield f"{kind}_strategy is {strategy}", [f"{kind}_steps", *more]
    if values.get("dataset_name", "") is None:
        yield (
            "dataset_name is not set",
            ["dataset_config", "dataset_train_split"],
        )
