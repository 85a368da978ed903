"""Two tokenizations of one text: the positions at which both have read the same bytes."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby, pairwise
from typing import NamedTuple

from distilllens.data.encode import encode_text, end_text, write_messages
from distilllens.vocabularies import Vocabularies

# The alphabet in which byte-level tokenizers (GPT-2's) write bytes: printable ones as they are.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTE_OF = {chr(byte): byte for byte in _PRINTABLE}
_BYTE_OF |= {chr(256 + number): byte for number, byte in enumerate(_OTHERS)}
_SPACE = "▁"  # SentencePiece's
_FORMS = (None, "NFC", "NFKC")
# Stands for a message where a chat template is asked for what it writes around messages.
_MARK = "⟪message {}⟫"
_MARKS = re.compile(_MARK.format(r"\d+"))


class Alignment(NamedTuple):
    """What a teacher reads of an example, and where its predictions can be compared.

    Attributes:
        ids: the teacher's tokens.
        student, teacher: the compared positions in the tokens of each, rising; the predictions
            there are about the text behind the same character.
        end: the special tokens (of student and teacher) that end the last message; or None.
        problem: why the example cannot be compared; empty if it can.
    """

    ids: list[int]
    student: list[int]
    teacher: list[int]
    end: tuple[int, int] | None
    problem: str = ""


@dataclass(frozen=True, eq=False)
class TokenReader:
    """The bytes that each token of a tokenizer stands for.

    Bytes of a byte-level alphabet are translated; SentencePiece's sign for a space is a space, and
    its ``<0x0A>`` a byte. Special tokens stand for their own names.
    """

    tokenizer: object

    def __call__(self, ids: Iterable[int]) -> list[bytes]:
        """The bytes of each token; none for an id that is no token."""
        return [self._bytes.get(i, b"") for i in ids]

    def identities(self) -> dict[int, bytes | str]:
        """Id -> what makes a token the same in two tokenizers: its bytes, or a special name."""
        found = {i: t if i in self._special else self._bytes[i] for i, t in self._tokens.items()}
        # A byte that a plain token has too is written only if that one is not there.
        plain = {of for i, of in found.items() if i not in self._single}
        return {
            i: self._tokens[i] if i in self._single and of in plain else of
            for i, of in found.items()
        }

    def is_added(self, i: int) -> bool:
        """Whether a token was added to the vocabulary, as special tokens are."""
        return i in self._added

    @cached_property
    def is_pieces(self) -> bool:
        """Whether these are SentencePiece's tokens, which hold its sign for spaces."""
        return _SPACE in self._tokens.values()

    @cached_property
    def _tokens(self):
        return dict(sorted((i, token) for token, i in self.tokenizer.get_vocab().items()))

    @cached_property
    def _special(self):
        added = self.tokenizer.added_tokens_decoder
        named = {i for i, token in added.items() if token.special}
        return named | {*self.tokenizer.all_special_ids}

    @cached_property
    def _added(self):
        return {*self.tokenizer.added_tokens_decoder} - self._single

    @cached_property
    def _single(self):
        """SentencePiece's tokens of one byte."""
        is_byte = re.compile("<0x[0-9A-F]{2}>").fullmatch
        return {i for i, token in self._tokens.items() if is_byte(token)} - self._special

    @cached_property
    def _bytes(self):
        return {i: self._read(i, t) for i, t in self._tokens.items()}

    def _read(self, i, token):
        if self.is_added(i):
            return token.encode(errors="replace")
        if self.is_pieces:
            if i in self._single:
                return bytes([int(token[3:5], 16)])
            return token.replace(_SPACE, " ").encode(errors="replace")
        if all(char in _BYTE_OF for char in token):
            return bytes(_BYTE_OF[char] for char in token)
        return token.encode(errors="replace")


class _Reading(NamedTuple):
    """A part of the text as one model reads it: its bytes, and offset in them -> position."""

    data: bytes
    ends: dict[int, int]


