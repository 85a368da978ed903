"""Several terms of one head: the sum of what each is alone, with one gradient of the head."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from distilllens import Head, linear_cross_entropy, linear_divergence
from distilllens.linear_divergence import cross_entropy_term, divergence_term, linear_terms


def problem(dtype=torch.float32, rows=(5, 0, 9), vocabularies=(23, 23, 19)):
    """A student's head with a bias, rows for three terms, teachers of two vocabularies."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    weight, bias = random(23, 6).requires_grad_(), random(23).requires_grad_()
    students = [random(n, 6).requires_grad_() for n in rows]
    weights = [torch.rand(n, generator=generator) for n in rows]
    labels = torch.randint(23, rows[:1], generator=generator)
    teachers = [
        (random(n, 4), Head(random(v, 4))) for n, v in zip(rows[1:], vocabularies[1:], strict=True)
    ]
    return Head(weight, bias, scale=0.7), students, weights, labels, teachers


def terms_of(students, weights, labels, teachers):
    first, *others = students
    names = ("jsd", "reverse_kl")
    return [
        cross_entropy_term(first, labels, weight=weights[0]),
        *(
            divergence_term(student, *teacher, name, temperature=1.3, weight=weight)
            for student, teacher, name, weight in zip(
                others, teachers, names, weights[1:], strict=True
            )
        ),
    ]


@pytest.mark.parametrize("impl", ["chunked", "reference"])
@pytest.mark.parametrize("rows", [(5, 0, 9), (0, 7, 3), (0, 0, 0), (1, 1, 1)])
def test_terms_are_the_sum_of_calls(impl, rows):
    """Value, nats and every gradient under a random upstream one, twice backward as well."""
    head, students, weights, labels, teachers = problem(rows=rows)
    leaves = [head.weight, head.bias, *students]
    options = {"impl": impl} | ({"chunk_size": 2} if impl == "chunked" else {})
    total, nats = linear_terms(head, terms_of(students, weights, labels, teachers), **options)
    alone = [
        linear_cross_entropy(students[0], head, labels, weight=weights[0], impl="reference"),
        *(
            linear_divergence(
                student,
                head,
                *teacher,
                divergence=name,
                temperature=1.3,
                weight=weight,
                impl="reference",
            )
            for student, teacher, name, weight in zip(
                students[1:], teachers, ("jsd", "reverse_kl"), weights[1:], strict=True
            )
        ),
    ]
    expected = sum(loss for loss, _ in alone)
    torch.testing.assert_close(total, expected, atol=1e-5, rtol=1e-5)
    for found, (_, wanted) in zip(nats, alone, strict=True):
        assert not found.requires_grad
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    wanted = torch.autograd.grad(2.5 * expected, leaves)
    for _ in range(2):
        found = torch.autograd.grad(2.5 * total, leaves, retain_graph=True)
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_gradcheck():
    """In float64, head and all students together."""
    head, students, weights, labels, teachers = problem(torch.float64, rows=(2, 3, 2))

    def total(weight, bias, *students):
        terms = terms_of(students, weights, labels, teachers)
        return linear_terms(Head(weight, bias, scale=0.7), terms, chunk_size=2)[0]

    assert torch.autograd.gradcheck(total, (head.weight, head.bias, *students))


def test_dtypes_may_differ_between_terms():
    """A float64 teacher beside labels: the head's gradient is summed in the wider one."""
    head, students, weights, labels, teachers = problem(rows=(5, 4, 9))
    wide = [(states.double(), Head(head.weight.double())) for states, head in teachers]
    total, nats = linear_terms(head, terms_of(students, weights, labels, wide))
    narrow, _ = linear_terms(head, terms_of(students, weights, labels, teachers))
    assert [x.dtype for x in nats] == [torch.float32, torch.float64, torch.float64]
    torch.testing.assert_close(total.float(), narrow, atol=1e-5, rtol=1e-5)
    ours = torch.autograd.grad(total, [head.weight, head.bias])
    theirs = torch.autograd.grad(narrow, [head.weight, head.bias])
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("frozen", ["head", "students"])
def test_what_needs_no_gradient_costs_none(frozen):
    """A frozen head, or frozen states, leave the others' gradients as they are."""
    head, students, weights, labels, teachers = problem(rows=(5, 4, 9))
    terms = terms_of(students, weights, labels, teachers)
    leaves = students if frozen == "head" else [head.weight, head.bias]
    wanted = torch.autograd.grad(linear_terms(head, terms)[0], leaves)
    for leaf in [head.weight, head.bias] if frozen == "head" else students:
        leaf.requires_grad_(False)
    found = torch.autograd.grad(linear_terms(head, terms)[0], leaves)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_one_gradient_of_the_head_is_alive():
    """Four terms hold one ``[V, D]`` sum between forward and backward, not four."""
    weight = torch.randn(4096, 64, requires_grad=True)
    head, labels = Head(weight), torch.randint(4096, (8,))
    students = [torch.randn(8, 64, requires_grad=True) for _ in range(4)]
    total, _ = linear_terms(head, [cross_entropy_term(s, labels) for s in students])
    found = total.grad_fn.found
    assert [tuple(g.shape) for g in found if g is not None] == [(4096, 64), *[(8, 64)] * 4]


