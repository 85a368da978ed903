"""``distilllens train``: one run from files to a final model and its report."""

from __future__ import annotations

import gc
import logging
import os
import shutil
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from transformers import TrainerCallback
from transformers.integrations import is_tensorboard_available

from distilllens.errors import first_line, one_line
from distilllens.evaluate.answer_scorer import AnswerScorer
from distilllens.files import unmade_on_failure
from distilllens.loading import is_adapter_folder, load_config, saved_dtype
from distilllens.marks import described
from distilllens.teacher import ServedTeacher
from distilllens.train import _trl, final_model, run_folder
from distilllens.train.build import build_trainer
from distilllens.train.checkpoint import rotate
from distilllens.train.config import DistillLensConfig
from distilllens.train.elastic import rows_to_keep, settle
from distilllens.train.lost import check_agreed, faults_told
from distilllens.train.on_policy_checks import check_prompts
from distilllens.train.run_lock import claimed
from distilllens.train.saving import saved_or_removed
from distilllens.train.stopping import StopSignals
from distilllens.train.teacher_checks import check_teacher_sharding
from distilllens.workflows import estimate, students, train_data, train_inputs
from distilllens.workflows.best_metric import check_evaluation, check_measured
from distilllens.workflows.estimate_run import run_of
from distilllens.workflows.hub import hub_of
from distilllens.workflows.identity import (
    student_identity,
    teacher_identities,
    tokenizer_identity,
)
from distilllens.workflows.model_checks import (
    check_embeddings,
    check_models,
    check_named_models,
    note_on_same_models,
)
from distilllens.workflows.outputs import PAGE
from distilllens.workflows.provenance import record_of
from distilllens.workflows.run_summary import Opening, closing, lens_is_read, student_in_words
from distilllens.workflows.train_checks import check_folders, check_loggers, check_server
from distilllens.workflows.train_inputs import JobArguments

logger = logging.getLogger(__name__)


class _Begun(TrainerCallback):
    """Write run.json once everything is prepared, right before the first step."""

    def __init__(self, note):
        self.note, self.begun = note, False

    def on_train_begin(self, args, state, control, **kwargs):
        self.begun = True
        if state.is_world_process_zero:
            self.note()


def run_job(job: JobArguments, model, args: DistillLensConfig, given: dict | None = None) -> str:
    """Train a student and write a report; returns a line or two on where the results are.

    Called again with the same arguments, it resumes from the last complete checkpoint.

    Args:
        model: a ``trl.ModelConfig``: the student, and how to load it.
        given: name -> value of the fields that were set, which identify the run together with its
            data and models; by default those whose values are not their defaults.

    Raises:
        ValueError: data, models, fields or a folder that do not fit, before the folder is changed.
    """
    if given is None:
        given = train_inputs.changed_fields(job, model, args)
    check_job(job, model, args)
    check_teacher_sharding(vars(args))
    train_inputs.say_idle(job, model, args, given)
    with faults_told(args.ddp_timeout):
        hub, args = hub_of(args, given)
        line = _run(job, model, args, given)
    is_new = line is not None
    line = line or f"{args.output_dir} holds the finished run of this recipe; nothing to do"
    # An interruption may have come between the model and its report.
    wanted = job.report and (is_new or not (Path(args.output_dir) / PAGE).exists())
    # The process group has ended: only the main process writes the page.
    if wanted and os.environ.get("RANK", "0") == "0" and (written := _write_report(args)):
        line += f"\n{written}"
    return line if hub is None else f"{line}\n{hub.upload()}"


def check_before_processes(job: JobArguments, model, args: DistillLensConfig):
    """Refuse what can be refused without data and weights.

    Raises:
        ValueError, OSError: as ``run_job``.
    """
    check_job(job, model, args)
    check_named_models(job, model, args)


def check_job(job: JobArguments, model, args: DistillLensConfig):
    """Refuse arguments of which neither data nor models are needed to know that they do not fit.

    Raises:
        ValueError, OSError: as ``run_job``.
    """
    students.check_student(job, model, args)
    check_loggers(args.report_to, has_tensorboard=is_tensorboard_available())
    check_evaluation(job, args)
    check_folders(args.output_dir, args.teacher_cache)
    if not run_folder.is_finished(args.output_dir):
        check_server(vars(args))


