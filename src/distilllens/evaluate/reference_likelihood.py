"""Teacher forcing: the likelihood of references under a student, token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from distilllens.data import encode_examples
from distilllens.divergence import divergence
from distilllens.evaluate.calibration import Calibration
from distilllens.lens import LogitLens, capture
from distilllens.lens.probe import accepts, logits_of, undisturbed, without_cache
from distilllens.loading import positions_of

# Elements of one tile of logits in float32, 64 MiB; a few tiles exist at once.
_TILE = 2**24
# Elements of the logits of a batch for models that can only return all of them.
_WHOLE = 2**26


@dataclass(frozen=True)
class ReferenceLikelihood:
    """The likelihood of one reference under the student.

    Args:
        nll: negative log-likelihood in nats, summed over the reference's tokens, the
            end-of-sequence token included, under the student's full vocabulary; 0 to inf.
        num_tokens: the number of these tokens.
        kl: KL(teacher ‖ student) in nats, summed over the same positions, 0 to inf. If the
            vocabularies differ in size, both are renormalised over their shared prefix. None
            without a teacher, or if the example exceeds the teacher's context.
        teacher_nll: as ``nll``, under the teacher and its full vocabulary; None where ``kl`` is.
    """

    nll: float
    num_tokens: int
    kl: float | None
    teacher_nll: float | None = None


@torch.no_grad()
def reference_likelihoods(
    student,
    tokenizer,
    examples: Sequence[Mapping],
    *,
    teacher=None,
    batch_tokens: int = 4096,
    names: Sequence[str] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> tuple[list[ReferenceLikelihood], Calibration]:
    """The ``ReferenceLikelihood`` of every example, in order, and the student's calibration.

    The tokens are those of training: ``sum(nll) / sum(num_tokens)`` equals the trainer's
    ``eval_cross_entropy`` on the same records, and ``sum(kl) / sum(num_tokens)`` its
    ``eval_output_loss`` with ``forward_kl``. Examples are truncated to the student's context, as by
    ``max_length`` in training; those that then exceed the teacher's context have no KL.

    Models that the lens reads in mode "closed" never build the logits ``[B, T, V]`` of a batch; any
    other model runs a plain forward, in smaller batches. Models are left unchanged.

    Args:
        student, teacher: causal LMs whose tokenizers give every token the same id; devices and
            vocabulary sizes may differ.
        examples: of ``to_training_examples``: ``{"prompt": str, "completion": str}``, or both lists
            of messages, which may come with ``tools`` and ``chat_template_kwargs``.
        batch_tokens: maximum number of positions in a batch, padding included, but at least one
            row. Affects the cost, and results only by rounding.
        names: names of the examples in messages; by default "example 0" and so on.
        progress: called with (examples done, all examples) after each batch.

    Raises:
        ValueError: the tokenizer has no end-of-sequence token, batch_tokens < 1, a prompt fills
            the student's context, a token has no embedding, or logits are NaN.
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens must be at least 1, got {batch_tokens}")
    names = [f"example {i}" for i in range(len(examples))] if names is None else names
    rows = encode_references(examples, tokenizer, names, positions_of(student.config))
    readers = [_Reader("student", student)]
    if teacher is not None:
        readers.append(_Reader("teacher", teacher))
    for reader in readers:
        reader.check(rows, names)
    likelihoods, calibration = {}, Calibration()
    batch_tokens = min(batch_tokens, *(reader.most_tokens for reader in readers))
    with ExitStack() as stack:
        for reader in readers:
            stack.enter_context(undisturbed(reader.model))
        for batch, reading in _plan(rows, readers, batch_tokens):
            tokens = _measured(reading, [rows[i] for i in batch], tokenizer.eos_token_id)
            counts = [_num_tokens(*rows[i]) for i in batch]
            _check_numbers(tokens, [names[i] for i in batch], counts)
            likelihoods |= zip(batch, _likelihoods_of(tokens, counts), strict=True)
            calibration = calibration.add(tokens["confidence"], tokens["correct"])
            if progress is not None:
                progress(len(likelihoods), len(rows))
    return [likelihoods[i] for i in range(len(rows))], calibration


def encode_references(
    examples: Sequence[Mapping], tokenizer, names: Sequence[str], longest: int | None
) -> list[tuple[list[int], int]]:
    """``(ids, first)`` of each example: its tokens in the context, and where its reference begins.

    Args:
        examples: of ``to_training_examples``.
        names: of the examples, for messages.
        longest: the number of positions of the context; None for any.

    Raises:
        ValueError: the tokenizer has no end-of-sequence token, or a prompt fills the context.
    """
    if tokenizer.eos_token is None:
        raise ValueError("the tokenizer has no end-of-sequence token, so no reference has an end")
    rows = encode_examples(examples, tokenizer, names, longest)
    for name, row in zip(names, rows, strict=True):
        if _num_tokens(*row) <= 0:
            raise ValueError(
                f"{name}: the prompt fills the {longest} positions of the context, so nothing of "
                f"its reference is left; leave it out, as by --max_prompt_length {longest - 1}"
            )
    return rows


