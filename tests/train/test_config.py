"""Settings that a machine cannot follow are refused, not ignored."""

import pytest
import toys


def test_fp16_on_the_cpu_is_refused(tmp_path, monkeypatch):
    """accelerate would train in float32 without a word; bf16 it does on a CPU."""
    with pytest.raises(ValueError, match="fp16 needs a GPU, and this run is on the CPU; "):
        toys.config(tmp_path, fp16=True, use_cpu=True)
    assert toys.config(tmp_path, bf16=True, use_cpu=True).mixed_precision == "bf16"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ValueError, match="ACCELERATE_MIXED_PRECISION=fp16 needs a GPU"):
        toys.config(tmp_path, use_cpu=True)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("seed", None, "seed must be a number, got None"),
        ("weight_decay", None, "weight_decay must be a number, got None"),
        ("max_steps", 2.5, "max_steps must be a whole number, got 2.5"),
        ("ddp_timeout", "9", "ddp_timeout must be a number, got '9'"),
        ("adam_beta2", 1, "adam_beta2 must be at least 0 and below 1"),
    ],
)
def test_numbers_are_numbers_from_python_too(tmp_path, field, value, message):
    """As from a recipe; 2.0 is 2."""
    assert repr(toys.config(tmp_path, max_steps=2.0, data_seed=None).max_steps) == "2"
    with pytest.raises(ValueError, match=message):
        toys.config(tmp_path, **{field: value})
