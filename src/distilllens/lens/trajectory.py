"""Predictions of a model at each depth, and the divergence of two models by depth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from distilllens.lens.capture import capture, with_decoder_inputs
from distilllens.lens.kind import check_same_kind
from distilllens.lens.logit_lens import LogitLens
from distilllens.lens.probe import input_name
from distilllens.targets import IGNORED, Targets


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Predictions at each depth: of the next token, or what else the model's logits are.

    Of an encoder-decoder ``[B, T]`` are the positions of its decoder; of an image classifier there
    is one prediction for each of B images, ``[K, B, top_k]``, and no T.

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
        model: a model or its LogitLens.
        depths: default: all, 0 to L.
        inputs: ``input_ids [B, T]`` and any other inputs of the model, as ``capture`` takes them.

    Raises:
        ValueError: a depth outside 0..L; top_k outside 1..V; a model that the lens cannot read.

    Source: the logit lens, nostalgebraist 2020.
    """
    lens = model if isinstance(model, LogitLens) else LogitLens(model)
    depths = tuple(range(lens.num_layers + 1)) if depths is None else tuple(depths)
    if input_name(lens.model) == "decoder_input_ids":
        inputs = with_decoder_inputs(lens.model, inputs.pop("labels", None), inputs)
    layer_states = capture(lens, depths, **inputs)
    every = torch.ones(_shape(lens, inputs), dtype=torch.bool)
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
    is not -100, at ``chunk_size`` positions at a time. Models that are not causal are compared
    where their labels lie: bidirectional ones and encoder-decoders at the position itself, image
    classifiers at each image. If the vocabularies differ in size, their
    shared prefix is compared; the rest is cut off before the softmax.

    Args:
        student, teacher: models or their LogitLenses.
        pairs: (student depth, teacher depth), such as a LayerMap.
        divergence: ``([N, V], [N, V]) -> [N]``, the student first (``distilllens.divergence``).
        labels: ``[B, T]``, not shifted; default: ``input_ids`` where ``attention_mask`` is not 0
            (of an encoder-decoder, its decoder's).
        inputs: of both models, such as ``input_ids [B, T]``.

    Raises:
        ValueError: a depth outside 0..L, no position to compare, or models that predict different
            things.
    """
    student, teacher = (m if isinstance(m, LogitLens) else LogitLens(m) for m in (student, teacher))
    pairs = tuple((int(s), int(t)) for s, t in pairs)
    check_same_kind(student, teacher)
    if student.kind == "encoder-decoder":
        inputs = with_decoder_inputs(student.model, labels, inputs)
    valid = _valid(student, labels, inputs)
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


def _shape(lens, inputs):
    """The shape of a model's predictions: ``[B, T]``, or ``[B]`` of images."""
    name = input_name(lens.model)
    if name == "pixel_values":
        return inputs[name].shape[:1]
    if inputs.get(name) is None:
        return inputs[name.replace("input_ids", "inputs_embeds")].shape[:2]
    return inputs[name].shape


def _valid(lens, labels, inputs):
    """Mask of the predictions to compare: ``[B, T]``, or ``[B]`` of images."""
    if labels is not None:
        return Targets.of(labels.cpu()).mask if lens.kind == "causal" else labels.cpu() != IGNORED
    valid = torch.ones(_shape(lens, inputs), dtype=torch.bool)
    name = input_name(lens.model).replace("input_ids", "attention_mask")
    if lens.kind != "images" and inputs.get(name) is not None:
        valid = inputs[name].cpu() != 0
    if lens.kind == "causal":  # a position, and the token after it
        valid[:, :-1] &= valid[:, 1:].clone()
        valid[:, -1] = False
    return valid


def _logits_in_chunks(lens, depth, states, mask, chunk_size):
    """Logits ``[n, V]`` of the masked positions of the state at a depth, a chunk at a time."""
    state = lens.translate(depth, states[depth])
    if not lens.reads_rows:
        yield from lens.logits(state)[mask.to(state.device)].split(chunk_size)
        return
    for rows in lens.normalize(state)[mask.to(state.device)].split(chunk_size):
        yield lens.logits(rows, normalize=False)
