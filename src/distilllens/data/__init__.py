"""Data files as records, and records as training examples and tokens."""

from distilllens.data.encode import (
    encode_example,
    encode_examples,
    encode_messages,
    template_fields,
)
from distilllens.data.format import (
    drop_long_prompts,
    format_instruction,
    format_prompt,
    instruction_messages,
    to_dataset,
    to_training_examples,
)
from distilllens.data.load import data_files, load_hub, load_prompts, load_records
from distilllens.data.records import kind_of, references, with_answer

__all__ = [
    "data_files",
    "drop_long_prompts",
    "encode_example",
    "encode_examples",
    "encode_messages",
    "format_instruction",
    "format_prompt",
    "instruction_messages",
    "kind_of",
    "load_hub",
    "load_prompts",
    "load_records",
    "references",
    "template_fields",
    "to_dataset",
    "to_training_examples",
    "with_answer",
]
