"""A divergence of two Heads without the ``[N, V]`` matrices: the door, which checks and chooses."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from distilllens.divergence import parameters, reading_waits
from distilllens.head import Head
from distilllens.linear_divergence import chunked, reference
from distilllens.linear_divergence.term import Term

_ENGINES = ("auto", "chunked", "reference", "triton")


def linear_divergence(
    student: Tensor,
    student_head: Head,
    teacher: Tensor,
    teacher_head: Head,
    *,
    divergence: str = "jsd",
    beta: float = 0.5,
    temperature: float = 1.0,
    weight: Tensor | None = None,
    impl: str = "auto",
    chunk_size: int | None = None,
    **params: float,
) -> tuple[Tensor, Tensor]:
    """Divergence, in nats, between the vocabularies that two hidden states speak.

    Equals, for a ``divergence`` of ``distilllens.divergence`` taken with its parameters::

        D = divergence(student_head(student) / temperature, teacher_head(teacher) / temperature)
        return (weight * D).sum(), D.detach()

    without ever holding an ``[N, V]`` matrix: extra memory is at most four ``[chunk_size, V]``
    float32 tiles. Gradients reach ``student``, ``student_head.weight`` and ``student_head.bias``
    only, and are computed in the forward pass, if wanted: ``2 N V (Dt + 3 Ds)`` flops a call.
    Rows are independent: several layer pairs are one call with their rows stacked, weight 1/P each.

    Args:
        student: normed hidden states ``[N, Ds]``.
        student_head: its vocabulary ``[Vs, Ds]``.
        teacher: normed hidden states ``[N, Dt]``; a constant.
        teacher_head: its vocabulary ``[Vt, Dt]``; a constant. If Vs and Vt differ, the shared
            prefix ``min(Vs, Vt)`` is compared, both renormalised over it.
        divergence: a name of ``distilllens.divergence``.
        beta: of ``jsd``, strictly between 0 and 1; other divergences leave it alone.
        temperature: divides both models' (capped) logits.
        weight: ``[N]``, a constant; None is ones.
        impl: "chunked", "reference" (whole matrices), "triton" or "auto"; changes cost, never
            meaning. "triton" is "chunked" with one kernel for what lies between the products, on a
            CUDA device; it is unmeasured on a GPU so far, so "auto" is always "chunked". float64
            and ``adaptive_kl``, which sorts, are compared in torch there too.
        chunk_size: tokens projected at once; None chooses by V, the device and its free memory.
        params: the divergence's other parameters: ``forward_weight`` and ``reverse_weight``,
            ``alpha``, ``mu``.

    Returns:
        The scalar ``sum(weight * D)``, a zero that is connected to the graph if N = 0; and D
        ``[N]`` unweighted, for every row, detached. Models project in their heads' dtype (under
        autocast in autocast's); both results are float32, float64 if either model is.

    Raises:
        ValueError: shapes that do not fit, temperature <= 0, chunk_size < 1, an unknown ``impl`` or
            ``divergence`` (the message lists the known ones), a parameter that the divergence does
            not take or that is out of range, ``impl="triton"`` without the package or off a GPU.

    Source: arXiv 2602.13567; docs/paper.md lists what we changed and why.
    """
    # beta has a default for the sake of jsd; only another value is a mistake elsewhere.
    given = {**params, "beta": beta} if divergence == "jsd" or beta != 0.5 else params
    options = {"temperature": temperature, "weight": weight, **given}
    term = divergence_term(student, teacher, teacher_head, divergence, **options)
    total, (per_token,) = linear_terms(student_head, [term], impl=impl, chunk_size=chunk_size)
    return total, per_token


def linear_cross_entropy(
    student: Tensor,
    student_head: Head,
    labels: Tensor,
    *,
    temperature: float = 1.0,
    weight: Tensor | None = None,
    impl: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy, in nats, of the vocabulary that a hidden state speaks against tokens.

    Equals, without ever holding an ``[N, V]`` matrix::

        D = F.cross_entropy(student_head(student) / temperature, labels, reduction="none")
        return (weight * D).sum(), D.detach()

    Range [0, inf]. ``labels [N]`` are tokens of the head, no ignored index among them; everything
    else is as in ``linear_divergence``, at ``6 N V D`` flops a call; "triton" is "chunked" here.

    Raises:
        ValueError: as ``linear_divergence``, or labels that are not ``[N]`` whole numbers or, on
            the CPU, not from 0 to V - 1. On an accelerator nobody waits to look at them, and a
            label that is no token fails in the device, as in ``F.cross_entropy``.
    """
    term = cross_entropy_term(student, labels, temperature=temperature, weight=weight)
    total, (per_token,) = linear_terms(student_head, [term], impl=impl, chunk_size=chunk_size)
    return total, per_token


