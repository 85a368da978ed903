"""Write the data of the studies: short rows of Alpaca, or beginnings of TinyStories.

    python studies/prepare.py --alpaca alpaca_train.jsonl --tokenizer MODEL --output studies/data
    python studies/prepare.py --stories train.txt.gz valid.txt.gz --output studies/data

A row of Alpaca is kept if prompt and answer have at most 72 tokens together, and the answer at
least 8: two CPU cores can then train a small language model in minutes. The order is drawn once;
the first 300 rows are the development set, and few.jsonl (250 rows) is the beginning of more.jsonl
(1,000 rows), of once.jsonl (2,500 rows) and of many.jsonl (8,000 rows).

Of a story of at least 60 words, the first ten are the prompt and the next fifty its completion:
stories_few.jsonl (160 rows) is the beginning of stories_many.jsonl (1,600 rows); 200 stories of the
other file are the development set, stories_dev.jsonl.
"""

import argparse
import gzip
import json
import random
from pathlib import Path

from transformers import AutoTokenizer

from distilllens.data import format_prompt

LONGEST, SHORTEST_ANSWER, SEED = 72, 8, 0
FIRST_TRAINED = 300
SIZES = {"few": 250, "more": 1000, "once": 2500, "many": 8000}
PROMPT_WORDS, STORY_WORDS = 10, 60
STORIES = {"stories_few": 160, "stories_many": 1600}
DEV_STORIES = 200


def main():
    """Read, choose, and write the files of one source or of both."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--alpaca", help="rows of instruction, input and output")
    parser.add_argument("--tokenizer", help="a model whose tokens are counted, for --alpaca")
    parser.add_argument("--stories", nargs=2, help="TinyStories to train on, and others to score")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    args = parser.parse_args()
    if not args.alpaca and not args.stories:
        parser.error("name --alpaca, --stories or both")
    if bool(args.alpaca) != bool(args.tokenizer):
        parser.error("--alpaca and --tokenizer belong together")
    parts = alpaca_parts(args.alpaca, args.tokenizer) if args.alpaca else {}
    parts |= story_parts(*args.stories) if args.stories else {}
    args.output.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (args.output / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(f"{args.output / name}.jsonl: {len(part)} rows")


def alpaca_parts(file, tokenizer):
    """File -> short rows of Alpaca."""
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    count = AutoTokenizer.from_pretrained(tokenizer)
    prompts = count([format_prompt(row) for row in rows])["input_ids"]
    answers = count([row["output"] for row in rows])["input_ids"]
    kept = [
        row
        for row, prompt, answer in zip(rows, prompts, answers, strict=True)
        if len(prompt) + len(answer) + 1 <= LONGEST and len(answer) + 1 >= SHORTEST_ANSWER
    ]
    random.Random(SEED).shuffle(kept)
    parts = {"dev": kept[:FIRST_TRAINED]}
    return parts | {name: kept[FIRST_TRAINED:][:size] for name, size in SIZES.items()}


def story_parts(train, other):
    """File -> beginnings of stories."""
    trained = _stories(train)
    return {name: trained[:size] for name, size in STORIES.items()} | {
        "stories_dev": _stories(other)[:DEV_STORIES]
    }


def _stories(file):
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        words = [story.split() for story in stream.read().split("<|endoftext|>")]
    rows = [
        {
            "prompt": " ".join(story[:PROMPT_WORDS]),
            "completion": " " + " ".join(story[PROMPT_WORDS:STORY_WORDS]),
        }
        for story in words
        if len(story) >= STORY_WORDS
    ]
    random.Random(SEED).shuffle(rows)
    return rows


if __name__ == "__main__":
    main()
