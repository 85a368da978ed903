"""One training run from files to a final model: check everything, then write."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import ModelConfig, get_peft_config, get_quantization_config

from distilllens.data import drop_long_prompts, load_hub, load_records, to_training_examples
from distilllens.train import _trl, run
from distilllens.train.config import DistillLensConfig
from distilllens.train.trainer import DistillLensTrainer

logger = logging.getLogger(__name__)


@dataclass
class JobArguments:
    """What a run trains on, and where a student without weights comes from."""

    train_file: list[str] | None = field(
        default=None,
        metadata={
            "help": "Training data: files or folders of .jsonl, .json or .txt (each may be .gz)."
        },
    )
    eval_file: list[str] | None = field(
        default=None, metadata={"help": "Evaluation data, as train_file."}
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "A data set of the hub, instead of train_file."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Its configuration."})
    dataset_train_split: str = field(default="train", metadata={"help": "Its training split."})
    dataset_test_split: str | None = field(
        default=None, metadata={"help": "Its evaluation split; none by default."}
    )
    max_prompt_length: int | None = field(
        default=None,
        metadata={"help": "Leave out records whose prompt has more tokens (the paper: 256)."},
    )
    student_config: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Start from random weights of this configuration, such as {model_type: gpt2, "
            "n_layer: 4, n_embd: 128, n_head: 4}, instead of model_name_or_path."
        },
    )
    tokenizer_name_or_path: str | None = field(
        default=None, metadata={"help": "The tokenizer, where the student's folder has none."}
    )

    def __post_init__(self):
        for name in ("train_file", "eval_file"):
            if isinstance(getattr(self, name), str):
                setattr(self, name, [getattr(self, name)])
        if isinstance(self.student_config, str):
            self.student_config = _mapping("student_config", self.student_config)
        if self.student_config is not None and "model_type" not in self.student_config:
            raise ValueError("student_config needs a model_type, such as gpt2 or llama")
        if (self.train_file is None) == (self.dataset_name is None):
            raise ValueError(
                "name the training data by train_file or by dataset_name, one of the two"
            )


def run_job(job: JobArguments, model: ModelConfig, args: DistillLensConfig, given: dict) -> str:
    """Train as the arguments say; returns a line on what lies where.

    Raises:
        ValueError: anything wrong with data, models or folder, before the folder is touched.
    """
    _check_student(job, model)
    examples = _load_examples(job)
    tokenizer = _load_tokenizer(job, model, args)
    examples = _drop_long(job, tokenizer, examples)
    student, configs = _student(job, model, args, tokenizer)
    if args.teacher_model_name_or_path:
        teacher_kwargs = args.teacher_model_init_kwargs or {}
        revision = teacher_kwargs.get("revision", "main")
        configs["teacher"] = _config("teacher", args.teacher_model_name_or_path, args, revision)
    files = [*_files(job.train_file), *_files(job.eval_file)]
    shapes = {role: config.to_dict() for role, config in configs.items()}
    identity = run.recipe_identity(given, files, shapes, args.world_size)
    checkpoint = _resume_point(args, identity, shapes["student"])
    if run.is_finished(args.output_dir):
        return f"{args.output_dir} holds the finished run of this recipe; nothing to do"

    with run.unmade_on_failure(args.output_dir):
        trainer = DistillLensTrainer(
            student,
            args=args,
            train_dataset=examples["train"],
            eval_dataset=examples.get("eval"),
            processing_class=tokenizer,
            peft_config=get_peft_config(model),
            quantization_config=get_quantization_config(model),
        )
    if trainer.is_world_process_zero():
        run.write_run(args.output_dir, identity, command=_command())
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    _save_final(trainer, identity)
    _trl.end_training(trainer.accelerator)
    return f"the final model and its tokenizer are in {args.output_dir}"


def _check_student(job, model):
    if (job.student_config is None) == (model.model_name_or_path is None):
        raise ValueError(
            "name the student by model_name_or_path (a folder or hub id) or by student_config "
            "(random weights), one of the two"
        )
    if job.student_config is not None and job.tokenizer_name_or_path is None:
        raise ValueError("a student from student_config needs tokenizer_name_or_path")
    if job.student_config is not None and model.use_peft:
        raise ValueError(
            "use_peft trains an adapter beside weights that student_config only draws: train the "
            "student first, then name it by model_name_or_path"
        )


def _load_examples(job):
    if job.dataset_name is not None:
        load = {"train": job.dataset_train_split, "eval": job.dataset_test_split}
        records = {
            role: load_hub(job.dataset_name, split, job.dataset_config)
            for role, split in load.items()
            if split is not None
        }
    else:
        files = {"train": job.train_file, "eval": job.eval_file}
        records = {role: load_records(names) for role, names in files.items() if names}
    return {role: to_training_examples(rows) for role, rows in records.items()}


def _drop_long(job, tokenizer, examples):
    if job.max_prompt_length is not None:
        for role, rows in examples.items():
            examples[role], dropped = drop_long_prompts(rows, tokenizer, job.max_prompt_length)
            if dropped:
                logger.warning(
                    "%d of %d %s examples have prompts of more than %d tokens and are left out",
                    dropped,
                    len(rows),
                    role,
                    job.max_prompt_length,
                )
    return {role: Dataset.from_list(rows) for role, rows in examples.items()}


def _load_tokenizer(job, model, args):
    name = job.tokenizer_name_or_path or model.model_name_or_path
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name,
            revision=None if job.tokenizer_name_or_path else model.model_revision,
            trust_remote_code=args.trust_remote_code,
        )
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"cannot load a tokenizer from {name!r}: {_first_line(error)}; "
            "name a folder or hub id that has one, or set tokenizer_name_or_path"
        ) from error
    if tokenizer.eos_token is None:
        raise ValueError(f"the tokenizer of {name} has no end-of-sequence token; set eos_token")
    return tokenizer


def _student(job, model, args, tokenizer):
    """A name for the trainer to load, or a model with random weights; and its configuration."""
    if job.student_config is None:
        settings = {
            "revision": model.model_revision,
            "attn_implementation": model.attn_implementation,
            "dtype": model.dtype or "float32",
        }
        args.model_init_kwargs = settings | dict(args.model_init_kwargs or {})
        revision = args.model_init_kwargs["revision"]
        config = _config("student", model.model_name_or_path, args, revision)
        return model.model_name_or_path, {"student": config}
    settings = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        **job.student_config,
    }
    try:
        set_seed(args.seed)  # two recipes of one seed start from the same weights
        student = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings))
    except Exception as error:  # whatever a configuration class says of values that do not fit
        raise ValueError(f"student_config makes no model: {_first_line(error)}") from error
    student.config.name_or_path = f"random weights, {job.student_config}"
    return student, {"student": student.config}


def _config(role, name, args, revision):
    try:
        return AutoConfig.from_pretrained(
            name, revision=revision, trust_remote_code=args.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        where = "has no readable config.json" if os.path.isdir(name) else "is no folder here"
        raise ValueError(
            f"cannot load the {role} {name!r}: it {where}: {_first_line(error)}"
        ) from error


def _resume_point(args, identity, config):
    checkpoint = run.resume_point(args.output_dir, identity)
    asked = args.resume_from_checkpoint
    if isinstance(asked, str) and asked.lower() not in ("true", "false"):
        run.check_checkpoint(asked, config)
        checkpoint = Path(asked)
    if checkpoint is not None:
        logger.warning("resuming from %s", checkpoint)
    return checkpoint


def _save_final(trainer, identity):
    """Save beside, then move the files in, so that no half-written model is ever there."""
    output_dir = Path(trainer.args.output_dir)
    part = output_dir / "final.part"
    trainer.save_model(str(part))
    trainer.accelerator.wait_for_everyone()
    if not trainer.is_world_process_zero():
        return
    for file in part.iterdir():
        os.replace(file, output_dir / file.name)
    shutil.rmtree(part)
    trainer.save_state()
    trainer.create_model_card()
    run.write_run(output_dir, identity, finished=True, command=_command())


def _files(names):
    """Data files themselves; of a folder, the files in it."""
    for name in names or ():
        path = Path(name)
        yield from sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]


def _mapping(name, text):
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be a mapping (JSON on the command line), got {text!r}")
    return value


def _first_line(error):
    return str(error).strip().split("\n")[0]


def _command():
    return " ".join(["distilllens", *sys.argv[1:]])
