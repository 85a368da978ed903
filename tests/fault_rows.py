"""What tests of faults have found, as rows of the table in docs/reliability.md; no test in here.

A test calls ``found`` with what it saw. It must be what ``fault_rows.json`` holds, from which
``python tools/fault_table.py`` writes the table; with ``DISTILLLENS_RECORD=1`` the row is written.
"""

import json
import os
import re
from pathlib import Path

FILE = Path(__file__).with_suffix(".json")


def found(fault, processes, happened, lost, test):
    """Compare, or record, one row.

    Args:
        fault: what was done to the run.
        processes: of the run, such as "2" or "1 -> 2".
        happened: what a user sees; numbers that differ from run to run are left out.
        lost: of the work; compared by the test itself.
        test: its name, ``tests/.../test_x.py::test_y``.
    """
    row = {
        "happened": re.sub(r"after step \d+", "after the step", happened),
        "lost": lost,
        "test": test,
    }
    rows, key = json.loads(FILE.read_text()) if FILE.exists() else {}, f"{fault} | {processes}"
    if os.environ.get("DISTILLLENS_RECORD"):
        FILE.write_text(json.dumps(dict(sorted((rows | {key: row}).items())), indent=1) + "\n")
    else:
        assert rows.get(key) == row


def table():
    """The rows as Markdown."""
    lines = ["| fault | processes | what happens | what is lost | test |", "|---|---|---|---|---|"]
    for key, row in json.loads(FILE.read_text()).items():
        lines.append(f"| {key} | {row['happened']} | {row['lost']} | `{row['test']}` |")
    return "\n".join(lines)
