"""A file of answers that is complete or absent, and what an interrupted command leaves of it.

    OUTPUT                     the rows, written at once when every answer is there
    OUTPUT.settings            JSON: how they were made, what was left out, the SHA-256 of OUTPUT
    OUTPUT.part                until then: a line of settings, then a line for each answer
    OUTPUT.process-1.part      the same of another process, without settings

No name but that of OUTPUT ends as a data file does, so a folder of answers can be trained on.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

from distilllens.files import (
    NO_LINK,
    is_part_of,
    linked,
    named_errors,
    sha256,
    write_atomically,
    write_json,
)
from distilllens.jsonl import append_rows, encode_rows, parse_row, whole_rows
from distilllens.stored import DamagedFile, check_stored, flat, read_stored

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps two commands apart
    fcntl = None

_MARK = "distilllens generate"
_BEGINNING = f'{{"made_by": "{_MARK}"'.encode()
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LONGEST = 2**20  # bytes, of a line of settings
# File systems without locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


class AnswerRow(TypedDict):
    """An answer of the part file, to the prompt of this number and with this seed."""

    prompt: int
    seed: int | None
    answer: str
    num_tokens: int
    finished: bool
    near_ties: int


class _Note(TypedDict):
    made_by: str
    settings: dict[str, Any]
    sha256: str


class _Header(TypedDict):
    made_by: str
    settings: dict[str, Any]


class AnswerFile:
    """The file ``path``, and those beside it.

    Attributes:
        part: where answers are appended as they are given.
        note: where the settings of the finished file are.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.part = self._beside(".part")
        self.note = self._beside(".settings")

    def check_place(self):
        """Refuse a path that is no new or own file in a folder that is there.

        Raises:
            ValueError: a folder, a link, another suffix than .jsonl, or no folder to write in.
        """
        if self.path.is_dir():
            raise ValueError(f"--output {self.path} is a folder; name a file in it, NAME.jsonl")
        if self.path.suffix != ".jsonl":
            raise ValueError(f"--output {self.path}: name a .jsonl file, which training reads")
        if not self.path.parent.is_dir():
            raise ValueError(
                f"--output {self.path}: there is no folder {self.path.parent}; create it first"
            )
        for place in (self.path, self.part, self.note):
            if place.is_symlink():
                raise ValueError(f"--output {self.path}: {linked(place)}")
        for place in (self.part, self.note):
            if place.exists() and not place.is_file():
                raise ValueError(
                    f"--output {self.path}: {place} is no file; move it away, or name another"
                )

    def is_finished(self, settings: Mapping) -> bool:
        """Whether the file is there, as it was finished, and with these settings.

        Raises:
            ValueError: the file or one beside it is not ours, is of other settings (the message
                names the first that differs), or has changed.
        """
        note = self._read_note()
        if not self.path.exists():
            return False
        if note is None:
            raise ValueError(
                f"--output {self.path} exists and is not of distilllens generate, so it is not "
                "replaced; name another file, or move it away"
            )
        if note["sha256"] != sha256(self.path):
            raise ValueError(
                f"--output {self.path} has changed since it was finished; move it away to have it "
                "made again, or name another file"
            )
        self._check_same(self.path, note["settings"], settings)
        return True

    @contextmanager
    def claimed(self, settings: Mapping) -> Iterator[None]:
        """Only this process makes the file meanwhile; the part file holds these settings.

        A part file that has no answer, before or after, is not kept.

        Raises:
            ValueError: another process makes it; the part file is not ours or of other settings.
        """
        file = self._locked()
        try:
            before = self._header()
            if before is None and not _is_cut(os.pread(file, _LONGEST, 0)):
                raise ValueError(
                    f"--output {self.path}: {self.part} is in the place of our unfinished answers, "
                    "and is none; move it away, or name another file"
                )
            if before is None:  # a new command, to which nothing of another process belongs
                for path in self._parts_of_others():
                    path.unlink()
            try:
                if before is None or not self.answers():
                    self._write_header(file, settings)
                else:
                    self._check_same(self.part, before, settings)
                yield
            finally:
                if not self.answers():
                    self.part.unlink(missing_ok=True)
        finally:
            os.close(file)

    def append(self, rank: int, rows: Sequence[AnswerRow]):
        """Append answers to the part file of a process; they are on disk on return."""
        append_rows(self.part if rank == 0 else self._beside(f".process-{rank}.part"), rows)

    def answers(self) -> dict[tuple[int, int | None], AnswerRow]:
        """``(number of the prompt, seed)`` -> answer, of all processes; torn lines are left out.

        Raises:
            DamagedFile: a whole line is not one of ours.
        """
        found = {}
        for part in (self.part, *self._parts_of_others()):
            if not part.exists():
                continue
            for number, row in enumerate(whole_rows(part), 1):
                if row.get("made_by") == _MARK:
                    continue
                try:
                    row = check_stored(row, AnswerRow, f"{part}, row {number}")
                except DamagedFile as error:
                    raise DamagedFile(
                        f"{error}; delete that line, and repeat the command"
                    ) from error
                found[row["prompt"], row["seed"]] = row
        return found

    def finish(self, rows: Sequence[dict], settings: Mapping, about: Mapping):
        """Give the file its name, with its note, and delete the part files.

        Args:
            about: what else the note holds.
        """
        content = encode_rows(rows)
        digest = hashlib.sha256(content).hexdigest()
        # The note first: a file without one is nobody's.
        note = {"made_by": _MARK, "settings": settings, **about, "sha256": digest}
        write_json(self.note, note)
        write_atomically(self.path, content)
        self.drop_parts()

    def drop_parts(self):
        """Delete what no finished file needs: part files, and what a killed process left."""
        names = [glob.escape(path.name) for path in (self.path, self.note)]
        killed = [path for path in self._siblings(".*.part") if is_part_of(path, *names)]
        for path in (*killed, *self._parts_of_others(), self.part):
            path.unlink(missing_ok=True)

    def _beside(self, ending):
        return self.path.with_name(self.path.name + ending)

    def _siblings(self, pattern):
        return sorted(self.path.parent.glob(glob.escape(self.path.name) + pattern))

    def _parts_of_others(self):
        return self._siblings(".process-*.part")

    def _read_note(self):
        if not self.note.exists():
            return None
        try:
            note = read_stored(self.note, _Note)
        except DamagedFile as error:
            raise ValueError(
                f"--output {self.path}: {error}; move it away, or name another file"
            ) from error
        if note["made_by"] != _MARK:
            raise ValueError(f"--output {self.path}: {self.note} is not ours; name another file")
        return note

    def _header(self):
        """The settings of the part file; None where there is no such file of ours."""
        if not self.part.is_file():
            return None
        with open(self.part, "rb") as stream:
            row = parse_row(stream.readline())
        try:
            header = check_stored(row, _Header, str(self.part))
        except DamagedFile:
            return None
        return header["settings"] if header["made_by"] == _MARK else None

    def _write_header(self, file, settings):
        with named_errors(self.part):
            os.truncate(file, 0)
            os.pwrite(file, encode_rows([{"made_by": _MARK, "settings": settings}]), 0)
            os.fsync(file)

    def _check_same(self, file, before, now):
        before, now = dict(flat(before)), dict(flat(json.loads(json.dumps(now))))
        for key in sorted(before.keys() | now.keys()):
            pair = before.get(key), now.get(key)
            if pair[0] == pair[1]:
                continue
            difference = f"{key} was {pair[0]!r} and is now {pair[1]!r}"
            if all(_DIGEST.fullmatch(str(value)) for value in pair):
                difference = f"the contents of {key} are no longer the same"
            way_out = "name another --output"
            if file == self.part:
                way_out += f", or delete {self.part}"
            raise ValueError(f"{file} holds answers of other settings: {difference}; {way_out}")

    def _locked(self):
        """A descriptor of the part file, made where it is missing and locked."""
        while True:
            with named_errors(self.part):
                file = os.open(self.part, os.O_RDWR | os.O_CREAT | NO_LINK, 0o666)
            try:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Its former owner may have deleted the file before we got the lock.
                if os.path.samestat(os.fstat(file), os.stat(self.part)):
                    return file
            except BlockingIOError as error:
                os.close(file)
                raise ValueError(
                    f"--output {self.path} is being made by another process; wait for it, or name "
                    "another file"
                ) from error
            except FileNotFoundError:
                pass
            except OSError as error:
                if error.errno in _NO_LOCKS:
                    return file
                os.close(file)
                raise
            os.close(file)


def _is_cut(content):
    """Whether a file holds no more than a first line of ours that was cut."""
    return b"\n" not in content and content[: len(_BEGINNING)] == _BEGINNING[: len(content)]
