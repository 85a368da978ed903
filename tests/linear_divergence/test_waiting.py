"""No call makes the host wait for an accelerator: nothing is read from it, nothing copied."""

import sys

import pytest
import torch
from linear_divergence.problems import DIVERGENCES, problem, results
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class NoWaiting(TorchDispatchMode):
    """Refuses whatever makes the host wait for a device: numbers and sizes read from tensors.

    With ``device``, also every tensor of another device: copies between the two wait as well.
    """

    WAITS = (
        torch.ops.aten._local_scalar_dense,
        torch.ops.aten.is_nonzero,
        torch.ops.aten.equal,
        torch.ops.aten.nonzero,
        torch.ops.aten.masked_select,
        torch.ops.aten.repeat_interleave,
        torch.ops.aten._unique2,
    )

    def __init__(self, device=None):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        waits = function.overloadpacket in self.WAITS
        if function.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put_):
            waits = any(index is not None and index.dtype == torch.bool for index in args[1])
        assert not waits, f"{function} waits"
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, result)):
            if self.device is not None and torch.is_tensor(tensor):
                assert tensor.device.type == self.device, f"{function} meets {tensor.device}"
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*DIVERGENCES, "cross_entropy"])
def test_nothing_waits_for_an_accelerator(name, dtype):
    """The whole call and its backward, twice, on a device that holds no numbers to read."""
    given = problem(47, 31, 29, dtype=dtype, scale=0.7, softcap=3.0).to("meta")
    with NoWaiting("meta"):
        loss, per_token = given.run(name, temperature=1.3, chunk_size=16)
        loss.backward(retain_graph=True)
        loss.backward()
        given.run(name)
    assert loss.device.type == per_token.device.type == "meta"
    assert all(leaf.grad.shape == leaf.shape for leaf in given.leaves)


@pytest.mark.parametrize("name", [*DIVERGENCES, "cross_entropy"])
def test_without_waiting_the_results_are_the_same(name, monkeypatch):
    """The branches of an accelerator taken on the CPU; half the rows of a bias are -inf."""
    given = problem(47, 600, 600)  # more than adaptive_kl's top
    with torch.no_grad():
        for head in (given.student_head, given.teacher_head):
            head.bias[::2] = -float("inf")
    given.labels -= given.labels % 2 - 1
    expected = results(given, name, impl="reference")
    # By name: the package also has functions called linear_divergence and divergence.
    for name_of in ("linear_divergence", "linear_divergence.gradients", "divergence"):
        module = sys.modules[f"distilllens.{name_of}"]
        monkeypatch.setattr(module, "reading_waits", lambda tensor: True)
    with NoWaiting():
        found = results(given, name, chunk_size=16)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.isnan().any()),
        lambda x: x[x > 0],
        lambda x: torch.equal(x, x),
        lambda x: x.nonzero(),
    ],
)
def test_the_watch_sees_waiting(wait):
    """What proves that nothing waits can also refute it."""
    with pytest.raises(AssertionError, match="waits"), NoWaiting():
        wait(torch.randn(3))


@pytest.mark.parametrize(
    "copy", [lambda x: x.to("cpu"), lambda x: torch.where(x > 0, x, torch.zeros(()))]
)
def test_the_watch_sees_copies(copy):
    """Another device's tensor is noticed where it comes in or out."""
    x = torch.randn(3, device="meta")
    with pytest.raises((AssertionError, NotImplementedError)), NoWaiting("meta"):
        copy(x)
