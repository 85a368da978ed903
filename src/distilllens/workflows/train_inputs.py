"""The arguments of a training run, and its records."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from distilllens.generate.prompts import end_tokens
from distilllens.layer_map import parse_blocks
from distilllens.loading import find_tokenizer, generation_ends
from distilllens.train.chat_templates import other_template, unended_answers
from distilllens.train.config_checks import check_bounds
from distilllens.train.idle_fields import idle_fields, idle_teacher
from distilllens.workflows.train_checks import check_sources
from distilllens.workflows.train_data import first_of, is_conversation

logger = logging.getLogger(__name__)


@dataclass
class JobArguments:
    """The data of a run, and the student if it starts from random weights.

    Raises:
        ValueError: fields that contradict each other.
    """

    train_file: list[str] | None = field(
        default=None,
        metadata={
            "help": "Training data: .jsonl, .json, .txt or .csv files (or .gz), .parquet or .arrow "
            "files, or folders of these."
        },
    )
    eval_file: list[str] | None = field(
        default=None, metadata={"help": "Evaluation data, in the same formats as train_file."}
    )
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "A dataset on the Hugging Face hub, or a local folder of one, instead of "
            "train_file."
        },
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "The configuration of dataset_name."}
    )
    dataset_train_split: str = field(
        default="train", metadata={"help": "The training split of dataset_name."}
    )
    dataset_test_split: str | None = field(
        default=None, metadata={"help": "The evaluation split of dataset_name."}
    )
    dataset_streaming: bool = field(
        default=False,
        metadata={
            "help": "Read the training data while training, without loading them whole; needs "
            "max_steps."
        },
    )
    dataset_shuffle_buffer: int = field(
        default=1000,
        metadata={
            "help": "Rows of streamed data that are shuffled at a time; 0 keeps their order."
        },
    )
    datasets: list[dict[str, Any]] | None = field(
        default=None,
        metadata={
            "help": "A mixture instead of train_file, as in TRL: entries of path (a file, folder "
            "or hub id), name, data_dir, data_files, split, columns, and fraction (a share) or "
            "rows (a number)."
        },
    )
    streaming: bool = field(
        default=False, metadata={"help": "TRL's name of dataset_streaming for a mixture."}
    )
    test_split_size: float | None = field(
        default=None,
        metadata={
            "help": "Evaluate on this share (below 1) or number of rows of the mixture, which are "
            "drawn from it and not trained on."
        },
    )
    max_prompt_length: int | None = field(
        default=None,
        metadata={"help": "Leave out records with a longer prompt, in tokens (paper: 256)."},
    )
    chat: bool = field(
        default=False,
        metadata={
            "help": "Write instruction records with the student's chat template, as evaluate "
            "--chat does, instead of Alpaca's."
        },
    )
    student_config: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Start from random weights with this configuration, such as {model_type: gpt2, "
            "n_layer: 4, n_embd: 128, n_head: 4}, instead of model_name_or_path."
        },
    )
    student_blocks: list[int] | str | int | None = field(
        default=None,
        metadata={
            "help": "Start as the teacher with some of its blocks only, instead of "
            "model_name_or_path: how many (6: evenly spread, with the first and the last), or "
            'which, from 0 ([0, 3, 6] or "0,3,6").'
        },
    )
    tokenizer_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "The tokenizer, if the student's folder has none; of student_blocks, if it is "
            "not the teacher's."
        },
    )
    report: bool = field(
        default=True,
        metadata={
            "help": "Write report.html to output_dir after training: losses over the steps, "
            "divergence by depth before and after, answers side by side."
        },
    )

    def __post_init__(self):
        for name in ("train_file", "eval_file"):
            setattr(self, name, _paths(name, getattr(self, name)))
        if isinstance(self.student_config, str):
            self.student_config = _mapping("student_config", self.student_config)
        if self.student_config is not None and "model_type" not in self.student_config:
            raise ValueError("student_config needs a model_type, such as gpt2 or llama")
        if self.student_blocks is not None:
            blocks = parse_blocks(self.student_blocks, "student_blocks")
            self.student_blocks = list(blocks) if isinstance(blocks, tuple) else blocks
        check_bounds(self)
        self.dataset_streaming = self.dataset_streaming or self.streaming
        check_sources(vars(self))


def changed_fields(job: JobArguments, model, args) -> dict[str, Any]:
    """Name -> value of the fields whose values are not their defaults."""
    # A fresh config has the values that a config derives from the machine.
    plain = type(args)(output_dir=args.output_dir)
    found = {"output_dir": args.output_dir}
    for part, default in ((job, JobArguments), (model, type(model)), (args, plain)):
        for each in fields(part):
            value = getattr(part, each.name)
            if value != getattr(default, each.name, None):
                found[each.name] = value
    return found


def say_idle(job: JobArguments, model, args, given: Iterable[str]):
    """Warn of a teacher that is asked for nothing, and of fields that were set in vain.

    Args:
        given: the fields that were set.
    """
    values = {**vars(job), **vars(model), **vars(args)}
    defaults = {each.name: each.default for part in (job, model, args) for each in fields(part)}
    if (teacher := idle_teacher(values)) is not None:
        logger.warning(
            "%s is loaded and not used: output_weight, lens_weight and feature_weight are 0, and "
            "nothing is evaluated",
            teacher,
        )
    changed = [name for name in given if name in values and values[name] != defaults[name]]
    for why, names in idle_fields(values, changed).items():
        logger.warning("%s: %s has no effect", why, " and ".join(names))


def say_templates(args, tokenizer, examples, config):
    """Warn of answers without an end, and of a teacher with another chat template.

    Args:
        config: the student's configuration.
    """
    first = first_of(examples["train"])
    if not is_conversation(first):
        return
    end = tokenizer.convert_tokens_to_ids(args.eos_token or tokenizer.eos_token)
    ends = end_tokens(generation_ends(config), end)
    notes = [unended_answers(tokenizer, ends, first)]
    teacher = _teacher_tokenizer(args) if args.cross_tokenizer is None else None
    if teacher is not None:
        notes.append(other_template(tokenizer, teacher, first))
    for note in filter(None, notes):
        logger.warning("%s", note)


def _teacher_tokenizer(args):
    """The named teacher's, or None; why it cannot be loaded is said when the model is."""
    if not args.teacher_model_name_or_path:
        return None
    given = args.teacher_model_init_kwargs or {}
    hub = {name: given[name] for name in ("revision", "trust_remote_code") if name in given}
    settings = {"trust_remote_code": args.trust_remote_code, **hub}
    try:
        return find_tokenizer("teacher", args.teacher_model_name_or_path, **settings)
    except ValueError:
        return None


def _paths(name, value):
    value = [value] if isinstance(value, str) else value
    if value is None:
        return None
    if not isinstance(value, list) or not value or not all(isinstance(v, str) and v for v in value):
        raise ValueError(f"{name} must be a path or a list of paths, got {value!r}")
    return value


def _mapping(name, text):
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be a mapping (JSON on the command line), got {text!r}")
    return value
