"""The demo's sentences follow its numbers."""

import pytest

from distilllens.workflows.demo_verdict import ByQuestion, compared, verdict


def student(depths, right, num=40):
    """JSD a token of each pair (the output last), and a share of right answers; some noise."""
    tokens = [1 + n % 3 for n in range(num)]
    jsd = [[t * (base + 0.01 * (n % 5)) for n, t in enumerate(tokens)] for base in depths]
    return ByQuestion(jsd, tokens, [n < right * num for n in range(num)])


def test_differences_are_first_minus_second():
    """Of means over tokens, and in points of right answers; lower and more are better."""
    found = compared(student([0.1, 0.5], 0.75), student([0.3, 0.2], 0.5))
    assert [one["difference"] for one in found["jsd"]] == pytest.approx([-0.2, 0.3])
    assert [one["verdict"] for one in found["jsd"]] == ["better", "worse"]
    assert found["exact_match"]["difference"] == 25.0
    assert found["exact_match"]["low"] < 25.0 < found["exact_match"]["high"]


CASES = {
    "nearer inside": (
        ([0.1, 0.2, 0.3, 0.4], [0.3, 0.3, 0.4, 0.4], 40),
        "is nearer to the teacher than plain KD at depth 1, depth 2 and depth 3 and equals plain "
        "KD at the output.",
    ),
    "farther": (
        ([0.3, 0.1], [0.1, 0.2], 40),
        "is nearer to the teacher than plain KD at the output and is farther from the teacher than "
        "plain KD at depth 1.",
    ),
    "too few": (
        ([0.3, 0.1], [0.1, 0.2], 5),
        "answered too few questions to be told from plain KD at depth 1 and the output.",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_places_are_named_by_what_holds_there(case):
    """Depths of the student, and its output; nothing is claimed that an interval does not hold."""
    (first, second, num), said = CASES[case]
    comparison = compared(student(first, 0.5, num), student(second, 0.5, num))
    text = verdict({"questions": num, "comparison": comparison})
    assert text.startswith(f"On these {num} questions DistillLens {said} ")
    assert "one seed cannot tell the methods apart" in text


def test_noise_is_called_noise():
    """A difference with both signs among the questions, and a few answers more."""
    first, second = student([0.2], 0.5), student([0.2], 0.45)
    noisy = [value + (-1) ** n * 0.01 for n, value in enumerate(first.jsd[0])]
    found = compared(first._replace(jsd=[noisy]), second)
    text = verdict({"questions": 40, "comparison": found})
    assert "differs from plain KD by no more than noise at the output" in text
    assert "differs by +5.0 points, with a 95 % interval from +0.0 to +12.5: no diff" in text
