"""``distilllens compare``: results folders side by side, and who is better beyond noise."""

from __future__ import annotations

_DESCRIPTION = """\
Print the scores of one or more results folders of distilllens evaluate in one table, and for every
pair of models the difference with the interval of a paired bootstrap over the examples that both
have. "better" and "worse" mean that the interval does not hold 0.

examples:
  distilllens compare results/student results/plain-kd
  distilllens compare results/student results/plain-kd --metric rouge_l kl
  distilllens compare results/student results/plain-kd --json > comparison.json
"""


def main(argv: list[str]) -> int:
    """Run the command; raises ValueError for a folder without finished results."""
    import json

    from distilllens.cli import OneLineParser

    parser = OneLineParser(prog="distilllens compare", description=_DESCRIPTION)
    parser.add_argument("folders", nargs="+", metavar="DIR", help="of distilllens evaluate")
    parser.add_argument("--metric", nargs="+", help="only these (default: all there are)")
    parser.add_argument("--json", action="store_true", help="print JSON, unrounded")
    args = parser.parse_args(argv)

    from distilllens.evaluate.board import board
    from distilllens.evaluate.table import read_table
    from distilllens.evaluate.tables import as_json, as_markdown

    found = board([read_table(folder) for folder in args.folders])
    for metric in args.metric or ():
        if metric not in found.scores:
            raise ValueError(
                f"--metric {metric!r} is not in these results; they have {', '.join(found.scores)}"
            )
    print(json.dumps(as_json(found), indent=1) if args.json else as_markdown(found, args.metric))
    return 0
