"""Two runs never write into one folder."""

import os
import signal
import subprocess
import sys

import pytest
from toys import recipe

from distilllens.cli import main
from distilllens.train.run_lock import LOCK_FILE, claimed

HOLDER = """
import sys, time
from distilllens.train.run_lock import claimed
with claimed(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of ``tmp_path / "out"``."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_run_is_refused_and_told_by_whom(holder, workshop, capsys):
    """One line; when the first is killed, the folder is free, whatever it left."""
    recipe(workshop)
    assert main(["train", "--config", "recipe.yaml"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"output_dir out is in use by another run (process {holder.pid})" in line
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (workshop / "out" / LOCK_FILE).exists()
    assert main(["train", "--config", "recipe.yaml"]) == 0
    assert not (workshop / "out" / LOCK_FILE).exists()


def test_a_child_of_a_dead_run_does_not_keep_the_lock(tmp_path):
    """Such as a data loader's process, which inherits open files."""
    with claimed(tmp_path):
        ready, told = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(told, b"x")
            signal.pause()
        os.read(ready, 1)
    try:
        with claimed(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_other_processes_of_a_run_share_the_lock_of_the_main_one(tmp_path, monkeypatch):
    """Of torchrun's processes, the one of rank 0 holds it."""
    with claimed(tmp_path):
        monkeypatch.setenv("RANK", "1")
        with claimed(tmp_path):
            pass
        assert (tmp_path / LOCK_FILE).exists()


@pytest.mark.parametrize("kind", ["link", "folder", "text", "pipe"])
def test_a_foreign_thing_in_the_place_of_the_lock_is_left_alone(tmp_path, kind):
    """It is neither followed, nor emptied, nor removed."""
    mine, lock = tmp_path / "mine.txt", tmp_path / "out" / LOCK_FILE
    mine.write_text("123")
    lock.parent.mkdir()
    make = {
        "link": lambda: lock.symlink_to(mine),
        "folder": lock.mkdir,
        "text": lambda: lock.write_text("my notes"),
        "pipe": lambda: os.mkfifo(lock),
    }
    make[kind]()
    with (
        pytest.raises(ValueError, match=r"run\.lock is in the place of our lock"),
        claimed(lock.parent),
    ):
        pass
    assert mine.read_text() == "123"
    assert kind != "text" or lock.read_text() == "my notes"
    assert os.path.lexists(lock)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser writes everywhere")
def test_a_folder_that_cannot_be_written_needs_no_lock(tmp_path):
    """A finished run there can still be found finished."""
    tmp_path.chmod(0o500)
    with claimed(tmp_path):
        assert not list(tmp_path.iterdir())
    tmp_path.chmod(0o700)


def test_a_run_that_cannot_start_leaves_nothing(workshop, capsys):
    """Neither the lock nor the folder that was made for it."""
    recipe(workshop, lr_scheduler_type="cosine", lr_scheduler_kwargs={"foo": 1})
    assert main(["train", "--config", "recipe.yaml"]) == 2
    assert not (workshop / "out").exists()
