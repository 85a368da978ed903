"""Two processes take the step of one; weights are compared, for equal losses prove nothing."""

import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import toys
from processes import python

WORKER = Path(__file__).with_name("distributed_worker.py")


def on_two_processes(tmp_path, kind, *flags):
    """What each rank found; with flags, the processes are forks of a warm one."""
    start = python() if flags and kind != "zero3" else sys.executable
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    # DeepSpeed compiles what it needs of its operations at its first run.
    environment |= {"DS_ACCELERATOR": "cpu", "DS_BUILD_OPS": "0"} if kind == "zero3" else {}
    command = [start, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    result = subprocess.run(
        [*command, str(WORKER), kind, str(tmp_path), *flags],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600 if kind == "zero3" else 300,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return [torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        *((), ("--untied",), ("--lora",), ("--cached",), ("--answers",), ("--from-main",)),
        *(("--form", form) for form in ("sampled", "weighted", "features", "tuned", "on-policy")),
    ],
    ids=lambda flags: " ".join(flags).replace("-", "") or "tied",
)
@pytest.mark.parametrize(
    ("kind", "wrapper"), [("ddp", "DistributedDataParallel"), ("fsdp2", "FSDP")]
)
def test_two_processes_step_like_one(tmp_path, kind, wrapper, flags):
    """Batch 2 on each of two processes ends at the weights of batch 4 on one, to 1e-6.

    "cached": both write a cache with the (sharded) teacher, and train from it. "from main": FSDP is
    asked to give all processes the weights of the first. "answers": each answers its share of the
    evaluation data; under FSDP2 that is refused, and so are projectors, translators and on-policy
    steps.
    """
    refused = {"--answers": "eval_generate needs the whole student"}
    beside = "are trained beside the student, which is not"
    refused |= {"features": f"feature_projectors {beside}", "tuned": f"translators {beside}"}
    refused["on-policy"] = "on_policy_fraction needs the whole student"
    for flag in refused.keys() & {*flags} if kind == "fsdp2" else ():
        with pytest.raises(AssertionError, match=refused[flag]):
            on_two_processes(tmp_path, kind, *flags)
        return
    if {"--cached", "--from-main"} & {*flags}:
        toys.llama(4, 24, seed=1).save_pretrained(tmp_path / "teacher")
        toys.tokenizer().save_pretrained(tmp_path / "teacher")
    found, _ = on_two_processes(tmp_path, kind, *flags)
    assert found["wrapper"].startswith(wrapper), "not the wrapper that the test is about"
    assert found["teacher"] == ("CachedTeacher" if "--cached" in flags else "LiveTeacher")
    alone = toys.trainer(
        tmp_path / "alone",
        student=toys.llama(tied="--untied" not in flags),
        eval_dataset=toys.dataset(7, seed=3),
        peft_config=toys.lora() if "--lora" in flags else None,
        score_answers=toys.score_answers() if "--answers" in flags else None,
        **(toys.FORMS[flags[1]] if "--form" in flags else {}),
        **(toys.ANSWERED if "--answers" in flags else {}),
    )
    before, start = alone.evaluate(), toys.weights(alone.model)
    alone.train()
    assert toys.drift(start, toys.weights(alone.model)) > 1e-3
    expected = alone.model.state_dict() | toys.weights(alone.companions)
    for name, value in found["weights"].items():
        name = name.removeprefix("module.")
        assert torch.allclose(value, expected[name], atol=1e-6, rtol=0), name
    rows = [row for row in alone.state.log_history if "loss" in row]
    for a, b in zip([row for row in found["log"] if "loss" in row], rows, strict=True):
        terms = [key for key in b if "loss" in key or "entropy" in key]
        assert len(terms) == {"sampled": 6, "on-policy": 6, "features": 10}.get(
            flags[-1] if flags else "", 7
        )
        for key in terms:
            assert math.isclose(a[key], b[key], rel_tol=1e-5), key
    if kind == "ddp":
        # Seven samples in batches of two on two processes: the sample that fills up counts once.
        for key in ("eval_loss", "eval_output_loss", "eval_lens_loss", "eval_cross_entropy"):
            assert math.isclose(found["before"][key], before[key], rel_tol=1e-6), key
        for key in ("eval_rouge_l", "eval_exact_match") if "--answers" in flags else ():
            assert math.isclose(found["before"][key], before[key], rel_tol=1e-6), key


@pytest.mark.slow
def test_fsdp_that_would_be_plain_data_parallelism_is_refused(tmp_path):
    """On a CPU accelerate runs DDP for FSDP without a word."""
    with pytest.raises(AssertionError, match="fsdp is set, but accelerate starts MULTI_CPU"):
        on_two_processes(tmp_path, "fsdp2", "--as-is")


SHARDED = [("ddp", "DistributedDataParallel"), ("fsdp2", "FSDP")]
SHARDED += [
    pytest.param(
        *("zero3", "DeepSpeedEngine"),
        marks=pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs deepspeed"),
    )
]


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("--gaps",), ("--gaps", "--untied")], ids=["tied", "untied"])
@pytest.mark.parametrize(("kind", "wrapper"), SHARDED)
def test_twenty_steps_with_unequal_targets(tmp_path, kind, wrapper, flags):
    """Where processes have unequal numbers of targets, some none, weights are those of one process.

    To 1e-6 after twenty steps of SGD at 0.1. The head of a sharded teacher is gathered, and the
    student's norm run, once a step, not once a pair.
    """
    found = on_two_processes(tmp_path, kind, *flags)
    targets = [rank["targets"] for rank in found]
    assert any(0 in counts for counts in targets) and targets[0] != targets[1]
    assert found[0]["wrapper"].startswith(wrapper)
    assert found[0]["teacher_in_shards"] is (kind != "ddp")
    assert found[0]["gathers"] == {"tensors": 20 if kind == "fsdp2" else 0, "norms": 20}
    alone = toys.trainer(
        tmp_path / "alone", student=toys.llama(tied="--untied" not in flags), max_steps=20
    )
    counts, start = toys.with_gaps(alone), toys.weights(alone.model)
    alone.train()
    steps = [sum(pair) for pair in zip(*targets, strict=True)]
    assert steps == counts, "not the same rows in each step"
    assert toys.drift(start, toys.weights(alone.model)) > 1e-2
    expected = alone.model.state_dict()
    for name, value in found[0]["weights"].items():
        assert torch.allclose(value, expected[name.removeprefix("module.")], atol=1e-6, rtol=0), (
            name
        )


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "wrapper"), SHARDED[1:])
def test_a_replicated_teacher_takes_the_same_steps(tmp_path, kind, wrapper):
    """Whole in each process beside a sharded student: the weights of one process to 1e-6."""
    found, _ = on_two_processes(tmp_path, kind, "--replicated")
    assert found["wrapper"].startswith(wrapper)
    assert found["teacher_in_shards"] is False and found["gathers"]["tensors"] == 0
    alone = toys.trainer(tmp_path / "alone")
    start = toys.weights(alone.model)
    alone.train()
    assert toys.drift(start, toys.weights(alone.model)) > 1e-3
    for name, value in found["weights"].items():
        assert torch.allclose(value, alone.model.state_dict()[name], atol=1e-6, rtol=0), name


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs deepspeed")
@pytest.mark.parametrize("flags", [(), ("--lora",), ("--cached",)], ids=["tied", "lora", "cached"])
def test_zero3_steps_like_one_process(tmp_path, flags):
    """Batch 2 on each of two processes of DeepSpeed ZeRO-3 is batch 4 on one, to 1e-6."""
    if "--cached" in flags:
        toys.llama(4, 24, seed=1).save_pretrained(tmp_path / "teacher")
        toys.tokenizer().save_pretrained(tmp_path / "teacher")
    found, _ = on_two_processes(tmp_path, "zero3", *flags)
    assert found["teacher"] == ("CachedTeacher" if "--cached" in flags else "LiveTeacher")
    alone = toys.trainer(tmp_path / "alone", peft_config=toys.lora() if "--lora" in flags else None)
    start = toys.weights(alone.model)
    alone.train()
    assert toys.drift(start, toys.weights(alone.model)) > 1e-3
    for name, value in found["weights"].items():
        assert torch.allclose(value, alone.model.state_dict()[name], atol=1e-6, rtol=0), name
