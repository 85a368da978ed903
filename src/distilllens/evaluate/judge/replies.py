"""Replies of a judge on the disk: one JSON object a line, appended as they come."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path

from distilllens.jsonl import end_torn_line

_BEGIN = b'{"key": "'


@dataclass(frozen=True)
class Reply:
    """One raw reply.

    Attributes:
        text: as the judge wrote it.
        cut: whether it ended at the limit of tokens.
        prompt_tokens: as the server counted, 0 where it did not.
        completion_tokens: the same.
    """

    text: str
    cut: bool
    prompt_tokens: int
    completion_tokens: int


def key_of(question: dict) -> str:
    """What a reply is found by: a hash of everything that it may depend on."""
    text = json.dumps(question, sort_keys=True)
    return sha256(text.encode()).hexdigest()[:32]


class ReplyCache:
    """Replies by key, read once and appended to; threads may share one, and processes a file.

    A line that a crash tore is passed over when read, and ended before the next is written. Where
    two lines have one key the smaller text counts, so the order of lines does not matter.

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
        """Keep a reply; when this returns, the line is with the system. ``about`` is for people."""
        line = json.dumps({"key": key, **asdict(reply), **about}, ensure_ascii=False) + "\n"
        with self._lock:
            if self._file is None:
                self._file = _opened(self.path)
            self._file.write(line.encode("utf-8", "backslashreplace"))
            self._file.flush()
            self._replies[key] = reply

    def close(self):
        """Close the file; adding opens it again."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None


def _opened(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "ab")  # noqa: SIM115
    end_torn_line(file, path)
    return file


def _read(path):
    if not path.exists():
        return {}
    if not path.is_file():
        raise ValueError(f"the judge's cache {path} is no file; name one, such as judge.jsonl")
    replies = {}
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            reply = Reply(**{field.name: entry[field.name] for field in fields(Reply)})
        except (ValueError, KeyError, TypeError):
            # Torn, then; but what never held a reply is somebody's file, and not to be added to.
            if not replies and line and not _BEGIN.startswith(line[: len(_BEGIN)]):
                raise ValueError(
                    f"{path}:{number}: no line of a judge's cache; name a file of its own"
                ) from None
            continue
        known = replies.setdefault(entry["key"], reply)
        if reply.text < known.text:
            replies[entry["key"]] = reply
    return replies
