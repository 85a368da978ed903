"""The Triton kernel in Triton's interpreter: run by test_triton_rows.py, in its own process."""

import dataclasses
import sys

import pytest
import torch
from linear_divergence.problems import DIVERGENCES, assert_within_budget, problem, results

from distilllens.divergence import divergence
from distilllens.head import Head
from distilllens.linear_divergence import tiles, triton_rows

door = sys.modules["distilllens.linear_divergence"]  # the package also has a function of that name

INF = float("inf")
IN_THE_KERNEL = sorted(set(DIVERGENCES) - {"adaptive_kl"})
every_kernel = pytest.mark.parametrize("name", IN_THE_KERNEL)
# numpy, in which the interpreter computes, warns where a GPU does not: inf - inf, log 0.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(autouse=True)
def kernel_rows(monkeypatch):
    """How many rows went through the kernel."""
    rows, kernel = [], triton_rows.compare_rows

    def counted(student, *rest, **options):
        rows.append(len(student[0]))
        return kernel(student, *rest, **options)

    monkeypatch.setattr(triton_rows, "compare_rows", counted)
    return rows


@pytest.mark.parametrize("vocabularies", [(47, 47), (47, 31), (31, 47)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_kernel
def test_equals_the_reference(name, dtype, vocabularies, kernel_rows):
    """Value and every gradient with scale, cap, bias, temperature and weights; chunks of 3 of 7."""
    given = problem(7, *vocabularies, dtype=dtype, scale=0.7, softcap=3.0)
    options = {"temperature": 1.3}
    expected = results(given, name, impl="reference", **options)
    found = results(given, name, impl="triton", chunk_size=3, **options)
    assert kernel_rows == [3, 3, 1]
    if dtype == torch.bfloat16 and name == "total_variation":
        found = (*found[:2], *expected[2:])  # its gradient jumps where p crosses q
    assert_within_budget(found, expected, dtype)


@pytest.mark.parametrize("rows", [0, 1, 31])
@pytest.mark.parametrize("vocabulary", [3, 47, 1000])
@pytest.mark.parametrize("name", ["forward_kl", "jsd"])
def test_sizes(name, vocabulary, rows, monkeypatch):
    """No row, one and some; vocabularies below a block of 256, and over four that they do not fill.

    With negative scale, without a cap.
    """
    monkeypatch.setattr(triton_rows, "_BLOCK", 256)
    given = problem(rows, vocabulary, vocabulary, dtype=torch.float32, scale=-0.6)
    found = results(given, name, impl="triton")
    expected = results(given, name, impl="reference")
    if rows:
        assert_within_budget(found, expected, torch.float32)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "weights", [(0.0, 1.5), (1.5, 0.0)], ids=["reverse alone", "forward alone"]
)
def test_a_weight_of_0_meets_no_infinity(weights):
    """jeffreys with one weight is that KL, finite where the other is not."""
    forward_weight, reverse_weight = weights
    params = {"forward_weight": forward_weight, "reverse_weight": reverse_weight}
    student, teacher = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[1.0, 0.5, 0.0]])
    (student if reverse_weight else teacher)[0, 0] = -INF
    assert_equal_to_autograd("jeffreys", params, student, teacher)


def by_kernel(name, params, student, teacher, wants_gradient=True):
    head = Head(torch.empty(student.shape[1], 1))
    tile, nats = student.clone(), torch.full((len(student),), float("nan"))
    triton_rows.compare_rows(
        (tile, head),
        (teacher, head),
        nats,
        name=name,
        params=params,
        temperature=1.0,
        wants_gradient=wants_gradient,
    )
    return nats, tile


