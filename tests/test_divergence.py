"""Divergences: oracles from probabilities, the laws they obey, and what is refused."""

import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical, kl_divergence

from distilllens.divergence import adaptive_weights, divergence

INF = float("inf")
CASES = [
    ("forward_kl", {}),
    ("reverse_kl", {}),
    ("jsd", {}),
    ("jsd", {"beta": 0.1}),
    ("jeffreys", {}),
    ("jeffreys", {"forward_weight": 0.3, "reverse_weight": 2.0}),
    ("jeffreys", {"forward_weight": 0.0}),
    ("adaptive_kl", {}),
    ("adaptive_kl", {"mu": 0.9}),
    ("skew_forward_kl", {}),
    ("skew_reverse_kl", {"alpha": 0.4}),
    ("total_variation", {}),
    ("uld", {}),
]
every_divergence = pytest.mark.parametrize(("name", "params"), CASES)


def kl(p, q):
    return kl_divergence(Categorical(p), Categorical(q))


def by_hand(name, q, p, beta=0.5, forward_weight=1, reverse_weight=1, mu=0.5, alpha=0.1):
    """The definitions, from probabilities in float64."""
    if name == "adaptive_kl":
        return torch.stack([adaptive_by_hand(*pair, mu) for pair in zip(q, p, strict=True)])
    m = beta * p + (1 - beta) * q
    return {
        "forward_kl": lambda: kl(p, q),
        "reverse_kl": lambda: kl(q, p),
        "jsd": lambda: beta * kl(p, m) + (1 - beta) * kl(q, m),
        "jeffreys": lambda: forward_weight * kl(p, q) + reverse_weight * kl(q, p),
        "skew_forward_kl": lambda: kl(p, alpha * p + (1 - alpha) * q),
        "skew_reverse_kl": lambda: kl(q, (1 - alpha) * p + alpha * q),
        "total_variation": lambda: torch.clamp(p - q, min=0).sum(-1),
        "uld": lambda: (p.sort().values - q.sort().values).abs().sum(-1),
    }[name]()


def adaptive_by_hand(q, p, mu):
    order = sorted(range(len(p)), key=lambda token: -p[token].item())
    mass, head = 0.0, set()
    for rank, token in enumerate(order):
        mass += p[token].item()
        if rank == 0 or mass <= mu:
            head.add(token)
    gaps = {
        True: sum(abs(p[i] - q[i]).item() for i in head),
        False: sum(abs(p[i] - q[i]).item() for i in range(len(p)) if i not in head),
    }
    share = gaps[True] / (gaps[True] + gaps[False])
    return share * kl(p, q) + (1 - share) * kl(q, p)


def logits(*shape, seed=0, scale=3.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)


@st.composite
def pairs(draw, bound=30.0):
    """Student and teacher logits ``[1, V]`` of any shape up to seven tokens."""
    size = draw(st.integers(2, 7))
    rows = st.lists(st.floats(-bound, bound), min_size=size, max_size=size)
    return tuple(torch.tensor([draw(rows)], dtype=torch.float64) for _ in "qp")


@every_divergence
@pytest.mark.parametrize(("rows", "vocabulary"), [(47, 31), (3, 123), (1, 2)])
def test_equals_its_definition(name, params, rows, vocabulary):
    """log-softmax formulas = definitions on probabilities, to 1e-12 in float64."""
    student, teacher = logits(rows, vocabulary), logits(rows, vocabulary, seed=1)
    expected = by_hand(name, student.softmax(-1), teacher.softmax(-1), **params)
    found = divergence(name, **params)(student, teacher)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@every_divergence
