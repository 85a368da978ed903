"""The teacher's states for all runs of a study: it runs once over the data."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection
from pathlib import Path
from types import SimpleNamespace

from distilllens.files import write_atomically
from distilllens.loading import load_config
from distilllens.train.teachers import depths_of, layer_map_of
from distilllens.workflows import students
from distilllens.workflows.cache import write_cache
from distilllens.workflows.run_arguments import build_unused
from distilllens.workflows.study.materials import Materials, data_of
from distilllens.workflows.study.matrix import Study
from distilllens.workflows.study.runs import Folders

logger = logging.getLogger(__name__)
# Fields of a recipe that decide which documents are read.
_READ = ("train_file", "datasets", "eval_file", "eval_strategy", "max_length", "packing")
_READ += ("chat", "chat_template_path", "assistant_only_loss", "completion_only_loss", "eos_token")
# Fields of a recipe that decide which teacher's states a cache has, and of which tokens.
_TEACHER = (
    "teacher_model_name_or_path",
    "teacher_model_init_kwargs",
    "teacher_tokenizer_name_or_path",
    "cross_tokenizer",
)


class SharedCaches:
    """Which method reads which cache. Methods share one if they read the same kind of states.

    Raises:
        ValueError: fields of a method that no run can use, with the method.
    """

    def __init__(self, study: Study, folders: Folders):
        self.study, self.folders, self._materials = study, folders, Materials()
        kinds, depths = {}, {}
        for method in study.methods:
            try:
                job, model, args = build_unused(study.recipe(method))
                kind = _kind(args) if study.share_cache else None
                found = _depths(job, model, args)
            except ValueError as error:
                raise ValueError(f"{study.path}: method {method}: {error}") from error
            if kind is not None:
                kinds[method] = kind, _teacher(study.recipe(method))
                depths.setdefault(kinds[method], set()).update(found)
        several = len({teacher for _, teacher in kinds.values()}) > 1
        # Other depths, another folder: a cache cannot be widened.
        self._names = {
            method: "-".join([*kind[: 1 + several], *map(str, sorted(depths[kind]))])
            for method, kind in kinds.items()
        }
        self._depths = {name: depths[kinds[m]] for m, name in self._names.items()}

    def of(self, method: str) -> Path | None:
        """The folder of a method's cache; None if its teacher runs beside the student."""
        name = self._names.get(method)
        return None if name is None else self.folders.output / "caches" / name

    def fill(self, methods: Collection[str], alone: Callable):
        """Let the teacher run over what is missing.

        Args:
            methods: those that have runs left to train.
            alone: ``(name, function, *arguments)``: does something in a process of its own.

        Raises:
            ValueError: a cache that cannot be written.
        """
        for method, name in self._names.items():
            if method not in methods:
                continue
            fields = {**self.study.recipe(method), "teacher_cache": str(self.of(method))}
            read = [fields.get(field) for field in _READ]
            digest = _digest([read, self._materials.files(data_of(fields))])
            mark = self.of(method).with_name(f"{name}-{digest}.done")
            if mark.is_file():
                continue
            logger.info("the teacher runs once over the data of %s: %s", method, self.of(method))
            alone(f"cache-{name}", fill, fields, self._depths[name])
            write_atomically(mark, "")


def fill(fields: dict, depths: set[int]):
    """Write the teacher's states at these depths, and the last, over the data of a recipe."""
    write_cache(*build_unused(fields), depths)


def _kind(args):
    """What the cache of a method must hold; None if it has none of ours."""
    if not args.teacher_model_name_or_path or args.teacher_cache is not None:
        return None
    if args.on_policy_fraction > 0:
        logger.warning(
            "methods with on_policy_fraction run their teacher beside the student: no cache holds "
            "its states for what the student will write"
        )
        return None
    if args.feature_weight > 0 and args.lens_norm:
        logger.warning(
            "methods with feature_weight run their teacher beside the student: a shared cache "
            "holds the states that they compare with lens_norm: false only"
        )
        return None
    return f"{args.lens_readout}-{'normed' if args.lens_norm else 'raw'}"


def _teacher(fields):
    """What distinguishes teachers, and how they are read, in eight letters."""
    return _digest([fields.get(name) for name in _TEACHER])


def _digest(values):
    return hashlib.blake2b(repr(values).encode(), digest_size=4).hexdigest()


def _depths(job, model, args):
    """The teacher's depths that a method's runs read, beside the last."""
    if (name := args.teacher_model_name_or_path) is None:
        return set()
    students.check_student(job, model, args)
    args = students.with_student_settings(job, model, args)
    tokenizer = students.load_student_tokenizer(job, model, args)
    student = depths_of(students.load_student_config(job, model, args, tokenizer))
    config = load_config("teacher", name, trust_remote_code=args.trust_remote_code)
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if not layers:
        return set()
    pairs = layer_map_of(args, student, SimpleNamespace(num_layers=layers))
    return set(pairs.teacher_depths) if pairs else set()
