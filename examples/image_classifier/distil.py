"""Distil an image classifier through the lens: a ViT of 8 blocks into one of 3, on digits.

    pip install distilllens scikit-learn
    python examples/image_classifier/distil.py --output rows.json

Two losses, each with its own learning rate and several seeds: KL(teacher || student) of the classes
at the output (kd), and the same plus the lens (kd_lens), the Jensen-Shannon divergence of the
classes that both models read at pairs of inner depths. Everything is a loop of one's own around
LogitLens, capture and divergence. Writes a row for each run, and prints a Markdown table.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import mean, stdev

import torch
from scipy.stats import t as student_t
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn import functional as F
from transformers import ViTConfig, ViTForImageClassification

from distilllens import LayerMap, LogitLens, capture, divergence
from distilllens.lens import divergence_by_depth

METHODS = {"kd": 0.0, "kd_lens": 1.0}  # the weight of the lens
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
FORWARD_KL, JSD = divergence("forward_kl"), divergence("jsd")
BATCH = 64
MEASURES = {
    "accuracy": "accuracy",
    "cross_entropy": "cross-entropy (nats)",
    "kl": "KL(teacher ‖ student) (nats)",
    "lens_jsd": "JSD at the inner pairs (nats)",
}


def digits(limit=None):
    """``{"train", "dev", "test"}``: images ``[N, 1, 8, 8]`` from 0 to 1, and their classes."""
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16
    rest, test = train_test_split(range(len(images)), test_size=500, random_state=0)
    train, dev = train_test_split(rest, test_size=300, random_state=0)
    classes = torch.tensor(found.target)
    parts = {"train": train, "dev": dev, "test": test}
    return {name: (images[at[:limit]], classes[at[:limit]]) for name, at in parts.items()}


def vit(blocks, width, seed):
    """A ViT for images of 8 x 8 pixels, with random weights."""
    torch.manual_seed(seed)
    config = ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        num_labels=10,
        num_hidden_layers=blocks,
        hidden_size=width,
        intermediate_size=2 * width,
        num_attention_heads=4,
    )
    return ViTForImageClassification(config)


def train(model, images, rate, epochs, seed, loss_of):
    """AdamW with a falling rate; ``loss_of(rows)`` is the loss on the images of a batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    steps = epochs * (len(images) // BATCH + (len(images) % BATCH > 0))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.1)
    order = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=order).split(BATCH):
            loss = loss_of(rows)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    model.eval()


@torch.no_grad()
def read_teacher(lens, depths, images):
    """The teacher's logits ``[N, 10]`` of each image at each depth: read once, for all steps."""
    states = capture(lens, depths, pixel_values=images)
    return {depth: lens.logits(states[depth]) for depth in depths}


def distil(student, theirs, images, pairs, weight, *, rate, epochs, seed):
    """Train a student on the teacher's logits at the output, and at pairs of inner depths."""
    lens = LogitLens(student)
    last, teachers_last = lens.num_layers, max(theirs)
    depths = [last, *(ours for ours, _ in pairs if weight)]

    def loss_of(rows):
        states = capture(lens, depths, pixel_values=images[rows])
        loss = FORWARD_KL(lens.logits(states[last]), theirs[teachers_last][rows]).mean()
        if weight:
            apart = [JSD(lens.logits(states[s]), theirs[t][rows]).mean() for s, t in pairs]
            loss = loss + weight * torch.stack(apart).mean()
        return loss

    train(student, images, rate, epochs, seed, loss_of)


@torch.no_grad()
def measure(student, teacher, pairs, images, classes):
    """What MEASURES names, means over the images."""
    logits = student(pixel_values=images).logits
    read = {"pixel_values": images}
    last = (student.config.num_hidden_layers, teacher.num_layers)
    lens = LogitLens(student)
    inner = divergence_by_depth(lens, teacher, pairs, divergence=JSD, **read)
    return {
        "accuracy": float((logits.argmax(-1) == classes).float().mean()),
        "cross_entropy": float(F.cross_entropy(logits, classes)),
        "kl": divergence_by_depth(lens, teacher, [last], divergence=FORWARD_KL, **read).means[0],
        "lens_jsd": mean(inner.means) if pairs else 0.0,
    }


