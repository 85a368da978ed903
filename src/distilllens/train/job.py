"""One training run from files to a final model: check everything, then write."""

from __future__ import annotations

import json
import logging
import os
import platform
import shlex
import shutil
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from trl import ModelConfig, get_peft_config, get_quantization_config

from distilllens.data import to_dataset
from distilllens.fingerprints import fingerprint
from distilllens.teacher.cache import status
from distilllens.train import _trl, inputs, run
from distilllens.train.config import HIGHER_IS_BETTER, DistillLensConfig
from distilllens.train.model_card import LIBRARIES
from distilllens.train.trainer import DistillLensTrainer

logger = logging.getLogger(__name__)
_METRICS = ("loss", "cross_entropy", "output_loss", "lens_loss")


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
    report: bool = field(
        default=True,
        metadata={
            "help": "Leave report.html in output_dir at the end: losses over time, divergence by "
            "depth before and after, answers side by side."
        },
    )

    def __post_init__(self):
        for name in ("train_file", "eval_file"):
            setattr(self, name, _paths(name, getattr(self, name)))
        if isinstance(self.student_config, str):
            self.student_config = _mapping("student_config", self.student_config)
        if self.student_config is not None and "model_type" not in self.student_config:
            raise ValueError("student_config needs a model_type, such as gpt2 or llama")
        if (self.train_file is None) == (self.dataset_name is None):
            raise ValueError(
                "name the training data by train_file or by dataset_name, one of the two"
            )
        if self.dataset_name is not None and self.eval_file is not None:
            raise ValueError(
                "eval_file goes with train_file; with dataset_name: dataset_test_split"
            )
        if self.dataset_name is None and self.dataset_test_split is not None:
            raise ValueError(
                "dataset_test_split goes with dataset_name; with train_file: eval_file"
            )


class _Begun(TrainerCallback):
    """Notes the run in its folder once everything is prepared and the first step comes next."""

    def __init__(self, note):
        self.note, self.begun = note, False

    def on_train_begin(self, args, state, control, **kwargs):
        self.begun = True
        if state.is_world_process_zero:
            self.note()


def run_job(
    job: JobArguments, model: ModelConfig, args: DistillLensConfig, given: dict, scorer=None
) -> str:
    """Train as the arguments say; returns a line on what lies where.

    Args:
        given: the fields that were set.
        scorer: of answers, for ``eval_generate``: ``scorer.check(records, tokenizer, config)``
            before anything is written, then ``scorer(records, model, tokenizer, share)``.

    Raises:
        ValueError: anything wrong with data, models or folder, before the folder is touched.
    """
    _check_student(job, model)
    _check_metric(args)
    _check_folders(args)
    tokenizer = inputs.load_tokenizer(job, model, args)
    records = inputs.load_all(job, tokenizer)
    student, config = inputs.load_student(job, model, args, tokenizer)
    if args.eval_generate:
        if "eval" not in records:
            raise ValueError("eval_generate needs eval_file or dataset_test_split")
        scorer.check(records["eval"], tokenizer, config)
        scorer = partial(scorer, records["eval"])
    models = {"student": fingerprint(str(model.model_name_or_path), config)}
    teacher = _teacher_fingerprint(args)
    if teacher is not None:
        models["teacher"] = teacher
    identity = run.recipe_identity(given, inputs.files_of(job), models, args.world_size)
    checkpoint = run.resume_point(args.output_dir, identity)
    if run.is_finished(args.output_dir):
        return f"{args.output_dir} holds the finished run of this recipe; nothing to do"
    checkpoint = _asked_for(args, checkpoint, config.to_dict())

    record = _record(given)
    begun = _Begun(lambda: run.write_run(args.output_dir, identity, **record))
    with (
        _one_line("the run cannot start", lambda: begun.begun),
        run.unmade_on_failure(args.output_dir),
    ):
        trainer = _trainer(
            student, model, args, tokenizer, records, callbacks=[begun], score_answers=scorer
        )
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    _save_final(trainer, identity, record)
    _trl.end_training(trainer.accelerator)
    return f"the final model and its tokenizer are in {args.output_dir}"


