"""Records become what SFTTrainer reads: a prompt and a response, messages, or plain text."""

from __future__ import annotations

from collections.abc import Iterable

from distilllens.data.records import kind_of, references

_ALONE = "Below is an instruction that describes a task. "
_PAIRED = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. "
)
_REQUEST = "Write a response that appropriately completes the request.\n\n"
# What SFTTrainer reads beside the fields of the kind itself.
_PASSED_ON = ("tools", "chat_template_kwargs")


def format_prompt(record: dict) -> str:
    """The Alpaca prompt of an instruction record; an input that is empty or missing is left out.

    Source: Alpaca's template, as used by MiniLLM and DistillLens (docs/paper.md).
    """
    instruction = f"### Instruction:\n{record['instruction']}\n\n"
    if text := record.get("input"):
        return f"{_PAIRED}{_REQUEST}{instruction}### Input:\n{text}\n\n### Response:\n"
    return f"{_ALONE}{_REQUEST}{instruction}### Response:\n"


def format_instruction(record: dict) -> dict[str, str]:
    """``{"prompt", "completion"}`` of an instruction record; the first reference is the completion.

    White space before the answer is taken off: the prompt ends in a newline, and tokenizers such as
    Qwen2's, or GPT-2's where several newlines meet, would merge it with the answer's own. The
    prompt's tokens would then no longer begin those of prompt + completion, and training would see
    a context that generation never shows. The end-of-sequence token is SFTTrainer's to append.
    """
    return {"prompt": format_prompt(record), "completion": references(record)[0].lstrip()}


def to_training_examples(records: Iterable[dict]) -> list[dict]:
    """Every record as SFTTrainer reads it: instruction records formatted, other kinds as they are.

    Fields that SFTTrainer does not read are left out.

    Raises:
        ValueError: a record of no known kind (records of ``load_records`` are checked already).
    """
    return [_example(record) for record in records]


def _example(record):
    kind = kind_of(record)
    if kind is None:
        raise ValueError(f"a record with the fields {sorted(record)} is of no known kind")
    if kind == "instruction":
        return format_instruction(record)
    fields = {"prompt": ("prompt", "completion")}.get(kind, (kind,))
    return {field: record[field] for field in (*fields, *_PASSED_ON) if field in record}


def to_dataset(records: Iterable[dict]):
    """The training examples of records as a ``datasets.Dataset``, held in memory."""
    from datasets import Dataset

    return Dataset.from_list(to_training_examples(records))


def drop_long_prompts(
    records: list[dict], tokenizer, max_prompt_length: int
) -> tuple[list[dict], int]:
    """The records whose prompt has at most ``max_prompt_length`` tokens, and how many others had.

    Records without a prompt (``messages``, ``text``) are kept. Truncating instead would cut off
    the "### Response:" the answer follows, so long prompts go, as in MiniLLM's data.

    Raises:
        ValueError: ``max_prompt_length`` < 1, or no record is left.
    """
    if max_prompt_length < 1:
        raise ValueError(f"max_prompt_length must be at least 1, got {max_prompt_length!r}")
    lengths = _prompt_lengths(to_training_examples(records), tokenizer)
    kept = [r for r, n in zip(records, lengths, strict=True) if n <= max_prompt_length]
    if records and not kept:
        raise ValueError(
            f"all {len(records)} prompts have more than max_prompt_length = {max_prompt_length} "
            f"tokens; the shortest has {min(lengths)}"
        )
    return kept, len(records) - len(kept)


def _prompt_lengths(examples, tokenizer):
    texts = [e["prompt"] if isinstance(e.get("prompt"), str) else "" for e in examples]
    lengths = [len(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]] if texts else []
    for row, example in enumerate(examples):
        prompt = example.get("prompt")
        if prompt is None:
            lengths[row] = 0
        elif not isinstance(prompt, str):
            chat = {"tools": example.get("tools"), **(example.get("chat_template_kwargs") or {})}
            text = tokenizer.apply_chat_template(
                prompt, add_generation_prompt=True, tokenize=False, **chat
            )
            lengths[row] = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    return lengths
