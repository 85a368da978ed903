"""The door of linear_divergence: what it promises beyond the formula, and what it refuses."""

import inspect

import pytest
import torch
from torch.nn import functional as F

from distilllens.divergence import divergence
from distilllens.head import Head
from distilllens.linear_divergence import linear_cross_entropy, linear_divergence

every_engine = pytest.mark.parametrize("impl", ["auto", "chunked", "reference"])


def heads(student_vocab=31, teacher_vocab=31, dtype=torch.float32):
    weight = torch.randn(student_vocab, 7, dtype=dtype).requires_grad_()
    return Head(weight), Head(torch.randn(teacher_vocab, 5, dtype=dtype))


@every_engine
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_the_naive_program(impl, rows):
    """The docstring's lines at N = 0, 1 and 3; gradients to the student and its head only."""
    head, teacher_head = heads()
    student = torch.randn(rows, 7, requires_grad=True)
    teacher = torch.randn(rows, 5, requires_grad=True)
    weight = torch.rand(rows, requires_grad=True)
    loss, per_token = linear_divergence(
        student, head, teacher, teacher_head, temperature=2.0, weight=weight, impl=impl
    )
    expected = divergence("jsd")(head(student) / 2, teacher_head(teacher) / 2)
    torch.testing.assert_close(per_token, expected.detach())
    torch.testing.assert_close(loss, (weight * expected).sum())
    assert not per_token.requires_grad and loss.shape == () and per_token.shape == (rows,)
    loss.backward()
    assert student.grad.shape == (rows, 7) and head.weight.grad.shape == (31, 7)
    assert (rows == 0) == (not head.weight.grad.any())
    assert teacher.grad is None and weight.grad is None


@every_engine
@pytest.mark.parametrize("rows", [0, 47])
def test_cross_entropy(impl, rows):
    """F.cross_entropy of the head's logits, value and gradients; a connected zero at N = 0."""
    head, _ = heads()
    student, labels = torch.randn(rows, 7, requires_grad=True), torch.randint(31, (rows,))
    loss, per_token = linear_cross_entropy(student, head, labels, impl=impl, temperature=0.7)
    expected = F.cross_entropy(head(student) / 0.7, labels, reduction="none")
    torch.testing.assert_close(per_token, expected.detach())
    leaves = (student, head.weight)
    found = torch.autograd.grad(loss, leaves)
    for ours, theirs in zip(found, torch.autograd.grad(expected.sum(), leaves), strict=True):
        torch.testing.assert_close(ours, theirs)


@every_engine
@pytest.mark.parametrize(("student_vocab", "teacher_vocab"), [(31, 23), (23, 31)])
def test_unequal_vocabularies(impl, student_vocab, teacher_vocab):
    """The shared prefix, renormalised; rows of the student's head beyond it get exactly 0."""
    head, teacher_head = heads(student_vocab, teacher_vocab)
    student, teacher = torch.randn(3, 7), torch.randn(3, 5)
    loss, per_token = linear_divergence(student, head, teacher, teacher_head, impl=impl)
    expected = divergence("jsd")(head(student)[:, :23], teacher_head(teacher)[:, :23])
    torch.testing.assert_close(per_token, expected.detach())
    loss.backward()
    assert (head.weight.grad[23:] == 0).all() and head.weight.grad[:23].any()


@every_engine
def test_dtypes(impl):
    """A bfloat16 teacher beside a float32 student: float32 results, gradients in the inputs'."""
    head, _ = heads()
    _, teacher_head = heads(dtype=torch.bfloat16)
    student = torch.randn(3, 7, requires_grad=True)
    teacher = torch.randn(3, 5, dtype=torch.bfloat16)
    loss, per_token = linear_divergence(student, head, teacher, teacher_head, impl=impl)
    expected = divergence("jsd")(head(student), teacher_head(teacher).float())
    torch.testing.assert_close(per_token, expected.detach())
    assert loss.dtype == per_token.dtype == torch.float32
    loss.backward()
    assert student.grad.dtype == head.weight.grad.dtype == torch.float32


