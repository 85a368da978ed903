"""Answers get their metrics: what needs nothing but texts, and what is asked for besides."""

from __future__ import annotations

import sys

from distilllens.evaluate.exact import exact_match
from distilllens.evaluate.judge.verdicts import Case
from distilllens.evaluate.results import Unit
from distilllens.evaluate.rouge import rouge_l


class Scoring:
    """Gives finished answers their metrics and writes them; the main process alone does it.

    Args:
        sbert: name of a sentence-transformers model, or None; it runs on ``device``.
        judge: a ``Judge``, or None. Both are tried at once, so that what fails, fails early.
        budget: in USD; what costs more is not begun.
    """

    def __init__(self, results, *, sbert=None, device=None, judge=None, budget=None):
        self.results, self.judge, self.budget = results, judge, budget
        self.similarity = None
        if sbert is not None:
            from distilllens.evaluate.sbert import SentenceSimilarity

            self.similarity = SentenceSimilarity(sbert, device)
        if judge is not None:
            if budget is not None and judge.prices is None:
                raise ValueError(
                    f"--judge_budget needs prices, and those of {judge.model} at {judge.base_url} "
                    "are not known; leave it out"
                )
            judge.check()

    def __call__(self, work, labels, seeds):
        """Score every unit that lacks a metric."""
        found = []
        for benchmark, kept in work:
            examples = {n: benchmark.examples[n] for n in kept}
            for label in labels:
                for seed in seeds:
                    unit = Unit(benchmark.name, label, seed)
                    rows = self.results.answers(unit)
                    if rows is None:
                        parts = self.results.parts(unit)
                        rows = [parts[n] for n in kept]
                    found.append((unit, rows, examples))
        for _, rows, examples in found:
            self._score_texts(rows, examples)
        if self.judge is not None:
            self._ask_judge(found)
        for unit, rows, _ in found:
            self.results.finish(unit, rows)

    def _score_texts(self, rows, examples):
        references = [examples[row["example"]].references for row in rows]
        for row, accepted in zip(rows, references, strict=True):
            if "rouge_l" not in row:
                row["rouge_l"] = rouge_l(row["answer"], accepted)
                row["exact_match"] = exact_match(row["answer"], accepted)
        if self.similarity is not None and not all("sbert" in row for row in rows):
            values = self.similarity([row["answer"] for row in rows], references)
            for row, value in zip(rows, values, strict=True):
                row["sbert"] = value

    def _ask_judge(self, found):
        asked = [(row, examples[row["example"]]) for _, rows, examples in found for row in rows]
        asked = [(row, example) for row, example in asked if row.get("judge") is None]
        cases = [Case(e.question, row["answer"], e.references[0]) for row, e in asked]
        estimate = self.judge.estimate(cases)
        print(f"judge {self.judge.model}: {estimate}", file=sys.stderr)
        if self.budget is not None and estimate.usd > self.budget:
            raise ValueError(
                f"the judge would cost about {estimate.usd:.2f} USD, above --judge_budget "
                f"{self.budget:g}; the answers are kept: raise it, or ask without --judge"
            )
        for (row, _), verdict in zip(asked, self.judge(cases), strict=True):
            row["judge"] = verdict.score
            row["judge_reference"] = verdict.reference_score
            row["judge_win"] = None if verdict.win is None else 100 * verdict.win
        self.results.sort_replies()
