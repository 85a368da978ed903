"""The numbers of a study as Markdown and JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from distilllens.evaluate.scores import CONFIDENCE, METRICS
from distilllens.evaluate.tables import finite, markdown
from distilllens.evaluate.training_seeds import sentence
from distilllens.files import in_bytes
from distilllens.workflows.study.results import AVERAGE, DEV, MethodResult, StudyResult

_FEW_DEPTHS = 6


class Table(NamedTuple):
    """A table of texts, with its heading and a sentence on what it shows."""

    title: str
    text: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Answer(NamedTuple):
    """The plain answer for a method.

    Args:
        summary: the verdicts in a sentence.
        details: for each main score, its name and its difference from the baseline in words.
    """

    summary: str
    details: tuple[tuple[str, str], ...]


def answers(result: StudyResult) -> dict[str, Answer]:
    """Method -> its answer; none for the baseline."""
    found = {}
    for one in result.methods:
        columns = [column for column in main_columns(result) if column in one.differences]
        if one.name == result.baseline.name:
            continue
        baseline, verdicts, details = result.baseline.name, {}, []
        for column in columns:
            difference = one.differences[column]
            verdicts.setdefault(difference.verdict, []).append(_named(column))
            details.append((_named(column), sentence(column[1], difference, baseline)))
        summary = "; ".join(f"{verdict} in {_and(names)}" for verdict, names in verdicts.items())
        summary = summary or f"no seed that {baseline} has too"
        found[one.name] = Answer(f"against {baseline}, {summary}", tuple(details))
    return found


def _and(names):
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def main_columns(result: StudyResult) -> list[tuple[str, str]]:
    """The development set's scores, and of each metric of answers the average or only benchmark."""
    averaged = {metric for name, metric in result.columns if name == AVERAGE}
    return [
        (name, metric)
        for name, metric in result.columns
        if name in (DEV, AVERAGE) or metric not in averaged
    ]


def tables(result: StudyResult) -> list[Table]:
    """Scores, differences and distances by depth: what is the same whenever it is measured."""
    found = [_scores(result), _differences(result)]
    if depths := _depths(result):
        found.append(depths)
    if result.tried:
        found.append(_rates(result))
    return found


def costs(result: StudyResult) -> Table:
    """What the runs cost, which is another number every time."""
    rows = []
    for one in result.methods:
        cost = one.costs.values()
        took, used, flops, held = (
            [value for each in cost if (value := each.get(name)) is not None]
            for name in ("seconds", "processor_seconds", "flops", "peak_memory")
        )
        steps = sorted({each["steps"] for each in cost})
        rows.append(
            (
                one.name,
                _listed(one.seeds),
                "/".join(map(str, steps)),
                f"{_mean(took):,.0f}" if took else "-",
                f"{_mean(used):,.0f}" if used else "-",
                f"{_mean(flops) / 1e12:,.1f}" if flops else "-",
                in_bytes(max(held)) if held else "-",
                f"{max(each['load'] or 0 for each in cost):.1f}",
            )
        )
    columns = ("method", "seeds", "steps", "seconds", "processor seconds", "Tflop")
    columns += ("peak memory", "load")
    return Table(
        "Cost",
        "Of a run, means over seeds. Seconds are of the steps, processor seconds of the whole "
        "training process, Tflop by the cost model. Peak memory is of the training process, or of "
        "torch on a GPU; it and the load of the machine are the highest seen.",
        columns,
        tuple(rows),
    )


def as_markdown(result: StudyResult) -> str:
    """Answers, tables and notes, without costs."""
    study = result.study
    head = [
        f"Each method against {study.baseline}, {len(study.methods)} methods on equal "
        f"{study.equal}; {100 * CONFIDENCE:g} % intervals count training seeds and examples."
    ]
    lines = []
    for name, answer in answers(result).items():
        lines.append(f"- {name}: {answer.summary}.")
        lines += [f"  - {score}: {text}." for score, text in answer.details]
    parts = [*head, "\n".join(lines)] if lines else head
    parts += [table_text(table) for table in tables(result)]
    return "\n\n".join([*parts, *result.notes]) + "\n"


def table_text(table: Table) -> str:
    """A table below its title."""
    return f"### {table.title}\n\n{table.text}\n\n{markdown([table.columns, *table.rows])}"


def as_json(result: StudyResult) -> dict[str, Any]:
    """Everything unrounded, without costs."""
    found = {
        "baseline": result.study.baseline,
        "equal": result.study.equal,
        "methods": {one.name: _plain(one) for one in result.methods},
        "learning_rates": {
            method: {f"{rate:g}": value for rate, value in tried.items()}
            for method, tried in result.tried.items()
        },
        "notes": list(result.notes),
    }
    return finite(found)


