"""One evaluation on several processes."""

import pytest
import torch

from distilllens.evaluate import processes
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

    monkeypatch.setattr(processes.distributed, "all_gather_object", gather)
    with pytest.raises(ValueError, match=f"^{message}$"), Process(1, 2, CPU).together():
        if raised:
            raise raised


def test_an_error_of_the_program_is_not_collected(monkeypatch):
    """A bug ends its process with its own traceback."""
    monkeypatch.setattr(processes.distributed, "all_gather_object", None)
    with pytest.raises(ZeroDivisionError), Process(0, 2, CPU).together():
        _ = 1 / 0


def test_a_device_that_is_not_there_is_named():
    """In one line."""
    with pytest.raises(ValueError, match=r"^--device abacus cannot be used: ") as error:
        this_process("abacus")
    assert "\n" not in str(error.value)
