"""The student of a run and its tokenizer: named, checked, loaded or made from random weights."""

from __future__ import annotations

import copy
import difflib

from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, set_seed

from distilllens.errors import first_line
from distilllens.loading import (
    check_architectures,
    is_adapter_folder,
    load_config,
    load_tokenizer,
    saved_dtype,
    with_chat_template,
)
from distilllens.marks import check_noted_weights
from distilllens.train.config_checks import check_bounds


def load_student_tokenizer(job, model, args):
    """The student's tokenizer.

    Raises:
        ValueError: it cannot be loaded, or it has no end-of-sequence token.
    """
    name = job.tokenizer_name_or_path or model.model_name_or_path
    tokenizer = load_tokenizer(
        "student",
        name,
        advice="name a folder or hub id with a tokenizer, or set tokenizer_name_or_path",
        revision=None if job.tokenizer_name_or_path else model.model_revision,
        trust_remote_code=args.trust_remote_code,
    )
    if tokenizer.eos_token is None and args.eos_token is None:
        raise ValueError(f"the tokenizer of {name} has no end-of-sequence token; set eos_token")
    return tokenizer


def as_trained(tokenizer, args):
    """The tokenizer as the trainer will have it, for what is encoded before there is a trainer.

    Raises:
        ValueError: a ``chat_template_path`` that cannot be read.
    """
    path = args.chat_template_path
    return tokenizer if path is None else with_chat_template(tokenizer, path)


def with_student_settings(job, model, args):
    """A copy of ``args`` whose ``model_init_kwargs`` load the student with its settings."""
    if job.student_config is not None:
        return copy.copy(args)
    settings = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype or "float32",
    }
    args = copy.copy(args)
    args.model_init_kwargs = settings | dict(args.model_init_kwargs or {})
    return args


def with_save_dtype(model, args, config):
    """A copy of ``args`` with ``save_dtype`` "auto" resolved where the files are narrower.

    The student trains in float32 because small updates of AdamW vanish in bfloat16; its final
    weights go back into the dtype of the files that it started from. An adapter is small, and
    stays.
    """
    args = copy.copy(args)
    trained = str((args.model_init_kwargs or {}).get("dtype", "float32")).removeprefix("torch.")
    is_adapter = model.use_peft or is_adapter_folder(model.model_name_or_path)
    narrow = saved_dtype(config) in ("bfloat16", "float16")
    if args.save_dtype == "auto" and trained == "float32" and narrow and not is_adapter:
        args.save_dtype = saved_dtype(config)
    return args


def load_student(job, model, args, tokenizer):
    """``(student, config)``: a name for the trainer to load, or a model with random weights.

    Raises:
        ValueError: a configuration that cannot be loaded or is not valid, or damaged weights.
    """
    if job.student_config is not None:
        student = random_student(job.student_config, tokenizer, args.seed)
        return student, student.config
    config = load_student_config(job, model, args, tokenizer)
    check_noted_weights(f"the student {model.model_name_or_path!r}", model.model_name_or_path)
    return model.model_name_or_path, config


def load_student_config(job, model, args, tokenizer):
    """The student's configuration, without its weights.

    Raises:
        ValueError: it cannot be loaded, or ``student_config`` is not valid.
    """
    if job.student_config is not None:
        return random_student_config(job.student_config, tokenizer)
    config = load_config(
        "student",
        model.model_name_or_path,
        revision=(args.model_init_kwargs or {}).get("revision", model.model_revision),
        trust_remote_code=args.trust_remote_code,
    )
    check_architectures(model.model_name_or_path, config)
    return config


def random_student_config(student_config: dict, tokenizer):
    """The configuration of a student with random weights and the tokenizer's special tokens.

    Raises:
        ValueError: a setting that the model type does not have, or a value it refuses.
    """
    settings = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        **student_config,
    }
    try:
        _check_names(student_config)
        return AutoConfig.for_model(**settings)
    except Exception as error:  # configuration classes raise errors of any kind
        raise ValueError(f"student_config is not valid: {first_line(error)}") from error


def random_student(student_config: dict, tokenizer, seed: int):
    """A model with random weights: the same weights for the same seed.

    Raises:
        ValueError: as ``random_student_config``, or a model that cannot be built.
    """
    config = random_student_config(student_config, tokenizer)
    set_seed(seed)
    try:
        student = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # models raise errors of any kind
        raise ValueError(f"student_config is not valid: {first_line(error)}") from error
    student.config.name_or_path = f"random weights, {student_config}"
    return student


def check_student(job, model):
    """Refuse a student that is not named exactly once.

    Raises:
        ValueError: no student, two students, settings out of range, or settings that need another
            kind of student.
    """
    check_bounds(model)
    if (job.student_config is None) == (model.model_name_or_path is None):
        raise ValueError(
            "name the student by either model_name_or_path (a folder or hub id) or student_config "
            "(random weights)"
        )
    if job.student_config is not None and job.tokenizer_name_or_path is None:
        raise ValueError("a student from student_config needs tokenizer_name_or_path")
    if model.use_peft and is_adapter_folder(model.model_name_or_path):
        raise ValueError(
            f"model_name_or_path {model.model_name_or_path} is an adapter, whose training goes on "
            "with its own settings: leave out use_peft and the lora_ fields, or merge it into its "
            "base model first (merge_and_unload)"
        )
    if job.student_config is not None and model.use_peft:
        raise ValueError(
            "use_peft trains an adapter for existing weights, but student_config starts from "
            "random ones: train the student first, then name it by model_name_or_path"
        )


def _check_names(student_config):
    """Refuse unknown names: configuration classes accept any, so a typo would go unnoticed."""
    kind = student_config["model_type"]
    if kind not in CONFIG_MAPPING:
        close = difflib.get_close_matches(str(kind), CONFIG_MAPPING.keys(), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"transformers has no model_type {kind!r}{hint}")
    default = AutoConfig.for_model(kind)
    known = {*default.to_dict(), *default.attribute_map, "model_type"}
    for name in student_config:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"{student_config['model_type']} has no setting {name!r}{hint}")
