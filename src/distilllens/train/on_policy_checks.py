"""What does not go together with answers that the student writes in training.

What needs no torch is also checked by the command line, before torch is imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_REASONS = {
    "teacher_cache": "a cache holds the teacher's states for the answers of the data, and what the "
    "student will write is not known beforehand; leave teacher_cache out, so that the teacher runs "
    "beside the student",
    "packing": "packed rows hold several prompts with their answers; set packing: false",
}
_REMEDY = "give rows a prompt and a completion, or leave on_policy_fraction out"


def check_on_policy(values: Mapping[str, Any]):
    """Refuse fields that leave the student no prompts, or nothing to learn from its answers.

    Args:
        values: field -> value; one that is missing has its default.

    Raises:
        ValueError: with the field, and what to do instead.
    """
    if not (share := values.get("on_policy_fraction")):
        return
    asked = f"on_policy_fraction {share:g}"
    for name, reason in _REASONS.items():
        if values.get(name):
            raise ValueError(f"{asked} does not go with {name}: {reason}")
    if values.get("completion_only_loss") is False:
        raise ValueError(
            f"{asked} does not go with completion_only_loss: false, which makes prompts targets "
            "too, so that nothing is left to answer; leave it out"
        )
    lens = values.get("lens_weight", 1.0) > 0 and values.get("lens_weight_until", 1.0) == 1
    if not (lens or values.get("output_weight", 1.0) > 0 or values.get("feature_weight", 0) > 0):
        raise ValueError(
            f"{asked} leaves nothing to learn from in its steps: the cross-entropy is not trained "
            "on what the student writes itself; set output_weight, for example"
        )


def check_named_teacher(values: Mapping[str, Any]):
    """Refuse a recipe whose student is to be compared with a teacher that it does not name.

    Raises:
        ValueError: with the field that is missing.
    """
    named = ("teacher_model_name_or_path", "teachers", "teacher_server")
    if values.get("on_policy_fraction") and not any(values.get(name) for name in named):
        raise ValueError(_no_teacher(values["on_policy_fraction"]))


def check_prompts(args, teacher, rows: Iterable[Mapping[str, Any]] | None, formatting_func=None):
    """Refuse a run without a teacher, and training data whose first row has no prompt.

    Args:
        args: the configuration of the run.
        teacher: a model, its name, or None.
        rows: as the trainer gets them.

    Raises:
        ValueError: with what is missing.
    """
    if not (share := args.on_policy_fraction):
        return
    if teacher is None and args.teacher_server is None and args.teachers is None:
        raise ValueError(_no_teacher(share))
    row = next(iter(rows or ()), None) or {}
    if formatting_func is not None or _is_text(row, args.dataset_text_field):
        raise ValueError(
            f"on_policy_fraction {share:g} needs prompts for the student to answer, and every "
            f"token of these training data is a target; {_REMEDY}"
        )
    if {"messages", "conversations"} & row.keys() and not args.assistant_only_loss:
        raise ValueError(
            f"on_policy_fraction {share:g} needs prompts for the student to answer, and of "
            "conversations every token is a target: set assistant_only_loss: true, or give rows a "
            "prompt and a completion"
        )


def _no_teacher(share):
    return (
        f"on_policy_fraction {share:g} needs a teacher to compare the student's answers with; set "
        "teacher_model_name_or_path"
    )


def _is_text(row, text_field):
    """Whether all tokens of a row are targets, its kind being one that we know."""
    fields = {name for name, value in row.items() if value is not None}
    if "input_ids" in fields:
        return not fields & {"labels", "completion_mask", "assistant_masks"}
    prompted = ({"prompt", "completion"}, {"messages"}, {"conversations"})
    return text_field in fields and not any(kind <= fields for kind in prompted)
