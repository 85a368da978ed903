"""Settings are checked where they enter; noise is a hash, uniform and independent, Gumbel's law.

The hash is fixed, so each statistical test passes always or never. Bounds are those that a truly
random sample would break with a probability of 1e-6.
"""

import hashlib
import math

import numpy as np
import pytest
import torch

from distilllens.generate.decoding import Decoding, add_gumbel_, noise_keys, request_seed

NORMAL = 4.9  # |z| of 1e-6, two-sided
KOLMOGOROV = 2.7  # sqrt(n) * D: 2 exp(-2 * 2.7**2) = 9e-7


def chi_square_bound(degrees):
    """The quantile of 1 - 1e-6 (z = 4.75), by Wilson and Hilferty."""
    part = 2 / (9 * degrees)
    return degrees * (1 - part + 4.75 * math.sqrt(part)) ** 3


def mix(bits):
    """murmur3's finalizer in Python's whole numbers."""
    bits ^= bits >> 16
    bits = bits * 0x85EBCA6B % 2**32
    bits ^= bits >> 13
    bits = bits * 0xC2B2AE35 % 2**32
    return bits ^ bits >> 16


def expected_uniform(ids, seed, step, token):
    """u in (0, 1) as documented, with no line of the library."""
    stream = hashlib.shake_256(" ".join(str(i) for i in [seed, *ids]).encode()).digest(8 * step + 8)
    first, second = np.frombuffer(stream, "<u4")[-2:].tolist()
    bits = mix((mix((token + first) % 2**32) + second) % 2**32) % 2**31
    return (bits + 0.5) / 2**31


def noise(prompts, seed=0, steps=1, vocab=1000):
    """``[prompts, steps, vocab]`` float64, of the library."""
    keys = noise_keys(prompts, seed, steps)
    rows = add_gumbel_(torch.zeros(len(prompts) * steps, vocab), keys.flatten(0, 1))
    return rows.view(len(prompts), steps, vocab).double()


def uniform(gumbel):
    """Gumbel's distribution function: uniform in [0, 1] if the noise is what it should be."""
    return torch.exp(-torch.exp(-gumbel))


def check_uniform(sample):
    """Kolmogorov and Smirnov's distance to the uniform law."""
    ordered = sample.flatten().sort().values
    n = len(ordered)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    distance = torch.maximum((ordered - steps[:-1]).abs(), (ordered - steps[1:]).abs()).max()
    assert distance * math.sqrt(n) < KOLMOGOROV


def check_independent(left, right):
    """No correlation, and 16 x 16 cells as full as chance fills them."""
    left, right = left.flatten(), right.flatten()
    n = len(left)
    correlation = torch.corrcoef(torch.stack([left, right]))[0, 1]
    assert abs(correlation) * math.sqrt(n) < NORMAL
    cells = (left * 16).long().clamp(max=15) * 16 + (right * 16).long().clamp(max=15)
    counts = torch.bincount(cells, minlength=256).double()
    assert ((counts - n / 256) ** 2 / (n / 256)).sum() < chi_square_bound(255)


def test_defaults_are_the_papers():
    """Temperature 1, the whole distribution, 256 tokens."""
    assert Decoding() == Decoding(max_new_tokens=256, temperature=1.0, top_p=1.0, greedy=False)


@pytest.mark.parametrize("name", ["max_new_tokens", "temperature", "top_p", "greedy"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, None, "1", math.nan, math.inf, [1]])
def test_bad_settings_are_refused(name, value):
    """One line names the setting and the value; valid settings pass."""
    if (name, value) in (("temperature", 1.5),) or (name == "greedy" and value is True):
        assert getattr(Decoding(**{name: value}), name) == value
        return
    with pytest.raises(ValueError, match=rf"^{name} must be .*got ") as error:
        Decoding(**{name: value})
    assert repr(value) in str(error.value) and "\n" not in str(error.value)


def test_noise_is_the_documented_hash():
    """Against whole numbers and float64, within the rounding of u to a float32."""
    prompts, vocab = [[5, 3, 9], [7], list(range(40))], 300
    found = noise(prompts, seed=-7, steps=3, vocab=vocab)
    for row, ids in enumerate(prompts):
        for step in range(3):
            u = np.array([expected_uniform(ids, -7, step, token) for token in range(vocab)])
            exponential = -np.log1p(-u)
            # Two roundings move u by at most u * 2**-23; 1e-6 is for those of the logarithms.
            bound = u * 2.0**-23 / ((1 - u) * exponential) + 1e-6
            assert (np.abs(found[row, step].numpy() + np.log(exponential)) <= bound).all()


