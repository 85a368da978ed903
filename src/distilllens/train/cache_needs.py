"""What a run needs from a teacher cache, and whether a cache fits."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from accelerate.utils import broadcast_object_list
from datasets import Dataset
from tqdm.auto import tqdm

from distilllens.fingerprints import fingerprint, tensor_fingerprint, tokenizer_fingerprint
from distilllens.loading import load_config
from distilllens.stored import DamagedFile
from distilllens.teacher import (
    CachedTeacher,
    MixedTeacher,
    ServedTeacher,
    TeacherSource,
    cache,
)
from distilllens.teacher.documents import Document, cut
from distilllens.teacher.manifest import LOGIT
from distilllens.train.collation import Collation

logger = logging.getLogger(__name__)

# Settings that decide how documents are cut; named in the message when documents are missing.
_DATA_SETTINGS = (
    "max_length",
    "completion_only_loss",
    "assistant_only_loss",
    "eos_token",
    "packing_strategy",
)
# Arguments of from_pretrained that locate a model (a token is never written) or change its states.
_HUB = ("cache_dir", "local_files_only", "revision", "subfolder", "token", "trust_remote_code")
_CHANGE_STATES = (
    "attn_implementation",
    "dtype",
    "quantization_config",
    "revision",
    "subfolder",
    "variant",
)


@dataclass(frozen=True, eq=False)
class CacheRequirements:
    """What a run needs from a cache.

    Attributes:
        rows: ``(dataset, index, its documents)`` for each row of training and evaluation data.
        normed, stored, tokenizer, precision, data: as in the manifest.
        tuned: whether the states at inner depths are read through translators.
        teacher: the fingerprint of a model object's tensors; None for a name.
        teacher_files: what is known of a named teacher without loading it; None for a model object.
        teacher_name: for messages; None without a teacher.
    """

    rows: list[tuple[Dataset, int, list[Document]]]
    normed: bool
    tuned: bool
    stored: str
    tokenizer: str
    precision: str
    data: dict
    teacher: str | None
    teacher_files: dict | None
    teacher_name: str | None

    @property
    def has_teacher(self) -> bool:
        """Whether there is a teacher that could add missing documents."""
        return self.teacher_name is not None

    def missing(self, stored) -> list[Document]:
        """The documents whose key is not in ``stored``, each once."""
        found = {d.key: d for _, _, documents in self.rows for d in documents}
        return [document for key, document in found.items() if key not in stored]


def requirements_of(collation: Collation, teacher) -> CacheRequirements:
    """What a run needs from a cache; ``teacher`` is a name, a model or None.

    Raises:
        ValueError: streamed data, which cannot be read in advance.
    """
    args, named = collation.args, isinstance(teacher, str)
    return CacheRequirements(
        rows=[row for dataset in _datasets(collation) for row in _rows(dataset, collation)],
        normed=args.lens_norm,
        tuned=args.lens_readout == "tuned",
        stored=args.teacher_cache_dtype,
        tokenizer=tokenizer_fingerprint(collation.tokenizer),
        precision=str(collation.accelerator.mixed_precision),
        data={name: getattr(args, name, None) for name in _DATA_SETTINGS} | _student_of(collation),
        teacher=None if named or teacher is None else tensor_fingerprint(teacher),
        teacher_files=_files_of(teacher, args) if named else None,
        teacher_name=teacher if named or teacher is None else _name_of(teacher),
    )


def open_cache(folder: str, needs: CacheRequirements, device) -> CachedTeacher | None:
    """The cache in a folder if it is complete, fits the run and holds every document.

    Otherwise None, if the run has a teacher that can add what is missing.

    Raises:
        ValueError: the entry of the manifest that differs; without a teacher, what is missing or
            damaged.
    """
    if needs.has_teacher:
        cache.check_writable(folder)
        if not cache.exists(folder):
            return None
    manifest = cache.manifest_of(folder)
    _check_manifest(folder, manifest, needs)
    try:
        found = CachedTeacher(folder, device)
    except DamagedFile as error:
        if not needs.has_teacher:
            raise
        logger.info("the teacher completes the cache %s: %s", folder, error.__cause__)
        return None
    missing = needs.missing(found)
    if not missing:
        return found
    if needs.has_teacher:
        return None
    raise ValueError(
        f"teacher_cache {folder} lacks {len(missing)} documents of this run, the first of them "
        f"{missing[0].num_tokens} tokens long: {_data_difference(manifest, needs)}; add them with "
        "distilllens cache, or set teacher_model_name_or_path"
    )


def of_main_process(value):
    """The main process's value, on all processes."""
    values = [value]
    broadcast_object_list(values)
    return values[0]