def assert_equal_to_autograd(name, params, student, teacher):
    """Every value, infinite ones included, and the gradient of the rows that are finite."""
    leaf = student.clone().requires_grad_()
    expected = divergence(name, **params)(leaf, teacher)
    (gradient,) = torch.autograd.grad(expected.sum(), leaf)
    value, found = by_kernel(name, params, student, teacher)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-5, atol=1e-6)
    finite = expected.isfinite()
    assert finite.any()
    torch.testing.assert_close(found[finite], gradient[finite], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("block", [256, 2])
@every_kernel
def test_extremes(name, block, monkeypatch):
    """One-hot rows, equal rows, tokens that one model lacks or both, whole blocks of them first."""
    monkeypatch.setattr(triton_rows, "_BLOCK", block)
    spread = torch.tensor([1e3, 0.0, -1e3, 2.0, 1.0])
    holed = torch.tensor([-INF, -INF, 1.0, 2.0, -INF])
    flat = torch.zeros(5)
    late = torch.tensor([-150.0, -INF, 0.0, -INF, 150.0])
    student = [spread, spread.flip(0), spread, holed, flat, holed, holed, late, spread]
    teacher = [spread.flip(0), spread, spread, flat, holed, holed, spread, holed, late]
    assert_equal_to_autograd(name, DIVERGENCES[name], torch.stack(student), torch.stack(teacher))


@every_kernel
def test_without_a_gradient(name, kernel_rows):
    """The same value, and the tile is left alone."""
    student, teacher = torch.randn(3, 47), torch.randn(3, 47)
    value, tile = by_kernel(name, DIVERGENCES[name], student, teacher, wants_gradient=False)
    assert torch.equal(value, by_kernel(name, DIVERGENCES[name], student, teacher)[0])
    assert torch.equal(tile, student) and kernel_rows == [3, 3]


@every_kernel
def test_equal_models(name):
    """0 to rounding, with gradient 0."""
    logits = torch.randn(2, 1000) * 3
    value, gradient = by_kernel(name, DIVERGENCES[name], logits, logits)
    assert (value.abs() < 1e-6).all() and (gradient.abs() < 1e-6).all()


def test_models_in_two_dtypes(kernel_rows):
    """A bfloat16 teacher beside a float32 student: each tile is read as it is."""
    given = problem(5, dtype=torch.float32)
    head = given.teacher_head
    half = Head(head.weight.bfloat16(), head.bias.bfloat16())
    given = dataclasses.replace(given, teacher=given.teacher.bfloat16(), teacher_head=half)
    expected = results(given, "jsd", impl="reference")
    assert_within_budget(results(given, "jsd", impl="triton"), expected, torch.float32)
    assert kernel_rows == [5]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("adaptive_kl", torch.float32), ("cross_entropy", torch.float32), ("jsd", torch.float64)],
)
def test_what_is_left_to_torch(name, dtype, kernel_rows):
    """Where the kernel does not go, the result is the chunked engine's to the bit."""
    given = problem(7, dtype=dtype)
    found, expected = (results(given, name, impl=impl) for impl in ("triton", "chunked"))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    assert kernel_rows == []


def test_auto(kernel_rows, monkeypatch):
    """The kernel where it is faster, torch elsewhere: on a CPU, even in the interpreter."""
    given = problem(3, dtype=torch.float32)
    expected = results(given, "jsd", impl="auto")
    assert kernel_rows == []
    monkeypatch.setattr(door, "_is_faster_with_kernel", lambda device: True)
    found = results(given, "jsd", impl="auto")
    assert kernel_rows == [3]
    assert_within_budget(found, expected, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_kernel
def test_padded_rows(name, dtype, kernel_rows, monkeypatch):
    """Tiles as on a GPU: 47 words in rows of 64 or 32; what lies behind them counts nothing."""
    monkeypatch.setattr(tiles, "alignment_matters", lambda device: True)
    monkeypatch.setattr(torch.Tensor, "new_empty", filled_with_nan(torch.Tensor.new_empty))
    given = problem(7, 47, 47, dtype=dtype, scale=0.7, softcap=3.0)
    expected = results(given, name, impl="reference")
    found = results(given, name, impl="triton", chunk_size=3)
    assert kernel_rows == [3, 3, 1]
    if dtype == torch.bfloat16 and name == "total_variation":
        found = (*found[:2], *expected[2:])  # its gradient jumps where p crosses q
    assert_within_budget(found, expected, dtype)


def filled_with_nan(new_empty):
    return lambda self, *size, **options: new_empty(self, *size, **options).fill_(float("nan"))
