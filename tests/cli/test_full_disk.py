"""A full disk: one line with the file and how to go on, and the same command goes on."""

import errno
import os
from unittest.mock import Mock

import pytest
from toys import recipe

from distilllens.cli import main

EVALUATE = "evaluate --model student --benchmark train.jsonl --limit 2 --greedy --output out"
EVALUATE += " --max_new_tokens 4"
INSPECT = "inspect --teacher teacher --student student --prompt cat --output page.html --figures f"
TRAIN = "train --config recipe.yaml --report false"
CASES = {
    # the file whose writing fails -> the command
    "out/evaluation.json": EVALUATE,
    "out/train/student/references.jsonl": EVALUATE,
    "out/train/student/greedy.process-0.jsonl": EVALUATE,
    "out/timings.jsonl": EVALUATE,
    "out/complete.json": EVALUATE,
    "page.html": INSPECT,
    "f/entropy.svg": INSPECT,
    "f/entropy.png": INSPECT,
    "out/run.json": TRAIN,
    "out/run.lock": TRAIN,
}


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs the names of open files")
@pytest.mark.parametrize("file", CASES)
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(workshop, capsys, monkeypatch, file):
    """The system does not say which file it was; nothing half written stays."""
    pytest.importorskip("matplotlib")
    recipe(workshop)
    real = {"fsync": os.fsync, "pwrite": os.pwrite}

    def full(name):
        def wrapped(number, *args):
            path = os.readlink(f"/proc/self/fd/{number}")
            if path.removesuffix(f".{os.getpid()}.part") == str(workshop.resolve() / file):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real[name](number, *args)

        return wrapped

    with monkeypatch.context() as patched:
        for name in real:
            patched.setattr(os, name, full(name))
        assert main(CASES[file].split()) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error == (
        f"distilllens: error: {file} cannot be written: No space left on device; make room, and "
        "repeat the same command"
    )
    assert not list(workshop.rglob("*.part"))
    assert main(CASES[file].split()) == 0
    assert (workshop / file).exists() or file in ("out/run.lock", list(CASES)[2])


def test_an_error_without_a_file_says_how_to_go_on(capsys, monkeypatch):
    """A library's; and other errors of the system keep their words."""
    for number, words in (
        (errno.ENOSPC, "No space left on device; make room, and repeat the same command"),
        (errno.EACCES, "[Errno 13] Permission denied"),
    ):
        error = OSError(number, os.strerror(number))
        monkeypatch.setattr("distilllens.cli._dispatch", Mock(side_effect=error))
        assert main(["inspect"]) == 2
        assert capsys.readouterr().err.strip().endswith(f"error: {words}")
