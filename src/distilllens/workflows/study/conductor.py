"""The processes of a study: begun in order, waited for, and ended together."""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, TypedDict

from distilllens.evaluate.scores import score as score_of
from distilllens.evaluate.table import read_table
from distilllens.files import write_atomically
from distilllens.stored import read_stored
from distilllens.train import run_folder
from distilllens.train.progress import duration
from distilllens.workflows.recipe_file import recipe_text
from distilllens.workflows.study import worker
from distilllens.workflows.study.caches import SharedCaches
from distilllens.workflows.study.live import EVERY, LiveLines
from distilllens.workflows.study.matrix import Study
from distilllens.workflows.study.notes import Notes
from distilllens.workflows.study.results import DEV, development_samples
from distilllens.workflows.study.runs import (
    TRAIN,
    Folders,
    Run,
    Task,
    number_of_tasks,
    tasks,
)
from distilllens.workflows.study.terms import Terms

logger = logging.getLogger(__name__)
_METRICS = {"cross_entropy": "log_perplexity", "kl": "kl"}


@dataclass(frozen=True, eq=False)
class _Process:
    """A process that works; ``end`` is the connection on which it says how it went."""

    name: str
    process: Any
    end: Any
    log: Path
    began: float
    task: Task | None = None


class _Cost(TypedDict):
    seconds: float | None


