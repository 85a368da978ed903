"""Two machines: network namespaces joined by a cable, torchrun on each; weights are of one."""

import os
import shutil
import subprocess
import sys
from contextlib import ExitStack

import pytest
import torch
from safetensors.torch import load_file
from toys import recipe

TRAIN = ["-m", "distilllens", "train", "--config", "recipe.yaml"]


def ip(*words):
    """Run ``ip``; returns whether it worked."""
    return subprocess.run(["ip", *words], capture_output=True, timeout=30).returncode == 0


@pytest.fixture
def machines():
    """Two namespaces, each with an address that the other one reaches, and nothing else."""
    names = [f"dl{os.getpid()}{side}" for side in "ab"]
    with ExitStack() as stack:
        for name in names:
            if shutil.which("ip") is None or not ip("netns", "add", name):
                pytest.skip("network namespaces cannot be made here (ip netns add)")
            stack.callback(ip, "netns", "del", name)
        a, b = names
        if not ip("link", "add", a, "netns", a, "type", "veth", "peer", "name", b, "netns", b):
            pytest.skip("no virtual cable can be made here (ip link add type veth)")
        for number, name in enumerate(names, 1):
            assert ip("-n", name, "addr", "add", f"10.93.7.{number}/24", "dev", name)
            assert ip("-n", name, "link", "set", "lo", "up")
            assert ip("-n", name, "link", "set", name, "up")
        yield names


@pytest.mark.slow
def test_two_machines_train_like_one_process(workshop, machines):
    """Batch 2 on each of two machines is batch 4 in one process, to 1e-6 in every weight.

    Four steps at a learning rate of 0.01; the folder is on a disk that both see.
    """
    recipe(workshop)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
    torchrun += ["--nproc_per_node", "1", "--master_addr", "10.93.7.1", "--master_port", "29517"]
    started = []
    for rank, name in enumerate(machines):
        command = ["ip", "netns", "exec", name, *torchrun, "--node_rank", str(rank), *TRAIN]
        environment = os.environ | {"GLOO_SOCKET_IFNAME": name, "OMP_NUM_THREADS": "1"}
        settings = {"stderr": subprocess.PIPE, "text": True, "env": environment}
        started.append(subprocess.Popen(command, **settings))
    said = []
    try:
        said = [process.communicate(timeout=300)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)
    assert "2 processes" in said[0] and "final model" in said[0] and "final model" not in said[1]
    recipe(workshop, output_dir="alone", per_device_train_batch_size=4)
    command = [sys.executable, *TRAIN]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    two, one = (load_file(workshop / name / "model.safetensors") for name in ("out", "alone"))
    assert not torch.equal(
        one["model.norm.weight"], load_file("student/model.safetensors")["model.norm.weight"]
    )
    for name, value in one.items():
        assert torch.allclose(two[name], value, atol=1e-6, rtol=0), name
