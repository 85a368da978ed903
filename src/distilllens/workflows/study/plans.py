"""How the students of a study are scored: plans of evaluations, checked before the first run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distilllens.evaluate.benchmarks import load_benchmarks
from distilllens.evaluate.models import Candidate
from distilllens.evaluate.tasks import make_task
from distilllens.generate.decoding import Decoding
from distilllens.workflows import students
from distilllens.workflows.evaluate import Plan
from distilllens.workflows.run_arguments import build_unused
from distilllens.workflows.study.materials import files_of
from distilllens.workflows.study.matrix import Study
from distilllens.workflows.study.measures import device_of

_DECODING = ("max_new_tokens", "temperature", "top_p", "greedy")
_ANYWHERE = Path("unused")  # a folder that is never made


def development_plan(study: Study, fields: Mapping[str, Any], folder: Path, output: Path) -> Plan:
    """The likelihood of the development set under a run's student, and its KL from the teacher.

    Args:
        fields: the recipe of the run.
        folder: its output_dir.
        output: of the results.

    Raises:
        ValueError: as ``Plan``.
    """
    return Plan(
        models=(str(folder),),
        benchmarks=tuple(files_of(fields["eval_file"])),
        output=str(output),
        references_only=True,
        teacher=study.common_teacher,
        chat=bool(fields.get("chat")),
        device=device_of(fields),
        trust_remote_code=bool(fields.get("trust_remote_code")),
    )


def answers_plan(study: Study, fields: Mapping[str, Any], folder: Path, output: Path) -> Plan:
    """The answers of a run's student to the benchmarks; as ``development_plan``."""
    given = dict(study.evaluate)
    decoding = {name: given.pop(name) for name in _DECODING if name in given}
    return Plan(
        models=(str(folder),),
        benchmarks=tuple(given.pop("benchmarks")),
        output=str(output),
        decoding=Decoding(**decoding),
        teacher=study.common_teacher,
        chat=bool(fields.get("chat")),
        **{"device": device_of(fields), **given},
        trust_remote_code=bool(fields.get("trust_remote_code")),
    )


def check_plans(study: Study):
    """Refuse, before anything is trained, what could not be scored afterwards.

    Raises:
        ValueError: a field of ``evaluate`` out of range, a benchmark that cannot be read, or a
            prompt that leaves no room in the student's context.
    """
    for method in study.methods:
        with _named(study, f"method {method}"):
            students.check_student(*build_unused(study.recipe(method)))
    fields = study.recipe(study.baseline)  # the student and the data are the same for all
    job, model, args = build_unused(fields)
    tokenizer = students.load_student_tokenizer(job, model, args)
    config = students.load_student_config(job, model, args, tokenizer)
    reader = students.as_trained(tokenizer, args)
    student = Candidate("the student", "", reader, config, {})
    plans = {"eval_file": development_plan}
    plans |= {"evaluate": answers_plan} if study.evaluate else {}
    for part, make in plans.items():
        with _named(study, part):
            plan = make(study, fields, _ANYWHERE, _ANYWHERE)
            decoding = None if plan.references_only else plan.decoding
            for each in load_benchmarks(plan.benchmarks, limit=plan.limit, chat=plan.chat):
                make_task(each, [student], decoding, plan.max_prompt_length)


@contextmanager
def _named(study, part):
    """Errors that name the file of the study, and the part of it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{study.path}: {part}: {error}") from error
