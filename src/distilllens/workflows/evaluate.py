"""``distilllens evaluate``: check, answer, score, write; resume after an interruption."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shlex import join, quote
from typing import NamedTuple

from distilllens.evaluate.answering import Answering
from distilllens.evaluate.benchmarks import load_benchmarks
from distilllens.evaluate.harness import HarnessTask, find_tasks, task_names
from distilllens.evaluate.harness_samples import settings_of
from distilllens.evaluate.judge.judge import Judge
from distilllens.evaluate.models import Candidate, find_models
from distilllens.evaluate.processes import this_process
from distilllens.evaluate.results import DEFINITIONS, JUDGE_CACHE, Results
from distilllens.evaluate.scoring import Scoring
from distilllens.evaluate.tables import write_scores
from distilllens.evaluate.tasks import Task, check_shared, make_task
from distilllens.evaluate.trivial import trivial_scores
from distilllens.generate.decoding import Decoding
from distilllens.generate.vllm_backend import check_vllm
from distilllens.loading import check_tokenizers
from distilllens.workflows.evaluate_checks import SEEDS, check_flags, check_seeds, refuse_unused

_LIBRARIES = ("distilllens", "torch", "transformers", "tokenizers", "rouge-score")


@dataclass(frozen=True)
class Plan:
    """What to evaluate; the defaults are the paper's.

    Args:
        models: folders or hub ids.
        benchmarks: names or files (see ``load_benchmarks``); none with ``lm_eval`` alone.
        output: the results folder.
        seeds: sampling seeds; greedy decoding uses none.
        limit: number of examples of each benchmark; all by default.
        max_prompt_length: leave out examples whose prompt has more tokens for any model.
        chat: format instructions with the model's chat template.
        dtype: dtype of the weights; "auto" is the one they were saved in.
        teacher: measure KL(teacher ‖ model) on the references.
        sbert: a sentence-transformers model for the cosine similarity.
        judge: a model that grades the answers, of the OpenAI-compatible server at ``judge_url``
            (default: OpenAI's) with the key in the environment variable ``judge_key``.
        judge_budget: in USD; a judge that would cost more is not called.
        backend: "transformers" or "vllm".
        references_only: measure what needs no answers: likelihood, KL and calibration on the
            references. Fields of answers then keep their defaults, and there are no seeds.
        trust_remote_code: whether code that comes with a model may run.
        lm_eval: names of tasks, groups and tags of lm-evaluation-harness.
        lm_eval_path: a folder with further tasks.

    Raises:
        ValueError: a field is out of range, or fields do not go together.
        ImportError: ``lm_eval`` without lm-evaluation-harness.
    """

    models: tuple[str, ...]
    benchmarks: tuple[str, ...]
    output: str
    decoding: Decoding = field(default_factory=Decoding)
    seeds: tuple[int | None, ...] = SEEDS
    batch_size: int = 32
    limit: int | None = None
    max_prompt_length: int | None = None
    chat: bool = False
    dtype: str = "auto"
    device: str | None = None
    teacher: str | None = None
    sbert: str | None = None
    judge: str | None = None
    judge_url: str | None = None
    judge_key: str = "OPENAI_API_KEY"
    judge_budget: float | None = None
    backend: str = "transformers"
    trust_remote_code: bool = False
    references_only: bool = False
    lm_eval: tuple[str, ...] = ()
    lm_eval_path: str | None = None

    def __post_init__(self):
        if self.references_only:
            refuse_unused(self._changed())
            object.__setattr__(self, "seeds", ())
        elif self.decoding.greedy:
            object.__setattr__(self, "seeds", (None,))
        else:
            check_seeds(self.seeds)
        check_flags(self)
        names = task_names(self.lm_eval, self.lm_eval_path, self.backend)
        object.__setattr__(self, "lm_eval", names)
        _check_benchmarks(self)
        if self.judge_budget is not None and not 0 <= self.judge_budget < math.inf:
            raise ValueError(f"--judge_budget must be at least 0, got {self.judge_budget}")

    def _changed(self):
        """The names of the fields, and of those of the decoding, that do not have their default."""
        both = [(one, field) for one in (self, self.decoding) for field in fields(one)]
        changed = [field.name for one, field in both if getattr(one, field.name) != field.default]
        # A plan that is made from another one of this kind has no seeds already.
        return changed if self.seeds else [name for name in changed if name != "seeds"]


def evaluate(plan: Plan, *, judge=None, command: str = "") -> None:
    """Answer every benchmark with every model and write the results to ``plan.output``.

    With ``plan.references_only``, only the references are read, and nothing is answered.

    Everything that can be checked is checked before anything is written. The same call resumes an
    interrupted evaluation.

    Args:
        judge: a ``Judge`` instead of the plan's, with prices of its own for instance.
        command: the command line, recorded in the results.

    Raises:
        ValueError: a model, benchmark, prompt or output folder cannot be used.
    """
    if judge is not None and plan.references_only:
        refuse_unused(["judge"])
    process = this_process(plan.device)
    results = Results(plan.output)
    judge = judge or _judge(plan, results)
    with process.together():
        prepared = _prepare(plan, process, results, judge)
        if process.is_main:
            results.begin(prepared.settings, command)
    with process.together():
        if results.settings() is None:
            raise ValueError(f"--output {plan.output} must be a folder that all processes see")
        answering = Answering(
            plan,
            results,
            process,
            teacher=prepared.teacher,
            tasks=prepared.tasks,
            harness=prepared.harness,
        )
        for candidate in prepared.candidates:
            answering(candidate)
    with process.together():
        if process.is_main:
            if not plan.references_only:
                _score(plan, results, prepared, judge)
            write_scores(results)
            results.close()


def _score(plan, results, prepared, judge):
    """Score the answers, and note what their scores mean."""
    labels = [candidate.label for candidate in prepared.candidates]
    prepared.scoring(prepared.tasks, labels, plan.seeds)
    trivial = {t.benchmark.name: trivial_scores(t.examples.values()) for t in prepared.tasks}
    results.note_definitions(judge is not None, trivial)


def next_steps(plan: Plan) -> str:
    """Where the results of a finished evaluation are, and commands to go on with."""
    steps = [
        f"distilllens compare {quote(plan.output)} OTHER_RESULTS   # beside another evaluation"
    ]
    students = [m for m in plan.models if m != plan.teacher]
    if plan.benchmarks and plan.teacher is None:
        steps.append("the same command with --teacher DIR   # KL, and a row of the teacher")
    elif plan.benchmarks and students and Path(benchmark := plan.benchmarks[0]).exists():
        flags = [word for student in students for word in ("--student", student)]
        words = ["inspect", "--teacher", plan.teacher, *flags, "--data", benchmark, "--limit", "8"]
        words += ["--output", "page.html"]
        steps.append(f"{join(['distilllens', *words])}   # what they predict at every depth")
    rows, file = ("reference", "/references.jsonl") if plan.references_only else ("answer", "")
    return (
        f"tables: {plan.output}/scores.md, unrounded in scores.json; every {rows}: "
        f"{plan.output}/BENCHMARK/MODEL{file}\nnext: " + "\n      ".join(steps)
    )


class _Prepared(NamedTuple):
    candidates: list[Candidate]
    teacher: Candidate | None
    tasks: list[Task]
    settings: dict
    scoring: Scoring | None  # of the main process
    harness: list[HarnessTask]


def _prepare(plan, process, results, judge) -> _Prepared:
    """Load and check everything but the weights; nothing is written."""
    trusted = plan.trust_remote_code
    candidates = find_models(plan.models, trust_remote_code=trusted)
    teacher = None
    if plan.teacher:
        (teacher,) = find_models([plan.teacher], trust_remote_code=trusted)
    differences = [
        (candidate, check_tokenizers(candidate.tokenizer, teacher.tokenizer))
        for candidate in (candidates if teacher else ())
    ]
    benchmarks = load_benchmarks(plan.benchmarks, limit=plan.limit, chat=plan.chat)
    decoding = None if plan.references_only else plan.decoding
    tasks = [
        make_task(benchmark, candidates, decoding, plan.max_prompt_length)
        for benchmark in benchmarks
    ]
    for candidate, unshared in differences:
        check_shared(unshared, candidate, tasks)
    settings = _settings(plan, candidates, teacher, tasks, judge)
    settings["device"] = process.device.type
    harness = find_tasks(plan, candidates)
    if harness:
        settings["lm_eval"] = settings_of(harness)
    results.check(settings)
    if plan.backend == "vllm":
        check_vllm(plan.decoding, process.size)
    scoring = None
    if process.is_main:
        scoring = Scoring(
            results,
            sbert=plan.sbert,
            device=process.device,
            trust_remote_code=trusted,
            judge=judge,
            budget=plan.judge_budget,
        )
    return _Prepared(candidates, teacher, tasks, settings, scoring, harness)


def _judge(plan, results):
    if plan.judge is not None:
        cache = results.folder / JUDGE_CACHE
        return Judge(plan.judge, base_url=plan.judge_url, key_variable=plan.judge_key, cache=cache)
    for name in ("judge_url", "judge_budget"):
        if getattr(plan, name) is not None:
            raise ValueError(f"--{name} goes with --judge MODEL")
    return None


def _settings(plan, candidates, teacher, tasks, judge):
    """The settings that identify an evaluation and allow it to be repeated."""
    settings = {
        "models": {candidate.label: candidate.hashes for candidate in candidates},
        "names": {
            "models": {candidate.label: candidate.name for candidate in candidates},
            "benchmarks": {task.benchmark.name: task.benchmark.source for task in tasks},
            "teacher": teacher.name if teacher else None,
            "bases": {c.label: c.base for c in candidates if c.base},
        },
        "benchmarks": {
            task.benchmark.name: {
                "sha256": task.benchmark.sha256,
                "examples": len(task.examples),
                "left_out": len(task.benchmark.examples) - len(task.examples),
            }
            for task in tasks
        },
        "seeds": list(plan.seeds),
        "decoding": asdict(plan.decoding),
        "batch_size": plan.batch_size,
        "limit": plan.limit,
        "max_prompt_length": plan.max_prompt_length,
        "chat": plan.chat,
        "dtype": plan.dtype,
        "backend": plan.backend,
        "teacher": teacher.hashes if teacher else None,
        "sbert": plan.sbert,
        "judge": f"{judge.model} at {judge.base_url}" if judge else None,
        "text_metrics": DEFINITIONS["text_metrics"],
        "judge_reads": DEFINITIONS["judge_reads"] if judge else None,
        "versions": {name: _version(name) for name in _LIBRARIES},
    }
    if plan.references_only:
        settings |= {"references_only": True, "decoding": {}}
        settings |= dict.fromkeys(("batch_size", "text_metrics"))
    return settings


def _check_benchmarks(plan):
    if plan.benchmarks:
        return
    if not plan.lm_eval:
        raise ValueError("name a --benchmark, or tasks of lm-evaluation-harness with --lm_eval")
    for name in ("teacher", "sbert", "judge", "max_prompt_length"):
        if getattr(plan, name) is not None:
            raise ValueError(f"--{name} is about a --benchmark; name one, or leave it out")


def _version(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None
