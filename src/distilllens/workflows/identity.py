"""What is known of a run's models before they are loaded: fingerprints, and their depths."""

from __future__ import annotations

import hashlib
import json
from types import SimpleNamespace

from distilllens.fingerprints import fingerprint, tokenizer_fingerprint
from distilllens.layer_map import LayerMap
from distilllens.loading import load_config
from distilllens.teacher.cache import manifest_of
from distilllens.train.schedule import pair_weights
from distilllens.train.teacher_fields import each_alone
from distilllens.train.teachers import depths_of, layer_map_of


def student_identity(model, config) -> dict:
    """The fingerprint of the student that ``trl.ModelConfig`` names."""
    return fingerprint(str(model.model_name_or_path), config)


def tokenizer_identity(tokenizer) -> dict[str, str]:
    """The fingerprints of a tokenizer and of its chat template, which decide a run's tokens."""
    template = repr(tokenizer.chat_template).encode()
    return {
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "chat_template": hashlib.blake2b(template, digest_size=8).hexdigest(),
        "pipeline": hashlib.blake2b(_pipeline(tokenizer), digest_size=8).hexdigest(),
    }


def _pipeline(tokenizer):
    """Everything a fast tokenizer does to a text, and the special tokens, as bytes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    steps = {} if backend is None else json.loads(backend.to_str())
    for transient in ("padding", "truncation"):  # left behind by the last call
        steps.pop(transient, None)
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return json.dumps([steps, special], sort_keys=True).encode()


def rows_identity(records) -> str:
    """What distinguishes the rows of a data set that is no file: their contents, in order."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(json.dumps(record, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def teacher_identities(args) -> dict:
    """Role -> ``teacher_identity``, of several teachers by their numbers; empty without one.

    Raises:
        ValueError: as ``teacher_identity``.
    """
    if args.teachers is not None:
        each = enumerate(each_alone(args), 1)
        return {f"teacher {number}": teacher_identity(alone) for number, alone in each}
    found = teacher_identity(args)
    return {} if found is None else {"teacher": found}


def teacher_identity(args):
    """The fingerprint of the named teacher, or of the one in the teacher cache; None for neither.

    Raises:
        ValueError: a teacher or a cache that cannot be found.
    """
    if not (teacher := args.teacher_model_name_or_path):
        return manifest_of(args.teacher_cache).teacher if args.teacher_cache else None
    return fingerprint(teacher, teacher_config_of(args))


def check_depths(args, student_config):
    """Refuse ``lens_layers``, or weights of its pairs, that the models do not have.

    As their configurations tell.

    Raises:
        ValueError: with the depths there are; also as ``teacher_identity``.
    """
    for layer_map in maps_by_names(args, student_config):
        pair_weights(args.lens_pair_weights, layer_map)


def maps_by_names(args, student_config) -> list[LayerMap]:
    """The pairs of each named or cached teacher, where configurations tell the depths.

    Raises:
        ValueError: as ``check_depths``.
    """
    if args.teachers is not None:
        each = (maps_by_names(alone, student_config) for alone in each_alone(args))
        return [layer_map for maps in each for layer_map in maps]
    if args.teacher_model_name_or_path:
        num_layers = _num_layers(teacher_config_of(args))
    elif args.teacher_cache:
        num_layers = manifest_of(args.teacher_cache).num_layers
    else:
        return []
    if not num_layers or not _num_layers(student_config):
        return []
    found = layer_map_of(args, depths_of(student_config), SimpleNamespace(num_layers=num_layers))
    return [] if found is None else [found]


def teacher_config_of(args):
    """The configuration of the named teacher.

    Raises:
        ValueError: it cannot be loaded.
    """
    settings = {
        "revision": (args.teacher_model_init_kwargs or {}).get("revision", "main"),
        "trust_remote_code": args.trust_remote_code,
    }
    return load_config("teacher", args.teacher_model_name_or_path, **settings)


def _num_layers(config):
    """The number of blocks that a configuration tells; None if it tells none."""
    return getattr(config.get_text_config(), "num_hidden_layers", None)
