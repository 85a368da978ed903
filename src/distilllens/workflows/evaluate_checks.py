"""Bad flags of ``distilllens evaluate`` and ``generate``, refused before torch is imported."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

SEEDS = (10, 20, 30, 40, 50)
BACKENDS = ("transformers", "vllm")
DTYPES = ("auto", "float32", "bfloat16", "float16")
# Fields and flags that only answers need.
_OF_ANSWERS = (
    *("seeds", "greedy", "temperature", "top_p", "max_new_tokens", "batch_size", "backend"),
    *("sbert", "judge", "judge_url", "judge_key", "judge_budget", "lm_eval", "lm_eval_path"),
)


def check_flags(plan) -> None:
    """Refuse counts and names of a plan that are out of range.

    Args:
        plan: has ``batch_size``, ``limit``, ``max_prompt_length``, ``backend`` and
            ``dtype``, called as the flags are.

    Raises:
        ValueError: with the first such flag.
    """
    for name in ("batch_size", "limit", "max_prompt_length"):
        value = getattr(plan, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
    for name, known in (("backend", BACKENDS), ("dtype", DTYPES)):
        if getattr(plan, name) not in known:
            raise ValueError(f"--{name} is one of {', '.join(known)}, got {getattr(plan, name)!r}")


def check_seeds(seeds: Sequence[int | None]) -> None:
    """Refuse no seeds, one that is there twice, and one outside of 0 to 2**63 - 1.

    Raises:
        ValueError: with the first fault.
    """
    if not seeds:
        raise ValueError("--seeds needs at least one number, such as 10,20,30")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds names one twice: {','.join(map(str, seeds))}")
    for seed in seeds:
        if seed is not None and not 0 <= seed < 2**63:
            raise ValueError(f"--seeds must be between 0 and {2**63 - 1}, got {seed}")


def refuse_unused(given: Iterable[str]) -> None:
    """Refuse fields and flags of answers where only the references are scored.

    Args:
        given: names of fields or flags, without dashes.

    Raises:
        ValueError: with all of them that only answers need.
    """
    given = {*given}
    if unused := [f"--{name}" for name in _OF_ANSWERS if name in given]:
        raise ValueError(
            f"--references_only generates no answers, so {', '.join(unused)} would do nothing; "
            f"leave out {'that' if len(unused) == 1 else 'those'}, or --references_only"
        )
