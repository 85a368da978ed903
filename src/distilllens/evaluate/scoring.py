"""The metrics of finished answers: those of texts alone, sentence similarity, and a judge."""

from __future__ import annotations

import sys

from distilllens.evaluate.exact import exact_match
from distilllens.evaluate.judge.verdicts import Case
from distilllens.evaluate.results import Unit
from distilllens.evaluate.rouge import rouge_l


class Scoring:
    """Adds the metrics to finished answers and writes them; only the main process does this.

    Args:
        sbert: name of a sentence-transformers model, or None; it runs on ``device``, and its code
            only with ``trust_remote_code``.
        judge: a ``Judge``, or None. Both are tried in the constructor, so that faults show early.
        budget: in USD; the judge is not called if it would cost more.

    Raises:
        ValueError, OSError, ImportError: the sentence model or the judge cannot be used.
    """

    def __init__(
        self,
        results,
        *,
        sbert=None,
        device=None,
        trust_remote_code=False,
        judge=None,
        budget=None,
    ):
        self.results, self.judge, self.budget = results, judge, budget
        self.similarity = None
        if sbert is not None:
            from distilllens.evaluate.sbert import SentenceSimilarity

            self.similarity = SentenceSimilarity(sbert, device, trust_remote_code=trust_remote_code)
        if judge is not None:
            if budget is not None and judge.prices is None:
                raise ValueError(
                    f"--judge_budget needs prices, and those of {judge.model} at {judge.base_url} "
                    "are not known; leave it out"
                )
            judge.check()

    def __call__(self, tasks, labels, seeds):
        """Score every answer that lacks a metric, and write the finished rows of every unit.

        Unless the evaluation was complete, all answers are scored: those of an earlier version may
        have been scored otherwise, and a judge's replies are kept.
        """
        answered = []
        for task in tasks:
            for label in labels:
                for seed in seeds:
                    unit = Unit(task.benchmark.name, label, seed)
                    rows = self.results.answers(unit, task.examples)
                    if rows is None:
                        parts = self.results.parts(unit)
                        rows = [parts[n] for n in task.examples]
                    answered.append((unit, rows, task.examples))
        for _, rows, examples in answered:
            self._score_texts(rows, examples)
        if self.judge is not None:
            self._ask_judge(answered)
        for unit, rows, _ in answered:
            self.results.finish(unit, rows)

    def _score_texts(self, rows, examples):
        references = [examples[row["example"]].references for row in rows]
        for row, accepted in zip(rows, references, strict=True):
            if not (self.results.is_complete and "rouge_l" in row):
                row["rouge_l"] = rouge_l(row["answer"], accepted)
                row["exact_match"] = exact_match(row["answer"], accepted)
        if self.similarity is not None and not all("sbert" in row for row in rows):
            values = self.similarity([row["answer"] for row in rows], references)
            for row, value in zip(rows, values, strict=True):
                row["sbert"] = value

    def _ask_judge(self, answered):
        asked = [(row, examples[row["example"]]) for _, rows, examples in answered for row in rows]
        if self.results.is_complete:
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
