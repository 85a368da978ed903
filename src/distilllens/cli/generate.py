"""``distilllens generate``: a model's answers to prompts, as data to train on."""

from __future__ import annotations

import os
import sys

from distilllens.cli import CommandParser, add_flags
from distilllens.cli.evaluate import DECODING, MACHINE, seeds
from distilllens.cli.terminal import quiet_libraries, stage

_DESCRIPTION = """\
Write a model's answers to prompts as JSON lines that distilllens train reads. A student that is
trained on its teacher's answers is sequence-level distillation (SeqKD).

examples, on what "distilllens demo" leaves (its models have 128 positions: short answers):
  distilllens generate --model demo/teacher --data demo/test.jsonl --greedy \\
      --max_new_tokens 64 --output answers.jsonl
  distilllens train --model_name_or_path demo/kd --train_file answers.jsonl \\
      --cross_entropy_weight 1 --max_steps 5 --output_dir runs/seqkd

A row keeps the fields and the kind of its record; the model's answer takes the place of output,
completion or the last turn of the assistant. Records need no answer. Answers that are cut at
--max_new_tokens are left out, and so are empty ones. Answers are appended to OUTPUT.part as they
are given: the same command goes on after an interruption, and OUTPUT appears when it is whole.

With --server, vLLM, transformers serve or any other OpenAI-compatible server answers, --batch_size
requests at a time: texts by its completions, and messages (of records, or by --chat) by its chat
completions.
"""
_DATA = {"action": "extend", "nargs": "+", "required": True}
_SEEDS = {"type": seeds, "default": (10,)}
_GROUPS = {
    "model and data": (
        ("model", {"required": True}, "DIR", "a folder or hub id, usually of the teacher"),
        ("data", _DATA, "FILE", "files or folders as train_file, or names as --benchmark"),
        ("output", {"required": True}, "FILE", "the .jsonl file to write"),
        ("limit", int, "N", "only the first N records"),
        ("max_prompt_length", int, "N", "leave out prompts with more than N tokens"),
        (
            "keep_truncated",
            bool,
            None,
            "keep answers cut at --max_new_tokens, which training would end",
        ),
        ("trust_remote_code", bool, None, "run code that comes with the model"),
        ("chat", bool, None, "use the model's chat template instead of the Alpaca prompt"),
    ),
    "decoding": (
        ("seeds", _SEEDS, "N,N,...", "sampling seeds, an answer each (default: 10)"),
        *DECODING,
    ),
    "machine": MACHINE,
    "server": (
        ("server", str, "URL", "ask this OpenAI-compatible server; --model is its name for it"),
        (
            "server_key",
            str,
            "VARIABLE",
            "environment variable with the API key (default: OPENAI_API_KEY, if set)",
        ),
    ),
}


def main(argv: list[str]) -> int:
    """Run the command; raises ValueError for bad input before anything is written."""
    parser = CommandParser(prog="distilllens generate", description=_DESCRIPTION)
    for title, flags in _GROUPS.items():
        add_flags(parser.add_argument_group(title), flags)
    args = vars(parser.parse_args(argv or ["--help"]))
    args.pop("verbose")
    stage("loading torch and transformers")
    from distilllens.generate.decoding import Decoding
    from distilllens.workflows.generate import Plan, generate

    quiet_libraries()
    names = ("max_new_tokens", "temperature", "top_p", "greedy")
    decoding = Decoding(**{name: args.pop(name) for name in names})
    said = generate(Plan(**args | {"data": tuple(args["data"])}, decoding=decoding))
    if os.environ.get("RANK", "0") == "0":
        print(said, file=sys.stderr)
    return 0
