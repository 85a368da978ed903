"""Compare the lens with every row's own mask, and with the mask that the paper's code gives it.

    python studies/published_mask.py --model MODEL --data studies/data --seeds 5

That code stacks the lens rows of a batch sample by sample and repeats the masks pair by pair: row
b P + l, pair l of P of sample b, gets the mask of sample (b P + l) mod B. Tokens of the prompt and
padding are compared, and tokens of the answer are left out. Nothing of this is in the package.

The model is distilled into three of its blocks, with plain loops and whole logits, on beginnings of
TinyStories (stories_few.jsonl and stories_dev.jsonl of studies/prepare.py) of which a random part,
3 to 45 words, is the prompt: with prompts of one length, wrong masks would be nearly right.
"""

import argparse
import json
import math
import random
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import kl_div
from transformers import AutoModelForCausalLM, AutoTokenizer

from distilllens import student_from_blocks
from distilllens.evaluate.scores import Samples
from distilllens.evaluate.training_seeds import (
    compare_over_seeds,
    draw_pairs,
    mean_over_seeds,
    sentence,
)

BLOCKS, PASSES, BATCH, WARMUP, LONGEST = [0, 2, 4], 10, 8, 10, 128
PAIRS = [(1, 1), (2, 3)]
# Learning rates as the study of these methods chose them (studies/results/stories260k_few.md).
RATES = {"forward_kl": 3e-3, "reverse_kl": 1e-3}
MASKS = ("no lens", "own masks", "published masks")
COMPARED = [(MASKS[1], MASKS[0]), (MASKS[2], MASKS[0]), (MASKS[2], MASKS[1])]


def main():
    """Train every method with every seed, and say what the masks change."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, help="a Llama of five blocks, as stories260K")
    parser.add_argument("--data", type=Path, required=True, help="what prepare.py --stories wrote")
    parser.add_argument("--seeds", type=int, default=5, help="training seeds (default: 5)")
    args = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    teacher = AutoModelForCausalLM.from_pretrained(args.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    train = encoded(args.data / "stories_few.jsonl", tokenizer)
    dev = encoded(args.data / "stories_dev.jsonl", tokenizer)
    print(f"published masks: {strangers(train):.0%} of the places are not of a row's own mask")
    for output in RATES:
        scores = {mask: {} for mask in MASKS}
        for seed in range(1, args.seeds + 1):
            for mask in MASKS:
                student = trained(teacher, train, output, mask, seed)
                scores[mask][seed] = distances(student, teacher, dev)
                print(f"{output}, {mask}, seed {seed}: {mean(scores[mask][seed]):.4f}", flush=True)
        report(output, scores)


def encoded(file, tokenizer):
    """Rows of (ids, number of tokens of the prompt), each with a prompt of its own length."""
    draw, rows = random.Random(0), []
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        words = (row["prompt"] + row["completion"]).split()
        prompt = " ".join(words[: draw.randint(3, 45)])
        ids = tokenizer(" ".join(words), add_special_tokens=False)["input_ids"][:LONGEST]
        start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        rows.append((ids, start))
    return rows


def batched(rows):
    """Rows -> ids, attention mask, and whether a place predicts the answer, ``[B, T]``."""
    length = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [0] * (length - len(row)) for row, _ in rows])
    places = torch.arange(length)
    ends = torch.tensor([[len(row)] for row, _ in rows])
    starts = torch.tensor([[start] for _, start in rows])
    return ids, (places < ends).long(), (places >= starts - 1) & (places < ends - 1)


def lens_masks(mask, kind):
    """``[B, T]`` -> ``[P, B, T]``: the mask of each pair's rows."""
    num_rows, num_pairs = len(mask), len(PAIRS)
    if kind == "own masks":
        return mask.expand(num_pairs, -1, -1)
    row = torch.arange(num_rows * num_pairs).view(num_rows, num_pairs)  # b P + l
    return mask[row.T % num_rows]


