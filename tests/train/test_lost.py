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
from sharded_runs import KINDS

from distilllens import lost as told
from distilllens.train import lost
from distilllens.train.run_lock import claimed

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
    if rank == {rank} and self.state.global_step == {step}:
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
    "a full disk on rank 0": (
        AT_SAVE.format(rank=0, step=2),
        "checkpoint-2 could not be saved in out: File too large",
    ),
    "a full disk on rank 1, at the second checkpoint": (
        AT_SAVE.format(rank=1, step=4),
        "(process 1); out/checkpoint-2 is the last checkpoint: make room",
    ),
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
    monkeypatch.setattr(told, "_GRACE_SECONDS", 0.1)
    if other is not None:
        store.set("distilllens/ended/1", other)
    error = RuntimeError(text)
    with pytest.raises((RuntimeError, told.LostProcess)) as raised, lost.faults_told(30):
        raise error
    said = store.get("distilllens/ended/0").decode()
    if pattern is None:
        assert raised.value is error and said == " ".join(text.split())
    else:
        assert isinstance(raised.value, told.LostProcess)
        assert re.search(pattern, str(raised.value))
        assert said == ("" if other else str(raised.value))


def kinds(*quick, each=(None,)):
    """Every kind with each of the cases; those that are not quick run with ``-m faults`` alone."""
    pairs = [(kind, case) for kind in KINDS for case in each]
    return [
        pytest.param(*((kind, case) if each != (None,) else (kind,)), marks=marks, id=name)
        for kind, case in pairs
        for name in [f"{kind}, {case}" if each != (None,) else kind]
        for marks in [() if name in quick else pytest.mark.faults]
    ]


def on(kind):
    """What ``found`` calls two processes."""
    return "2" if kind == "DDP" else f"2, {kind}"


_WHOLE = {}


def undisturbed(workshop, kind):
    """The bytes of the weights of a run of six steps that nothing happens to."""
    if kind not in _WHOLE:
        fields, before = KINDS[kind]
        toys.recipe(workshop, max_steps=6, save_steps=2, output_dir="whole", **fields)
        statuses, said = processes.run(TRAIN, workshop, processes=2, before=before)
        assert statuses == [0, 0], said
        _WHOLE[kind] = (workshop / "whole" / "model.safetensors").read_bytes()
    return _WHOLE[kind]


def goes_on(workshop, kind):
    """The same command without the fault ends at those bytes; what process 0 said."""
    fields, before = KINDS[kind]
    toys.recipe(workshop, max_steps=6, save_steps=2, **fields)
    statuses, said = processes.run(TRAIN, workshop, processes=2, before=before)
    assert statuses == [0, 0], said
    found = (workshop / "out" / "model.safetensors").read_bytes()
    assert found == undisturbed(workshop, kind)
    return said[0]


QUICK = [f"DDP, {fault}" for fault in FAULTS if "rank 1" not in fault]
QUICK += ["FSDP2, a full disk on rank 1, at the second checkpoint"]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "fault"), kinds(*QUICK, each=tuple(FAULTS)))
def test_a_fault_of_one_process_ends_both(workshop, kind, fault):
    """Whatever it is; the same command without it goes on to the weights of an undisturbed run."""
    before, line = FAULTS[fault]
    if kind == "DDP" and "rank 1" in fault:  # whose file it is that rank 0 waits for
        line = "process 1 has ended: checkpoint-4 could not be saved in out"
    hangs = "hangs" in fault
    fields, first = KINDS[kind]
    toys.recipe(workshop, max_steps=6, save_steps=2, ddp_timeout=4 if hangs else None, **fields)
    pids = processes.start(TRAIN, workshop, processes=2, before=first + before)
    statuses, said = ended(pids, workshop)
    assert line in said[0], said
    happened = in_words(statuses, said[0])
    goes_on(workshop, kind)
    test = "test_a_fault_of_one_process_ends_both"
    found(fault, on(kind), happened, "nothing: the same bytes afterwards", HERE + test)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "victim"), kinds("DDP, 0", "DDP, 1", each=(0, 1)))
def test_a_killed_process_is_named(workshop, kind, victim):
    """By the one that is left, soon after SIGKILL."""
    fields, before = KINDS[kind]
    toys.recipe(workshop, max_steps=3000, save_steps=5, **fields)
    pids = processes.start(TRAIN, workshop, processes=2, before=before)
    processes.wait_for(workshop / "out" / "checkpoint-5" / "complete.json")
    os.kill(pids[victim], signal.SIGKILL)
    statuses, said = ended(pids, workshop)
    assert statuses[victim] == -signal.SIGKILL and statuses[1 - victim] == 2
    assert f"process {victim} " in error_of(said[1 - victim]), said
    happened, test = in_words(statuses, said[1 - victim]), "test_a_killed_process_is_named"
    kept = "the steps since the last checkpoint, which are taken again"
    found(f"SIGKILL of process {victim}", on(kind), happened, kept, HERE + test)


