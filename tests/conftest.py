"""Weather for every test: no network, one thread, the shared folder where there is one."""

import gc
import json
import os
import signal
import socket
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import processes
import pytest
import torch
import warm_python

torch.set_num_threads(1)
# A shell ignores Ctrl-C in what it runs in the background, and so would all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config, items):
    """Tests of minutes run only where they are asked for by their mark."""
    for item in items:
        for mark in ("faults", "fuzz"):
            if item.get_closest_marker(mark) and mark not in config.option.markexpr:
                item.add_marker(pytest.mark.skip(reason=f"only with -m {mark}"))


def pytest_collection_finish():
    """What imports have left is never looked at again for garbage.

    Each training begins with a full collection, which took longer than its steps.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def same_environment():
    """What libraries set at their import, such as scikit-learn's KMP_ variables, does not stay.

    With other variables than at the start, commands of tests would no longer be forks.
    """
    start = warm_python.fixed(processes.ENVIRONMENT)

    def restore():
        for name in warm_python.fixed(os.environ).keys() - start.keys():
            del os.environ[name]
        os.environ.update(start)

    restore()
    yield
    restore()


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Connections that leave the machine fail at once."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test tried to reach {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def shared():
    """The folder of real data, models and tokenizers; tests that need it skip without it."""
    folder = os.environ.get("DISTILLLENS_SHARED")
    if not folder:
        pytest.skip("DISTILLLENS_SHARED is not set")
    return Path(folder)


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    """A folder with a student, a teacher and data; the test runs inside it."""
    import toys

    toys.llama(3, 16).save_pretrained(tmp_path / "student")
    toys.llama(4, 24, seed=1).save_pretrained(tmp_path / "teacher")
    for name in ("student", "teacher"):
        toys.tokenizer().save_pretrained(tmp_path / name)
    (tmp_path / "teacher" / "trainer_state.json").write_text("{}")  # as if it were a checkpoint
    rows = [
        {"instruction": e["prompt"], "output": e["completion"].strip()} for e in toys.examples(8)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISTILLLENS_DEBUG", raising=False)
    return tmp_path