def _run(job, model, args, given):
    """Train; returns a line, or None if the run is finished already."""
    args = students.with_student_settings(job, model, args)
    logger.info("loading the tokenizer and the data")
    tokenizer = students.load_student_tokenizer(job, model, args)
    config = students.load_student_config(job, model, args, tokenizer)
    reader = students.as_trained(tokenizer, args)
    check_models(args, config, reader)
    records = train_data.load_all(job, reader, args)
    examples = train_data.examples_of(job, args, reader, records)
    if not is_adapter_folder(model.model_name_or_path):  # which may bring more embeddings
        check_embeddings(args, config, reader, examples["train"])
    check_prompts(args, args.teacher_model_name_or_path, examples["train"])
    if job.student_config is None:
        args = students.with_save_dtype(model, args, config)
    scorer = _scorer(job, args, records, reader, config)
    models = {
        "student": student_identity(model, config),
        "tokenizer": tokenizer_identity(reader),
        **teacher_identities(args),
    }
    train_inputs.say_templates(args, reader, examples, config)
    if job.student_config is None and (note := note_on_same_models(model, args, config, models)):
        logger.warning("%s", note)
    files = train_data.files_of(job)
    rows = train_data.rows_of(job, records)
    identity = run_folder.recipe_identity(given, files, models, args.world_size, rows)
    with unmade_on_failure(args.output_dir), claimed(args.output_dir):
        checkpoint = run_folder.resume_point(args.output_dir, identity)
        if run_folder.is_finished(args.output_dir):
            if (damage := final_model.damage_of_final(args.output_dir)) is None:
                if edited := final_model.edited_files(args.output_dir):
                    logger.warning(
                        "%s changed since the run wrote them and are left alone: delete one, and "
                        "the same command makes it again",
                        ", ".join(edited),
                    )
                _check_save_dtype(args.output_dir, given)
                return None
            logger.warning("the final model is damaged, and is made again: %s", damage)
        checkpoint = _chosen(args, checkpoint, config.to_dict(), identity)
        check_agreed("the checkpoint to go on from", checkpoint or "none")
        if before := rows_to_keep(run_folder.step_rows(args.output_dir), checkpoint, args):
            settle(args, before)
        estimate.say_before_training(
            partial(run_of, job, model, args, config, reader, examples["train"]), args
        )
        student = students.load_student(job, model, args, tokenizer)
        inputs = (student, model, args, tokenizer, examples)
        source = train_data.described(job, records)
        opening = Opening(student_in_words(job, model, args), chat=job.chat, source=source)
        record = record_of(given)
        record["data"] = train_data.names_of(job)
        return _train(inputs, checkpoint, scorer, opening, identity, record)


def _train(inputs, checkpoint, scorer, opening, identity, record):
    """Train from a checkpoint (None: from the start) and save the final model; returns a line."""
    output_dir = inputs[2].output_dir
    begun = _Begun(lambda: run_folder.write_run(output_dir, identity, **record))
    with (
        one_line_errors("the run cannot start", lambda: begun.begun),
        StopSignals() as signals,
        train_data.placed(inputs[-1]),
    ):
        callbacks = [begun, opening, signals]
        trainer = build_trainer(*inputs, callbacks=callbacks, score_answers=scorer)
        opening.trainer, trainer.saves_final_model = trainer, True
        if lens_is_read(trainer):
            record["layer_map"] = str(trainer.objective.layer_map)
        if isinstance(trainer.teacher, ServedTeacher):
            record["teacher_server_model"] = trainer.teacher.model
        _check_goes_on(checkpoint, output_dir, record)
        check_measured(trainer)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    _save_final(trainer, identity, record)
    if trainer.is_world_process_zero():
        logger.info("%s", closing(trainer, chat=opening.chat))
    _trl.end_training(trainer.accelerator)
    saved = "adapter" if is_adapter_folder(output_dir) else "model"
    return f"the final {saved} and its tokenizer are in {output_dir}"


def _scorer(job, args, records, tokenizer, config):
    """The function that scores answers to the evaluation data during training, or None."""
    if not args.eval_generate:
        return None
    scorer = AnswerScorer(**(args.eval_generate_kwargs or {}))
    scorer.check(records["eval"], tokenizer, config, chat=job.chat)
    return partial(scorer, records["eval"], chat=job.chat)


def _write_report(args):
    """Write the report of a run that has ended; returns a line on it, or None after a warning."""
    from distilllens.workflows.report import write_report

    gc.collect()  # the trainer and its models
    try:
        return write_report(Path(args.output_dir), trust_remote_code=args.trust_remote_code)
    except Exception as error:  # the model is saved: a failed report must not fail the run
        logger.warning("no report of %s: %s", args.output_dir, one_line(error))
        return None


