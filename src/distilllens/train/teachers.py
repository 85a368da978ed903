"""Where a run's teacher comes from: a model that runs, or a cache of its states."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import NamedTuple

from distilllens.fingerprints import OtherTokenizer, tensor_fingerprint
from distilllens.joined_map import JoinedMap
from distilllens.layer_map import Cut, LayerMap
from distilllens.lens import LogitLens
from distilllens.lens.surgery import cut_of
from distilllens.loading import check_tokenizers, find_tokenizer, load_model
from distilllens.teacher import (
    AlignedTeacher,
    CachedTeacher,
    LiveTeacher,
    MixedTeacher,
    TeacherSource,
)
from distilllens.train.cache_fill import fill_cache
from distilllens.train.cache_needs import (
    CacheRequirements,
    of_main_process,
    open_cache,
    requirements_of,
)
from distilllens.train.checks import check_data, check_shared
from distilllens.train.collation import Collation
from distilllens.train.config_defaults import load_models_whole
from distilllens.train.finite import check_weights
from distilllens.train.offload import head_on, is_placed, keep_ends, moved, whole_tensors
from distilllens.train.redirect import run_inside_forward
from distilllens.train.server_teacher import find_served
from distilllens.train.sharding import gathered_head, shard_teacher, shards_teacher
from distilllens.train.teacher_fields import each_alone

logger = logging.getLogger(__name__)


# What a cache must still be filled with; of several teachers, for each of them or None.
CacheNeeds = CacheRequirements | tuple[CacheRequirements | None, ...]


class StudentDepths(NamedTuple):
    """What of a student decides its layer map: its blocks, and those that it was cut to or None."""

    num_layers: int
    cut: Cut | None


def depths_of(config, num_layers: int | None = None) -> StudentDepths:
    """The depths of a student by its configuration; of ``num_layers`` blocks, if that is known."""
    return StudentDepths(num_layers or config.get_text_config().num_hidden_layers, cut_of(config))


def find_teacher(
    collation: Collation, teacher, student: StudentDepths
) -> tuple[TeacherSource | None, CacheNeeds | None]:
    """The teacher of a run, and what its cache must still be filled with (None: nothing).

    Args:
        teacher: a model, its name, or None; a list of these for ``teachers``.
        student: what decides the depths.

    Raises:
        ValueError: a teacher that training cannot read, or a cache that does not fit the run.
    """
    if collation.args.teacher_server is not None:
        return find_served(collation), None
    if collation.args.teachers is not None:
        return _find_several(collation, teacher, student)
    with tokenizers_advised():
        source, needs = _find_source(collation.of_teacher, teacher, student)
    return aligned(collation, source), needs


@contextmanager
def tokenizers_advised():
    """The error of another tokenizer also says what compares two; several teachers need one."""
    try:
        yield
    except OtherTokenizer as error:
        raise ValueError(
            f"{error}; cross_tokenizer: shared compares what both read (docs/tokenizers.md)"
        ) from error


def _find_several(collation, teachers, student):
    found = []
    each = zip(each_alone(collation.args), teachers, strict=True)
    for number, (args, teacher) in enumerate(each, 1):
        with of_entry(number, teacher):
            found.append(_find_source(replace(collation, args=args), teacher, student))
    sources, needs = zip(*found, strict=True)
    weights = [entry["weight"] for entry in collation.args.teachers]
    return MixedTeacher(sources, weights), needs if any(needs) else None


@contextmanager
def of_entry(number: int, teacher):
    """Errors say which of several teachers, from 1, they are about; ``teacher`` may be its name."""
    try:
        yield
    except ValueError as error:
        name = f" ({teacher})" if isinstance(teacher, str) else ""
        raise ValueError(f"entry {number} of teachers{name}: {error}") from error


def aligned(collation: Collation, source: TeacherSource | None) -> TeacherSource | None:
    """A teacher as the student's batches ask it: with another tokenizer, through ``pairs``."""
    pairs = collation.pairs
    if pairs is None or source is None:
        return source
    return AlignedTeacher(source, pairs, pairs.vocabularies(), pairs.collator)


def _find_source(collation, teacher, student):
    folder = collation.args.teacher_cache
    if folder is None:
        return (None if teacher is None else load_teacher(collation, teacher)), None
    needs = requirements_of(collation, teacher)
    cached = open_cache(folder, needs, collation.accelerator.device)
    # The main process decides, whatever others may already see of a disk that they share.
    if of_main_process(cached is None):
        return load_teacher(collation, teacher), needs
    if cached is None:
        raise ValueError(f"teacher_cache {folder} must be a folder that all processes see")
    logger.info("reading the teacher from the cache %s", folder)
    check_cached_depths(collation, cached, student)
    return cached, None


