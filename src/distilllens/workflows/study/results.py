"""A study's finished runs as numbers: scores over seeds, differences, costs and distances."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import NotRequired, TypedDict

import numpy as np

from distilllens.evaluate.scores import METRICS, Samples, score
from distilllens.evaluate.table import ResultTable, read_table
from distilllens.evaluate.training_seeds import (
    SeedDifference,
    SeedMean,
    average_pairs,
    compare_over_seeds,
    draw_pairs,
    mean_over_seeds,
)
from distilllens.stored import read_stored
from distilllens.workflows.study.matrix import Study
from distilllens.workflows.study.runs import ANSWER, TRAIN, Folders, Run, Task

DEV, AVERAGE = "development set", "average"
# Of several measures of one thing, those that a study shows.
_ON_DEV = ("log_perplexity", "kl")
_ON_ANSWERS = ("rouge_l", "exact_match", "sbert")


class Cost(TypedDict):
    """What a run cost, as ``measures.cost_of_run`` tells."""

    steps: int
    seconds: float | None
    processor_seconds: float | None
    load: float | None
    flops: int | None
    peak_memory: NotRequired[int | None]  # since this was measured


class Depths(TypedDict):
    """A run's distance from the teacher, as ``measures.by_depth`` tells."""

    tokens: int
    pairs: list[list[int]]
    jsd: list[float]


@dataclass(frozen=True, eq=False)
class MethodResult:
    """The runs of a method.

    Args:
        rate: the learning rate that was chosen; None if its recipe has it.
        seeds: those of the runs that are done.
        scores: (benchmark, metric) -> ``SeedMean``.
        differences: the same -> ``SeedDifference`` from the baseline; none of the baseline itself.
        costs: seed -> ``Cost``.
        depths: seed -> ``Depths``, where there is a teacher.
        calibration: mean over seeds of the expected calibration error on the development set.
    """

    name: str
    rate: float | None
    seeds: tuple[int, ...]
    scores: dict[tuple[str, str], SeedMean]
    differences: dict[tuple[str, str], SeedDifference]
    costs: dict[int, Cost]
    depths: dict[int, Depths]
    calibration: SeedMean


@dataclass(frozen=True, eq=False)
class StudyResult:
    """A study as far as it is done.

    Args:
        columns: (benchmark, metric), in order; the last of several benchmarks is their average.
        tried: method -> learning rate -> its score on the development set.
        notes: sentences on what differs from equal terms, and on what is missing.
    """

    study: Study
    methods: tuple[MethodResult, ...]
    columns: tuple[tuple[str, str], ...]
    tried: dict[str, dict[float, float]]
    notes: tuple[str, ...]

    @property
    def baseline(self) -> MethodResult:
        """The method that the others are compared with."""
        return next(one for one in self.methods if one.name == self.study.baseline)


def read_results(
    study: Study, folders: Folders, rates: Mapping[str, float | None], notes: tuple[str, ...] = ()
) -> StudyResult:
    """The numbers of all runs that are done.

    Args:
        rates: method -> the learning rate of its runs that are compared.
        notes: sentences to begin with.

    Raises:
        DamagedFile: results that have changed since they were written.
    """
    samples, tables, seeds = {}, {}, {}
    for method, rate in rates.items():
        runs = {seed: Run(method, seed, rate) for seed in study.seeds[method]}
        kinds = (TRAIN, ANSWER) if study.evaluate else (TRAIN,)
        done = {s: r for s, r in runs.items() if all(Task(r, k).is_done(folders) for k in kinds)}
        seeds[method] = tuple(done)
        tables[method] = {seed: read_table(folders.dev(run)) for seed, run in done.items()}
        for seed, run in done.items():
            found = development_samples(tables[method][seed])
            if study.evaluate:
                found |= _samples(read_table(folders.answers(run)))
            for column, one in found.items():
                samples.setdefault(column, {}).setdefault(method, {})[seed] = one
    columns = _columns(samples)
    pairs = _pairs(study, samples, columns)
    results = []
    for method, rate in rates.items():
        runs = {seed: Run(method, seed, rate) for seed in seeds[method]}
        if not runs:
            continue
        bins = [
            reduce(add, (one for by_model in t.calibration.values() for one in by_model.values()))
            for t in tables[method].values()
        ]
        results.append(
            MethodResult(
                method,
                rate,
                seeds[method],
                _scores(method, samples, columns),
                {c: compare_over_seeds(c[1], p) for c, p in pairs.get(method, {}).items()},
                {seed: read_stored(folders.cost(run), Cost) for seed, run in runs.items()},
                {
                    seed: read_stored(folders.depths(run), Depths)
                    for seed, run in runs.items()
                    if folders.depths(run).is_file()
                },
                mean_over_seeds(dict(zip(runs, (one.ece for one in bins), strict=True))),
            )
        )
    return StudyResult(
        study,
        tuple(results),
        columns,
        {},
        (*notes, *_unmeasured(study), *(_unequal(results) if study.equal == "steps" else ())),
    )


