"""``distilllens study``: from a study file to runs, tables and a page."""

from __future__ import annotations

import logging
import signal
import threading
from contextlib import contextmanager
from pathlib import Path

from distilllens.evaluate.scores import METRICS
from distilllens.files import write_atomically, write_json
from distilllens.layer_map import parse_blocks
from distilllens.report import render_page
from distilllens.report.parts import Table as PageTable
from distilllens.report.study_page import Differences, Interval, StudyPage, study_sections
from distilllens.train.progress import duration
from distilllens.train.stopping import Stopped
from distilllens.workflows.outputs import PAGE, check_count, check_folder, check_page, write_page
from distilllens.workflows.run_summary import blocks_in_words
from distilllens.workflows.study.conductor import Conductor
from distilllens.workflows.study.matrix import Study
from distilllens.workflows.study.plans import check_plans
from distilllens.workflows.study.results import StudyResult, read_results
from distilllens.workflows.study.runs import Folders, candidates, chosen_rate
from distilllens.workflows.study.tables import (
    answers,
    as_json,
    as_markdown,
    column_title,
    costs,
    main_columns,
    mean_depths,
    table_text,
    tables,
)

logger = logging.getLogger(__name__)
MARKER = "study.json"  # whose folder this is
SCORES = "scores"


def run_study(study: Study, output: str | Path, *, jobs: int = 1, command: str = "") -> str:
    """Do what is left of a study, and write its tables and its page; returns the tables.

    The same call goes on after an interruption; what is done is not repeated.

    Args:
        output: the folder of the study.
        jobs: how many runs at a time, each in a process with its share of the cores.
        command: the command line, for the page.

    Raises:
        ValueError: a folder or field that cannot be used, a run that failed, or ``max_hours`` that
            are spent before every method ran.
        OSError: a folder that cannot be written.
        KeyboardInterrupt: after the runs in progress were saved.
    """
    folders = _claimed(study, output, jobs)
    check_page(folders.output / PAGE, "the page")
    file = Path(study.path).read_text(encoding="utf-8")  # it may be edited while the study runs
    conductor = Conductor(study, folders, jobs)
    check_plans(study)
    with _signals():
        left = conductor()
    rates = {name: _rate(study, conductor, name) for name in study.methods}
    notes = ()
    if left:
        names = ", ".join(dict.fromkeys(task.run.name for task in left))
        notes = (f"The max_hours of {study.max_hours:g} are spent; not done: {names}.",)
    result = read_results(study, folders, rates, notes)
    if missing := [name for name in study.methods if name not in {m.name for m in result.methods}]:
        raise ValueError(
            f"{study.path}: the max_hours of {study.max_hours:g} are spent before "
            f"{', '.join(missing)} ran; raise it, and the same command goes on"
        )
    result.tried.update(_tried(study, conductor))
    text = as_markdown(result)
    write_atomically(folders.output / f"{SCORES}.md", text)
    write_json(folders.output / f"{SCORES}.json", as_json(result))
    cost = costs(result)
    write_atomically(folders.output / "costs.md", table_text(cost) + "\n")
    _write_page(folders.output / PAGE, result, file, command)
    return f"{text}\n{table_text(cost)}"


