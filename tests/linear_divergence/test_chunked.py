"""The chunked engine: value and every gradient equal the reference's; flops and memory."""

import dataclasses
import types
import weakref

import pytest
import torch
from linear_divergence.problems import BUDGET, DIVERGENCES, assert_within_budget, problem, results
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from distilllens.linear_divergence import chunked, tiles

every_divergence = pytest.mark.parametrize("name", DIVERGENCES)


@pytest.mark.parametrize("vocabularies", [(31, 31), (31, 23), (23, 31)])
@pytest.mark.parametrize("name", [*DIVERGENCES, "cross_entropy"])
@pytest.mark.parametrize("dtype", BUDGET)
def test_equals_the_reference(dtype, name, vocabularies):
    """Value and every gradient, with weight, temperature, scale and bias; chunks of 3 of 47."""
    if dtype == torch.bfloat16 and name == "total_variation":
        pytest.skip("its gradient jumps where p crosses q, and 8 bits put tokens on either side")
    given = problem(47, *vocabularies, dtype=dtype, scale=0.7)
    expected = results(given, name, impl="reference", temperature=1.3)
    found = results(given, name, impl="chunked", temperature=1.3, chunk_size=3)
    assert_within_budget(found, expected, dtype)


@pytest.mark.parametrize("vocabularies", [(127, 127), (127, 113), (113, 128), (128, 128), (3, 3)])
@pytest.mark.parametrize("name", [*DIVERGENCES, "cross_entropy"])
@pytest.mark.parametrize("dtype", BUDGET)
def test_padded_rows_change_nothing(dtype, name, vocabularies, monkeypatch):
    """Prime, even, aligned and tiny vocabularies, with rows and products aligned as on a GPU."""
    if dtype == torch.bfloat16 and name == "total_variation":
        pytest.skip("its gradient jumps where p crosses q, and 8 bits put tokens on either side")
    monkeypatch.setattr(tiles, "alignment_matters", lambda device: True)
    given = problem(13, *vocabularies, dtype=dtype, scale=0.7, softcap=3.0)
    expected = results(given, name, impl="reference", temperature=1.3)
    found = results(given, name, impl="chunked", temperature=1.3, chunk_size=5)
    assert_within_budget(found, expected, dtype)


def test_aligned_vocabularies_have_the_same_products(monkeypatch):
    """A vocabulary of 128 gives the same bits with alignment as without."""
    given = problem(13, 128, 128, dtype=torch.bfloat16)
    expected = results(given, "jsd", chunk_size=5)
    monkeypatch.setattr(tiles, "alignment_matters", lambda device: True)
    found = results(given, "jsd", chunk_size=5)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


@pytest.mark.parametrize("chunk_size", [1, 2, 16, 47, 1000, None])
@pytest.mark.parametrize("name", ["jsd", "reverse_kl", "cross_entropy"])
def test_the_chunk_size_changes_nothing(name, chunk_size):
    """Sizes that divide N or not, of one row, of all and more."""
    given = problem(47, softcap=3.0)
    expected = results(given, name, impl="reference")
    assert_within_budget(results(given, name, chunk_size=chunk_size), expected, torch.float64)


@pytest.mark.parametrize("name", [*DIVERGENCES, "cross_entropy"])
def test_gradcheck(name):
    """Finite differences in float64 with cap, scale, bias, temperature, weight."""
    given = problem(3, 11, 9, scale=0.7, softcap=4.0)
    if name == "adaptive_kl":  # its weights are constants to the gradient, not to the value
        expected = results(given, name, impl="reference", temperature=0.8)
        found = results(given, name, temperature=0.8, chunk_size=2)
        assert_within_budget(found, expected, torch.float64)
        return

    def loss(student, weight, bias):
        head = dataclasses.replace(given.student_head, weight=weight, bias=bias)
        moved = dataclasses.replace(given, student=student, student_head=head)
        return moved.run(name, temperature=0.8, chunk_size=2)[0]

    assert torch.autograd.gradcheck(loss, given.leaves)


