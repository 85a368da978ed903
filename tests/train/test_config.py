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
