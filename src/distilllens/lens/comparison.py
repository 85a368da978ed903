"""A student's distribution beside the teacher's: how far, in which direction, at which ratios."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

MEASURES = ("jsd", "forward_kl", "reverse_kl")
PENALTIES = ("forward_kl", "reverse_kl", "jeffreys", "jsd")
# The histogram of r = q / p: bins that are even in log10 r, from -DECADES to DECADES.
NUM_BINS = 80
DECADES = 4.0

# Below every log-probability whose exponential is not 0; -inf - -inf would be no number.
_FLOOR = -1e4


@dataclass(frozen=True, eq=False)
class Comparison:
    """A student against a teacher at K pairs of depths and N positions; p teacher, q student.

    Args:
        pairs: (student depth, teacher depth), one for every student depth 0 to L.
        divergences: ``[K, N, 3]`` in nats: jsd, KL(p || q), KL(q || p) (``MEASURES``).
        over: ``[K, N, 2]``: the sum of q - p over tokens with q > p, among the teacher's top
            tokens and among all others. Over both, it equals ``under``: each is the total
            variation, since p and q both sum to 1.
        under: ``[K, N, 2]``: the sum of p - q over tokens with p > q, likewise.
        penalties: ``[K, 4, 2]`` in nats, mean over positions: what each of ``PENALTIES`` charges
            for tokens with r < 1 and for those with r >= 1; their sum is the divergence.
        ratios: ``[K, 2, NUM_BINS]``: where the teacher's probability lies, and where the student's,
            by r = q / p; mean over positions, so each row sums to 1. The outermost bins hold all
            that lies beyond.
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
    """The teacher depth with which each student depth, 0 to L, is compared.

    A depth of ``trained`` meets its partner there; any other the teacher depth t for which t / Lt
    is nearest to s / Ls, the shallower of two that are equally near.
    """
    # In whole numbers: which of two depths is nearer must not hang on a rounding.
    nearest = [
        min(range(teacher_layers + 1), key=lambda t: abs(t * student_layers - s * teacher_layers))
        for s in range(student_layers + 1)
    ]
    fixed = dict(trained)
    return tuple(fixed.get(s, t) for s, t in enumerate(nearest))


def penalties(q: Tensor, p: Tensor, log_ratio: Tensor) -> dict[str, Tensor]:
    """What each divergence charges for a token, in nats: p f(r) with r = q / p; never below 0.

    Their sums over the vocabulary are the divergences. With p = 1 and q = r they are the generators
    f(r) themselves: forward KL r - 1 - ln r, reverse KL r ln r - r + 1, JSD
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
    """What ``Comparison`` holds of one pair of depths, over n positions.

    Equals ``divergence(name)(log_q, log_p)`` for each of ``MEASURES``, and the sums that stand at
    ``Comparison``. A probability of 0 counts as one of e^-10000, so all is finite.

    Args:
        log_q, log_p: log-probabilities ``[n, V]`` of student and teacher; of unequal vocabularies
            the shared prefix is compared, as distributions of its own.
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
    """The sums ``[n, len(masks)]`` of the masked values of each row, then float64."""
    return torch.stack([torch.where(mask, values, 0).sum(-1) for mask in masks], -1).double()


def _histograms(q, p, log_ratio):
    place = (log_ratio / math.log(10) + DECADES) * (NUM_BINS / (2 * DECADES))
    place = place.floor().long().clamp(0, NUM_BINS - 1).flatten()
    weights = (p.double().flatten(), q.double().flatten())
    return torch.stack([torch.bincount(place, w, minlength=NUM_BINS) for w in weights])
