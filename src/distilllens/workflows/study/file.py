"""study.yaml -> a ``Study``, checked with file and line before torch is imported."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import replace

from distilllens.errors import did_you_mean
from distilllens.workflows.field_table import Field, may_be_declared, read_table
from distilllens.workflows.recipe_fields import UnknownField, check_recipe, declared, located
from distilllens.workflows.recipe_file import Recipe, read_recipe
from distilllens.workflows.study.matrix import Study
from distilllens.workflows.train_checks import check_files, check_loggers, check_values

EQUAL = ("steps", "seconds", "flops")
CHOOSE_BY = ("cross_entropy", "kl")
_FIELDS = (
    Field("base", "str", ["dict"]),
    Field("methods", "str", ["dict"]),
    Field("baseline", "str", ["str"]),
    Field("seeds", "str", ["int", "list"], items="int"),
    Field("learning_rates", "str", ["list"], items="float"),
    Field("choose_by", "str", ["str"], choices=[*CHOOSE_BY]),
    Field("equal", "str", ["str"], choices=[*EQUAL]),
    Field("evaluate", "str", ["dict"]),
    Field("max_hours", "float", ["float"]),
    Field("share_cache", "bool", ["bool"]),
    Field("keep_checkpoints", "bool", ["bool"]),
)
_EVALUATE = (
    Field("benchmarks", "str", ["str", "list"]),
    Field("seeds", "str", ["list"], items="int"),
    Field("limit", "int", ["int"]),
    Field("max_new_tokens", "int", ["int"]),
    Field("temperature", "float", ["float"]),
    Field("top_p", "float", ["float"]),
    Field("greedy", "bool", ["bool"]),
    Field("batch_size", "int", ["int"]),
    Field("max_prompt_length", "int", ["int"]),
    Field("sbert", "str", ["str"]),
    Field("dtype", "str", ["str"]),
    Field("device", "str", ["str"]),
)
# What a study sets itself, for every run.
_OURS = ("output_dir", "seed", "resume_from_checkpoint")
# What decides how many steps a run has, beside its data.
_STEPS = ("max_steps", "num_train_epochs")
_BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps", "packing")
_SHARED = ("eval_file", "model_name_or_path", "student_blocks", "student_config", "chat")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_UNUSED = "unused"  # an output_dir that is never made: every run has its own


def read_study(path: str) -> Study:
    """The study in a YAML file.

    Raises:
        ValueError: one line with file and line, and what would be right.
        OSError: a file that cannot be read.
    """
    file = read_recipe(path, "study")
    values = {
        name: value
        for name, value in check_recipe(file, declared(_FIELDS)).items()
        if value is not None
    }
    for name in ("base", "methods"):
        if not isinstance(values.get(name), dict):
            raise ValueError(f"{file.where(name)}: {_MISSING[name]}")
    base = _fields_of(file.inner["base"], "base")
    seeds = _seeds(values.get("seeds", 3), file.where("seeds"))
    methods, own = _methods(file, values["methods"], seeds)
    study = Study(
        path=path,
        base=base,
        methods=methods,
        seeds=own,
        baseline=_baseline(file, values, methods),
        learning_rates=_rates(file, values.get("learning_rates", [])),
        evaluate=_evaluation(file, {} if (e := values.get("evaluate")) is None else e),
        **{n: values[n] for n in ("choose_by", "equal") if n in values},
        **{n: values[n] for n in ("share_cache", "keep_checkpoints") if n in values},
    )
    if (hours := values.get("max_hours")) is not None:
        if not 0 < hours < math.inf:
            raise ValueError(f"{file.where('max_hours')}: max_hours must be above 0, got {hours}")
        study = replace(study, max_hours=hours)
    _check_terms(study, file)
    for name in methods:
        _check_method(study, name, file)
    return study


_MISSING = {
    "base": "base is missing: the recipe fields that all methods share, as a mapping",
    "methods": "methods is missing: a mapping of names to recipe fields, such as "
    "'kd: {lens_weight: 0}'",
}


_MOST_SEEDS = 10_000


def _seeds(value, where):
    if isinstance(value, int) and value > _MOST_SEEDS:
        raise ValueError(
            f"{where}: seeds is at most {_MOST_SEEDS}, a run for each, got a larger one"
        )
    seeds = tuple(range(1, value + 1)) if isinstance(value, int) else tuple(value)
    if not seeds:
        raise ValueError(f"{where}: seeds needs at least one: a number of seeds, or a list")
    for at, seed in enumerate(seeds):
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
            raise ValueError(
                f"{where}: a seed is a whole number from 0 to {2**32 - 1}, got {seed!r}"
            )
        if seed in seeds[:at]:
            raise ValueError(f"{where}: seeds names {seed} twice")
    return seeds


def _methods(file, given, seeds):
    """Name -> fields, and name -> seeds."""
    if not given:
        raise ValueError(f"{file.where('methods')}: {_MISSING['methods']}")
    part = file.inner["methods"]
    methods, own, lower = {}, {}, {}
    for name, fields in given.items():
        where = part.where(str(name))
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(
                f"{where}: a method's name is letters, digits and ._+-, got {name!r}; it names a "
                "folder"
            )
        if (other := lower.setdefault(name.lower(), name)) != name:
            raise ValueError(f"{where}: methods {other} and {name} would share a folder")
        if fields is not None and not isinstance(fields, dict):
            raise ValueError(
                f"{where}: method {name} must be a mapping of recipe fields, got {fields!r}; "
                "write {} for the base as it is"
            )
        inner = part.inner.get(name) or Recipe(where, {}, {}, {})
        chosen = dict(inner.values)
        if "seeds" in chosen:
            own[name] = _seeds(chosen.pop("seeds"), inner.where("seeds"))
            if extra := [seed for seed in own[name] if seed not in seeds]:
                raise ValueError(
                    f"{inner.where('seeds')}: method {name} has seed {extra[0]}, which is none of "
                    f"the study's ({', '.join(map(str, seeds))})"
                )
        else:
            own[name] = seeds
        methods[name] = _fields_of(replace(inner, values=chosen), f"method {name}")
    return methods, own


def _fields_of(recipe, what):
    """The fields of a part, each of the type of its field."""
    if ours := [name for name in _OURS if name in recipe.values]:
        raise ValueError(
            f"{recipe.where(ours[0])}: {what} sets {ours[0]}, which the study sets for every run"
        )
    table = read_table()
    try:
        return check_recipe(recipe, declared(table.fields))
    except UnknownField as error:
        if may_be_declared(error.name):
            return dict(recipe.values)
        raise
    except ValueError:
        if not table.is_of_installed_versions():
            return dict(recipe.values)
        raise


def _baseline(file, values, methods):
    name = values.get("baseline", next(iter(methods)))
    if name not in methods:
        raise ValueError(
            f"{file.where('baseline')}: baseline {name!r} is none of the methods "
            f"({', '.join(methods)}){did_you_mean(name, methods)}"
        )
    return name


def _rates(file, rates):
    where = file.where("learning_rates")
    for at, rate in enumerate(rates):
        is_number = isinstance(rate, int | float) and not isinstance(rate, bool)
        if not is_number or not 0 < rate < sys.float_info.max:
            raise ValueError(f"{where}: a learning rate must be above 0, got {str(rate)[:60]}")
        if rate in rates[:at]:
            raise ValueError(f"{where}: learning_rates names {rate:g} twice")
    return tuple(map(float, rates))


def _evaluation(file, given):
    if not isinstance(given, dict):
        raise ValueError(
            f"{file.where('evaluate')}: evaluate is a mapping such as {{benchmarks: [a.jsonl]}}, "
            f"got {given!r}"
        )
    part = file.inner.get("evaluate") or Recipe(file.path, {}, {}, {})
    values = check_recipe(replace(part, values=given), declared(_EVALUATE))
    values = {name: value for name, value in values.items() if value is not None}
    if isinstance(values.get("benchmarks"), str):
        values["benchmarks"] = [values["benchmarks"]]
    if "seeds" in values:
        if not isinstance(values["seeds"], list):
            raise ValueError(
                f"{part.where('seeds')}: seeds of evaluate is a list, such as [10, 20], got "
                f"{values['seeds']!r}"
            )
        values["seeds"] = _seeds(values["seeds"], part.where("seeds"))
    if values and not values.get("benchmarks"):
        raise ValueError(
            f"{part.where(next(iter(values)))}: evaluate has no benchmarks: name some, or leave "
            "evaluate out to score the development set alone"
        )
    return values


def _check_terms(study, file):
    """Refuse what would not be on equal terms."""
    part = file.inner["methods"]
    if study.base.get("eval_file") is None:
        raise ValueError(
            f"{file.where('base')}: base needs eval_file, the development set on which every run "
            "is scored"
        )
    for name, fields in study.methods.items():
        where = part.inner[name].where if name in part.inner else part.where
        fixed = {
            **dict.fromkeys(_STEPS, f"all runs have the same {study.equal}, set in base"),
            **dict.fromkeys(_SHARED, "all methods share it; set it in base"),
        }
        if study.equal == "steps":
            fixed |= dict.fromkeys(_BATCH, "equal: steps wants equal batches; set it in base")
        if study.learning_rates:
            fixed["learning_rate"] = "each method's is chosen from learning_rates"
        for field in fields:
            if field in fixed:
                raise ValueError(f"{where(field)}: method {name} sets {field}: {fixed[field]}")
    if study.learning_rates and "learning_rate" in study.base:
        raise ValueError(
            f"{file.inner['base'].where('learning_rate')}: base sets learning_rate, and each "
            "method's is chosen from learning_rates; leave one of them out"
        )
    if missing := [
        seed for s in study.seeds.values() for seed in s if seed not in study.seeds[study.baseline]
    ]:
        raise ValueError(
            f"{file.where('baseline')}: the baseline {study.baseline} does not have seed "
            f"{missing[0]}, which another method has; differences are taken seed by seed"
        )
    if "student_blocks" in study.base and len(study.teachers) > 1:
        raise ValueError(
            f"{file.inner['base'].where('student_blocks')}: student_blocks are of the teacher, and "
            f"the methods have several ({', '.join(study.teachers)}): all runs start from one "
            "student; cut it out first (distilllens prune) and name it by model_name_or_path"
        )
    if study.choose_by == "kl" and study.common_teacher is None:
        raise ValueError(
            f"{file.where('choose_by')}: choose_by kl needs one teacher with the student's "
            "tokenizer for all methods, named by teacher_model_name_or_path; choose_by: "
            "cross_entropy needs none"
        )


# Field -> why a run with it is none of a study's.
_NOT_IN_A_STUDY = {
    "push_to_hub": "whose runs would all go to one repository; upload the one that you keep",
}


def _check_method(study, name, file):
    """Refuse fields that no run can use, and files that are not there."""
    values = {**study.recipe(name), "output_dir": _UNUSED}
    part = file.inner["methods"].inner.get(name)
    parts = [each for each in (part, file.inner["base"]) if each is not None]
    table = read_table()
    try:
        for field in ("output_divergence", "lens_divergence"):
            table.check_divergence(field, values.get(field))
        for field, reason in _NOT_IN_A_STUDY.items():
            if values.get(field):
                raise ValueError(f"{field} is not for a study, {reason}")
        check_values(values)
        check_loggers(values.get("report_to"))
        check_files(values)
    except ValueError as error:
        for each in parts:
            if (found := located(error, each, [])) is not error:
                raise ValueError(f"{found} (method {name})") from error
        raise ValueError(f"{study.path}: method {name}: {error}") from error
