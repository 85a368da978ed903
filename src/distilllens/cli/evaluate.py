"""``distilllens evaluate``: answer benchmarks and score the answers, with error bars."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from distilllens.cli import CommandParser, add_flags, is_flag
from distilllens.cli.terminal import quiet_libraries, stage
from distilllens.workflows.evaluate_checks import refuse_unused

_DESCRIPTION = """\
Answer benchmarks with one or more models and score the answers: Rouge-L, exact match, perplexity of
the references and calibration; optionally SBERT similarity, KL(teacher || model) and an LLM judge.
With --references_only nothing is answered, so that perplexity, KL and calibration take seconds.
Means have standard errors over examples and over seeds; differences between models have bootstrap
confidence intervals.

examples, on what "distilllens demo" leaves (its models have 128 positions: short answers):
  distilllens evaluate --model demo/kd demo/distilllens --teacher demo/teacher \\
      --benchmark demo/test.jsonl --max_new_tokens 64 --output results/both
  distilllens evaluate --model demo/kd demo/teacher --teacher demo/teacher --greedy --limit 100 \\
      --benchmark demo/test.jsonl --max_new_tokens 64 --output results/quick
  distilllens evaluate --model demo/kd demo/distilllens --teacher demo/teacher \\
      --benchmark demo/test.jsonl --references_only --output results/references
  torchrun --nproc_per_node 2 -m distilllens evaluate --model demo/kd \\
      --benchmark demo/test.jsonl --max_new_tokens 64 --output results/kd

A model is a folder or hub id, a run of distilllens train or one of its checkpoints, or a LoRA
adapter. With --teacher, the teacher has a row of its own; name it as a --model too for its answers.

A benchmark is a JSONL file with instruction / input / output records, or a name: dolly, selfinst,
vicuna, sni or unni (MiniLLM's files on the hub). The same command resumes after an interruption;
with --teacher, --sbert or --judge it adds that metric to existing results.
"""


def main(argv: list[str]) -> int:
    """Run the command; raises ValueError for bad input before anything is written."""
    args = _parser().parse_args(argv)
    if args.references_only:
        refuse_unused(word.partition("=")[0].lstrip("-") for word in argv if is_flag(word))
    stage("loading torch and transformers")
    from distilllens.generate.decoding import Decoding
    from distilllens.workflows.evaluate import Plan, evaluate, next_steps

    quiet_libraries()
    plan = Plan(
        models=tuple(args.model),
        benchmarks=tuple(args.benchmark or ()),
        output=args.output,
        decoding=Decoding(args.max_new_tokens, args.temperature, args.top_p, args.greedy),
        seeds=args.seeds,
        batch_size=args.batch_size,
        limit=args.limit,
        max_prompt_length=args.max_prompt_length,
        chat=args.chat,
        dtype=args.dtype,
        device=args.device,
        teacher=args.teacher,
        sbert=args.sbert,
        judge=args.judge,
        judge_url=args.judge_url,
        judge_key=args.judge_key,
        judge_budget=args.judge_budget,
        backend=args.backend,
        trust_remote_code=args.trust_remote_code,
        references_only=args.references_only,
        lm_eval=tuple(args.lm_eval or ()),
        lm_eval_path=args.lm_eval_path,
    )
    evaluate(plan, command=" ".join(["distilllens", *sys.argv[1:]]))
    if os.environ.get("RANK", "0") == "0":
        print((Path(args.output) / "scores.md").read_text(encoding="utf-8"))
        print(next_steps(plan), file=sys.stderr)
    return 0


def _parser():
    parser = CommandParser(prog="distilllens evaluate", description=_DESCRIPTION)
    for title, flags in _GROUPS.items():
        add_flags(parser.add_argument_group(title), flags)
    return parser


def seeds(text: str) -> tuple[int, ...]:
    """The numbers of ``--seeds``, as argparse reads them."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        message = f"must be numbers such as 10,20,30, got {text!r}"
        raise argparse.ArgumentTypeError(message) from None


_SOME = {"action": "extend", "nargs": "+"}
_SEVERAL = {**_SOME, "required": True}

# Flags that distilllens generate has too.
DECODING = (
    ("greedy", bool, None, "always take the most likely token; no sampling"),
    ("temperature", 1.0, "X", "sampling temperature"),
    ("top_p", 1.0, "X", "sample among the most likely tokens with this total probability"),
    ("max_new_tokens", 256, "N", "length of the longest answer in tokens"),
)
MACHINE = (
    ("batch_size", 32, "N", "number of answers generated together"),
    ("dtype", "auto", "DTYPE", "precision: auto (as saved), float32, bfloat16 or float16"),
    ("device", str, "NAME", "device of the models; an accelerator by default, if there is one"),
    ("backend", "transformers", "NAME", "transformers or vllm"),
)
_SEEDS = {"type": seeds, "default": (10, 20, 30, 40, 50)}
_GROUPS = {
    "models and data": (
        ("model", _SEVERAL, "DIR", "a folder or hub id; several models are compared"),
        ("benchmark", _SOME, "FILE-OR-NAME", "a file, or dolly, selfinst, vicuna, sni, unni"),
        ("output", {"required": True}, "DIR", "folder for the results"),
        ("limit", int, "N", "only the first N examples of each benchmark"),
        ("max_prompt_length", int, "N", "leave out prompts with more than N tokens"),
        (
            "references_only",
            bool,
            None,
            "answer nothing: perplexity, KL and calibration on the references",
        ),
        ("trust_remote_code", bool, None, "run code that comes with a model"),
        ("chat", bool, None, "use the model's chat template instead of the Alpaca prompt"),
    ),
    "decoding (the defaults are the paper's)": (
        ("seeds", _SEEDS, "N,N,...", "sampling seeds (default: 10,20,30,40,50)"),
        *DECODING,
    ),
    "more metrics": (
        ("teacher", str, "DIR", "KL(teacher || model) on the references"),
        ("sbert", str, "MODEL", "similarity to the references by this sentence-transformers model"),
        ("judge", str, "MODEL", "scores by this model of an OpenAI-compatible server"),
        ("judge_url", str, "URL", "address of the judge's server; OpenAI's by default"),
        ("judge_key", "OPENAI_API_KEY", "VARIABLE", "environment variable with the API key"),
        ("judge_budget", float, "USD", "do not start judging if the estimated cost is higher"),
    ),
    "lm-evaluation-harness": (
        ("lm_eval", _SOME, "TASK,TASK", "run these tasks of it, with or without a --benchmark"),
        ("lm_eval_path", str, "DIR", "a folder with tasks of your own, as YAML files"),
    ),
    "machine": MACHINE,
}
