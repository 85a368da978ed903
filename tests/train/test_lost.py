"""A fault of one of two processes: both end soon, with one line and a status that is not 0."""

import os
import re
import signal
import time

import processes
import pytest
import torch
import toys
from fault_rows import found

from distilllens.train import lost

TRAIN = ["train", "--config", "recipe.yaml"]
HERE = "tests/train/test_lost.py::"
SECONDS = 45  # by which all have ended on a busy machine; ddp_timeout is 1800 s by default
# At the third step of rank 1.
AT_STEP_3 = """
from distilllens.train.trainer import DistillLensTrainer as T
def loss(self, *args, _loss=T.compute_loss, **kwargs):
    value = _loss(self, *args, **kwargs)
    if rank == 1 and self.state.global_step == 2:
        {fault}
    return value
T.compute_loss = loss
"""
AT_SAVE = """
import resource, signal
from distilllens.train.safe_trainer import SafeTrainer as T
def save(self, *args, _save=T._save_checkpoint):
    if rank == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
    return _save(self, *args)
T._save_checkpoint = save
"""
IN_DATA = """
import distilllens.workflows.train_data as data
def load(*args, _load=data.load_all):
    if rank == 1:
        raise ValueError("train.jsonl, line 7: no JSON")
    return _load(*args)
data.load_all = load
"""
FAULTS = {
    "a loss that is not finite": (
        AT_STEP_3.format(fault="value = value * float('nan')"),
        "error: the gradient is not finite (nan) at step 3; out/checkpoint-2 is the last",
    ),
    "any error": (
        AT_STEP_3.format(fault="raise ValueError('a bad row')"),
        "error: process 1 has ended: a bad row",
    ),
    "a full disk on rank 0": (AT_SAVE, "could not be saved in out"),
    "bad data": (IN_DATA, "error: process 1 has ended: train.jsonl, line 7: no JSON"),
    "a process that hangs": (
        AT_STEP_3.format(fault="import time; time.sleep(30)"),
        "error: process 1 ended without a word, or did not answer for ddp_timeout seconds",
    ),
}


def error_of(text):
    """The one line of a process, from "distilllens:" on."""
    lines = [line for line in text.splitlines() if line.startswith("distilllens:")]
    assert len(lines) == 1, text
    return lines[0]


def in_words(statuses, text):
    """What a user sees of a fault, without what gloo says, which depends on who was waiting."""
    line = re.sub(r"(last save \(process \d: ).+\)$", r"\1...)", error_of(text))
    return f"both end, status {' and '.join(map(str, statuses))}: `{line}`"


def ended(pids, workshop, seconds=SECONDS):
    """Statuses and texts of two processes, none of which is there after so long."""
    since = time.monotonic()
    statuses = processes.ends(pids, seconds)
    said = processes.texts(workshop, 2)
    assert None not in statuses, said
    assert all(status != 0 for status in statuses), (statuses, said)
    assert all("Traceback" not in text for text in said), said
    print(f"{time.monotonic() - since:.1f} s")
    return statuses, said


