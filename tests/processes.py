"""Real processes of ours without the seconds of their imports; no test in here.

A server imports everything once and forks: each fork is a process of its own that runs a command as
``python -m distilllens`` does, alone or as one of several ranks, and can be killed.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

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
SLOWEST = 120  # seconds that a toy command may take on a busy machine


class Server:
    """Forks processes; ``start`` returns their numbers, ``end`` waits for one of them."""

    def __init__(self):
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ask(self, **request):
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, argv, folder, *, processes=1, before="", **environment):
        """Start a command in a folder; ``said.RANK.txt`` gets what each process writes.

        Args:
            before: Python statements that each process runs first, such as a patch; ``rank`` is its
                number.
        """
        port, pids = free_port(), []
        for rank in range(processes):
            more = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes}
            more |= {"LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            more = {name: str(value) for name, value in more.items()} if processes > 1 else {}
            request = {"argv": argv, "folder": str(folder), "rank": rank, "before": before}
            pids.append(self.ask(**request, environment=more | environment))
        return pids

    def end(self, pid, timeout=SLOWEST):
        """The exit status of a process, negative of a signal; None if it is still there."""
        return self.ask(wait=pid, timeout=timeout)

    def ends(self, pids, timeout=SLOWEST):
        """The statuses of several, by a common deadline; those that are still there are killed."""
        deadline, found = time.monotonic() + timeout, []
        for pid in pids:
            found.append(self.end(pid, max(0, deadline - time.monotonic())))
        for pid, status in zip(pids, found, strict=True):
            if status is None:
                os.kill(pid, signal.SIGKILL)
                self.end(pid)
        return found

    def run(self, argv, folder, **more):
        """Run a command to its end; the statuses and texts of its processes."""
        pids = self.start(argv, folder, **more)
        return self.ends(pids), texts(folder, len(pids))

    def close(self):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def texts(folder, processes=1):
    """What each process of the last command said."""
    return [(Path(folder) / f"said.{rank}.txt").read_text() for rank in range(processes)]


def wait_for(path, pids=(), timeout=SLOWEST):
    """Return once a path exists."""
    deadline = time.monotonic() + timeout
    while not Path(path).exists():
        assert time.monotonic() < deadline, f"{path} was not made"
        time.sleep(0.005)


@contextmanager
def served():
    """A server for a block, as ``fixture(scope="module")`` of a test file."""
    server = Server()
    try:
        yield server
    finally:
        server.close()


def free_port():
    """A port that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _child(request):
    os.chdir(request["folder"])
    said = os.open(f"said.{request['rank']}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for file, number in ((nothing, 0), (said, 1), (said, 2)):
        os.dup2(file, number)
    os.environ.update(request["environment"])
    sys.argv = ["distilllens", *request["argv"]]
    from distilllens.__main__ import run

    exec(request["before"], {"rank": request["rank"]})
    run()


def _serve():
    import datasets  # noqa: F401
    import torch

    import distilllens.cli.train_arguments
    import distilllens.workflows.cache
    import distilllens.workflows.generate
    import distilllens.workflows.train  # noqa: F401

    torch.set_num_threads(1)
    statuses = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            pid, deadline = request["wait"], time.monotonic() + request["timeout"]
            while pid not in statuses:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    statuses[pid] = os.waitstatus_to_exitcode(status)
                elif time.monotonic() > deadline:
                    break
                else:
                    time.sleep(0.01)
            answer = statuses.get(pid)
        else:
            answer = os.fork()
            if answer == 0:
                try:
                    _child(request)
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
