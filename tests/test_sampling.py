"""Draws are uniform, and follow from seed, step and what is drawn, never from the batch around."""

import math
from collections import Counter
from itertools import combinations

import pytest
import torch

from distilllens import LayerMap
from distilllens.sampling import (
    _GAMMA,
    _splitmix,
    answer_seed,
    draw_pairs,
    draw_step,
    draw_tokens,
)

FIVE = LayerMap.evenly(5, 12, 48)


def chi_square(counts, expected):
    return sum((count - expected) ** 2 / expected for count in counts)


def test_the_hash_is_splitmix64():
    """The first numbers of seed 1234567, as published beside the algorithm in many languages."""
    states = 1234567 + torch.arange(5) * _GAMMA
    found = [number % 2**64 for number in _splitmix(states).tolist()]
    assert found == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


# Sixteen thousand numbers each: of one document's positions, of one token over steps and over
# seeds, and of documents of one token.
SERIES = {
    "positions": lambda: draw_tokens(torch.arange(16000)[None] % 7, seed=0, step=0),
    "steps": lambda: [draw_tokens(torch.tensor([[3]]), seed=0, step=n) for n in range(16000)],
    "seeds": lambda: [draw_tokens(torch.tensor([[3]]), seed=n, step=0) for n in range(16000)],
    "tokens": lambda: draw_tokens(torch.arange(16000)[:, None], seed=0, step=0),
}


@pytest.mark.parametrize("name", SERIES)
def test_draws_are_uniform_and_apart(name):
    """64 cells are filled evenly, and neighbours in the series know nothing of each other.

    Chi-square has 63 degrees of freedom: mean 63, deviation 11; 25 and 110 are beyond 1 in 5000.
    """
    series = SERIES[name]()
    draws = (torch.cat(series) if isinstance(series, list) else series).flatten()
    assert draws.dtype == torch.float32 and draws.min() >= 0 and draws.max() < 1
    cells = torch.bincount((draws * 64).long(), minlength=64).tolist()
    assert 25 < chi_square(cells, 16000 / 64) < 110
    for lag in (1, 2, 7):
        pair = torch.stack([draws[:-lag], draws[lag:]]).double()
        assert abs(torch.corrcoef(pair)[0, 1]) * math.sqrt(16000) < 4


def test_a_draw_does_not_depend_on_the_batch():
    """Alone, padded on either side, packed and without padding, a token has one number."""
    documents = [torch.tensor(d) for d in ([5, 6, 7, 5], [5, 6], [9, 0, 0], [3])]
    alone = [draw_tokens(d[None], seed=4, step=2)[0] for d in documents]
    for left in (False, True):
        ids, mask = torch.zeros(4, 6, dtype=torch.long), torch.zeros(4, 6, dtype=torch.long)
        for row, d in enumerate(documents):
            place = slice(6 - len(d), None) if left else slice(len(d))
            ids[row, place], mask[row, place] = d, 1
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        for position_ids in (None, positions):
            found = draw_tokens(ids, attention_mask=mask, position_ids=position_ids, seed=4, step=2)
            for row, expected in enumerate(alone):
                assert torch.equal(found[row][mask[row] == 1], expected)
    flat = torch.cat([*documents, torch.zeros(3, dtype=torch.long)])[None]
    positions = torch.cat([*(torch.arange(len(d)) for d in documents), torch.zeros(3).long()])[None]
    found = draw_tokens(flat, position_ids=positions, seed=4, step=2)
    assert torch.equal(found[0, :-3], torch.cat(alone))
    two = draw_tokens(flat.repeat(2, 1), position_ids=positions, seed=4, step=2)
    assert torch.equal(two, found.repeat(2, 1))


def test_a_draw_is_that_of_seed_step_and_the_tokens_so_far():
    """Each of them changes it, the order of tokens too; what follows does not."""
    ids = torch.tensor([[5, 6, 7, 8]])
    draws = draw_tokens(ids, seed=0, step=0)
    assert torch.equal(draws, draw_tokens(ids.int(), seed=0, step=0))
    for other in ({"seed": 1, "step": 0}, {"seed": 0, "step": 1}):
        assert not (draws == draw_tokens(ids, **other)).any()
    changed = draw_tokens(torch.tensor([[5, 6, 9, 8]]), seed=0, step=0)
    assert (draws == changed).tolist() == [[True, True, False, False]]
    swapped = draw_tokens(torch.tensor([[6, 5, 7, 8]]), seed=0, step=0)
    assert not (draws == swapped).any()


def test_no_generator_is_touched():
    """Dropout and the order of the data are what they would be without sampling."""
    before = torch.get_rng_state()
    draw_tokens(torch.tensor([[5, 6]]), seed=0, step=0)
    draw_pairs(FIVE, 0.4, seed=0, step=0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("fraction", "count"), [(1.0, 5), (0.9, 4), (0.6, 3), (0.5, 2), (0.2, 1), (1e-9, 1)]
)
def test_pairs_are_a_smaller_map(fraction, count):
    """max(1, round(fraction * P)) of the pairs, in their order, the same for one seed and step."""
    for step in range(20):
        drawn = draw_pairs(FIVE, fraction, seed=0, step=step)
        assert len(drawn) == count and set(drawn) <= set(FIVE)
        assert drawn == draw_pairs(FIVE, fraction, seed=0, step=step)
    assert draw_pairs(FIVE, 1.0, seed=0, step=0) is FIVE


@pytest.mark.parametrize("over", ["seed", "step"])
def test_every_subset_is_equally_likely(over):
    """4000 draws of two of five pairs: chi-square of 9 degrees of freedom, 28 is 1 in 1000."""
    fixed = {"seed": 0, "step": 0}
    drawn = Counter(draw_pairs(FIVE, 0.4, **fixed | {over: n}).pairs for n in range(4000))
    assert drawn.keys() == set(combinations(FIVE.pairs, 2))
    assert chi_square(drawn.values(), 400) < 28


@pytest.mark.parametrize("fraction", [0, 0.0, -0.5, 1.5, math.nan, math.inf])
def test_a_share_lies_between_0_and_1(fraction):
    """The refusal names the field and the value."""
    message = f"lens_pair_fraction must be above 0 and at most 1, got {fraction}"
    with pytest.raises(ValueError, match=message):
        draw_pairs(FIVE, fraction, seed=0, step=0)


def test_steps_are_drawn_uniformly_and_answered_with_seeds_of_their_own():
    """The share below a fraction is the fraction, within 4 standard errors; no generator moves."""
    state, count = torch.get_rng_state(), 4000
    for seed in (0, 42):
        draws = [draw_step(seed=seed, step=step) for step in range(count)]
        assert all(0 <= draw < 1 for draw in draws)
        for share in (0.1, 0.5, 0.9):
            found = sum(draw < share for draw in draws) / count
            assert abs(found - share) < 4 * (share * (1 - share) / count) ** 0.5
    seeds = {answer_seed(seed=seed, step=step) for seed in range(40) for step in range(100)}
    assert len(seeds) == 4000
    assert torch.equal(state, torch.get_rng_state())