@every_engine
def test_autocast(impl):
    """float32 models under autocast project in bfloat16, as their own heads would."""
    head, teacher_head = heads()
    student, teacher = torch.randn(47, 7, requires_grad=True), torch.randn(47, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, per_token = linear_divergence(student, head, teacher, teacher_head, impl=impl)
        logits = head(student), teacher_head(teacher)
    assert logits[0].dtype == torch.bfloat16 and loss.dtype == torch.float32
    torch.testing.assert_close(per_token, divergence("jsd")(*logits).detach(), rtol=0, atol=1e-2)
    loss.backward()
    assert student.grad.dtype == head.weight.grad.dtype == torch.float32


@every_engine
def test_no_graph_without_gradients(impl):
    """Under no_grad, and with everything frozen, the result is a plain number."""
    head, teacher_head = heads()
    student, teacher = torch.randn(3, 7, requires_grad=True), torch.randn(3, 5)
    with torch.no_grad():
        loss, _ = linear_divergence(student, head, teacher, teacher_head, impl=impl)
    frozen = Head(head.weight.detach())
    other, _ = linear_divergence(student.detach(), frozen, teacher, teacher_head, impl=impl)
    assert not loss.requires_grad and not other.requires_grad
    torch.testing.assert_close(loss, other)


def test_extreme_rows_of_weight_zero_count_nothing():
    """A weight of 0 leaves value and gradient as if the row were not there."""
    head, teacher_head = heads()
    student, teacher = torch.randn(3, 7, requires_grad=True), torch.randn(3, 5)
    weight = torch.tensor([1.0, 0.0, 1.0])
    loss, per_token = linear_divergence(student, head, teacher, teacher_head, weight=weight)
    loss.backward()
    torch.testing.assert_close(loss, per_token[[0, 2]].sum())
    assert (student.grad[1] == 0).all() and student.grad[0].any()


def test_beta_is_for_jsd():
    """The default is 0.5; written out it is harmless elsewhere, another value is a mistake."""
    assert inspect.signature(linear_divergence).parameters["beta"].default == 0.5
    head, teacher_head = heads()
    rows = torch.randn(3, 7), head, torch.randn(3, 5), teacher_head
    linear_divergence(*rows, divergence="forward_kl", beta=0.5)
    with pytest.raises(ValueError, match="'forward_kl' takes no parameter 'beta'; valid: none"):
        linear_divergence(*rows, divergence="forward_kl", beta=0.3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"divergence": "kl"}, "unknown divergence 'kl'; known: forward_kl, .*total_variation"),
        ({"beta": 1.0}, r"strictly between 0 and 1, got 1\.0 .*forward_kl, reverse_kl"),
        ({"alpha": 0.5}, "'jsd' takes no parameter 'alpha'; valid: beta"),
        ({"divergence": "adaptive_kl", "mu": 2.0}, r"mu of adaptive_kl .* got 2\.0"),
        ({"temperature": 0.0}, r"temperature must be finite and above 0, got 0\.0"),
        ({"temperature": float("inf")}, "above 0, got inf"),
        ({"impl": "cuda"}, "unknown impl 'cuda'; known: auto, chunked, reference, triton"),
        ({"chunk_size": 0}, "at least 1, got 0"),
        ({"chunk_size": 2.5}, r"whole number of at least 1, got 2\.5"),
        ({"weight": torch.ones(4)}, r"weight must be \[3\] .* got shape \[4\]"),
        ({"student": torch.ones(1, 3, 7)}, r"student must be \[N, D\], got shape \[1, 3, 7\]"),
        ({"student": torch.ones(3, 6)}, "student has width 6, but its head reads width 7"),
        ({"teacher": torch.ones(3, 7)}, "teacher has width 7, but its head reads width 5"),
        ({"teacher": torch.ones(4, 5)}, "same number of rows, got 3 and 4"),
    ],
)
def test_what_is_refused(change, message):
    """What, which value, what would be right."""
    head, teacher_head = heads()
    call = {
        "student": torch.ones(3, 7),
        "student_head": head,
        "teacher": torch.ones(3, 5),
        "teacher_head": teacher_head,
    }
    with pytest.raises(ValueError, match=message):
        linear_divergence(**{**call, **change})


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(4, dtype=torch.long), r"labels must be \[3\] whole numbers .* shape \[4\]"),
        (torch.zeros(3), "torch.float32"),
        (torch.tensor([0, 31, 1]), "tokens from 0 to 30, got 0 to 31"),
        (torch.tensor([0, -100, 1]), "got -100 to 1; leave rows without a label out"),
    ],
)
def test_labels_that_are_refused(labels, message):
    """-100 has died before this door; every label is a token of the head."""
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(torch.ones(3, 7), heads()[0], labels)
