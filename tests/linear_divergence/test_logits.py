"""What is compared in place of one teacher's logits: mixtures, and the top tokens of a server."""

import dataclasses
import math

import pytest
import torch
from linear_divergence.problems import DIVERGENCES, assert_within_budget

from distilllens.head import Head, MixedHead
from distilllens.linear_divergence import divergence_term, linear_divergence, linear_terms
from distilllens.linear_divergence.logits import MixedLogits
from distilllens.top_predictions import TopPredictions

ENGINES = ("reference", "chunked")
BY_HAND = {
    "forward_kl": lambda p, q, log_p, log_q: (p * (log_p - log_q)).sum(-1),
    "reverse_kl": lambda p, q, log_p, log_q: (q * (log_q - log_p)).sum(-1),
    "total_variation": lambda p, q, log_p, log_q: (p - q).abs().sum(-1) / 2,
    "jsd": lambda p, q, log_p, log_q: (
        0.3 * (p * (log_p - (0.3 * p + 0.7 * q).log())).sum(-1)
        + 0.7 * (q * (log_q - (0.3 * p + 0.7 * q).log())).sum(-1)
    ),
}


@dataclasses.dataclass
class Mixture:
    """A student of width 7 and teachers of widths 5 and 6, one with a softcap and more tokens."""

    student: torch.Tensor
    head: Head
    states: tuple
    heads: tuple
    weight: torch.Tensor

    @property
    def leaves(self):
        return self.student, self.head.weight, self.head.bias


