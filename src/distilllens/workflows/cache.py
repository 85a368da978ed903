"""``distilllens cache``: run a teacher once over a recipe's data and store its states."""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection

from distilllens.data import to_dataset
from distilllens.train import _trl
from distilllens.train.cache_fill import damaged_shards, fill_cache
from distilllens.train.cache_needs import requirements_of
from distilllens.train.checks import check_counts
from distilllens.train.collation import Collation
from distilllens.train.config import DistillLensConfig
from distilllens.train.lost import faults_told
from distilllens.train.teachers import (
    cached_depths,
    check_cached_depths,
    depths_of,
    find_teacher,
    load_teacher,
)
from distilllens.train.tuned_lens import new_translators, translators_for_cache
from distilllens.workflows import students, train_data, train_inputs
from distilllens.workflows.model_checks import check_models
from distilllens.workflows.train import one_line_errors
from distilllens.workflows.train_checks import check_cache
from distilllens.workflows.train_inputs import JobArguments

logger = logging.getLogger(__name__)


def write_cache(
    job: JobArguments, model, args: DistillLensConfig, depths: Collection[int] = ()
) -> str:
    """Write the teacher cache for a training run with these arguments; returns a line on it.

    Only the student's tokenizer and configuration are read. After an interruption, the same call
    resumes. Every byte of an existing cache is checked, and damaged shards are written again.

    Args:
        model: a ``trl.ModelConfig``: the student.
        depths: the teacher's that are stored beside those of ``lens_layers``.

    Raises:
        ValueError: as ``workflows.train.run_job``, or no ``teacher_cache`` or teacher is named.
    """
    with faults_told(args.ddp_timeout):
        return _write_cache(job, model, args, depths)


def _write_cache(job, model, args, depths):
    check_cache(vars(args))
    students.check_student(job, model, args)
    logger.info("loading the tokenizer and the data")
    tokenizer = students.load_student_tokenizer(job, model, args)
    config = students.load_student_config(job, model, args, tokenizer)
    reader = students.as_trained(tokenizer, args)
    check_models(args, config, reader)
    records = train_data.load_all(job, reader, args)
    examples = train_data.examples_of(job, args, reader, records)
    if source := train_data.described(job, records):
        logger.info("caching states of the rows %s", source)
    train_inputs.say_templates(args, reader, examples, config)
    with one_line_errors("the cache cannot be written"), train_data.placed(examples):
        cached = _filled(args, tokenizer, examples, depths_of(config), depths)
    return (
        f"the teacher cache {args.teacher_cache} holds {cached.num_documents} documents, "
        f"{cached.num_rows} positions at {cached.manifest.num_states} depths"
    )


def _filled(args, tokenizer, examples, student, more):
    args = copy.copy(args)
    args.eval_generate = False  # no answers are needed
    datasets = {role: to_dataset(rows) for role, rows in examples.items()}
    logger.info("preparing the data")
    collation = Collation.prepared(args, tokenizer, datasets["train"], datasets.get("eval"))
    collation = collation.of_teacher
    check_counts(collation)
    name = args.teacher_model_name_or_path
    teacher, needs = find_teacher(collation, name, student)
    if needs is None and damaged_shards(collation):
        teacher, needs = load_teacher(collation, name), requirements_of(collation, name)
    if needs is not None:
        depths = cached_depths(collation, teacher, student)
        depths = tuple(sorted({*depths, *more})) if more else depths
        if args.lens_readout == "tuned":
            teacher.lens = teacher.lens.tuned(new_translators(teacher.lens, depths))
        if teacher.lens.translators is not None:
            translators_for_cache(teacher, collation)
        teacher = fill_cache(collation, teacher, depths, needs)
        check_cached_depths(collation, teacher, student)
    _trl.end_training(collation.accelerator)
    return teacher