def write_cache(job: JobArguments, model: ModelConfig, args: DistillLensConfig) -> str:
    """Write the teacher cache that a run of these arguments reads; returns a line on it.

    Raises:
        ValueError: as ``run_job``, or no folder or teacher is named.
    """
    for name in ("teacher_cache", "teacher_model_name_or_path"):
        if not getattr(args, name):
            raise ValueError(f"distilllens cache needs {name}")
    _check_student(job, model)
    tokenizer = inputs.load_tokenizer(job, model, args)
    records = inputs.load_all(job, tokenizer)
    student, _ = inputs.load_student(job, model, args, tokenizer)
    _teacher_fingerprint(args)
    with _one_line("the cache cannot be written"):
        args.eval_generate = False  # nothing is answered
        trainer = _trainer(student, model, args, tokenizer, records)
    cached = trainer.teacher
    _trl.end_training(trainer.accelerator)
    return (
        f"the teacher cache {args.teacher_cache} holds {cached.num_documents} documents, "
        f"{cached.num_rows} positions at {cached.manifest.num_states} depths"
    )


def _trainer(student, model, args, tokenizer, records, **more):
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


@contextmanager
def _one_line(what, begun=lambda: False):
    """Turn a library's refusal of a value, in its own way, into one line, unless work has begun."""
    try:
        yield
    except (ValueError, OSError, ImportError):
        raise
    except Exception as error:
        if begun():
            raise
        text = f"{what}: {type(error).__name__}: {inputs.first_line(error)}"
        raise ValueError(text) from error


def _teacher_fingerprint(args):
    """Of the teacher that is named, or else of the one whose cache is; None for neither."""
    teacher = args.teacher_model_name_or_path
    if teacher:
        revision = (args.teacher_model_init_kwargs or {}).get("revision", "main")
        return fingerprint(teacher, inputs.load_config("teacher", teacher, args, revision))
    return status(args.teacher_cache)[0].teacher if args.teacher_cache else None


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


def _check_folders(args):
    if args.teacher_cache is None:
        return
    cache, output = Path(args.teacher_cache).resolve(), Path(args.output_dir).resolve()
    if output in (cache, *cache.parents):
        raise ValueError(
            f"teacher_cache {args.teacher_cache} lies in output_dir {args.output_dir}, which holds "
            "one run and nothing else; name a folder beside it"
        )


def _check_metric(args):
    name = (args.metric_for_best_model or "loss").removeprefix("eval_")
    known = _METRICS + (HIGHER_IS_BETTER if args.eval_generate else ())
    if name not in known and not name.startswith("lens_loss/"):
        asked = "; it needs eval_generate" if name in HIGHER_IS_BETTER else ""
        raise ValueError(
            f"metric_for_best_model {name!r} is never measured{asked}; "
            f"known: {', '.join(known)}, lens_loss/1:2 and so on"
        )


def _asked_for(args, checkpoint, config):
    """The checkpoint to resume from: the run's own, unless the recipe names another or none."""
    asked = args.resume_from_checkpoint
    if str(asked).lower() == "false" and checkpoint is not None:
        raise ValueError(
            f"resume_from_checkpoint is false, but {checkpoint} is there; "
            "choose another output_dir to start again"
        )
    if asked is not None and str(asked).lower() not in ("true", "false"):
        run.check_checkpoint(asked, config)
        checkpoint = Path(asked)
    if checkpoint is not None:
        logger.warning("resuming from %s", checkpoint)
    return checkpoint


def _save_final(trainer, identity, record):
    """Save beside, then move the files in, so that no half-written model is ever there."""
    output_dir = Path(trainer.args.output_dir)
    part = output_dir / "final.part"
    trainer.save_model(str(part))
    trainer.accelerator.wait_for_everyone()
    if not trainer.is_world_process_zero():
        return
    for file in part.iterdir():
        target = output_dir / file.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(file, target)
    part.rmdir()
    trainer.save_state()
    trainer.create_model_card()
    run.write_run(output_dir, identity, finished=True, **record)


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


def _record(given):
    """What a report needs beside the identity: none of it decides what is learned."""
    return {
        "command": _command(),
        "working_directory": os.getcwd(),
        # hub_token among them is nobody's to read.
        "given": json.loads(
            json.dumps({k: v for k, v in given.items() if not k.startswith("hub_")}, default=str)
        ),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of Python and of the libraries that decide a run's result."""
    return {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}


def _command():
    """How this run was started, as a shell takes it, but for the hub's token."""
    num_processes = os.environ.get("LOCAL_WORLD_SIZE", "1")
    start = ["distilllens"]
    if num_processes != "1":
        start = ["torchrun", "--nproc_per_node", num_processes, "-m", "distilllens"]
    words, secret = [], False
    for word in sys.argv[1:]:
        name, _, value = word.partition("=")
        names_token = name.replace("-", "_") == "__hub_token"
        words.append("***" if secret else f"{name}=***" if names_token and value else word)
        secret = names_token and not value
    return shlex.join([*start, *words])
