"""Two vocabularies: which tokens are compared, and what becomes of the others."""

import math

import pytest
import torch
from linear_divergence.problems import DIVERGENCES

from distilllens import Head, linear_divergence
from distilllens.divergence import divergence
from distilllens.linear_divergence import cross_entropy_term, divergence_term, linear_terms
from distilllens.vocabularies import Vocabularies

# Of seven tokens of the student and six of the teacher, four are shared; the student's head has
# two rows of padding, the teacher's one.
STUDENT = {0: b"a", 1: b"b", 2: b"x", 3: b"c", 4: b"y", 5: b"z", 6: b"d"}
TEACHER = {0: b"d", 1: b"u", 2: b"c", 3: b"b", 4: b"v", 5: b"a"}
SHARED = [(0, 5), (1, 3), (3, 2), (6, 0)]


def problem(dtype=torch.float64, rows=5, *, sizes=(9, 7), softcap=None, bias=True):
    generator = torch.Generator().manual_seed(1)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    student_bias = random(sizes[0]).requires_grad_() if bias else None
    head = Head(random(sizes[0], 5).requires_grad_(), student_bias, scale=0.7, softcap=softcap)
    teacher_head = Head(random(sizes[1], 4), random(sizes[1]), softcap=softcap)
    return random(rows, 5).requires_grad_(), head, random(rows, 4), teacher_head


def by_hand(logits, ids, others):
    """Token by token: the probabilities of ``ids``, and of the others together."""
    logits = logits.detach()
    weight = {i: math.exp(float(logits[i])) for i in [*ids, *others]}
    total = sum(weight.values())
    rest = sum(weight[i] for i in others)
    return [weight[i] / total for i in ids] + ([rest / total] if others else [])


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


ORACLES = {
    "forward_kl": kl,
    "reverse_kl": lambda p, q: kl(q, p),
    "total_variation": lambda p, q: sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2,
    "jsd": lambda p, q: sum(
        kl(each, [(a + b) / 2 for a, b in zip(p, q, strict=True)]) / 2 for each in (p, q)
    ),
}


@pytest.mark.parametrize("impl", ["chunked", "reference"])
@pytest.mark.parametrize("name", ORACLES)
def test_shared_tokens_keep_their_probability_and_the_rest_is_one(name, impl):
    """Float64 probabilities, token by token; padding of the heads takes no part."""
    student, head, teacher, teacher_head = problem()
    vocabularies = Vocabularies.of(STUDENT, TEACHER)
    _, nats = linear_divergence(
        *(student, head, teacher, teacher_head),
        divergence=name,
        temperature=1.7,
        vocabularies=vocabularies,
        impl=impl,
    )
    ours, theirs = zip(*SHARED, strict=True)
    for row in range(5):
        q = by_hand(head(student)[row] / 1.7, ours, [2, 4, 5])
        p = by_hand(teacher_head(teacher)[row] / 1.7, theirs, [1, 4])
        assert float(nats[row]) == pytest.approx(ORACLES[name](p, q), rel=1e-12)


@pytest.mark.parametrize("impl", ["chunked", "reference"])
def test_without_others_on_one_side_both_are_renormalised(impl):
    """A student all of whose tokens the teacher has cannot be asked for the teacher's others."""
    student, head, teacher, teacher_head = problem(sizes=(4, 7))
    smaller = {0: b"a", 1: b"b", 2: b"c", 3: b"d"}
    vocabularies = Vocabularies.of(smaller, TEACHER)
    assert vocabularies.renormalises and not Vocabularies.of(STUDENT, TEACHER).renormalises
    _, nats = linear_divergence(
        *(student, head, teacher, teacher_head),
        divergence="forward_kl",
        vocabularies=vocabularies,
        impl=impl,
    )
    q = by_hand(head(student)[2], [0, 1, 2, 3], [])
    p = by_hand(teacher_head(teacher)[2], [5, 3, 2, 0], [])
    assert float(nats[2]) == pytest.approx(kl(p, q), rel=1e-12)


@pytest.mark.parametrize("impl", ["chunked", "reference"])
def test_uld_is_the_l1_of_sorted_probabilities(impl):
    """Boizard et al. 2024: sorted, the smaller vocabulary filled up with zeros."""
    student, head, teacher, teacher_head = problem()
    vocabularies = Vocabularies.of(STUDENT, TEACHER, rule="uld")
    _, nats = linear_divergence(
        *(student, head, teacher, teacher_head),
        divergence="uld",
        vocabularies=vocabularies,
        impl=impl,
    )
    for row in range(5):
        q = sorted(by_hand(head(student)[row], range(7), []), reverse=True)
        p = [*sorted(by_hand(teacher_head(teacher)[row], range(6), []), reverse=True), 0.0]
        expected = sum(abs(a - b) for a, b in zip(p, q, strict=True))
        assert float(nats[row]) == pytest.approx(expected, rel=1e-12)


CASES = [(name, "shared") for name in DIVERGENCES] + [("uld", "uld"), ("uld", "shared")]


@pytest.mark.parametrize(("name", "rule"), CASES)
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_the_engine_equals_the_naive_program(name, rule, softcap, bias, rows):
    """Value, nats and every gradient beside a cross-entropy, chunk by chunk."""
    student, head, teacher, teacher_head = problem(rows=rows, softcap=softcap, bias=bias)
    vocabularies = Vocabularies.of(STUDENT, TEACHER, rule=rule)
    leaves = [student, head.weight, *([head.bias] if bias else [])]
    labels = torch.arange(rows) % 9

    def run(**options):
        weight = torch.linspace(0.5, 2, rows)
        terms = [
            cross_entropy_term(student, labels),
            divergence_term(
                *(student, teacher, teacher_head, name),
                weight=weight,
                temperature=1.3,
                vocabularies=vocabularies,
                **DIVERGENCES.get(name, {}),
            ),
        ]
        total, nats = linear_terms(head, terms, **options)
        return total, nats, torch.autograd.grad(2.5 * total, leaves)

    found, wanted = run(impl="chunked", chunk_size=3), run(impl="reference")
    torch.testing.assert_close(found, wanted, atol=1e-13, rtol=1e-13)


