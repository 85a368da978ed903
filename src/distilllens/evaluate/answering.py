"""Answers of models to benchmarks, and the likelihood that they give to the references."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import NamedTuple

from tqdm.auto import tqdm

from distilllens.evaluate.harness import run_task
from distilllens.evaluate.harness_samples import is_there
from distilllens.evaluate.reference_likelihood import reference_likelihoods
from distilllens.evaluate.results import Unit
from distilllens.evaluate.tasks import as_trained
from distilllens.generate.transformers_backend import TransformersBackend, plan_batches
from distilllens.loading import size_in_words

logger = logging.getLogger(__name__)


class Answering:
    """Writes this process's share of the results; results that exist already stay as they are.

    Args:
        tasks: one ``Task`` per benchmark.
        harness: one ``HarnessTask`` per task of lm-evaluation-harness.
    """

    def __init__(self, plan, results, process, *, teacher, tasks, harness=()):
        self.plan, self.results, self.process = plan, results, process
        self.teacher, self.tasks, self.harness = teacher, tasks, harness
        self.hidden = not process.is_main
        self._said = set()

    def __call__(self, candidate):
        """Answer with one model, which is loaded only if something is missing."""
        todo = []
        for task in self.tasks:
            for seed in self.plan.seeds:
                unit = Unit(task.benchmark.name, candidate.label, seed)
                if batches := self._batches(task, unit):
                    todo.append(_Todo(unit, batches, task.prompt_ids[candidate.label]))
        references = [
            task
            for number, task in enumerate(self.tasks)
            if number % self.process.size == self.process.rank
            and self._lacks_references(task, candidate.label)
        ]
        model = None
        if todo and self.plan.backend == "vllm":
            self._generate_all(self._vllm(candidate), todo)
        elif todo:
            model = self._load("model", candidate)
            backend = TransformersBackend(model, candidate.tokenizer, self.plan.decoding)
            self._generate_all(backend, todo)
        if references:
            model = model or self._load("model", candidate)
            teacher = self.teacher and self._load("teacher", self.teacher)
            for task in references:
                self._score_references((candidate, model, teacher), task)
        for task in self.harness[self.process.rank :: self.process.size]:
            if not is_there(self.results.folder, task.name, candidate.label):
                model = model or self._load("model", candidate)
                self._run_harness(candidate, model, task)

    def _load(self, role, candidate):
        """A model, of which size, dtype and device are said once."""
        model = candidate.load(self.process.device, self.plan.dtype)
        line = f"{role} {candidate.name}: {size_in_words(model)}, on {self.process.device.type}"
        if line not in self._said:
            logger.info("%s", line)
        self._said.add(line)
        return model

    def _batches(self, task, unit):
        """This process's batches of example numbers that are not answered yet."""
        if self.results.answers(unit, task.examples) is not None:
            return []
        prompt_ids = task.prompt_ids[unit.model]
        numbers, lengths = list(prompt_ids), [*map(len, prompt_ids.values())]
        batches = plan_batches(lengths, self.plan.batch_size)
        done = self.results.parts(unit).keys()
        shares = [[numbers[row] for row in batch] for batch in batches]
        # A batch is repeated as a whole, so that a restart computes what one run would compute.
        return [
            batch
            for batch in shares[self.process.rank :: self.process.size]
            if not set(batch) <= done
        ]

    def _vllm(self, candidate):
        from distilllens.generate.vllm_backend import VllmBackend

        return VllmBackend(
            candidate.name,
            candidate.tokenizer,
            self.plan.decoding,
            dtype=self.plan.dtype,
            trust_remote_code=candidate.trust_remote_code,
        )

    def _generate_all(self, backend, todo):
        if backend.note and self.process.is_main:
            tqdm.write(f"distilllens: {todo[0].unit.model}: {backend.note}", file=sys.stderr)
        for unit, batches, prompt_ids in todo:
            self._generate(backend, unit, batches, prompt_ids)

    def _generate(self, backend, unit, batches, prompt_ids):
        num_tokens, began = 0, time.perf_counter()
        title = f"{unit.model}, {unit.benchmark}, {unit.name}"
        total = sum(map(len, batches))
        with tqdm(total=total, desc=title, unit=" answers", disable=self.hidden) as bar:
            for batch in batches:
                answers = backend.generate([prompt_ids[n] for n in batch], seed=unit.seed or 0)
                rows = [
                    {"example": n, "seed": unit.seed, "answer": a.text, **_numbers(a)}
                    for n, a in zip(batch, answers, strict=True)
                ]
                self.results.append(unit, self.process.rank, rows)
                num_tokens += sum(row["num_tokens"] for row in rows)
                bar.set_postfix_str(f"{num_tokens / (time.perf_counter() - began):.0f} tokens/s")
                bar.update(len(batch))
        self.results.note_time(
            **asdict(unit),
            process=self.process.rank,
            answers=total,
            tokens=num_tokens,
            seconds=round(time.perf_counter() - began, 3),
        )

    def _score_references(self, models, task):
        """Write the likelihood of the references, and the model's calibration on them."""
        candidate, model, teacher = models
        examples = task.examples.values()
        title = f"{candidate.label}, {task.benchmark.name}, references"
        with tqdm(total=len(examples), desc=title, unit=" rows", disable=self.hidden) as bar:
            rows, calibration = reference_likelihoods(
                model,
                candidate.tokenizer,
                [*map(as_trained, examples)],
                teacher=teacher,
                names=[example.place for example in examples],
                progress=lambda done, _: bar.update(done - bar.n),
            )
        rows = [{"example": n, **asdict(row)} for n, row in zip(task.examples, rows, strict=True)]
        self.results.finish_references(task.benchmark.name, candidate.label, rows, calibration)

    def _run_harness(self, candidate, model, task):
        began = time.perf_counter()
        rows, about = run_task(
            task,
            model,
            candidate.tokenizer,
            self.plan,
            title=f"{candidate.label}, lm_eval {task.name}",
            hidden=self.hidden,
        )
        self.results.finish_harness(task.name, candidate.label, rows, about)
        seconds = round(time.perf_counter() - began, 3)
        self.results.note_time(lm_eval=task.name, model=candidate.label, seconds=seconds)

    def _lacks_references(self, task, label):
        rows = self.results.references(task.benchmark.name, label, task.examples)
        if rows is None or self.teacher is None:
            return rows is None
        # A few may be beyond the teacher's context. Version 0.1.0 did not note its likelihood.
        return all(row.get("teacher_nll") is None for row in rows)


def _numbers(answer):
    return {name: getattr(answer, name) for name in ("num_tokens", "finished", "near_ties")}


class _Todo(NamedTuple):
    """Batches of example numbers to answer for one unit, and the prompts by example number."""

    unit: Unit
    batches: list[list[int]]
    prompt_ids: Mapping[int, list[int]]
