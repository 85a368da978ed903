"""The stand-ins of ``processes.python`` are what they stand for, and nothing of them stays."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import processes
import pytest
import warm_python

TESTS = Path(__file__).parent
STAND_IN = f"""
import sys
sys.path.append({str(TESTS)!r})
import warm_python
warm_python.stand_in(sys.argv[1], ["-c", "pass"])
"""


@pytest.mark.parametrize(
    ("said", "status", "error"),
    [
        (b"%d\n0\n", 0, ""),  # both at once: the fork was quick
        (b"%d\n3\n", 3, ""),
        (b"%d\n-15\n", -signal.SIGTERM, ""),
        (b"%d\n", -signal.SIGKILL, ""),  # the server was killed
        (b"", 1, "warm_python: the server ended before it had started this command\n"),
    ],
)
def test_a_stand_in_ends_as_its_fork_did(tmp_path, said, status, error):
    """However the server's words come."""
    settings = {"python": sys.executable, "fixed": warm_python.fixed(os.environ)}
    (tmp_path / "server.json").write_text(json.dumps(settings))
    said = said.replace(b"%d", b"%d" % os.getpid())

    def answer():
        connection, _ = listening.accept()
        with connection:
            _, files = warm_python._received(connection)
            for file in files:
                os.close(file)
            connection.sendall(said)

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        listening.listen()
        threading.Thread(target=answer, daemon=True).start()
        command = [sys.executable, "-ISB", "-c", STAND_IN, str(tmp_path)]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert (done.returncode, done.stderr) == (status, error)


# A process with a server that imports nothing, and one fork.
OWNER = f"""
import os, subprocess, sys, time
sys.path.append({str(TESTS)!r})
import processes, warm_python
warm_python.__file__ = sys.argv[1]
process = subprocess.Popen([processes.python(), "-c", sys.argv[2]], stdout=subprocess.PIPE)
fork = process.stdout.readline().decode().strip()
child = os.fork() if sys.argv[3] == "child" else 0
if child == 0 and sys.argv[3] == "child":
    os.close(1)
    os.close(2)
    time.sleep(600)
print(os.path.dirname(processes.python()), fork, child, flush=True)
sys.stdin.read()
"""
SERVER = f"""
import sys
sys.path.append({str(TESTS)!r})
import warm_python
warm_python._IMPORTED = ()
warm_python._as_if_new = lambda *given: None
warm_python.serve(*sys.argv[1:])
"""
FORK = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"


@pytest.mark.parametrize("how", ["end", "SIGTERM", "SIGTERM to all", "SIGKILL", "child"])
def test_a_server_ends_with_the_process_that_started_it(tmp_path, how):
    """Killed or not, and whatever its children hold; with its folder and its forks."""
    (tmp_path / "server.py").write_text(SERVER)
    command = [sys.executable, "-c", OWNER, str(tmp_path / "server.py"), FORK, how]
    owner = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        start_new_session=True,
    )
    with owner:
        folder, *pids = owner.stdout.readline().decode().split()
        fork, child = map(int, pids)
        assert Path(folder).parent == tmp_path and Path(folder, "socket").exists()
        if how == "SIGTERM to all":
            os.killpg(owner.pid, signal.SIGTERM)
        elif how == "SIGTERM":
            owner.terminate()
        elif how != "end":
            owner.kill()
    try:
        deadline = time.monotonic() + 60
        while Path(folder).exists() or is_there(fork):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        if child:
            os.kill(child, signal.SIGKILL)


def is_there(pid):
    """Whether a process exists and has not ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def python(*words, **environment):
    return subprocess.Popen(
        [processes.python(), *words], stdout=subprocess.PIPE, env=os.environ | environment
    )


@pytest.mark.slow
def test_nothing_of_a_killed_process_is_left():
    """Its fork ends a little later than what stands for it."""
    for _ in range(5):
        with python("-c", FORK) as process:
            fork = int(process.stdout.readline())
            assert fork != process.pid and is_there(fork)
            processes.kill(process)
            assert not is_there(fork)


@pytest.mark.slow
def test_only_a_fork_has_everything_imported():
    """What is read at imports is as it was asked for; each number of threads can be a fork's."""
    code = "import sys; print('torch' in sys.modules)"
    for name in ("OMP_NUM_THREADS", "TORCH_NCCL_ASYNC_ERROR_HANDLING", "DISTILLLENS_DEBUG"):
        with python("-c", code, **{name: "1"}) as process:
            assert process.stdout.read() == b"True\n"
    for name in ("PYTHONHASHSEED", "TORCH_CPP_LOG_LEVEL", "TQDM_DISABLE", "OMP_DYNAMIC"):
        with python("-c", code, **{name: "1"}) as process:
            assert process.stdout.read() == b"False\n"


@pytest.mark.slow
def test_unbuffered_is_unbuffered():
    """As torchrun starts its workers: not a letter waits."""
    code = "import sys, time; sys.stdout.write('x'); time.sleep(600)"
    with python("-u", "-c", code) as process:
        assert process.stdout.read(1) == b"x"
        processes.kill(process)
