"""What a run starts from: examples, tokenizer, student and configurations, or why it cannot."""

from __future__ import annotations

import difflib
import logging
import os
from pathlib import Path

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, set_seed

from distilllens.data import (
    data_files,
    drop_long_prompts,
    load_hub,
    load_records,
)

logger = logging.getLogger(__name__)


def load_all(job, tokenizer) -> dict[str, list[dict]]:
    """role -> records; those with prompts beyond ``max_prompt_length`` are left out.

    Raises:
        ValueError: data that cannot be read, with file and line; no example left.
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
                    "%d of %d %s examples have prompts of more than %d tokens; they are left out",
                    dropped,
                    len(rows),
                    role,
                    job.max_prompt_length,
                )
    return records


def files_of(job) -> list[Path]:
    """The data files a run reads."""
    names = [name for names in (job.train_file, job.eval_file) for name in names or ()]
    return list(data_files(names)) if names else []


def load_tokenizer(job, model, args):
    """The student's tokenizer.

    Raises:
        ValueError: none to be had, or one without an end-of-sequence token.
    """
    name = job.tokenizer_name_or_path or model.model_name_or_path
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name,
            revision=None if job.tokenizer_name_or_path else model.model_revision,
            trust_remote_code=args.trust_remote_code,
        )
    except Exception as error:  # whatever a broken or missing file makes of itself
        raise ValueError(
            f"cannot load a tokenizer from {name!r}: {first_line(error)}; "
            "name a folder or hub id that has one, or set tokenizer_name_or_path"
        ) from error
    if tokenizer.eos_token is None and args.eos_token is None:
        raise ValueError(f"the tokenizer of {name} has no end-of-sequence token; set eos_token")
    return tokenizer


def load_config(role: str, name: str, args, revision: str):
    """A model's configuration.

    Raises:
        ValueError: none to be had; the message names the role and the folder.
    """
    if os.path.isfile(os.path.join(name, "adapter_config.json")):
        raise ValueError(
            f"cannot load the {role} {name!r}: it holds an adapter; merge it into its base model "
            "(merge_and_unload) and name the merged one"
        )
    try:
        return AutoConfig.from_pretrained(
            name, revision=revision, trust_remote_code=args.trust_remote_code
        )
    except Exception as error:
        where = "has no readable config.json" if os.path.isdir(name) else "is no folder here"
        text = f"cannot load the {role} {name!r}: it {where}: {first_line(error)}"
        raise ValueError(text) from error


def load_student(job, model, args, tokenizer):
    """``(student, config)``: a name for the trainer to load, or a model with random weights.

    Raises:
        ValueError: a configuration that cannot be had or makes no model.
    """
    if job.student_config is None:
        settings = {
            "revision": model.model_revision,
            "attn_implementation": model.attn_implementation,
            "dtype": model.dtype or "float32",
        }
        args.model_init_kwargs = settings | dict(args.model_init_kwargs or {})
        revision = args.model_init_kwargs["revision"]
        config = load_config("student", model.model_name_or_path, args, revision)
        return model.model_name_or_path, config
    settings = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        **job.student_config,
    }
    try:
        _check_names(job.student_config)
        set_seed(args.seed)  # two recipes of one seed start from the same weights
        student = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings))
    except Exception as error:  # whatever a configuration class says of values that do not fit
        raise ValueError(f"student_config makes no model: {first_line(error)}") from error
    student.config.name_or_path = f"random weights, {job.student_config}"
    return student, student.config


def first_line(error) -> str:
    """The first line of what an error says, or its name."""
    return str(error).strip().split("\n")[0] or type(error).__name__


def _check_names(student_config):
    """Configuration classes keep any name they are given; a misspelt one would go unnoticed."""
    default = AutoConfig.for_model(student_config["model_type"])
    known = {*default.to_dict(), *default.attribute_map, "model_type"}
    for name in student_config:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"{student_config['model_type']} has no setting {name!r}{hint}")
