"""One evaluation on several processes."""

import processes
import pytest
import torch

from distilllens.evaluate import processes as evaluation
from distilllens.evaluate.processes import Process, this_process

CPU = torch.device("cpu")


def test_without_a_launcher_there_is_one_process(monkeypatch):
    """It is the main one, and its errors keep their types."""
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    process = this_process("cpu")
    assert process == Process(0, 1, CPU) and process.is_main
    with pytest.raises(OSError, match="disk full"), process.together():
        raise OSError("disk full")


@pytest.mark.parametrize(
    ("others", "raised", "message"),
    [
        ([None, "no such model"], None, "no such model"),  # another process failed
        (["too long", "no such model"], ValueError("too long"), "too long"),  # the first one counts
        (["KeyError", None], OSError(), "KeyError"),
    ],
)
def test_an_error_of_one_process_is_raised_by_all(monkeypatch, others, raised, message):
    """No process waits for one that has failed; the message is that of the lowest rank."""

    def gather(into, value):
        into[:] = others

    monkeypatch.setattr(evaluation.distributed, "all_gather_object", gather)
    with pytest.raises(ValueError, match=f"^{message}$"), Process(1, 2, CPU).together():
        if raised:
            raise raised


def test_an_error_of_the_program_is_not_collected(monkeypatch):
    """A bug ends its process with its own traceback."""
    monkeypatch.setattr(evaluation.distributed, "all_gather_object", None)
    with pytest.raises(ZeroDivisionError), Process(0, 2, CPU).together():
        _ = 1 / 0


# What happens to process 1 while it answers -> what process 0 says, and the statuses.
FAULTS = {
    "SIGKILL": (
        "os.kill(os.getpid(), 9)",
        "process 1 ended without a word, or did not answer for ",
    ),
    "any error": ("raise RuntimeError('no memory')", "process 1 has ended: no memory"),
    "an error of the user's": ("raise ValueError('a bad row')", "a bad row"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", ["SIGKILL", *(pytest.param(f, marks=pytest.mark.faults) for f in [*FAULTS][1:])]
)
def test_a_fault_of_one_process_ends_both(workshop, fault):
    """Soon, and with one line; the same command goes on to what one process would write."""
    statement, line = FAULTS[fault]
    before = f"""
import os
from distilllens.evaluate.answering import Answering
def answer(self, candidate, _answer=Answering.__call__):
    if rank == 1:
        {statement}
    return _answer(self, candidate)
Answering.__call__ = answer
"""
    words = ["evaluate", "--model", "student", "--benchmark", "train.jsonl", "--max_new_tokens"]
    words += ["6", "--greedy", "--device", "cpu", "--output"]
    statuses, said = processes.run([*words, "results"], workshop, processes=2, before=before)
    assert statuses[0] == 2 and statuses[1] not in (0, None), said
    lines = [text for text in said[0].splitlines() if text.startswith("distilllens:")]
    assert len(lines) == 1 and lines[0].startswith(f"distilllens: error: {line}"), said
    assert "Traceback" not in said[0]
    for folder, number in (("results", 2), ("alone", 1)):
        statuses, said = processes.run([*words, folder], workshop, processes=number)
        assert {*statuses} == {0}, said
    found, whole = ((workshop / name / "scores.md").read_text() for name in ("results", "alone"))
    assert found == whole


def test_a_device_that_is_not_there_is_named():
    """In one line."""
    with pytest.raises(ValueError, match=r"^--device abacus cannot be used: ") as error:
        this_process("abacus")
    assert "\n" not in str(error.value)
