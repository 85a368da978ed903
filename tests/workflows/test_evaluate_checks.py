"""Bad flags of evaluations, refused before torch is imported."""

import subprocess
import sys
from dataclasses import dataclass, fields

import pytest

from distilllens.generate.decoding import Decoding
from distilllens.workflows import evaluate_checks
from distilllens.workflows.evaluate import Plan
from distilllens.workflows.evaluate_checks import check_flags, check_seeds, refuse_unused


@dataclass
class Flags:
    """Those that both commands have."""

    batch_size: int = 1
    limit: int | None = None
    max_prompt_length: int | None = None
    backend: str = "vllm"
    dtype: str = "auto"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"batch_size": 0}, "--batch_size must be at least 1, got 0"),
        ({"limit": -1}, "--limit must be at least 1, got -1"),
        ({"max_prompt_length": 0}, "--max_prompt_length must be at least 1, got 0"),
        ({"backend": "tgi"}, "--backend is one of transformers, vllm, got 'tgi'"),
        ({"dtype": ""}, "--dtype is one of auto, float32, bfloat16, float16, got ''"),
    ],
)
def test_a_value_out_of_range(flags, message):
    """Is named with the range; the least values are taken."""
    check_flags(Flags(limit=1, max_prompt_length=1))
    with pytest.raises(ValueError) as refused:
        check_flags(Flags(**flags))
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ((), "at least one number"),
        ((1, 2, 1), "names one twice: 1,2,1"),
        ((-1,), "between 0 and 9223372036854775807, got -1"),
        ((2**63,), "between 0 and 9223372036854775807, got 9223372036854775808"),
    ],
)
def test_seeds_that_cannot_be(seeds, message):
    """None, one twice, and one out of range; both ends of the range are taken."""
    check_seeds((0, 2**63 - 1))
    with pytest.raises(ValueError, match=f"^--seeds .*{message}"):
        check_seeds(seeds)


def test_what_only_answers_need():
    """All of it is named in one line, in one order; the rest of a plan may be given."""
    shared = ("models", "benchmarks", "output", "decoding", "limit", "max_prompt_length", "chat")
    shared += ("dtype", "device", "teacher", "trust_remote_code", "references_only")
    refuse_unused(shared)
    names = [one.name for kind in (Plan, Decoding) for one in fields(kind)]
    (needed,) = ([name for name in names if name not in shared],)
    for name in needed:
        with pytest.raises(ValueError, match=f"so --{name} would do nothing; leave out that, or"):
            refuse_unused([*shared, name])
    with pytest.raises(
        ValueError, match=r"so --seeds, --greedy, --judge would do nothing; .*those"
    ):
        refuse_unused(["judge", "greedy", "seeds", "chat"])


def test_nothing_heavy_is_imported():
    """The command line checks with this file before it loads torch."""
    code = f"import sys, {evaluate_checks.__name__}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
