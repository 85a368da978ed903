"""The student of a run and its tokenizer: named, cut out of the teacher, or of random weights."""

from __future__ import annotations

import copy
import difflib
import logging

from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, set_seed

from distilllens.errors import first_line
from distilllens.lens.surgery import cut_config, student_from_blocks
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
from distilllens.train.merging import load_merged

logger = logging.getLogger(__name__)
# How a teacher runs, which is not how a student that is cut out of it is loaded.
_OF_THE_TEACHER = ("dtype", "torch_dtype", "quantization_config", "device_map", "max_memory")
_OF_THE_TEACHER += ("load_in_4bit", "load_in_8bit", "attn_implementation", "trust_remote_code")


def load_student_tokenizer(job, model, args):
    """The student's tokenizer.

    Raises:
        ValueError: it cannot be loaded, or it has no end-of-sequence token.
    """
    role, name, revision = "student", job.tokenizer_name_or_path, None
    if name is None and job.student_blocks is not None:
        role, name = "teacher", args.teacher_model_name_or_path
        revision = (args.teacher_model_init_kwargs or {}).get("revision")
    elif name is None:
        name, revision = model.model_name_or_path, model.model_revision
    tokenizer = load_tokenizer(
        role,
        name,
        advice="name a folder or hub id with a tokenizer, or set tokenizer_name_or_path",
        revision=revision,
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
    if model.model_name_or_path is None:
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
    trained = (args.model_init_kwargs or {}).get("dtype", model.dtype or "float32")
    trained = str(trained).removeprefix("torch.")
    is_adapter = model.use_peft or is_adapter_folder(model.model_name_or_path)
    narrow = saved_dtype(config) in ("bfloat16", "float16")
    if args.save_dtype == "auto" and trained == "float32" and narrow and not is_adapter:
        args.save_dtype = saved_dtype(config)
    return args


def load_student(job, model, args, tokenizer):
    """A name for the trainer to load; or a model, cut out of the teacher or with random weights.

    Raises:
        ValueError: a model that cannot be built or cut, or damaged weights.
    """
    if job.student_config is not None:
        return random_student(job.student_config, tokenizer, args.seed)
    if job.student_blocks is not None:
        settings = {"trust_remote_code": args.trust_remote_code}
        if model.attn_implementation is not None:
            settings["attn_implementation"] = model.attn_implementation
        name, given = args.teacher_model_name_or_path, args.teacher_model_init_kwargs
        logger.info("cutting the student out of the teacher %s", name)
        # Narrowed by from_pretrained, which leaves what is computed and not saved in float32.
        whole = (model.dtype or "float32") == "float32"
        settings["dtype"] = "auto" if whole else model.dtype
        student = cut_student(name, job.student_blocks, given, **settings)
        return student.float() if whole else student
    check_noted_weights(f"the student {model.model_name_or_path!r}", model.model_name_or_path)
    return model.model_name_or_path


def cut_student(teacher: str, blocks, init_kwargs: dict | None = None, **settings):
    """A teacher by name with some of its blocks only, in the dtype in which it is saved.

    Args:
        init_kwargs: the teacher's of the recipe, of which those that say where it is are used.
        settings: further arguments of ``from_pretrained``.

    Raises:
        ValueError: a teacher that cannot be loaded or cut.
    """
    given = {k: v for k, v in (init_kwargs or {}).items() if k not in _OF_THE_TEACHER}
    model = load_merged("teacher", teacher, **{"dtype": "auto", **given, **settings})
    return student_from_blocks(model, blocks)[0]


def load_student_config(job, model, args, tokenizer):
    """The student's configuration, without its weights.

    Raises:
        ValueError: it cannot be loaded, or ``student_config`` or ``student_blocks`` is not valid.
    """
    if job.student_config is not None:
        return random_student_config(job.student_config, tokenizer)
    if job.student_blocks is not None:
        name = args.teacher_model_name_or_path
        revision = (args.teacher_model_init_kwargs or {}).get("revision", "main")
        trusted = args.trust_remote_code
        config = load_config("teacher", name, revision=revision, trust_remote_code=trusted)
        try:
            return cut_config(config, job.student_blocks)
        except ValueError as error:
            raise ValueError(f"student_blocks of {name}: {error}") from error
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


def check_student(job, model, args):
    """Refuse a student that is not named exactly once.

    Raises:
        ValueError: no student, several, settings out of range, or settings that need another kind
            of student.
    """
    check_bounds(model)
    sources = {
        "model_name_or_path": model.model_name_or_path,
        "student_config": job.student_config,
        "student_blocks": job.student_blocks,
    }
    named = [name for name, value in sources.items() if value is not None]
    if len(named) != 1:
        raise ValueError(
            "name the student by either model_name_or_path (a folder or hub id), student_config "
            "(random weights) or student_blocks (blocks of the teacher)"
            + (f", not by {' and '.join(named)}" if named else "")
        )
    if job.student_config is not None and job.tokenizer_name_or_path is None:
        raise ValueError("a student from student_config needs tokenizer_name_or_path")
    if job.student_blocks is not None and not args.teacher_model_name_or_path:
        raise ValueError("student_blocks needs teacher_model_name_or_path, whose blocks they are")
    if job.student_blocks is not None and model.use_peft:
        raise ValueError(
            "use_peft trains an adapter, which is saved without the weights that student_blocks "
            "takes from the teacher: make a folder of them first (distilllens prune), then name it "
            "by model_name_or_path"
        )
    if job.student_blocks is not None and (model.load_in_4bit or model.load_in_8bit):
        raise ValueError("student_blocks trains all weights: leave out load_in_4bit, load_in_8bit")
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
