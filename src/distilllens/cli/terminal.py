"""Terminal output of a command: one line a stage, warnings that stand out, few progress bars."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_OWN = logging.getLogger("distilllens")
_LIBRARIES = ("accelerate", "bitsandbytes", "huggingface_hub", "peft", "transformers", "trl")
# Warnings of transformers that are wrong or do not matter here.
_HARMLESS = (
    "Token indices sequence length is longer",  # examples are truncated after tokenization
    "Model config: ",  # distilllens cache prepares data with a placeholder model
    "The tokenizer has new PAD/BOS/EOS tokens",
    "MatMul8bitLt: inputs will be cast",  # at every layer of every step
)
# Of huggingface_hub: each try to reach the hub. What comes of them is said once.
_TRIES = ("thrown while requesting", "Retrying in ")
# The quiet command that is running; what is put on it is undone at its end.
_quiet: list[ExitStack] = []


class _Terminal(logging.Handler):
    """Print messages to standard error, on the main process only."""

    def emit(self, record):
        if os.environ.get("RANK", "0") != "0":
            return
        try:
            text = self.format(record)
            _print(f"distilllens: warning: {text}" if record.levelno >= logging.WARNING else text)
        except Exception:
            self.handleError(record)


@contextmanager
def command_output(*, verbose: bool = False) -> Iterator[None]:
    """Print the messages of ``distilllens`` in this block; all handlers are removed at its end.

    Unless ``verbose``, warnings of the libraries look like ours, and their other messages and bars
    are hidden from ``quiet_libraries()`` on.
    """
    if any(isinstance(handler, _Terminal) for handler in _OWN.handlers):
        yield
        return
    handler = _Terminal()
    with ExitStack() as stack:
        _attach(stack, _OWN, handler)
        stack.callback(_OWN.setLevel, _OWN.level)
        _OWN.setLevel(logging.INFO)
        if not verbose:
            # datasets reads it when it is imported.
            _set(stack, "HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
            if os.environ.get("RANK", "0") != "0":
                # torch's own library, too, reads it when it is loaded.
                _set(stack, "TORCH_CPP_LOG_LEVEL", "ERROR")
            for name in _LIBRARIES:
                _attach(stack, logging.getLogger(name), handler)
            handler.addFilter(_matters)
            stack.callback(setattr, warnings, "showwarning", warnings.showwarning)
            warnings.showwarning = _show_warning
            _quiet.append(stack)
            stack.callback(_quiet.remove, stack)
        yield


def stage(text: str) -> None:
    """Print a line on what the command does next."""
    logging.getLogger(__name__).info(text)


def is_quiet() -> bool:
    """Whether the messages of the libraries are hidden in the command that is running."""
    return bool(_quiet)


def quiet_libraries() -> None:
    """Hide the bars of transformers and its own handler; call it after the heavy imports."""
    if not _quiet:
        return
    from distilllens.workflows.quiet import hidden_library_bars

    stack = _quiet[-1]
    stack.enter_context(hidden_library_bars())
    for name in ("transformers", "huggingface_hub"):
        library = logging.getLogger(name)
        stack.callback(setattr, library, "handlers", library.handlers)
        library.handlers = [h for h in library.handlers if type(h) is not logging.StreamHandler]


def _set(stack, name, value):
    """Set an environment variable until the end of a stack, unless it is set."""
    if name not in os.environ:
        os.environ[name] = value
        stack.callback(os.environ.pop, name, None)


def _attach(stack, logger, handler):
    logger.addHandler(handler)
    stack.callback(logger.removeHandler, handler)


def _matters(record):
    text = record.getMessage()
    return not text.startswith(_HARMLESS) and not any(part in text for part in _TRIES)


def _show_warning(message, category, *_, **__):
    if not issubclass(category, (DeprecationWarning, FutureWarning, PendingDeprecationWarning)):
        _OWN.warning(" ".join(str(message).split()))


def _print(text):
    # A line that is written past tqdm would break the bar that is shown.
    if "tqdm" in sys.modules:
        sys.modules["tqdm"].tqdm.write(text, file=sys.stderr)
    else:
        print(text, file=sys.stderr, flush=True)
