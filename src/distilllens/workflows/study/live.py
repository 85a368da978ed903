"""On a terminal, a line for each running process of a study: the last one of its log."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

EVERY = 0.5  # seconds between two looks
_TAIL = 4096  # bytes of a log that are read: more than a bar is long
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x1f\x7f]")


class LiveLines:
    """The lines below a study's own; nothing where standard error is not a terminal."""

    def __init__(self):
        self.is_shown = sys.stderr.isatty()
        self._bars: list[tqdm] = []

    def show(self, logs: Mapping[str, Path]):
        """Show what each process printed last.

        Args:
            logs: name of the process -> its log.
        """
        if not self.is_shown:
            return
        width = shutil.get_terminal_size().columns - 1
        while len(self._bars) < len(logs):
            self._bars.append(
                tqdm(bar_format="{desc}", position=len(self._bars), leave=False, file=sys.stderr)
            )
        lines = [f"{name}: {last_line(log)}"[:width] for name, log in logs.items()]
        lines += [""] * (len(self._bars) - len(lines))
        for bar, line in zip(self._bars, lines, strict=True):
            bar.set_description_str(line)

    def clear(self):
        """Take the lines away, for a line of the study or at its end; ``show`` brings them back."""
        while self._bars:
            self._bars.pop().close()


def last_line(log: Path) -> str:
    """The last line of a log that says something; of a bar, its last state."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL))
            tail = file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return "begins"
    lines = [_CONTROL.sub("", line).strip() for line in re.split(r"[\r\n]", tail)]
    return next((line for line in reversed(lines) if line), "begins")
