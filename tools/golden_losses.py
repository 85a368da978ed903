"""Write tests/golden anew: the first losses of four small runs.

    python tools/golden_losses.py

Say in CHANGELOG.md why they moved.
"""

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from test_golden_losses import FOLDER, RUNS, kind_of_cpu, losses_of


def main():
    """One file a run."""
    FOLDER.mkdir(exist_ok=True)
    for name in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            found = {"cpu": kind_of_cpu(), "losses": losses_of(name, Path(folder))}
        (FOLDER / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
        print(f"wrote {FOLDER / name}.json")


if __name__ == "__main__":
    main()
