"""Predictions of a model at each depth, and the divergence of two models by depth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from distilllens.lens.capture import capture
from distilllens.lens.logit_lens import LogitLens
from distilllens.targets import Targets


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Predictions of the next token at each depth.

    Args:
        depths: K depths, 0 = embeddings.
        tokens: the top_k most likely tokens ``[K, B, T, top_k]``, in descending order.
        probabilities: of these tokens, ``[K, B, T, top_k]``.
        entropy: of the whole distribution, in nats, 0 to log V, ``[K, B, T]``.
    """

    depths: tuple[int, ...]
    tokens: Tensor
    probabilities: Tensor
    entropy: Tensor


@dataclass(frozen=True)
class DepthDivergence:
    """Two models compared at pairs of depths.

    Args:
        pairs: K pairs (student depth, teacher depth).
        means: divergence in nats at each pair, averaged over ``num_tokens`` positions.
        num_tokens: the number of positions compared.
    """

    pairs: tuple[tuple[int, int], ...]
    means: tuple[float, ...]
    num_tokens: int


@torch.no_grad()
def trajectory(model, *, depths=None, top_k: int = 5, chunk_size: int = 512, **inputs):
    """The most likely next tokens and the entropy at each depth, as a ``Trajectory``.

    Equals ``softmax(lens.logits(states[d]))`` sorted, at ``chunk_size`` positions at a time.

    Args:
        model: a causal LM or its LogitLens.
        depths: default: all, 0 to L.
        inputs: ``input_ids [B, T]`` and any other inputs of the model.

    Raises:
        ValueError: a depth outside 0..L; top_k outside 1..V; a model that the lens cannot read.

    Source: the logit lens, nostalgebraist 2020.
    """
    lens = model if isinstance(model, LogitLens) else LogitLens(model)
    depths = tuple(range(lens.num_layers + 1)) if depths is None else tuple(depths)
    layer_states = capture(lens, depths, **inputs)
    every = torch.ones(_shape(inputs), dtype=torch.bool)
    found = []
    for depth in depths:
        parts = []
        for logits in _logits_in_chunks(lens, depth, layer_states, every, chunk_size):
            parts.append(most_likely(logits.float().log_softmax(-1), top_k))
        found.append([torch.cat(column) for column in zip(*parts, strict=True)])
    tokens, probabilities, entropy = (torch.stack(c) for c in zip(*found, strict=True))
    shape = (len(depths), *every.shape)
    return Trajectory(
        depths,
        tokens.view(*shape, top_k),
        probabilities.view(*shape, top_k),
        entropy.view(shape),
    )


@torch.no_grad()
def divergence_by_depth(
    student,
    teacher,
    pairs,
    *,
    divergence: Callable[[Tensor, Tensor], Tensor],
    labels: Tensor | None = None,
    chunk_size: int = 512,
    **inputs,
) -> DepthDivergence:
    """The mean divergence, in nats, of two models at pairs of depths, on one batch.

    Equals ``divergence(student_logits, teacher_logits).mean()`` over the positions whose next label
    is not -100, at ``chunk_size`` positions at a time. If the vocabularies differ in size, their
    shared prefix is compared; the rest is cut off before the softmax.

    Args:
        student, teacher: causal LMs or their LogitLenses.
        pairs: (student depth, teacher depth), such as a LayerMap.
        divergence: ``([N, V], [N, V]) -> [N]``, the student first (``distilllens.divergence``).
        labels: ``[B, T]``, not shifted; default: ``input_ids`` where ``attention_mask`` is not 0.
        inputs: of both models, including ``input_ids [B, T]``.

    Raises:
        ValueError: a depth outside 0..L, or no position to compare.
    """
    student, teacher = (m if isinstance(m, LogitLens) else LogitLens(m) for m in (student, teacher))
    pairs = tuple((int(s), int(t)) for s, t in pairs)
    valid = _valid(labels, inputs)
    count = int(valid.sum())
    if count == 0:
        raise ValueError("no position to compare: every next label is -100 or masked")
    student_states = capture(student, [s for s, _ in pairs], **inputs)
    teacher_states = capture(teacher, [t for _, t in pairs], **inputs)
    means = []
    for s, t in pairs:
        total = 0.0
        for ours, theirs in zip(
            _logits_in_chunks(student, s, student_states, valid, chunk_size),
            _logits_in_chunks(teacher, t, teacher_states, valid, chunk_size),
            strict=True,
        ):
            shared = min(ours.shape[-1], theirs.shape[-1])
            theirs = theirs[..., :shared].to(ours.device)
            total += float(divergence(ours[..., :shared].float(), theirs.float()).double().sum())
        means.append(total / count)
    return DepthDivergence(pairs, tuple(means), count)


def most_likely(log_p: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The top k tokens ``[..., k]``, their probabilities, and the entropy ``[...]`` in nats.

    Args:
        log_p: log-probabilities ``[..., V]``.

    Raises:
        ValueError: top_k outside 1..V.
    """
    if not 1 <= top_k <= log_p.shape[-1]:
        raise ValueError(f"top_k must be 1 to {log_p.shape[-1]}, got {top_k}")
    best = log_p.topk(top_k)
    return best.indices, best.values.exp(), torch.special.entr(log_p.exp()).sum(-1)


def _shape(inputs):
    given = inputs.get("input_ids")
    given = inputs["inputs_embeds"][..., 0] if given is None else given
    return given.shape


def _valid(labels, inputs):
    """Mask ``[B, T]`` of the positions that predict a label; never the last position."""
    if labels is not None:
        return Targets.of(labels.cpu()).mask
    valid = torch.zeros(_shape(inputs), dtype=torch.bool)
    if inputs.get("attention_mask") is not None:
        mask = inputs["attention_mask"].cpu() != 0
        valid[:, :-1] = mask[:, 1:] & mask[:, :-1]
    else:
        valid[:, :-1] = True
    return valid


def _logits_in_chunks(lens, depth, states, mask, chunk_size):
    """Logits ``[n, V]`` of the masked positions of the state at a depth, a chunk at a time."""
    state = lens.translate(depth, states[depth])
    if lens.mode == "stub":  # reads streams only in the model's own shape
        yield from lens.logits(state)[mask.to(state.device)].split(chunk_size)
        return
    for rows in lens.normalize(state)[mask.to(state.device)].split(chunk_size):
        yield lens.logits(rows, normalize=False)