def test_keys_belong_to_prompt_seed_and_step():
    """Only prompt, seed and step matter, not other prompts or the number of steps."""
    keys = noise_keys([[1, 2], [12], [1, 3]], 5, 6)
    assert keys.shape == (3, 6, 2) and keys.dtype == torch.int32
    assert torch.equal(noise_keys([[12]], 5, 2)[0], keys[1, :2])
    others = [*keys.flatten(0, 1).tolist(), *noise_keys([[1, 2]], 6, 6)[0].tolist()]
    assert len({tuple(key) for key in others}) == 24


def test_nothing_draws_from_a_generator():
    """The global random state does not move."""
    state = torch.get_rng_state()
    noise([[1]], vocab=50)
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_is_uniform_along_every_axis():
    """Over tokens, steps, prompts and seeds, each with the others held."""
    check_uniform(uniform(noise([[3, 1, 4]], vocab=200_000)))
    check_uniform(uniform(noise([[3, 1, 4]], steps=3000, vocab=8)))
    check_uniform(uniform(noise([[3, i] for i in range(3000)], vocab=8)))
    seeds = torch.cat([noise([[3]], seed=seed, vocab=8) for seed in range(2000)])
    check_uniform(uniform(seeds))
    check_uniform(uniform(seeds[:, 0, 0]))  # one token: over seeds alone


def test_neighbours_are_independent():
    """Tokens 1, 16 and 256 apart, consecutive steps, seeds, and prompts that differ in a token."""
    rows = uniform(noise([[1], [2]], steps=20, vocab=10_000))
    for apart in (1, 16, 256):
        check_independent(rows[..., apart:], rows[..., :-apart])
    check_independent(rows[:, 1:], rows[:, :-1])
    check_independent(rows[0], rows[1])
    check_independent(rows[0], uniform(noise([[1]], seed=1, steps=20, vocab=10_000))[0])


def test_the_tail_is_there():
    """As many values above 8, 10 and 12 as Gumbel's law says, and none is infinite."""
    sample = noise([[1], [2]], steps=100, vocab=50_000)
    assert sample.isfinite().all()
    for level in (8, 10, 12):
        expected = -math.expm1(-math.exp(-level)) * sample.numel()  # 3354, 454 and 61
        assert abs(int((sample > level).sum()) - expected) < NORMAL * math.sqrt(expected)


def test_sampled_tokens_follow_the_softmax():
    """20,000 steps of 40 logits: chi-square of the counts, cells of at least 5 expected."""
    logits = torch.randn(40, generator=torch.Generator().manual_seed(0)) * 1.5
    scores = add_gumbel_(logits.repeat(20_000, 1), noise_keys([[8, 8]], 10, 20_000)[0])
    expected = logits.double().softmax(-1) * 20_000
    assert expected.min() > 5
    counts = torch.bincount(scores.argmax(-1), minlength=40)
    assert ((counts - expected) ** 2 / expected).sum() < chi_square_bound(39)


def test_one_token_left_is_always_taken():
    """A finite score wins over -inf whatever its noise, so noise is never -inf."""
    scores = torch.full((2000, 5), -torch.inf)
    scores[:, 3] = -50.0
    noisy = add_gumbel_(scores, noise_keys([[1]], 0, 2000)[0])
    assert (noisy.argmax(-1) == 3).all() and not noisy.isnan().any()


def test_the_largest_bits_are_not_infinite(monkeypatch):
    """All 31 bits set would round to u = 1: the noise there is -log(24 log 2) = -2.81."""
    monkeypatch.setattr("distilllens.generate.decoding._mix_", lambda bits, spare: bits.fill_(-1))
    noisy = add_gumbel_(torch.zeros(1, 4), torch.zeros(1, 2, dtype=torch.int32))
    assert noisy == pytest.approx(-math.log(24 * math.log(2)), abs=1e-3)


def test_request_seeds_are_of_63_bits_and_a_prompts_own():
    """Never negative (vLLM takes -1 for none), and no two alike."""
    seeds = {request_seed([a, b], s) for a in range(10) for b in range(10) for s in range(10)}
    assert len(seeds) == 1000 and all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62
    assert request_seed([1, 2], 3) == request_seed((1, 2), 3)
