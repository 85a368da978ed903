"""Records in the form that SFTTrainer reads: prompt and completion, messages, or plain text."""

from __future__ import annotations

import json
from collections.abc import Iterable

from distilllens.data.encode import (
    TEMPLATE_FIELDS,
    encode_messages,
    template_fields,
    tools_of,
    with_one_bos,
)
from distilllens.data.records import Record, canonical, kind_of, place_of, references

_ALONE = "Below is an instruction that describes a task. "
_PAIRED = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. "
)
_REQUEST = "Write a response that appropriately completes the request.\n\n"


def format_prompt(record: dict) -> str:
    """The Alpaca prompt of an instruction record, without the input section if there is no input.

    ``system``, if it is not empty, stands in place of the template's first sentences, and the pairs
    of ``history`` precede the instruction as turns of the same form (as in LLaMA-Factory's Alpaca
    template; the end-of-sequence token is left to the tokenizer's user, at the end of the answer).

    Source: Alpaca's template, as used by MiniLLM and DistillLens (docs/paper.md).
    """
    text = record.get("input")
    system = record.get("system")
    opening = f"{system}\n\n" if system else (_PAIRED if text else _ALONE) + _REQUEST
    turns = [
        f"### Instruction:\n{question}\n\n### Response:\n{answer}\n\n"
        for question, answer in record.get("history") or ()
    ]
    middle = f"### Input:\n{text}\n\n" if text else ""
    instruction = f"### Instruction:\n{record['instruction']}\n\n{middle}### Response:\n"
    return "".join([opening, *turns, instruction])


def instruction_messages(record: dict) -> list[dict]:
    """The prompt of an instruction record for a chat template: system, history, instruction.

    The input, if there is one, follows the instruction after an empty line.
    """
    messages = [{"role": "system", "content": record["system"]}] if record.get("system") else []
    for question, answer in record.get("history") or ():
        messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    parts = (record["instruction"], record.get("input"))
    return [*messages, {"role": "user", "content": "\n\n".join(filter(None, parts))}]


def format_instruction(record: dict) -> dict[str, str]:
    """``{"prompt", "completion"}`` of an instruction record; the first reference is the completion.

    Leading white space of the answer is removed. The prompt ends in a newline, and some tokenizers
    (Qwen2's; GPT-2's, for several newlines) would merge it with white space that follows. The
    tokens of prompt + completion would then not start with the tokens of the prompt, and training
    would see a context that never occurs in generation. SFTTrainer appends the end-of-sequence
    token.
    """
    return {"prompt": format_prompt(record), "completion": references(record)[0].lstrip()}


def format_chat(record: dict) -> dict:
    """``{"prompt", "completion"}`` of an instruction record as messages for a chat template.

    The prompt is ``instruction_messages``, the completion the first reference as the assistant's
    turn, without leading white space as in ``format_instruction``. ``tools`` and
    ``chat_template_kwargs`` stay.
    """
    answer = {"role": "assistant", "content": references(record)[0].lstrip()}
    return {
        "prompt": instruction_messages(record),
        "completion": [answer],
        **template_fields(record),
    }


def to_training_examples(records: Iterable[dict], *, chat: bool = False) -> list[dict]:
    """Every record as SFTTrainer reads it: instruction records formatted, other kinds as they are.

    Fields that SFTTrainer does not read are left out.

    Args:
        chat: instruction records become messages (``format_chat``) instead of Alpaca's text.

    Raises:
        ValueError: a record is of no known kind, or a conversation that cannot be read
            (``load_records`` has already checked its records).
    """
    return [_placed(_example(canonical(record), chat), record) for record in records]


def _placed(example, record):
    """An example with the place of its record, if it has one."""
    place = place_of(record, "")
    return Record(example, place) if place else example


def _example(record, chat):
    kind = kind_of(record)
    if kind is None:
        raise ValueError(f"a record with the fields {sorted(record)} is of no known kind")
    if kind == "instruction":
        return format_chat(record) if chat else format_instruction(record)
    fields = {"prompt": ("prompt", "completion")}.get(kind, (kind,))
    example = {field: record[field] for field in fields if field in record}
    conversation = kind == "messages" or isinstance(example.get("prompt"), list)
    return example | (template_fields(record) if conversation else {})


def example_fields(record: dict, *, chat: bool = False) -> str:
    """The form in which a record is trained on, in words: "prompt and completion", "messages" ...

    Args:
        chat: as in ``to_training_examples``.
    """
    example = _example(canonical(record), chat)
    names = " and ".join(name for name in example if name not in TEMPLATE_FIELDS)
    return f"{names} of messages" if isinstance(example.get("prompt"), list) else names


