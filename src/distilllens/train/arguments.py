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
    if args.teachers is not None or isinstance(teacher, list | tuple):
        teacher = _several(teacher, args)
    if teacher is not None and args.teacher_server is not None:
        raise ValueError("teacher_server has the teacher: pass no teacher model beside it")
    if args.cross_tokenizer is not None:
        args = _with_teacher_tokenizer(args, teacher)
    return teacher, args


def _with_teacher_tokenizer(args, teacher):
    """The arguments with the name of the teacher's tokenizer, which is known of a model by name."""
    if teacher is None and args.teacher_cache is None:
        raise ValueError("cross_tokenizer compares with a teacher, and there is none")
    name = args.teacher_tokenizer_name_or_path or args.teacher_model_name_or_path
    if name is None and teacher is not None:
        name = teacher if isinstance(teacher, str) else teacher.config.name_or_path
    if not name:
        raise ValueError(
            "cross_tokenizer needs the teacher's tokenizer, and the teacher does not say where it "
            "comes from; name it by teacher_tokenizer_name_or_path"
        )
    args = copy.copy(args)
    args.teacher_tokenizer_name_or_path = name
    return args


def _converted(args, settings):
    known = {field.name for field in fields(DistillLensConfig) if field.init}
    # Not to_dict, as in TRL: it hides tokens, those of texts too.
    given = {name: copy.copy(value) for name, value in vars(args).items() if name in known}
    return DistillLensConfig(**given, **settings)


def _several(given, args):
    """The models of ``args.teachers``, or their names: in its entries, or given as a list."""
    entries = args.teachers
    if entries is None:
        raise ValueError(
            f"{len(given)} teachers need weights: set teachers in args, such as "
            "teachers=[{'weight': 0.7}, {'weight': 0.3}]"
        )
    named = [entry["model"] for entry in entries]
    if given is None:
        for number, entry in enumerate(entries, 1):
            if entry["model"] is None and entry["cache"] is None:
                raise ValueError(f"entry {number} of teachers needs a model or a cache")
        return named
    if not isinstance(given, list | tuple):
        raise ValueError("teachers has several: pass a list of models, or name them in its entries")
    if len(given) != len(entries):
        raise ValueError(f"{len(given)} teachers were passed for the {len(entries)} of teachers")
    if any(named):
        raise ValueError("teachers are passed as models and named in teachers too; leave one out")
    return list(given)