def _plan(rows, readers, batch_tokens):
    """``(examples, readers)`` of each batch; examples too long for the teacher are read without."""
    lengths = [len(ids) for ids, _ in rows]
    longest = positions_of(readers[-1].model.config) or max(lengths, default=0)
    for fits in (True, False):
        chosen = [i for i, length in enumerate(lengths) if (length <= longest) == fits]
        for batch in _batches([lengths[i] for i in chosen], batch_tokens):
            yield [chosen[i] for i in batch], readers if fits else readers[:1]


def _num_tokens(ids, start):
    """The number of predicted tokens; nothing predicts the first token of a text."""
    return len(ids) - max(start, 1)


def _batches(lengths, batch_tokens) -> Iterator[list[int]]:
    """Examples by decreasing length, in batches of at most ``batch_tokens`` positions."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        count = max(1, batch_tokens // lengths[order[0]])
        yield order[:count]
        order = order[count:]


def _measured(readers, rows, filler) -> dict[str, Tensor]:
    """The quantities of each of the N predicted tokens of a batch, ``[N]`` on the CPU, by row."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), width), filler)
    seen, predicts = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for row, (tokens, start) in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        seen[row, : len(tokens)] = 1
        predicts[row, max(start, 1) - 1 : len(tokens) - 1] = True
    labels = ids[:, 1:][predicts[:, :-1]]
    size = max(1, _TILE // max(reader.vocab_size for reader in readers))
    chunks = [reader.logits(ids, seen, predicts, size) for reader in readers]
    parts = [_compared(*part) for part in zip(labels.split(size), *chunks, strict=True)]
    return {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}


def _compared(labels, student, teacher=None):
    """The quantities of a chunk: labels ``[n]``, logits ``[n, V]`` of student and teacher."""
    logits = student.to(torch.promote_types(student.dtype, torch.float32))
    labels = labels.to(logits.device)
    norm, (largest, best) = logits.logsumexp(-1), logits.max(-1)
    tokens = {
        "nll": norm - _at(logits, labels),
        "confidence": (largest - norm).exp(),
        "correct": best == labels,
    }
    if teacher is not None:
        shared = min(logits.shape[-1], teacher.shape[-1])
        theirs = teacher[:, :shared].to(logits.device)
        tokens["kl"] = divergence("forward_kl")(logits[:, :shared], theirs)
        teacher = teacher.to(torch.promote_types(teacher.dtype, torch.float32))
        tokens["teacher_nll"] = teacher.logsumexp(-1) - _at(teacher, labels.to(teacher.device))
    return tokens


def _at(logits, labels):
    return logits.gather(-1, labels[:, None])[:, 0]


def _check_numbers(tokens, names, counts):
    for who, term in (("student", "nll"), ("teacher", "kl")):
        for name, nats in zip(names, tokens.get(term, tokens["nll"]).split(counts), strict=True):
            if nats.isnan().any():
                raise ValueError(f"{name}: the {who}'s logits are NaN; its weights are broken")


def _likelihoods_of(tokens, counts):
    nll, kl, teacher_nll = (
        _sums(tokens[name], counts) if name in tokens else [None] * len(counts)
        for name in ("nll", "kl", "teacher_nll")
    )
    return [ReferenceLikelihood(*row) for row in zip(nll, counts, kl, teacher_nll, strict=True)]


def _sums(values, counts):
    return [float(part.sum()) for part in values.double().split(counts)]


class _Reader:
    """A source of a model's logits at chosen positions, through its lens if that is exact."""

    def __init__(self, who: str, model):
        self.who, self.model = who, model
        self.vocab_size = model.get_input_embeddings().weight.shape[0]
        try:
            lens = LogitLens(model)
            lens.require_closed("rows of logits")
            self._lens = lens if lens.anatomy.batch_first else None
        except ValueError:
            self._lens = None

    @property
    def most_tokens(self) -> int:
        """The maximum number of positions of one forward."""
        return 2**62 if self._lens else max(1, _WHOLE // self.vocab_size)

    def check(self, rows, names):
        """Refuse tokens without an embedding.

        Raises:
            ValueError: an example has such a token.
        """
        for name, (ids, _) in zip(names, rows, strict=True):
            if max(ids) >= self.vocab_size:
                raise ValueError(
                    f"{name} has token {max(ids)}, but the {self.who} has only {self.vocab_size} "
                    "embeddings: the tokenizer is another model's"
                )

    def logits(self, ids, seen, chosen, size) -> Iterator[Tensor]:
        """Logits ``[n, V]`` at the chosen positions of a batch ``[B, T]``, ``size`` at a time."""
        model = self.model if self._lens is None else self._lens.model
        device = self.model.get_input_embeddings().weight.device
        inputs = {"input_ids": ids.to(device)}
        if accepts(model, "attention_mask"):
            inputs["attention_mask"] = seen.to(device)
        inputs = without_cache(model, inputs)
        if self._lens is None:
            # The last T positions: prompt tuning adds virtual tokens in front.
            logits = logits_of(model(**inputs))[:, -ids.shape[1] :]
            yield from logits[chosen.to(logits.device)].split(size)
            return
        state = capture(self._lens, [self._lens.num_layers], **inputs)[self._lens.num_layers]
        rows = self._lens.normalize(state)[chosen.to(state.device)]
        for part in rows.split(size):
            yield self._lens.logits(part, normalize=False)
