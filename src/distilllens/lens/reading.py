"""Read a teacher and its students at every depth on the same text, and compare them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from distilllens.layer_map import LayerMap
from distilllens.lens.capture import capture
from distilllens.lens.comparison import Comparison, compare_rows, partners
from distilllens.lens.kind import check_same_kind
from distilllens.lens.logit_lens import LogitLens
from distilllens.lens.probe import accepts
from distilllens.lens.trajectory import most_likely


@dataclass(frozen=True, eq=False)
class Passage:
    """A tokenized text and the positions to read.

    Args:
        ids: ``[T]``; of an encoder-decoder, what its decoder reads.
        positions: ``[N]``, ascending, each 0 to T - 1. Reading a position means reading the
            prediction of the token after it.
        source: what an encoder reads, ``[S]``.
        own: a position predicts the token in its own place instead, as in a masked LM;
            ``inspect_models`` sets it by the models that read.

    Raises:
        ValueError: no position, or a position outside of the text.
    """

    ids: Tensor
    positions: Tensor
    source: Tensor | None = None
    own: bool = False

    def __post_init__(self):
        if self.positions.numel() == 0:
            raise ValueError("a passage needs at least one position to read")
        if not 0 <= int(self.positions.min()) <= int(self.positions.max()) < len(self.ids):
            raise ValueError(
                f"positions of a passage of {len(self.ids)} tokens must be 0 to "
                f"{len(self.ids) - 1}, got {int(self.positions.min())} to "
                f"{int(self.positions.max())}"
            )

    @property
    def targets(self) -> Tensor:
        """The token ``[N]`` that each position predicts; -1 after the last token of the text."""
        if self.own:
            return self.ids[self.positions]
        return torch.cat([self.ids[1:], self.ids.new_tensor([-1])])[self.positions]


def inputs_of(lens: LogitLens, passage: Passage) -> dict:
    """What a model reads of a passage: a batch of one text, and of an encoder's text if it has any.

    Raises:
        ValueError: a text for an encoder and a model without one, or the other way round; a model
            that reads no text.
    """
    name, model = type(lens.model).__name__, lens.model
    device = next(model.parameters()).device
    if lens.kind == "images" or getattr(model, "main_input_name", "input_ids") != "input_ids":
        what = "images" if lens.kind == "images" else f"{model.main_input_name}, not text"
        raise ValueError(f"{name} reads {what}; lens.trajectory reads it with its own inputs")
    if (passage.source is None) == (lens.kind == "encoder-decoder"):
        has = "needs a passage with a source" if passage.source is None else "has no encoder"
        raise ValueError(f"{name} {has}, which an encoder reads")
    ids = passage.ids[None].to(device)
    if passage.source is not None:
        source = passage.source[None].to(device)
        mask = torch.ones_like(source)
        return {"input_ids": source, "attention_mask": mask, "decoder_input_ids": ids}
    inputs = {"input_ids": ids}
    if accepts(model, "attention_mask"):  # without it, pad tokens in a text warn
        inputs["attention_mask"] = torch.ones_like(ids)
    return inputs


@dataclass(frozen=True, eq=False)
class Reading:
    """A model's predictions at its K = L + 1 depths, at the N positions of all passages in order.

    Args:
        tokens: the top_k most likely tokens ``[K, N, top_k]``, in descending order.
        probabilities: of these tokens, ``[K, N, top_k]``.
        entropy: in nats, ``[K, N]``.
        final_probability: ``[K, N]``, of the token that the last depth ranks first.
    """

    tokens: Tensor
    probabilities: Tensor
    entropy: Tensor
    final_probability: Tensor

    @property
    def settled(self) -> Tensor:
        """The first depth ``[N]`` from which the top token stays the same up to the last depth."""
        top = self.tokens[..., 0]
        stays = (top == top[-1]).flip(0).long().cumprod(0).sum(0)
        return len(top) - stays


@dataclass(frozen=True, eq=False)
class Inspection:
    """A teacher (or any single model) and its students, read on the same passages.

    Args:
        passages: in the order of their positions in every reading.
        teacher: the teacher's reading.
        students: one reading per student.
        comparisons: each student compared with the teacher.
        trained: for each student, the pairs of depths that training compares.
    """

    passages: tuple[Passage, ...]
    teacher: Reading
    students: tuple[Reading, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    trained: tuple[tuple[tuple[int, int], ...], ...] = ()

    @property
    def targets(self) -> Tensor:
        """The token ``[N]`` that each position predicts; -1 where there is none."""
        return torch.cat([passage.targets for passage in self.passages])


@torch.no_grad()
def inspect_models(
    teacher,
    passages: Iterable[Passage],
    students: Sequence = (),
    *,
    trained: Sequence[Iterable[tuple[int, int]]] | None = None,
    top_k: int = 10,
    chunk_size: int = 128,
) -> Inspection:
    """Read a model at every depth, and compare students with it at every depth.

    Equals ``trajectory`` of each model at the passages' positions, and ``compare_rows`` of each
    student depth with its partner (``partners``). Every model runs once over a passage, and the
    logits of a depth are computed once, ``chunk_size`` positions at a time, and not kept.

    Args:
        teacher: a model of text or its LogitLens; it can be read without students.
        passages: read one at a time.
        students: models or LogitLenses of the teacher's kind that share its tokens.
        trained: a LayerMap, or pairs, for each student; default: none.
        top_k: how many tokens to keep per depth.

    Raises:
        ValueError: no passage, a depth that a model does not have, a model that the lens cannot
            read or that reads no text, models of different kinds, top_k outside 1..V.
    """
    lenses = [m if isinstance(m, LogitLens) else LogitLens(m) for m in (teacher, *students)]
    check_same_kind(*lenses)
    own = lenses[0].kind == "bidirectional"
    num_layers, *theirs = (lens.num_layers for lens in lenses)
    trained = tuple(tuple(pairs) for pairs in trained or [()] * len(students))
    for pairs, layers in zip(trained, theirs, strict=True):
        if pairs:
            LayerMap(pairs).check(layers, num_layers)
    maps = [partners(n, num_layers, p) for n, p in zip(theirs, trained, strict=True)]
    parts = _Parts(lenses, maps, top_k)
    seen = []
    for passage in passages:
        seen.append(passage := replace(passage, own=own))
        parts.add(passage, chunk_size)
    if not seen:
        raise ValueError("nothing to read: no passage was given")
    first, *others = (_reading(by_depth) for by_depth in parts.readings)
    compared = (_comparison(m, by_depth) for m, by_depth in zip(maps, parts.pairs, strict=True))
    return Inspection(tuple(seen), first, tuple(others), tuple(compared), trained)


class _Parts:
    """The results so far: for each model and depth a list of chunks, in the order of the text."""

    def __init__(self, lenses, maps, top_k):
        self._lenses, self._maps, self._top_k = lenses, maps, top_k
        self.readings = [[[] for _ in range(lens.num_layers + 1)] for lens in lenses]
        self.pairs = [[[] for _ in partner] for partner in maps]
        self._kept = {}  # of the chunk in progress: the tensors of all its depths

    def add(self, passage, chunk_size):
        """Run every model over a passage and read its positions."""
        rows = [_Rows(lens, passage) for lens in self._lenses]
        if any(lens.mode == "stub" for lens in self._lenses):
            chunk_size = len(passage.positions)  # this mode computes all positions at once
        for start in range(0, len(passage.positions), chunk_size):
            self._add_chunk([r.chunk(slice(start, start + chunk_size)) for r in rows])

    def _add_chunk(self, chunks):
        self._kept = {}
        for depth in range(len(chunks[0])):
            log_p = self._read(0, chunks[0], depth)
            top = self.readings[0][depth][-1][0].to(log_p.device)
            for student, partner in enumerate(self._maps):
                for ours in (s for s, t in enumerate(partner) if t == depth):
                    log_q = self._read(1 + student, chunks[1 + student], ours).to(log_p.device)
                    compared = compare_rows(log_q, log_p, top)
                    kept = self._keep(("pair", student), ours, len(self._maps[student]), compared)
                    self.pairs[student][ours].append(kept)

    def _read(self, model, chunk, depth):
        """Store a chunk's predictions; return its log-probabilities ``[n, V]``."""
        log_p = chunk.log_p(depth)
        tokens, probabilities, entropy = most_likely(log_p, self._top_k)
        final = log_p.gather(-1, chunk.final)[:, 0].exp()
        found = (tokens, probabilities, entropy, final)
        self.readings[model][depth].append(self._keep(("model", model), depth, len(chunk), found))
        return log_p

    def _keep(self, of, depth, num_depths, found):
        """Copies of a depth's results on the CPU, in tensors that hold those of all depths.

        Small tensors of each depth, kept between large ones that come and go, would leave holes in
        the heap that no large one fits into: gigabytes, for thirty depths.
        """
        if of not in self._kept:
            self._kept[of] = [x.new_empty(num_depths, *x.shape, device="cpu") for x in found]
        return [kept[depth].copy_(x) for kept, x in zip(self._kept[of], found, strict=True)]


class _Rows:
    """The states of one model at the positions of one passage."""

    def __init__(self, lens, passage):
        device = next(lens.model.parameters()).device
        depths = range(lens.num_layers + 1)
        states = capture(lens, depths, **inputs_of(lens, passage))
        self.lens, self.positions = lens, passage.positions.to(device)
        self.states = [lens.translate(depth, states[depth]) for depth in depths]
        if lens.mode != "stub":
            self.states = [lens.normalize(state)[0, self.positions] for state in self.states]

    def chunk(self, part):
        """The chunk of the positions in a slice."""
        return _Chunk(self, part)


class _Chunk:
    """The log-probabilities of one model at some positions, depth by depth."""

    def __init__(self, rows, part):
        self._rows, self._part = rows, part
        # The last depth comes first: all others need its top token.
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