def plan_in_words(study: Study, output: str | Path, *, jobs: int = 1) -> str:
    """The matrix of a study and the hours that its training takes, from a few steps of each method.

    Raises:
        ValueError, OSError: as ``run_study``.
    """
    folders = _claimed(study, output, jobs)
    conductor = Conductor(study, folders, jobs)
    check_plans(study)
    with _signals():
        trials = conductor.trials()
    steps = {method: trial.steps for method, trial in trials.items()}
    steps |= conductor.terms.equal_steps(trials) if study.equal != "steps" else {}
    lines, total = [], 0.0
    for method, trial in trials.items():
        runs = len(study.seeds[method]) + max(0, len(study.learning_rates) - 1)
        seconds = steps[method] * trial.seconds
        total += runs * seconds
        lines.append(
            f"{method}: {runs} run{'s' * (runs > 1)} of {steps[method]:,.0f} steps, "
            f"{trial.seconds:.2f} s a step, {duration(seconds)} each"
        )
    rates = f"; learning rates {', '.join(f'{r:g}' for r in study.learning_rates)}, the best by "
    rates += f"{study.choose_by} with the first seed" if study.learning_rates else ""
    seeds = ", ".join(map(str, study.all_seeds))
    head = f"{len(study.methods)} methods, seeds {seeds}, baseline {study.baseline}, equal "
    head += study.equal + (rates if study.learning_rates else "")
    live = any(
        conductor.caches.of(method) and not conductor.caches.of(method).is_dir()
        for method in study.methods
    )
    tail = f"training: about {duration(total / jobs)} with --jobs {jobs}; answers come on top"
    tail += "; timed with the teacher beside the student, less with its cache" if live else ""
    return "\n".join([head, *lines, tail])


def _claimed(study, output, jobs):
    """The folders of a study, made and marked as its own."""
    check_count("--jobs", jobs)
    output = Path(output)
    check_folder("--output", output)
    if output.is_dir() and any(output.iterdir()) and not (output / MARKER).is_file():
        raise ValueError(f"--output {output} is not empty and holds no study; name another folder")
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / MARKER, {"study": study.path, "methods": list(study.methods)})
    return Folders(output)


@contextmanager
def _signals():
    """SIGTERM stops as Ctrl-C does; either says how to go on."""

    def stop(number, frame):
        raise Stopped(
            number, "stopped; the runs in progress were saved, and the same command goes on"
        )

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _rate(study, conductor, method):
    try:
        return chosen_rate(study, method, conductor.score)
    except LookupError:
        return None


def _tried(study, conductor):
    """method -> learning rate -> its score with the first seed."""
    if not study.learning_rates:
        return {}
    found = {}
    for method in study.methods:
        scores = {run.rate: conductor.score(run) for run in candidates(study, method)}
        found[method] = {rate: value for rate, value in scores.items() if value is not None}
    return found


def _write_page(path, result: StudyResult, file, command):
    """The page, or a line on why there is none."""
    study = result.study
    differences = []
    for column in main_columns(result):
        found = [(one.name, one.differences.get(column)) for one in result.methods]
        differences.append(
            Differences(
                column_title(column),
                "higher" if METRICS[column[1]].higher_is_better else "lower",
                tuple(
                    Interval(name, d.difference, d.low, d.high, tuple(d.by_seed.values()))
                    for name, d in found
                    if d is not None
                ),
            )
        )
    shown = [*tables(result), costs(result)]
    page = StudyPage(
        baseline=study.baseline,
        answers={name: (one.summary, one.details) for name, one in answers(result).items()},
        differences=differences,
        depths={one.name: mean_depths(one) for one in result.methods if one.depths},
        tables=[(t.title, t.text, PageTable(t.columns, t.rows)) for t in shown],
        notes=result.notes,
        facts=_facts(study),
        file=file,
        command=command,
    )
    lead = f"{len(study.methods)} methods on equal {study.equal}, against {study.baseline}."
    try:
        html = render_page("Did it help?", lead, study_sections(page))
    except ImportError as error:
        logger.warning("no page: %s", error)
        return
    write_page(path, html, "the page")


def _facts(study):
    base = study.base
    student = str(base.get("model_name_or_path") or base.get("student_config"))
    if (blocks := base.get("student_blocks")) is not None:
        student = f"{blocks_in_words(parse_blocks(blocks, 'student_blocks'))} of the teacher"
    facts = {
        "student": student,
        "teacher": str(base.get("teacher_model_name_or_path") or "none"),
        "trained on": str(base.get("train_file") or base.get("dataset_name")),
        "development set": str(base.get("eval_file")),
        "seeds": ", ".join(map(str, study.all_seeds)),
    }
    return {name: value for name, value in facts.items() if value != "None"}