@pytest.mark.parametrize(
    ("name", "rule"), [("jsd", "shared"), ("reverse_kl", "shared"), ("uld", "uld")]
)
def test_gradcheck(name, rule):
    """The analytic gradient is that of finite differences."""
    student, head, teacher, teacher_head = problem(rows=3)
    vocabularies = Vocabularies.of(STUDENT, TEACHER, rule=rule)

    def loss(hidden, weight, bias):
        return linear_divergence(
            *(hidden, Head(weight, bias, scale=0.7), teacher, teacher_head),
            divergence=name,
            vocabularies=vocabularies,
            impl="chunked",
            chunk_size=2,
        )[0]

    assert torch.autograd.gradcheck(loss, (student, head.weight, head.bias))


@pytest.mark.parametrize("name", [*DIVERGENCES, "uld"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_one_vocabulary_is_the_plain_path(name, dtype):
    """The tokens of one tokenizer, in another order, are compared as without ``vocabularies``."""
    student, head, teacher, teacher_head = problem(dtype, sizes=(7, 7))
    order = torch.tensor([3, 1, 6, 0, 2, 5, 4])
    shuffled = {new: STUDENT[int(old)] for new, old in enumerate(order)}
    other = Head(teacher_head.weight[order], teacher_head.bias[order])
    rule = "uld" if name == "uld" else "shared"
    vocabularies = Vocabularies.of(STUDENT, shuffled, rule=rule)
    options = {"divergence": name, "impl": "chunked", **DIVERGENCES.get(name, {})}
    leaves = (student, head.weight, head.bias)
    plain, nats = linear_divergence(student, head, teacher, teacher_head, **options)
    both, folded = linear_divergence(
        student, head, teacher, other, vocabularies=vocabularies, **options
    )
    torch.testing.assert_close(folded, nats)
    found = torch.autograd.grad(both, leaves)
    torch.testing.assert_close(found, torch.autograd.grad(plain, leaves))


def test_tokens_of_probability_0_have_no_gradient():
    """A bias of -inf on all other tokens of the student leaves no NaN."""
    student, head, teacher, teacher_head = problem()
    bias = head.bias.detach().clone()
    bias[[2, 4, 5]] = float("-inf")
    head = Head(head.weight, bias.requires_grad_())
    total, _ = linear_divergence(
        *(student, head, teacher, teacher_head),
        divergence="jsd",
        vocabularies=Vocabularies.of(STUDENT, TEACHER),
        impl="chunked",
    )
    gradients = torch.autograd.grad(total, (student, head.weight))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[1][[2, 4, 5, 7, 8]].any()


def test_tokens_beyond_a_head_are_compared_by_nobody():
    """A token that the teacher's head has no row for is one of the student's others."""
    vocabularies = Vocabularies.of(STUDENT, TEACHER)
    ours, theirs = vocabularies.sides(9, 5, "cpu")
    assert (ours.ids.tolist(), theirs.ids.tolist()) == ([1, 3, 6], [3, 2, 0])
    assert (ours.rest.tolist(), theirs.rest.tolist()) == ([0, 2, 4, 5], [1, 4])


def test_one_token_of_each_side_is_one_column():
    """A token that two ids write is compared once; ``same`` goes before what tokens are."""
    found = Vocabularies.of({0: b"a", 1: b"a", 2: "end"}, {0: b"a", 1: b"a", 2: "stop"})
    assert found.shared.tolist() == [[0, 0]]
    found = Vocabularies.of({0: b"a", 1: "end"}, {0: "end", 1: b"a", 2: "stop"}, same=[(1, 2)])
    assert found.shared.tolist() == [[0, 1], [1, 2]]


def test_the_shared_mass():
    """The probability of the shared tokens, padding aside."""
    student, head, teacher, teacher_head = problem(rows=70)
    vocabularies = Vocabularies.of(STUDENT, TEACHER)
    found = vocabularies.shared_mass(teacher_head, teacher, 1)
    p = by_hand(teacher_head(teacher)[66], [5, 3, 2, 0], [1, 4])
    assert float(found[66]) == pytest.approx(sum(p[:-1]), rel=1e-6)
    q = by_hand(head(student)[3], [0, 1, 3, 6], [2, 4, 5])
    assert float(vocabularies.shared_mass(head, student, 0)[3]) == pytest.approx(sum(q[:-1]), 1e-6)
    assert vocabularies.shared_mass(head, student[:0], 0).shape == (0,)


@pytest.mark.parametrize(
    ("teacher", "rule", "match"),
    [({0: b"q"}, "shared", "share no token; cross_tokenizer: uld"), (TEACHER, "all", "one of")],
)
def test_what_cannot_be_compared_is_refused(teacher, rule, match):
    """One line, with the way out."""
    with pytest.raises(ValueError, match=match):
        Vocabularies.of(STUDENT, teacher, rule=rule)


def test_the_divergence_uld_equals_its_definition():
    """Of one vocabulary it is a divergence as the others are, which no order of tokens changes."""
    logits = torch.randn(4, 11, dtype=torch.float64)
    other = torch.randn(4, 11, dtype=torch.float64)
    p, q = other.softmax(-1).sort().values, logits.softmax(-1).sort().values
    found = divergence("uld")(logits, other[:, torch.randperm(11)])
    torch.testing.assert_close(found, (p - q).abs().sum(-1))
