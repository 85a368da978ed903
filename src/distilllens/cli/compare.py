"""``distilllens compare``: the results of evaluations in one table, with confidence intervals."""

from __future__ import annotations

import sys

from distilllens.cli import CommandParser

_DESCRIPTION = """\
Print the scores in one or more results folders of distilllens evaluate as one table, and for every
pair of models the difference with a confidence interval: a paired bootstrap over the examples that
both answered. "better" and "worse" mean that the interval does not contain 0; "tells nothing" that
no difference would count: the scores are equal constants, or do not beat a trivial answer.

examples:
  distilllens compare results/kd results/distilllens
  distilllens compare results/kd results/distilllens --metric rouge_l log_perplexity
  distilllens compare results/kd results/distilllens --json > comparison.json
"""


def main(argv: list[str]) -> int:
    """Run the command; raises ValueError for a folder without finished results."""
    parser = CommandParser(prog="distilllens compare", description=_DESCRIPTION)
    parser.add_argument(
        "folders", nargs="+", metavar="DIR", help="results folder of distilllens evaluate"
    )
    parser.add_argument(
        "--metric", action="extend", nargs="+", help="show only these metrics (default: all)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON with unrounded numbers")
    args = parser.parse_args(argv)
    from distilllens.workflows.compare import compare_results, next_steps

    print(compare_results(args.folders, metrics=args.metric, as_json=args.json))
    if not args.json:
        print(next_steps(args.folders), file=sys.stderr)
    return 0
