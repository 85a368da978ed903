"""One run of a study, in a process of its own: trained, scored, and asked."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from distilllens.errors import one_line
from distilllens.files import open_for_writing, write_json
from distilllens.train import run_folder
from distilllens.train.finite import NotFinite
from distilllens.workflows.evaluate import evaluate
from distilllens.workflows.quiet import hidden_library_bars
from distilllens.workflows.run_arguments import build
from distilllens.workflows.run_summary import peak_memory
from distilllens.workflows.study.matrix import Study
from distilllens.workflows.study.measures import (
    Begun,
    by_depth,
    cost_of_run,
    device_of,
)
from distilllens.workflows.study.plans import answers_plan, development_plan
from distilllens.workflows.study.runs import ANSWER, Folders, Task
from distilllens.workflows.train import run_job


def work(function: Callable, arguments: tuple, log: Path, threads: int, end):
    """Call a function in this process; ``end``, a connection, gets None, or why it failed.

    Args:
        log: the file to which everything that is printed is appended.
        threads: of torch; 0 leaves them as they are.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGTERM, _stop)  # the study is stopped: leave nothing half-written
    file = open_for_writing(log, os.O_APPEND)
    for number in (1, 2):  # libraries write to the descriptors, some from other languages
        os.dup2(file, number)
    os.close(file)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    logging.getLogger("distilllens").setLevel(logging.INFO)
    if threads:
        torch.set_num_threads(threads)
    reason = None
    try:
        with hidden_library_bars():
            function(*arguments)
    except KeyboardInterrupt as stop:
        reason = str(stop) or "stopped"
    except Exception as error:
        traceback.print_exc()
        known = isinstance(error, ValueError | OSError | ImportError)
        reason = one_line(error) if known else f"{type(error).__name__}: {one_line(error)}"
    end.send(reason)


def do(
    task: Task,
    study: Study,
    fields: Mapping[str, Any],
    folders: Folders,
    made_of: Mapping[str, Any],
):
    """Do a task in this process; its note is written last.

    Args:
        fields: the recipe of the run.
        made_of: what the note says.

    Raises:
        ValueError, OSError, ImportError: as ``run_job`` and ``evaluate``.
    """
    run = task.run
    if task.kind == ANSWER:
        evaluate(answers_plan(study, fields, folders.run(run), folders.answers(run)))
    else:
        try:
            _train(run, study, fields, folders)
        except NotFinite as error:
            if len(study.learning_rates) < 2 or run.seed != study.seeds[run.method][0]:
                raise
            # A rate that was tried and is too high: that is an answer, too.
            made_of = {**made_of, "diverged": one_line(error)}
    folders.note(task).parent.mkdir(parents=True, exist_ok=True)
    write_json(folders.note(task), made_of)


def _train(run, study, fields, folders):
    was_finished = run_folder.is_finished(folders.run(run))
    step = 0 if was_finished else _first_step(folders.run(run))
    used = time.process_time()
    run_job(*build(fields))
    used = time.process_time() - used
    peak = peak_memory(torch.device(device_of(fields) or torch.accelerator.current_accelerator()))
    begun = Begun(0) if was_finished else Begun(step, used, peak)
    if not study.keep_checkpoints:
        for checkpoint in folders.run(run).glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
    evaluate(development_plan(study, fields, folders.run(run), folders.dev(run)))
    teacher = study.common_teacher
    if teacher and (found := by_depth(fields, folders.run(run), teacher)) is not None:
        write_json(folders.depths(run), found)
    if not (was_finished and folders.cost(run).is_file()):  # else it is scored again
        write_json(folders.cost(run), cost_of_run(fields, folders.run(run), begun))


def _first_step(folder):
    """The step from which a run goes on."""
    checkpoint = run_folder.last_whole(folder) if folder.is_dir() else None
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0


def _stop(number, frame):
    raise KeyboardInterrupt


def _end_with_parent():
    """End this process when the study's ends: a run without it would hold its folder."""
    multiprocessing.parent_process().join()
    os._exit(1)
