"""A teacher at a server as a source of predictions."""

import math
import subprocess
import sys
import threading
import time

import pytest
import torch

from distilllens.targets import Targets
from distilllens.teacher import ServedTeacher
from distilllens.teacher.served import top_predictions


def ask(ids):
    """Two tokens in each place: the one that is there, and the next number."""
    return [{token: math.log(0.75), token + 1: math.log(0.125)} for token in ids[1:]]


def test_each_document_is_asked_for_up_to_its_last_target():
    """Packed and padded documents; rows are in the order of the targets."""
    asked = []

    def noted(ids):
        asked.append(ids)
        return ask(ids)

    ids = torch.tensor([[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 0, 0]])
    labels = torch.tensor([[-100, 2, -100, -100, 5, -100], [-100, -100, 9, 10, -100, -100]])
    targets = Targets.of(labels)
    states, head = ServedTeacher(noted, 2).read(
        (),
        targets=targets,
        input_ids=ids,
        attention_mask=torch.tensor([[1] * 6, [1] * 4 + [0] * 2]),
        position_ids=torch.tensor([[0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 4, 5]]),
    )
    assert head is None and sorted(asked) == [[1, 2], [4, 5], [7, 8, 9, 10]]
    assert states.final.ids.tolist() == [[t, t + 1] for t in targets.ids.tolist()]
    assert states.final.tail.tolist() == pytest.approx([0.125] * 4)


def test_a_batch_without_a_target_has_no_row():
    """Nothing is asked for."""
    ids = torch.tensor([[1, 2, 3]])
    targets = Targets.of(torch.full_like(ids, -100))
    states, _ = ServedTeacher(ask, 2).read((), targets=targets, input_ids=ids)
    assert states.final.ids.shape == (0, 2) and len(states.final) == 0


ROWS = {
    "fewer": ([{1: -0.7, 2: -1.0}], 3, "returned 2 of the 3 log-probabilities"),
    "not logs": ([{1: 0.5, 2: 0.4}], 2, "no log-probabilities: those of one position sum to"),
}


@pytest.mark.parametrize("name", ROWS)
def test_what_is_no_distribution_is_refused(name):
    """Fewer tokens than asked for, unless they are all; numbers that are no log-probabilities."""
    rows, top_k, match = ROWS[name]
    with pytest.raises(ValueError, match=match):
        top_predictions(rows, top_k)
    assert top_predictions([{1: math.log(0.5), 2: math.log(0.5)}], 3).whole


def test_there_are_no_hidden_states():
    """Depths are refused."""
    ids = torch.tensor([[1, 2, 3]])
    with pytest.raises(ValueError, match="no hidden states"):
        ServedTeacher(ask, 2).read((1,), targets=Targets.of(ids), input_ids=ids)


def batch(rows):
    """As many documents of three tokens."""
    ids = torch.tensor([[1, 2, 3]] * rows)
    return {"targets": Targets.of(ids), "input_ids": ids}


def test_what_waits_behind_a_failed_request_is_not_asked():
    """Of 200 documents, at most those that eight threads have begun; the next batch is answered."""
    asked, fails = [], threading.Event()
    fails.set()

    def failing(ids):
        asked.append(ids)
        time.sleep(0.02)
        if fails.is_set():
            raise OSError("the server is gone")
        return ask(ids)

    teacher = ServedTeacher(failing, 2)
    with pytest.raises(OSError, match="is gone"):
        teacher.read((), **batch(200))
    fails.clear()
    states, _ = teacher.read((), **batch(2))
    assert states.final.ids.tolist() == [[2, 3], [3, 4]] * 2
    assert len(asked) <= 2 * 8 + 2


def test_a_teacher_that_is_gone_asks_nothing_more():
    """What was sent and never read, where a step fails elsewhere; its threads end."""
    asked, go = [], threading.Event()

    def held(ids):
        asked.append(ids)
        go.wait(20)
        return ask(ids)

    before = threading.active_count()
    teacher = ServedTeacher(held, 2)
    teacher.begin((), **batch(50))
    del teacher
    go.set()
    for _ in range(200):
        if threading.active_count() == before:
            break
        time.sleep(0.05)
    assert threading.active_count() == before and len(asked) <= 8


HANGING = """
import sys, time, torch
from distilllens.targets import Targets
from distilllens.teacher import ServedTeacher

def hangs(ids):
    if ids[0] == 1:
        raise OSError("the server is gone")
    time.sleep(100)

ids = torch.tensor([[1, 2, 3]] + [[2, 3, 4]] * 30)
end_read = ServedTeacher(hangs, 2).begin((), targets=Targets.of(ids), input_ids=ids)
if sys.argv[1] == "elsewhere":
    raise OSError("out of memory is gone")
end_read()
"""


@pytest.mark.parametrize("where", ["in the request", "elsewhere"])
def test_a_hanging_server_does_not_hold_a_process_that_fails(where):
    """It ends with the error while requests hang and others wait, all of which take 100 s each."""
    start = time.monotonic()
    found = subprocess.run(
        [sys.executable, "-c", HANGING, where], capture_output=True, text=True, timeout=90
    )
    assert found.returncode == 1 and found.stderr.splitlines()[-1].endswith("is gone")
    assert time.monotonic() - start < 80
