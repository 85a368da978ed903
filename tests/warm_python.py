"""A stand-in for the interpreter: a process forked from one that has imported everything.

Whoever starts it (``subprocess``, ``multiprocessing``, torchrun) starts it as Python, with ``-m``,
``-c`` or a file. It hands its arguments, folder, environment and open files to a server, which
forks; then it passes signals on, and ends as the fork does. Where only a new process will do, it
becomes one. It imports little, for each start pays for that. No test in here.
"""

import array
import contextlib
import gc
import json
import os
import select
import signal
import socket
import struct
import sys

# Read when Python or a library is loaded: with other values, a process of its own is started.
_FIXED = ("ACCELERATE_ENABLE_RICH", "ACCELERATE_LOG_LEVEL", "ACCELERATE_USE_MEGATRON_LM", "AOT")
_FIXED += ("ARROW_", "CI", "DATASETS_", "DNNL_", "FX_", "GOMP_", "HF_", "HOME", "HUGGINGFACE_")
_FIXED += ("KINETO_", "KMP_", "LANG", "LC_", "LD_", "LOGLEVEL", "LRU_CACHE_", "MKL", "MPL", "NPY_")
_FIXED += ("NUMPY_", "OMP_", "ONEDNN_", "OPENBLAS_", "PANDAS_", "PYTHON", "PYTORCH_", "SCIPY_")
_FIXED += ("SYMPY_", "TEMP", "TMP", "TOKENIZERS_", "TORCHDYNAMO_", "TORCHINDUCTOR_", "TORCH_")
_FIXED += ("TQDM_", "TRANSFORMERS_", "TRITON_", "TRL_", "USE_", "XDG_")
# Of these, what is read later, or what a fork takes up itself.
_NOT_FIXED = ("OMP_NUM_THREADS", "PYTHONPATH", "TORCHINDUCTOR_CACHE_DIR", "TORCH_NCCL_")
_PASSED_ON = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2")
_SIZE = struct.Struct("!I")  # of a request, in bytes
_IMPORTED = (
    "datasets",
    "torch.distributed.run",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
    "distilllens.cli.train_arguments",
    "distilllens.workflows.cache",
    "distilllens.workflows.evaluate",
    "distilllens.workflows.generate",
    "distilllens.workflows.study.worker",
    "distilllens.workflows.train",
)
_HIGH = 512  # a fork's files are moved here, then to their own numbers


def fixed(environment):
    """The variables of which a fork has the server's values."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(_FIXED) and not name.startswith(_NOT_FIXED)
    }


def stand_in(folder, arguments):
    """Run Python with these arguments, as a fork of the server in a folder; does not return."""
    with open(os.path.join(folder, "server.json"), encoding="utf-8") as file:
        server = json.load(file)
    unbuffered = arguments[:1] == ["-u"]  # as torchrun starts its workers
    words = arguments[unbuffered:]
    known = words and (words[0] in ("-m", "-c") or not words[0].startswith("-"))
    if not known or fixed(os.environ) != server["fixed"]:
        os.execv(server["python"], [server["python"], *arguments])
    numbers = [getattr(signal, name) for name in _PASSED_ON]
    ignored = [number for number in numbers if signal.getsignal(number) == signal.SIG_IGN]
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    files = _open_files()
    request = {"arguments": words, "folder": os.getcwd(), "environment": dict(os.environ)}
    request |= {"files": files, "ignored": ignored, "session": os.getsid(0) == os.getpid()}
    request["unbuffered"] = unbuffered
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.path.join(folder, "socket"))
    data = json.dumps(request).encode()
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))
    connection.sendmsg([_SIZE.pack(len(data))], [rights])
    connection.sendall(data)
    replies = connection.makefile("rb")  # a fork may have ended before its number is read here
    pid = _number(replies.readline())
    if pid is None:
        sys.exit("warm_python: the server ended before it had started this command")

    def pass_on(number, frame):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    for number in {*numbers} - {*ignored}:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    status = _number(replies.readline())
    if status is None:  # the server has ended, and with it what it had started
        status = -signal.SIGKILL
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def _number(line):
    """None of a line that is not whole."""
    return int(line) if line.endswith(b"\n") else None


def settle(folder):
    """Return once the forks of all stand-ins that were killed until now have ended."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.path.join(folder, "socket"))
        connection.sendall(_SIZE.pack(0))
        connection.recv(16)


def _open_files():
    found = []
    for number in sorted(map(int, os.listdir("/dev/fd"))):
        with contextlib.suppress(OSError):  # of the list itself
            os.fstat(number)
            found.append(number)
    return found


