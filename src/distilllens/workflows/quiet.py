"""Hide the progress bars of transformers, for commands that show their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from transformers.utils import logging as transformers_logging


@contextmanager
def hidden_library_bars() -> Iterator[None]:
    """Hide the bars of transformers ("Loading weights" ...) in this block, except downloads."""
    shown, downloads = (
        transformers_logging.is_progress_bar_enabled(),
        not are_progress_bars_disabled(),
    )
    transformers_logging.disable_progress_bar()  # also hides those of huggingface_hub
    if downloads:
        enable_progress_bars()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
