"""Write the table of faults in docs/reliability.md from what the tests have recorded.

usage: DISTILLLENS_RECORD=1 python -m pytest tests/train/test_lost.py tests/train/test_killed.py \\
           tests/train/test_elastic.py
       python tools/fault_table.py
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- faults: begin -->\n", "\n<!-- faults: end -->"


def with_table(text: str) -> str:
    """A page with the table of now between its marks."""
    from fault_rows import table

    before, rest = text.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
