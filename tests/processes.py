"""Real processes of ours without the seconds of their imports; no test in here.

Each is a process of its own, alone or one of several ranks, and can be killed.
"""

import atexit
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import warm_python

from distilllens.kernel_caches import bound_kernel_caches

# For ``before``: stops after so many steps as at a SIGTERM, with a checkpoint.
STOP = """
import os, signal
from transformers.trainer_callback import CallbackHandler
def stop(self, args, state, control, step=CallbackHandler.on_step_end):
    if state.global_step == {step} and rank == 0:
        os.kill(os.getpid(), signal.SIGTERM)
    return step(self, args, state, control)
CallbackHandler.on_step_end = stop
"""
# Whatever hashes texts has another order than in the other processes; no fork, so seconds slower.
OTHER_HASHES = {"PYTHONHASHSEED": "1729"}
SLOWEST = 120  # seconds that a toy command may take on a busy machine
bound_kernel_caches()  # as in every process that has imported the package
# As it was before a test changed something of it.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
_COMMAND = """
import sys
from distilllens.__main__ import run

rank, before, *words = sys.argv[1:]
sys.argv = ["distilllens", *words]
exec(before, {"rank": int(rank)})
run()
"""
_started = {}  # pid -> process


@functools.cache
def python():
    """A program that is Python, with everything imported: ``[python(), "-m", "distilllens", ...]``.

    So are the processes that its processes start, such as torchrun's workers. For what is about
    imports or the start of a process, use ``sys.executable``.
    """
    folder = Path(tempfile.mkdtemp(prefix="warm-python-"))
    settings = {"python": sys.executable, "fixed": warm_python.fixed(ENVIRONMENT)}
    (folder / "server.json").write_text(json.dumps(settings))
    tests = Path(__file__).parent
    lines = [f"#!{sys.executable} -ISB", f"import sys; sys.path.append({str(tests)!r})"]
    lines += [f"import warm_python; warm_python.stand_in({str(folder)!r}, sys.argv[1:])", ""]
    (folder / "python").write_text("\n".join(lines))
    (folder / "python").chmod(0o700)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "socket"))
        listening.listen(64)
        server = subprocess.Popen(
            [sys.executable, warm_python.__file__, str(folder), str(listening.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=ENVIRONMENT,
            pass_fds=[listening.fileno()],
            # A signal to this process and all of its group is not for the server, which cleans up.
            start_new_session=True,
        )
    atexit.register(_end, server, folder, os.getpid())
    with server.stdout:  # limits of time are those of what is started, not of imports
        assert server.stdout.read(1), "the server has ended"
    return str(folder / "python")


def _end(server, folder, pid):
    if os.getpid() == pid:  # not in a child
        server.stdin.close()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def start(argv, folder, *, processes=1, before="", **environment):
    """Start a command in a folder; ``said.RANK.txt`` gets what each process writes.

    Args:
        before: Python statements that each process runs first, such as a patch; ``rank`` is its
            number.

    Returns:
        The numbers of the processes.
    """
    port, pids = free_port(), []
    for rank in range(processes):
        more = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes}
        more |= {"LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        more = {name: str(value) for name, value in more.items()} if processes > 1 else {}
        with open(Path(folder) / f"said.{rank}.txt", "w") as said:
            process = subprocess.Popen(
                [python(), "-c", _COMMAND, str(rank), before, *argv],
                cwd=folder,
                env=ENVIRONMENT | more | environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )
        _started[process.pid] = process
        pids.append(process.pid)
    return pids


def end(pid, timeout=SLOWEST):
    """The exit status of a process, negative of a signal; None if it is still there."""
    try:
        status = _started[pid].wait(timeout)
    except subprocess.TimeoutExpired:
        return None
    if status == -signal.SIGKILL:
        settle()
    return status


def kill(process):
    """Kill a `subprocess.Popen` of `python`, and return when nothing of it writes any more."""
    process.kill()
    process.wait()
    settle()


def settle():
    """Wait for the forks of all processes that were killed; they end a little later."""
    if python.cache_info().currsize:
        warm_python.settle(os.path.dirname(python()))


def ends(pids, timeout=SLOWEST):
    """The statuses of several, by a common deadline; those that are still there are killed."""
    deadline = time.monotonic() + timeout
    found = [end(pid, max(0, deadline - time.monotonic())) for pid in pids]
    for pid, status in zip(pids, found, strict=True):
        if status is None:
            os.kill(pid, signal.SIGKILL)
            end(pid)
    return found


def run(argv, folder, **more):
    """Run a command to its end; the statuses and texts of its processes."""
    pids = start(argv, folder, **more)
    return ends(pids), texts(folder, len(pids))


def texts(folder, processes=1):
    """What each process of the last command said."""
    return [(Path(folder) / f"said.{rank}.txt").read_text() for rank in range(processes)]


def wait_for(path, timeout=SLOWEST):
    """Return once a path exists."""
    deadline = time.monotonic() + timeout
    while not Path(path).exists():
        assert time.monotonic() < deadline, f"{path} was not made"
        time.sleep(0.005)


def free_port():
    """A port that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