@pytest.mark.slow
@pytest.mark.parametrize("kind", kinds("DDP"))
def test_a_signal_to_one_process_stops_both(workshop, kind):
    """SIGTERM to rank 1 alone: the same step, one checkpoint, one line."""
    fields, before = KINDS[kind]
    toys.recipe(workshop, max_steps=3000, save_steps=5, **fields)
    pids = processes.start(TRAIN, workshop, processes=2, before=before)
    processes.wait_for(workshop / "out" / "checkpoint-5" / "complete.json")
    os.kill(pids[1], signal.SIGTERM)
    statuses, said = ended(pids, workshop)
    assert statuses == [143, 143] and said[0].count("stopped by SIGTERM after step") == 1
    happened = re.sub(r"checkpoint-\d+", "checkpoint-N", in_words(statuses, said[0]))
    test = "test_a_signal_to_one_process_stops_both"
    found("SIGTERM to process 1", on(kind), happened, "nothing", HERE + test)


@pytest.mark.slow
@pytest.mark.parametrize("kind", kinds("DDP"))
def test_a_damaged_shard_ends_both(workshop, kind):
    """A bit that only rank 1 sees changed while it reads the cache."""
    fields, before = KINDS[kind]
    toys.recipe(workshop, max_steps=6, save_steps=2, teacher_cache="cache")
    cache = ["cache", "--config", "recipe.yaml"]
    statuses, said = processes.run(cache, workshop)
    assert statuses == [0], said
    flip = """
import distilllens.teacher.shards as shards
if rank == 1:
    shards._checksum = lambda states, scales: b"another!"
"""
    toys.recipe(workshop, max_steps=6, save_steps=2, teacher_cache="cache", **fields)
    pids = processes.start(TRAIN, workshop, processes=2, before=before + flip)
    statuses, said = ended(pids, workshop)
    assert "process 1 has ended" in said[0] and "shard" in said[0], said
    happened = re.sub(r"(shard-\w{4})\w+", r"\1...", in_words(statuses, said[0]))
    happened = re.sub(r"document \d+", "document N", happened)
    test = "test_a_damaged_shard_ends_both"
    fault = "a damaged shard of a cache, seen by process 1"
    found(fault, on(kind), happened, "nothing", HERE + test)


# The newest checkpoint, and one of its files that process 1 has written.
WRITTEN = {"DDP": "rng_state_1.pth", "FSDP2": "pytorch_model_fsdp_0/__1_0.distcp"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", kinds())
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(workshop, kind):
    """One bit of what process 1 has saved; seen by process 1 alone, it ends both."""
    fields, before = KINDS[kind]
    toys.recipe(workshop, max_steps=6, save_steps=2, **fields)
    statuses, said = processes.run(
        TRAIN, workshop, processes=2, before=before + processes.STOP.format(step=5)
    )
    assert statuses == [143, 143], said
    alone = """
import distilllens.train.checkpoint as c
def damage(folder, contents, check=c._damage):
    return "a bit" if rank == 1 and folder.name.endswith("5") else check(folder, contents)
c._damage = damage
"""
    statuses, said = processes.run(TRAIN, workshop, processes=2, before=before + alone)
    assert statuses == [2, 2]
    line = "the checkpoint to go on from is out/checkpoint-5 for process 0 and out/checkpoint-4 for"
    assert line in error_of(said[0]), said
    file = workshop / "out" / "checkpoint-5" / WRITTEN[kind]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    said = goes_on(workshop, kind)
    (line,) = re.findall("out/checkpoint-5 is damaged and not used: .*", said)
    assert WRITTEN[kind] in line and "resuming from out/checkpoint-4" in said
    happened = f"`{line}`, and the run goes on from the checkpoint before"
    test = "test_a_damaged_checkpoint_is_named_and_the_one_before_is_used"
    lost = "nothing: the same bytes afterwards"
    found("a bit of a checkpoint, in what process 1 saved", on(kind), happened, lost, HERE + test)


@pytest.mark.slow
@pytest.mark.parametrize("kind", kinds())
def test_a_folder_in_use_ends_both(workshop, kind):
    """Process 0 finds it locked, and process 1 hears of it; the folder stays as it was."""
    fields, before = KINDS[kind]
    toys.recipe(workshop, max_steps=6, save_steps=2, **fields)
    with claimed("out"):
        statuses, said = ended(
            processes.start(TRAIN, workshop, processes=2, before=before), workshop
        )
        assert {path.name for path in (workshop / "out").iterdir()} == {"run.lock"}
    assert "error: output_dir out is in use by another run" in error_of(said[0])
    happened = re.sub(r"\(process \d+\)", "(process N)", in_words(statuses, said[0]))
    test = "test_a_folder_in_use_ends_both"
    found("a folder that another run uses", on(kind), happened, "nothing", HERE + test)


def test_what_processes_see_otherwise_is_refused(monkeypatch):
    """With what the first two of them see."""
    monkeypatch.setattr(lost, "gather_object", lambda own: [*own, "a", "b", "c"])
    with pytest.raises(ValueError, match="X is a for process 0 and b for process 2; output_dir"):
        lost.check_agreed("X", "a")
    monkeypatch.setattr(lost, "gather_object", lambda own: own * 3)
    lost.check_agreed("X", "a")
