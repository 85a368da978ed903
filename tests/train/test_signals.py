"""Processes that are really ended, by signals that can be handled and one that cannot."""

import os
import signal
import subprocess
import sys
import time

import pytest
from processes import OTHER_HASHES, python
from toys import recipe

from distilllens.train.checkpoint import last_whole


@pytest.mark.slow
@pytest.mark.parametrize("to", ["launcher", "one process"])
def test_two_processes_stop_at_the_same_step(workshop, to):
    """Whoever gets it; nobody waits for the other for ever, and the run can go on."""
    recipe(workshop, max_steps=2000, save_steps=1000)
    command = [python(), "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "distilllens", "train", "--config", "recipe.yaml"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with open("said.txt", "w+") as said:
        process = subprocess.Popen(command, stderr=said, env=environment)
        try:
            begun = workshop / "out" / "run.json"
            deadline = time.monotonic() + 120
            while not begun.exists():
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.2)
            time.sleep(1)
            if to == "launcher":
                process.send_signal(signal.SIGTERM)
            else:
                os.kill(int((workshop / "out" / "run.lock").read_text()), signal.SIGUSR1)
            process.wait(60)
        finally:
            process.kill()
            process.wait()
        said.seek(0)
        text = said.read()
    step = int(last_whole(workshop / "out").name.split("-")[1])
    assert 0 < step < 1000
    name = "SIGTERM" if to == "launcher" else "SIGUSR1"
    line = f"distilllens: stopped by {name} after step {step}, which is saved in out/checkpoint-"
    assert text.count(line) == 1
    assert not (workshop / "out" / "run.lock").exists()


@pytest.mark.slow
def test_a_process_that_is_killed_ends_at_the_same_bits(workshop):
    """At whatever moment the kill comes, twice, and however texts hash; it leaves nothing."""
    changes = {"max_steps": 60, "save_steps": 2, "save_total_limit": 2}
    train = ["-m", "distilllens", "train", "--config", "recipe.yaml"]
    # On a busy machine, sums of several threads depend on how many of them take part.
    settings = {"stderr": subprocess.DEVNULL, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    others = settings | {"env": settings["env"] | OTHER_HASHES}
    recipe(workshop, output_dir="whole", **changes)
    subprocess.run([python(), *train], check=True, **settings)
    recipe(workshop, **changes)
    for least in (1, 20):
        with subprocess.Popen([sys.executable, *train], **others) as process:
            deadline = time.monotonic() + 120
            while not (found := last_whole("out")) or int(found.name.split("-")[1]) < least:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.01)
            process.kill()
    subprocess.run([python(), *train], check=True, **settings)
    whole, found = workshop / "whole", workshop / "out"
    assert (found / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert {path.name for path in found.iterdir()} == {path.name for path in whole.iterdir()}
