"""The runs of a study: where their files lie, and which one is next."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from distilllens.workflows.study.matrix import Study

TRAIN, ANSWER = "train", "answer"


class Run(NamedTuple):
    """One training run of a study; ``rate`` is None where its recipe has the learning rate."""

    method: str
    seed: int
    rate: float | None = None

    @property
    def name(self) -> str:
        """Its folder below those of the study: ``kd/seed-1``, or ``kd/rate-0.001-seed-1``."""
        rate = "" if self.rate is None else f"rate-{_short(self.rate)}-"
        return f"{self.method}/{rate}seed-{self.seed}"


def _short(rate):
    """A number in six digits where they tell it, else in all: other rates, other names."""
    return f"{rate:g}" if float(f"{rate:g}") == rate else repr(rate)


class Folders(NamedTuple):
    """The folders of a study.

    study.json            whose folder this is
    recipes/RUN.yaml      the recipe of a run, for distilllens train
    runs/RUN              the run, as distilllens train leaves it
    results/RUN/dev       the development set, as distilllens evaluate leaves it
    results/RUN/answers   the benchmarks, likewise
    results/RUN/*.json    the run's cost, and its divergence from the teacher by depth
    logs/RUN.txt          what the processes of a run printed
    caches/KIND           the teacher's states, for all runs
    trials/KIND/METHOD.json  seconds and flops of a step
    """

    output: Path

    def recipe(self, run: Run) -> Path:
        """The recipe of a run."""
        return self.output / "recipes" / f"{run.name}.yaml"

    def run(self, run: Run) -> Path:
        """The output_dir of a run."""
        return self.output / "runs" / run.name

    def dev(self, run: Run) -> Path:
        """Its results on the development set."""
        return self.output / "results" / run.name / "dev"

    def answers(self, run: Run) -> Path:
        """Its results on the benchmarks."""
        return self.output / "results" / run.name / "answers"

    def cost(self, run: Run) -> Path:
        """What it cost."""
        return self.output / "results" / run.name / "cost.json"

    def depths(self, run: Run) -> Path:
        """Its divergence from the teacher by depth."""
        return self.output / "results" / run.name / "depths.json"

    def note(self, task: Task) -> Path:
        """What a task was made of; written when it is done."""
        return self.output / "results" / task.run.name / f"{task.kind}.json"

    def trial(self, method: str, *, live: bool) -> Path:
        """Seconds and flops of a step, with the teacher beside the student or without."""
        return self.output / "trials" / ("live" if live else "cached") / f"{method}.json"

    def log(self, name: str) -> Path:
        """What the processes of a run, a cache or a trial printed."""
        return self.output / "logs" / f"{name}.txt"


class Task(NamedTuple):
    """What one process does: train a run and score it, or let it answer the benchmarks."""

    run: Run
    kind: str

    def is_done(self, folders: Folders) -> bool:
        """Whether it has left its note, which it leaves last."""
        return folders.note(self).is_file()


def candidates(study: Study, method: str) -> list[Run]:
    """The runs with a method's first seed, one for each learning rate."""
    seed = study.seeds[method][0]
    return [Run(method, seed, rate) for rate in study.learning_rates or (None,)]


def chosen_rate(study: Study, method: str, score: Callable[[Run], float | None]) -> float | None:
    """The learning rate with the lowest score on the development set; None if none is chosen.

    Args:
        score: a run's cross-entropy or KL; None while it is not scored.

    Raises:
        LookupError: the candidates are not all scored.
        ValueError: all of them diverged.
    """
    if not study.learning_rates:
        return None
    found = [(score(run), run.rate) for run in candidates(study, method)]
    if any(value is None for value, _ in found):
        raise LookupError(method)
    if not any(math.isfinite(value) for value, _ in found):
        rates = ", ".join(f"{rate:g}" for rate in study.learning_rates)
        raise ValueError(
            f"{study.path}: {method} diverged with each of learning_rates {rates}; name lower ones"
        )
    # Of equal scores, the lower rate.
    return min((value, rate) for value, rate in found if math.isfinite(value))[1]


def runs_of(study: Study, method: str, rate: float | None) -> list[Run]:
    """The runs of a method that are compared."""
    return [Run(method, seed, rate) for seed in study.seeds[method]]


def tasks(
    study: Study, score: Callable[[Run], float | None], *, has_answers: bool
) -> Iterator[Task]:
    """All tasks that are known by now, in the order in which they should be done.

    Every method has its first seed before any has its second. Which runs come after the first seed
    is known when the candidates are scored.

    Args:
        has_answers: whether there are benchmarks.
    """
    for method in study.methods:
        yield from (Task(run, TRAIN) for run in candidates(study, method))
    rates = {}
    for method in study.methods:
        try:
            rates[method] = chosen_rate(study, method, score)
        except LookupError:
            continue
    for seed in study.all_seeds:
        for method, rate in rates.items():
            if seed in study.seeds[method]:
                run = Run(method, seed, rate)
                yield Task(run, TRAIN)
                if has_answers:
                    yield Task(run, ANSWER)


def number_of_tasks(study: Study, *, has_answers: bool) -> int:
    """How many there are once all learning rates are chosen."""
    compared = sum(map(len, study.seeds.values()))
    others = len(study.methods) * max(0, len(study.learning_rates) - 1)
    return compared * (1 + has_answers) + others
