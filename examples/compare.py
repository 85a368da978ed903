"""Compare students with their teacher on held-out data, at the output and by depth.

    python examples/compare.py --teacher runs/dolly/teacher --student runs/dolly/kd \
        --student runs/dolly/distilllens --data DOLLY_DEV.jsonl --layers 1:2,2:4,3:6

Prints a Markdown table in nats per response token: cross-entropy with the labels, KL(teacher ||
student) at the output, Jensen-Shannon divergence at each pair of depths.
"""

import argparse

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from distilllens import LayerMap, LogitLens, divergence, linear_cross_entropy
from distilllens.data import load_records, to_training_examples
from distilllens.lens import divergence_by_depth, read_states
from distilllens.targets import Targets


def main():
    """Measure the teacher and every student; print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--teacher", required=True, help="folder or hub id")
    parser.add_argument("--student", required=True, action="append", help="may be repeated")
    parser.add_argument("--data", required=True, help="file of records")
    parser.add_argument(
        "--layers", required=True, type=LayerMap.parse, help='student:teacher pairs, as "1:2,2:4"'
    )
    parser.add_argument("--limit", type=int, default=200, help="records (default: 200)")
    parser.add_argument("--max_length", type=int, default=256, help="tokens (default: 256)")
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.teacher)
    records = to_training_examples(load_records(args.data))[: args.limit]
    batches = [encode(tokenizer, record, args.max_length) for record in records]
    batches = [batch for batch in batches if (batch["labels"][:, 1:] != -100).any()]
    teacher = LogitLens(AutoModelForCausalLM.from_pretrained(args.teacher).eval())
    print("| model | cross-entropy | KL(teacher, student) |", end="")
    print("".join(f" JSD {s}:{t} |" for s, t in args.layers))
    print("|---|---|---|" + "---|" * len(args.layers))
    cross_entropy, _ = measure(teacher, None, batches, args.layers, "teacher")
    print(f"| {args.teacher} | {cross_entropy:.3f} | - |" + " - |" * len(args.layers))
    for name in args.student:
        student = LogitLens(AutoModelForCausalLM.from_pretrained(name).eval())
        cross_entropy, (kl, *jsd) = measure(student, teacher, batches, args.layers, name)
        cells = [f"{value:.3f}" for value in (cross_entropy, kl)] + [f"{v:.4f}" for v in jsd]
        print(f"| {name} | " + " | ".join(cells) + " |")


def encode(tokenizer, record, max_length):
    """One record as a batch of one, with labels at the response tokens."""
    prompt = tokenizer(record["prompt"])["input_ids"] if "prompt" in record else []
    text = record["prompt"] + record["completion"] if "prompt" in record else record["text"]
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id][:max_length]
    labels = [-100] * len(prompt) + ids[len(prompt) :]
    return {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        "labels": torch.tensor([labels[: len(ids)]]),
    }


@torch.no_grad()
def measure(student, teacher, batches, layers, name):
    """Mean cross-entropy, and [KL at the output, JSD at each pair], over all response tokens."""
    sums, cross_entropy, count = torch.zeros(1 + len(layers), dtype=torch.float64), 0.0, 0
    for batch in tqdm(batches, desc=name, leave=False):
        valid = Targets.of(batch["labels"]).mask
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        final = read_states(student, (), **inputs).final[valid]
        loss, _ = linear_cross_entropy(final, student.head, batch["labels"][:, 1:][valid[:, :-1]])
        cross_entropy, count = cross_entropy + float(loss), count + len(final)
        if teacher is not None:
            last = (student.num_layers, teacher.num_layers)
            measured = [("forward_kl", [last]), ("jsd", layers)]
            found = [
                divergence_by_depth(student, teacher, pairs, divergence=divergence(kind), **batch)
                for kind, pairs in measured
            ]
            means = [mean for one in found for mean in one.means]
            sums += torch.tensor(means, dtype=torch.float64) * found[0].num_tokens
    return cross_entropy / count, (sums / count).tolist()


if __name__ == "__main__":
    main()
