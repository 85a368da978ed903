"""What models say to benchmarks: their answers, and how likely they find the references."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict

from tqdm.auto import tqdm

from distilllens.evaluate.reference_likelihood import reference_likelihoods
from distilllens.evaluate.results import Unit
from distilllens.files import write_json
from distilllens.generate.prompts import encode_prompts
from distilllens.generate.transformers_backend import TransformersBackend, plan_batches
from distilllens.jsonl import write_rows


class Answering:
    """Fills the results with this process's part; what is there already is left alone.

    Args:
        work: benchmarks, each with the numbers of the examples that take part.
    """

    def __init__(self, plan, results, process, *, teacher, work):
        self.plan, self.results, self.process = plan, results, process
        self.teacher, self.work = teacher, work
        self.hidden = not process.is_main

    def __call__(self, candidate):
        """Answer with one model, which is loaded only if there is anything to do."""
        todo = []
        for benchmark, kept in self.work:
            examples = {number: benchmark.examples[number] for number in kept}
            for seed in self.plan.seeds:
                unit = Unit(benchmark.name, candidate.label, seed)
                if batches := self._batches(candidate, examples, unit):
                    todo.append((examples, unit, batches))
        references = [
            (benchmark, kept)
            for number, (benchmark, kept) in enumerate(self.work)
            if number % self.process.size == self.process.rank
            and self._lacks_references(benchmark.name, candidate.label)
        ]
        model = None
        if todo and self.plan.backend == "vllm":
            self._generate_all(self._vllm(candidate), todo)
        elif todo:
            model = candidate.load(self.process.device, self.plan.dtype)
            backend = TransformersBackend(model, candidate.tokenizer, self.plan.decoding)
            self._generate_all(backend, todo)
        if references:
            model = model or candidate.load(self.process.device, self.plan.dtype)
            teacher = self.teacher and self.teacher.load(self.process.device, self.plan.dtype)
            for benchmark, kept in references:
                self._weigh((candidate, model, teacher), benchmark, kept)

    def _batches(self, candidate, examples, unit):
        """This process's batches of example numbers that are not answered yet."""
        if self.results.answers(unit) is not None:
            return []
        numbers = list(examples)
        prompts = encode_prompts(candidate.tokenizer, [examples[n].prompt for n in numbers])
        batches = plan_batches([*map(len, prompts)], self.plan.batch_size)
        done = self.results.parts(unit).keys()
        shares = [[numbers[row] for row in batch] for batch in batches]
        # Whole batches again, so that a restart computes what an undisturbed run computes.
        return [
            batch
            for batch in shares[self.process.rank :: self.process.size]
            if not set(batch) <= done
        ]

    def _vllm(self, candidate):
        from distilllens.generate.vllm_backend import VllmBackend

        return VllmBackend(
            candidate.name, candidate.tokenizer, self.plan.decoding, dtype=self.plan.dtype
        )

    def _generate_all(self, backend, todo):
        if backend.note and self.process.is_main:
            tqdm.write(f"distilllens: {todo[0][1].model}: {backend.note}", file=sys.stderr)
        for examples, unit, batches in todo:
            self._generate(backend, examples, unit, batches)

    def _generate(self, backend, examples, unit, batches):
        num_tokens, began = 0, time.perf_counter()
        title = f"{unit.model}, {unit.benchmark}, {unit.name}"
        total = sum(map(len, batches))
        with tqdm(total=total, desc=title, unit=" answers", disable=self.hidden) as bar:
            for batch in batches:
                prompts = backend.encode([examples[n].prompt for n in batch])
                found = backend.generate(prompts, seed=unit.seed or 0)
                rows = [
                    {"example": n, "seed": unit.seed, "answer": fields.pop("text"), **fields}
                    for n, fields in zip(batch, map(asdict, found), strict=True)
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

    def _weigh(self, models, benchmark, kept):
        """Write how likely the model finds the references."""
        candidate, model, teacher = models
        examples = [benchmark.examples[n] for n in kept]
        title = f"{candidate.label}, {benchmark.name}, references"
        with tqdm(total=len(kept), desc=title, unit=" rows", disable=self.hidden) as bar:
            rows, calibration = reference_likelihoods(
                model,
                candidate.tokenizer,
                [{"prompt": e.prompt, "completion": e.completion} for e in examples],
                teacher=teacher,
                names=[example.place for example in examples],
                progress=lambda done, _: bar.update(done - bar.n),
            )
        folder = self.results.of(benchmark.name, candidate.label)
        write_json(folder / "calibration.json", calibration.to_dict())
        rows = [{"example": n, **asdict(row)} for n, row in zip(kept, rows, strict=True)]
        write_rows(folder / "references.jsonl", rows)

    def _lacks_references(self, benchmark, label):
        rows = self.results.references(benchmark, label)
        if rows is None or self.teacher is None:
            return rows is None
        return all(row["kl"] is None for row in rows)  # of a few it may be beyond the context
