"""The arguments of a training run, and its records."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from distilllens.data import data_files, drop_long_prompts, load_hub, load_records
from distilllens.train.config_checks import check_bounds
from distilllens.workflows.identity import rows_identity
from distilllens.workflows.train_checks import check_sources

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
    max_prompt_length: int | None = field(
        default=None,
        metadata={"help": "Leave out records with a longer prompt, in tokens (paper: 256)."},
    )
    student_config: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Start from random weights with this configuration, such as {model_type: gpt2, "
            "n_layer: 4, n_embd: 128, n_head: 4}, instead of model_name_or_path."
        },
    )
    tokenizer_name_or_path: str | None = field(
        default=None, metadata={"help": "The tokenizer, if the student's folder has none."}
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
        ValueError: data that cannot be read, with file and line; no record is left.
    """
    if job.dataset_name is not None:
        splits = {"train": job.dataset_train_split, "eval": job.dataset_test_split}
        records = {
            role: load_hub(job.dataset_name, split, job.dataset_config)
            for role, split in splits.items()
            if split is not None
        }
    else:
        files = {"train": job.train_file, "eval": job.eval_file}
        records = {role: load_records(names) for role, names in files.items() if names}
    if job.max_prompt_length is not None:
        for role, rows in records.items():
            records[role], dropped = drop_long_prompts(rows, tokenizer, job.max_prompt_length)
            if dropped:
                logger.warning(
                    "leaving out %d of %d %s records with prompts longer than max_prompt_length %d",
                    dropped,
                    len(rows),
                    role,
                    job.max_prompt_length,
                )
    return records


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