def test_gradcheck(name, params):
    """The gradient of the student is that of the value; adaptive_kl's weights are constants."""
    student, teacher = logits(3, 7).requires_grad_(), logits(3, 7, seed=1)
    if name == "adaptive_kl":
        forward, reverse = divergence("forward_kl"), divergence("reverse_kl")
        with torch.no_grad():
            f, r = forward(student, teacher), reverse(student, teacher)
            share = (divergence(name, **params)(student, teacher) - r) / (f - r)
        constant = share * forward(student, teacher) + (1 - share) * reverse(student, teacher)
        (expected,) = torch.autograd.grad(constant.sum(), student)
        (found,) = torch.autograd.grad(divergence(name, **params)(student, teacher).sum(), student)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    else:
        assert torch.autograd.gradcheck(lambda x: divergence(name, **params)(x, teacher), student)


@every_divergence
def test_the_teacher_gets_no_gradient(name, params):
    """Teacher terms are constants even where the teacher requires a gradient."""
    student, teacher = logits(3, 7).requires_grad_(), logits(3, 7, seed=1).requires_grad_()
    divergence(name, **params)(student, teacher).sum().backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None


@every_divergence
@settings(deadline=None, max_examples=50)
@given(pair=pairs())
def test_range_and_zero(name, params, pair):
    """Never below 0 (but for rounding), within the bound, and 0 for equal distributions."""
    alpha = params.get("alpha", 0.1)
    bound = {"jsd": math.log(2), "total_variation": 1.0}.get(name, INF)
    bound = -math.log(alpha) if name.startswith("skew") else bound
    compare = divergence(name, **params)
    assert -1e-14 <= compare(*pair).item() <= bound + 1e-12
    assert compare(pair[1] + 7, pair[1]).abs().item() < 1e-13


@pytest.mark.parametrize("name", [name for name, params in CASES if not params])
def test_positive_unless_equal(name):
    """Every divergence is definite: two distributions 1e-3 apart are told apart."""
    teacher = logits(47, 31)
    student = teacher + torch.linspace(0, 1e-3, 31, dtype=torch.float64)
    assert (divergence(name)(student, teacher) > 0).all()


@every_divergence
@settings(deadline=None, max_examples=25)
@given(pair=pairs(), shift=st.floats(-50, 50), seed=st.integers(0, 99))
def test_shift_and_permutation_change_nothing(name, params, pair, shift, seed):
    """Adding a constant to logits and renaming tokens leave the value."""
    if name == "adaptive_kl":  # whose head depends on the order where two p are equal
        pair = logits(1, 7, seed=seed), logits(1, 7, seed=seed + 1000)
    student, teacher = pair
    order = torch.randperm(student.shape[-1], generator=torch.Generator().manual_seed(seed))
    compare = divergence(name, **params)
    value = compare(student, teacher)
    torch.testing.assert_close(compare(student[:, order], teacher[:, order]), value)
    shifted = compare(student + shift, teacher - shift)
    torch.testing.assert_close(shifted, value, rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=50)
@given(pair=pairs())
def test_symmetries(pair):
    """jsd(0.5), jeffreys and total variation are symmetric; the KLs are each other's mirror."""
    mirrored = pair[::-1]
    for name in ("jsd", "jeffreys", "total_variation"):
        torch.testing.assert_close(divergence(name)(*pair), divergence(name)(*mirrored))
    forward, reverse = divergence("forward_kl"), divergence("reverse_kl")
    torch.testing.assert_close(forward(*pair), reverse(*mirrored))
    torch.testing.assert_close(divergence("jeffreys")(*pair), forward(*pair) + reverse(*pair))
    torch.testing.assert_close(
        divergence("jsd", beta=0.3)(*pair), divergence("jsd", beta=0.7)(*mirrored)
    )
    torch.testing.assert_close(
        divergence("skew_forward_kl", alpha=0.3)(*pair),
        divergence("skew_reverse_kl", alpha=0.3)(*mirrored),
    )


