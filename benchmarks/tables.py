"""Generate the tables of README.md and docs/ (performance, on_policy, estimate) from stored rows.

    python -m benchmarks.tables            write them between their markers
    python -m benchmarks.tables --check    exit status 1 if a page differs from the rows
    python -m benchmarks.tables --show     print every table

A table stands between `<!-- table: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from benchmarks import (
    cost_tables,
    estimate,
    gpu_tables,
    loss_tables,
    on_policy,
    precision,
    rows,
    step_tables,
)
from benchmarks.markdown import NOTHING, table

ROOT = Path(__file__).parents[1]
_DOCS = ("performance", "on_policy", "estimate")
PAGES = (ROOT / "README.md", *(ROOT / "docs" / f"{n}.md" for n in _DOCS))
_MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def main(arguments: list[str] | None = None) -> int:
    """Write, compare or print."""
    first, _, rest = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        "python -m benchmarks.tables",
        description=first,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="change nothing")
    parser.add_argument("--show", action="store_true", help="print the tables")
    options = parser.parse_args(arguments)
    if options.show:
        print("\n".join(f"{name}\n\n{make(rows.RESULTS)}" for name, make in TABLES.items()))
        return 0
    stale = [page for page in PAGES if filled(page) != page.read_text("utf-8")]
    for page in stale:
        print(f"{page.name}: tables {'differ from the rows' if options.check else 'written'}")
        if not options.check:
            page.write_text(filled(page), "utf-8")
    return 1 if options.check and stale else 0


def filled(page: Path, folder: Path = rows.RESULTS) -> str:
    """The page's text with its tables generated from the rows of a folder."""

    def fill(match):
        return f"{match[1]}{TABLES[match[2]](folder)}{match[4]}"

    return _MARKED.sub(fill, page.read_text("utf-8"))


def generation_table(folder: Path) -> str:
    """Tokens a second by engine, over those of one prompt at a time; the noise by the forward."""
    found = rows.load(folder, "generation")
    alone = {r["shape"]: r["tokens_per_s"] for r in found if r["engine"] == "one at a time"}
    lines = []
    for row in found:
        if row["engine"] == "noise":
            took = f"{1e3 * row['median_s']:.1f} ms by a forward of {1e3 * row['forward_s']:.1f} ms"
            lines.append([row["shape"], "noise of a step", took, ""])
            continue
        low, high = row["min_tokens_per_s"], row["max_tokens_per_s"]
        speed = f"{row['tokens_per_s']:.0f} ({low:.0f} to {high:.0f})"
        times = f"{row['tokens_per_s'] / alone[row['shape']]:.1f}"
        lines.append([row["shape"], row["engine"], speed, times])
    return table("model | engine | tokens/s: median (range) | x one at a time", lines)


def figure_line() -> str:
    """The figure of scaling.py, once there is one."""
    there = (ROOT / "docs" / "scaling.png").exists()
    return "![time and memory over tokens and pairs](scaling.png)\n" if there else NOTHING


TABLES = {
    **loss_tables.TABLES,
    **step_tables.TABLES,
    **precision.TABLES,
    "generation": generation_table,
    **on_policy.TABLES,
    **cost_tables.TABLES,
    **gpu_tables.TABLES,
    **estimate.TABLES,
    "figure": lambda folder: figure_line(),
}


if __name__ == "__main__":
    sys.exit(main())
