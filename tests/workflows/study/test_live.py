"""What a terminal shows while a study runs, and Ctrl-C in it."""

import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios
import time

import pytest
from processes import SLOWEST, python
from workflows.study.toy_study import STUDY, environment, furnish

from distilllens.workflows.study.live import LiveLines, last_line

UP = "\x1b[A"


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("step 1 of 4: loss 2\nstep 2 of 4: loss 1\n", "step 2 of 4: loss 1"),
        ("reading:   0%|\rreading:  50%|█████     | 2/4\r", "reading:  50%|█████     | 2/4"),
        ("reading\n\x1b[A\r  \n", "reading"),
        ("\x1b[1mstep 1\x1b[0m of 4\x07\n", "step 1 of 4"),
        ("x" * 9000 + "\nthe end\n", "the end"),
        ("", "begins"),
    ],
)
def test_the_last_line_that_says_something(tmp_path, log, line):
    """Of a bar its last state, without what moves the cursor."""
    (tmp_path / "log.txt").write_text(log)
    assert last_line(tmp_path / "log.txt") == line


def test_a_line_without_end(tmp_path):
    """Its end, from the middle of a character on."""
    (tmp_path / "log.txt").write_text("x" + "█" * 9000 + "end")
    assert last_line(tmp_path / "log.txt").endswith("██end")


def test_a_process_that_has_no_log_yet(tmp_path):
    """It begins."""
    assert last_line(tmp_path / "none.txt") == "begins"


def test_nothing_where_there_is_no_terminal(tmp_path, capsys):
    """A file would get every state of every line."""
    lines = LiveLines()
    lines.show({"kd/seed-1": tmp_path / "none.txt"})
    lines.clear()
    assert (lines.is_shown, *capsys.readouterr()) == (False, "", "")


class Terminal:
    """A process on a terminal of 40 lines of 100 columns."""

    def __init__(self, words, folder, env):
        self.printed = ""
        self.pid, self._side = pty.fork()
        if not self.pid:
            os.chdir(folder)
            os.execve(words[0], words, env)
        fcntl.ioctl(self._side, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))

    def read_until(self, text=None):
        """Read until a text comes, or until the process has ended."""
        end = time.monotonic() + SLOWEST
        while text is None or text not in self.printed:
            assert time.monotonic() < end, self.printed
            if select.select([self._side], [], [], 1)[0]:
                try:
                    read = os.read(self._side, 4096)
                except OSError:  # its side is closed
                    break
                self.printed += read.decode(errors="replace")
        assert text is None or text in self.printed, self.printed

    def press(self, key):
        """Type a key."""
        os.write(self._side, key)

    def status(self):
        """Read what is left; the exit status."""
        self.read_until()
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self._side)
        return status


def test_each_run_is_seen_at_work(tmp_path):
    """Below the lines of the study, each run's last line; none is wider than the screen."""
    furnish(tmp_path)
    text = STUDY[: STUDY.index("learning_rates")].replace("seeds: 2", "seeds: 1")
    (tmp_path / "study.yaml").write_text(text)
    words = [python(), "-m", "distilllens", "study", "--config", "study.yaml", "--output", "out"]
    terminal = Terminal([*words, "--jobs", "2"], tmp_path, environment())
    terminal.read_until("kd/seed-1: ")
    terminal.read_until("lens/seed-1: ")
    assert terminal.status() == 0, terminal.printed
    runs, _, tables = terminal.printed.partition("Each method against kd")
    assert "report.html" in tables.splitlines()[-1]
    assert "2 of 2" in runs and max(map(len, re.split(r"[\r\n]", runs))) <= 100 + len(UP)


@pytest.mark.parametrize("moment", ["the teacher runs once", "kd/rate-0.001-seed-1: "])
def test_ctrl_c_ends_all_processes_in_one_line(tmp_path, moment):
    """While the process that is copied still imports, and while two runs are at work."""
    furnish(tmp_path)
    words = [sys.executable, "-m", "distilllens", "study", "--config", "study.yaml"]
    terminal = Terminal([*words, "--output", "out", "--jobs", "2"], tmp_path, environment())
    terminal.read_until(moment)
    terminal.press(b"\x03")
    assert terminal.status() == 130, terminal.printed
    assert "the same command goes on" in terminal.printed.splitlines()[-1]
    assert "Traceback" not in terminal.printed and "leaked" not in terminal.printed
