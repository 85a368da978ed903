"""The fields of ``DistillLensConfig`` that say who the teacher is, or the teachers, and where."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from distilllens.train.teacher_checks import SHARD, TOP_K, check_teachers, settled_entry


@dataclass
class TeacherFields:
    """The teacher's fields; ``DistillLensConfig`` has them."""

    teacher_model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "The teacher: a folder or hub id. Without a teacher, training is plain SFT."
        },
    )
    teacher_model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Arguments of from_pretrained for the teacher, such as {dtype: bfloat16}."
        },
    )
    teacher_tokenizer_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "The teacher's tokenizer for cross_tokenizer, if it is not in the teacher's "
            "folder: a folder or hub id."
        },
    )
    teachers: list[dict[str, Any]] | None = field(
        default=None,
        metadata={
            "help": "Several teachers instead of one: a list of {model, weight}, with lens_layers, "
            "model_init_kwargs and cache for each if they differ. The weights are scaled to a sum "
            "of 1."
        },
    )
    teacher_server: str | None = field(
        default=None,
        metadata={
            "help": "Address of a server with the teacher, such as http://localhost:8000/v1, that "
            "returns log-probabilities of prompt tokens, as vLLM does; for the output divergence."
        },
    )
    teacher_server_model: str | None = field(
        default=None,
        metadata={"help": "Name of the teacher at teacher_server; not set: the only one there."},
    )
    teacher_server_top_k: int = field(
        default=TOP_K,
        metadata={
            "help": "Most likely tokens that teacher_server is asked for at each position; all "
            "others are compared as one."
        },
    )
    cross_tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "How to compare with a teacher that has another tokenizer, where both have "
            'read the same text: "shared" (the tokens that both have, and one more for the rest) '
            'or "uld" (sorted probabilities). Not set: another tokenizer is refused.'
        },
    )
    teacher_sharding: str = field(
        default=SHARD,
        metadata={
            "help": 'Under FSDP or DeepSpeed: "shard" (the teacher is in shards like the student) '
            'or "replicate" (it is whole on each device, and nothing of it is gathered in a step).'
        },
    )
    teacher_cache: str | None = field(
        default=None,
        metadata={
            "help": "Folder of a teacher cache, from which training reads the teacher's states. "
            "States that are missing from it are added by teacher_model_name_or_path."
        },
    )
    teacher_cache_dtype: str = field(
        default="auto",
        metadata={
            "help": 'How states are stored: "auto" (exact, in the dtype of the teacher) or "int8" '
            "(one scale per state; lossy, and the error is reported)."
        },
    )


def each_alone(args) -> list:
    """The arguments of a run with each of ``teachers`` alone."""
    found = []
    for entry in args.teachers:
        alone = copy.copy(args)
        alone.teachers, alone.teacher_cache = None, entry["cache"]
        alone.teacher_model_name_or_path = entry["model"]
        given = entry["model_init_kwargs"] or args.teacher_model_init_kwargs
        alone.teacher_model_init_kwargs = given
        alone.lens_layers = entry["lens_layers"] or args.lens_layers
        found.append(alone)
    return found


def settle_teachers(args):
    """Check who the teacher is; entries of ``teachers`` get every key.

    Raises:
        ValueError: with the field, and what to do instead.
    """
    check_teachers(vars(args))
    if args.teachers is not None:
        args.teachers = [settled_entry(entry) for entry in args.teachers]
