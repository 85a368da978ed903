"""What the name of a model means: a folder of this machine or a hub id; what a folder lacks."""

from __future__ import annotations

import difflib
import os
import re
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from distilllens.stored import DamagedFile, read_stored

_WEIGHTS = ("*.safetensors", "*.bin", "*.index.json")
_JSON = {
    "config.json": ("config.json",),
    "tokenizer": (
        "tokenizer_config.json",
        "tokenizer.json",
        "special_tokens_map.json",
        "added_tokens.json",
    ),
    "weights": ("generation_config.json", "model.safetensors.index.json"),
}
_TOKENIZER_PATTERNS = ("tokenizer*", "vocab*", "*.model", "*.tiktoken", "tekken.json")


def is_local(name: str) -> bool:
    """Whether a name means a folder of this machine, whether it exists or not."""
    return (
        name.startswith((".", "/", "~"))
        or "\\" in name
        or name.count("/") > 1
        or Path(name).exists()
        or bool(why_no_id(name))
    )


def why_no_id(name: str) -> str:
    """Why a name that could be a hub id is none, or nothing."""
    first, slash, last = name.partition("/")
    if not slash or "/" in last or name.startswith((".", "/", "~")) or not Path(first).is_dir():
        return ""
    return f" (there is a folder {first} here, so this is no name on Hugging Face)"


def meant(name: str) -> str:
    """A question about the folder that was probably meant, or nothing."""
    path = Path(os.path.expanduser(name))
    if str(path) != name and path.is_dir():
        return f"; did you mean {path}?"
    try:
        near = [folder.name for folder in path.parent.iterdir() if folder.is_dir()]
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, near, n=1)
    return f"; did you mean {path.with_name(close[0])}?" if close else ""


def check_folder_of(what: str, name: str, advice: str = ""):
    """Refuse a folder that is not there: looked for on the hub, it would take half a minute.

    Args:
        what: what the message calls the model.
        advice: ends the message.

    Raises:
        ValueError: with the folder that was probably meant.
    """
    if is_local(name) and not Path(name).is_dir():
        problem = "no such folder" + why_no_id(name)
        problem = "it is a file; name its folder" if Path(name).exists() else problem
        raise ValueError(f"cannot load {what}: {problem}{meant(name)}{advice}")


def check_hub_of(what: str, name: str, advice: str = ""):
    """Refuse a hub id where the hub cannot be reached and nothing of it was downloaded.

    The libraries would try for half a minute.

    Args:
        what: what the message calls the model.
        advice: ends the message.

    Raises:
        ValueError: with what was looked for.
    """
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).hostname
    if is_local(name) or constants.HF_HUB_OFFLINE or getproxies():
        return  # offline, the libraries say so at once
    if Path(constants.HF_HUB_CACHE, f"models--{name.replace('/', '--')}").is_dir():
        return
    try:
        socket.getaddrinfo(host, 443)
    except OSError as error:
        raise ValueError(
            f"cannot load {what}: there is no such folder here{meant(name)}, no model of that name "
            f"was downloaded before, and {host} cannot be reached ({error.strerror}){advice}"
        ) from None


def missing_in(folder: Path, part: str) -> str | None:
    """What a folder lacks of a model's "config.json", "tokenizer" or "weights"; None if unknown."""
    if part == "tokenizer" and not any(any(folder.glob(name)) for name in _TOKENIZER_PATTERNS):
        return "the folder holds no tokenizer"
    if part == "weights" and not any(any(folder.glob(name)) for name in _WEIGHTS):
        return f"the folder holds no weights (model.safetensors){_checkpoint_in(folder)}"
    if part == "config.json" and not (folder / part).is_file():
        return f"the folder has no readable config.json: there is none{_checkpoint_in(folder)}"
    if part == "config.json":
        try:
            read_stored(folder / part, dict[str, Any])
        except DamagedFile as error:
            return f"the folder has no readable config.json: {error}"
    return None


def broken_in(folder: Path, part: str) -> str | None:
    """Which JSON file of the "config.json", "tokenizer" or "weights" is no object, or None."""
    for name in _JSON.get(part, ()):
        try:
            if (folder / name).is_file():
                read_stored(folder / name, dict[str, Any])
        except DamagedFile as error:
            return str(error)
    return None


def _checkpoint_in(folder):
    found = [path.parent for path in folder.glob("checkpoint-*/config.json")]
    newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
    return f"; did you mean its checkpoint {newest}?" if newest else ""


def without_addresses(text: str) -> str:
    """A message without its sentences on the hub, where a folder's name is taken for an id."""
    kept = [part for part in re.split(r"(?<=\.) ", text) if "huggingface.co" not in part]
    return " ".join(kept) or "a file of it is missing"
