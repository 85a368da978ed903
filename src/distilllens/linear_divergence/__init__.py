"""A divergence of two Heads without the ``[N, V]`` matrices: checks, and the choice of engine."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from distilllens.divergence import parameters, reading_waits
from distilllens.head import Head, MixedHead
from distilllens.linear_divergence import chunked, reference
from distilllens.linear_divergence.precision import (
    head_in,
    outside_autocast,
    projecting_head,
    projection_dtype,
    term_in,
)
from distilllens.linear_divergence.term import Term, check_matrix, check_rows, checked_teacher
from distilllens.top_predictions import TopPredictions
from distilllens.vocabularies import Vocabularies

_ENGINES = ("auto", "chunked", "reference", "triton")
_broken = set()  # devices on which "auto" no longer tries the Triton kernel


def linear_divergence(
    student: Tensor,
    student_head: Head,
    teacher: Tensor | Sequence[Tensor] | TopPredictions,
    teacher_head: Head | MixedHead | None,
    *,
    divergence: str = "jsd",
    beta: float = 0.5,
    temperature: float = 1.0,
    weight: Tensor | None = None,
    vocabularies: Vocabularies | None = None,
    impl: str = "auto",
    chunk_size: int | None = None,
    **params: float,
) -> tuple[Tensor, Tensor]:
    """Divergence, in nats, between the next-token distributions of two hidden states.

    Equals, for a ``divergence`` of ``distilllens.divergence`` with its parameters::

        D = divergence(student_head(student) / temperature, teacher_head(teacher) / temperature)
        return (weight * D).sum(), D.detach()

    without ever holding an ``[N, V]`` matrix: extra memory is at most four ``[chunk_size, V]``
    float32 tiles. Gradients reach only ``student``, ``student_head.weight`` and
    ``student_head.bias``. They are computed in the forward pass if one of these requires them:
    ``2 N V (Dt + 3 Ds)`` flops per call. Rows are independent, so several layer pairs can be one
    call: their rows stacked, with weight 1/P each.

    Args:
        student: normed hidden states ``[N, Ds]``.
        student_head: ``[Vs, Ds]``.
        teacher: normed hidden states ``[N, Dt]``; a constant.
        teacher_head: ``[Vt, Dt]``; a constant. If Vs and Vt differ, both distributions are
            restricted to the first ``min(Vs, Vt)`` tokens and renormalised. For a mixture of
            teachers, ``teacher`` has the states of each and this is a ``MixedHead``; each teacher
            is divided by the temperature, restricted and renormalised before they are mixed.
            For ``TopPredictions`` it is None, and the temperature must be 1. Both are compared in
            torch.
        divergence: a name of ``distilllens.divergence``.
        beta: of ``jsd``, strictly between 0 and 1; other divergences do not use it.
        temperature: divides both models' (capped) logits.
        weight: ``[N]``, a constant; None is ones.
        vocabularies: of models with two tokenizers; then what ``Vocabularies.sides`` folds the
            logits to is compared instead of the first tokens, in torch.
        impl: "chunked", "reference" (whole matrices), "triton" or "auto"; changes the cost, never
            the meaning. "triton" is "chunked" with one Triton kernel between the matrix products,
            on a CUDA device; float64, ``adaptive_kl`` (which sorts) and labels are still compared
            in torch. "auto" is "triton" on NVIDIA GPUs of compute capability 8.0 or above (measured
            on 9.0) if the package is installed, else "chunked". If the kernel does not compile
            there, "auto" warns once and continues with "chunked".
        chunk_size: tokens projected at once; None chooses by V, the device and its free memory.
        params: the divergence's other parameters: ``forward_weight`` and ``reverse_weight``,
            ``alpha``, ``mu``.

    Returns:
        The scalar ``sum(weight * D)`` (if N = 0, a zero that is still connected to the graph), and
        D ``[N]``, unweighted and detached. Models project in their heads' dtype (under autocast in
        autocast's); both results are float32, or float64 if either model is.

    Raises:
        ValueError: shapes that do not match, temperature <= 0, chunk_size < 1, an unknown ``impl``
            or ``divergence`` (the message lists the known ones), a parameter that the divergence
            does not take or that is out of range, ``impl="triton"`` without the package or a GPU.
        RuntimeError: ``impl="triton"`` whose kernel does not compile.

    Source: arXiv 2602.13567; docs/paper.md lists what we changed and why.
    """
    # beta has a default because of jsd; for other divergences only another value is an error.
    given = {**params, "beta": beta} if divergence == "jsd" or beta != 0.5 else params
    options = {"temperature": temperature, "weight": weight, "vocabularies": vocabularies}
    term = divergence_term(student, teacher, teacher_head, divergence, **options, **given)
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
    """Cross-entropy, in nats, of labels under the next-token distribution of a hidden state.

    Equals, without ever holding an ``[N, V]`` matrix::

        D = F.cross_entropy(student_head(student) / temperature, labels, reduction="none")
        return (weight * D).sum(), D.detach()

    Range [0, inf]. ``labels [N]`` are tokens of the head without an ignored index; everything else
    is as in ``linear_divergence``, at ``6 N V D`` flops per call; "triton" equals "chunked" here.

    Raises:
        ValueError: as ``linear_divergence``, or labels that are not ``[N]`` whole numbers or, on
            the CPU, not from 0 to V - 1. On an accelerator the values are not checked, because
            reading them would wait for the device; there an invalid label fails as it does in
            ``F.cross_entropy``.
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
    """The sum of several terms with the same student head, and the nats of each term.

    Equals ``sum(linear_divergence(...)[0])`` (or ``linear_cross_entropy``) over the terms, with one
    ``[V, Ds]`` gradient in memory instead of one per term.

    Args:
        terms: at least one, from ``divergence_term`` or ``cross_entropy_term``.

    Returns:
        The scalar sum, connected to the graph; and for each term D ``[N]``, unweighted, detached.

    Raises:
        ValueError, RuntimeError: as ``linear_divergence``.
    """
    _check_options(impl, chunk_size)
    device = terms[0].student.device
    for term in terms:
        check_rows("student", term.student, student_head)
        _check_labels(term, student_head)
    dtype = projection_dtype(device.type, student_head)
    student_head = head_in(dtype, student_head)
    cast = functools.cache(projecting_head)  # terms of one teacher share one cast of its head
    terms = [term_in(dtype, term, cast) for term in terms]
    kernel = _kernel(impl, device)
    with outside_autocast(device.type):
        if impl == "reference":
            return reference.evaluate(student_head, terms)
        options = {"chunk_size": chunk_size}
        if kernel is None:
            return chunked.evaluate(student_head, terms, **options)
        try:
            return chunked.evaluate(student_head, terms, **options, comparison=kernel.comparison)
        except kernel.KernelError as error:
            if impl == "triton":
                raise
            _broken.add(device)
            warnings.warn(f"{error}; continuing without it", RuntimeWarning, stacklevel=2)
        return chunked.evaluate(student_head, terms, **options)


