"""Fingerprints of a run's models, taken before the models are loaded."""

from __future__ import annotations

import hashlib

from distilllens.fingerprints import fingerprint, tokenizer_fingerprint
from distilllens.loading import load_config
from distilllens.teacher.cache import status


def student_identity(model, config) -> dict:
    """The fingerprint of the student that ``trl.ModelConfig`` names."""
    return fingerprint(str(model.model_name_or_path), config)


def tokenizer_identity(tokenizer) -> str:
    """The fingerprint of a tokenizer and its chat template: what decides a run's tokens."""
    template = hashlib.blake2b(repr(tokenizer.chat_template).encode(), digest_size=4).hexdigest()
    return f"{tokenizer_fingerprint(tokenizer)}-{template}"


def teacher_identity(args):
    """The fingerprint of the named teacher, or of the one in the teacher cache; None for neither.

    Raises:
        ValueError: a teacher or a cache that cannot be found.
    """
    teacher = args.teacher_model_name_or_path
    if not teacher:
        return status(args.teacher_cache)[0].teacher if args.teacher_cache else None
    revision = (args.teacher_model_init_kwargs or {}).get("revision", "main")
    trusted = args.trust_remote_code
    config = load_config("teacher", teacher, revision=revision, trust_remote_code=trusted)
    return fingerprint(teacher, config)
