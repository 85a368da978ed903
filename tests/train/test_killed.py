"""Killed at random moments: the same command ends where it would have ended undisturbed.

Three moments of each command in every run; twenty with ``-m faults``. What goes on in the first
folder hashes texts to other numbers than the rest, so no file may depend on an order of a set.
"""

import json
import os
import random
import shutil
import signal
import time

import processes
import pytest
import toys
from fault_rows import found

TRAIN = ["train", "--config", "recipe.yaml"]
CACHE = ["cache", "--config", "recipe.yaml", "--teacher_cache", "cache"]
GENERATE = ["generate", "--model", "student", "--data", "train.jsonl", "--output", "answers.jsonl"]
GENERATE += ["--max_new_tokens", "200", "--batch_size", "2"]
SMALL_SHARDS = "import distilllens.teacher.cache as c; c.SHARD_BYTES = 2000"
# Command, processes, patch; of two, each rank is killed in turn.
KINDS = {
    "train": (TRAIN, 1, ""),
    "train on two processes": (TRAIN, 2, ""),
    "cache": (CACHE, 1, SMALL_SHARDS),
    "generate": (GENERATE, 1, ""),
}
# A rank notices that another is gone when it next waits for it.
SECONDS_TO_NOTICE = 60


def folder_of(workshop, name):
    """A workshop of its own for a run, so that its files name the same paths."""
    folder = workshop / "rounds" / name
    folder.mkdir(parents=True)
    for part in ("student", "teacher", "train.jsonl", "recipe.yaml"):
        (folder / part).symlink_to(workshop / part)
    return folder


def contents(folder):
    """Path -> bytes of what a command has made."""
    made = (path for path in folder.rglob("*") if path.is_file() and "said." not in path.name)
    ours = {path.relative_to(folder): path for path in made}
    return {str(name): path.read_bytes() for name, path in ours.items() if len(name.parts) > 1} | {
        path.name: path.read_bytes() for path in folder.glob("answers*")
    }


def killed_in_rounds(workshop, kind, kills, seed):
    """Kill a command so often, four times in each folder, and end each; returns what was found."""
    argv, number, before = KINDS[kind]
    draw, more = random.Random(seed), {"processes": number, "before": before}
    began = time.monotonic()
    wholes = []
    for name in ("whole", "again"):
        began = time.monotonic()
        folder = folder_of(workshop, name)
        assert set(processes.run(argv, folder, **more)[0]) == {0}
        wholes.append(contents(folder))
    seconds = time.monotonic() - began
    # What differs between two undisturbed runs, such as timings, is compared by its name alone.
    settled = {name for name, data in wholes[0].items() if wholes[1].get(name) == data}
    done, rounds, longest = 0, 0, 0.0
    while done < kills:
        folder = folder_of(workshop, str(rounds))
        for _ in range(4):
            pids = processes.start(argv, folder, **more)
            time.sleep(draw.uniform(0, seconds))
            victim = done % number
            os.kill(pids[victim], signal.SIGKILL)
            killed = time.monotonic()
            statuses = processes.ends(pids, SECONDS_TO_NOTICE)
            assert None not in statuses, "a process waits for a killed one for ever"
            if statuses[victim] != -signal.SIGKILL:
                break  # it had ended before
            longest = max(longest, time.monotonic() - killed)
            done += 1
            if done == kills:
                break
        hashes = processes.OTHER_HASHES if number == 1 and rounds == 0 else {}
        statuses, said = processes.run(argv, folder, **more, **hashes)
        assert set(statuses) == {0}, said
        made = contents(folder)
        assert made.keys() == wholes[0].keys()
        assert [name for name in sorted(settled) if made[name] != wholes[0][name]] == []
        shutil.rmtree(folder)
        rounds += 1
    weights = [name for name in settled if name.endswith((".safetensors", ".jsonl"))]
    assert weights, "bytes of weights, states or answers are among those compared"
    return {"kills": done, "runs": rounds, "longest": longest, "compared": len(settled)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.faults)])
def test_killed_at_random_moments(workshop, kind, kills):
    """Every file but those with timings has the bytes of the undisturbed run."""
    if kind == "generate":  # of long answers
        toys.llama(3, 16, positions=512).save_pretrained(workshop / "student")
        rows = toys.examples(60)
        (workshop / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    toys.recipe(workshop, max_steps=12, save_steps=3, save_total_limit=2)
    figures = killed_in_rounds(workshop, kind, kills, seed=kills)
    print(kind, figures)
    assert figures["kills"] == kills
    happened = "the same command goes on, and ends at the bytes of the undisturbed one"
    test = "tests/train/test_killed.py::test_killed_at_random_moments"
    command, number = kind.split()[0], str(KINDS[kind][1])
    found(f"SIGKILL of `{command}` at random moments", number, happened, "nothing", test)
