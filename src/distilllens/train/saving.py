"""What could prevent a student from being saved, found before it is trained."""

from __future__ import annotations

import logging
import tempfile

from transformers import GenerationConfig, PreTrainedModel

from distilllens.errors import one_line
from distilllens.train._trl import invalid_generation_fields

logger = logging.getLogger(__name__)


def make_saveable(student, tokenizer):
    """Reset the generation settings that transformers refuses to save, and try what else it saves.

    Raises:
        ValueError: a configuration or a tokenizer that cannot be saved.
    """
    parts = {"tokenizer": tokenizer}
    if isinstance(student, PreTrainedModel):  # of an adapter, PEFT saves nothing of these
        if student.can_generate():
            _repair(student.generation_config)
            parts["generation_config"] = student.generation_config
        parts["configuration"] = student.config
    with tempfile.TemporaryDirectory() as folder:
        for name, part in parts.items():
            try:
                part.save_pretrained(folder)
            except OSError:  # of the disk of temporary files
                continue
            except Exception as error:
                text = f"the {name} of the student cannot be saved: {one_line(error)}"
                raise ValueError(text) from error


def _repair(generation_config):
    """Published configurations have, for example, a temperature and ``do_sample: false``."""
    try:
        fields = invalid_generation_fields(generation_config)
    except ValueError as error:
        text = f"the generation_config of the student is not valid: {one_line(error)}"
        raise ValueError(text) from error
    if not fields:
        return
    default = GenerationConfig()
    given = [f"{name} ({getattr(generation_config, name)!r})" for name in fields]
    for name in fields:
        setattr(generation_config, name, getattr(default, name))
    logger.warning(
        "the student's generation_config.json has settings without effect, with which it could "
        "not be saved; reset: %s",
        ", ".join(given),
    )
