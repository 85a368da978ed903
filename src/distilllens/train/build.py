"""A trainer from records and the arguments of a recipe."""

from __future__ import annotations

from trl import ModelConfig, get_peft_config, get_quantization_config

from distilllens.data import to_dataset
from distilllens.train.config import DistillLensConfig
from distilllens.train.trainer import DistillLensTrainer


def build_trainer(
    student,
    model: ModelConfig,
    args: DistillLensConfig,
    tokenizer,
    records: dict[str, list[dict]],
    **more,
) -> DistillLensTrainer:
    """The trainer of a student, a model or its name, on ``{"train": records, "eval": records}``.

    Args:
        model: the settings of LoRA and of quantisation among it are read.
        more: further arguments of ``DistillLensTrainer``.

    Raises:
        ValueError: as ``DistillLensTrainer``.
    """
    examples = {role: to_dataset(rows) for role, rows in records.items()}
    return DistillLensTrainer(
        student,
        args=args,
        train_dataset=examples["train"],
        eval_dataset=examples.get("eval"),
        processing_class=tokenizer,
        peft_config=get_peft_config(model),
        quantization_config=get_quantization_config(model),
        **more,
    )
