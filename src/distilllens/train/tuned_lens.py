"""The tuned lens of a run: translators of both models, fitted to their own outputs at its start."""

from __future__ import annotations

import copy
import logging

import torch
from accelerate.utils import broadcast
from datasets import Dataset
from tqdm.auto import tqdm

from distilllens.lens import LogitLens
from distilllens.lens.translator_fit import ROWS_PER_NUMBER, TranslatorFit
from distilllens.lens.translators import Translators
from distilllens.teacher import CachedTeacher, LiveTeacher, cache
from distilllens.train.collation import Collation
from distilllens.train.companions import CompanionTrainer

logger = logging.getLogger(__name__)


class TunedLensTrainer(CompanionTrainer):
    """Translators of student and teacher (``lens_readout: tuned``) as companions of a trainer.

    The trainer has ``student_lens``, ``teacher`` and ``objective``. "translators" are trained along
    with the student; "teacher_translators" stay as they were fitted.
    """

    _is_fitted = True

    def add_translators(self):
        """Let both models be read through translators, if that is asked for.

        Raises:
            ValueError: weights that are sharded.
            DamagedFile: a cache without the translators that it was written with.
        """
        layer_map = self.objective.layer_map
        if self.args.lens_readout != "tuned" or layer_map is None:
            return
        ours = new_translators(self.student_lens, layer_map.student_depths)
        if ours is not None:
            self.add_companion("translators", ours)
            self.student_lens = self.student_lens.tuned(ours)
        source = self.teacher.source
        if isinstance(source, CachedTeacher):
            theirs = cache.translators_of(source.folder)
        else:
            theirs = new_translators(source.lens, layer_map.teacher_depths)
            source.lens = source.lens.tuned(theirs)
        self._keep_teacher_translators(theirs)
        self._is_fitted = False

    def settle_teacher_translators(self, collation: Collation):
        """Before its cache is filled, give a tuned teacher the cache's translators, or fit them."""
        live = self.teacher.source
        if self.args.lens_readout != "tuned":
            return
        if live.lens.translators is not None:
            translators_for_cache(live, collation.of_teacher)
            self._keep_teacher_translators(live.lens.translators)

    def _keep_teacher_translators(self, theirs):
        if theirs is not None:
            self.add_companion("teacher_translators", theirs.requires_grad_(False))

    def fit_lenses(self):
        """Fit what is not fitted yet; ``train()`` and ``evaluate()`` call it.

        Raises:
            ValueError: streamed data, from which no rows can be drawn.
        """
        if self._is_fitted:
            return
        collation, ours = Collation.of(self), self.student_lens.translators
        if ours is not None:
            fit_translators("student", LiveTeacher(self.student_lens.tuned(None)), ours, collation)
        source = None if self.teacher is None else self.teacher.source
        if isinstance(source, LiveTeacher) and source.lens.translators is not None:
            fit_translators("teacher", source, source.lens.translators, collation.of_teacher)
        self._is_fitted = True

    def train(self, resume_from_checkpoint=None, **kwargs):
        """Fit the lens of a new run, then train; a checkpoint holds the translators."""
        self._is_fitted = self._is_fitted or bool(resume_from_checkpoint)
        self.fit_lenses()
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def evaluate(self, *args, **kwargs):
        """Fit the lens if it is not yet, then evaluate."""
        self.fit_lenses()
        return super().evaluate(*args, **kwargs)


def inner_depths(depths, num_layers: int) -> tuple[int, ...]:
    """The depths that have translators: the last one is read as it is."""
    return tuple(sorted({depth for depth in depths if depth < num_layers}))


def new_translators(lens: LogitLens, depths) -> Translators | None:
    """Translators of a model that change nothing yet; None without an inner depth."""
    depths = inner_depths(depths, lens.num_layers)
    return Translators(depths, lens.anatomy.stream_shape[-1]) if depths else None


def fit_translators(
    name: str, source: LiveTeacher, translators: Translators, collation: Collation
) -> None:
    """Fit translators to a model's own output at the targets of the training data, in place.

    Every process fits to the same rows, which ``seed`` draws; then all take the first one's result.

    Args:
        name: of the model, for messages.
        source: the model.

    Raises:
        ValueError: streamed data, which cannot be drawn from.
    """
    lens = source.lens.tuned(None)
    plain = copy.copy(source)
    plain.lens = lens
    depths, last = translators.depths, lens.num_layers
    fit = TranslatorFit(depths, translators.width, collation.accelerator.device)
    wanted = ROWS_PER_NUMBER * translators.width
    bar = {"desc": f"tuned lens of the {name}", "unit": " tokens", "leave": False}
    with tqdm(total=wanted, disable=collation.is_quiet, **bar) as bar:
        for batch in _drawn_batches(collation):
            with torch.no_grad(), collation.accelerator.autocast():
                states, head = plain.read((*depths, last), normalize=False, **batch)
            # Not a token more, so that the size of the batches changes nothing.
            room = wanted - fit.num_rows
            by_depth = {depth: state[:room] for depth, state in states.states.items()}
            fit.add(by_depth, by_depth[last], states.final[:room])
            bar.update(len(states.final[:room]))
            if fit.num_rows >= wanted:
                break
    logger.info(
        "fitting the tuned lens of the %s to its own output: %d depths, %d tokens (of at best %d)",
        *(name, len(depths), fit.num_rows, wanted),
    )

    def head_ready(stream):
        with collation.accelerator.autocast():
            return lens.head_ready(lens.normalize(stream))

    found = fit.refine(head_ready, head)
    with torch.no_grad():
        for ours, theirs in zip(translators.parameters(), found.parameters(), strict=True):
            ours.copy_(broadcast(theirs.detach()))


def translators_for_cache(live: LiveTeacher, collation: Collation) -> None:
    """Settle a teacher's translators before its cache is filled: the cache's own, or new ones.

    Raises:
        DamagedFile: the file of the cache is missing, or is not the one that it was written with.
    """
    ours, folder = live.lens.translators, collation.args.teacher_cache
    theirs = cache.translators_of(folder) if cache.exists(folder) else None
    if theirs is None:
        fit_translators("teacher", live, ours, collation)
    else:
        live.lens = live.lens.tuned(theirs.to(collation.accelerator.device))


def _drawn_batches(collation):
    dataset, size = collation.train_dataset, collation.args.per_device_train_batch_size
    if not isinstance(dataset, Dataset):
        raise ValueError(
            "lens_readout tuned is fitted to training data drawn at the start, and streamed data "
            "cannot be; load it whole, or set lens_readout: logit"
        )
    generator = torch.Generator().manual_seed(collation.args.seed)
    order = torch.randperm(len(dataset), generator=generator).tolist()
    for start in range(0, len(order), size):
        rows = [(dataset, index) for index in order[start : start + size]]
        yield collation.to_device(collation.batch(rows))
