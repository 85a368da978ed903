"""``distilllens compare``: the results of evaluations in one table, with confidence intervals."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from os import PathLike

from distilllens.evaluate import tables
from distilllens.evaluate.board import board
from distilllens.evaluate.table import read_table


def compare_results(
    folders: Sequence[str | PathLike],
    *,
    metrics: Sequence[str] | None = None,
    as_json: bool = False,
) -> str:
    """Scores and differences of results folders, as Markdown or JSON.

    Args:
        folders: the ``output`` folders of evaluations.
        metrics: show only these in Markdown; all by default. JSON has all of them, unrounded.

    Raises:
        ValueError: a folder without finished results, or a metric that was not measured.
    """
    found = board([read_table(folder) for folder in folders])
    for metric in metrics or ():
        if metric not in found.scores:
            raise ValueError(
                f"--metric {metric!r} is not in these results; they have {', '.join(found.scores)}"
            )
    if as_json:
        return json.dumps(tables.as_json(found), indent=1)
    return tables.as_markdown(found, metrics)


def next_steps(folders: Sequence[str | PathLike]) -> str:
    """Where the tables of each folder are, and a command to go on with."""
    names = [str(folder) for folder in folders]
    tables_of = ", ".join(f"{name}/scores.md" for name in names)
    command = shlex.join(["distilllens", "compare", *names])
    if len(names) == 1:
        steps = f"{command} OTHER_RESULTS   # beside another evaluation"
    else:
        steps = f"{command} --json > comparison.json   # unrounded"
    return f"tables of each folder: {tables_of}; row by row: BENCHMARK/MODEL there\nnext: {steps}"
