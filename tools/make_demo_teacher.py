"""Make the teacher that ``distilllens demo`` ships: SFT on the synthetic tasks, on one CPU core.

    python tools/make_demo_teacher.py --output src/distilllens/cli/demo_teacher

Takes about ten minutes; prints the held-out cross-entropy and exact match of what it saved (bf16).
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, set_seed

from distilllens.data.synthetic import synthetic_records
from distilllens.data.synthetic_tokenizer import synthetic_tokenizer
from distilllens.workflows.demo import make_llama, measure, train


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    set_seed(args.seed)
    tokenizer = synthetic_tokenizer()
    model = make_llama(tokenizer, layers=6, width=128, heads=4)
    # A seed that no demo has: the students do not see the teacher's very records.
    records = synthetic_records(args.steps * 32, seed=-1)
    settings = {"cross_entropy_weight": 1.0, "learning_rate": 1.2e-3, "warmup_steps": 100}
    train(model, None, records, tokenizer, "teacher", steps=args.steps, seed=args.seed, **settings)

    model.to(torch.bfloat16).save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    (args.output / "generation_config.json").unlink(missing_ok=True)
    saved = AutoModelForCausalLM.from_pretrained(args.output, dtype=torch.float32)
    held_out = synthetic_records(1024, split="held_out", seed=0)
    print(measure("teacher", saved, None, None, held_out, tokenizer))


if __name__ == "__main__":
    main()
