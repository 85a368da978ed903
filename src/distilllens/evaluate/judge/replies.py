"""A judge's replies on disk: one JSON object per line, appended as they arrive."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, fields
from hashlib import sha256
from pathlib import Path

from distilllens.files import named_errors
from distilllens.generate.server import Reply
from distilllens.jsonl import open_to_append, parse_row
from distilllens.stored import DamagedFile, check_stored

_BEGIN = b'{"key": "'

_FIELDS = {"key", *(field.name for field in fields(Reply))}


def key_of(question: dict) -> str:
    """The key of a reply: a hash of everything that it may depend on."""
    text = json.dumps(question, sort_keys=True)
    return sha256(text.encode()).hexdigest()[:32]


class ReplyCache:
    """Replies by key, read once and appended to a file.

    Threads may share a cache, and processes its file. A line torn by a crash is skipped, and ended
    before the next is written. If two lines have the same key, the reply whose text sorts first is
    used, so the order of lines does not matter.

    Raises:
        ValueError: the file holds something else.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._lock = threading.Lock()
        self._file = None
        self._replies = _read(self.path)

    def __len__(self):
        return len(self._replies)

    def get(self, key: str) -> Reply | None:
        """The reply, or None."""
        return self._replies.get(key)

    def add(self, key: str, reply: Reply, **about):
        """Keep a reply; its line is flushed on return. ``about`` adds fields for human readers."""
        line = json.dumps({"key": key, **asdict(reply), **about}, ensure_ascii=False) + "\n"
        with self._lock, named_errors(self.path):
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = open_to_append(self.path)
            self._file.write(line.encode("utf-8", "backslashreplace"))
            self._file.flush()
            self._replies[key] = reply

    def close(self):
        """Close the file; ``add`` opens it again."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None


def _read(path):
    if not path.exists():
        return {}
    if not path.is_file():
        raise ValueError(f"the judge's cache {path} is no file; name one, such as judge.jsonl")
    replies = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        entry = parse_row(line)
        if entry is not None and entry.keys() >= _FIELDS:
            key, reply = _checked(entry, f"{path}:{number}")
            known = replies.setdefault(key, reply)
            if reply.text < known.text:
                replies[key] = reply
        # Another line is torn, unless it is whole or the file never held a reply: then it is
        # another file, and nothing may be appended to it.
        elif entry is not None or (
            not replies and line and not _BEGIN.startswith(line[: len(_BEGIN)])
        ):
            raise ValueError(f"{path}:{number}: no line of a judge's cache; name a file of its own")
    return replies


def _checked(entry, where):
    try:
        key = check_stored(entry["key"], str, where)
        reply = {field.name: entry[field.name] for field in fields(Reply)}
        return key, check_stored(reply, Reply, where)
    except DamagedFile as error:
        raise DamagedFile(f"{error}; delete the line, and the judge is asked again") from error
