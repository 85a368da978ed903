"""The demo's tasks have exact answers and splits that share no question."""

import re
from collections import Counter

import pytest

from distilllens.data import format_instruction, load_records, to_training_examples
from distilllens.data.synthetic import TASKS, synthetic_records
from distilllens.data.synthetic_tokenizer import synthetic_tokenizer


def solve(instruction: str, text: str) -> str:
    """An answer read off the words of the question alone, by other means than the generator's."""
    if match := re.fullmatch(r"Which number is larger, (\d+) or (\d+)\?", instruction):
        return match[1] if int(match[1]) > int(match[2]) else match[2]
    if match := re.fullmatch(r"Count the letter (\w)\.", instruction):
        return str(len(re.findall(match[1], text)))
    if instruction == "Write the first letter of each word.":
        return "".join(re.findall(r"\b\w", text))
    if instruction == "Add the numbers.":
        return str(sum(map(int, re.findall(r"\d+", text))))
    return {
        "Repeat the word.": text,
        "Reverse the word.": "".join(reversed(text)),
        "Write the word in capitals.": "".join(chr(ord(letter) - 32) for letter in text),
        "Sort the letters.": "".join(sorted(text)),
    }[instruction]


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_answers_agree_with_an_independent_solver(split):
    """Every generated answer is the one that a second program reads off the question."""
    records = synthetic_records(1600, split=split, seed=3)
    for record in records:
        assert record["output"] == solve(record["instruction"], record["input"]), record
    assert Counter(r["task"] for r in records) == dict.fromkeys(TASKS, 200)


def test_splits_share_no_question_whatever_the_seed():
    """No question of the training split is in the held-out one."""

    def questions(split):
        records = [r for seed in range(3) for r in synthetic_records(4000, split=split, seed=seed)]
        return {(r["instruction"], r["input"]) for r in records}

    train, held_out = questions("train"), questions("held_out")
    assert not train & held_out
    assert min(len(train), len(held_out)) > 1000


def test_records_follow_from_the_seed():
    """Equal seeds give equal records, longer lists extend shorter ones, other seeds differ."""
    assert synthetic_records(40, seed=1) == synthetic_records(80, seed=1)[:40]
    assert synthetic_records(40, seed=1) != synthetic_records(40, seed=2)
    # Fixed here so that a change of the generator, or of Python's, cannot pass unseen.
    assert synthetic_records(1)[0]["input"] == "knyyd"


def test_bad_arguments_are_refused():
    """An unknown split or no records is a ValueError that names what is known."""
    with pytest.raises(ValueError, match="unknown split 'test'; known are train, held_out"):
        synthetic_records(8, split="test")
    with pytest.raises(ValueError, match="num_records must be at least 1, got 0"):
        synthetic_records(0)


def test_records_are_sound_instruction_records(tmp_path):
    """What is generated passes the checks of a file."""
    import json

    records = synthetic_records(80)
    file = tmp_path / "demo.jsonl"
    file.write_text("\n".join(map(json.dumps, records)))
    assert load_records(file) == records
    assert set(to_training_examples(records)[0]) == {"prompt", "completion"}


def test_the_tokenizer_round_trips_and_keeps_prompts_apart():
    """Ids decode to the very text, no record holds an unknown token, prompts stay prefixes."""
    tokenizer = synthetic_tokenizer()
    lengths = []
    for record in synthetic_records(800) + synthetic_records(800, split="held_out"):
        example = format_instruction(record)
        text = example["prompt"] + example["completion"] + tokenizer.eos_token
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert tokenizer.unk_token_id not in ids
        prompt = tokenizer(example["prompt"])["input_ids"]
        assert ids[: len(prompt)] == prompt
        assert ids[-1] == tokenizer.eos_token_id
        lengths.append(len(ids))
    assert max(lengths) <= 40


def test_the_tokenizer_survives_saving(tmp_path):
    """A tokenizer read back from its files gives the same ids."""
    from transformers import AutoTokenizer

    tokenizer = synthetic_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "Any text\n goes letter by letter: the letters, letter 12, ~{}" + tokenizer.eos_token
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.decode(again(text)["input_ids"]) == text
    assert (again.pad_token_id, again.eos_token_id) == (0, 1)
    assert tokenizer("é")["input_ids"] == [tokenizer.unk_token_id]
