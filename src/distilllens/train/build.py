"""A trainer from records and the arguments of a recipe."""

from __future__ import annotations

import copy
import re
from pathlib import Path

from peft import PeftModel, get_peft_model
from trl import ModelConfig, get_peft_config, get_quantization_config

from distilllens.data import to_dataset
from distilllens.data.streams import RecordStream
from distilllens.loading import (
    base_model_name,
    config_error,
    is_adapter_folder,
    load_adapter,
    load_model,
)
from distilllens.train.config import DistillLensConfig
from distilllens.train.trainer import DistillLensTrainer


def build_trainer(
    student,
    model: ModelConfig,
    args: DistillLensConfig,
    tokenizer,
    records: dict[str, list[dict] | RecordStream],
    **more,
) -> DistillLensTrainer:
    """The trainer of a student, a model or its name, on ``{"train": records, "eval": records}``.

    Args:
        student: of the folder of an adapter, the adapter is trained on.
        model: the settings of LoRA and of quantisation among it are read.
        more: further arguments of ``DistillLensTrainer``.

    Raises:
        ValueError: as ``DistillLensTrainer``.
    """
    quantization = get_quantization_config(model)
    if isinstance(student, str) and is_adapter_folder(student):
        student, quantization = _adapted(student, args, quantization), None
        args = copy.copy(args)
        args.model_init_kwargs = None
    examples = {
        role: rows.dataset() if isinstance(rows, RecordStream) else to_dataset(rows)
        for role, rows in records.items()
    }
    try:
        return DistillLensTrainer(
            student,
            args=args,
            train_dataset=examples["train"],
            eval_dataset=examples.get("eval"),
            processing_class=tokenizer,
            peft_config=_peft_config(model),
            quantization_config=quantization,
            **more,
        )
    except Exception as error:  # models raise errors of any kind
        reason = config_error(student, "weights", error) if isinstance(student, str) else None
        if reason is None:
            raise
        raise ValueError(f"cannot load the student {student!r}: {reason}") from error


def with_adapter(student, model: ModelConfig):
    """A student with the new adapter that its settings ask for; without them, as it is."""
    settings = _peft_config(model)
    return student if settings is None else get_peft_model(student, settings)


def _adapted(folder, args, quantization):
    """An adapter on its base model, to be trained on."""
    settings = {**(args.model_init_kwargs or {}), "trust_remote_code": args.trust_remote_code}
    settings.pop("revision", None)  # of the adapter
    if quantization is not None:
        settings["quantization_config"] = quantization
    base = load_model("student", base_model_name(Path(folder)), **settings)
    return load_adapter(PeftModel, base, folder)


def _peft_config(model):
    """TRL's, with a single target as the list of one that it was.

    ``ModelConfig`` unpacks it, and PEFT takes a text for a regular expression that must match the
    whole name. A list matches that name too, and names that end in it.
    """
    config = get_peft_config(model)
    targets = getattr(config, "target_modules", None)
    if isinstance(targets, str) and re.fullmatch(r"\w+(\.\w+)*", targets):
        config.target_modules = {targets}  # PEFT's own form of a list
    return config
