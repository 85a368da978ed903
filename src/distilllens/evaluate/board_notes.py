"""What a reader must know of results side by side: settings that differ, examples left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from distilllens.evaluate.benchmarks import RESERVED
from distilllens.evaluate.table import ResultTable

_OF_ANSWERS = ("decoding", "seeds", "backend")
_REPORTED = ("decoding", "seeds", "chat", "limit", "max_prompt_length", "dtype", "backend")


def differences(tables: Sequence[ResultTable]) -> list[str]:
    """Notes on settings in which the tables differ, and on what they do not hold."""
    answered = [table for table in tables if not table.settings.get("references_only")]
    notes = [
        f"{table.folder} holds no answers (--references_only): only what is measured on the "
        "references is compared."
        for table in tables
        if answered and table not in answered
    ]
    for key in _REPORTED:
        among = answered if key in _OF_ANSWERS else tables
        values = [table.settings[key] for table in among]
        if key == "seeds" and [None] in values:
            continue  # greedy, which the decoding says
        if any(value != values[0] for value in values):
            listed = "; ".join(f"{t.folder}: {v}" for t, v in zip(among, values, strict=True))
            notes.append(f"The folders differ in {key} ({listed}).")
    for key in ("teacher", "sbert", "judge"):
        values = [value for table in tables if (value := table.settings[key])]
        if any(value != values[0] for value in values):
            notes.append(f"The folders differ in the {key}: its metrics are not compared.")
    return [*notes, *_old_definitions(answered)]


def _old_definitions(tables):
    """Notes on results of version 0.1.0, whose metrics saw less of the texts."""
    notes = []
    again = "The same distilllens evaluate scores the answers of that folder again"
    old = [table for table in tables if "text_metrics" not in table.settings]
    for table in old:
        if not table.is_ascii:
            notes.append(
                f"{table.folder} was scored by version 0.1.0, which read ASCII words only: Rouge-L "
                "and exact match of other scripts are wrong there, and are not compared with those "
                f"of another folder. {again}."
            )
        elif len(old) < len(tables):
            notes.append(
                f"{table.folder} was scored by version 0.1.0: its Rouge-L differs where references "
                f"have words with other than ASCII letters. {again}."
            )
    judged = [table for table in tables if table.settings["judge"]]
    unread = [table.folder for table in judged if not table.settings.get("judge_reads")]
    if len(unread) < len(judged):
        notes += [
            f"The judge of {folder} read only the last turn of a conversation. {again}, "
            "with its --judge."
            for folder in unread
        ]
    return notes


def partial(comparisons: Mapping, samples: Mapping) -> list[str]:
    """Notes on comparisons that leave examples out, by a metric that both models have."""
    notes, metrics = [], ("log_perplexity", "rouge_l")
    pairs = {pair: (m, row) for m in metrics for pair, row in comparisons.get(m, {}).items()}
    for (first, second), (metric, row) in pairs.items():
        for benchmark in row.keys() - {RESERVED}:
            both = [samples[benchmark][model][metric] for model in (first, second)]
            shared = row[benchmark].num_examples
            if shared < max(len(one.examples) for one in both):
                pair = f"{first} - {second} on {benchmark}"
                notes.append(f"{pair}: on the {shared} examples that both have.")
    return sorted(notes)