def _plain(one: MethodResult):
    def listed(found):
        return [{"benchmark": n, "metric": m, **asdict(v)} for (n, m), v in found.items()]

    return {
        "learning_rate": one.rate,
        "seeds": list(one.seeds),
        "scores": listed(one.scores),
        "differences": listed(one.differences),
        "calibration_error": asdict(one.calibration),
        "depths": one.depths,
    }


def _named(column):
    """A column in a few words."""
    name, metric = column
    title = METRICS[metric].title.split(" (")[0]
    title = {"log_perplexity": "cross-entropy", "kl": "KL(teacher ‖ student)"}.get(metric, title)
    return title if name in (DEV, AVERAGE) else f"{title} on {name}"


def column_title(column: tuple[str, str]) -> str:
    """The head of a column."""
    name, metric = column
    title = {"log_perplexity": "cross-entropy (nats)", "kl": "KL(teacher ‖ student) (nats)"}.get(
        metric, METRICS[metric].title
    )
    return f"{name}: {title}"


def _scores(result):
    rows = []
    for one in result.methods:
        cells = (_score(one.scores.get(column), column[1]) for column in result.columns)
        ece = one.calibration
        rows.append((one.name, _listed(one.seeds), *cells, _with_deviation(ece, 4)))
    columns = ("method", "seeds", *map(column_title, result.columns), f"{DEV}: calibration error")
    return Table("Scores", "Mean over training seeds ± standard deviation.", columns, tuple(rows))


def _score(found, metric):
    return "-" if found is None else _with_deviation(found, METRICS[metric].digits)


def _with_deviation(found, digits):
    if found.deviation is None:
        return f"{found.mean:.{digits}f}"
    return f"{found.mean:.{digits}f} ± {found.deviation:.{digits}f}"


def _differences(result):
    rows = []
    for one in result.methods:
        if one.name == result.baseline.name:
            continue
        cells = (_difference(one.differences.get(c), c[1]) for c in result.columns)
        rows.append((one.name, *cells))
    columns = ("method", *map(column_title, result.columns))
    text = "With the interval, and what it shows."
    return Table(f"Difference from {result.baseline.name}", text, columns, tuple(rows))


def _difference(found, metric):
    if found is None:
        return "-"
    digits = METRICS[metric].digits
    text = f"{found.difference:+.{digits}f}"
    if found.low is not None:
        text += f" [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"
    return f"{text} {found.verdict}"


def _depths(result):
    """The JSD at a few depths, for methods whose students have the same depths; or None."""
    with_depths = [one for one in result.methods if one.depths]
    if not with_depths:
        return None
    first = next(iter(with_depths[0].depths.values()))
    pairs = [tuple(pair) for pair in first["pairs"]]
    at = sorted({round(i * (len(pairs) - 1) / (_FEW_DEPTHS - 1)) for i in range(_FEW_DEPTHS)})
    rows = []
    for one in with_depths:
        means = mean_depths(one)
        if len(means) == len(pairs):
            rows.append((one.name, *(f"{means[i]:.4f}" for i in at)))
    columns = ("method", *(f"{pairs[i][0]}:{pairs[i][1]}" for i in at))
    text = (
        f"JSD in nats per token at depths student:teacher, on {first['tokens']} tokens of the "
        "development set; means over seeds."
    )
    return Table("Distance from the teacher by depth", text, columns, tuple(rows))


def mean_depths(one: MethodResult) -> list[float]:
    """The JSD of a method's students at each depth, a mean over seeds."""
    values = [depths["jsd"] for depths in one.depths.values()]
    return [_mean(each) for each in zip(*values, strict=True)]


def _rates(result):
    rates = result.study.learning_rates
    rows = []
    for method, tried in result.tried.items():
        chosen = next(one.rate for one in result.methods if one.name == method)
        cells = (_tried(tried.get(rate)) + " (chosen)" * (rate == chosen) for rate in rates)
        rows.append((method, *cells))
    score = result.study.choose_by.replace("_", "-").replace("kl", "KL")
    text = f"Tried with the first seed: {score} on the development set."
    return Table("Learning rates", text, ("method", *(f"{r:g}" for r in rates)), tuple(rows))


def _tried(score):
    if score is None:
        return "-"
    return f"{score:.4f}" if math.isfinite(score) else "diverged"


def _listed(values: Sequence) -> str:
    return ", ".join(map(str, values))


def _mean(values):
    values = list(values)
    return sum(values) / max(1, len(values))