def development_samples(table: ResultTable) -> dict[tuple[str, str], Samples]:
    """(``DEV``, metric) -> samples of the one model of a table, of all its files together."""
    found = {}
    for metric in _ON_DEV:
        parts = [
            by_metric[metric]
            for by_model in table.samples.values()
            for by_metric in by_model.values()
            if metric in by_metric
        ]
        if parts:
            first = np.cumsum([0, *(1 + int(part.examples.max()) for part in parts)])
            found[DEV, metric] = Samples(
                np.concatenate(
                    [part.examples + at for part, at in zip(parts, first, strict=False)]
                ),
                np.concatenate([part.totals for part in parts]),
                np.concatenate([part.counts for part in parts]),
            )
    return found


def _samples(table: ResultTable) -> dict[tuple[str, str], Samples]:
    """(benchmark, metric) -> samples of the answers of the one model of a table."""
    found = {}
    for benchmark, by_model in table.samples.items():
        (by_metric,) = by_model.values()
        for metric in _ON_ANSWERS:
            if metric in by_metric:
                found[benchmark, metric] = by_metric[metric]
    return found


def _columns(samples):
    """The development set first, then each metric's benchmarks and their average."""
    metrics = [m for m in METRICS if any(metric == m for _, metric in samples)]
    columns = [(DEV, metric) for metric in metrics if (DEV, metric) in samples]
    for metric in metrics:
        names = [name for name, m in samples if m == metric and name != DEV]
        columns += [(name, metric) for name in names]
        columns += [(AVERAGE, metric)] if len(names) > 1 else []
    return tuple(columns)


def _pairs(study, samples, columns):
    """method -> column -> the pairs of runs on drawn examples."""
    found = {}
    for method in study.methods:
        if method == study.baseline:
            continue
        mine = {}
        for stream, column in enumerate(columns):
            runs = [samples.get(column, {}).get(name, {}) for name in (method, study.baseline)]
            if runs[0].keys() & runs[1].keys():
                mine[column] = draw_pairs(column[1], *runs, stream)
        for _, metric in [column for column in columns if column[0] == AVERAGE]:
            parts = [
                p for (name, m), p in mine.items() if m == metric and name not in (DEV, AVERAGE)
            ]
            wanted = [c for c in columns if c[1] == metric and c[0] not in (DEV, AVERAGE)]
            if len(parts) == len(wanted):
                mine[AVERAGE, metric] = average_pairs(parts)
        if mine:
            found[method] = mine
    return found


def _scores(method, samples, columns):
    found = {}
    for column in columns:
        by_seed = samples.get(column, {}).get(method, {})
        if by_seed:
            values = {seed: score(column[1], one).mean for seed, one in by_seed.items()}
            found[column] = mean_over_seeds(values)
    for column in columns:
        if column[0] == AVERAGE:
            parts = [
                one
                for (name, m), one in found.items()
                if m == column[1] and name not in (DEV, AVERAGE)
            ]
            seeds = set.intersection(*(set(one.by_seed) for one in parts)) if parts else set()
            if seeds:
                found[column] = mean_over_seeds(
                    {s: sum(one.by_seed[s] for one in parts) / len(parts) for s in sorted(seeds)}
                )
    return found


def _unmeasured(study):
    """A sentence on the distance from the teacher, where it is not measured."""
    if study.common_teacher or not study.has_teachers:
        return ()
    return (
        "The methods do not share one teacher with the students' tokenizer, so neither "
        "KL(teacher ‖ student) nor the distance by depth is measured.",
    )


def _unequal(results):
    """Sentences on runs that did not cost the same where they should have."""
    steps = {one.name: sorted({cost["steps"] for cost in one.costs.values()}) for one in results}
    if len({tuple(each) for each in steps.values()}) <= 1:
        return ()
    listed = ", ".join(f"{name} {'/'.join(map(str, each))}" for name, each in steps.items())
    return (f"The numbers of steps differ: {listed}.",)