def linear_terms(
    student_head: Head,
    terms: list[Term],
    *,
    impl: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """The sum of several terms of one head, whose gradient is built once, and each term's nats.

    Equals ``sum(linear_divergence(...)[0])`` (or ``linear_cross_entropy``) over the terms, with one
    ``[V, Ds]`` gradient in memory instead of one a term.

    Args:
        terms: at least one, of ``divergence_term`` or ``cross_entropy_term``.

    Returns:
        The scalar sum, connected to the graph; and for each term D ``[N]``, unweighted, detached.

    Raises:
        ValueError: as ``linear_divergence``.
    """
    device = terms[0].student.device.type
    for term in terms:
        _check_rows("student", term.student, student_head)
        _check_labels(term, student_head)
    dtype = _projected_in(device, student_head)
    student_head = _head_in(dtype, student_head)
    terms = [_term_in(dtype, term) for term in terms]
    options = _options(impl, chunk_size)
    if impl == "triton":
        options["comparison"] = _kernel(terms[0].student.device).comparison
    engine = reference if impl == "reference" else chunked
    with _outside_autocast(device):
        return engine.evaluate(student_head, terms, **options)


def divergence_term(
    student: Tensor,
    teacher: Tensor,
    teacher_head: Head,
    divergence: str,
    *,
    temperature: float = 1.0,
    weight: Tensor | None = None,
    **params: float,
) -> Term:
    """A term of ``linear_terms``: a divergence from a teacher; arguments as ``linear_divergence``.

    Raises:
        ValueError: as ``linear_divergence``.
    """
    params = parameters(divergence, params)
    _check_matrix("student", student)
    _check_rows("teacher", teacher, teacher_head)
    if len(student) != len(teacher):
        raise ValueError(
            f"student and teacher must have the same number of rows, got {len(student)} and "
            f"{len(teacher)}"
        )
    return Term(
        student=student,
        weight=_checked_weight(weight, student),
        temperature=_checked_temperature(temperature),
        teacher=teacher,
        teacher_head=teacher_head,
        name=divergence,
        params=params,
    )


def cross_entropy_term(
    student: Tensor, labels: Tensor, *, temperature: float = 1.0, weight: Tensor | None = None
) -> Term:
    """A term of ``linear_terms``: the cross-entropy; arguments as ``linear_cross_entropy``.

    Raises:
        ValueError: as ``linear_cross_entropy``.
    """
    _check_matrix("student", student)
    return Term(
        student=student,
        weight=_checked_weight(weight, student),
        temperature=_checked_temperature(temperature),
        labels=labels,
    )


def _options(impl, chunk_size):
    if impl not in _ENGINES:
        raise ValueError(f"unknown impl {impl!r}; known: {', '.join(_ENGINES)}")
    if chunk_size is not None and (not isinstance(chunk_size, int) or chunk_size < 1):
        raise ValueError(f"chunk_size must be a whole number of at least 1, got {chunk_size!r}")
    return {} if impl == "reference" else {"chunk_size": chunk_size}


def _kernel(device):
    """The module of the kernel, which loads Triton, if it can run on ``device``."""
    try:
        from distilllens.linear_divergence import triton_rows
    except ImportError as error:
        raise ValueError(
            "impl 'triton' needs the package triton (pip install triton; there is one for Linux); "
            "'chunked' needs nothing"
        ) from error
    if reason := triton_rows.why_not(device):
        raise ValueError(f"impl 'triton' cannot be taken: {reason}; 'chunked' runs anywhere")
    return triton_rows


def _check_matrix(who, hidden):
    if hidden.ndim != 2:
        raise ValueError(f"{who} must be [N, D], got shape {list(hidden.shape)}")


def _check_rows(who, hidden, head):
    _check_matrix(who, hidden)
    if hidden.shape[1] != head.weight.shape[1]:
        raise ValueError(
            f"{who} has width {hidden.shape[1]}, but its head reads width {head.weight.shape[1]}"
        )


def _check_labels(term, head):
    labels, student = term.labels, term.student
    if labels is None:
        return
    if labels.shape != student.shape[:1] or labels.dtype.is_floating_point:
        raise ValueError(
            f"labels must be [{len(student)}] whole numbers like the student's rows, got "
            f"{labels.dtype} of shape {list(labels.shape)}"
        )
    if labels.numel() == 0 or reading_waits(labels):
        return
    if not 0 <= labels.min() <= labels.max() < head.vocab_size:
        raise ValueError(
            f"labels must be tokens from 0 to {head.vocab_size - 1}, got {labels.min().item()} to "
            f"{labels.max().item()}; leave rows without a label out of the call"
        )


def _checked_temperature(temperature):
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be finite and above 0, got {temperature}")
    return float(temperature)


def _checked_weight(weight, student):
    dtype = torch.promote_types(student.dtype, torch.float32)
    if weight is None:
        return student.new_ones(len(student), dtype=dtype)
    if weight.shape != student.shape[:1]:
        raise ValueError(
            f"weight must be [{len(student)}] like the student's rows, got shape "
            f"{list(weight.shape)}"
        )
    return weight.detach().to(student.device, dtype)


def _projected_in(device, head):
    """The dtype that a model's own head would project in."""
    dtype = head.weight.dtype
    if _knows_autocast(device) and torch.is_autocast_enabled(device) and dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return dtype


def _head_in(dtype, head):
    bias = None if head.bias is None else head.bias.to(dtype)
    return replace(head, weight=head.weight.to(dtype), bias=bias)


def _term_in(dtype, term):
    """The term with the student's states in its head's dtype, the teacher's in that of its own."""
    student = term.student.to(dtype)
    if term.labels is not None:
        return replace(term, student=student)
    with torch.no_grad():
        dtype = _projected_in(term.teacher.device.type, term.teacher_head)
        head = _head_in(dtype, term.teacher_head)
        return replace(term, student=student, teacher=term.teacher.to(dtype), teacher_head=head)


def _outside_autocast(device):
    return torch.autocast(device, enabled=False) if _knows_autocast(device) else nullcontext()


def _knows_autocast(device):
    return torch.amp.is_autocast_available(device)  # "meta" does not
