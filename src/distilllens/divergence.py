"""Divergences between two next-token distributions: logits x logits -> nats per token.

No mask, no mean, no model. Throughout, p is the teacher, q the student, and
``forward_kl`` = KL(p || q), ``reverse_kl`` = KL(q || p).
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

# Below every log-probability whose exponential is not 0, in float64 too.
_FLOOR = -1e4
# The most likely tokens, which are tried before the whole vocabulary is sorted.
_TOP = 256


def divergence(name: str, **params: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The divergence called ``name``, a function of student and teacher logits.

    Equals, for ``"forward_kl"``::

        p, q = teacher_logits.softmax(-1), student_logits.softmax(-1)
        (p * (p.log() - q.log())).sum(-1)

    with ``0 * log 0 = 0`` and everything computed from log-softmax, without an epsilon.

    ==================  ==============================================  ===============  =========
    name                definition                                      parameters       range
    ==================  ==============================================  ===============  =========
    forward_kl          KL(p || q)                                                       [0, inf]
    reverse_kl          KL(q || p)                                                       [0, inf]
    jsd                 beta KL(p || m) + (1 - beta) KL(q || m),        beta = 0.5       [0, ln 2]
                        m = beta p + (1 - beta) q
    jeffreys            a KL(p || q) + b KL(q || p)                     forward_weight,  [0, inf]
                                                                        reverse_weight
                                                                        = 1
    adaptive_kl         the same, a and b the shares of sum |p - q| on  mu = 0.5         [0, inf]
                        the teacher's head (probability mass mu) and
                        tail; constants to the gradient
    skew_forward_kl     KL(p || alpha p + (1 - alpha) q)                alpha = 0.1      [0, -ln
    skew_reverse_kl     KL(q || (1 - alpha) p + alpha q)                alpha = 0.1      alpha]
    total_variation     sum |p - q| / 2                                                  [0, 1]
    uld                 sum |p - q|, both sorted by probability                          [0, 2]
    ==================  ==============================================  ===============  =========

    Returns:
        A callable ``(student_logits [..., V], teacher_logits [..., V]) -> [...]`` in nats (total
        variation and uld are probabilities), differentiable in the student only. Half precision is
        compared in float32, float64 stays. A logit of -inf in both models contributes 0 with
        gradient 0; in the student alone, where p > 0, it makes forward_kl, jeffreys and adaptive_kl
        +inf; in the teacher alone, where q > 0, it makes reverse_kl, jeffreys and adaptive_kl +inf.
        The others stay finite.

    Raises:
        ValueError: an unknown name or parameter (the message lists the known ones), or a parameter
            outside its range.

    Source: arXiv 2602.13567 (jsd, jeffreys); Hinton et al. 2015 (forward_kl); Gu et al. 2024
    (reverse_kl); Agarwal et al. 2024 (jsd with beta); Wu et al. 2024 (adaptive_kl); Ko et al. 2024
    (skew); Wen et al. 2023 (total_variation); Boizard et al. 2024 (uld, which names no token).
    """
    checked = parameters(name, params)
    formula = functools.partial(_DIVERGENCES[name].formula, **checked)

    def compare(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        if student_logits.shape != teacher_logits.shape:
            raise ValueError(
                f"student and teacher logits must have the same shape, got "
                f"{list(student_logits.shape)} and {list(teacher_logits.shape)}"
            )
        dtype = functools.reduce(
            torch.promote_types, (student_logits.dtype, teacher_logits.dtype, torch.float32)
        )
        return formula(
            student_logits.to(dtype).log_softmax(-1),
            teacher_logits.detach().to(dtype).log_softmax(-1),
        )

    return compare


def divergence_names() -> list[str]:
    """The names of all divergences."""
    return list(_DIVERGENCES)


def parameters(name: str, given: Mapping[str, float]) -> dict[str, float]:
    """Every parameter of the divergence ``name``: ``given``, checked, and defaults for the rest.

    Raises:
        ValueError: an unknown name or parameter, or a value outside its range.
    """
    if name not in _DIVERGENCES:
        raise ValueError(f"unknown divergence {name!r}; known: {', '.join(_DIVERGENCES)}")
    entry = _DIVERGENCES[name]
    found = inspect.signature(entry.formula).parameters
    found = {key: found[key].default for key in entry.ranges}
    for key, value in given.items():
        if key not in found:
            raise ValueError(
                f"divergence {name!r} takes no parameter {key!r}; "
                f"valid: {', '.join(found) or 'none'}"
            )
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise ValueError(f"{key} of {name} must be a finite number, got {value!r}")
        entry.ranges[key].check(f"{key} of {name}", value)
        found[key] = float(value)
    if name == "jeffreys" and not any(found.values()):
        raise ValueError("jeffreys needs forward_weight or reverse_weight above 0, got 0 for both")
    return found


def reading_waits(tensor: Tensor) -> bool:
    """Whether reading a number of ``tensor`` waits for all work queued on its device."""
    return tensor.device.type != "cpu"


def adaptive_weights(q: Tensor, p: Tensor, mu: float) -> tuple[Tensor, Tensor]:
    """Shares ``[...]`` of sum |p - q| on the teacher's head and on its tail; 0 and 0 if p = q.

    The head consists of the most likely tokens whose cumulative mass is at most ``mu``, and always
    of the top one; equal probabilities count in the order of the vocabulary.
    """
    shape, gap = p.shape[:-1], (q - p).abs_()
    p, gap = p.reshape(-1, p.shape[-1]), gap.reshape(-1, p.shape[-1])
    if p.shape[-1] > _TOP and not reading_waits(p):
        head, tail, settled = _shares_from_the_top(gap, p, mu)
        if not settled.all():
            rest = ~settled
            head[rest], tail[rest] = _shares_from_a_sort(gap[rest], p[rest], mu)
    else:
        head, tail = _shares_from_a_sort(gap, p, mu)
    total = (head + tail).clamp_min(torch.finfo(p.dtype).tiny)
    return (head / total).view(shape), (tail / total).view(shape)


def _shares_from_a_sort(gap, p, mu):
    falling, order = p.sort(dim=-1, descending=True, stable=True)
    in_head = falling.cumsum_(-1) <= mu
    in_head[:, :1].fill_(True)
    gap = gap.gather(-1, order)
    tail = gap.masked_fill(in_head, 0).sum(-1)
    return gap.masked_fill_(~in_head, 0).sum(-1), tail


def _shares_from_the_top(gap, p, mu):
    """As ``_shares_from_a_sort``, for rows whose head ends among the top tokens: ``settled [R]``.

    Overwrites ``gap``, but only in settled rows.
    """
    order = p.topk(_TOP, sorted=False).indices.sort(-1).values
    falling, turn = p.gather(-1, order).sort(dim=-1, descending=True, stable=True)
    order = order.gather(-1, turn)
    in_head = falling.cumsum(-1) <= mu
    in_head[:, :1].fill_(True)
    # Among tokens as likely as the last one, topk picks any; the head must end before them.
    settled = (~in_head & (falling > falling[:, -1:])).any(-1)
    in_head &= settled.unsqueeze(-1)
    top = gap.gather(-1, order)
    gap.scatter_(-1, order, top.masked_fill(in_head, 0))
    return top.masked_fill_(~in_head, 0).sum(-1), gap.sum(-1), settled


def _expectation(p, value):
    # Masked before the product, not after: 0 * inf would make the gradient NaN.
    return (p * torch.where(p > 0, value, 0)).sum(-1)


def _forward_kl(log_q, log_p):
    return _expectation(log_p.exp(), log_p - log_q)


def _reverse_kl(log_q, log_p):
    return _expectation(log_q.exp(), log_q - log_p)


def _jeffreys(log_q, log_p, *, forward_weight=1.0, reverse_weight=1.0):
    # A weight of 0 must not meet an infinite divergence.
    terms = ((forward_weight, _forward_kl), (reverse_weight, _reverse_kl))
    return sum(weight * kl(log_q, log_p) for weight, kl in terms if weight > 0)


def _adaptive_kl(log_q, log_p, *, mu=0.5):
    with torch.no_grad():
        head, tail = adaptive_weights(log_q.exp(), log_p.exp(), mu)
    forward = torch.where(head > 0, _forward_kl(log_q, log_p), 0)
    return head * forward + tail * torch.where(tail > 0, _reverse_kl(log_q, log_p), 0)


def _to_mixture(log_a, log_b, share):
    # log(a / m) for m = share a + (1 - share) b. From the difference of the logarithms, not from
    # log m: where a = b the result is 0 to the rounding of ln 2, not of log a.
    gap = log_b.clamp_min(_FLOOR) - log_a.clamp_min(_FLOOR)
    return -torch.logaddexp(gap + math.log1p(-share), torch.full_like(gap, math.log(share)))


def _jsd(log_q, log_p, *, beta=0.5):
    to_teacher = (log_p.exp() * _to_mixture(log_p, log_q, beta)).sum(-1)
    to_student = (log_q.exp() * _to_mixture(log_q, log_p, 1 - beta)).sum(-1)
    return beta * to_teacher + (1 - beta) * to_student


def _skew_forward_kl(log_q, log_p, *, alpha=0.1):
    return (log_p.exp() * _to_mixture(log_p, log_q, alpha)).sum(-1)


def _skew_reverse_kl(log_q, log_p, *, alpha=0.1):
    return (log_q.exp() * _to_mixture(log_q, log_p, alpha)).sum(-1)


def _total_variation(log_q, log_p):
    return (log_q.exp() - log_p.exp()).abs().sum(-1) / 2


def _uld(log_q, log_p):
    q, p = (each.exp().sort(dim=-1, descending=True).values for each in (log_q, log_p))
    return (q - p).abs().sum(-1)


@dataclass(frozen=True)
class _Weight:
    """A number of at least 0."""

    def check(self, what, value):
        if value < 0:
            raise ValueError(f"{what} must be at least 0, got {value}")


@dataclass(frozen=True)
class _Share:
    """A number strictly between 0 and 1; ``hint`` names the alternative to its ends."""

    hint: str = ""

    def check(self, what, value):
        if not 0 < value < 1:
            raise ValueError(f"{what} must lie strictly between 0 and 1, got {value}{self.hint}")


@dataclass(frozen=True)
class _Divergence:
    """A formula of log-probabilities, and the range of each of its parameters.

    Args:
        formula: ``(log q [..., V], log p [..., V], *, parameters with defaults) -> [...]`` in nats.
    """

    formula: Callable[..., Tensor]
    ranges: Mapping[str, _Weight | _Share] = field(default_factory=dict)


_MIXED = _Share(" (its ends have names: forward_kl, reverse_kl)")
# A new divergence is one entry here. linear_divergence/gradients.py may add an analytic gradient;
# without one the engine uses autograd, block by block.
_DIVERGENCES = {
    "forward_kl": _Divergence(_forward_kl),
    "reverse_kl": _Divergence(_reverse_kl),
    "jsd": _Divergence(_jsd, {"beta": _MIXED}),
    "jeffreys": _Divergence(_jeffreys, {"forward_weight": _Weight(), "reverse_weight": _Weight()}),
    "adaptive_kl": _Divergence(_adaptive_kl, {"mu": _Share()}),
    "skew_forward_kl": _Divergence(_skew_forward_kl, {"alpha": _MIXED}),
    "skew_reverse_kl": _Divergence(_skew_reverse_kl, {"alpha": _MIXED}),
    "total_variation": _Divergence(_total_variation),
    "uld": _Divergence(_uld),
}
