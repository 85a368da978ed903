"""Where the files of a results folder lie, and what else is found in their places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from distilllens.evaluate.harness_samples import harness_files
from distilllens.evaluate.seal import SEAL
from distilllens.files import is_part_of, linked

SETTINGS, JUDGE_CACHE, TIMINGS = "evaluation.json", "judge.jsonl", "timings.jsonl"
REFERENCES, CALIBRATION = "references.jsonl", "calibration.json"


@dataclass(frozen=True)
class Unit:
    """One model on one benchmark with one seed (None: greedy)."""

    benchmark: str
    model: str
    seed: int | None

    @property
    def name(self) -> str:
        """The name of its files."""
        return "greedy" if self.seed is None else f"seed-{self.seed}"


def finished_files(settings: Mapping) -> list[str]:
    """The paths, in the folder, of the files of all models when all is done."""
    seeds = [f"{Unit('', '', seed).name}.jsonl" for seed in settings["seeds"]]
    answers = [
        f"{benchmark}/{model}/{name}"
        for benchmark, model in product(settings["benchmarks"], settings["models"])
        for name in (*seeds, REFERENCES, CALIBRATION)
    ]
    return answers + harness_files(settings)


def check_links(folder: Path, settings: Mapping):
    """Refuse links where rows are appended and where folders are entered.

    A link in the place of another file is replaced by the file.

    Raises:
        ValueError: with the link.
    """
    inner = {(folder / name).parent for name in finished_files(settings)}
    parts = [path for below in inner for path in below.glob("*.process-*.jsonl")]
    places = [*(below.parent for below in inner), *inner, *parts]
    for path in sorted([*places, folder / JUDGE_CACHE, folder / TIMINGS]):
        if path.is_symlink():
            raise ValueError(linked(path))


def drop_remains(folder: Path, settings: Mapping):
    """Delete the temporary files of a process that was killed, and nobody else's."""
    others = (SETTINGS, SEAL, JUDGE_CACHE, "scores.json", "scores.md")
    for path in (folder / name for name in (*finished_files(settings), *others)):
        for part in path.parent.glob(f"{path.name}.*.part"):
            if is_part_of(part, path.name) and part.is_file() and not part.is_symlink():
                part.unlink()