@every_divergence
def test_extreme_logits_stay_finite(name, params):
    """One-hot models that disagree by 2e3 nats, in float32: finite values and gradients."""
    student = torch.tensor([[1e3, -1e3, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[-1e3, 1e3, 0.0], [1e3, -1e3, 0.0]])
    value = divergence(name, **params)(student, teacher)
    value.sum().backward()
    assert value.isfinite().all() and student.grad.isfinite().all()
    if name in ("forward_kl", "reverse_kl"):
        assert value[0].item() == pytest.approx(2e3)  # log-odds of the one-hot token


@every_divergence
def test_tokens_that_neither_model_has(name, params):
    """-inf in both = the vocabulary without those tokens: same value and gradient, and 0 there."""
    gone = torch.tensor([2, 5])
    kept = torch.tensor([0, 1, 3, 4, 6])
    student, teacher = logits(3, 7), logits(3, 7, seed=1)
    short = student[:, kept].requires_grad_()
    expected = divergence(name, **params)(short, teacher[:, kept])
    expected.sum().backward()
    student[:, gone] = teacher[:, gone] = -INF
    student.requires_grad_()
    found = divergence(name, **params)(student, teacher)
    found.sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(student.grad[:, kept], short.grad)
    assert (student.grad[:, gone] == 0).all()


@pytest.mark.parametrize(
    ("name", "student_lacks", "teacher_lacks"),
    [
        ("forward_kl", INF, "finite"),
        ("reverse_kl", "finite", INF),
        ("jeffreys", INF, INF),
        ("jsd", "finite", "finite"),
        ("skew_forward_kl", "finite", "finite"),
        ("skew_reverse_kl", "finite", "finite"),
        ("total_variation", "finite", "finite"),
    ],
)
def test_tokens_that_one_model_lacks(name, student_lacks, teacher_lacks):
    """-inf where the other model has mass: +inf for the KL that sees it, finite for the bounded."""
    full, holed = logits(1, 5), logits(1, 5, seed=1)
    holed[0, 2] = -INF
    for pair, expected in (((holed, full), student_lacks), ((full, holed), teacher_lacks)):
        student = pair[0].clone().requires_grad_()
        value = divergence(name)(student, pair[1])
        if expected == INF:
            assert value.item() == INF
        else:
            value.backward()
            torch.testing.assert_close(value, by_hand(name, *(x.softmax(-1) for x in pair)))
            assert student.grad.isfinite().all()


@pytest.mark.parametrize(("vocabulary", "published"), [(50257, -5.0e-4), (151936, -1.5e-3)])
def test_no_epsilon(vocabulary, published):
    """log(m + 1e-8) makes JSD of two equal flat models negative (method 5.3); ours is 0."""
    flat = torch.zeros(1, vocabulary)
    p = flat.double().softmax(-1)
    with_epsilon = (p * (p.log() - (p + 1e-8).log())).sum().item()
    assert with_epsilon == pytest.approx(published, rel=0.02)
    assert abs(divergence("jsd")(flat, flat).item()) < 1e-7
    spiky = logits(3, vocabulary, dtype=torch.float32)
    assert (divergence("jsd")(spiky, spiky).abs() < 1e-7).all()


@pytest.mark.parametrize("rows", [0, 1])
@every_divergence
def test_few_rows(name, params, rows):
    """N = 0 and N = 1 keep their shape, dtype and graph."""
    student = torch.randn(rows, 5, requires_grad=True)
    value = divergence(name, **params)(student, torch.randn(rows, 5))
    value.sum().backward()
    assert value.shape == (rows,) and student.grad.shape == (rows, 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_compared_in_float32(dtype):
    """The result is what the same numbers give in float32, and the gradient the inputs' dtype."""
    student, teacher = logits(3, 47, dtype=dtype).requires_grad_(), logits(3, 47, seed=1).to(dtype)
    value = divergence("jsd")(student, teacher)
    value.sum().backward()
    assert value.dtype == torch.float32 and student.grad.dtype == dtype
    assert torch.equal(value, divergence("jsd")(student.detach().float(), teacher.float()))


@pytest.mark.parametrize("mu", [0.001, 0.1, 0.5, 0.95])
@pytest.mark.parametrize("grid", [None, 1.0, 0.01])
def test_a_head_in_the_top_is_not_sorted_for(grid, mu, monkeypatch):
    """A vocabulary that is not sorted whole has the head of one that is; ties in its order.

    Rows from one-hot to flat: heads of one token to a thousand. On a grid many are equally likely,
    also where the head and where the top ends.
    """
    logits = torch.randn(2, 9, 1000, dtype=torch.float64) * torch.logspace(-2, 1.5, 9)[:, None]
    if grid is not None:
        logits = (logits / grid).round() * grid
    q, p = logits.softmax(-1)
    p[-1], p[-2, 500:] = 1 / 1000, 0
    found = adaptive_weights(q, p, mu)
    monkeypatch.setattr(sys.modules["distilllens.divergence"], "_TOP", 1000)
    expected = adaptive_weights(q, p, mu)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    for row, (head, tail) in enumerate(zip(*expected, strict=True)):
        forward, reverse = kl(p[row], q[row]), kl(q[row], p[row])
        if reverse.isfinite() and head + tail > 0:
            by_shares = head * forward + tail * reverse
            torch.testing.assert_close(by_shares, adaptive_by_hand(q[row], p[row], mu))


def test_adaptive_head_and_tail():
    """Wu et al.'s head: mass <= mu, the top token always; equal models give 0 with gradient 0."""
    p = torch.tensor([[0.6, 0.3, 0.1], [0.3, 0.25, 0.45]], dtype=torch.float64)
    q = torch.tensor([[0.5, 0.2, 0.3], [0.3, 0.40, 0.30]], dtype=torch.float64)
    head = torch.tensor([0.1 / 0.4, 0.15 / 0.30], dtype=torch.float64)  # the top token's gap
    expected = head * kl(p, q) + (1 - head) * kl(q, p)
    torch.testing.assert_close(divergence("adaptive_kl")(q.log(), p.log()), expected)
    same = p.log().requires_grad_()
    value = divergence("adaptive_kl")(same, p.log())
    value.sum().backward()
    assert (value == 0).all() and (same.grad == 0).all()


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("kl", {}, "unknown divergence 'kl'; known: forward_kl, reverse_kl, jsd, .*variation"),
        ("jsd", {"alpha": 0.5}, "'jsd' takes no parameter 'alpha'; valid: beta"),
        ("forward_kl", {"beta": 0.5}, "'forward_kl' takes no parameter 'beta'; valid: none"),
        ("jeffreys", {"a": 1}, "valid: forward_weight, reverse_weight"),
        ("jsd", {"beta": 0}, "strictly between 0 and 1, got 0 .*forward_kl, reverse_kl"),
        ("jsd", {"beta": 1.0}, r"strictly between 0 and 1, got 1\.0 .*forward_kl, reverse_kl"),
        ("jsd", {"beta": float("nan")}, "finite number, got nan"),
        ("jsd", {"beta": "0.5"}, "finite number, got '0.5'"),
        ("skew_forward_kl", {"alpha": 1.5}, r"alpha .* between 0 and 1, got 1\.5"),
        ("adaptive_kl", {"mu": 0.0}, r"mu .* between 0 and 1, got 0\.0$"),
        ("jeffreys", {"forward_weight": -1}, "forward_weight .* at least 0, got -1"),
        ("jeffreys", {"forward_weight": 0, "reverse_weight": 0}, "got 0 for both"),
    ],
)
def test_what_is_refused(name, params, message):
    """What, which value, what would be right; beta's ends have names of their own."""
    with pytest.raises(ValueError, match=message):
        divergence(name, **params)


def test_logits_of_different_shapes_are_refused():
    """No broadcasting: a teacher of another vocabulary is the caller's mistake."""
    with pytest.raises(ValueError, match=r"same shape, got \[3, 5\] and \[3, 6\]"):
        divergence("jsd")(torch.zeros(3, 5), torch.zeros(3, 6))