def to_dataset(records: Iterable[dict], *, chat: bool = False):
    """The training examples of records as a ``datasets.Dataset`` in memory, each row unchanged.

    Only ``tools`` given as JSON text become a list, and a missing ``chat_template_kwargs`` becomes
    ``{}`` where another record has the field: SFTTrainer refuses None there.

    Args:
        chat: as in ``to_training_examples``.

    Raises:
        ValueError: as ``to_training_examples``; the records are of several kinds, or some are text
            and others messages; a message holds something that is not JSON.
    """
    from datasets import Dataset, Features

    from distilllens.data.exact_json import ExactJson

    examples = to_training_examples(records, chat=chat)
    kinds = {(frozenset(e).difference(TEMPLATE_FIELDS), type(e.get("prompt"))) for e in examples}
    if len(kinds) > 1:
        fields = " and ".join(sorted({", ".join(sorted(fields)) for fields, _ in kinds}))
        raise ValueError(
            "train on one kind of record at a time, either text or messages; these have the fields "
            f"{fields}"
        )
    names = list(dict.fromkeys(field for example in examples for field in example))
    columns = {name: [example.get(name) for example in examples] for name in names}
    if "tools" in columns:
        columns["tools"] = list(map(tools_of, examples))
    if "chat_template_kwargs" in columns:
        columns["chat_template_kwargs"] = [s or {} for s in columns["chat_template_kwargs"]]
    if all(isinstance(value, str) for values in columns.values() for value in values):
        return Dataset.from_dict(columns)
    for name, values in columns.items():
        columns[name] = [None if v is None else json.dumps(v, default=as_json) for v in values]
    return Dataset.from_dict(columns, features=Features(dict.fromkeys(columns, ExactJson())))


def as_json(value):
    """What tables hold beside JSON, for ``json.dumps``: dates as text, arrays as lists.

    Raises:
        ValueError: anything else.
    """
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if hasattr(value, "tolist"):
        return value.tolist()
    raise ValueError(f"a record holds {repr(value)[:40]}, which JSON cannot")


def drop_long_prompts(
    records: list[dict], tokenizer, max_prompt_length: int, *, chat: bool = False
) -> tuple[list[dict], int]:
    """The records whose prompt has at most ``max_prompt_length`` tokens, and the number dropped.

    Records without a prompt (``messages``, ``text``) are kept. Long prompts are dropped, as in
    MiniLLM's data, and not truncated: that would cut off the "### Response:" before the answer.

    Args:
        chat: as in ``to_training_examples``.

    Raises:
        ValueError: ``max_prompt_length`` < 1, or every record was dropped.
    """
    if max_prompt_length < 1:
        raise ValueError(f"max_prompt_length must be at least 1, got {max_prompt_length!r}")
    places = [place_of(record, f"record {number}") for number, record in enumerate(records, 1)]
    lengths = _prompt_lengths(to_training_examples(records, chat=chat), places, tokenizer)
    kept = [r for r, n in zip(records, lengths, strict=True) if n <= max_prompt_length]
    if records and not kept:
        raise ValueError(
            f"all {len(records)} prompts have more than max_prompt_length = {max_prompt_length} "
            f"tokens; the shortest has {min(lengths)}"
        )
    return kept, len(records) - len(kept)


def has_short_prompt(example: dict, tokenizer, max_prompt_length: int, place: str) -> bool:
    """Whether the prompt of a training example has at most ``max_prompt_length`` tokens.

    Args:
        place: of the example, for messages.

    Raises:
        ValueError: a conversation that the chat template cannot write.
    """
    return _prompt_lengths([example], [place], tokenizer)[0] <= max_prompt_length


def _prompt_lengths(examples, places, tokenizer):
    texts = [e["prompt"] if isinstance(e.get("prompt"), str) else "" for e in examples]
    encoded = tokenizer(texts, verbose=False)["input_ids"] if texts else []
    lengths = [len(with_one_bos(ids, tokenizer)) for ids in encoded]
    for row, example in enumerate(examples):
        prompt = example.get("prompt")
        if prompt is None:
            lengths[row] = 0
        elif not isinstance(prompt, str):
            try:
                ids = encode_messages(prompt, tokenizer, example, add_generation_prompt=True)
            except ValueError as error:
                raise ValueError(f"{places[row]}: {error}") from error
            lengths[row] = len(ids)
    return lengths
