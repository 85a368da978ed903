"""Train the built-in teacher of ``distilllens demo``: SFT on the synthetic tasks, on a CPU core.

    python tools/make_demo_teacher.py --output src/distilllens/cli/demo_teacher

Takes about ten minutes. Prints cross-entropy and exact answers of the saved bf16 model on held-out
questions.
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
    # No demo can have this seed, so students do not train on the teacher's records.
    records = synthetic_records(args.steps * 32, seed=-1)
    settings = {"cross_entropy_weight": 1.0, "learning_rate": 1.2e-3, "warmup_steps": 100}
    train(model, None, records, tokenizer, "teacher", steps=args.steps, seed=args.seed, **settings)

    model.to(torch.bfloat16).save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    (args.output / "generation_config.json").unlink(missing_ok=True)
    saved = AutoModelForCausalLM.from_pretrained(args.output, dtype=torch.float32)
    held_out = synthetic_records(1024, split="held_out", seed=0)
    print(measure("teacher", saved, None, None, held_out, tokenizer)[0])


if __name__ == "__main__":
    main()