@dataclass(frozen=True, eq=False)
class Aligner:
    """Finds where a student and a teacher with another tokenizer can be compared.

    Each model reads an example as its own tokenizer and chat template write it. A position is
    compared where both have read a message (or a text) up to the same byte, and between messages
    only where both templates write the same. A tokenizer that normalises (NFC) may read a message
    in other bytes: then what both begin with and what both end with is compared.

    Args:
        student, teacher: of the two tokenizers.
    """

    student: TokenReader
    teacher: TokenReader

    def __call__(self, example: Mapping, ids: Sequence[int], **settings) -> Alignment:
        """Where an example can be compared.

        Args:
            example: as for ``encode``.
            ids: the student's tokens of it, perhaps cut off.
            settings: of the student's ``apply_chat_template``.

        Raises:
            ValueError: the teacher's tokenizer cannot write it.
        """
        try:
            text = _written(example, self.teacher.tokenizer)
        except ValueError as error:
            reason = str(error).replace("the tokenizer", "the teacher's tokenizer", 1)
            raise ValueError(reason) from error
        theirs = _tokens_of(text, example, self.teacher.tokenizer)
        empty = Alignment(theirs, [], [], None)
        readings = []
        for name, reader, tokens, given in (
            ("student", self.student, ids, settings),
            ("teacher", self.teacher, theirs, {}),
        ):
            parts = _parts(example, reader.tokenizer, **given)
            if parts is None:
                problem = f"the {name}'s chat template changes messages"
                return empty._replace(problem=problem)
            if (found := _read(reader, tokens, parts)) is None:
                problem = f"the {name}'s tokens do not spell the text"
                return empty._replace(problem=problem)
            readings.append(found)
        pairs = {}
        for number, both in enumerate(zip(*readings, strict=True)):
            # What templates write around messages is compared where both write the same.
            if number % 2 or both[0].data == both[1].data:
                pairs |= _common(*both)
        ours = sorted(pairs)
        others = [pairs[position] for position in ours]
        return Alignment(theirs, ours, others, self._end(ids, theirs, readings))

    def vocabularies(self, rule: str, end: tuple[int, int] | None = None) -> Vocabularies:
        """The two vocabularies; the tokens that end a text, and an ``end``, are one token."""
        same = [] if end is None else [end]
        ends = self.student.tokenizer.eos_token_id, self.teacher.tokenizer.eos_token_id
        if None not in ends and not any({*ends} & {*pair} for pair in same):
            same.append(ends)
        return Vocabularies.of(self.student.identities(), self.teacher.identities(), rule, same)

    def _end(self, ids, theirs, readings):
        """The special tokens behind the last message, where both have one there."""
        found = []
        for reader, tokens, read in zip(
            (self.student, self.teacher), (ids, theirs), readings, strict=True
        ):
            last = read[-2] if len(read) > 1 else _Reading(b"", {})
            at = last.ends.get(len(last.data))
            if at is None or at + 1 >= len(tokens) or tokens[at + 1] not in reader._special:
                return None
            found.append(tokens[at + 1])
        return tuple(found)


def _messages(example):
    return example.get("messages") or [*example["prompt"], *example["completion"]]


def _is_text(example):
    return "text" in example or isinstance(example.get("prompt"), str)


def _body(example):
    return example["text"] if "text" in example else example["prompt"] + example["completion"]


def _written(example, tokenizer, **settings):
    """The text of an example as a model reads it."""
    if _is_text(example):
        return end_text(_body(example), tokenizer)
    return write_messages(_messages(example), tokenizer, example, tokenize=False, **settings)


