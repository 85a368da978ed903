"""Token-level comparison of student and teacher: divergences, and where the student is off."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

MEASURES = ("jsd", "forward_kl", "reverse_kl")
PENALTIES = ("forward_kl", "reverse_kl", "jeffreys", "jsd")
# Histogram of r = q / p: equal bins of log10 r, from -DECADES to DECADES.
NUM_BINS = 80
DECADES = 4.0

# Below every log-probability whose exponential is not 0, to avoid -inf - -inf = NaN.
_FLOOR = -1e4


@dataclass(frozen=True, eq=False)
class Comparison:
    """A student q compared with a teacher p at K pairs of depths and N positions.

    Args:
        pairs: (student depth, teacher depth), one for every student depth 0 to L.
        divergences: ``[K, N, 3]`` in nats: jsd, KL(p || q), KL(q || p) (``MEASURES``).
        over: ``[K, N, 2]``: the sum of q - p over tokens with q > p, among the teacher's top
            tokens and among all others. The total of both equals that of ``under``: each is the
            total variation distance, since p and q sum to 1.
        under: ``[K, N, 2]``: the sum of p - q over tokens with p > q, split in the same way.
        penalties: ``[K, 4, 2]`` in nats, mean over positions: the part of each of ``PENALTIES``
            from tokens with r < 1 and from tokens with r >= 1; their sum is the divergence.
        ratios: ``[K, 2, NUM_BINS]``: distribution of the teacher's probability, and of the
            student's, over r = q / p; mean over positions, so each row sums to 1. The outermost
            bins include everything beyond.
    """

    pairs: tuple[tuple[int, int], ...]
    divergences: Tensor
    over: Tensor
    under: Tensor
    penalties: Tensor
    ratios: Tensor

    @property
    def num_tokens(self) -> int:
        """N."""
        return self.divergences.shape[1]


def partners(
    student_layers: int, teacher_layers: int, trained: Iterable[tuple[int, int]] = ()
) -> tuple[int, ...]:
    """The teacher depth that each student depth, 0 to L, is compared with.

    A depth in ``trained`` is compared with its partner there, any other with the teacher depth t
    whose t / Lt is nearest to s / Ls; of two equally near, the shallower.
    """
    # In integers: which of two depths is nearer must not depend on rounding.
    nearest = [
        min(range(teacher_layers + 1), key=lambda t: abs(t * student_layers - s * teacher_layers))
        for s in range(student_layers + 1)
    ]
    fixed = dict(trained)
    return tuple(fixed.get(s, t) for s, t in enumerate(nearest))


def penalties(q: Tensor, p: Tensor, log_ratio: Tensor) -> dict[str, Tensor]:
    """Each token's contribution to each divergence, in nats: p f(r) with r = q / p; at least 0.

    Summed over the vocabulary, they are the divergences. With p = 1 and q = r they are the
    generators f(r) themselves: forward KL r - 1 - ln r, reverse KL r ln r - r + 1, JSD
    [r ln r - (1 + r) ln((1 + r) / 2)] / 2, and Jeffreys (r - 1) ln r, the sum of both KLs.

    Source: arXiv 2602.13567.
    """
    excess = q - p
    forward = (excess - p * log_ratio).clamp_min_(0)
    towards_q = q * log_ratio
    reverse = (towards_q - excess).clamp_min_(0)
    mixture = (p + q) * (F.softplus(log_ratio) - math.log(2))  # ln(m / p), m = (p + q) / 2
    jsd = (towards_q - mixture).clamp_min_(0) / 2
    return dict(zip(PENALTIES, (forward, reverse, forward + reverse, jsd), strict=True))


def compare_rows(log_q: Tensor, log_p: Tensor, top: Tensor) -> tuple[Tensor, ...]:
    """The fields of ``Comparison`` for one pair of depths, over n positions.

    Equals ``divergence(name)(log_q, log_p)`` for each of ``MEASURES``, and the sums described in
    ``Comparison``. A probability of 0 counts as e^-10000, so that everything is finite.

    Args:
        log_q, log_p: log-probabilities ``[n, V]`` of student and teacher; if the vocabularies
            differ in size, their shared prefix is compared, renormalised.
        top: the teacher's top tokens ``[n, k]``.

    Returns:
        divergences ``[n, 3]``, over and under ``[n, 2]``, and the sums over the n positions of
        penalties ``[4, 2]`` and ratios ``[2, NUM_BINS]``, in float64.
    """
    among_top = torch.zeros_like(log_p, dtype=torch.bool).scatter_(-1, top, True)
    if log_q.shape != log_p.shape:
        shared = min(log_q.shape[-1], log_p.shape[-1])
        log_q, log_p = (x[:, :shared].log_softmax(-1) for x in (log_q, log_p))
        among_top = among_top[:, :shared]
    q, p = log_q.exp(), log_p.exp()
    log_ratio = log_q.clamp_min(_FLOOR) - log_p.clamp_min(_FLOOR)
    under, over = log_ratio < 0, log_ratio >= 0
    sides = {name: _sums(x, under, over) for name, x in penalties(q, p, log_ratio).items()}
    return (
        torch.stack([sides[name].sum(-1) for name in MEASURES], -1),
        _sums(q - p, over & among_top, over & ~among_top),
        _sums(p - q, under & among_top, under & ~among_top),
        torch.stack([x.sum(0) for x in sides.values()]),
        _histograms(q, p, log_ratio),
    )


def _sums(values, *masks):
    """The sum of each row's values under each mask, ``[n, len(masks)]``, cast to float64."""
    return torch.stack([torch.where(mask, values, 0).sum(-1) for mask in masks], -1).double()


def _histograms(q, p, log_ratio):
    bins = (log_ratio / math.log(10) + DECADES) * (NUM_BINS / (2 * DECADES))
    bins = bins.floor().long().clamp(0, NUM_BINS - 1).flatten()
    weights = (p.double().flatten(), q.double().flatten())
    return torch.stack([torch.bincount(bins, w, minlength=NUM_BINS) for w in weights])
