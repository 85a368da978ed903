"""The arguments of a training run, and its records."""

from __future__ import annotations

import json
import logging
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from distilllens.data import (
    data_files,
    drop_long_prompts,
    encode_example,
    load_hub,
    load_records,
    to_training_examples,
)
from distilllens.data.records import place_of
from distilllens.generate.prompts import end_tokens
from distilllens.layer_map import parse_blocks
from distilllens.loading import find_tokenizer, generation_ends
from distilllens.train.chat_templates import check_marks, other_template, unended_answers
from distilllens.train.config_checks import check_bounds
from distilllens.train.preparation import RowError
from distilllens.workflows.identity import rows_identity
from distilllens.workflows.train_checks import check_sources

logger = logging.getLogger(__name__)
_FEW = 8  # tokens, where whether a conversation can be written is all that is asked


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


def load_all(job, tokenizer) -> dict[str, list[dict]]:
    """Role ("train", "eval") -> records with prompts of at most ``max_prompt_length`` tokens.

    Raises:
        ValueError: data that cannot be read, with file and line; no record is left; ``chat``
            without a chat template.
    """
    if job.chat and tokenizer.chat_template is None:
        raise ValueError(
            "chat is set, and the student's tokenizer has no chat template; set "
            "chat_template_path, or leave chat out to train on Alpaca's template"
        )
    if job.dataset_name is not None:
        splits = {"train": job.dataset_train_split, "eval": job.dataset_test_split}
        records = {
            role: load_hub(job.dataset_name, split, job.dataset_config, chat=job.chat)
            for role, split in splits.items()
            if split is not None
        }
    else:
        files = {"train": job.train_file, "eval": job.eval_file}
        records = {
            role: load_records(names, chat=job.chat) for role, names in files.items() if names
        }
    if job.max_prompt_length is not None:
        for role, rows in records.items():
            records[role], dropped = drop_long_prompts(
                rows, tokenizer, job.max_prompt_length, chat=job.chat
            )
            if dropped:
                logger.warning(
                    "leaving out %d of %d %s records with prompts longer than max_prompt_length %d",
                    dropped,
                    len(rows),
                    role,
                    job.max_prompt_length,
                )
    return records


def examples_of(job, args, tokenizer, records) -> dict[str, list[dict]]:
    """Role -> the records as training examples, of which the first is written as in training.

    Raises:
        ValueError: a conversation that the chat template cannot write, or whose answers it does
            not mark for ``assistant_only_loss``.
    """
    examples = {}
    for role, rows in records.items():
        examples[role] = to_training_examples(rows, chat=job.chat)
        first, place = examples[role][0], place_of(rows[0], f"the first {role} record")
        try:
            if args.assistant_only_loss:
                check_marks(tokenizer, first)
            if _is_conversation(first):
                encode_example(first, tokenizer, _FEW)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        if job.chat and not _is_conversation(first):
            logger.warning(
                "chat changes instruction records only: the %s records, of %s, are trained on as "
                "they are",
                role,
                " and ".join(first),
            )
    return examples


def say_templates(args, tokenizer, examples, config):
    """Warn of answers without an end, and of a teacher with another chat template.

    Args:
        config: the student's configuration.
    """
    first = examples["train"][0]
    if not _is_conversation(first):
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


@contextmanager
def placed(examples):
    """Name file and line of a row that cannot be encoded in this block.

    Args:
        examples: as ``examples_of`` returns them.
    """
    try:
        yield
    except RowError as error:
        rows = examples.get({"training": "train", "evaluation": "eval"}.get(error.kind), ())
        if error.index >= len(rows):
            raise
        raise ValueError(f"{place_of(rows[error.index], str(error))}: {error.reason}") from error


def _is_conversation(example):
    return "messages" in example or isinstance(example.get("prompt"), list)


def rows_of(job, records) -> dict[str, str]:
    """Role -> fingerprint of the records of ``dataset_name``; empty for files."""
    if job.dataset_name is None:
        return {}
    return {role: rows_identity(rows) for role, rows in records.items()}


def files_of(job) -> list[Path]:
    """The data files that a run reads."""
    names = [name for names in (job.train_file, job.eval_file) for name in names or ()]
    return list(data_files(names, warn=False)) if names else []


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
