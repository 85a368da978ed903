"""Greedy answers of models that draft for themselves: tokens kept, forwards saved, speed.

    python examples/early_exit/measure.py --model runs/kd --model runs/exits \
        --data TINYSTORIES_VALID.txt.gz --exits 2,3,4

Every model answers the prompts alone, then with ``assistant_early_exit`` of transformers at each
exit: the blocks up to it draft some tokens, one forward of all blocks keeps those that it would
have written itself and adds one. Prints a Markdown table; docs/early_exit.md explains its columns.
Rows of text are prompts by their first tokens.
"""

import argparse
import statistics
import time
from contextlib import contextmanager
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from distilllens import LogitLens
from distilllens.data import load_records, to_training_examples

HEAD = (
    "| model | exit | kept | tokens a forward | blocks a token | tokens a second | speed | equal |"
)


class Run(NamedTuple):
    """All answers of one model at one exit, and what they took."""

    answers: list[list[int]]
    forwards: int
    """of the whole model, those over prompts included"""
    drafted: int
    kept: int
    seconds: float

    @property
    def tokens(self):
        """In all answers."""
        return sum(map(len, self.answers))


def main():
    """Measure every model at every exit; print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, action="append", help="may be repeated")
    parser.add_argument("--data", required=True, help="file of records: their prompts or texts")
    parser.add_argument("--exits", required=True, type=numbers, help='depths, as "2,3"')
    parser.add_argument("--limit", type=int, default=50, help="records (default: 50)")
    parser.add_argument("--prompt_tokens", type=int, default=24, help="of a text (default: 24)")
    parser.add_argument("--max_new_tokens", type=int, default=64, help="default: 64")
    parser.add_argument("--draft", type=int, default=20, help="tokens at most (default: 20)")
    parser.add_argument(
        "--confidence", type=float, default=0.4, help="a draft ends below it (default: 0.4)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="of the timing (default: 3)")
    args = parser.parse_args()

    try:
        print_table(args)
    except ValueError as error:
        parser.error(str(error))


def print_table(args):
    """A row for every model alone and at every exit."""
    print(HEAD, "|---" * HEAD.count(" |") + "|", sep="\n")
    for name in args.model:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()
        prompts = read_prompts(AutoTokenizer.from_pretrained(name), args)
        # As arguments of generate() they would not reach the draft, which reads the model's own.
        model.generation_config.num_assistant_tokens = args.draft
        model.generation_config.assistant_confidence_threshold = args.confidence
        for cells in measure(model, prompts, args.exits, args.max_new_tokens, args.repeats):
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def numbers(text):
    """ "2,3" as [2, 3]."""
    return [int(part) for part in text.split(",")]


def read_prompts(tokenizer, args):
    """Token ids of every prompt, ``[1, T]``."""
    found = []
    for example in to_training_examples(load_records(args.data))[: args.limit]:
        ids = tokenizer(example.get("prompt") or example["text"], verbose=False)["input_ids"]
        found.append(torch.tensor([ids if "prompt" in example else ids[: args.prompt_tokens]]))
    return found


@torch.no_grad()
def measure(model, prompts, exits, max_new_tokens, repeats):
    """The cells of a row for the model alone, then for every exit.

    Raises:
        ValueError: an exit that is no inner depth, or a model that cannot stop early.
    """
    blocks = LogitLens(model).blocks
    if wrong := [depth for depth in exits if not 0 < depth < len(blocks)]:
        raise ValueError(f"exit {wrong[0]}: the model's inner depths are 1 to {len(blocks) - 1}")
    check_stops(model, blocks)
    depths = [None, *exits]
    runs = {depth: [] for depth in depths}
    for _ in range(repeats):  # interleaved, so that a busy minute of the machine meets all of them
        for depth in depths:
            runs[depth].append(answer_all(model, prompts, depth, max_new_tokens))
    for depth in depths:
        yield cells_of(depth, len(blocks), runs[depth], runs[None])


def check_stops(model, blocks):
    """Refuse a model whose forward ignores what an early exit changes, its number of blocks."""
    called = []
    hooks = [block.register_forward_hook(lambda *_: called.append(1)) for block in blocks]
    config = getattr(model, model.base_model_prefix).config
    config.num_hidden_layers = 1
    try:
        model(torch.zeros(1, 1, dtype=torch.long), use_cache=False)
    finally:
        config.num_hidden_layers = len(blocks)
        for hook in hooks:
            hook.remove()
    if len(called) != 1:
        raise ValueError(
            f"transformers cannot stop {type(model).__name__} after some of its blocks"
        )


def answer_all(model, prompts, depth, max_new_tokens):
    """Greedy answers, one prompt at a time, as assisted generation needs it."""
    answers, inputs, seconds = [], [], 0.0
    for ids in prompts:
        with whole_forwards(model) as seen:
            start = time.perf_counter()
            found = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=max_new_tokens,
                use_cache=True,  # the configuration of a model that was trained may have it off
                assistant_early_exit=depth,
            )
            seconds += time.perf_counter() - start
        answers.append(found[0, ids.shape[1] :].tolist())
        # A forward reads the last token (the first one: the prompt), then the draft.
        drafts = [each[1 if n else ids.shape[1] :] for n, each in enumerate(seen)]
        inputs.append(drafts)
    return Run(
        answers,
        forwards=sum(map(len, inputs)),
        drafted=sum(len(draft) for drafts in inputs for draft in drafts),
        kept=sum(map(kept_of, answers, inputs)),
        seconds=seconds,
    )


def kept_of(answer, drafts):
    """How many drafted tokens are in the answer; every forward adds one of its own to them."""
    at = kept = 0
    for draft in drafts:
        same = list(map(int.__eq__, draft, answer[at:]))
        length = (*same, False).index(False)
        kept, at = kept + length, at + length + 1
    return kept


@contextmanager
def whole_forwards(model):
    """The token ids that each forward of all blocks reads inside."""
    seen, config = [], getattr(model, model.base_model_prefix).config
    layers = config.num_hidden_layers

    def read(module, args, inputs):
        if config.num_hidden_layers == layers:
            seen.append(inputs["input_ids"][0].tolist())

    hook = model.register_forward_pre_hook(read, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()


def cells_of(depth, layers, runs, alone):
    """A row's cells; the speed is the median of the repeats' ratios."""
    run = runs[0]
    blocks = layers * run.forwards + (depth or 0) * run.drafted
    rates = [run.tokens / each.seconds for each in runs]
    ratios = [base.seconds / each.seconds for base, each in zip(alone, runs, strict=True)]
    equal = sum(a == b for a, b in zip(run.answers, alone[0].answers, strict=True))
    of_draft = f"{run.kept / run.drafted:.0%} of {run.drafted}" if run.drafted else "-"
    return [
        str(depth or "-"),
        of_draft,
        f"{run.tokens / run.forwards:.2f}",
        f"{blocks / run.tokens:.2f}",
        f"{statistics.median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f})",
        f"{statistics.median(ratios):.2f}",
        f"{equal} of {len(alone[0].answers)}",
    ]


if __name__ == "__main__":
    main()
