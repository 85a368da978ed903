"""Whether two recipes are one: by values and contents, not by how they are spelled."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from trl import ModelConfig

from distilllens.masking import masked
from distilllens.train.config import DistillLensConfig

# Compared by their contents: role of the data -> field.
_DATA = {"train": "train_file", "eval": "eval_file"}
_MODELS = {"student": "model_name_or_path", "teacher": "teacher_model_name_or_path"}
# Fields of a run's data that have a default.
_DEFAULTS = {"dataset_train_split": "train", "chat": False}
_DEFAULTS |= {"dataset_streaming": False, "dataset_shuffle_buffer": 1000}
# A mixture is compared by its rows; the other is another name of dataset_streaming.
_IN_ROWS = ("datasets", "streaming")
# It changes nothing that is learned, and a run that waited in vain may need another.
_WAITING = ("ddp_timeout",)
# A second configuration with these would replace what the hosts remember of the first.
_GLOBAL = {"accelerator_config", "deepspeed", "fsdp", "fsdp_config", "parallelism_config"}


# Schedulers whose learning rate depends on evaluations.
FOLLOWS_EVALUATION = ("reduce_lr_on_plateau", "greedy")


class _File(NamedTuple):
    path: str
    sha256: str


def keeps_best(given: Mapping[str, Any]) -> bool:
    """Whether evaluation and saving decide which weights of a run are final.

    They do where the best checkpoint is kept, and where the learning rate follows the evaluation.
    """
    scheduler = given.get("lr_scheduler_type")
    if getattr(scheduler, "value", scheduler) in FOLLOWS_EVALUATION:
        return True
    return bool(given.get("load_best_model_at_end") or given.get("eval_generate"))


def first_difference(before: Mapping, now: Mapping) -> str | None:
    """The first true difference of two recipes (``run_folder.recipe_identity``); None for equals.

    A field that is not set has its default. Data files are compared by hash and order, evaluation
    data only if they decide which weights are final; folders of models by fingerprint, other paths
    by where they lead.
    """
    before, now = masked(before), masked(now)  # version 0.1.0 wrote tokens as they were
    differences = (part(before, now) for part in (_in_fields, _in_data, _in_rows, _in_models))
    return next(chain.from_iterable(differences), None)


def _in_fields(before, now) -> Iterator[str]:
    old, new = before.get("fields", {}), now.get("fields", {})
    names = sorted((old.keys() | new.keys()) - {*_DATA.values(), *_IN_ROWS, *_WAITING})
    # What is not set has its default, or a value that follows from other fields and the machine.
    for default in (_plain, _derived):
        if names:
            a, b = default(old) | old, default(new) | new
            names = [name for name in names if not _equal(name, a.get(name), b.get(name))]
    for name in names:
        if not any(name == field and _moved(r, before, now) for r, field in _MODELS.items()):
            yield f"{name} was {_shown(old.get(name))} and is now {_shown(new.get(name))}"


def _equal(name, before, now):
    # An address is no model, whose name run_folder compares, and a cache's folder is no teacher.
    if name in ("teacher_server", "teacher_cache"):
        return (before is None) == (now is None)
    if before == now:
        return True
    if not isinstance(before, str) or not isinstance(now, str):
        return False
    if name == "lens_layers":
        return "".join(before.split()) == "".join(now.split())
    return os.path.realpath(before) == os.path.realpath(now)


def _plain(given):
    """Field -> default, whatever is given."""
    return _DEFAULTS | {
        each.name: each.default if each.default_factory is MISSING else each.default_factory()
        for part in (ModelConfig, DistillLensConfig)
        for each in fields(part)
    }


def _derived(given):
    """Field -> value in a configuration with the given fields."""
    known = {each.name for each in fields(DistillLensConfig)} & given.keys()
    if known & _GLOBAL:
        return _plain(given)
    try:
        args = DistillLensConfig(**{"output_dir": "."} | {name: given[name] for name in known})
    except Exception:  # what an older version took, this one may refuse in any way
        return _plain(given)
    return _plain(given) | vars(args)


def _in_data(before, now) -> Iterator[str]:
    for role, field in _DATA.items():
        best = any(keeps_best(recipe.get("fields", {})) for recipe in (before, now))
        if role == "eval" and not best:
            continue
        for place, pair in enumerate(zip_longest(_files(before, role), _files(now, role)), 1):
            old, new = pair
            if old is None or new is None or old.sha256 != new.sha256:
                yield _data_difference(f"file {place} of {field}", old, new)


def _in_rows(before, now) -> Iterator[str]:
    """Rows of a data set by name; version 0.1.0 did not note them."""
    old, new = before.get("rows", {}), now.get("rows", {})
    best = any(keeps_best(recipe.get("fields", {})) for recipe in (before, now))
    for role in sorted(old.keys() & new.keys()):
        if old[role] != new[role] and (role == "train" or best):
            shown = f"were {_shown(old[role])} and are now {_shown(new[role])}"
            yield f"the {role} rows {shown}"


def _data_difference(place, before, now):
    if before is not None and now is not None and Path(before.path) == Path(now.path):
        hashes = f"{_shown(before.sha256)} and is now {_shown(now.sha256)}"
        return f"data file {now.path} was {hashes}"
    paths = [_shown(file and file.path) for file in (before, now)]
    return f"{place} was {paths[0]} and is now {paths[1]}"


def _files(recipe, role) -> list[_File]:
    """The data files of a role, in reading order."""
    named = recipe.get("fields", {}).get(_DATA[role]) or []
    named = {Path(path) for path in ([named] if isinstance(named, str) else named)}
    return [
        _File(path, digest)
        for path, digest in recipe.get("data", {}).items()
        if named & {Path(path), Path(path).parent}
    ]


def _in_models(before, now) -> Iterator[str]:
    old, new = before.get("models", {}), now.get("models", {})
    for role in sorted(old.keys() | new.keys()):
        if role == "tokenizer" and role not in old:
            continue  # version 0.1.0 did not note it
        if old.get(role) != new.get(role):
            what = "the tokenizer" if role == "tokenizer" else f"the {role} model"
            yield f"{what} was {_shown(old.get(role))} and is now {_shown(new.get(role))}"


def _moved(role, before, now):
    """Whether the model of a role is the same folder in another place."""
    old, new = before.get("models", {}), now.get("models", {})
    name = now.get("fields", {}).get(_MODELS[role])
    same = old.get(role) is not None and old.get(role) == new.get(role)
    # The student's folder has the tokenizer, too.
    same &= role != "student" or old.get("tokenizer") is not None
    return same and isinstance(name, str) and Path(name).is_dir()


def _shown(value):
    text = "not set" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