@contextmanager
def one_line_errors(what, begun=lambda: False):
    """Turn any error of a library into a one-line ValueError, unless the work has begun."""
    try:
        yield
    except (ValueError, OSError, ImportError):
        raise
    except Exception as error:
        if begun():
            raise
        text = f"{what}: {type(error).__name__}: {first_line(error)}"
        raise ValueError(text) from error


def _check_save_dtype(output_dir, given):
    """Refuse to call a run finished whose model would be saved in another dtype."""
    asked, before = given.get("save_dtype", "auto"), run_folder.read_run(output_dir).get("given")
    if before is None or asked in ("auto", before := before.get("save_dtype", "auto")):
        return
    if is_adapter_folder(output_dir):
        return
    if saved_dtype(load_config("student", str(output_dir))) != asked:
        raise ValueError(
            f"output_dir {output_dir} holds the finished run of this recipe with save_dtype "
            f"{before}, and it is now {asked}: its model stays as it is; name another output_dir, "
            "or leave save_dtype out"
        )


def _chosen(args, checkpoint, config, identity):
    """The checkpoint to resume from: the run's own, unless resume_from_checkpoint names another."""
    named = args.resume_from_checkpoint
    if str(named).lower() == "false" and checkpoint is not None:
        raise ValueError(
            f"resume_from_checkpoint is false, but {checkpoint} exists; "
            "choose another output_dir to start from scratch"
        )
    if named is not None and str(named).lower() not in ("true", "false"):
        run_folder.check_checkpoint(named, config)
        elsewhere = Path(named).resolve().parent != Path(args.output_dir).resolve()
        if elsewhere and checkpoint is not None:
            logger.info("resuming from %s; %s is where this run began", checkpoint, named)
            return checkpoint
        checkpoint = Path(named)
        if difference := run_folder.other_recipe(checkpoint.parent, identity):
            logger.warning("%s belongs to a run of another recipe: %s", checkpoint, difference)
    if checkpoint is not None:
        logger.info("resuming from %s", checkpoint)
    return checkpoint


def _check_goes_on(checkpoint, output_dir, record):
    """Refuse to go on with other pairs of depths, or another teacher, than the run began with."""
    if not checkpoint:
        return
    for name, other in (
        ("layer_map", run_folder.other_layer_map),
        ("teacher_server_model", run_folder.other_served),
    ):
        if not (name in record and (different := other(checkpoint, record[name]))):
            continue
        if checkpoint.parent.resolve() == Path(output_dir).resolve():
            raise ValueError(f"output_dir {different}")
        logger.warning("%s", different)


def _save_final(trainer, identity, record):
    """Save to a temporary folder, then move the files: the final model is never incomplete."""
    output_dir = Path(trainer.args.output_dir)
    part, main = output_dir / "final.part", trainer.is_world_process_zero()
    if main:
        _clear(part)
    trainer.accelerator.wait_for_everyone()
    with saved_or_removed(part, "the final model", writes=main):
        trainer.save_model(str(part))
    trainer.accelerator.wait_for_everyone()
    if not main:
        return
    # PEFT's card of an adapter; ours follows, unless somebody's README is in its place.
    (part / "README.md").unlink(missing_ok=True)
    names = [file.relative_to(part).as_posix() for file in part.rglob("*") if file.is_file()]
    for file in sorted(part.iterdir()):
        target = output_dir / file.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(file, target)
    part.rmdir()
    trainer.save_state()
    trainer.create_model_card(dataset_name=record["data"])
    weights = [name for name in names if fnmatch(name, "*model*.safetensors")]
    others = [name for name in (*names, "trainer_state.json") if (output_dir / name).is_file()]
    others = [name for name in others if name not in weights]
    found = {"weights": described(output_dir, weights), "files": described(output_dir, others)}
    run_folder.write_run(output_dir, identity, finished=True, **found, **record)
    best = trainer.state.best_model_checkpoint
    rotate(output_dir, trainer.args.save_total_limit, [best] if best else [])


def _clear(part):
    """Remove what an interrupted save left in our temporary folder; a link to another is refused.

    Raises:
        ValueError: a link or a file in its place.
    """
    if part.is_symlink() or (part.exists() and not part.is_dir()):
        raise ValueError(f"{part} is in the place of our temporary folder, and is none; remove it")
    if part.exists():
        shutil.rmtree(part)
