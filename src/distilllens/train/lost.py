"""A fault of one process of a run ends all of them, and so does what they do not see alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.utils import gather_object

from distilllens import lost
from distilllens.train._trl import default_store, set_timeout


@contextmanager
def faults_told(ddp_timeout: float) -> Iterator[None]:
    """``distilllens.lost.faults_told`` among the processes of training.

    Args:
        ddp_timeout: seconds after which a process that does not answer counts as lost.

    Raises:
        LostProcess: another process is gone, or does not answer.
    """
    set_timeout(ddp_timeout)
    with lost.faults_told(default_store, "ddp_timeout seconds"):
        yield


def check_agreed(what: str, value: object):
    """Refuse what one process sees otherwise than process 0.

    Args:
        what: for the message; found in ``output_dir``.

    Raises:
        ValueError: on all processes, with what two of them see.
    """
    first, *others = gather_object([str(value)])
    for rank, other in enumerate(others, start=1):
        if other != first:
            raise ValueError(
                f"{what} is {first} for process 0 and {other} for process {rank}; output_dir must "
                "be a folder that all processes see, whose disk is sound"
            )