def _tokens_of(text, example, tokenizer):
    if _is_text(example):
        return encode_text(text, tokenizer)
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _parts(example, tokenizer, **settings):
    """The text in parts, around a message and messages in turn; None if they are not found."""
    text = _written(example, tokenizer, **settings)
    if _is_text(example):
        body = _body(example)
        return ["", body, text[len(body) :]]
    messages, contents, marked = _messages(example), [], []
    for message in messages:
        content = message.get("content")
        if isinstance(content, str) and content.strip():
            message = {**message, "content": _MARK.format(len(contents))}
            contents.append(content)
        marked.append(message)
    given = {name: example[name] for name in example if name not in ("prompt", "completion")}
    try:
        around = write_messages(marked, tokenizer, given, tokenize=False, **settings)
    except ValueError:  # a template that looks into messages
        return None
    around = _MARKS.split(around)
    if len(around) != len(contents) + 1 or not text.startswith(around[0]):
        return None
    parts, at = [around[0]], len(around[0])
    for content, behind in zip(contents, around[1:], strict=True):
        forms = (content, content.strip(), content.lstrip(), content.rstrip(), content.strip("\n"))
        form = next((f for f in forms if text.startswith(f + behind, at)), None)
        if form is None:
            return None
        parts += [form, behind]
        at += len(form) + len(behind)
    return parts if at == len(text) else None


def _read(reader, ids, parts):
    """A ``_Reading`` of each part; None if the tokens are not of their text."""
    for form in _FORMS:
        given = parts if form is None else [unicodedata.normalize(form, part) for part in parts]
        if reader.is_pieces:
            given = [part.replace(_SPACE, " ") for part in given]
        given = [part.encode(errors="replace") for part in given]
        if (ends := _ends(reader, ids, b"".join(given))) is not None:
            break
    else:
        return None
    starts = [0, *accumulate(map(len, given))]
    spans = [*pairwise(starts)]
    found = [_Reading(part, {}) for part in given]
    at = 0
    # Ends rise, and so do spans; the end of one is the start of the next.
    for position, end in enumerate(ends):
        while at < len(spans) and spans[at][1] < end:
            at += 1
        for number in range(at, len(spans)):
            if end < spans[number][0]:
                break
            found[number].ends[end - spans[number][0]] = position
    return found


def _ends(reader, ids, text):
    """How many bytes of a text each token ends behind; None if the tokens are not of the text.

    Tokens may be those of its beginning only. Between added tokens they are the text's bytes,
    perhaps with a space in front that the tokenizer puts there; an added token that the text does
    not write takes no bytes.
    """
    ends, at = [], 0
    for is_added, run in groupby(ids, reader.is_added):
        pieces = reader(run)
        if is_added:
            for piece in pieces:
                at += len(piece) if text.startswith(piece, at) else 0
                ends.append(at)
            continue
        whole = b"".join(pieces)
        space = 0 if text.startswith(whole, at) else 1
        if space and not (whole.startswith(b" ") and text.startswith(whole[1:], at)):
            return None
        ends += [max(at, at + end - space) for end in accumulate(map(len, pieces))]
        at += len(whole) - space
    return ends


def _common(ours, theirs):
    """Student position -> teacher position, where two readings of a part go on alike."""
    (data, ends), (other, other_ends) = ours, theirs
    if data == other:
        return {ends[end]: other_ends[end] for end in ends.keys() & other_ends.keys()}
    if (core := data.strip()) and core == other.strip():  # a template took spaces away
        starts = data.index(core), other.index(core)
        same_end = data[starts[0] + len(core) :] == other[starts[1] + len(core) :]
        pairs = ([start + at for start in starts] for at in range(len(core) + same_end))
        return {ends[a]: other_ends[b] for a, b in pairs if a in ends and b in other_ends}
    first = _num_equal(data, other)
    last = min(_num_equal(data[::-1], other[::-1]), len(data) - first, len(other) - first)
    pairs = {(end, end) for end in ends if end < first}
    pairs |= {(end, end - len(data) + len(other)) for end in ends if end >= len(data) - last}
    return {ends[end]: other_ends[at] for end, at in pairs if at in other_ends}


def _num_equal(data, other):
    equal = (at for at, (a, b) in enumerate(zip(data, other, strict=False)) if a != b)
    return next(equal, min(len(data), len(other)))


def aligner_of(student, teacher) -> Aligner:
    """The aligner of two tokenizers."""
    return Aligner(TokenReader(student), TokenReader(teacher))
