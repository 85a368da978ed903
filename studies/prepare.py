"""Write the data of the studies: short rows of Alpaca, split into training and development sets.

    python studies/prepare.py --alpaca alpaca_train.jsonl --tokenizer MODEL --output studies/data

A row is kept if prompt and answer have at most 72 tokens together, and the answer at least 8: two
CPU cores can then train a small language model in minutes. The order is drawn once; the first 300
rows are the development set, and few.jsonl (250 rows) is the beginning of many.jsonl (2,500 rows),
which is the beginning of all.jsonl (8,000 rows).
"""

import argparse
import json
import random
from pathlib import Path

from transformers import AutoTokenizer

from distilllens.data import format_prompt

LONGEST, SHORTEST_ANSWER, SEED = 72, 8, 0
FIRST_TRAINED = 300
SIZES = {"few": 250, "many": 2500, "all": 8000}


def main():
    """Read, choose, and write the four files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--alpaca", required=True, help="rows of instruction, input and output")
    parser.add_argument("--tokenizer", required=True, help="a model whose tokens are counted")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    args = parser.parse_args()
    lines = Path(args.alpaca).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    count = AutoTokenizer.from_pretrained(args.tokenizer)
    prompts = count([format_prompt(row) for row in rows])["input_ids"]
    answers = count([row["output"] for row in rows])["input_ids"]
    kept = [
        row
        for row, prompt, answer in zip(rows, prompts, answers, strict=True)
        if len(prompt) + len(answer) + 1 <= LONGEST and len(answer) + 1 >= SHORTEST_ANSWER
    ]
    random.Random(SEED).shuffle(kept)
    args.output.mkdir(parents=True, exist_ok=True)
    parts = {"dev": kept[:FIRST_TRAINED]}
    parts |= {name: kept[FIRST_TRAINED : FIRST_TRAINED + size] for name, size in SIZES.items()}
    for name, part in parts.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (args.output / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(f"{args.output / name}.jsonl: {len(part)} rows")


if __name__ == "__main__":
    main()
