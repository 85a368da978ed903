"""A model and its tokenizer as a folder of plain transformers: whole, or not there."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from distilllens.errors import first_line
from distilllens.train.saving import make_saveable

logger = logging.getLogger(__name__)


def write_model(model, tokenizer, output: Path):
    """Save to a folder beside, then give it its name.

    Args:
        tokenizer: None for a model without one.
        output: a folder that is new or empty.

    Raises:
        OSError: a folder that cannot be written; nothing of it is left.
    """
    make_saveable(model, tokenizer)
    part = output.with_name(f"{output.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    try:
        model.save_pretrained(part)
        if tokenizer is None:
            logger.warning("the model has no tokenizer; %s will have none either", output)
        else:
            tokenizer.save_pretrained(part)
        if output.exists():
            output.rmdir()
        os.replace(part, output)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        is_plain = isinstance(error, OSError) and error.errno is not None
        if is_plain or not isinstance(error, Exception):
            raise
        raise OSError(f"{output} could not be written: {first_line(error)}") from error
