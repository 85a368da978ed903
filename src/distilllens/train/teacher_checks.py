"""Who the teacher is: fields that contradict each other, or that one kind of teacher cannot have.

No torch is needed, so the command line checks them before it is imported.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

TOP_K = 20  # the default of teacher_server_top_k
_ENTRY = {"model": None, "weight": None, "lens_layers": None, "model_init_kwargs": None}
_ENTRY |= {"cache": None}
_EXAMPLE = "[{model: A, weight: 0.7}, {model: B, weight: 0.3}]"
# Field -> its default, and why several teachers do not go with another value.
_NOT_WITH_SEVERAL = {
    "teacher_model_name_or_path": (None, "it names one teacher; write it as an entry of teachers"),
    "teacher_cache": (None, "each teacher has a cache of its own; write cache into its entry"),
    "teacher_server": (None, "the models of a mixture run here; leave one of them out"),
    "cross_tokenizer": (
        None,
        "their predictions are mixed token by token, so all need the student's tokenizer",
    ),
    "teacher_tokenizer_name_or_path": (None, "all have the student's tokenizer"),
    "lens_readout": ("logit", "translators are fitted to one teacher; set lens_readout: logit"),
    "lens_token_weights": (
        "uniform",
        "entropy is the certainty of one teacher; set lens_token_weights: uniform",
    ),
    "feature_weight": (
        0,
        "hidden states of several models have no mean; leave it out, or name one teacher",
    ),
    "student_blocks": (
        None,
        "they are those of one teacher; cut the student out of it first "
        "(distilllens prune), and name it by model_name_or_path",
    ),
}
# teacher_sharding: its values, the default first.
SHARDINGS = (SHARD, REPLICATE) = ("shard", "replicate")
_NO_STATES = "a server returns predictions and no hidden states"
_NOT_WITH_SERVER = {
    "teacher_model_name_or_path": (
        None,
        "the teacher is at the server; name it there by teacher_server_model",
    ),
    "teacher_model_init_kwargs": (None, "the server has loaded the teacher"),
    "teacher_cache": (None, f"a cache holds hidden states, and {_NO_STATES}"),
    "teacher_sharding": (SHARD, "no weights of the teacher are here; leave it out"),
    "cross_tokenizer": (
        None,
        "the server is asked in tokens of the student; leave one of them out",
    ),
    "feature_weight": (0, f"it compares hidden states, and {_NO_STATES}"),
    "student_blocks": (
        None,
        "the blocks are those of a teacher that is here; name a student by model_name_or_path",
    ),
    "temperature": (
        1,
        "how it changes the tokens that the server does not list is not known; set temperature: 1",
    ),
}


def check_teachers(values: Mapping[str, Any]):
    """Refuse teachers that contradict each other, and what does not go with their kind.

    Args:
        values: field -> value; one that is missing has its default.

    Raises:
        ValueError: with the field, and what to do instead.
    """
    if (teachers := values.get("teachers")) is not None:
        _check_entries(teachers)
        _check_alone("teachers", _NOT_WITH_SEVERAL, values)
        if values.get("on_policy_fraction") and any(entry.get("cache") for entry in teachers):
            raise ValueError(
                "on_policy_fraction does not go with a cache in teachers: a cache holds states for "
                "the answers of the data, and what the student will write is not known beforehand"
            )
    _check_sharding(values)
    server = values.get("teacher_server")
    if server is None:
        if values.get("teacher_server_model") is not None:
            raise ValueError("teacher_server_model is a name at teacher_server; set that too")
        if (top_k := values.get("teacher_server_top_k", TOP_K)) != TOP_K:
            raise ValueError(
                f"teacher_server_top_k {top_k} is asked of teacher_server; set that too"
            )
        return
    _check_address(server)
    _check_alone("teacher_server", _NOT_WITH_SERVER, values)
    if values.get("lens_weight", 1.0) != 0:
        raise ValueError(
            f"teacher_server does not go with a lens: it reads hidden states, and {_NO_STATES}; "
            "set lens_weight: 0"
        )
    if values.get("output_divergence") == "uld":
        raise ValueError(
            "teacher_server does not go with output_divergence uld, which sorts the probabilities "
            "of all tokens: the server lists some; choose another"
        )


def _check_sharding(values):
    """Refuse a ``teacher_sharding`` that is none, and one where no teacher runs."""
    if (sharding := values.get("teacher_sharding", SHARD)) not in SHARDINGS:
        raise ValueError(f"teacher_sharding is one of {', '.join(SHARDINGS)}, got {sharding!r}")
    entries = values.get("teachers") or ()
    if sharding == SHARD or any(entry.get("cache") is None for entry in entries):
        return
    if values.get("teacher_cache") or entries:
        raise ValueError(
            "teacher_sharding replicate does not go with a cache of the teacher, which does not "
            "run in training; leave it out"
        )


def check_teacher_sharding(fields: Mapping):
    """Refuse a ``teacher_sharding`` that says nothing.

    Args:
        fields: field -> value, of a recipe or of a configuration.

    Raises:
        ValueError: models are whole everywhere.
    """
    sharding = fields.get("teacher_sharding", SHARD)
    asked = fields.get("fsdp") or fields.get("deepspeed") or is_asked("FSDP")
    if sharding != SHARD and not (asked or is_asked("DEEPSPEED")):
        raise ValueError(
            f"teacher_sharding {sharding} is about FSDP and DeepSpeed, and without them all models "
            "are whole in each process; leave it out, or set accelerate_config: fsdp2 or zero3"
        )


def is_asked(kind: str) -> bool:
    """Whether accelerate launch asks for "FSDP" or "DEEPSPEED"."""
    return os.environ.get(f"ACCELERATE_USE_{kind}", "").lower() in ("true", "1")


def settled_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of ``teachers`` with every key."""
    layers = entry.get("lens_layers")
    return {**_ENTRY, **entry, "lens_layers": None if layers is None else str(layers)}


