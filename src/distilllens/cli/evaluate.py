"""``distilllens evaluate``: answers to benchmarks, their metrics, and scores with error bars."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

_DESCRIPTION = """\
Answer benchmarks with one or more models and score the answers: Rouge-L, exact match, perplexity of
the references and calibration; on request SBERT similarity, KL to a teacher and an LLM judge. Means
come with standard errors over examples and over seeds, pairs of models with a bootstrap interval.

examples:
  distilllens evaluate --model runs/student --benchmark test.jsonl --output results/student
  distilllens evaluate --model runs/student --model runs/plain-kd --benchmark dolly selfinst \\
      --teacher runs/teacher --output results/both
  distilllens evaluate --model runs/student --benchmark test.jsonl --greedy --limit 100 \\
      --output results/quick
  distilllens evaluate --model runs/student --benchmark vicuna --judge gpt-4o-mini \\
      --judge_budget 2 --output results/judged
  torchrun --nproc_per_node 4 -m distilllens evaluate --model runs/student \\
      --benchmark test.jsonl --output results/student

Benchmarks are files of instruction / input / output, one object a line, or names: dolly, selfinst,
vicuna, sni, unni (MiniLLM's files on the hub). The same command again goes on where it stopped;
with --teacher, --sbert or --judge added it adds that metric.
"""


def main(argv: list[str]) -> int:
    """Run the command; raises ValueError for bad input before anything is written."""
    args = _parser().parse_args(argv)
    from distilllens.generate.decoding import Decoding
    from distilllens.workflows.evaluate import Plan, evaluate

    plan = Plan(
        models=tuple(args.model),
        benchmarks=tuple(args.benchmark),
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
        judge_budget=args.judge_budget,
        backend=args.backend,
    )
    evaluate(plan, judge=_judge(args), command=" ".join(["distilllens", *sys.argv[1:]]))
    if os.environ.get("RANK", "0") == "0":
        print((Path(args.output) / "scores.md").read_text(encoding="utf-8"))
        print(f"written to {args.output}: scores.md, scores.json and every answer", file=sys.stderr)
    return 0


def _judge(args):
    if args.judge is None:
        for name in ("judge_url", "judge_budget"):
            if getattr(args, name) is not None:
                raise ValueError(f"--{name} goes with --judge MODEL")
        return None
    from distilllens.evaluate.judge.judge import Judge
    from distilllens.evaluate.results import JUDGE_CACHE

    return Judge(
        args.judge,
        base_url=args.judge_url,
        key_variable=args.judge_key,
        cache=Path(args.output) / JUDGE_CACHE,
    )


def _parser():
    from distilllens.cli import OneLineParser

    parser = OneLineParser(prog="distilllens evaluate", description=_DESCRIPTION)
    for title, flags in _FLAGS.items():
        group = parser.add_argument_group(title)
        for name, settings in flags.items():
            group.add_argument(f"--{name}", **settings)
    return parser


def _seeds(text):
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        message = f"must be numbers such as 10,20,30, got {text!r}"
        raise argparse.ArgumentTypeError(message) from None


_FLAGS = {
    "what": {
        "model": {
            "action": "extend",
            "nargs": "+",
            "required": True,
            "metavar": "DIR",
            "help": "a folder or hub id; several are compared",
        },
        "benchmark": {
            "action": "extend",
            "nargs": "+",
            "required": True,
            "metavar": "FILE-OR-NAME",
            "help": "a file of records, or dolly, selfinst, vicuna, sni, unni",
        },
        "output": {"required": True, "metavar": "DIR", "help": "the results folder"},
        "limit": {"type": int, "metavar": "N", "help": "the first N examples of each benchmark"},
        "max_prompt_length": {"type": int, "metavar": "TOKENS", "help": "leave out longer prompts"},
        "chat": {
            "action": "store_true",
            "help": "put instructions to the model's chat template instead of Alpaca's prompt",
        },
    },
    "decoding (the defaults are the paper's)": {
        "seeds": {
            "type": _seeds,
            "default": (10, 20, 30, 40, 50),
            "metavar": "N,N,...",
            "help": "of the sampling (default: 10,20,30,40,50)",
        },
        "greedy": {"action": "store_true", "help": "the likeliest token instead of sampling"},
        "temperature": {"type": float, "default": 1.0, "help": "default: 1"},
        "top_p": {"type": float, "default": 1.0, "help": "default: 1"},
        "max_new_tokens": {"type": int, "default": 256, "help": "longest answer (default: 256)"},
    },
    "further metrics": {
        "teacher": {"metavar": "DIR", "help": "KL(teacher || model) on the references"},
        "sbert": {
            "metavar": "MODEL",
            "help": "cosine similarity to the references by this sentence-transformers model",
        },
        "judge": {"metavar": "MODEL", "help": "a model of an OpenAI-compatible server"},
        "judge_url": {"metavar": "URL", "help": "its address (default: OpenAI's)"},
        "judge_key": {
            "default": "OPENAI_API_KEY",
            "metavar": "VARIABLE",
            "help": "environment variable with its key (default: OPENAI_API_KEY)",
        },
        "judge_budget": {"type": float, "metavar": "USD", "help": "do not ask if it costs more"},
    },
    "machine": {
        "batch_size": {"type": int, "default": 32, "help": "answers at a time (default: 32)"},
        "dtype": {
            "default": "auto",
            "help": "of the weights: auto (as saved, default), float32, bfloat16, float16",
        },
        "device": {"help": "default: an accelerator if there is one, else cpu"},
        "backend": {"default": "transformers", "help": "transformers (default) or vllm"},
    },
}