def load_teacher(collation: Collation, teacher) -> LiveTeacher:
    """A model, or the model of a name, as a teacher that runs.

    Raises:
        ValueError: another tokenizer, a model that training cannot read, data beyond its positions.
    """
    args, accelerator = collation.args, collation.accelerator
    if isinstance(teacher, str):
        logger.info("loading the teacher %s", teacher)
        load_models_whole(args)  # again: accelerate has announced shards since
        teacher = _load(teacher, args, collation)
    sharded = shards_teacher(accelerator, args)
    placed = "device_map" in (args.teacher_model_init_kwargs or {}) or is_placed(teacher)
    if placed and sharded:
        raise ValueError(
            "a teacher with a device_map cannot be sharded by FSDP or DeepSpeed as well; leave "
            "device_map out, or set teacher_sharding: replicate"
        )
    if placed:
        keep_ends(teacher)
    elif not sharded:
        teacher.to(accelerator.device)
    check_weights("teacher", teacher)
    # Before sharding: both proofs run the plain model.
    lens = LogitLens(teacher)
    lens.check_trainable()
    check_data("teacher", lens.model, collation)
    collation.fit_padding(lens.model)
    tensors = whole_tensors(teacher)
    fingerprint = tensor_fingerprint(teacher, tensors) if args.teacher_cache else None
    wrapper = shard_teacher(teacher, accelerator) if sharded else teacher

    def run(method, **inputs):
        if placed:
            inputs = moved(inputs, teacher.get_input_embeddings().weight.device)
        found = run_inside_forward(wrapper, teacher, method, **inputs)
        return moved(found, accelerator.device) if placed else found

    def gather(lens):
        head = gathered_head(lens)
        return head_on(head, accelerator.device) if placed else head

    return LiveTeacher(lens, run=run, gather=gather, fingerprint=fingerprint)


def filled(
    collation: Collation, teacher: TeacherSource, student: StudentDepths, needs: CacheNeeds
) -> TeacherSource:
    """The teacher of a run whose cache a live one has filled with what it lacked.

    Raises:
        ValueError, OSError: as ``fill_cache``.
    """
    if isinstance(teacher, MixedTeacher):
        sources = list(teacher.sources)
        for number, args in enumerate(each_alone(collation.args)):
            if needs[number] is not None:
                alone = replace(collation, args=args)
                sources[number] = filled(alone, sources[number], student, needs[number])
        return MixedTeacher(sources, teacher.weights)
    depths = cached_depths(collation, teacher, student)
    cached = fill_cache(collation.of_teacher, teacher.source, depths, needs)
    check_cached_depths(collation, cached, student)
    return aligned(collation, cached)


def layer_map_of(args, student: StudentDepths, teacher: TeacherSource | None) -> LayerMap | None:
    """The pairs of a run; None without a teacher, or for plain KD between shallow models.

    Raises:
        ValueError: ``lens_layers`` that do not fit the two models.
    """
    if teacher is None or teacher.num_layers is None:
        return None
    if args.teachers is not None:
        parts = zip(each_alone(args), teacher.num_layers, strict=True)
        maps = [layer_map_of(a, student, SimpleNamespace(num_layers=n)) for a, n in parts]
        return JoinedMap.of(maps)
    spec, layers = args.lens_layers, (student.num_layers, teacher.num_layers)
    if args.lens_weight > 0:
        return LayerMap.resolve(spec, *layers, student.cut)
    pairs = LayerMap.resolve_or_none(spec, *layers, student.cut)
    if pairs is None and args.feature_weight > 0:
        raise ValueError(
            f"feature_weight needs depth pairs, and lens_layers {spec} finds none between "
            f'{layers[0]} student and {layers[1]} teacher blocks; name some, such as "0:0,1:1"'
        )
    return pairs


def cached_depths(collation: Collation, teacher: TeacherSource, student: StudentDepths) -> tuple:
    """The teacher's depths that a run reads from its cache, beside the last."""
    layer_map = layer_map_of(collation.args, student, teacher)
    # Evaluation measures the lens whatever its weight.
    wanted = collation.args.lens_weight > 0 or collation.eval_dataset is not None
    wanted = wanted or collation.args.feature_weight > 0
    return layer_map.teacher_depths if layer_map and wanted else ()


def check_cached_depths(collation: Collation, cached: CachedTeacher, student: StudentDepths):
    """Refuse a cache without the depths that a run reads.

    Raises:
        ValueError: with the depths that are missing.
    """
    depths = cached_depths(collation, cached, student)
    cached.check_depths(depths, collation.args.lens_norm)


def _load(name, args, collation):
    kwargs = {
        "dtype": "auto",
        "trust_remote_code": args.trust_remote_code,
        **(args.teacher_model_init_kwargs or {}),
    }
    hub = {key: kwargs[key] for key in ("revision", "trust_remote_code") if key in kwargs}
    tokenizer = find_tokenizer("teacher", name, **hub)
    if tokenizer is not None and args.cross_tokenizer is None:
        check_shared(check_tokenizers(collation.tokenizer, tokenizer), collation)
    return load_model("teacher", name, **kwargs)