def _check_alone(field, reasons, values):
    for name, (default, reason) in reasons.items():
        value = values.get(name)
        if value is not None and value != default:
            raise ValueError(f"{field} does not go with {name}: {reason}")


def _check_entries(teachers):
    if not isinstance(teachers, list) or not teachers:
        raise ValueError(f"teachers must be a list such as {_EXAMPLE}, got {teachers!r}")
    for number, entry in enumerate(teachers, 1):
        where = f"entry {number} of teachers"
        if not isinstance(entry, Mapping):
            raise ValueError(f"{where} must be a mapping as in {_EXAMPLE}, got {entry!r}")
        if unknown := [key for key in entry if key not in _ENTRY]:
            known = ", ".join(_ENTRY)
            raise ValueError(f"{where}: unknown key {unknown[0]!r}; known: {known}")
        if (weight := entry.get("weight")) is None:
            raise ValueError(f"{where} has no weight; give each one, as in {_EXAMPLE}")
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not is_number or not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"{where}: weight must be a number of at least 0, got {weight!r}")
        for key, kind, what in (
            ("model", str, "a folder or hub id"),
            ("cache", str, "a folder"),
            ("model_init_kwargs", Mapping, "a mapping such as {dtype: bfloat16}"),
        ):
            value = entry.get(key)
            if value is not None and not (isinstance(value, kind) and value):
                raise ValueError(f"{where}: {key} must be {what}, got {value!r}")
        _check_layers(where, entry.get("lens_layers"))
    if not any(entry["weight"] for entry in teachers):
        raise ValueError("one of the teachers must have a weight above 0")
    folders = [entry["cache"] for entry in teachers if entry.get("cache")]
    if twice := next((folder for folder in folders if folders.count(folder) > 1), None):
        raise ValueError(f"teachers: {twice} is the cache of two; each needs a folder of its own")


def _check_layers(where, spec):
    from distilllens.train.lens_checks import check_lens_layers

    if spec is None:
        return
    try:
        check_lens_layers(str(spec) if isinstance(spec, int) else spec)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _check_address(server):
    parts = urlsplit(server) if isinstance(server, str) else None
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"teacher_server {server!r} is no address such as http://localhost:8000/v1"
        )
    if parts.username or parts.password:
        raise ValueError(
            "teacher_server holds a password: put the key into the variable OPENAI_API_KEY"
        )
