"""Scores as Markdown tables that are readable in a terminal, and as JSON."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from distilllens.evaluate.board import Board, board
from distilllens.evaluate.results import Results
from distilllens.evaluate.scores import CONFIDENCE
from distilllens.evaluate.table import read_table
from distilllens.files import write_atomically, write_json

_TRIVIAL = (
    "The best trivial answer is the best of three that need no model: an empty answer, the "
    "question repeated, and the most frequent reference, if two questions share one."
)
_FIGURES = (
    "These figures are the harness's own. They are no means of a value for each example, or the "
    "task does not say whether higher is better: so they have no interval and no verdict."
)
# What Markdown would not show as it stands. An underscore inside a word is shown.
_SPECIAL = re.compile(
    r"[`*|~$]|(?<![^\W_])_|_(?![^\W_])|\](?=[(\[])|<(?=[A-Za-z/!?])|&(?=#|\w+;)"
    r"|\\(?=[!-/:-@\[-`{-~])"
)


def as_json(board: Board) -> dict:
    """Everything that the tables show, unrounded."""
    scores = {
        metric: {
            column: {model: asdict(value) for model, value in row.items()}
            for column, row in columns.items()
        }
        for metric, columns in board.scores.items()
    }
    comparisons = [
        {"metric": metric, "benchmark": column, "first": first, "second": second, **asdict(one)}
        for metric, pairs in board.comparisons.items()
        for (first, second), row in pairs.items()
        for column, one in row.items()
    ]
    return finite(
        {
            "scores": scores,
            "comparisons": comparisons,
            "answers": board.answers,
            "teachers": list(board.teachers),
            "trivial": board.trivial,
            "notes": list(board.notes),
            **({"lm_eval": board.harness_figures} if board.harness_figures else {}),
        }
    )


def as_markdown(board: Board, metrics: Sequence[str] | None = None) -> str:
    """The tables of each metric: scores with standard errors, then pairwise differences.

    Perplexities are compared by their logarithms: one gibberish model would swamp a difference.
    """
    logs = "log_perplexity"
    shows_all = metrics is None
    metrics = [m for m in board.scores if m != logs] if shows_all else metrics
    scored = [s for m in metrics for row in board.scores[m].values() for s in row.values()]
    sampled = any(s.error_over_seeds is not None for s in scored)
    over_seeds = "; in brackets, standard error over seeds" * sampled
    parts = [
        f"Mean ± standard error over examples{over_seeds}.",
        *(_score_table(board, metric) for metric in metrics),
    ]
    if any(board.trivial.get(metric) for metric in metrics):
        parts.append(_TRIVIAL)
    compared = dict.fromkeys(
        logs if m == "perplexity" and logs in board.scores else m for m in metrics
    )
    if tables := [_comparison_table(board, m) for m in compared if board.comparisons.get(m)]:
        parts.append(
            "In each row, the model named first minus the one named second, with the "
            f"{100 * CONFIDENCE:g} % interval of a paired bootstrap over examples."
        )
        parts += tables
    if board.harness_figures and shows_all:
        parts += [_figure_table(board), _FIGURES]
    if board.answers:
        parts.append(_answer_table(board))
    return "\n\n".join([*parts, *map(_as_itself, board.notes)]) + "\n"


def write_scores(results: Results):
    """Write ``scores.json`` and ``scores.md`` of a finished results folder."""
    table = read_table(results.folder)
    scored = board([table])
    write_json(results.folder / "scores.json", as_json(scored))
    write_atomically(results.folder / "scores.md", as_markdown(scored))


def _score_table(board, metric):
    columns, digits = board.scores[metric], board.about(metric).digits
    cells = [[_as_itself(board.about(metric).title), *map(_as_itself, columns)]]
    for model in board.rows:
        row = [columns[column].get(model) for column in columns]
        if any(row):
            cells.append([_named(board, model), *(_cell(value, digits) for value in row)])
    if trivial := board.trivial.get(metric):
        row = (f"{trivial[c]:.{digits}f}" if c in trivial else "-" for c in columns)
        cells.append(["(best trivial answer)", *row])
    return markdown(cells)


def _named(board, model):
    is_plain = model not in board.teachers or model == "teacher" or model.endswith("(teacher)")
    return _as_itself(model if is_plain else f"{model} (teacher)")


def _cell(value, digits):
    if value is None:
        return "-"
    # The perplexity of gibberish may have twenty digits before the point.
    form = f".{digits}f" if not 1e6 <= value.mean < math.inf else ".3g"
    text = f"{value.mean:{form}}"
    if value.error_over_examples is not None:
        text += f" ± {value.error_over_examples:{form}}"
    if value.error_over_seeds is not None:
        text += f" ({value.error_over_seeds:{form}})"
    return text


def _comparison_table(board, metric):
    pairs, digits = board.comparisons[metric], board.about(metric).digits
    columns = list(dict.fromkeys(column for row in pairs.values() for column in row))
    cells = [[_as_itself(board.about(metric).title), *map(_as_itself, columns)]]
    for (first, second), row in pairs.items():
        cells.append(
            [
                f"{_named(board, first)} - {_named(board, second)}",
                *(
                    f"{c.difference:+.{digits}f} [{c.low:+.{digits}f}, {c.high:+.{digits}f}] "
                    f"{c.verdict}"
                    if (c := row.get(column))
                    else "-"
                    for column in columns
                ),
            ]
        )
    return markdown(cells)


def _figure_table(board):
    cells = [["lm_eval, figures of whole tasks", *map(_as_itself, board.models)]]
    for task, by_metric in board.harness_figures.items():
        for metric, row in by_metric.items():
            title = _as_itself(f"{task}, {metric.removeprefix('lm_eval:')}")
            values = (f"{row[m]:.4f}" if m in row else "-" for m in board.models)
            cells.append([title, *values])
    return markdown(cells)


def _answer_table(board):
    """Figures on the answers and the calibration; the latter alone where nothing was answered."""
    answered = any("finished" in about for row in board.answers.values() for about in row.values())
    heads = ["answers", "model", "tokens, mean", "cut at max_new_tokens", "near ties"]
    cells = [heads if answered else ["calibration", "model"]]
    cells[0] += ["ECE", "too sure", "not sure enough"]
    for benchmark, row in board.answers.items():
        for model, about in row.items():
            figures = _answer_cells(about) if answered else []
            figures += [f"{about[n]:.4f}" for n in ("ece", "overconfidence", "underconfidence")]
            cells.append([_as_itself(benchmark), _named(board, model), *figures])
    return markdown(cells)


def _answer_cells(about):
    if "finished" not in about:
        return ["-", "-", "-"]
    cut = f"{100 * (1 - about['finished']):.1f} %"
    return [f"{about['mean_tokens']:.1f}", cut, str(about["near_ties"])]


def finite(value: Any) -> Any:
    """The value with null in place of infinity and NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _as_itself(text):
    """A text as Markdown that shows it; what cannot be printed appears as in Python's strings."""
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return _SPECIAL.sub(r"\\\g<0>", "".join(shown))


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """A table of texts whose first row is the head."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