def divergence_term(
    student: Tensor,
    teacher: Tensor | Sequence[Tensor] | TopPredictions,
    teacher_head: Head | MixedHead | None,
    divergence: str,
    *,
    temperature: float = 1.0,
    weight: Tensor | None = None,
    vocabularies: Vocabularies | None = None,
    **params: float,
) -> Term:
    """A term of ``linear_terms``: a divergence from a teacher. Arguments as ``linear_divergence``.

    Raises:
        ValueError: as ``linear_divergence``.
    """
    params = parameters(divergence, params)
    check_matrix("student", student)
    teacher, teacher_head = checked_teacher(teacher, teacher_head, vocabularies, temperature)
    for rows in teacher if isinstance(teacher, tuple) else (teacher,):
        if len(student) != len(rows):
            raise ValueError(
                f"student and teacher must have the same number of rows, got {len(student)} and "
                f"{len(rows)}"
            )
    return Term(
        student=student,
        weight=_checked_weight(weight, student),
        temperature=_checked_temperature(temperature),
        teacher=teacher,
        teacher_head=teacher_head,
        name=divergence,
        params=params,
        vocabularies=vocabularies,
    )


def cross_entropy_term(
    student: Tensor,
    labels: Tensor,
    *,
    temperature: float = 1.0,
    weight: Tensor | None = None,
    seen: Tensor | None = None,
) -> Term:
    """A term of ``linear_terms``: the cross-entropy. Arguments as ``linear_cross_entropy``.

    ``seen`` is as in ``Term``.

    Raises:
        ValueError: as ``linear_cross_entropy``.
    """
    check_matrix("student", student)
    return Term(
        student=student,
        weight=_checked_weight(weight, student),
        temperature=_checked_temperature(temperature),
        labels=labels,
        seen=seen,
    )


def _check_options(impl, chunk_size):
    if impl not in _ENGINES:
        raise ValueError(f"unknown impl {impl!r}; known: {', '.join(_ENGINES)}")
    if chunk_size is not None and (not isinstance(chunk_size, int) or chunk_size < 1):
        raise ValueError(f"chunk_size must be a whole number of at least 1, got {chunk_size!r}")


def _kernel(impl, device):
    """The module of the Triton kernel, or None where torch compares; importing it loads Triton."""
    if impl == "triton":
        try:
            from distilllens.linear_divergence import triton_rows
        except ImportError as error:
            raise ValueError(
                "impl 'triton' needs the package triton (pip install triton; Linux only); "
                "'chunked' needs no package"
            ) from error
        if reason := triton_rows.why_not(device):
            raise ValueError(f"impl 'triton' {reason}; 'chunked' runs on every device")
        return triton_rows
    if impl != "auto" or device in _broken or not _is_faster_with_kernel(device):
        return None
    try:
        from distilllens.linear_divergence import triton_rows
    except Exception:  # a broken installation raises more than ImportError
        return None
    return triton_rows


def _is_faster_with_kernel(device):
    # Measured on capability 9.0. AMD's GPUs are "cuda" devices too, and are not measured.
    nvidia = device.type == "cuda" and torch.version.hip is None
    return nvidia and torch.cuda.get_device_capability(device) >= (8, 0)


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
