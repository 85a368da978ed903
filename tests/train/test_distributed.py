"""Two processes take the step of one; weights are compared, for equal losses prove nothing."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import toys

WORKER = Path(__file__).with_name("distributed_worker.py")


def on_two_processes(tmp_path, kind, *flags):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    result = subprocess.run(
        [*command, str(WORKER), kind, str(tmp_path), *flags],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return [torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        *((), ("--untied",), ("--lora",), ("--cached",), ("--answers",)),
        *(("--form", form) for form in ("sampled", "weighted", "features", "tuned", "on-policy")),
    ],
    ids=lambda flags: " ".join(flags).replace("-", "") or "tied",
)
@pytest.mark.parametrize(
    ("kind", "wrapper"), [("ddp", "DistributedDataParallel"), ("fsdp2", "FSDP")]
)
def test_two_processes_step_like_one(tmp_path, kind, wrapper, flags):
    """Batch 2 on each of two processes ends at the weights of batch 4 on one, to 1e-6.

    "cached": both write a cache with the (sharded) teacher, and train from it. "answers": each
    answers its share of the evaluation data; under FSDP2 that is refused, and so are projectors,
    translators and on-policy steps.
    """
    refused = {"--answers": "eval_generate needs the whole student"}
    beside = "are trained beside the student, which is not"
    refused |= {"features": f"feature_projectors {beside}", "tuned": f"translators {beside}"}
    refused["on-policy"] = "on_policy_fraction needs the whole student"
    for flag in refused.keys() & {*flags} if kind == "fsdp2" else ():
        with pytest.raises(AssertionError, match=refused[flag]):
            on_two_processes(tmp_path, kind, *flags)
        return
    if "--cached" in flags:
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
