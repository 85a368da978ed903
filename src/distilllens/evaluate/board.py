"""Results of evaluations side by side: their scores, and comparisons where these are fair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from distilllens.evaluate.benchmarks import RESERVED
from distilllens.evaluate.board_notes import differences, partial
from distilllens.evaluate.harness_samples import side_by_side
from distilllens.evaluate.scores import (
    METRICS,
    Difference,
    Metric,
    Samples,
    Score,
    average,
    average_drawn,
    bootstrap,
    compare,
    score,
)
from distilllens.evaluate.table import ResultTable
from distilllens.evaluate.trivial import best_trivial, why_useless, without_verdicts
from distilllens.names import shortest_names, unique_names

AVERAGE = RESERVED
# Metrics that depend on another model -> the setting that names it.
_MEASURED_BY = {
    "kl": "teacher",
    "sbert": "sbert",
    "judge": "judge",
    "judge_win": "judge",
    "judge_ratio": "judge",
}


@dataclass(frozen=True, eq=False)
class Board:
    """Results of one or more folders side by side.

    Args:
        models: their names.
        scores: metric -> benchmark (and "average") -> model or teacher -> ``Score``.
        comparisons: metric -> (first, second) -> benchmark (and "average") -> ``Difference``.
        answers: benchmark -> model -> figures on the answers, if any, and the calibration.
        notes: sentences for the reader of the tables.
        teachers: names of the models that are teachers, and of teachers that answered nothing:
            these have the likelihood of the references only.
        trivial: metric -> benchmark (and "average") -> the best score of a trivial answer.
        harness_metrics: those of lm-evaluation-harness in ``scores``, whose columns are tasks.
        harness_figures: task -> metric -> model -> what the harness says, where it is no mean.
    """

    models: tuple[str, ...]
    scores: dict[str, dict[str, dict[str, Score]]]
    comparisons: dict[str, dict[tuple[str, str], dict[str, Difference]]]
    answers: dict[str, dict[str, dict[str, float]]]
    notes: tuple[str, ...]
    teachers: tuple[str, ...] = ()
    trivial: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    harness_metrics: Mapping[str, Metric] = field(default_factory=dict)
    harness_figures: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)

    @property
    def rows(self) -> tuple[str, ...]:
        """The models, and the teachers that are none of them."""
        return tuple(dict.fromkeys([*self.models, *self.teachers]))

    def about(self, metric: str) -> Metric:
        """Title and direction of a metric of ``scores``."""
        return METRICS.get(metric) or self.harness_metrics[metric]


def board(tables: Sequence[ResultTable]) -> Board:
    """The models of all tables, under distinct names, on the benchmarks that all tables share.

    Raises:
        ValueError: no benchmark or task is in all tables with the same data.
    """
    labels = _labels(tables)
    harness, harness_notes = side_by_side([(t.settings, t.harness) for t in tables], labels)
    shared, notes = _shared_benchmarks(tables, required=not harness.samples)
    notes += harness_notes
    samples, answers = {}, {}
    for table, names in zip(tables, labels, strict=True):
        for benchmark in shared:
            for model, by_metric in table.samples[benchmark].items():
                bins = table.calibration[benchmark][model]
                answers.setdefault(benchmark, {})[names[model]] = {
                    **table.answers[benchmark][model],
                    "ece": bins.ece,
                    "overconfidence": bins.overconfidence,
                    "underconfidence": bins.underconfidence,
                }
                samples.setdefault(benchmark, {})[names[model]] = by_metric
    models = tuple(name for names in labels for name in names.values())
    metrics = [m for m in METRICS if any(m in f for row in samples.values() for f in row.values())]
    measured_by = {
        names[model]: _measured_by(table)
        for table, names in zip(tables, labels, strict=True)
        for model in table.settings["models"]
    }
    comparisons = {m: _comparisons(m, models, samples, measured_by) for m in metrics}
    notes += [*differences(tables), *partial(comparisons, samples)]
    teachers, forced = _teachers(tables, labels, shared)
    rows = {b: {**row, **forced.get(b, {})} for b, row in samples.items()}
    scores = {metric: _scores(metric, (*models, *teachers), rows) for metric in metrics}
    for metric in metrics:
        useless, reasons = _useless(metric, scores[metric], tables, labels)
        comparisons[metric] = without_verdicts(comparisons[metric], useless)
        notes += reasons
    notes += [*_cut(tables, labels, shared), *_adapters(tables, labels)]
    trivial = {metric: found for metric in metrics if (found := _trivial(metric, tables, shared))}
    for key, metric in harness.metrics.items():
        if by_task := harness.rows(metric):
            scores[key] = _scores(metric, models, by_task)
            comparisons[key] = _comparisons(metric, models, by_task, measured_by)
    known = (teachers, trivial, harness.metrics, harness.figures)
    return Board(models, scores, comparisons, answers, tuple(notes), *known)


def _teachers(tables, labels, shared):
    """Names of the teachers, and benchmark -> name -> samples of those that are no model here."""
    known = {
        names[model]: hashes
        for table, names in zip(tables, labels, strict=True)
        for model, hashes in table.settings["models"].items()
        if hashes
    }
    measured = [table for table in tables if table.settings["teacher"]]
    distinct = {str(table.settings["teacher"]): table for table in reversed(measured)}
    teachers, samples = [], {}
    for table in reversed(distinct.values()):
        hashes = table.settings["teacher"]
        if same := [name for name, other in known.items() if other == hashes]:
            teachers += same
        elif any(benchmark in table.teacher for benchmark in shared):
            (name,) = shortest_names(
                [(table.settings.get("names") or {}).get("teacher") or "teacher"]
            )
            taken = [*known, *teachers]
            name = f"{name} (teacher)" if name in taken else name
            name = f"{table.folder}: {name}" if name in taken else name
            teachers.append(name)
            for benchmark in shared:
                samples.setdefault(benchmark, {})[name] = table.teacher.get(benchmark, {})
    return tuple(teachers), samples


def _useless(metric, scores, tables, labels):
    """(column -> models whose score tells nothing, sentences that say why)."""
    useless, reasons = {}, {}
    for table, names in zip(tables, labels, strict=True):
        for benchmark in [column for column in scores if column != AVERAGE]:
            trivial = best_trivial(table.settings, benchmark, metric)
            for model in names.values():
                found = scores[benchmark].get(model)
                if found and (why := why_useless(metric, found, trivial)):
                    useless.setdefault(benchmark, set()).add(model)
                    about = f"On {benchmark}, {why}"
                    reasons.setdefault(about, []).append(f"{model} {found.mean:.2f} %")
    if useless.keys() == scores.keys() - {AVERAGE}:
        useless[AVERAGE] = set.intersection(*useless.values())
    return useless, [f"{about}: {', '.join(models)}." for about, models in reasons.items()]


def _trivial(metric, tables, shared):
    """Column -> the best trivial score, where all folders have the same one."""
    found = {}
    for benchmark in shared:
        best = {best_trivial(table.settings, benchmark, metric) for table in tables}
        if len(best) == 1 and None not in best:
            ((_, found[benchmark]),) = best
    if len(shared) > 1 and len(found) == len(shared):
        found[AVERAGE] = float(np.mean([*found.values()]))
    return found


def _cut(tables, labels, shared):
    """Notes on models whose answers were mostly cut."""
    cut = {}
    for table, names in zip(tables, labels, strict=True):
        for benchmark in shared:
            for model, about in table.answers[benchmark].items():
                if about.get("finished", 1) < 0.5:
                    longest = table.settings["decoding"].get("max_new_tokens")
                    share = f"{names[model]} {100 * (1 - about['finished']):.0f} %"
                    cut.setdefault((benchmark, longest), []).append(share)
    return [
        f"On {benchmark}, answers were cut at --max_new_tokens {longest}, so that their beginnings "
        f"were scored: {', '.join(models)}."
        for (benchmark, longest), models in cut.items()
    ]


def _adapters(tables, labels):
    """Notes that name the base models of adapters."""
    return [
        f"{names[model]} is an adapter of {base}."
        for table, names in zip(tables, labels, strict=True)
        for model, base in ((table.settings.get("names") or {}).get("bases") or {}).items()
    ]


def _measured_by(table):
    """metric -> what must be the same for two values of it to be comparable."""
    measured_by = {metric: table.settings[key] for metric, key in _MEASURED_BY.items()}
    if "text_metrics" not in table.settings and not table.is_ascii:
        measured_by |= {"rouge_l": table.folder, "exact_match": table.folder}
    return measured_by


def _comparisons(metric, models, samples, measured_by):
    """(first, second) -> benchmark -> Difference, for pairs measured by the same model."""
    pairs = {}
    for number, second in enumerate(models):
        for first in models[number + 1 :]:
            if measured_by[first].get(metric) != measured_by[second].get(metric):
                continue
            drawn = {}
            for stream, (benchmark, row) in enumerate(samples.items()):
                both = [row.get(model, {}).get(metric) for model in (first, second)]
                if None not in both and (shared := common(metric, *both)):
                    drawn[benchmark] = bootstrap([(metric, one) for one in shared], stream)
            if len(drawn) > 1:
                drawn[AVERAGE] = [*map(average_drawn, zip(*drawn.values(), strict=True))]
            if drawn:
                pairs[first, second] = {c: compare(metric, *both) for c, both in drawn.items()}
    return pairs


def common(metric: str, ours: Samples, theirs: Samples) -> tuple[Samples, Samples] | None:
    """The samples restricted to examples and seeds for which both have a value; None if none do.

    Perplexities of references that differ in their tokens, or in where they were cut, are not
    comparable.
    """
    both = np.intersect1d(ours.examples, theirs.examples)
    ours, theirs = ours.only(both), theirs.only(both)
    if metric in ("perplexity", "log_perplexity", "kl"):
        if not np.array_equal(ours.counts, theirs.counts):
            return None
    elif ours.counts.shape == theirs.counts.shape:
        there = (ours.counts > 0) & (theirs.counts > 0)
        ours, theirs = ours.with_counts_where(there), theirs.with_counts_where(there)
    return (ours, theirs) if ours.counts.sum() and theirs.counts.sum() else None


def _scores(metric, models, samples):
    rows = {
        benchmark: {m: score(metric, by[metric]) for m, by in row.items() if metric in by}
        for benchmark, row in samples.items()
    }
    if len(rows) > 1:
        everywhere = [m for m in models if all(m in row for row in rows.values())]
        rows[AVERAGE] = {m: average([row[m] for row in rows.values()]) for m in everywhere}
    return rows


def _shared_benchmarks(tables, required):
    first, notes, shared = tables[0].settings["benchmarks"], [], []
    for name in dict.fromkeys(n for table in tables for n in table.settings["benchmarks"]):
        hashes = [table.settings["benchmarks"].get(name, {}).get("sha256") for table in tables]
        if None in hashes:
            notes.append(f"{name} is left out: not every folder has it.")
        elif len(set(hashes)) > 1:
            notes.append(f"{name} is left out: the folders were made from different files.")
        else:
            shared.append(name)
    if not shared and required:
        raise ValueError(
            f"the folders {', '.join(t.folder for t in tables)} share no benchmark: the first has "
            f"{', '.join(first) or 'none'}; evaluate the models of all folders on the same file"
        )
    return shared, notes


def _labels(tables):
    """For each table: model -> name, with the folder in front if two folders share a name."""
    every = [model for table in tables for model in table.settings["models"]]
    folders = unique_names([table.folder for table in tables])
    return [
        {
            model: f"{folder}/{model}" if every.count(model) > 1 else model
            for model in table.settings["models"]
        }
        for table, folder in zip(tables, folders, strict=True)
    ]