def test_backward_twice():
    """A retained graph gives the same gradients again, whatever became of the first ones."""
    given = problem(13)
    loss, _ = given.run("jsd", chunk_size=5)
    first = torch.autograd.grad(3 * loss, given.leaves, retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    second = torch.autograd.grad(loss, given.leaves)
    for once, saved, again in zip(first, kept, second, strict=True):
        assert torch.equal(once, saved)
        torch.testing.assert_close(once, 3 * again)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_rows_of_several_pairs_in_one_call():
    """P layer pairs stacked with weight 1/P each = the mean of P calls."""
    given = problem(9)
    stacked = dataclasses.replace(
        given,
        student=torch.cat([given.student, given.student.flip(0)]),
        teacher=torch.cat([given.teacher, given.teacher]),
        weight=torch.full((18,), 0.5),
    )
    mirrored = dataclasses.replace(given, student=given.student.flip(0))
    ones = [dataclasses.replace(one, weight=None) for one in (given, mirrored)]
    mean = sum(one.run("jsd")[0] for one in ones) / 2
    torch.testing.assert_close(stacked.run("jsd", chunk_size=4)[0], mean)


def flops(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@every_divergence
def test_flops(name):
    """2 N V (Dt + 3 Ds), 2 N V (Dt + 2 Ds) with a frozen head, 2 N V (Dt + Ds) with no gradient."""
    unit = 2 * 47 * 31
    given = problem(47)
    heads = given.student_head.weight, given.student_head.bias
    assert flops(lambda: given.run(name, chunk_size=5)[0].backward()) == unit * (5 + 3 * 7)
    for tensor in heads:
        tensor.requires_grad_(False)
    assert flops(lambda: given.run(name, chunk_size=5)[0].backward()) == unit * (5 + 2 * 7)
    with torch.no_grad():
        assert flops(lambda: given.run(name, chunk_size=5)) == unit * (5 + 7)
    given.student.requires_grad_(False)
    assert flops(lambda: given.run(name, chunk_size=5)) == unit * (5 + 7)
    heads[0].requires_grad_()
    assert flops(lambda: given.run(name, chunk_size=5)[0].backward()) == unit * (5 + 2 * 7)


def test_cross_entropy_flops():
    """6 N V D: the projection and its two gradient products."""
    given = problem(47)
    call = lambda: given.run("cross_entropy", chunk_size=5)[0].backward()  # noqa: E731
    assert flops(call) == 2 * 47 * 31 * 3 * 7


class LargestLive(TorchDispatchMode):
    """The largest sum of bytes of storages made inside it and alive at one time."""

    def __init__(self, inputs):
        super().__init__()
        self.inputs = {tensor.untyped_storage().data_ptr() for tensor in inputs}
        self.tensors, self.most = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.tensors += [weakref.ref(x) for x in tree_leaves(result) if torch.is_tensor(x)]
        alive = [tensor for tensor in (made() for made in self.tensors) if tensor is not None]
        self.tensors = [weakref.ref(tensor) for tensor in alive]
        storages = (tensor.untyped_storage() for tensor in alive)
        sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
        made = sum(size for place, size in sizes.items() if place not in self.inputs)
        self.most = max(self.most, made)
        return result


def num_tiles(rows, name, impl, dtype, chunk=16, vocabulary=3001):
    """What a call allocates beside its gradients, in [chunk, V] float32 tiles."""
    given = problem(rows, vocabulary, vocabulary, dtype=dtype, scale=0.7, softcap=4.0)
    inputs = [*given.leaves, given.teacher, given.teacher_head.weight, given.teacher_head.bias]
    options = {} if impl == "reference" else {"chunk_size": chunk}
    with LargestLive(inputs) as mode:
        given.run(name, impl=impl, **options)[0].backward()
    gradients = sum(4 * leaf.numel() for leaf in given.leaves)
    return (mode.most - gradients) / (4 * chunk * vocabulary)


@pytest.mark.parametrize("name", [*DIVERGENCES, "cross_entropy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_four_tiles_whatever_the_number_of_tokens(dtype, name):
    """At most four [chunk, V] float32 tiles, at N and at 5 N; the reference grows with N."""
    few, many = (num_tiles(rows, name, "chunked", dtype) for rows in (32, 160))
    assert few <= 4 and many <= 4
    assert many - few < 0.1


def test_the_memory_meter_sees_the_reference_grow():
    """The meter that proves the bound can also refute it."""
    few, many = (num_tiles(rows, "jsd", "reference", torch.float32) for rows in (32, 160))
    assert few > 4 and many > 4 * few


def test_half_products_summed_in_float32(monkeypatch):
    """Where addmm can, the head's gradient is never rounded to bfloat16: 20 chunks of one row."""
    given = problem(20, 31, 31, dtype=torch.bfloat16)
    plain, calls = torch.addmm, []

    def addmm(total, left, right, *, beta=1, out, out_dtype=None):
        """What cuBLAS does, and a CPU's torch does not know."""
        if out_dtype is None:
            return plain(total, left, right, beta=beta, out=out)
        assert out is total and total.dtype == out_dtype == torch.float32
        assert left.dtype == right.dtype == torch.bfloat16
        calls.append(beta)
        return plain(total, left.float(), right.float(), beta=beta, out=out)

    rounded = results(given, "jsd", chunk_size=1)
    monkeypatch.setattr(torch, "addmm", addmm)
    monkeypatch.setattr(chunked, "_adds_in_float32", lambda total: True)
    found = results(given, "jsd", chunk_size=1)
    assert calls == [0] + 19 * [1]
    torch.testing.assert_close(found[3], rounded[3], rtol=2**-6, atol=1e-3)
    assert all(torch.equal(found[i], rounded[i]) for i in (0, 1, 2, 4))


@pytest.mark.parametrize(
    ("device", "dtype", "version", "expected"),
    [
        ("cuda", torch.float32, (2, 10), True),
        ("cuda", torch.float32, (99, 0), False),
        ("cuda", torch.float64, (2, 10), False),
        ("cpu", torch.float32, (2, 10), False),
    ],
)
def test_who_adds_in_float32(device, dtype, version, expected, monkeypatch):
    """CUDA with a float32 sum, from the first torch that can."""
    assert chunked._FIRST_ADDMM == (2, 10)
    monkeypatch.setattr(chunked, "_FIRST_ADDMM", version)
    total = types.SimpleNamespace(device=torch.device(device), dtype=dtype)
    assert chunked._adds_in_float32(total) is expected
