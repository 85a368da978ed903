"""The arguments of an SFTTrainer as those of ours."""

from __future__ import annotations

import copy
from dataclasses import fields

from transformers import TrainingArguments

from distilllens.train.config import DistillLensConfig


def teacher_and_config(teacher, args) -> tuple[object, DistillLensConfig]:
    """The teacher, a model, its name or None, and the arguments of a run.

    SFTTrainer's second argument is ``args``, where ours is the teacher: it is taken for what it is.
    An ``SFTConfig`` or ``TrainingArguments`` is converted as in TRL, with the defaults of our
    fields; without a teacher it asks for plain SFT.

    Raises:
        ValueError: args of another kind, or two of them.
    """
    if isinstance(teacher, TrainingArguments):
        if args is not None:
            raise ValueError(
                "the second argument is the teacher, and args are named: DistillLensTrainer(model, "
                f"teacher, args=...); got {type(teacher).__name__} and {type(args).__name__}"
            )
        teacher, args = None, teacher
    if args is None:
        args = DistillLensConfig(output_dir="distilllens-student")
    elif not isinstance(args, TrainingArguments):
        raise ValueError(
            f"args must be a DistillLensConfig or an SFTConfig, got {type(args).__name__}"
        )
    teacher = teacher or getattr(args, "teacher_model_name_or_path", None)
    if not isinstance(args, DistillLensConfig):
        args = _converted(args, {} if teacher else {"cross_entropy_weight": 1.0})
    return teacher, args


def _converted(args, settings):
    known = {field.name for field in fields(DistillLensConfig) if field.init}
    # Not to_dict, as in TRL: it hides tokens, those of texts too.
    given = {name: copy.copy(value) for name, value in vars(args).items() if name in known}
    return DistillLensConfig(**given, **settings)
