"""Benchmarks, by name or from a file of records: questions with their reference answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from distilllens.data import (
    data_files,
    format_instruction,
    instruction_messages,
    load_records,
    template_fields,
)
from distilllens.data.encode import tools_of
from distilllens.data.records import kind_of, references
from distilllens.errors import first_line
from distilllens.evaluate.conversation import question_of
from distilllens.files import sha256
from distilllens.names import unique_names

# MiniLLM's files on the hub. Of S-NI and UnNI, the paper uses the examples whose reference has at
# least 11 tokens.
NAMED = {
    "dolly": ("MiniLLM/dolly", "valid.jsonl"),
    "selfinst": ("MiniLLM/self-inst", "valid.jsonl"),
    "vicuna": ("MiniLLM/Vicuna", "valid.jsonl"),
    "sni": ("MiniLLM/sinst", "11_/valid.jsonl"),
    "unni": ("MiniLLM/uinst", "11_/valid.jsonl"),
}

RESERVED = "average"  # the name of the mean over benchmarks in the tables


@dataclass(frozen=True)
class Example:
    """One question.

    Args:
        place: its name in messages, such as ``eval_dolly example 3`` (from 0).
        prompt: what the model reads: a text, or messages for its chat template.
        question: what a judge reads: the instruction with its input, or the whole conversation.
        references: the accepted answers.
        completion: the first reference as training writes it: a text, or messages.
        template_fields: the record's ``tools`` and ``chat_template_kwargs``, for the chat template.
    """

    place: str
    prompt: str | list[dict]
    question: str
    references: tuple[str, ...]
    completion: str | list[dict]
    template_fields: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: its name, its file with the hash of the content, and its examples."""

    name: str
    source: str
    sha256: str
    examples: tuple[Example, ...]


def load_benchmarks(
    sources: Sequence[str], *, limit: int | None = None, chat: bool = False
) -> list[Benchmark]:
    """The named benchmarks, in order.

    Args:
        sources: ``dolly``, ``selfinst``, ``vicuna``, ``sni``, ``unni`` (from the hub or its cache),
            or paths of files of ``instruction`` / ``input`` / ``output``, ``prompt`` /
            ``completion`` or ``messages``.
        limit: use only the first ``limit`` examples of each.
        chat: format instructions with the model's chat template instead of Alpaca's.

    Raises:
        ValueError: there is no such file or name, a record has no reference, or a benchmark is
            named twice.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"--limit must be at least 1, got {limit}")
    files = [_file_of(source) for source in sources]
    names = unique_names(
        [s if _is_name(s) else str(file) for s, file in zip(sources, files, strict=True)]
    )
    if RESERVED in names:
        raise ValueError(f"a benchmark cannot be called {RESERVED!r}; rename {RESERVED}.jsonl")
    return [_load(name, file, limit, chat) for name, file in zip(names, files, strict=True)]


def examples_of(records: Sequence[dict], name: str, chat: bool = False) -> tuple[Example, ...]:
    """Records as questions with reference answers.

    Raises:
        ValueError: a record has no reference.
    """
    return tuple(
        _example(record, f"{name} example {number}", chat) for number, record in enumerate(records)
    )


def path_of(source: str) -> Path:
    """The file of a benchmark by name, from the hub or its cache; any other path as it is.

    Raises:
        ValueError: there is no such file or name, or it cannot be downloaded.
    """
    if _is_name(source):
        return _from_hub(source)
    if not Path(source).exists() and not Path(source).suffix:
        raise ValueError(
            f"benchmark {source!r} is no file here and no known name; known are {', '.join(NAMED)}"
        )
    return Path(source)


def _is_name(source):
    return source in NAMED and not Path(source).exists()


def _file_of(source):
    files = list(data_files(path_of(source)))
    if len(files) != 1:
        raise ValueError(f"benchmark {source} holds {len(files)} data files; name one of them")
    return files[0]


def _from_hub(name):
    from huggingface_hub import snapshot_download

    repository, wanted = NAMED[name]
    try:
        folder = snapshot_download(
            repository, repo_type="dataset", allow_patterns=[wanted, f"*/{wanted}"]
        )
    except Exception as error:  # huggingface_hub and the libraries below it have their own classes
        raise ValueError(
            f"could not download benchmark {name} ({repository} on the hub): {first_line(error)}; "
            "name a local file instead"
        ) from error
    files = sorted(Path(folder).rglob("valid.jsonl"))
    matching = [file for file in files if file.as_posix().endswith(wanted)]
    if not matching:
        raise ValueError(f"benchmark {name}: {repository} on the hub has no {wanted}")
    return matching[0]


def _load(name, file, limit, chat):
    examples = examples_of(load_records(file, skip_empty=False)[:limit], name, chat)
    return Benchmark(name, str(file), sha256(file), examples)


def _example(record, place, chat):
    kind = kind_of(record)
    if kind == "instruction":
        question = "\n\n".join(
            part for part in (record["instruction"], record.get("input")) if part
        )
        accepted = tuple(references(record))
        if chat:
            answer = {"role": "assistant", "content": accepted[0]}
            messages = [*instruction_messages(record), answer]
            return _conversation(messages, record, place, accepted)
        made = format_instruction(record)
        return Example(place, made["prompt"], question, accepted, made["completion"])
    if kind == "prompt":
        prompt, completion = record["prompt"], record["completion"]
        if isinstance(prompt, str) and isinstance(completion, str):
            return Example(place, prompt, prompt, (completion,), completion)
        return _conversation([*prompt, *completion], record, place)
    if kind == "messages":
        return _conversation(record["messages"], record, place)
    raise ValueError(
        f"{place}: a {kind!r} record has no reference answer; a benchmark needs instruction and "
        "output, prompt and completion, or messages"
    )


def _conversation(messages, record, place, accepted=None):
    *prompt, last = messages
    answer = last.get("content")
    if last["role"] != "assistant" or not prompt or not isinstance(answer, str) or not answer:
        raise ValueError(
            f"{place}: its messages do not end in an answer of the assistant, so there is no "
            "reference"
        )
    question = question_of(prompt, tools_of(record))
    accepted = accepted or (answer,)
    return Example(place, prompt, question, accepted, [last], template_fields(record))
