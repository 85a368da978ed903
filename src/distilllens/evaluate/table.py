"""A finished results folder as samples of every metric, ready for scoring."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distilllens.evaluate.calibration import Calibration
from distilllens.evaluate.results import Results, Unit
from distilllens.evaluate.scores import Samples

ANSWER_METRICS = ("rouge_l", "exact_match", "sbert", "judge", "judge_win")


@dataclass(frozen=True, eq=False)
class ResultTable:
    """A results folder as numbers: ``samples[benchmark][model][metric]``, and the settings.

    Args:
        answers: ``[benchmark][model]`` -> mean length of the answers in tokens, the share of them
            that ended by themselves, and the number of near ties.
        calibration: ``[benchmark][model]``, on the references.
    """

    folder: str
    settings: dict
    samples: dict[str, dict[str, dict[str, Samples]]]
    answers: dict[str, dict[str, dict[str, float]]]
    calibration: dict[str, dict[str, Calibration]]


def read_table(folder: str | Path) -> ResultTable:
    """The numbers of a finished results folder.

    Raises:
        ValueError: the folder holds no evaluation, or an unfinished one.
    """
    results = Results(folder)
    settings = results.settings()
    if settings is None:
        raise ValueError(f"{folder} holds no results; name the --output of a distilllens evaluate")
    samples, answers, calibration = {}, {}, {}
    for benchmark in settings["benchmarks"]:
        for model in settings["models"]:
            by_seed, references = _rows(results, benchmark, model, settings["seeds"])
            samples.setdefault(benchmark, {})[model] = _samples(by_seed, references)
            rows = [row for rows in by_seed for row in rows]
            answers.setdefault(benchmark, {})[model] = _answer_figures(rows)
            bins = results.calibration(benchmark, model)
            calibration.setdefault(benchmark, {})[model] = bins
    return ResultTable(str(folder), settings, samples, answers, calibration)


def _rows(results, benchmark, model, seeds):
    by_seed = [results.answers(Unit(benchmark, model, seed)) for seed in seeds]
    references = results.references(benchmark, model)
    if None in by_seed or references is None:
        raise ValueError(
            f"{results.folder} is not finished: answers of {model} on {benchmark} are missing; "
            "run its distilllens evaluate again, it resumes where it stopped"
        )
    return by_seed, references


def _answer_figures(rows):
    return {
        "mean_tokens": float(np.mean([row["num_tokens"] for row in rows])),
        "finished": float(np.mean([row["finished"] for row in rows])),
        "near_ties": sum(row["near_ties"] for row in rows),
    }


def _samples(by_seed, references):
    numbers = np.array([row["example"] for row in references])
    samples = {}
    for metric in ANSWER_METRICS:
        if all(metric in row for rows in by_seed for row in rows):
            values = [[row[metric] for row in rows] for rows in by_seed]
            values = np.array(values, dtype=float).T  # None becomes NaN
            there = np.isfinite(values)
            if there.any():
                values = np.where(there, values, 0.0)
                samples[metric] = Samples(numbers, values, there.astype(float))
    if "judge" in samples and "judge_reference" in by_seed[0][0]:
        others = [[row["judge_reference"] for row in rows] for rows in by_seed]
        others = np.nan_to_num(np.array(others, dtype=float).T)
        samples["judge_ratio"] = Samples(numbers, 100 * samples["judge"].totals, others)
    tokens = np.array([[row["num_tokens"]] for row in references], dtype=float)
    for metric, key in (("perplexity", "nll"), ("kl", "kl")):
        values = np.array([[row[key]] for row in references], dtype=float)  # None becomes NaN
        if (there := ~np.isnan(values)).any():
            samples[metric] = Samples(numbers, np.where(there, values, 0.0), tokens * there)
    return samples
