"""The cases of a judge, its verdicts, and their totals; and the cost of judging."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One question with the student's answer and the reference answer, as plain text.

    Attributes:
        question: the instruction with its input, or a whole conversation.
        answer: the student's answer; may be empty.
        reference: the answer that it is compared with.
    """

    question: str
    answer: str
    reference: str


@dataclass(frozen=True)
class Verdict:
    """The judge's scores of one case, means over both orders of the pair; or None throughout.

    A case whose scores could be read in one order only has no verdict: a single order would favour
    a position.

    Attributes:
        score: score of the student's answer, 1 to 10.
        reference_score: score of the reference, 1 to 10.
        win: 1 if the answer scores above the reference, 0.5 for a tie, 0 if below; the mean over
            both orders, so one of 0, 0.25, 0.5, 0.75 and 1.
    """

    score: float | None
    reference_score: float | None
    win: float | None


def verdict_of(orders: Sequence[tuple[float, float] | None]) -> Verdict:
    """The verdict from ``(score, reference_score)`` of each order, None if unreadable."""
    if not orders or None in orders:
        return Verdict(None, None, None)
    wins = [0.5 + 0.5 * ((score > other) - (score < other)) for score, other in orders]
    columns = (*zip(*orders, strict=True), wins)
    return Verdict(*(sum(column) / len(orders) for column in columns))


@dataclass(frozen=True)
class Totals:
    """A judge's verdicts on one student, over the cases that have a verdict.

    Attributes:
        num_cases: number of cases.
        num_unread: number of cases without a verdict; the figures below exclude them.
        score: mean score of the answers, 1 to 10.
        reference_score: mean score of the references, 1 to 10.
        win_rate: mean of ``Verdict.win``, 0 to 1.
        ratio: total score of the answers divided by that of the references, in percent.
    """

    num_cases: int
    num_unread: int
    score: float | None
    reference_score: float | None
    win_rate: float | None
    ratio: float | None

    def __str__(self):
        unread = f"; {self.num_unread} of {self.num_cases} cases have no verdict"
        if self.score is None:
            return f"no verdict{unread}"
        return (
            f"score {self.score:.2f}, reference {self.reference_score:.2f}, "
            f"ratio {self.ratio:.1f} %, wins {100 * self.win_rate:.1f} %"
            f"{unread if self.num_unread else ''}"
        )


def totals(verdicts: Iterable[Verdict]) -> Totals:
    """Means and ratio over the verdicts; None if no case has a verdict."""
    verdicts = list(verdicts)
    read = [v for v in verdicts if v.score is not None]
    unread = len(verdicts) - len(read)
    if not read:
        return Totals(len(verdicts), unread, None, None, None, None)
    score = sum(v.score for v in read) / len(read)
    reference = sum(v.reference_score for v in read) / len(read)
    wins = sum(v.win for v in read) / len(read)
    return Totals(len(verdicts), unread, score, reference, wins, 100 * score / reference)


@dataclass(frozen=True)
class Estimate:
    """Calls, tokens and cost: estimated before a run, or measured after it.

    Attributes:
        num_calls: number of requests; an estimate does not include reminders after unreadable
            replies.
        num_cached: number of judgments (a case in one order) that need no call; 0 if measured.
        prompt_tokens: estimated as UTF-8 bytes / 4, for English right to within about a third.
        completion_tokens: estimated as 80 per call, the length of two sentences and the scores.
        usd: None if the prices are not known.
        measured: whether these are the server's own counts.
    """

    num_calls: int
    num_cached: int
    prompt_tokens: int
    completion_tokens: int
    usd: float | None
    measured: bool = False

    def __str__(self):
        about = "" if self.measured else "about "
        cached = "" if self.measured else f" ({self.num_cached} judgments are in the cache)"
        usd = "price not known" if self.usd is None else f"{about}{self.usd:.4f} USD"
        return (
            f"{self.num_calls} calls{cached}, {about}{self.prompt_tokens} prompt and "
            f"{self.completion_tokens} completion tokens, {usd}"
        )
