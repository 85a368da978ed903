"""A Markdown table."""

from __future__ import annotations

NOTHING = "Not measured yet.\n"


def table(head: str, lines: list[list]) -> str:
    """A table; ``head`` is its columns between bars. Without a line, a sentence."""
    if not lines:
        return NOTHING
    columns = head.count("|") + 1
    body = ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]
    return "\n".join([f"| {head} |", "|" + "---|" * columns, *body]) + "\n"
