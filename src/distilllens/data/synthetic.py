"""The instruction data of the demo: eight tasks with exact answers, generated from a seed.

A transformer with a million parameters can learn the tasks on a CPU. The records have the schema of
real instruction data, so the demo runs the same code as training on Dolly.
"""

from __future__ import annotations

import random
import string
import zlib
from collections.abc import Callable

SPLITS = ("train", "held_out")


def _word(rng, shortest=3, longest=6, letters=string.ascii_lowercase):
    return "".join(rng.choices(letters, k=rng.randint(shortest, longest)))


def _copy(rng):
    word = _word(rng)
    return "Repeat the word.", word, word


def _reverse(rng):
    word = _word(rng)
    return "Reverse the word.", word, word[::-1]


def _capitals(rng):
    word = _word(rng)
    return "Write the word in capitals.", word, word.upper()


def _sort(rng):
    word = _word(rng, 3, 5)
    return "Sort the letters.", word, "".join(sorted(word))


def _count(rng):
    word, letter = _word(rng, 3, 6, "abcd"), rng.choice("abcd")
    return f"Count the letter {letter}.", word, str(word.count(letter))


def _add(rng):
    first, second = rng.randint(0, 20), rng.randint(0, 20)
    return "Add the numbers.", f"{first} + {second}", str(first + second)


def _larger(rng):
    first, second = rng.sample(range(100), 2)
    return f"Which number is larger, {first} or {second}?", "", str(max(first, second))


def _initials(rng):
    words = [_word(rng, 2, 4) for _ in range(rng.randint(2, 4))]
    return "Write the first letter of each word.", " ".join(words), "".join(w[0] for w in words)


TASKS: dict[str, Callable[[random.Random], tuple[str, str, str]]] = {
    "copy": _copy,
    "reverse": _reverse,
    "capitals": _capitals,
    "sort": _sort,
    "count": _count,
    "add": _add,
    "larger": _larger,
    "initials": _initials,
}


def synthetic_records(num_records: int, *, split: str = "train", seed: int = 0) -> list[dict]:
    """``num_records`` records of the eight tasks in turn, with the task's name in ``task``.

    A question is in "held_out" if its checksum is divisible by 8, else in "train", so the splits
    never share a question, whatever the seeds. Within a split, questions may repeat (there are only
    441 sums). The same arguments give the same records on every machine.

    Raises:
        ValueError: ``num_records`` < 1 or the split is unknown.
    """
    if num_records < 1:
        raise ValueError(f"num_records must be at least 1, got {num_records!r}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known are {', '.join(SPLITS)}")
    rng = random.Random(f"{split} {seed}")
    names = list(TASKS)
    return [_draw(rng, names[row % len(names)], split) for row in range(num_records)]


def _draw(rng, task, split):
    while True:
        instruction, text, output = TASKS[task](rng)
        held_out = zlib.crc32(f"{instruction}\n{text}".encode()) % 8 == 0
        if held_out == (split == "held_out"):
            return {"instruction": instruction, "input": text, "output": output, "task": task}