def mixture(rows=23, dtype=torch.float64, student_vocab=31):
    generator = torch.Generator().manual_seed(rows)

    def make(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    leaves = [make(rows, 7), make(student_vocab, 7), make(student_vocab)]
    student, weight, bias = (leaf.requires_grad_() for leaf in leaves)
    heads = Head(make(31, 5), make(31), 1.2), Head(make(33, 6), None, 0.7, 2.0)
    states = make(rows, 5), make(rows, 6)
    return Mixture(student, Head(weight, bias), states, heads, make(rows).abs())


def by_hand(given, name, weights, temperature=1.0):
    """The nats ``[N]`` in float64: ``log p = logsumexp_i(log w_i + log softmax(z_i / T))``."""
    size = min(given.head.weight.shape[0], *(head.weight.shape[0] for head in given.heads))

    def log_softmax(z):
        return z - torch.logsumexp(z, -1, keepdim=True)

    def logits(head, hidden):
        z = hidden.double() @ head.weight.double().T
        z = head.scale * (z if head.bias is None else z + head.bias.double())
        z = z if head.softcap is None else head.softcap * torch.tanh(z / head.softcap)
        return log_softmax(z[:, :size] / temperature)

    log_q = logits(given.head, given.student)
    parts = [
        math.log(weight) + logits(head, states)
        for head, states, weight in zip(given.heads, given.states, weights, strict=True)
        if weight
    ]
    log_p = torch.logsumexp(torch.stack(parts), 0)
    return BY_HAND[name](log_p.exp(), log_q.exp(), log_p, log_q)


def compared(given, name, weights, upstream=-1.7, **options):
    """Loss, nats and gradients of the student's leaves."""
    total, nats = linear_divergence(
        given.student,
        given.head,
        given.states,
        MixedHead(given.heads, weights),
        divergence=name,
        weight=given.weight,
        **DIVERGENCES[name],
        **options,
    )
    return total.detach(), nats, *torch.autograd.grad(total, given.leaves, total * 0 + upstream)


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_a_mixture_is_the_weighted_mean_of_probabilities(name, engine, temperature):
    """Value and every gradient equal the formula in float64, with chunks of any size."""
    given, weights = mixture(), (0.3, 0.7)
    nats = by_hand(given, name, weights, temperature)
    total = (given.weight * nats).sum()
    gradients = torch.autograd.grad(total, given.leaves, total * 0 - 1.7)
    expected = total.detach(), nats.detach(), *gradients
    for size in (None, 3, 16) if engine == "chunked" else (None,):
        options = {"impl": engine, "chunk_size": size, "temperature": temperature}
        assert_within_budget(compared(given, name, weights, **options), expected, torch.float64)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_engine_mixes_as_the_reference(name, dtype):
    """Every divergence, and models of half precision, within the budget of one teacher."""
    given = mixture(rows=19, dtype=dtype, student_vocab=29)
    expected = compared(given, name, (2, 1), impl="reference")
    assert_within_budget(compared(given, name, (2, 1), chunk_size=4), expected, dtype)


def test_gradients_of_a_mixture_are_those_of_its_value():
    """gradcheck in float64."""
    given = mixture(rows=3, student_vocab=9)

    def loss(student, weight, bias):
        head = Head(weight, bias)
        mixed = MixedHead(given.heads, (0.2, 0.8))
        return linear_divergence(student, head, given.states, mixed, divergence="jsd")[0]

    assert torch.autograd.gradcheck(loss, given.leaves)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_teachers_that_agree_are_one_teacher(name):
    """Twice the same with any weights, to rounding; weights of 1 and 0 give the first's bits."""
    given = mixture()
    plain = dataclasses.replace(given, states=given.states[:1], heads=given.heads[:1])
    alone = compared(plain, name, (1,))
    twice = dataclasses.replace(given, states=given.states[:1] * 2, heads=given.heads[:1] * 2)
    assert_within_budget(compared(twice, name, (0.5, 0.5)), alone, torch.float64)
    for found, expected in zip(compared(given, name, (1, 0)), alone, strict=True):
        assert torch.equal(found, expected)


def test_the_memory_of_a_mixture_does_not_grow_with_its_teachers():
    """All models of one dtype project into one tile."""
    given = mixture()
    states, heads = given.states * 4, given.heads * 4
    rows = {"temperature": 1.0, "dtype": torch.float64, "chunk": 8, "block": 2}
    made = MixedLogits(states, MixedHead(heads, (1,) * 8), 31, **rows)
    assert len({model.tile.data_ptr() for model in made.models}) == 1


def top_of(logits, k):
    """The k most likely tokens of logits ``[N, V]``."""
    logs, ids = logits.log_softmax(-1).topk(k)
    return TopPredictions.of(ids, logs, whole=k == logits.shape[-1])


def against_top(given, top, name, **options):
    total, nats = linear_divergence(
        given.student,
        given.head,
        top,
        None,
        divergence=name,
        weight=given.weight,
        **DIVERGENCES[name],
        **options,
    )
    return total.detach(), nats, *torch.autograd.grad(total, given.leaves, total * 0 - 1.7)


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("k", [1, 4, 20])
def test_other_tokens_are_one_column(name, engine, k):
    """Value and gradients of k columns and the rest, summed from probabilities in float64."""
    given = mixture()
    teacher = given.heads[0](given.states[0])
    top = top_of(teacher, k)
    p, q = teacher.softmax(-1), given.head(given.student).softmax(-1)
    order = teacher.argsort(-1, descending=True)
    p, q = (x.gather(-1, order) for x in (p, q))
    p, q = (torch.cat([x[:, :k], x[:, k:].sum(-1, keepdim=True)], -1) for x in (p, q))
    nats = BY_HAND[name](p, q, p.log(), q.log())
    total = (given.weight * nats).sum()
    gradients = torch.autograd.grad(total, given.leaves, total * 0 - 1.7)
    expected = total.detach(), nats.detach(), *gradients
    found = against_top(given, top, name, impl=engine, **({"chunk_size": 5} if k == 4 else {}))
    # What a server sends is float32: so is the budget.
    assert_within_budget([x.float() for x in found], [x.float() for x in expected], torch.float32)
    first = dataclasses.replace(given, states=given.states[:1], heads=given.heads[:1])
    whole = by_hand(first, name, (1,))
    assert (found[1] <= whole + 1e-6).all(), "merging tokens raised a divergence"


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("student_vocab", [31, 29, 34])
def test_all_tokens_are_the_teacher(name, student_vocab):
    """With k = V the loss and gradients are those of the teacher itself, whatever the padding."""
    given = mixture(student_vocab=student_vocab)
    top = top_of(given.heads[0](given.states[0]), 31)
    plain = dataclasses.replace(given, states=given.states[:1], heads=given.heads[:1])
    expected = [x.float() for x in compared(plain, name, (1,))]
    for engine in ENGINES:
        found = [x.float() for x in against_top(given, top, name, impl=engine)]
        assert_within_budget(found, expected, torch.float32)


def test_what_cannot_be_mixed_is_refused():
    """Weights and states that do not fit, a temperature over tokens that are not known."""
    given = mixture()
    top = top_of(given.heads[0](given.states[0]), 3)
    for arguments, match in (
        ((given.states[:1], MixedHead(given.heads, (1, 1))), "2 heads got states of 1"),
        ((given.states[::-1], MixedHead(given.heads, (1, 1))), "width"),
    ):
        with pytest.raises(ValueError, match=match):
            divergence_term(given.student, *arguments, "jsd")
    with pytest.raises(ValueError, match="temperature must be 1 for top predictions"):
        divergence_term(given.student, top, None, "jsd", temperature=2)
    for weights, match in (
        ((1,), "one weight for each of its 2 heads"),
        ((1, -1), "at least 0, got -1"),
        ((math.nan, 1), "finite"),
        ((0, 0), "above 0"),
    ):
        with pytest.raises(ValueError, match=match):
            MixedHead(given.heads, weights)


def test_a_term_of_each_kind_in_one_call():
    """A mixture and a plain term share the student's head and its gradient."""
    given = mixture()
    options = {"weight": given.weight}
    mixed = divergence_term(
        given.student, given.states, MixedHead(given.heads, (1, 2)), "jsd", **options
    )
    plain = divergence_term(given.student, given.states[0], given.heads[0], "jsd", **options)
    both, nats = linear_terms(given.head, [mixed, plain])
    each = [linear_terms(given.head, [term])[0] for term in (mixed, plain)]
    assert both.item() == pytest.approx(sum(each).item(), rel=1e-14) and len(nats) == 2