@pytest.mark.parametrize("impl", ["chunked", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", ["plain", "ties", "impossible tokens", "no rows"])
def test_what_a_student_predicts_is_seen(impl, dtype, case):
    """Whether a label is the argmax, the first of equal ones, and the entropy; no gradient moves.

    The oracle is in float64, with 0 log 0 = 0 written out. Tolerance: 1e-6 nats in float32, where
    logits are exact: rows and head are small multiples of 1/4.
    """
    generator = torch.Generator().manual_seed(1)

    def quarters(*shape):
        return (torch.randint(-4, 5, shape, generator=generator) / 4).to(dtype)

    rows = 0 if case == "no rows" else 11
    student, weight, bias = quarters(rows, 6), quarters(23, 6), quarters(23)
    if case == "ties":
        weight[7], bias[7] = weight[3], bias[3]
        student = weight[[3] * rows] * 2
    if case == "impossible tokens":
        bias[::2] = -torch.inf
    labels = torch.arange(rows) % 23
    logits = student.double() @ weight.double().T + bias.double()
    labels[::3] = logits.argmax(-1)[::3]
    if case == "ties":
        labels[1::3] = 7
    gradients, options = [], {"impl": impl} | ({"chunk_size": 4} if impl == "chunked" else {})
    for seen in (None, torch.full((2, rows), 9.0, dtype=torch.promote_types(dtype, torch.float32))):
        leaves = [t.clone().requires_grad_() for t in (student, weight, bias)]
        term = cross_entropy_term(leaves[0], labels, seen=seen)
        total, _ = linear_terms(Head(*leaves[1:]), [term], **options)
        gradients.append(torch.autograd.grad(total, leaves))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    q = logits.softmax(-1)
    entropy = [-sum(p * math.log(p) for p in row if p > 0) for row in q.tolist()]
    first = [row.index(max(row)) for row in logits.tolist()]
    assert seen[0].tolist() == [float(a == b) for a, b in zip(labels.tolist(), first, strict=True)]
    assert seen[1].tolist() == pytest.approx(entropy, abs=1e-6 if dtype != torch.bfloat16 else 0.05)
    again = torch.empty_like(seen)
    with torch.no_grad():
        linear_terms(
            Head(weight, bias), [cross_entropy_term(student, labels, seen=again)], **options
        )
    assert torch.equal(again, seen)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda: divergence_term(torch.ones(2), *TEACHER, "jsd"), r"student must be \[N, D\]"),
        (lambda: divergence_term(torch.ones(3, 6), *TEACHER, "jsd"), "same number of rows"),
        (lambda: divergence_term(torch.ones(2, 6), *TEACHER, "kl"), "'kl'"),
        (lambda: cross_entropy_term(torch.ones(2, 6), LABELS, temperature=0), "temperature"),
        (lambda: linear_terms(HEAD, [cross_entropy_term(torch.ones(2, 5), LABELS)]), "width 5"),
        (lambda: linear_terms(HEAD, [cross_entropy_term(torch.ones(3, 6), LABELS)]), "labels must"),
    ],
)
def test_bad_terms_are_named(spoil, message):
    """As the calls of one term say it."""
    with pytest.raises(ValueError, match=message):
        spoil()


HEAD, LABELS = Head(torch.ones(7, 6)), torch.tensor([0, 1])
TEACHER = (torch.ones(2, 4), Head(torch.ones(7, 4)))


class _Casts(TorchDispatchMode):
    """The shapes of float32 tensors that are cast to bfloat16."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default and result.dtype == torch.bfloat16:
            self.shapes.append(tuple(result.shape))
        return result


def test_terms_of_one_teacher_cast_its_head_once():
    """Under autocast: nats and total are, bit for bit, those of calls of their own."""
    head, students, weights, labels, ((teacher, other), _) = problem(rows=(5, 5, 5))
    teachers = [(teacher, other), (teacher, other)]
    terms = terms_of(students, weights, labels, teachers)
    with torch.autocast("cpu", torch.bfloat16):
        with _Casts() as casts:
            total, nats = linear_terms(head, terms)
        alone = [linear_terms(head, [term]) for term in terms]
    assert casts.shapes.count((23, 4)) == 1
    assert total == sum(value for value, _ in alone)
    for found, (_, (right,)) in zip(nats, alone, strict=True):
        assert torch.equal(found, right)
