"""Teacher forcing: what a student says, token by token, of the references of a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from distilllens.data import encode_example
from distilllens.divergence import divergence
from distilllens.evaluate.calibration import Calibration
from distilllens.lens import LogitLens, capture
from distilllens.lens.probe import accepts, logits_of, undisturbed, without_cache
from distilllens.loading import positions_of

# Elements of one tile of logits in float32, of which a few live at once: 64 MiB each.
_TILE = 2**24
# Elements of the whole logits of a batch, where a model gives no others.
_WHOLE = 2**26


@dataclass(frozen=True)
class ReferenceLikelihood:
    """One reference, read by the student token by token.

    Args:
        nll: negative log-likelihood in nats, summed over the reference's tokens, the end of
            sequence among them; over the student's own vocabulary; 0 to inf.
        num_tokens: how many these are.
        kl: KL(teacher ‖ student) in nats, summed over the same positions, 0 to inf; of vocabularies
            of unequal size the shared prefix is compared, both renormalised over it. None without a
            teacher, or where the example is beyond its context.
    """

    nll: float
    num_tokens: int
    kl: float | None


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

    What lies beyond the student's context is cut off, as ``max_length`` does in training; what
    is then beyond the teacher's has no KL.
    The tokens are those of training: ``sum(nll) / sum(num_tokens)`` equals the trainer's
    ``eval_cross_entropy`` on the same records, and ``sum(kl) / sum(num_tokens)`` its
    ``eval_output_loss`` with ``forward_kl``. The logits ``[B, T, V]`` of a batch are not built
    where the lens can read the model in mode "closed"; any other model runs as it is, in smaller
    batches. Models come back as they were.

    Args:
        student, teacher: causal LMs whose tokenizers number tokens alike; devices and sizes of
            vocabulary may differ.
        examples: ``{"prompt": str, "completion": str}``, as ``format_instruction`` gives them, or
            both lists of messages.
        batch_tokens: positions of a batch, padding included, but at least one row. Changes cost,
            and results by rounding only.
        names: what messages call the examples; default "example 0" and so on.
        progress: called with (examples done, all examples) after each batch.

    Raises:
        ValueError: a tokenizer without an end of sequence, batch_tokens < 1, a prompt that fills
            the student's context, tokens that it does not know, logits that are NaN.
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens must be at least 1, got {batch_tokens}")
    names = [f"example {i}" for i in range(len(examples))] if names is None else names
    if tokenizer.eos_token is None:
        raise ValueError("the tokenizer has no end-of-sequence token, so no reference has an end")
    rows = [encode_example(example, tokenizer) for example in examples]
    longest = positions_of(student.config)
    rows = [(ids[:longest], start) for ids, start in rows]
    for name, row in zip(names, rows, strict=True):
        if _num_tokens(*row) <= 0:
            raise ValueError(
                f"{name}: the prompt fills the {longest} positions of the context, so nothing of "
                "its reference is left; leave it out"
            )
    readers = [_Reader("student", student)]
    if teacher is not None:
        readers.append(_Reader("teacher", teacher))
    for reader in readers:
        reader.check(rows, names)
    found, calibration = {}, Calibration()
    batch_tokens = min(batch_tokens, *(reader.most_tokens for reader in readers))
    with ExitStack() as stack:
        for reader in readers:
            stack.enter_context(undisturbed(reader.model))
        for batch, reading in _plan(rows, readers, batch_tokens):
            tokens = _measured(reading, [rows[i] for i in batch], tokenizer.eos_token_id)
            counts = [_num_tokens(*rows[i]) for i in batch]
            _check_numbers(tokens, [names[i] for i in batch], counts)
            found |= zip(batch, _rows_of(tokens, counts), strict=True)
            calibration = calibration.add(tokens["confidence"], tokens["correct"])
            if progress is not None:
                progress(len(found), len(rows))
    return [found[i] for i in range(len(rows))], calibration


def _plan(rows, readers, batch_tokens):
    """``(examples, readers)`` of each batch: what is too long for the teacher goes without it."""
    lengths = [len(ids) for ids, _ in rows]
    room = positions_of(readers[-1].model.config) or max(lengths, default=0)
    for fits in (True, False):
        chosen = [i for i, length in enumerate(lengths) if (length <= room) == fits]
        for batch in _batches([lengths[i] for i in chosen], batch_tokens):
            yield [chosen[i] for i in batch], readers if fits else readers[:1]


def _num_tokens(ids, start):
    """How many tokens of the completion anything predicts: the first of a text never is."""
    return len(ids) - max(start, 1)


def _batches(lengths, batch_tokens) -> Iterator[list[int]]:
    """Examples by falling length, so many at once that they fill ``batch_tokens`` positions."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        count = max(1, batch_tokens // lengths[order[0]])
        yield order[:count]
        order = order[count:]


def _measured(readers, rows, filler) -> dict[str, Tensor]:
    """What each of the N predicted tokens of a batch comes to, ``[N]`` on the CPU, row by row."""
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
    """The same of a chunk: labels ``[n]``, logits ``[n, V]`` of the student and the teacher."""
    logits = student.to(torch.promote_types(student.dtype, torch.float32))
    labels = labels.to(logits.device)
    norm, (largest, best) = logits.logsumexp(-1), logits.max(-1)
    tokens = {
        "nll": norm - logits.gather(-1, labels[:, None])[:, 0],
        "confidence": (largest - norm).exp(),
        "correct": best == labels,
    }
    if teacher is not None:
        shared = min(logits.shape[-1], teacher.shape[-1])
        theirs = teacher[:, :shared].to(logits.device)
        tokens["kl"] = divergence("forward_kl")(logits[:, :shared], theirs)
    return tokens


def _check_numbers(tokens, names, counts):
    for who, term in (("student", "nll"), ("teacher", "kl")):
        for name, nats in zip(names, tokens.get(term, tokens["nll"]).split(counts), strict=True):
            if nats.isnan().any():
                raise ValueError(f"{name}: the {who}'s logits are NaN; its weights are broken")


def _rows_of(tokens, counts):
    nll = _sums(tokens["nll"], counts)
    kl = _sums(tokens["kl"], counts) if "kl" in tokens else [None] * len(counts)
    return [ReferenceLikelihood(*row) for row in zip(nll, counts, kl, strict=True)]


def _sums(values, counts):
    return [float(part.sum()) for part in values.double().split(counts)]


class _Reader:
    """A model as a source of logits at chosen positions, by its lens if that is exact."""

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
        """Positions that one forward may have."""
        return 2**62 if self._lens else max(1, _WHOLE // self.vocab_size)

    def check(self, rows, names):
        """Refuse what the model cannot read.

        Raises:
            ValueError: with the example and the numbers.
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
            # The last T: a model with virtual tokens in front has logits for those as well.
            logits = logits_of(model(**inputs))[:, -ids.shape[1] :]
            yield from logits[chosen.to(logits.device)].split(size)
            return
        state = capture(self._lens, [self._lens.num_layers], **inputs)[self._lens.num_layers]
        rows = self._lens.normalize(state)[chosen.to(state.device)]
        for part in rows.split(size):
            yield self._lens.logits(part, normalize=False)
