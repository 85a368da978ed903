"""Token rows as training sees them: Dolly's own, or random ids with Dolly's lengths."""

from __future__ import annotations

import random
from pathlib import Path

# Percentiles 0, 5, ... 100 over the 11370 training records, with GPT-2's tokenizer: the prompt in
# Alpaca's template, and the answer with its end-of-sequence token (its longest cut at 512).
PROMPT = [31, 36, 37, 38, 38, 39, 40, 41, 41, 42, 44, 45, 47, 50, 58, 68, 94, 140, 178, 212, 256]
ANSWER = [2, 5, 9, 13, 15, 19, 24, 28, 32, 38, 44, 52, 60, 70, 82, 95, 111, 135, 172, 255, 512]
LONGEST_PROMPT, LONGEST = 256, 512


def row(ids: list[int], num_prompt: int) -> dict:
    """A row as SFTTrainer takes it when it is tokenized already."""
    mask = [0] * num_prompt + [1] * (len(ids) - num_prompt)
    return {"input_ids": ids, "completion_mask": mask}


def random_row(num_prompt: int, num_answer: int, vocab: int, rng: random.Random) -> dict:
    """Random ids of these lengths."""
    return row([rng.randrange(3, vocab) for _ in range(num_prompt + num_answer)], num_prompt)


def synthetic_rows(count: int, vocab: int, *, longest: int = LONGEST, seed: int = 0) -> list[dict]:
    """Random ids; lengths drawn from the percentiles, prompt and answer apart."""
    rng = random.Random(seed)

    def draw(percentiles):
        at = rng.random() * (len(percentiles) - 1)
        low = int(at)
        return round(percentiles[low] + (at - low) * (percentiles[low + 1] - percentiles[low]))

    found = []
    while len(found) < count:
        lengths = draw(PROMPT), draw(ANSWER)
        if sum(lengths) <= longest:
            found.append(random_row(*lengths, vocab, rng))
    return found


def dolly_rows(count: int, data: str, tokenizer, *, seed: int = 0) -> list[dict]:
    """Random records with prompts to 256 tokens and 512 in all, as MiniLLM filters them."""
    from distilllens.data import load_records, to_training_examples

    path = Path(data)
    records = load_records(path / "dolly_train.jsonl" if path.is_dir() else path)
    examples = to_training_examples(records)
    random.Random(seed).shuffle(examples)
    found = []
    for example in examples:
        prompt = tokenizer(example["prompt"])["input_ids"]
        ids = tokenizer(example["prompt"] + example["completion"], verbose=False)["input_ids"]
        if len(prompt) <= LONGEST_PROMPT and len(ids) < LONGEST:
            found.append(row([*ids, tokenizer.eos_token_id], len(prompt)))
        if len(found) == count:
            return found
    raise ValueError(f"{data} has only {len(found)} usable records, {count} are wanted")


def lengths(rows: list[dict]) -> list[tuple[int, int]]:
    """(tokens, targets) of every row."""
    return [(len(row["input_ids"]), sum(row["completion_mask"])) for row in rows]
