"""Write the tables of fields from the dataclasses that declare them.

    python tools/config_table.py

One is in docs/training.md, for people. The other is in the package: the command line reads it for
its help, and to refuse typos, before trl is imported.
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from inspect import get_annotations
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "training.md"
BEGIN, END = "<!-- fields: begin -->", "<!-- fields: end -->"


def table() -> str:
    """Every field that distilllens adds to TRL's, with its default and its help."""
    from distilllens.train.config import DistillLensConfig
    from distilllens.train.teacher_fields import TeacherFields
    from distilllens.workflows.train import JobArguments

    lines = ["| field | default | meaning |", "|---|---|---|"]
    for owner, parts in ((JobArguments, ()), (DistillLensConfig, (TeacherFields,))):
        own = {name for part in (owner, *parts) for name in get_annotations(part)}
        for field in fields(owner):
            if field.name in own:
                meaning = field.metadata["help"].replace("|", "\\|")
                lines.append(f"| `{field.name}` | {_default(field)} | {meaning} |")
    return "\n".join(lines)


def rewritten(page: str) -> str:
    """The page with the current table between its markers."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


def command_line_table() -> str:
    """Every field of a recipe, and the names of all divergences, as the package's JSON file."""
    from distilllens.cli.train_arguments import declared_fields
    from distilllens.divergence import divergence_names
    from distilllens.workflows.field_table import table_text

    return table_text(declared_fields(), divergence_names())


def _default(field):
    value = field.default if field.default is not MISSING else field.default_factory()
    if value is None:
        return "not set"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    from distilllens.workflows.field_table import TABLE

    TABLE.write_text(command_line_table(), encoding="utf-8")
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