GONE = "[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"
NO_WORD = "ended without a word, or did not answer for ddp_timeout seconds; the same command"
# The error of process 0, what process 1 has told, and what process 0 then raises and tells: a
# pattern, or the error itself.
ERRORS = {
    "a loader that waits": ("DataLoader timed out after 30 seconds", None, None),
    "a worker": ("Caught RuntimeError in DataLoader worker process 0.\nTimeout", None, None),
    "a kernel": ("CUDA error: the launch timed out and was terminated", None, None),
    "an AMD kernel": ("HIP error: the launch timed out and was terminated", None, None),
    "a lost neighbour": (GONE, None, rf"^process 1 {NO_WORD} .* \(process 0: .*closed by peer"),
    "both have lost": (GONE, "", rf"^process 1 {NO_WORD} .* \(process 0: .*closed by peer"),
    "its own, in such words": ("my timeout", "", r"\(process 0: my timeout\)$"),
    "a neighbour that told": (GONE, "a bad row", "^process 1 has ended: a bad row$"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_is_told_by_the_process_that_has_it(monkeypatch, case):
    """Its own text is never lost, even where it sounds as if another process were gone."""
    text, other, pattern = ERRORS[case]
    store = torch.distributed.HashStore()
    monkeypatch.setattr(lost, "default_store", lambda: (store, 0, 2))
    monkeypatch.setattr(lost, "_GRACE_SECONDS", 0.1)
    if other is not None:
        store.set("distilllens/ended/1", other)
    error = RuntimeError(text)
    with pytest.raises((RuntimeError, lost.LostProcess)) as raised, lost.faults_told(30):
        raise error
    told = store.get("distilllens/ended/0").decode()
    if pattern is None:
        assert raised.value is error and told == " ".join(text.split())
    else:
        assert isinstance(raised.value, lost.LostProcess)
        assert re.search(pattern, str(raised.value))
        assert told == ("" if other else str(raised.value))


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_one_process_ends_both(workshop, fault):
    """Whatever it is; the same command without it goes on to the weights of an undisturbed run."""
    before, line = FAULTS[fault]
    hangs = "hangs" in fault
    toys.recipe(workshop, max_steps=6, save_steps=2, ddp_timeout=4 if hangs else None)
    pids = processes.start(TRAIN, workshop, processes=2, before=before)
    statuses, said = ended(pids, workshop)
    assert line in said[0], said
    happened = in_words(statuses, said[0])
    toys.recipe(workshop, max_steps=6, save_steps=2)
    assert set(processes.run(TRAIN, workshop, processes=2)[0]) == {0}
    toys.recipe(workshop, max_steps=6, save_steps=2, output_dir="whole")
    assert set(processes.run(TRAIN, workshop, processes=2)[0]) == {0}
    whole, again = (workshop / name / "model.safetensors" for name in ("whole", "out"))
    assert again.read_bytes() == whole.read_bytes()
    test = "test_a_fault_of_one_process_ends_both"
    found(fault, "2", happened, "nothing: the same bytes afterwards", HERE + test)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_is_named(workshop, victim):
    """By the one that is left, soon after SIGKILL."""
    toys.recipe(workshop, max_steps=3000, save_steps=5)
    pids = processes.start(TRAIN, workshop, processes=2)
    processes.wait_for(workshop / "out" / "checkpoint-5" / "complete.json")
    os.kill(pids[victim], signal.SIGKILL)
    statuses, said = ended(pids, workshop)
    assert statuses[victim] == -signal.SIGKILL and statuses[1 - victim] == 2
    assert f"process {victim} " in error_of(said[1 - victim]), said
    happened, test = in_words(statuses, said[1 - victim]), "test_a_killed_process_is_named"
    kept = "the steps since the last checkpoint, which are taken again"
    found(f"SIGKILL of process {victim}", "2", happened, kept, HERE + test)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both(workshop):
    """SIGTERM to rank 1 alone: the same step, one checkpoint, one line."""
    toys.recipe(workshop, max_steps=3000, save_steps=5)
    pids = processes.start(TRAIN, workshop, processes=2)
    processes.wait_for(workshop / "out" / "checkpoint-5" / "complete.json")
    os.kill(pids[1], signal.SIGTERM)
    statuses, said = ended(pids, workshop)
    assert statuses == [143, 143] and said[0].count("stopped by SIGTERM after step") == 1
    happened = re.sub(r"checkpoint-\d+", "checkpoint-N", in_words(statuses, said[0]))
    test = "test_a_signal_to_one_process_stops_both"
    found("SIGTERM to process 1", "2", happened, "nothing", HERE + test)


@pytest.mark.slow
def test_a_damaged_shard_ends_both(workshop):
    """A bit that only rank 1 sees changed while it reads the cache."""
    toys.recipe(workshop, max_steps=6, save_steps=2, teacher_cache="cache")
    cache = ["cache", "--config", "recipe.yaml"]
    statuses, said = processes.run(cache, workshop)
    assert statuses == [0], said
    flip = """
import distilllens.teacher.shards as shards
if rank == 1:
    shards._checksum = lambda states, scales: b"another!"
"""
    pids = processes.start(TRAIN, workshop, processes=2, before=flip)
    statuses, said = ended(pids, workshop)
    assert "process 1 has ended" in said[0] and "shard" in said[0], said
    happened = re.sub(r"(shard-\w{4})\w+", r"\1...", in_words(statuses, said[0]))
    happened = re.sub(r"document \d+", "document N", happened)
    test = "test_a_damaged_shard_ends_both"
    found("a damaged shard of a cache, seen by process 1", "2", happened, "nothing", HERE + test)