def run(args):
    """All runs: the teacher, the learning rate of each method, then a run for each seed."""
    parts = digits(args.limit)
    images, classes = parts["train"]
    model = vit(8, args.width, seed=0)

    def loss_of(rows):
        return F.cross_entropy(model(pixel_values=images[rows]).logits, classes[rows])

    train(model, images, 1e-3, args.epochs, 0, loss_of)
    teacher = LogitLens(model)
    pairs = list(LayerMap.resolve("auto", 3, teacher.num_layers))
    theirs = read_teacher(teacher, range(teacher.num_layers + 1), images)
    rows = [{"method": "teacher", "measured_on": part} for part in ("dev", "test")]
    for row in rows:
        row |= measure(model, teacher, [], *parts[row["measured_on"]])

    def one(method, rate, seed, part):
        start = time.process_time()
        student = vit(3, args.width // 2, seed)
        how = {"rate": rate, "epochs": args.epochs, "seed": seed}
        distil(student, theirs, images, pairs, METHODS[method], **how)
        seconds = round(time.process_time() - start, 2)
        row = {"method": method, "rate": rate, "seed": seed, "measured_on": part}
        row |= {"pairs": pairs, "processor_seconds": seconds}
        rows.append(row | measure(student, teacher, pairs, *parts[part]))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        return rows[-1]

    for method in METHODS:
        tried = [one(method, rate, 0, "dev") for rate in RATES]
        chosen = min(tried, key=lambda row: row["kl"])["rate"]
        for seed in range(1, args.seeds + 1):
            one(method, chosen, seed, "test")
    return rows


def table(rows):
    """Markdown: mean and standard deviation over seeds, and the paired difference of the two."""
    by = {m: [r for r in rows if r["method"] == m and r["measured_on"] == "test"] for m in METHODS}
    lines = [
        "| measure | kd | kd_lens | kd_lens - kd, with its 95 % interval |",
        "|---|---|---|---|",
    ]
    for name, title in MEASURES.items():
        values = [[row[name] for row in by[method]] for method in METHODS]
        cells = [f"{mean(each):.4f} ± {stdev(each):.4f}" for each in values]
        apart = [ours - theirs for theirs, ours in zip(*values, strict=True)]
        half = student_t.ppf(0.975, len(apart) - 1) * stdev(apart) / len(apart) ** 0.5
        middle = mean(apart)
        cells.append(f"{middle:+.4f} [{middle - half:+.4f}, {middle + half:+.4f}]")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    """Run the study, or only print the table of one that ran."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="JSON file of rows")
    parser.add_argument("--table", action="store_true", help="only print the table of --output")
    parser.add_argument("--seeds", type=int, default=5, help="at least 2 (default: 5)")
    parser.add_argument("--epochs", type=int, default=60, help="of each run (default: 60)")
    parser.add_argument("--width", type=int, default=64, help="of the teacher, twice the student's")
    parser.add_argument("--limit", type=int, help="images of each part (default: all)")
    args = parser.parse_args()
    if args.seeds < 2:
        parser.error(f"--seeds must be 2 or more, got {args.seeds}")
    if not args.table:
        torch.set_num_threads(1)
        names = ("seeds", "epochs", "width", "limit")
        found = {
            "command": " ".join(["python", "examples/image_classifier/distil.py", *sys.argv[1:]]),
            "settings": {name: getattr(args, name) for name in names},
            "torch": torch.__version__,
            "rows": run(args),
        }
        args.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(json.loads(args.output.read_text(encoding="utf-8"))["rows"]))


if __name__ == "__main__":
    main()
