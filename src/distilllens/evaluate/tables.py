"""Scores as tables: Markdown that a terminal shows as well, and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path

import numpy as np

from distilllens.evaluate.results import Results, Table, read_table
from distilllens.evaluate.scores import (
    CONFIDENCE,
    METRICS,
    Comparison,
    Score,
    average,
    average_drawn,
    bootstrap,
    compare,
    score,
)
from distilllens.files import write_atomically, write_json

AVERAGE = "average"


@dataclass(frozen=True, eq=False)
class Board:
    """Results of one or more folders side by side.

    Args:
        models: their names.
        scores: metric -> benchmark (and "average") -> model -> ``Score``.
        comparisons: metric -> (first, second) -> benchmark (and "average") -> ``Comparison``.
        answers: benchmark -> model -> figures on the answers and the calibration.
        notes: what a reader of the tables should know, a sentence each.
    """

    models: tuple[str, ...]
    scores: dict[str, dict[str, dict[str, Score]]]
    comparisons: dict[str, dict[tuple[str, str], dict[str, Comparison]]]
    answers: dict[str, dict[str, dict[str, float]]]
    notes: tuple[str, ...]


def board(tables: Sequence[Table]) -> Board:
    """The models of all tables on the benchmarks that all have, each with a name of its own.

    Raises:
        ValueError: no benchmark that all of them have, with the same data.
    """
    shared, notes = _shared_benchmarks(tables)
    labels = _labels(tables)
    samples, answers = {}, {}
    for table, names in zip(tables, labels, strict=True):
        for benchmark in shared:
            for model, found in table.samples[benchmark].items():
                bins = table.calibration[benchmark][model]
                answers.setdefault(benchmark, {})[names[model]] = {
                    **table.answers[benchmark][model],
                    "ece": bins.ece,
                    "overconfidence": bins.overconfidence,
                    "underconfidence": bins.underconfidence,
                }
                samples.setdefault(benchmark, {})[names[model]] = found
    models = tuple(name for names in labels for name in names.values())
    metrics = [m for m in METRICS if any(m in f for row in samples.values() for f in row.values())]
    drawn = {benchmark: _draws(row, at) for at, (benchmark, row) in enumerate(samples.items())}
    return Board(
        models,
        {metric: _scores(metric, models, samples) for metric in metrics},
        {metric: _comparisons(metric, models, drawn) for metric in metrics},
        answers,
        (*notes, *_differences(tables)),
    )


def as_json(board: Board) -> dict:
    """Everything a table shows, unrounded."""
    scores = {
        metric: {
            column: {model: asdict(value) for model, value in row.items()}
            for column, row in columns.items()
        }
        for metric, columns in board.scores.items()
    }
    comparisons = [
        {"metric": metric, "benchmark": column, "first": first, "second": second, **asdict(found)}
        for metric, pairs in board.comparisons.items()
        for (first, second), row in pairs.items()
        for column, found in row.items()
    ]
    return {
        "scores": scores,
        "comparisons": comparisons,
        "answers": board.answers,
        "notes": list(board.notes),
    }


def as_markdown(board: Board, metrics: Sequence[str] | None = None) -> str:
    """The tables: scores with errors, then who is better beyond noise, metric by metric."""
    metrics = list(board.scores) if metrics is None else metrics
    parts = [
        "Mean ± standard error over examples; in brackets, standard error over seeds.",
        *(_score_table(board, metric) for metric in metrics),
    ]
    if len(board.models) > 1:
        parts.append(
            f"First - second, with the {100 * CONFIDENCE:g} % interval of a paired bootstrap over "
            "examples."
        )
        parts += [_comparison_table(board, metric) for metric in metrics]
    parts.append(_answer_table(board))
    return "\n\n".join([*parts, *board.notes]) + "\n"


def write_scores(results: Results):
    """Write ``scores.json`` and ``scores.md`` of a finished results folder."""
    table = read_table(results.folder)
    found = board([table])
    write_json(results.folder / "scores.json", as_json(found))
    write_atomically(results.folder / "scores.md", as_markdown(found))


def _draws(row, stream):
    """metric -> model -> Drawn, on the examples that all models of a benchmark have."""
    both = reduce(np.intersect1d, [s.examples for found in row.values() for s in found.values()])
    keys = [(metric, model) for model, found in row.items() for metric in found]
    drawn = bootstrap([(metric, row[model][metric].only(both)) for metric, model in keys], stream)
    found = {}
    for (metric, model), one in zip(keys, drawn, strict=True):
        found.setdefault(metric, {})[model] = one
    return found


def _comparisons(metric, models, drawn):
    pairs = {}
    for number, second in enumerate(models):
        for first in models[number + 1 :]:
            columns = {
                benchmark: (found[metric][first], found[metric][second])
                for benchmark, found in drawn.items()
                if {first, second} <= found.get(metric, {}).keys()
            }
            if len(columns) > 1:
                columns[AVERAGE] = tuple(map(average_drawn, zip(*columns.values(), strict=True)))
            if columns:
                pairs[first, second] = {c: compare(metric, *both) for c, both in columns.items()}
    return pairs


def _scores(metric, models, samples):
    rows = {
        benchmark: {m: score(metric, found[metric]) for m, found in row.items() if metric in found}
        for benchmark, row in samples.items()
    }
    if len(rows) > 1:
        everywhere = [m for m in models if all(m in row for row in rows.values())]
        rows[AVERAGE] = {m: average([row[m] for row in rows.values()]) for m in everywhere}
    return rows


def _score_table(board, metric):
    columns, digits = board.scores[metric], METRICS[metric].digits
    cells = [[METRICS[metric].title, *columns]]
    for model in board.models:
        row = [columns[column].get(model) for column in columns]
        if any(row):
            cells.append([model, *(_cell(value, digits) for value in row)])
    return _markdown(cells)


def _cell(value, digits):
    if value is None:
        return "-"
    text = f"{value.mean:.{digits}f}"
    if value.error_over_examples is not None:
        text += f" ± {value.error_over_examples:.{digits}f}"
    if value.error_over_seeds is not None:
        text += f" ({value.error_over_seeds:.{digits}f})"
    return text


def _comparison_table(board, metric):
    found, digits = board.comparisons[metric], METRICS[metric].digits
    columns = list(dict.fromkeys(column for row in found.values() for column in row))
    cells = [[METRICS[metric].title, *columns]]
    for (first, second), row in found.items():
        cells.append(
            [
                f"{first} - {second}",
                *(
                    f"{c.difference:+.{digits}f} [{c.low:+.{digits}f}, {c.high:+.{digits}f}] "
                    f"{c.verdict}"
                    if (c := row.get(column))
                    else "-"
                    for column in columns
                ),
            ]
        )
    return _markdown(cells)


def _answer_table(board):
    heads = ["answers", "model", "tokens, mean", "ended by themselves", "near ties"]
    cells = [[*heads, "ECE", "too sure", "not sure enough"]]
    for benchmark, row in board.answers.items():
        for model, about in row.items():
            calibration = ("ece", "overconfidence", "underconfidence")
            cells.append(
                [
                    benchmark,
                    model,
                    f"{about['mean_tokens']:.1f}",
                    f"{100 * about['finished']:.1f} %",
                    str(about["near_ties"]),
                    *(f"{about[name]:.4f}" for name in calibration),
                ]
            )
    return _markdown(cells)


def _markdown(cells):
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _shared_benchmarks(tables):
    first, notes, shared = tables[0].settings["benchmarks"], [], []
    for name in dict.fromkeys(n for table in tables for n in table.settings["benchmarks"]):
        hashes = [table.settings["benchmarks"].get(name, {}).get("sha256") for table in tables]
        if None in hashes:
            notes.append(f"{name} is left out: not every folder has it.")
        elif len(set(hashes)) > 1:
            notes.append(f"{name} is left out: the folders were made from different files.")
        else:
            shared.append(name)
    if not shared:
        raise ValueError(
            f"the folders {', '.join(t.folder for t in tables)} share no benchmark: the first has "
            f"{', '.join(first)}"
        )
    return shared, notes


def _labels(tables):
    """For each table model -> name; a name that two folders have gets its folder's."""
    every = [model for table in tables for model in table.settings["models"]]
    return [
        {
            model: f"{Path(table.folder).name}/{model}" if every.count(model) > 1 else model
            for model in table.settings["models"]
        }
        for table in tables
    ]


def _differences(tables):
    notes = []
    for key in ("decoding", "seeds", "chat"):
        values = [table.settings[key] for table in tables]
        if any(value != values[0] for value in values):
            said = "; ".join(f"{t.folder}: {v}" for t, v in zip(tables, values, strict=True))
            notes.append(f"The folders differ in {key} ({said}).")
    return notes
