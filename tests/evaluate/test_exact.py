"""Exact match against a second implementation, one character at a time."""

import json
import random
import re
import unicodedata

import pytest

from distilllens.evaluate.exact import exact_match

# The printable ASCII characters that are neither letters, digits nor the space.
PUNCTUATION = "".join(chr(c) for c in range(33, 127) if not chr(c).isalnum())


def independent(answer, references):
    """Normal forms by regular expressions; a list of pieces instead of a text."""

    def gone(character):
        return character in PUNCTUATION or unicodedata.category(character)[0] == "P"

    def pieces(text):
        text = unicodedata.normalize("NFC", text.lower())
        kept = re.split(r"\s", "".join(c for c in text if not gone(c)))
        return [piece for piece in kept if piece] or text.split()

    return 100.0 * (pieces(answer) in [pieces(reference) for reference in references])


def mutated(text, rng):
    """The text with other case, punctuation and white space: still a match."""
    words = [rng.choice([str.upper, str.lower, str.title, str])(word) for word in text.split()]
    words = [rng.choice(["", *PUNCTUATION]) + word + rng.choice(["", ".", "?!"]) for word in words]
    return rng.choice(["", "\n\t"]) + rng.choice([" ", "  ", "\n", "\u00a0"]).join(words) + " "


def spoilt(text, rng):
    """The text with a word doubled, dropped or glued to the next: no match any more."""
    words = text.split()
    at = rng.randrange(len(words))
    return " ".join([*words[:at], rng.choice(["the", words[at] + "x", "0"]), *words[at:]])


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("Paris.", ["paris"], 100.0),
        ("  PARIS\n", ["London", "paris!"], 100.0),
        ("the cat", ["cat"], 0.0),  # articles are no punctuation
        ("a-b", ["ab"], 100.0),  # a hyphen goes and leaves no space
        ("a b", ["ab"], 0.0),
        ("“Paris”", ["Paris"], 100.0),  # typographic marks go like those of ASCII
        ("ÄRGER, Öl", ["ärger öl"], 100.0),
        ("東京", ["東京。"], 100.0),
        ("「東京」、", ["東京"], 100.0),
        ("東京", ["京東"], 0.0),
        ("هل هذا صحيح؟", ["هل هذا صحيح"], 100.0),
        ("नमस्ते।", ["नमस्ते"], 100.0),
        ("cafe\u0301", ["caf\u00e9"], 100.0),  # one letter, written in two ways
        ("cafe", ["café"], 0.0),
        ("100 €", ["100"], 0.0),  # of symbols only ASCII's go
        ("", ["..."], 0.0),  # a text of nothing but punctuation keeps it
        ("!!!", ["..."], 0.0),
        ("。", [""], 0.0),
        ("!!!", [" !!!\n"], 100.0),
        ("", [""], 100.0),
        ("", ["yes"], 0.0),
    ],
)
def test_cases(answer, references, expected):
    """100 for one of the references up to case, punctuation and white space; else 0."""
    assert exact_match(answer, references) == expected == independent(answer, references)


def test_agrees_with_the_definition_written_anew(shared):
    """1,200 real references, left alone, mutated or spoilt; each outcome at least 300 times."""
    lines = (shared / "data" / "eval_sni.jsonl").read_text().splitlines()
    rng = random.Random(0)
    outcomes = []
    for line in rng.sample(lines, 1200):
        output = json.loads(line)["output"]
        references = [output] if isinstance(output, str) else output
        answer = rng.choice([mutated, spoilt])(rng.choice(references), rng)
        outcomes.append(exact_match(answer, references))
        assert outcomes[-1] == independent(answer, references), (answer, references)
    assert outcomes.count(100.0) >= 300 and outcomes.count(0.0) >= 300


def test_invisible_characters_are_no_difference():
    """Marks of direction, joiners and a byte order mark."""
    assert exact_match("\ufeffשלום\u200f", ["שלום"]) == 100.0
    assert exact_match("می\u200cخواهم", ["میخواهم"]) == 100.0
