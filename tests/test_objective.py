"""The objective against the formula on whole tensors, and what the published mask does."""

import math
from dataclasses import replace

import pytest
import torch
import toys
from torch.nn import functional as F

from distilllens import Head, LayerMap, LogitLens, Objective, capture
from distilllens.features import Features
from distilllens.lens import LayerStates, read_states
from distilllens.sampling import draw_pairs, draw_tokens
from distilllens.targets import target_positions


def naive(student_logits, teacher_logits, labels, by_depth, weights):
    """The method's formula in float64, from probabilities, one token after the other.

    by_depth: [(student logits, teacher logits)] of each pair; weights: (w_ce, w_out, w_lens).
    """
    total, count = 0.0, 0
    for b in range(labels.shape[0]):
        for t in range(labels.shape[1] - 1):
            if labels[b, t + 1] == -100:
                continue
            count += 1
            q, p = (
                student_logits[b, t].double().softmax(-1),
                teacher_logits[b, t].double().softmax(-1),
            )
            total += weights[0] * -q[labels[b, t + 1]].log()
            total += weights[1] * (q * (q / p).log()).sum()
            for s, r in by_depth:
                q, p = s[b, t].double().softmax(-1), r[b, t].double().softmax(-1)
                m = (p + q) / 2
                jsd = ((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2
                total += weights[2] * jsd / len(by_depth)
    return total, count


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 24, (3, 7), generator=generator)
    labels = ids.clone()
    labels[0, :3] = labels[1, :5] = labels[2, :2] = -100
    labels[2, 5:] = -100
    return ids, labels


def read_both(student, teacher, ids, layer_map, normalize=True):
    ours, theirs = LogitLens(student.eval()), LogitLens(teacher.eval())
    s = read_states(ours, layer_map.student_depths, normalize=normalize, input_ids=ids)
    with torch.no_grad():
        t = read_states(theirs, layer_map.teacher_depths, normalize=normalize, input_ids=ids)
    return s, ours.head, t, theirs.head


def skipping(model, ids, depth):
    """The model's own logits with the blocks after ``depth`` skipped."""
    blocks = model.model.layers
    kept = blocks[depth:]
    try:
        model.model.layers = blocks[:depth]
        return model(input_ids=ids, use_cache=False).logits
    finally:
        model.model.layers = torch.nn.ModuleList([*blocks[:depth], *kept])


@pytest.mark.parametrize(
    "weights", [(0.0, 1.0, 1.0), (0.3, 0.5, 2.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)]
)
def test_value_and_gradients_are_those_of_the_formula(batch, weights):
    """Total and every gradient of the student equal autograd through the naive formula."""
    ids, labels = batch
    student, teacher = toys.llama(tied=False), toys.llama(4, 24, seed=1)
    layer_map = LayerMap([(1, 2), (2, 3)])
    objective = Objective(
        layer_map, cross_entropy_weight=weights[0], output_weight=weights[1], lens_weight=weights[2]
    )
    terms = objective(*read_both(student, teacher, ids, layer_map), labels)
    terms.total.backward()
    found = {n: p.grad for n, p in student.named_parameters()}
    student.zero_grad()

    pairs = [(skipping(student, ids, s), skipping(teacher, ids, t).detach()) for s, t in layer_map]
    expected, count = naive(
        student(input_ids=ids).logits,
        teacher(input_ids=ids).logits.detach(),
        labels,
        pairs,
        weights,
    )
    expected.backward()
    assert terms.num_tokens == count == int((labels[:, 1:] != -100).sum())
    assert math.isclose(terms.total.item(), expected.item(), rel_tol=1e-5)
    for name, parameter in student.named_parameters():
        if parameter.grad is None:
            assert found[name] is None or not found[name].any(), name
        else:
            torch.testing.assert_close(found[name], parameter.grad, atol=2e-5, rtol=1e-4, msg=name)


def test_terms_are_unweighted_sums(batch):
    """Terms do not depend on the weights; lens is the mean of its pairs."""
    ids, labels = batch
    layer_map = LayerMap([(1, 2), (2, 3)])
    states = read_both(toys.llama(), toys.llama(4, 24, seed=1), ids, layer_map)
    plain = Objective(layer_map)(*states, labels)
    heavy = Objective(layer_map, output_weight=3.0, lens_weight=5.0, cross_entropy_weight=7.0)(
        *states, labels
    )
    for name in ("cross_entropy", "output", "lens"):
        assert math.isclose(getattr(plain, name).item(), getattr(heavy, name).item(), rel_tol=1e-6)
    assert math.isclose(plain.lens.item(), plain.lens_by_pair.mean().item(), rel_tol=1e-5)
    weighted = 3 * plain.output + 5 * plain.lens + 7 * plain.cross_entropy
    assert math.isclose(heavy.total.item(), weighted.item(), rel_tol=1e-5)


def test_a_term_without_weight_is_skipped_unless_asked_for(batch):
    """Weight 0 costs no projection in training; evaluation measures it without a gradient."""
    ids, labels = batch
    layer_map = LayerMap([(1, 2)])
    states = read_both(toys.llama(), toys.llama(4, 24, seed=1), ids, layer_map)
    objective = Objective(layer_map, lens_weight=0.0)
    assert objective(*states, labels).lens is None
    measured = objective(*states, labels, measure_all=True)
    assert measured.lens > 0
    assert math.isclose(measured.total.item(), measured.output.item(), rel_tol=1e-6)


def test_padding_and_prompt_never_reach_the_loss(batch):
    """Deviation 1, our side: every row has its own mask.

    Other tokens behind the last label and other labels' places leave the sums as they are.
    """
    ids, labels = batch
    layer_map = LayerMap([(1, 2), (2, 3)])
    student, teacher = toys.llama(), toys.llama(4, 24, seed=1)
    objective = Objective(layer_map)
    before = objective(*read_both(student, teacher, ids, layer_map), labels)
    other = ids.clone()
    other[2, 5:] = 23  # behind the last label of row 2: causal models do not look there
    after = objective(*read_both(student, teacher, other, layer_map), labels)
    assert torch.equal(before.lens_by_pair, after.lens_by_pair)
    one_by_one = [
        objective(*read_both(student, teacher, ids[[b]], layer_map), labels[[b]]) for b in range(3)
    ]
    for k in range(2):
        total = sum(terms.lens_by_pair[k].item() for terms in one_by_one)
        assert math.isclose(before.lens_by_pair[k].item(), total, rel_tol=1e-5)


@pytest.mark.parametrize("size", [1, 4])
def test_the_published_mask_belongs_to_other_samples(size):
    """Deviation 1: lens rows sample-major (b * n + l), the mask layer-major (row k has k % B).

    At batch 4 and 5 layers 8 of 20 rows meet their own mask; the sum is another. Batch 1 is right.
    """
    layers, generator = 5, torch.Generator().manual_seed(3)
    values = torch.rand(size, layers, 6, generator=generator)  # a divergence for every position
    mask = torch.rand(size, 6, generator=generator) > 0.5
    rows, tiled = values.reshape(size * layers, 6), mask.repeat(layers, 1)
    published, right = (rows * tiled).sum(), (values * mask[:, None]).sum()
    own = sum((row // layers) == (row % size) for row in range(size * layers))
    assert own == {1: 5, 4: 8}[size]
    assert torch.isclose(published, right) == (size == 1)


def test_the_last_position_and_the_prompt_are_no_targets():
    """A position is valid when its *next* token has a label."""
    labels = torch.tensor([[-100, -100, 5, 6, -100], [7, 8, -100, 9, 10]])
    expected = [[0, 1, 1, 0, 0], [1, 0, 1, 1, 0]]
    assert target_positions(labels).long().tolist() == expected


def test_no_token_is_a_connected_zero():
    """N = 0: zero, with a gradient path to the student's every part, for every mix of weights."""
    ids, labels = torch.full((1, 4), 3), torch.full((1, 4), -100)
    layer_map = LayerMap([(1, 2)])
    for weights in ({}, {"cross_entropy_weight": 1.0}, {"output_weight": 0.0, "lens_weight": 0.0}):
        student = toys.llama(tied=False)
        states = read_both(student, toys.llama(4, 24, seed=1), ids, layer_map)
        terms = Objective(layer_map, **weights)(*states, labels)
        assert terms.total.item() == 0
        assert terms.num_tokens == 0
        terms.total.backward()
        assert student.model.norm.weight.grad is not None


def test_temperature_divides_both_models_and_nothing_else():
    """Halved heads at temperature 1 equal whole ones at temperature 2; CE is not divided."""
    ids = torch.randint(2, 24, (2, 5), generator=torch.Generator().manual_seed(1))
    layer_map = LayerMap([(1, 2)])
    student, teacher = toys.llama(tied=False), toys.llama(4, 24, seed=1, tied=False)
    warm = Objective(layer_map, temperature=2.0)(*read_both(student, teacher, ids, layer_map), ids)
    cold = Objective(layer_map)(*read_both(student, teacher, ids, layer_map), ids)
    with torch.no_grad():
        for model in (student, teacher):
            model.lm_head.weight /= 2
    halved = Objective(layer_map)(*read_both(student, teacher, ids, layer_map), ids)
    assert math.isclose(warm.output.item(), halved.output.item(), rel_tol=1e-5)
    assert math.isclose(warm.lens.item(), halved.lens.item(), rel_tol=1e-5)
    assert math.isclose(warm.cross_entropy.item(), cold.cross_entropy.item(), rel_tol=1e-6)


def test_without_the_norm_the_head_reads_raw_states(batch):
    """Deviation 2: ``lens_norm=False`` is the published read-out, head(h) without the norm."""
    ids, labels = batch
    layer_map = LayerMap([(1, 2)])
    student, teacher = toys.llama(), toys.llama(4, 24, seed=1)
    states = read_both(student, teacher, ids, layer_map, normalize=False)
    terms = Objective(layer_map)(*states, labels)
    h = student(input_ids=ids, output_hidden_states=True).hidden_states[1]
    g = teacher(input_ids=ids, output_hidden_states=True).hidden_states[2]
    zeros = torch.zeros_like(student(input_ids=ids).logits)
    expected, _ = naive(zeros, zeros, labels, [(student.lm_head(h), teacher.lm_head(g))], (0, 0, 1))
    assert math.isclose(terms.lens.item(), expected.item(), rel_tol=1e-5)
    normed = Objective(layer_map)(*read_both(student, teacher, ids, layer_map), labels)
    assert not math.isclose(terms.lens.item(), normed.lens.item(), rel_tol=1e-2)
    assert math.isclose(terms.output.item(), normed.output.item(), rel_tol=1e-6)


def test_unequal_vocabularies_compare_the_shared_prefix(batch):
    """Deviation 6: a teacher of more rows is read over the student's, renormalised."""
    ids, labels = batch
    layer_map = LayerMap([(1, 2)])
    student, teacher = toys.llama(vocab=24), toys.llama(4, 24, vocab=31, seed=1)
    terms = Objective(layer_map)(*read_both(student, teacher, ids, layer_map), labels)
    expected, _ = naive(
        student(input_ids=ids).logits,
        teacher(input_ids=ids).logits[..., :24],
        labels,
        [(skipping(student, ids, 1), skipping(teacher, ids, 2)[..., :24])],
        (0, 1, 1),
    )
    assert math.isclose(terms.total.item(), expected.item(), rel_tol=1e-5)


def test_entropy_weights_are_over_the_shared_prefix(batch):
    """Tokens that the student does not have are no uncertainty of what the lens compares."""
    ids, labels = batch
    student, teacher = toys.llama(vocab=24), toys.llama(4, 24, vocab=31, seed=1)
    objective = Objective(LayerMap([(1, 2)]), output_weight=0.0, lens_token_weights="entropy")
    terms = objective(*read_both(student, teacher, ids, objective.layer_map), labels)
    output = teacher(input_ids=ids).logits[..., :24].detach()
    ours, theirs = skipping(student, ids, 1), skipping(teacher, ids, 2)[..., :24]
    expected = sum(
        uncertainty(output[b, t])
        * half_mixture(theirs[b, t].double().softmax(-1), ours[b, t].double().softmax(-1))
        for b, t in target_positions(labels).nonzero().tolist()
    )
    assert math.isclose(terms.lens.item(), expected.item(), rel_tol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output_divergence": "kl"}, "kl.*forward_kl"),
        ({"lens_weight": -1.0}, "lens_weight must be a finite number >= 0, got -1.0"),
        ({"output_weight": math.nan}, "output_weight.*nan"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"lens_kwargs": {"beta": 1.0}}, "beta"),
        ({"lens_token_fraction": 0.0}, "lens_token_fraction must be above 0 and at most 1, got 0"),
        ({"lens_token_fraction": 1.5}, "lens_token_fraction.*got 1.5"),
        ({"lens_token_fraction": math.nan}, "lens_token_fraction.*got nan"),
        ({"lens_token_weights": "loss"}, "lens_token_weights is one of uniform, entropy, got"),
        ({"feature_loss": "mae"}, "feature_loss is one of mse, cosine, got 'mae'"),
        ({"feature_weight": -1.0}, "feature_weight must be a finite number >= 0, got -1"),
        ({"lens_pair_weights": (1.0, 1.0)}, "one for each of the 0 pairs of the layer map, got 2"),
        (
            {"layer_map": LayerMap([(1, 2)]), "lens_pair_weights": (-1.0,)},
            "lens_pair_weights must be a finite number >= 0, got -1",
        ),
    ],
)
def test_bad_settings_are_named(settings, message):
    """Every refusal says what, which value and what would be right."""
    with pytest.raises(ValueError, match=message):
        Objective(**settings)


def test_the_cross_entropy_is_the_mean_of_torch(batch):
    """Sum over count equals torch's own mean cross-entropy of shifted logits."""
    ids, labels = batch
    student = toys.llama()
    layer_map = LayerMap([(1, 2)])
    terms = Objective(layer_map)(
        *read_both(student, toys.llama(4, 24, seed=1), ids, layer_map), labels
    )
    logits = student(input_ids=ids).logits[:, :-1]
    expected = F.cross_entropy(logits.reshape(-1, 24), labels[:, 1:].reshape(-1), ignore_index=-100)
    assert math.isclose(
        terms.cross_entropy.item() / terms.num_tokens, expected.item(), rel_tol=1e-5
    )


THREE = LayerMap([(1, 1), (2, 2), (3, 3)])


def lens_and_gradient(objective, student, student_head, *rest, **kwargs):
    """The lens term of an objective and its gradient in every state and the head, as one vector."""
    leaves = [*student.states.values(), student_head.weight]
    total = objective(student, student_head, *rest, **kwargs).total
    found = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    return torch.cat([total.detach().view(1), *(g.flatten() for g in found)]).double()


FORMS = {
    "plain": {},
    "pair weights": {"lens_pair_weights": (0.2, 0.8, 2.0)},
    "token weights": {"lens_token_weights": "entropy"},
    "both": {"lens_pair_weights": (0.2, 0.8, 2.0), "lens_token_weights": "entropy"},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("pairs", "tokens"), [(0.4, 1.0), (1.0, 0.3), (0.4, 0.3)])
def test_the_mean_over_draws_is_the_full_term(batch, pairs, tokens, form):
    """Sampled pairs and tokens are unbiased, in the value and in every component of the gradient.

    600 steps; a mean may be 4.5 of its standard errors, taken from the sample, off: one in 100000
    for each of some hundred independent components. A scale wrong by a third would be seen.
    """
    ids, labels = batch
    student, *heads = read_both(toys.llama(), toys.llama(4, 24, seed=1), ids, THREE)
    student = LayerStates({d: student[d].detach().requires_grad_() for d in student}, True)
    student = replace(student, final=student[3].detach())
    heads[0] = replace(heads[0], weight=heads[0].weight.detach().requires_grad_())
    full = Objective(THREE, output_weight=0.0, **FORMS[form])
    sampled = replace(full, lens_token_fraction=tokens)
    expected = lens_and_gradient(full, student, *heads, labels)
    estimates = []
    for step in range(600):
        objective = sampled.over(draw_pairs(THREE, pairs, seed=0, step=step))
        draws = draw_tokens(ids, seed=0, step=step)
        estimates.append(lens_and_gradient(objective, student, *heads, labels, lens_draws=draws))
    estimates = torch.stack(estimates)
    error = estimates.std(0) / math.sqrt(len(estimates))
    floor = 1e-6 * expected.abs().max()  # where nothing varies, float32 rounding

    def worst(scale):
        return ((scale * estimates.mean(0) - expected).abs() / (error + floor)).max()

    assert worst(1.0) < 4.5
    assert min(worst(2 / 3), worst(4 / 3)) > 4.5


def count_rows(monkeypatch):
    """A list that collects the number of rows of every divergence that an objective asks for."""
    from distilllens import objective

    rows, inner = [], objective.divergence_term

    def counted(student, *args, **kwargs):
        rows.append(len(student))
        return inner(student, *args, **kwargs)

    monkeypatch.setattr(objective, "divergence_term", counted)
    return rows


def test_only_drawn_tokens_are_projected(batch, monkeypatch):
    """The lens has P rows for each of them and is scaled up; output and cross-entropy see all."""
    ids, labels = batch
    states = read_both(toys.llama(), toys.llama(4, 24, seed=1), ids, THREE)
    full = Objective(THREE)
    sampled = replace(full, lens_token_fraction=0.5)
    draws = draw_tokens(ids, seed=0, step=0)
    kept = target_positions(labels) & (draws < 0.5)
    assert 0 < kept.sum() < target_positions(labels).sum()
    whole = full(*states, labels)
    alone = full(*states, labels.where(kept.roll(1, 1), -100))
    rows = count_rows(monkeypatch)
    found = sampled(*states, labels, lens_draws=draws)
    assert rows == [whole.num_tokens, 3 * int(kept.sum())]
    assert (found.num_tokens, found.num_lens_tokens) == (whole.num_tokens, int(kept.sum()))
    assert torch.equal(found.output, whole.output)
    assert torch.equal(found.cross_entropy, whole.cross_entropy)
    assert torch.equal(found.lens_by_pair, alone.lens_by_pair)
    assert math.isclose(found.lens.item(), 2 * alone.lens.item(), rel_tol=1e-6)


def test_evaluation_and_fraction_1_measure_every_token(batch):
    """measure_all ignores the draws, fraction 1 never reads them: the same bits as without."""
    ids, labels = batch
    states = read_both(toys.llama(), toys.llama(4, 24, seed=1), ids, THREE)
    full = Objective(THREE)
    draws = draw_tokens(ids, seed=0, step=0)
    expected = full(*states, labels)
    sampled = replace(full, lens_token_fraction=0.1)
    for found in (
        full(*states, labels, lens_draws=draws),
        sampled(*states, labels, measure_all=True),
        sampled(*states, labels, lens_draws=draws, measure_all=True),
    ):
        assert torch.equal(found.total, expected.total)
        assert torch.equal(found.lens_by_pair, expected.lens_by_pair)
        assert found.num_lens_tokens == found.num_tokens


def test_no_drawn_token_is_a_connected_zero(batch):
    """A micro-batch of which nothing is drawn adds 0, and its graph is whole."""
    ids, labels = batch
    student = toys.llama(tied=False)
    states = read_both(student, toys.llama(4, 24, seed=1), ids, THREE)
    objective = Objective(THREE, output_weight=0.0, lens_token_fraction=0.5)
    terms = objective(*states, labels, lens_draws=torch.full(ids.shape, 0.5))
    assert (terms.total.item(), terms.num_lens_tokens) == (0, 0)
    terms.total.backward()
    assert all(p.grad is not None and not p.grad.any() for p in student.parameters())


@pytest.mark.parametrize("draws", [None, torch.zeros(3, 6)])
def test_a_fraction_needs_its_draws(batch, draws):
    """Without a number for every position there is nothing to sample by."""
    ids, labels = batch
    states = read_both(toys.llama(), toys.llama(4, 24, seed=1), ids, THREE)
    objective = Objective(THREE, lens_token_fraction=0.5)
    with pytest.raises(ValueError, match=r"fraction 0.5 needs lens_draws of shape \[3, 7\], got"):
        objective(*states, labels, lens_draws=draws)


def test_states_that_cannot_be_compared_are_named(batch):
    """States of capture have none for the head; a map may ask for more depths than were read."""
    ids, labels = batch
    student, teacher = toys.llama(layers=3), toys.llama(layers=4)
    layer_map = LayerMap([(1, 2), (2, 4)])
    objective = Objective(layer_map)
    states, head, theirs, teacher_head = read_both(student, teacher, ids, layer_map)
    captured = capture(student, [1, 2], input_ids=ids)
    for who, sides in (
        ("student", (captured, head, theirs, teacher_head)),
        ("teacher", (states, head, captured, teacher_head)),
    ):
        with pytest.raises(ValueError, match=f"the {who}'s states have no final .*read_states"):
            objective(*sides, labels)
    deeper = replace(objective, layer_map=LayerMap([(1, 2), (3, 4)]))
    with pytest.raises(ValueError, match=r"the student's state at depth 3.*\[1, 2\] were read"):
        deeper(states, head, theirs, teacher_head, labels)


def uncertainty(logits):
    """1 - exp(-H) of a row of logits, in float64."""
    p = logits.double().softmax(-1)
    return 1 - torch.exp((p * p.log()).sum())


def through_the_lens(distance, weights, tokens, student, teacher, ids, labels, layer_map):
    """Sum over targets of the mean over pairs of v u D(p, q), from the models' own forwards."""
    output = teacher(input_ids=ids).logits.detach()
    pairs = [(skipping(student, ids, s), skipping(teacher, ids, t).detach()) for s, t in layer_map]
    total = 0.0
    for b, t in target_positions(labels).nonzero().tolist():
        u = uncertainty(output[b, t]) if tokens == "entropy" else 1.0
        for v, (ours, theirs) in zip(weights or (1.0,) * len(pairs), pairs, strict=True):
            q, p = ours[b, t].double().softmax(-1), theirs[b, t].double().softmax(-1)
            total = total + v * u * distance(p, q) / len(pairs)
    return total


def half_mixture(p, q):
    m = (p + q) / 2
    return ((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2


def adaptive(p, q):
    """Wu et al. 2024: the head is what lies above half of the mass, and always the top token."""
    order = p.argsort(descending=True)
    head = order[(p[order].cumsum(0) <= 0.5) | (torch.arange(len(p)) == 0)]
    gap = (p - q).abs().detach()
    share = gap[head].sum() / gap.sum()
    return share * (p * (p / q).log()).sum() + (1 - share) * (q * (q / p).log()).sum()


def jsd_of(beta):
    def distance(p, q):
        m = beta * p + (1 - beta) * q
        return beta * (p * (p / m).log()).sum() + (1 - beta) * (q * (q / m).log()).sum()

    return distance


# name, parameters -> the formula, teacher p and student q.
DISTANCES = {
    ("forward_kl",): lambda p, q: (p * (p / q).log()).sum(),
    ("reverse_kl",): lambda p, q: (q * (q / p).log()).sum(),
    ("jsd", ("beta", 0.1)): jsd_of(0.1),
    ("jeffreys",): lambda p, q: ((p - q) * (p / q).log()).sum(),
    ("adaptive_kl",): adaptive,
    ("skew_forward_kl", ("alpha", 0.2)): lambda p, q: (p * (p / (0.2 * p + 0.8 * q)).log()).sum(),
    ("skew_reverse_kl", ("alpha", 0.2)): lambda p, q: (q * (q / (0.8 * p + 0.2 * q)).log()).sum(),
    ("total_variation",): lambda p, q: (p - q).abs().sum() / 2,
}
CASES = [
    *(
        ({"lens_divergence": name[0], "lens_kwargs": dict(name[1:])}, d)
        for name, d in DISTANCES.items()
    ),
    *((form, half_mixture) for form in FORMS.values()),
    ({"layer_map": LayerMap([(1, 4), (2, 4), (3, 4)]), **FORMS["both"]}, half_mixture),
]


@pytest.mark.parametrize(
    ("form", "distance"), CASES, ids=lambda x: "" if callable(x) else str(x)[:60]
)
def test_every_form_of_the_lens_is_its_formula(batch, form, distance):
    """Value and every gradient of the student, by autograd through the formula in float64."""
    ids, labels = batch
    student, teacher = toys.llama(tied=False), toys.llama(4, 24, seed=1)
    objective = Objective(**{"layer_map": THREE, "output_weight": 0.0, **form})
    layer_map = objective.layer_map
    terms = objective(*read_both(student, teacher, ids, layer_map), labels)
    terms.total.backward()
    found = {n: p.grad for n, p in student.named_parameters()}
    student.zero_grad()
    weights, tokens = objective.lens_pair_weights, objective.lens_token_weights
    models = (student, teacher, ids, labels, layer_map)
    expected = through_the_lens(distance, weights, tokens, *models)
    expected.backward()
    assert math.isclose(terms.total.item(), expected.item(), rel_tol=1e-5)
    assert math.isclose(terms.lens.item(), expected.item(), rel_tol=1e-5)
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, atol=2e-5, rtol=1e-4, msg=name)
    plain = [
        through_the_lens(distance, None, "uniform", *models[:4], LayerMap([pair])).item()
        for pair in layer_map
    ]
    assert terms.lens_by_pair.tolist() == pytest.approx(plain, rel=1e-5)  # without weights


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fraction", [1.0, 0.7])
def test_weights_pass_gradcheck(form, fraction):
    """In float64: states at two depths, the last one and the head, with and without sampling."""
    generator = torch.Generator().manual_seed(5)

    def made(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    labels = torch.tensor([[-100, 3, 4, -100, 5, 1]])
    theirs = LayerStates({d: made(1, 6, 4) for d in (1, 2, 3)}, True, final=made(1, 6, 4))
    their_head = Head(made(7, 4))
    objective = Objective(THREE, lens_token_fraction=fraction, **FORMS[form])
    draws = torch.linspace(0.1, 0.5, 6)[None]

    def total(one, two, final, weight):
        states = LayerStates({1: one, 2: two, 3: final}, True, final=final)
        sides = (states, Head(weight), theirs, their_head)
        return objective(*sides, labels, lens_draws=draws).total

    leaves = [made(1, 6, 3).requires_grad_() for _ in range(3)] + [made(7, 3).requires_grad_()]
    assert torch.autograd.gradcheck(total, leaves)


def test_a_certain_teacher_weighs_nothing_and_is_never_drawn():
    """u is 0 for a one-hot teacher, 1/2 for two equal choices, 1 - 1/V for a uniform one."""
    head = Head(torch.eye(8) * 200)
    final = torch.zeros(1, 4, 8)
    final[0, 0, 2] = 1.0
    final[0, 1, :2] = 1.0
    states = LayerStates({1: torch.randn(1, 4, 8)}, True, final=final)
    ours = LayerStates({1: torch.randn(1, 4, 8)}, True, final=torch.zeros(1, 4, 8))
    labels = torch.tensor([[-100, 1, 1, 1]])
    objective = Objective(LayerMap([(1, 1)]), lens_token_weights="entropy", lens_token_fraction=0.5)
    weights = objective._token_weights(final[0, :3], head, 8)
    assert weights.tolist() == pytest.approx([0, 1 / 2, 7 / 8], abs=1e-6)
    for draw, count in ((0.0, 2), (0.24, 2), (0.26, 1), (0.44, 0)):
        draws = torch.full((1, 4), draw)
        found = objective(ours, head, states, head, labels, lens_draws=draws)
        assert found.num_lens_tokens == count


def test_a_detached_head_is_left_to_the_output(batch):
    """Its gradient is that of the output alone, to the bit; every other one is the whole."""
    ids, labels = batch
    gradients = {}
    for name, settings in {
        "whole": {},
        "detached": {"lens_detach_head": True},
        "output": {"lens_weight": 0.0},
        "lens": {"lens_detach_head": True, "output_weight": 0.0},
    }.items():
        student = toys.llama(tied=False)
        states = read_both(student, toys.llama(4, 24, seed=1), ids, THREE)
        Objective(THREE, **settings)(*states, labels).total.backward()
        gradients[name] = {n: p.grad for n, p in student.named_parameters()}
    heads = {name: found.pop("lm_head.weight") for name, found in gradients.items()}
    assert torch.equal(heads["detached"], heads["output"])
    assert not torch.allclose(heads["whole"], heads["output"], atol=1e-3)
    assert not heads["lens"].any()  # and not None, for which DDP would wait
    for name, gradient in gradients["whole"].items():
        torch.testing.assert_close(gradients["detached"][name], gradient, atol=1e-5, rtol=1e-4)
    assert gradients["lens"]["model.norm.weight"].any()


def test_a_detached_tied_head_learns_as_the_embedding(batch):
    """Tied weights get from the lens what an untied embedding of the same values gets."""
    ids, labels = batch
    found = {}
    for tied in (True, False):
        student = toys.llama(tied=tied)
        student.lm_head.weight.data.copy_(student.model.embed_tokens.weight.data)
        states = read_both(student, toys.llama(4, 24, seed=1), ids, THREE)
        settings = {"lens_detach_head": True, "output_weight": 0.0}
        Objective(THREE, **settings)(*states, labels).total.backward()
        found[tied] = student.model.embed_tokens.weight.grad
    assert found[True].any()
    torch.testing.assert_close(found[True], found[False], atol=1e-6, rtol=1e-5)


def test_a_shared_depth_of_the_teacher_is_not_copied(batch, monkeypatch):
    """Pairs of one depth of the teacher read the same rows; other maps stay one term."""
    from distilllens import objective as module

    ids, labels = batch
    seen, inner = [], module.divergence_term

    def watched(student, teacher, *args, **kwargs):
        seen.append(teacher)
        return inner(student, teacher, *args, **kwargs)

    monkeypatch.setattr(module, "divergence_term", watched)
    exits = LayerMap.resolve("exits", 3, 4)
    student, head, teacher, their_head = read_both(toys.llama(), toys.llama(4, 24), ids, exits)
    rows = {depth: teacher[depth][target_positions(labels)] for depth in teacher}
    gathered = LayerStates(rows, True, final=rows[4], gathered=True)
    Objective(exits)(student, head, gathered, their_head, labels)
    output, *lens = seen
    assert len(lens) == 2
    assert {rows.data_ptr() for rows in lens} == {output.data_ptr()} == {rows[4].data_ptr()}


@pytest.mark.parametrize("name", ["mse", "cosine"])
def test_the_feature_loss_is_its_formula(batch, name):
    """Sum over targets, mean over pairs, in float64; the gradient reaches states and projection."""
    ids, labels = batch
    student, teacher = toys.llama(tied=False), toys.llama(4, 24, seed=1)
    layer_map = LayerMap([(1, 2), (2, 4)])
    project = torch.nn.Linear(16, 24)
    states = read_both(student, teacher, ids, LayerMap([(1, 1)]))
    ours, theirs = capture(student, [1, 2], input_ids=ids), capture(teacher, [2, 4], input_ids=ids)
    mask = target_positions(labels)
    rows = [{d: side[d][mask] for d in side} for side in (ours, theirs)]
    features = Features(*rows, lambda states, depth: project(states) * depth)
    settings = {"feature_map": layer_map, "feature_loss": name, "output_weight": 0.0}
    objective = Objective(feature_weight=0.3, **settings)
    terms = objective(*states, labels, features=features)
    leaves = {**dict(student.named_parameters()), "w": project.weight, "b": project.bias}
    options = {"allow_unused": True, "materialize_grads": True, "retain_graph": True}
    found = torch.autograd.grad(terms.total, leaves.values(), **options)

    by_pair = []
    for s, t in layer_map:
        total = 0.0
        for b, position in mask.nonzero().tolist():
            x = project.weight.double() @ ours[s][b, position].double()
            x = s * (x + project.bias.double())
            y = theirs[t][b, position].double().detach()
            if name == "mse":
                total = total + ((x - y) ** 2).sum() / 24
            else:
                total = total + 1 - (x @ y) / (x.norm() * y.norm())
        by_pair.append(total)
    expected = torch.autograd.grad(0.3 * sum(by_pair) / 2, leaves.values(), **options)
    for one, other, leaf in zip(found, expected, leaves, strict=True):
        torch.testing.assert_close(one, other.float(), atol=2e-5, rtol=1e-4, msg=leaf)
    sums, count = terms.by_pair["feature"]
    assert sums.tolist() == pytest.approx([total.item() for total in by_pair], rel=1e-5)
    assert terms.sums["feature"][0].item() == pytest.approx(sum(by_pair).item() / 2, rel=1e-5)
    assert terms.total.item() == pytest.approx(0.3 * sum(by_pair).item() / 2, rel=1e-5)
    assert count == terms.num_tokens and terms.pairs["feature"] == layer_map


def test_features_without_a_weight_or_a_target():
    """A weight of 0 measures nothing; no target is a zero that reaches the projection."""
    labels = torch.full((1, 4), -100)
    student = toys.llama()
    states = read_both(student, toys.llama(4, 24, seed=1), labels.clamp(min=3), LayerMap([(1, 1)]))
    project = torch.nn.Linear(16, 24)
    features = Features({1: torch.empty(0, 16)}, {1: torch.empty(0, 24)}, lambda x, _: project(x))
    for weight in (0.0, 1.0):
        objective = Objective(feature_map=LayerMap([(1, 1)]), feature_weight=weight)
        terms = objective(*states, labels, features=features, measure_all=True)
        assert ("feature" in terms.sums) == (weight > 0)
    terms.total.backward()
    assert terms.total.item() == 0 and not project.weight.grad.any()