class Conductor:
    """Does what is left of a study.

    Args:
        jobs: how many runs at a time, each in a process with its share of the cores.
    """

    def __init__(self, study: Study, folders: Folders, jobs: int):
        self.study, self.folders, self.jobs = study, folders, jobs
        self.terms, self.caches = Terms(study, folders), SharedCaches(study, folders)
        self.notes = Notes(study, folders, self.terms)
        self._running: list[_Process] = []
        self._failed: list[str] = []
        self._live = LiveLines()
        methods = multiprocessing.get_all_start_methods()
        # A process that has imported torch once, and is copied for every run.
        kind = "forkserver" if "forkserver" in methods else "spawn"
        self._context = multiprocessing.get_context(kind)
        if kind == "forkserver":
            self._context.set_forkserver_preload([worker.__name__])
            _begin_forkserver()
        self._threads = 0
        if jobs > 1 and "OMP_NUM_THREADS" not in os.environ:
            self._threads = max(1, (os.cpu_count() or 1) // jobs)

    def __call__(self) -> list[Task]:
        """Do all tasks; returns those for which ``max_hours`` did not suffice.

        Raises:
            ValueError: a run that failed, with its log; the runs beside it are finished first.
            KeyboardInterrupt: after the runs in progress were saved.
        """
        with self._together():
            methods = set(self.study.methods)
            if self.study.equal == "steps":  # else the numbers of steps are not known yet
                self._compare_notes()
                methods = {task.run.method for task in self._left() if self._trains(task)}
            self.caches.fill(methods, self._alone)
            self.terms.settle(self.fields_of, self._alone)
            self._compare_notes()
            while not self._failed:
                for task in self._next():
                    self._begin(task)
                if not self._running:
                    break
                self._wait()
            while self._running:
                self._wait()
        self._check_failed()
        return self._left()

    def _compare_notes(self):
        """Refuse what was done with another study; score again what another teacher measured."""
        self.notes.check(self._known())
        self.notes.forget_other_teachers(self._known())

    def _trains(self, task):
        """Whether a task has steps left to take, and not only scores to make."""
        return task.kind == TRAIN and not run_folder.is_finished(self.folders.run(task.run))

    def trials(self) -> dict:
        """Method -> what a step of it costs (``Terms.trials``)."""
        with self._together():
            return self.terms.trials(self.fields_of, self._alone)

    def fields_of(self, method: str) -> dict:
        """The fields of a method's runs, but for seed, folder and a chosen learning rate."""
        fields = self.terms.applied(method, self.study.recipe(method))
        if (cache := self.caches.of(method)) is not None and cache.is_dir():
            fields["teacher_cache"] = str(cache)
        return fields

    def recipe(self, run: Run) -> dict:
        """The recipe of a run."""
        rate = {} if run.rate is None else {"learning_rate": run.rate}
        folder = {"output_dir": str(self.folders.run(run))}
        fields = {**self.fields_of(run.method), **rate, "seed": run.seed, **folder}
        cache = self.caches.of(run.method)
        if cache is not None and run_folder.is_finished(self.folders.run(run)):
            fields["teacher_cache"] = str(cache)  # it had one, which may be gone
        return fields

    def score(self, run: Run) -> float | None:
        """A run's score on the development set, by which learning rates are chosen.

        None for a run that is not done, or was not scored so; infinity for one that diverged.
        """
        task = Task(run, TRAIN)
        if not task.is_done(self.folders):
            return None
        if "diverged" in self.notes.of(task):
            return math.inf
        metric = _METRICS[self.study.choose_by]
        samples = development_samples(read_table(self.folders.dev(run))).get((DEV, metric))
        return None if samples is None else score_of(metric, samples).mean

    def _known(self):
        """The tasks that are known by now, in order."""
        found = tasks(self.study, self.score, has_answers=bool(self.study.evaluate))
        return list(dict.fromkeys(found))

    def _left(self):
        """Those that are not done."""
        return [task for task in self._known() if not task.is_done(self.folders)]

    def _next(self) -> list[Task]:
        """The tasks to begin now."""
        busy = {process.task for process in self._running}
        ready = [
            task
            for task in self._left()
            if task not in busy
            and (task.kind == TRAIN or Task(task.run, TRAIN).is_done(self.folders))
        ]
        hours = self.study.max_hours
        if ready and hours is not None and self._spent_seconds() >= 3600 * hours:
            ready = [task for task in ready if not self._trains(task)]  # what is trained is scored
        chosen = []
        for task in ready:
            if len(busy) + len(chosen) < self.jobs and not self._waits(task, [*busy, *chosen]):
                chosen.append(task)
        return chosen

    def _waits(self, task, others):
        """Whether another run may still be filling the cache that a recipe names.

        A study fills its own before the first run.
        """
        cache = self._named_cache(task)
        if cache is None or cache not in map(self._named_cache, others):
            return False
        done = (each for each in self._known() if each.is_done(self.folders))
        return cache not in map(self._named_cache, done)

    def _named_cache(self, task):
        """The cache that a run's recipe names; None for none, for the study's, and for answers."""
        if task.kind != TRAIN or self.caches.of(task.run.method) is not None:
            return None
        return self.study.recipe(task.run.method).get("teacher_cache")

    def _spent_seconds(self):
        files = (self.folders.output / "results").rglob("cost.json")
        return sum(read_stored(file, _Cost)["seconds"] or 0.0 for file in files)

    def _begin(self, task):
        fields = self.recipe(task.run)
        recipe = self.folders.recipe(task.run)
        recipe.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(recipe, recipe_text(fields))
        given = (task, self.study, fields, self.folders, self.notes.begun(task))
        self._start(task.run.name, worker.do, *given, task=task)

    def _start(self, name: str, function: Callable, *arguments, task: Task | None = None):
        ours, theirs = self._context.Pipe(duplex=False)
        log = self.folders.log(name)
        log.parent.mkdir(parents=True, exist_ok=True)
        process = self._context.Process(
            target=worker.work, args=(function, arguments, log, self._threads, theirs)
        )
        process.start()
        theirs.close()
        began = time.perf_counter()
        self._running.append(_Process(name, process, ours, log, began, task))

    def _alone(self, name, function, *arguments):
        """Do something in a process of its own, and wait for it.

        Raises:
            ValueError: it failed.
        """
        self._start(name, function, *arguments)
        self._wait()
        self._check_failed()

    def _check_failed(self):
        if self._failed:
            raise ValueError(self._failed[0])

    def _wait(self):
        """Wait until a process ends, and say how it went."""
        ends = [each.end for each in self._running]
        while not (ended := wait(ends, EVERY if self._live.is_shown else None)):
            self._live.show({each.name: each.log for each in self._running})
        self._live.clear()
        for each in [process for process in self._running if process.end in ended]:
            try:
                reason = each.end.recv()
            except EOFError:
                each.process.join()
                reason = f"its process ended with status {each.process.exitcode}"
            each.process.join()
            self._running.remove(each)
            if reason is not None:
                self._failed.append(f"{each.name}: {reason} (its log: {each.log})")
            elif each.task is not None:
                self._say(each)

    def _say(self, ended):
        total = number_of_tasks(self.study, has_answers=bool(self.study.evaluate))
        what = "answered the benchmarks"
        if ended.task.kind == TRAIN:
            score = self.study.choose_by.replace("_", "-").replace("kl", "KL")
            value = self.score(ended.task.run)
            what = f"trained; {score} {value:.4f} on the development set"
            what = "diverged" if math.isinf(value) else what
        took = duration(time.perf_counter() - ended.began)
        done = sum(task.is_done(self.folders) for task in self._known())
        logger.info("%d of %d  %s %s, in %s", done, total, ended.name, what, took)

    @contextmanager
    def _together(self):
        """At an error or interruption, ask the processes to save what they have; wait for them."""
        try:
            yield
        except BaseException:
            for each in self._running:
                each.process.terminate()
            for each in self._running:
                each.process.join()
            raise
        finally:
            self._live.clear()


def _begin_forkserver():
    """Begin the process that is copied, deaf to Ctrl-C, which a terminal sends to all processes.

    It would end with a traceback of its imports; runs are ended by ``_together``.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)
