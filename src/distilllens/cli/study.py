"""``distilllens study``: methods x training seeds on equal terms, and whether one helps."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from distilllens.cli import CommandParser, add_flags
from distilllens.cli.terminal import quiet_libraries, stage

_DESCRIPTION = """\
Train several methods with several seeds on equal terms, and say which is better than a baseline.
Every run is an ordinary run folder. The answer is a table and a page: means over seeds, differences
from the baseline with intervals that count training seeds and examples, cost, divergence from the
teacher by depth, and a sentence for each method: better, worse, or not settled and how many seeds
would settle it.

examples:
  distilllens study --config study.yaml --output runs/study --dry-run
  distilllens study --config study.yaml --output runs/study
  distilllens study --config study.yaml --output runs/study --jobs 2

a study file:
  base:                      # recipe fields that all methods share
    model_name_or_path: STUDENT
    teacher_model_name_or_path: TEACHER
    train_file: train.jsonl
    eval_file: dev.jsonl
    max_steps: 300
  methods:                   # name -> the fields that make it
    kd: {lens_weight: 0}
    lens: {}
  baseline: kd               # default: the first method
  seeds: 3                   # 1, 2, 3; or a list
  learning_rates: [5.0e-4, 1.0e-3]   # each method's is chosen with its first seed
  evaluate: {benchmarks: [test.jsonl], seeds: [10, 20]}

docs/study.md explains all fields. The same command resumes an interrupted study.
"""
_FLAGS = (
    ("config", str, "YAML", "the study file"),
    ("output", Path, "DIR", "folder of the study: runs, results, tables and page"),
    ("jobs", 1, "N", "runs at a time, each with its share of the cores"),
    ("dry-run", bool, None, "time a few steps of each method; print the matrix and the hours"),
)


def main(argv: list[str]) -> int:
    """Parse the flags and run; raises ValueError, OSError or ImportError for bad input."""
    parser = CommandParser(prog="distilllens study", description=_DESCRIPTION)
    add_flags(parser, _FLAGS)
    args = parser.parse_args(argv or ["--help"])
    for name in ("config", "output"):
        if not getattr(args, name):
            raise ValueError(f"--{name} is missing (see distilllens study --help)")
    from distilllens.workflows.study.file import read_study

    study = read_study(args.config)
    stage("loading torch, transformers and trl")
    from distilllens.workflows.study.command import plan_in_words, run_study

    quiet_libraries()
    if args.dry_run:
        print(plan_in_words(study, args.output, jobs=args.jobs))
        return 0
    command = shlex.join(["distilllens", "study", *argv])
    print(run_study(study, args.output, jobs=args.jobs, command=command))
    print(f"tables: {args.output}/scores.md; page: {args.output}/report.html", file=sys.stderr)
    return 0
