"""Models read at every depth on the same text, and students set beside a teacher."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distilllens.layer_map import LayerMap
from distilllens.lens.capture import capture
from distilllens.lens.comparison import Comparison, compare_rows, partners
from distilllens.lens.logit_lens import LogitLens
from distilllens.lens.probe import accepts
from distilllens.lens.trajectory import likeliest


@dataclass(frozen=True, eq=False)
class Passage:
    """A text as tokens, and the positions that are looked at.

    Args:
        ids: ``[T]``.
        positions: ``[N]``, rising, each 0 to T - 1. What is read at a position is the prediction of
            the token behind it.

    Raises:
        ValueError: no position, or one outside the text.
    """

    ids: Tensor
    positions: Tensor

    def __post_init__(self):
        if self.positions.numel() == 0:
            raise ValueError("a document needs at least one position to look at")
        if not 0 <= int(self.positions.min()) <= int(self.positions.max()) < len(self.ids):
            raise ValueError(f"positions of a document of {len(self.ids)} tokens lie outside it")

    @property
    def targets(self) -> Tensor:
        """The tokens ``[N]`` that in fact follow; -1 behind the last token of the text."""
        return torch.cat([self.ids[1:], self.ids.new_tensor([-1])])[self.positions]


@dataclass(frozen=True, eq=False)
class Reading:
    """What a model says at its K = L + 1 depths, at the N positions of all documents in a row.

    Args:
        tokens: the likeliest tokens ``[K, N, top_k]``, most likely first.
        probabilities: theirs, ``[K, N, top_k]``.
        entropy: in nats, ``[K, N]``.
        final_probability: ``[K, N]``, of the token that the last depth ranks first.
    """

    tokens: Tensor
    probabilities: Tensor
    entropy: Tensor
    final_probability: Tensor

    @property
    def settled(self) -> Tensor:
        """The first depth ``[N]`` from which the top token stays what it is at the last depth."""
        top = self.tokens[..., 0]
        stays = (top == top[-1]).flip(0).long().cumprod(0).sum(0)
        return len(top) - stays


@dataclass(frozen=True, eq=False)
class Inspection:
    """A teacher, or any one model, and students beside it, on the same documents.

    Args:
        documents: in the order in which their positions stand in every reading.
        teacher: its reading.
        students: a reading each.
        comparisons: each student against the teacher.
        trained: each student's pairs of depths that training compares.
    """

    documents: tuple[Passage, ...]
    teacher: Reading
    students: tuple[Reading, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    trained: tuple[tuple[tuple[int, int], ...], ...] = ()

    @property
    def targets(self) -> Tensor:
        """The tokens ``[N]`` that in fact follow; -1 where none does."""
        return torch.cat([document.targets for document in self.documents])


@torch.no_grad()
def inspect_models(
    teacher,
    documents: Iterable[Passage],
    students: Sequence = (),
    *,
    trained: Sequence[Iterable[tuple[int, int]]] | None = None,
    top_k: int = 10,
    chunk_size: int = 128,
) -> Inspection:
    """Read a model at every depth, and students at every depth beside it.

    Equals ``trajectory`` of each model at the documents' positions, and ``compare_rows`` of each
    student depth with its partner (``partners``). Every model runs once over a document, and a
    depth's logits are computed once, ``chunk_size`` positions at a time; none is kept.

    Args:
        teacher: a causal LM or its LogitLens; it may stand alone.
        documents: read one at a time.
        students: causal LMs or LogitLenses, with the teacher's tokens.
        trained: a LayerMap, or pairs, for each student; default: none.
        top_k: how many tokens of each depth are kept.

    Raises:
        ValueError: no document, a depth that a model does not have, a model that the lens cannot
            read, top_k outside 1..V.
    """
    lenses = [m if isinstance(m, LogitLens) else LogitLens(m) for m in (teacher, *students)]
    num_layers, *theirs = (lens.num_layers for lens in lenses)
    trained = tuple(tuple(pairs) for pairs in trained or [()] * len(students))
    for pairs, layers in zip(trained, theirs, strict=True):
        if pairs:
            LayerMap(pairs).check(layers, num_layers)
    maps = [partners(n, num_layers, p) for n, p in zip(theirs, trained, strict=True)]
    notes = _Notes(lenses, maps, top_k)
    seen = []
    for document in documents:
        seen.append(document)
        notes.take(document, chunk_size)
    if not seen:
        raise ValueError("nothing to read: no document was given")
    teachers, *own = (_reading(by_depth) for by_depth in notes.readings)
    compared = (_comparison(m, by_depth) for m, by_depth in zip(maps, notes.pairs, strict=True))
    return Inspection(tuple(seen), teachers, tuple(own), tuple(compared), trained)


class _Notes:
    """What was read so far: for each model and depth a list of parts, in the order of the text."""

    def __init__(self, lenses, maps, top_k):
        self._lenses, self._maps, self._top_k = lenses, maps, top_k
        self.readings = [[[] for _ in range(lens.num_layers + 1)] for lens in lenses]
        self.pairs = [[[] for _ in partner] for partner in maps]

    def take(self, document, chunk_size):
        """Run every model over a document, and read it."""
        rows = [_Rows(lens, document) for lens in self._lenses]
        if any(lens.mode == "stub" for lens in self._lenses):
            chunk_size = len(document.positions)  # such logits come for all positions at once
        for start in range(0, len(document.positions), chunk_size):
            self._take_part([r.cut(slice(start, start + chunk_size)) for r in rows])

    def _take_part(self, parts):
        for depth in range(len(parts[0])):
            log_p = self._note(0, parts[0], depth)
            top = self.readings[0][depth][-1][0].to(log_p.device)
            for student, partner in enumerate(self._maps):
                for ours in (s for s, t in enumerate(partner) if t == depth):
                    log_q = self._note(1 + student, parts[1 + student], ours).to(log_p.device)
                    found = compare_rows(log_q, log_p, top)
                    self.pairs[student][ours].append([x.cpu() for x in found])

    def _note(self, model, part, depth):
        log_p = part.log_p(depth)
        tokens, probabilities, entropy = likeliest(log_p, self._top_k)
        final = log_p.gather(-1, part.final)[:, 0].exp()
        found = [x.cpu() for x in (tokens, probabilities, entropy, final)]
        self.readings[model][depth].append(found)
        return log_p


class _Rows:
    """The states of one model at the positions of one document."""

    def __init__(self, lens, document):
        device = next(lens.model.parameters()).device
        depths = range(lens.num_layers + 1)
        inputs = {"input_ids": document.ids[None].to(device)}
        if accepts(lens.model, "attention_mask"):  # without one, pad tokens in a text are a warning
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        states = capture(lens, depths, **inputs)
        self.lens, self.positions = lens, document.positions.to(device)
        self.states = [states[depth] for depth in depths]
        if lens.mode != "stub":
            self.states = [lens.normalize(state)[0, self.positions] for state in self.states]

    def cut(self, part):
        """Those of some of the positions."""
        return _Part(self, part)


class _Part:
    """The log-probabilities of one model at some positions, depth by depth."""

    def __init__(self, rows, part):
        self._rows, self._part = rows, part
        # The last depth first: every other is asked about its top token.
        self._last = self._read(len(self) - 1)
        self.final = self._last.argmax(-1, keepdim=True)

    def __len__(self):
        return len(self._rows.states)

    def log_p(self, depth):
        """``[n, V]``, in float32 at least."""
        return self._last if depth == len(self) - 1 else self._read(depth)

    def _read(self, depth):
        lens, state = self._rows.lens, self._rows.states[depth]
        if lens.mode == "stub":
            logits = lens.logits(state)[0, self._rows.positions[self._part]]
        else:
            logits = lens.logits(state[self._part], normalize=False)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def _reading(by_depth):
    columns = [[torch.cat(x) for x in zip(*parts, strict=True)] for parts in by_depth]
    return Reading(*(torch.stack(x) for x in zip(*columns, strict=True)))


def _comparison(partner, by_depth):
    columns = []
    for parts in by_depth:
        *rows, penalties, ratios = zip(*parts, strict=True)
        rows = [torch.cat(x) for x in rows]
        num = len(rows[0])
        columns.append([*rows, sum(penalties) / num, sum(ratios) / num])
    return Comparison(tuple(enumerate(partner)), *map(torch.stack, zip(*columns, strict=True)))