def name_of(teacher: TeacherSource) -> str:
    """A teacher's name for people."""
    source = teacher.source
    if isinstance(source, MixedTeacher):
        parts = zip(source.sources, source.weights, strict=True)
        return ", ".join(f"{name_of(each)} ({weight:.3g})" for each, weight in parts)
    if isinstance(source, ServedTeacher):
        return source.name
    if isinstance(source, CachedTeacher):
        return source.manifest.teacher_name
    return _name_of(source.lens.model)


def _datasets(collation):
    for _, dataset in collation.datasets():
        if dataset is not None and not isinstance(dataset, Dataset):
            raise ValueError(
                "teacher_cache needs data that can be read in advance, and a "
                f"{type(dataset).__name__} cannot; load it whole, or train without the cache"
            )
        if dataset is not None:
            yield dataset


def _rows(dataset, collation):
    bar = {"desc": "documents", "delay": 2, "leave": False, "disable": collation.is_quiet}
    for index in tqdm(range(len(dataset)), **bar):
        yield dataset, index, cut(**collation.batch([(dataset, index)]))


def _check_manifest(folder, manifest, needs):
    for name in ("tokenizer", "precision", "stored", "teacher", "teacher_files"):
        was, now = getattr(manifest, name), getattr(needs, name)
        if was is not None and now is not None and was != now:
            raise ValueError(
                f"teacher_cache {folder}: {name} was {was!r} and is now {now!r}; name another "
                "folder, or go back to what it was written with"
            )
    if manifest.depths and needs.tuned != (manifest.readout != LOGIT):
        kinds = {True: "tuned (through translators)", False: "logit (no translators)"}
        raise ValueError(
            f"teacher_cache {folder}: lens_readout was {kinds[not needs.tuned]} and is now "
            f"{kinds[needs.tuned]}; name another folder, or set lens_readout back"
        )
    if needs.teacher_files is not None and manifest.teacher_files is None:
        raise ValueError(
            f"teacher_cache {folder} was written by a model object, which cannot be compared with "
            f"{needs.teacher_name!r}; pass the object, or name no teacher to use the cache as it is"
        )


def _data_difference(manifest, needs):
    for name, now in needs.data.items():
        was = manifest.data.get(name)
        if was != now:
            return f"perhaps because {name} was {was!r} and is now {now!r}"
    return "other data, another prompt template, or evaluation data that are new"


def _student_of(collation):
    """Of a teacher with another tokenizer, the student's, which decides where it is compared."""
    tokenizer = collation.aligned_with
    return {} if tokenizer is None else {"student_tokenizer": tokenizer}


def _files_of(name, args):
    given = dict(args.teacher_model_init_kwargs or {})
    hub = {key: given[key] for key in _HUB if key in given}
    hub = {"trust_remote_code": args.trust_remote_code, **hub}
    config = load_config("teacher", name, **hub)
    matter = {key: str(given[key]) for key in _CHANGE_STATES if key in given}
    return {**fingerprint(name, config), **matter}


def _name_of(model):
    return getattr(model.config, "name_or_path", "") or "a model object"
