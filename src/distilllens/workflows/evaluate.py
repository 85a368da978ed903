"""One evaluation: check everything, answer, score, write; it goes on where a kill left it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version

from distilllens.evaluate.answering import Answering
from distilllens.evaluate.benchmarks import load_benchmarks
from distilllens.evaluate.models import find_models
from distilllens.evaluate.processes import this_process
from distilllens.evaluate.results import Results
from distilllens.evaluate.scoring import Scoring
from distilllens.evaluate.tables import write_scores
from distilllens.generate.decoding import Decoding
from distilllens.generate.prompts import encode_prompts
from distilllens.generate.transformers_backend import check_prompt_lengths
from distilllens.generate.vllm_backend import check_vllm
from distilllens.loading import check_tokenizers, positions_of

SEEDS = (10, 20, 30, 40, 50)
BACKENDS = ("transformers", "vllm")
DTYPES = ("auto", "float32", "bfloat16", "float16")
_LIBRARIES = ("distilllens", "torch", "transformers", "tokenizers", "rouge-score")


@dataclass(frozen=True)
class Plan:
    """What to evaluate; the defaults are the paper's.

    Args:
        models: folders or hub ids.
        benchmarks: names or files (see ``load_benchmarks``).
        output: the results folder.
        seeds: of the sampling; greedy decoding has none.
        limit: examples of each benchmark; all by default.
        max_prompt_length: leave out examples whose prompt has more tokens for any model.
        chat: put instructions to the chat template.
        dtype: of the weights; "auto" is as they were saved.
        teacher: measure KL(teacher ‖ model) on the references.
        sbert: a sentence-transformers model for the cosine similarity.
        judge_budget: in USD; a judge that would cost more is not asked.
        backend: "transformers" or "vllm".
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
    judge_budget: float | None = None
    backend: str = "transformers"

    def __post_init__(self):
        if self.decoding.greedy:
            object.__setattr__(self, "seeds", (None,))
        _check_seeds(self.seeds)
        for name in ("batch_size", "limit", "max_prompt_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1, got {value}")
        if self.judge_budget is not None and not 0 <= self.judge_budget < math.inf:
            raise ValueError(f"--judge_budget must be at least 0, got {self.judge_budget}")
        for name, known in (("backend", BACKENDS), ("dtype", DTYPES)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"--{name} is one of {', '.join(known)}, got {getattr(self, name)!r}"
                )


def evaluate(plan: Plan, *, judge=None, command: str = "") -> None:
    """Answer every benchmark with every model and write the results to ``plan.output``.

    Nothing is written before all that can be checked is. Started again after a kill, it goes on.

    Args:
        judge: a ``Judge``; none by default.
        command: noted in the results.

    Raises:
        ValueError: models, benchmarks, prompts or a folder that do not fit.
    """
    process = this_process(plan.device)
    results = Results(plan.output)
    with process.together():
        candidates, teacher, work, settings, scoring = _prepared(plan, process, results, judge)
        if process.is_main:
            results.begin(settings, command)
    with process.together():
        if results.settings() is None:
            raise ValueError(f"--output {plan.output} must be a folder that all processes see")
        answering = Answering(plan, results, process, teacher=teacher, work=work)
        for candidate in candidates:
            answering(candidate)
    with process.together():
        if process.is_main:
            scoring(work, [candidate.label for candidate in candidates], plan.seeds)
            write_scores(results)


def _prepared(plan, process, results, judge):
    """Everything that can be found wrong is, before anything is written."""
    candidates = find_models(plan.models)
    teacher = find_models([plan.teacher])[0] if plan.teacher else None
    for candidate in candidates if teacher else ():
        check_tokenizers(candidate.tokenizer, teacher.tokenizer)
    benchmarks = load_benchmarks(plan.benchmarks, limit=plan.limit, chat=plan.chat)
    work = [(benchmark, _kept(benchmark, candidates, plan)) for benchmark in benchmarks]
    settings = _settings(plan, candidates, teacher, work, judge)
    settings["device"] = process.device.type
    results.check(settings)
    if plan.backend == "vllm":
        check_vllm(plan.decoding, process.size)
    scoring = None
    if process.is_main:
        scoring = Scoring(
            results,
            sbert=plan.sbert,
            device=process.device,
            judge=judge,
            budget=plan.judge_budget,
        )
    return candidates, teacher, work, settings, scoring


def _kept(benchmark, candidates, plan):
    """The numbers of the examples whose prompt fits every model.

    Raises:
        ValueError: none is left, or one does not fit a model's context.
    """
    kept = list(range(len(benchmark.examples)))
    prompts = [example.prompt for example in benchmark.examples]
    lengths = {c.label: _lengths(benchmark, prompts, c) for c in candidates}
    if plan.max_prompt_length is not None:
        longest = [max(each) for each in zip(*lengths.values(), strict=True)]
        kept = [n for n in kept if longest[n] <= plan.max_prompt_length]
        if not kept:
            raise ValueError(
                f"benchmark {benchmark.name}: all {len(prompts)} prompts have more than "
                f"--max_prompt_length {plan.max_prompt_length} tokens; the shortest has "
                f"{min(longest)}"
            )
    places = [benchmark.examples[n].place for n in kept]
    for candidate in candidates:
        needed = [lengths[candidate.label][n] for n in kept]
        check_prompt_lengths(needed, positions_of(candidate.config), plan.decoding, places)
    return kept


def _lengths(benchmark, prompts, candidate):
    """Tokens of each prompt.

    Raises:
        ValueError: a prompt without tokens, or with one that the model does not know.
    """
    encoded = encode_prompts(candidate.tokenizer, prompts)
    known = candidate.config.get_text_config().vocab_size
    for example, ids in zip(benchmark.examples, encoded, strict=True):
        if not ids:
            raise ValueError(f"{example.place}: the prompt has no tokens; a model answers to some")
        if max(ids) >= known:
            raise ValueError(
                f"{example.place}: the prompt has token {max(ids)}, but {candidate.label} knows "
                f"only {known}: its tokenizer is another model's"
            )
    return [*map(len, encoded)]


def _settings(plan, candidates, teacher, work, judge):
    """What makes two evaluations the same, and what one needs to know to repeat it."""
    return {
        "models": {candidate.label: candidate.hashes for candidate in candidates},
        "names": {
            "models": {candidate.label: candidate.name for candidate in candidates},
            "benchmarks": {benchmark.name: benchmark.source for benchmark, _ in work},
            "teacher": teacher.name if teacher else None,
        },
        "benchmarks": {
            benchmark.name: {
                "sha256": benchmark.sha256,
                "examples": len(kept),
                "left_out": len(benchmark.examples) - len(kept),
            }
            for benchmark, kept in work
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
        "versions": {name: _version(name) for name in _LIBRARIES},
    }


def _check_seeds(seeds):
    if not seeds:
        raise ValueError("--seeds needs at least one number, such as 10,20,30")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds names one twice: {','.join(map(str, seeds))}")
    for seed in seeds:
        if seed is not None and not 0 <= seed < 2**63:
            raise ValueError(f"--seeds must be between 0 and {2**63 - 1}, got {seed}")


def _version(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None
