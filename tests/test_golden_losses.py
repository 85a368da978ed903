"""The first 20 losses of four small runs are those in ``golden/``, to the last digit on one CPU.

``python tools/golden_losses.py`` writes them anew; CHANGELOG.md then says why they moved.
"""

import json
import platform
from pathlib import Path

import pytest
import torch
import toys

FOLDER = Path(__file__).parent / "golden"
STEPS = 20
RUNS = {
    "kd": {"output_divergence": "forward_kl", "lens_weight": 0.0},
    "distilllens": {"cross_entropy_weight": 0.5},
    "cached": {"lens_token_fraction": 0.6, "lens_pair_weights": "depth"},
    "lora": {"output_divergence": "jeffreys"},
}


def kind_of_cpu():
    """What decides in which order floating-point numbers are added: CPU and torch."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{model}, {capability}, torch {torch.__version__}"


def losses_of(name, folder):
    """Losses by name, one each step, of a run whose teacher cache lies in a folder."""
    fields = {**RUNS[name], "max_steps": STEPS, "optim": "adamw_torch", "learning_rate": 0.01}
    parts = {}
    if name == "cached":
        fields["teacher_cache"] = str(folder / "cache")
    if name == "lora":
        parts["peft_config"] = toys.lora()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.manual_seed(0)  # the adapter's start
        trainer = toys.trainer(folder / "run", data=toys.dataset(32), **fields, **parts)
        trainer.train()
    finally:
        torch.set_num_threads(threads)
    logs = [log for log in trainer.state.log_history if "loss" in log]
    wanted = sorted(key for key in logs[0] if key.partition("/")[0].endswith(("loss", "entropy")))
    return {key: [log[key] for log in logs] for key in wanted}


@pytest.mark.parametrize("name", RUNS)
def test_losses_are_those_that_were_written(tmp_path, name):
    """Exactly on this kind of CPU with this torch, elsewhere to 1e-4."""
    golden = json.loads((FOLDER / f"{name}.json").read_text())
    found = losses_of(name, tmp_path)
    assert found.keys() == golden["losses"].keys()
    assert {len(values) for values in found.values()} == {STEPS}
    same = golden["cpu"] == kind_of_cpu()
    for key, values in golden["losses"].items():
        assert found[key] == (values if same else pytest.approx(values, rel=1e-4)), key


def test_the_runs_differ():
    """No two files hold the same run, and no loss stands still."""
    losses = [json.loads((FOLDER / f"{name}.json").read_text())["losses"]["loss"] for name in RUNS]
    assert len({tuple(values) for values in losses}) == len(RUNS)
    assert all(len(set(values)) == STEPS for values in losses)
