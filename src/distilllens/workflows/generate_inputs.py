"""The inputs of ``distilllens generate``: records, prompts and a model without its weights."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

from distilllens.data import data_files, kind_of, load_prompts
from distilllens.data.format import as_json
from distilllens.evaluate.benchmarks import Benchmark, examples_of, path_of
from distilllens.evaluate.models import Candidate, find_models
from distilllens.evaluate.processes import Process
from distilllens.evaluate.tasks import Task, make_task
from distilllens.files import sha256
from distilllens.generate.vllm_backend import check_vllm
from distilllens.jsonl import encode_rows


class Prepared(NamedTuple):
    """What is known before any weights are loaded.

    Attributes:
        records: all that were read, with some text for an answer.
        task: those that take part, and the tokens of their prompts.
        settings: what decides the answers; hashes for files.
    """

    candidate: Candidate
    records: list[dict]
    task: Task
    settings: dict


def prepare(plan, process: Process) -> Prepared:
    """Load and check everything but the weights; nothing is written.

    Args:
        plan: a ``workflows.generate.Plan``.

    Raises:
        ValueError: data, model or prompts cannot be used.
        ImportError: vLLM is asked for and not installed.
    """
    if plan.backend == "vllm":
        check_vllm(plan.decoding, process.size)
    records, data, hashes = read_data(plan)
    (candidate,) = find_models([plan.model], trust_remote_code=plan.trust_remote_code)
    if plan.chat and candidate.tokenizer.chat_template is None:
        raise ValueError(f"--chat: the tokenizer of {plan.model} has no chat template")
    task = make_task(data, [candidate], plan.decoding, plan.max_prompt_length)
    settings = {
        "model": candidate.hashes,
        "data": dict(enumerate(hashes, 1)),
        "seeds": list(plan.seeds),
        "decoding": asdict(plan.decoding),
        **{name: getattr(plan, name) for name in ("limit", "max_prompt_length", "chat", "dtype")},
        "backend": plan.backend,
    }
    return Prepared(candidate, records, task, settings)


def read_data(plan) -> tuple[list[dict], Benchmark, list[str]]:
    """``(records, the prompts in them, hashes of the files)`` of the data of a plan.

    Raises:
        ValueError: data that cannot be used, or an output that would be read as data.
    """
    paths = [path_of(source) for source in plan.data]
    _check_apart(Path(plan.output), paths)
    places, records = zip(*load_prompts(paths, chat=plan.chat)[: plan.limit], strict=True)
    _check_chat(plan, records[0], places[0])
    records = [_writable(record, place) for record, place in zip(records, places, strict=True)]
    examples = [
        replace(example, place=place)
        for example, place in zip(examples_of(records, "", plan.chat), places, strict=True)
    ]
    hashes = [sha256(file) for file in data_files(paths, warn=False)]
    data = Benchmark(", ".join(plan.data), plan.data[0], hashes[0], tuple(examples))
    return records, data, hashes


def _check_apart(output, paths):
    """Refuse an output that is read, now or by the next command, as data."""
    for path in paths:
        if path.is_dir() and output.resolve().parent == path.resolve():
            raise ValueError(
                f"--output {output} is in the folder {path}, which is read as --data; name a file "
                "elsewhere"
            )
        if path.exists() and output.exists() and path.samefile(output):
            raise ValueError(f"--output {output} is a file of --data; name another one")


def _check_chat(plan, record, place):
    """Refuse ``--chat`` for prompts that are texts already: it would have no effect."""
    if plan.chat and kind_of(record) == "prompt" and isinstance(record["prompt"], str):
        raise ValueError(
            f"--chat is for instructions, and {place} has a prompt that is a finished text; leave "
            "--chat out, or make the prompt a list of messages"
        )


def _writable(record, place):
    """A record as JSON holds it: dates as text, no number (NaN) as null."""
    try:
        text = json.dumps(record, default=as_json)
        record = json.loads(text, parse_constant=lambda name: None)
        encode_rows([record])
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{place}: a field has half a surrogate pair, which cannot be encoded as UTF-8"
        ) from error
    except ValueError as error:
        raise ValueError(f"{place}: {error}; leave that field out") from error
    return record
