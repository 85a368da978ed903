"""Value and gradient of every divergence, in place, on a block of rows.

Each function takes ``student [R, V]`` and ``teacher [R, V]`` logits, two scratch blocks of that
shape, and whether a gradient is wanted. It returns the nats ``[R]``, leaves dD/d(student logits) in
``student`` and overwrites everything else. With q = softmax(student) and g = dD/d(log q), the
gradient is ``g - q * sum(g)``; each docstring states the result.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from distilllens.divergence import adaptive_weights, divergence, reading_waits


def kernel(name: str, params: dict[str, float]) -> Callable:
    """The function of this file for a divergence; autograd for one that has none here.

    Autograd is slower and holds a few more ``[R, V]`` tensors of the block.
    """
    if name in DIVERGENCES:
        return functools.partial(DIVERGENCES[name], **params)
    return functools.partial(_by_autograd, divergence(name, **params))


def _by_autograd(compare, student, teacher, work, wants_gradient):
    with torch.set_grad_enabled(wants_gradient):
        logits = student.detach().clone().requires_grad_(wants_gradient)
        value = compare(logits, teacher)
        if wants_gradient:
            student.copy_(torch.autograd.grad(value.sum(), logits)[0])
    return value.detach()


def cross_entropy(student, target, work, wants_gradient):
    """-log q[label]; gradient q - onehot(label).

    Args:
        target: labels ``[R]``, and None or the rows ``[2, R]`` of ``Term.seen``.
    """
    labels, seen = target[0].unsqueeze(-1), target[1]
    torch.log_softmax(student, -1, out=student)
    value = -student.gather(-1, labels).squeeze(-1)
    if seen is not None:
        seen[0] = _is_top(student, labels, -value)
        q = torch.exp(student, out=work[0])
        seen[1] = -_expectation(q, student, work)[0]
    if wants_gradient:
        student.exp_() if seen is None else student.copy_(q)
        student.scatter_add_(-1, labels, torch.full_like(labels, -1, dtype=student.dtype))
    return value


def _is_top(logs, labels, chosen):
    """Whether ``labels [R, 1]`` are the argmax of logs whose values at them are ``chosen [R]``."""
    if reading_waits(logs):
        return logs.argmax(-1) == labels.squeeze(-1)
    # On the CPU amax is ten times as fast as argmax, which takes the first of equal values.
    top = chosen >= logs.amax(-1)
    for row in top.nonzero().flatten().tolist():
        before = logs[row, : labels[row]]
        top[row] = not before.numel() or bool(before.amax() < chosen[row])
    return top


def forward_kl(student, teacher, work, wants_gradient):
    """sum p (log p - log q); gradient q - p."""
    gap = _log_ratio(student, teacher, work).neg_()
    p = teacher.exp_()
    value, _ = _expectation(p, gap, work)
    if wants_gradient:
        student.exp_().sub_(p)
    return value


def reverse_kl(student, teacher, work, wants_gradient):
    """D = sum q (log q - log p); gradient q (log q - log p - D)."""
    gap = _log_ratio(student, teacher, work)
    q = student.exp_()
    value, nothing = _expectation(q, gap, work)
    if wants_gradient:
        q.mul_(_without(gap.sub_(value.unsqueeze(-1)), nothing))
    return value


def jeffreys(student, teacher, work, wants_gradient, *, forward_weight, reverse_weight):
    """a KL(p || q) + b KL(q || p); gradient a (q - p) + b q (log q - log p - KL(q || p))."""
    if forward_weight == 0:
        value = reverse_kl(student, teacher, work, wants_gradient)
        student.mul_(reverse_weight)
        return value.mul_(reverse_weight)
    if reverse_weight == 0:
        value = forward_kl(student, teacher, work, wants_gradient)
        student.mul_(forward_weight)
        return value.mul_(forward_weight)
    gap = _log_ratio(student, teacher, work)
    return _both_kls(
        student.exp_(), teacher.exp_(), gap, work, wants_gradient, forward_weight, reverse_weight
    )


def adaptive_kl(student, teacher, work, wants_gradient, *, mu):
    """As jeffreys; the weights of a row, its shares of head and tail, count as constants."""
    gap = _log_ratio(student, teacher, work)
    q, p = student.exp_(), teacher.exp_()
    head, tail = adaptive_weights(q, p, mu)
    return _both_kls(q, p, gap, work, wants_gradient, head.unsqueeze(-1), tail.unsqueeze(-1))


def _both_kls(q, p, gap, work, wants_gradient, a, b):
    reverse, nothing = _expectation(q, gap, work)
    forward, _ = _expectation(p, gap, work)
    value = _share(reverse, b) - _share(forward, a)
    if wants_gradient:
        inner = _without(gap.sub_(reverse.unsqueeze(-1)), nothing).mul_(b).add_(a)
        q.mul_(inner).sub_(p.mul_(a))
    return value


def _share(value, weight):
    if not isinstance(weight, torch.Tensor):
        return value * weight  # never 0 here
    # A weight of 0 must not meet an infinite divergence.
    weight = weight.squeeze(-1)
    return (value * weight).masked_fill_(weight == 0, 0)


def jsd(student, teacher, work, wants_gradient, *, beta):
    """beta KL(p || m) + (1 - beta) KL(q || m); gradient (1 - beta) q (log(q / m) - KL(q || m))."""
    mixture, scratch = work
    q, p = _probabilities(student), _probabilities(teacher)
    torch.lerp(p, q, 1 - beta, out=mixture)
    to_teacher = torch.div(p, mixture, out=scratch).log_().mul_(p).sum(-1)
    q_log = torch.div(q, mixture, out=scratch).log_().mul_(q)
    to_student = q_log.sum(-1)
    if wants_gradient:
        q.mul_(to_student.unsqueeze(-1))
        torch.sub(q_log, q, out=student).mul_(1 - beta)
    return beta * to_teacher + (1 - beta) * to_student


def skew_forward_kl(student, teacher, work, wants_gradient, *, alpha):
    """KL(p || m), m = alpha p + (1 - alpha) q; g = -(1 - alpha) p q / m."""
    ratio, scratch = work
    q, p = _probabilities(student), _probabilities(teacher)
    torch.div(p, torch.lerp(q, p, alpha, out=ratio), out=ratio)
    value = torch.log(ratio, out=scratch).mul_(p).sum(-1)
    if wants_gradient:
        _centre(q, ratio.mul_(q).mul_(alpha - 1))
    return value


def skew_reverse_kl(student, teacher, work, wants_gradient, *, alpha):
    """KL(q || m), m = (1 - alpha) p + alpha q; g = q (log(q / m) + 1 - alpha q / m)."""
    ratio, scratch = work
    q, p = _probabilities(student), _probabilities(teacher)
    torch.div(q, torch.lerp(p, q, alpha, out=ratio), out=ratio)
    log_ratio = torch.log(ratio, out=scratch)
    value = torch.mul(log_ratio, q, out=teacher).sum(-1)
    if wants_gradient:
        _centre(q, log_ratio.sub_(ratio, alpha=alpha).add_(1).mul_(q))
    return value


def total_variation(student, teacher, work, wants_gradient):
    """sum |q - p| / 2; g = q sign(q - p) / 2."""
    gap = work[0]
    q = torch.softmax(student, -1, out=student)
    torch.sub(q, torch.softmax(teacher, -1, out=teacher), out=gap)
    value = torch.abs(gap, out=work[1]).sum(-1) / 2
    if wants_gradient:
        _centre(q, gap.sign_().mul_(q).mul_(0.5))
    return value


def uld(student, teacher, work, wants_gradient):
    """sum |q - p| of both sorted; g = q sign(q - p), of the p of the same rank."""
    gap, signs = work
    q, order = torch.softmax(student, -1, out=student).sort(dim=-1, descending=True)
    p = torch.softmax(teacher, -1, out=teacher).sort(dim=-1, descending=True).values
    value = torch.sub(q, p, out=gap).abs().sum(-1)
    if wants_gradient:
        signs.scatter_(-1, order, gap.sign_())
        _centre(student, signs.mul_(student))
    return value


def _probabilities(logits):
    # Never 0, so that ratios and their logarithms are finite; the mass added is below V * 1e-38.
    return torch.softmax(logits, -1, out=logits).clamp_min_(torch.finfo(logits.dtype).tiny)


def _log_ratio(student, teacher, work):
    torch.log_softmax(student, -1, out=student)
    torch.log_softmax(teacher, -1, out=teacher)
    return torch.sub(student, teacher, out=work[0])


def _expectation(p, value, work):
    """``sum p value [R]`` with ``0 * inf = 0``, and the mask of p = 0 if it may have mattered."""
    terms = torch.mul(p, value, out=work[1])
    # NaN appears only with logits of -inf. On the CPU a check for it is cheaper than the mask; on
    # an accelerator the check would wait for all queued work.
    if not reading_waits(p):
        mean = terms.sum(-1)
        if not mean.isnan().any():
            return mean, None
    nothing = p == 0
    return terms.masked_fill_(nothing, 0).sum(-1), nothing


def _without(value, nothing):
    return value if nothing is None else value.masked_fill_(nothing, 0)


def _centre(q, g):
    # student holds q: it becomes g - q * sum(g).
    torch.addcmul(g, q, g.sum(-1, keepdim=True), value=-1, out=q)


DIVERGENCES = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
    "jeffreys": jeffreys,
    "adaptive_kl": adaptive_kl,
    "skew_forward_kl": skew_forward_kl,
    "skew_reverse_kl": skew_reverse_kl,
    "total_variation": total_variation,
    "uld": uld,
}