def strangers(rows):
    """The share of compared places that are not in the row's own mask, in batches as they lie."""
    wrong = compared = 0
    for first in range(0, len(rows), BATCH):
        mask = batched(rows[first : first + BATCH])[2]
        masks = lens_masks(mask, "published masks")
        wrong, compared = wrong + int((masks & ~mask).sum()), compared + int(masks.sum())
    return wrong / compared


def trained(teacher, rows, output, kind, seed):
    """A student after all passes: AdamW, linear warm-up, then a cosine to 0."""
    torch.manual_seed(seed)
    student, _ = student_from_blocks(teacher, BLOCKS)
    student.train()
    steps = PASSES * math.ceil(len(rows) / BATCH)
    optimizer = torch.optim.AdamW(student.parameters(), lr=RATES[output], weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    draw = random.Random(seed)
    for _ in range(PASSES):
        order = draw.sample(range(len(rows)), len(rows))
        for first in range(0, len(order), BATCH):
            batch = batched([rows[index] for index in order[first : first + BATCH]])
            loss(student, teacher, batch, output, kind).backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return student.eval()


def rate(step, steps):
    """The share of the learning rate at a step."""
    if step < WARMUP:
        return step / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (steps - WARMUP)))


def loss(student, teacher, batch, output, kind):
    """The output divergence on the answers, and the mean JSD of the lens over its masks."""
    ids, attention, mask = batch
    ours = log_probs(student, ids, attention, [s for s, _ in PAIRS])
    with torch.no_grad():
        theirs = log_probs(teacher, ids, attention, [t for _, t in PAIRS])
    p, q = (theirs[-1], ours[-1]) if output == "forward_kl" else (ours[-1], theirs[-1])
    total = kl(p, q)[mask].mean()
    if kind != "no lens":
        jsd = torch.stack([divergence(q, p) for q, p in zip(ours[:-1], theirs[:-1], strict=True)])
        total = total + jsd[lens_masks(mask, kind)].mean()
    return total


def log_probs(model, ids, attention, depths):
    """Log-probabilities ``[B, T, V]`` of the lens at each depth, and of the model's output."""
    out = model(ids, attention_mask=attention, output_hidden_states=True)
    states = [out.hidden_states[depth] for depth in depths]
    norm, head = model.model.norm, model.lm_head
    return [head(norm(state)).log_softmax(-1) for state in states] + [out.logits.log_softmax(-1)]


def kl(p, q):
    """KL(p ‖ q) of log-probabilities, nats, ``[B, T]``."""
    return kl_div(q, p, reduction="none", log_target=True).sum(-1)


def divergence(q, p):
    """JSD of log-probabilities, nats, ``[B, T]``."""
    middle = torch.logaddexp(p, q) - math.log(2)
    return (kl(p, middle) + kl(q, middle)) / 2


@torch.no_grad()
def distances(student, teacher, rows):
    """KL(teacher ‖ student) of each text: (sum, tokens)."""
    found = []
    for row in rows:
        ids, attention, mask = batched([row])
        ours, theirs = (log_probs(model, ids, attention, [])[-1] for model in (student, teacher))
        values = kl(theirs, ours)[mask]
        found.append((float(values.sum()), len(values)))
    return np.array(found)


def mean(scores):
    """Nats per token over all texts."""
    return scores[:, 0].sum() / scores[:, 1].sum()


def report(output, scores):
    """Print means over seeds and both differences."""
    samples = {
        mask: {seed: as_samples(values) for seed, values in by_seed.items()}
        for mask, by_seed in scores.items()
    }
    for mask in MASKS:
        over = mean_over_seeds({seed: mean(values) for seed, values in scores[mask].items()})
        print(f"{output}, {mask}: {over.mean:.4f} ± {over.deviation or 0:.4f} nats")
    for method, baseline in COMPARED:
        pairs = draw_pairs("kl", samples[method], samples[baseline], 0)
        print(f"{method}:", sentence("kl", compare_over_seeds("kl", pairs), baseline))


def as_samples(values):
    """(sum, tokens) of each text -> what the statistics take."""
    return Samples(np.arange(len(values)), values[:, :1], values[:, 1:])


if __name__ == "__main__":
    main()