def serve(folder, number):
    """Import everything, fork for each stand-in until whoever started this ends; run what it asks.

    Args:
        number: of the listening socket, which is open.
    """
    listening, parent = socket.socket(fileno=int(number)), os.getppid()
    path, before = sys.path[1:], {*os.environ}
    _import_everything()
    with contextlib.suppress(BrokenPipeError):  # seen again below
        os.write(1, b"!")  # for processes.python, which waits for it
    gc.freeze()  # a collection in a fork would copy what it looks at
    set_by_imports = {name: value for name, value in os.environ.items() if name not in before}
    request, files = _forked(listening, folder, parent)
    listening.detach()
    _move(files, request["files"])
    os.environ.clear()
    os.environ.update(set_by_imports | request["environment"])
    if request["session"]:
        os.setsid()
    os.chdir(request["folder"])
    _as_if_new(os.path.join(folder, "python"), request)
    status = 1
    try:
        _run(request["arguments"], path)
        status = 0
    except SystemExit as end:
        status = _status(end.code)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    _leave(status)


def _import_everything():
    from importlib import import_module

    for name in _IMPORTED:
        import_module(name)


def _forked(listening, folder, parent):
    """Returns in forks alone: the request, and the numbers of its files here."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    forks = {}  # connection -> pid
    while True:
        ready, _, _ = select.select([0, woken, listening, *forks], [], [], 1)
        # A child of the parent's may hold the other end of the pipe when the parent is gone.
        if 0 in ready or os.getppid() != parent:
            _end_all(forks, folder)
        if woken in ready:
            os.read(woken, 4096)
        _see_ends(forks)
        if listening in ready:
            connection, _ = listening.accept()
            request, files = _received(connection)
            _see_ends(forks)  # of all that had ended before this came
            if not request:
                _tell(connection, 0)
                connection.close()
                continue
            pid = os.fork()
            if pid == 0:
                for one in (connection, *forks):
                    one.detach()
                return request, files
            for file in files:
                os.close(file)
            forks[connection] = pid
            _tell(connection, pid)


def _see_ends(forks):
    lost, _, _ = select.select([*forks], [], [], 0)
    for connection, pid in [*forks.items()]:
        # The stand-in was killed, and so is its fork, before the same command can come again.
        if connection in lost:
            os.kill(pid, signal.SIGKILL)
        found, status = os.waitpid(pid, 0 if connection in lost else os.WNOHANG)
        if found:
            _tell(connection, os.waitstatus_to_exitcode(status))
            del forks[connection]
            connection.close()


def _end_all(forks, folder):
    import shutil

    for pid in forks.values():
        os.kill(pid, signal.SIGKILL)
    for pid in forks.values():
        os.waitpid(pid, 0)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def _tell(connection, number):
    with contextlib.suppress(ConnectionError):
        connection.sendall(b"%d\n" % number)


def _received(connection):
    """A request and its open files; None of `settle`, or of one killed before it had asked."""
    data, rights, _, _ = connection.recvmsg(_SIZE.size, socket.CMSG_SPACE(4 * 253))
    files = array.array("i")
    for _, _, found in rights:
        files.frombytes(found)
    size, request = _SIZE.unpack(data)[0] if data else 1, b""
    while len(request) < size:
        request += (more := connection.recv(size - len(request)))
        if not more:
            for file in files:
                os.close(file)
            return None, None
    return json.loads(request) if request else None, files


def _move(files, numbers):
    """Give files the numbers that they had; everything else is closed."""
    import fcntl

    high = [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, _HIGH) for file in files]
    os.closerange(0, _HIGH)
    for file, number in zip(high, numbers, strict=True):
        os.dup2(file, number)
    os.closerange(_HIGH, max(high) + 1)


def _as_if_new(python, request):
    """Signals, threads, random numbers, standard output and what starts other processes."""
    import io
    import multiprocessing

    import numpy
    import torch

    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in request["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count()))
    numpy.random.seed()
    sys.executable = python
    multiprocessing.set_executable(python)
    sys.stdout.reconfigure(line_buffering=os.isatty(1))
    if request["unbuffered"]:  # standard error writes every line at once as it is
        names = {"encoding": sys.stdout.encoding, "errors": sys.stdout.errors}
        raw = io.FileIO(1, "w", closefd=False)
        sys.stdout = sys.__stdout__ = io.TextIOWrapper(raw, **names, write_through=True)


def _run(words, path):
    """What Python does with ``-m``, ``-c`` or a file."""
    import runpy
    from types import ModuleType

    added = [one for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one]
    sys.path[:] = ["", *(one for one in added if one not in path), *path]
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv, sys.modules["__main__"] = ["-c", *words[2:]], (main := ModuleType("__main__"))
        exec(compile(words[1], "<string>", "exec"), main.__dict__)
    else:
        sys.argv, sys.path[0] = words, os.path.dirname(os.path.abspath(words[0]))
        runpy.run_path(words[0], run_name="__main__")


def _status(code):
    if code is None or isinstance(code, int):
        return (code or 0) & 255
    print(code, file=sys.stderr)
    return 1


def _leave(status):
    """Python's own end, without the seconds in which it frees every object of every library."""
    import atexit
    import threading

    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    serve(*sys.argv[1:])
