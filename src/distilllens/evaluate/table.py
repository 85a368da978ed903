"""A finished results folder as samples of every metric, ready for scoring."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from distilllens.evaluate.calibration import Calibration
from distilllens.evaluate.harness_samples import HarnessTable, read_harness
from distilllens.evaluate.results import REFERENCES, Results, Unit
from distilllens.evaluate.scores import Samples
from distilllens.stored import DamagedFile

_OF_LIKELIHOOD = ("perplexity", "log_perplexity")
ANSWER_METRICS = ("rouge_l", "exact_match", "sbert", "judge", "judge_win")


@dataclass(frozen=True, eq=False)
class ResultTable:
    """A results folder as numbers: ``samples[benchmark][model][metric]``, and the settings.

    Args:
        answers: ``[benchmark][model]`` -> mean length of the answers in tokens, the share of them
            that ended by themselves, and the number of near ties; empty without answers.
        calibration: ``[benchmark][model]``, on the references.
        is_ascii: whether no answer has another character.
        teacher: ``[benchmark][metric]``, the likelihood of the references under the teacher.
        harness: what lm-evaluation-harness said.
    """

    folder: str
    settings: dict
    samples: dict[str, dict[str, dict[str, Samples]]]
    answers: dict[str, dict[str, dict[str, float]]]
    calibration: dict[str, dict[str, Calibration]]
    is_ascii: bool = True
    teacher: dict[str, dict[str, Samples]] = field(default_factory=dict)
    harness: HarnessTable = field(default_factory=HarnessTable)


def read_table(folder: str | Path) -> ResultTable:
    """The numbers of a finished results folder; rows are joined by their examples.

    Raises:
        ValueError: the folder holds no evaluation, or an unfinished one.
        DamagedFile: a file has changed since it was finished, or does not hold what was written.
    """
    results = Results(folder)
    settings = results.settings()
    if settings is None:
        raise ValueError(f"{folder} holds no results; name the --output of a distilllens evaluate")
    results.is_sealed()
    samples, answers, calibration, is_ascii, teacher = {}, {}, {}, True, {}
    for benchmark in settings["benchmarks"]:
        for model in settings["models"]:
            by_seed, references = _rows(results, benchmark, model, settings)
            samples.setdefault(benchmark, {})[model] = _samples(by_seed, references)
            rows = [row for rows in by_seed for row in rows]
            answers.setdefault(benchmark, {})[model] = _answer_figures(rows) if rows else {}
            is_ascii = is_ascii and all(row["answer"].isascii() for row in rows)
            bins = results.calibration(benchmark, model)
            calibration.setdefault(benchmark, {})[model] = bins
            # Every model's rows have the teacher's likelihood, of what both contexts hold.
            found = _per_token(references, "teacher_nll")
            before = teacher.get(benchmark, {}).get("perplexity")
            if found and (before is None or found.counts.sum() > before.counts.sum()):
                teacher[benchmark] = dict.fromkeys(_OF_LIKELIHOOD, found)
    harness = read_harness(results.folder, settings)
    return ResultTable(
        str(folder), settings, samples, answers, calibration, is_ascii, teacher, harness
    )


def _rows(results, benchmark, model, settings):
    """The answers of each seed and the references of one model, all to the same examples."""
    expected = settings["benchmarks"][benchmark]
    left_out = expected.get("left_out", 0)
    numbers = None if left_out else range(expected["examples"])
    references = results.references(benchmark, model, numbers)
    numbers = {row["example"] for row in references or ()}
    units = [Unit(benchmark, model, seed) for seed in settings["seeds"]]
    by_seed = [references and results.answers(unit, numbers) for unit in units]
    if not references or not all(by_seed):
        missing = "answers" if references else "reference likelihoods"
        raise ValueError(
            f"{results.folder} is not finished: {missing} of {model} on {benchmark} are missing; "
            "run its distilllens evaluate again, it resumes where it stopped"
        )
    if len(numbers) != expected["examples"] or max(numbers) >= len(numbers) + left_out:
        raise DamagedFile(
            f"{results.folder / benchmark / model / REFERENCES} has {len(numbers)} examples up to "
            f"number {max(numbers)}, but the evaluation has {expected['examples']}; delete the "
            "file and repeat this folder's distilllens evaluate, which makes it again"
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
        if by_seed and all(metric in row for rows in by_seed for row in rows):
            values = [[row[metric] for row in rows] for rows in by_seed]
            values = np.array(values, dtype=float).T  # None becomes NaN
            there = np.isfinite(values)
            if there.any():
                values = np.where(there, values, 0.0)
                samples[metric] = Samples(numbers, values, there.astype(float))
    if "judge" in samples and all("judge_reference" in row for rows in by_seed for row in rows):
        others = [[row["judge_reference"] for row in rows] for rows in by_seed]
        others = np.nan_to_num(np.array(others, dtype=float).T)
        samples["judge_ratio"] = Samples(numbers, 100 * samples["judge"].totals, others)
    for metric, key in (*((name, "nll") for name in _OF_LIKELIHOOD), ("kl", "kl")):
        if found := _per_token(references, key):
            samples[metric] = found
    return samples


def _per_token(references, key):
    """Samples of a sum over each reference's tokens; None if no reference has a value."""
    values = np.array([[row.get(key)] for row in references], dtype=float)  # None becomes NaN
    there = ~np.isnan(values)
    if not there.any():
        return None
    numbers = np.array([row["example"] for row in references])
    tokens = np.array([[row["num_tokens"]] for row in references], dtype=float)
    return Samples(numbers, np.where(there, values, 0.0), tokens * there)
