"""A teacher behind a server: the most likely tokens at the targets, and no hidden states."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread

import torch

from distilllens.lens import LayerStates
from distilllens.teacher.documents import pieces
from distilllens.top_predictions import TopPredictions

# What float32 log-probabilities of all tokens may miss of a sum of 1.
_ROUNDING = 1e-3
_AT_A_TIME = 8


class ServedTeacher:
    """A teacher that is asked for each document of a batch; ``final`` is ``TopPredictions``.

    Requests run beside the student, eight at a time. The process may end while they run, because a
    server that hangs answers none of them for hours.

    Args:
        ask: tokens of a document -> for each of them but the first, token -> log-probability of the
            most likely tokens in its place.
        top_k: how many are asked for.

    Attributes:
        name: for people.
        model: its name at the server, if that is known.
    """

    num_layers = None  # no state can be read
    name, model = "a server", None

    def __init__(self, ask: Callable[[Sequence[int]], list[Mapping[int, float]]], top_k: int):
        self.top_k, self._queue = top_k, SimpleQueue()
        # Not a ThreadPoolExecutor, whose queue is worked off before Python exits.
        for _ in range(_AT_A_TIME):
            Thread(target=_work, args=(self._queue, ask), daemon=True).start()
        weakref.finalize(self, _end, self._queue)

    @property
    def source(self) -> ServedTeacher:
        """Itself."""
        return self

    def read(self, depths, **inputs) -> tuple[LayerStates, None]:
        """The predictions at the targets; there is no head, for there are no states.

        Raises:
            ValueError: depths; fewer tokens than asked for.
            OSError: the server does not answer.
        """
        return self.begin(depths, **inputs)()

    def begin(
        self,
        depths,
        *,
        targets,
        input_ids,
        normalize=True,
        attention_mask=None,
        position_ids=None,
        **inputs,
    ):
        """What ``read`` returns, from a call that ends it; the requests are sent now."""
        if tuple(depths):
            raise ValueError("a teacher at a server has no hidden states to read")
        where = {"attention_mask": attention_mask, "position_ids": position_ids}
        asked = []
        for ids, is_target in pieces((input_ids, targets.mask), **where):
            places = is_target.nonzero().flatten().tolist()
            if places:  # what follows the last target is not needed
                future = Future()
                self._queue.put((future, ids.tolist()[: places[-1] + 2]))
                asked.append((future, places))
        device = targets.mask.device

        def end_read():
            rows = []
            try:
                for future, places in asked:
                    found = future.result()
                    rows += [found[place] for place in places]
            finally:
                for future, _ in asked:
                    future.cancel()  # those that wait behind one that failed
            top = top_predictions(rows, self.top_k).to(device)
            return LayerStates({}, normed=True, final=top, gathered=True), None

        return end_read


def _work(queue, ask):
    """Answer what is in the queue, until None."""
    while (item := queue.get()) is not None:
        future, ids = item
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(ask(ids))
        except BaseException as error:  # Stopped is one
            future.set_exception(error)
        del item, future, ids


def _end(queue):
    """Drop what is in the queue, and end the threads that answer it."""
    with suppress(Empty):
        while True:
            queue.get_nowait()
    for _ in range(_AT_A_TIME):
        queue.put(None)


def top_predictions(rows: list[Mapping[int, float]], top_k: int) -> TopPredictions:
    """The ``top_k`` most likely tokens of each row.

    Raises:
        ValueError: a row has fewer, and they are not all tokens that there are.
    """
    found = [sorted(row.items(), key=lambda item: (-item[1], item[0]))[:top_k] for row in rows]
    fewest = min(map(len, found), default=top_k)
    ids = torch.tensor([[token for token, _ in row[:fewest]] for row in found], dtype=torch.long)
    logs = torch.tensor([[log for _, log in row[:fewest]] for row in found], dtype=torch.float64)
    ids, logs = ids.view(len(rows), fewest), logs.view(len(rows), fewest)
    sums = logs.exp().sum(-1)
    if len(rows) and not (sums < 1 + _ROUNDING).all():
        raise ValueError(
            "the teacher's server returned numbers that are no log-probabilities: those of one "
            f"position sum to {float(sums.max()):g}"
        )
    whole = fewest < top_k
    if whole and not (sums > 1 - _ROUNDING).all():
        raise ValueError(
            f"the teacher's server returned {fewest} of the {top_k} log-probabilities that "
            f"teacher_server_top_k asks for; set teacher_server_top_k: {fewest}, or let it return "
            "more (vllm serve --max-logprobs)"
        )
    return TopPredictions.of(ids, logs, whole=whole)
