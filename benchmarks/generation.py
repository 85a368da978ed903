"""Sampled answers: tokens per second of ours, of fixed batches, and of one prompt at a time.

All engines answer the same prompts with the same limit, one engine after the other, several times.
Each draws its own random numbers, so they are compared by tokens (up to the end of each answer) per
second. The GPT-2 has random weights and a bias on its end-of-sequence token, so answers end at
random, after 68 tokens on average as in Dolly. Another row gives the cost of our noise: choosing a
token for each row of a batch, and the forward that gives its logits.
"""

from __future__ import annotations

import math
import statistics
import time
from pathlib import Path

import torch

from benchmarks import dolly
from benchmarks.meter import timed

ABOUT = "tokens a second of sampled answers: batches that shrink, batches that do not, no batches"
GPT2 = {"vocab": 50257, "layers": 12, "width": 768, "heads": 12, "prompts": 64, "limit": 256}
TOY = {"vocab": 211, "layers": 2, "width": 16, "heads": 2, "prompts": 6, "limit": 12}
MEAN_ANSWER, BATCH, REPEATS = 68, 32, 3
STORY_PROMPT, STORY_LIMIT = 24, 384  # tokens; of the checkpoint's prompts


def cases(options) -> list[dict]:
    """The random GPT-2, and the checkpoint if one is given; each is a process."""
    base = {"batch": BATCH, "repeats": REPEATS}
    if options.toy:
        return [{**base, **TOY, "batch": 4, "repeats": 1, "name": "toy"}]
    found = [{**base, **GPT2, "name": "gpt2"}]
    if options.model:
        name = Path(options.model).name
        checkpoint = {"model": options.model, "data": options.prompts, "name": name}
        found.append({**base, **checkpoint, "prompts": 64, "limit": STORY_LIMIT})
    return found


def seconds(case: dict, gflop_per_s: float) -> float:
    """Tokens times the weights; one row at a time reads all of them for each token."""
    if "model" in case:
        return 180
    gflop = 2e-9 * (12 * case["layers"] * case["width"] + case["vocab"]) * case["width"]
    tokens = case["prompts"] * (MEAN_ANSWER + 71)
    return 30 + case["repeats"] * tokens * gflop * (2 + 8) / gflop_per_s


def measure(case: dict):
    """A row for each engine, and one for the noise."""
    torch.manual_seed(0)
    model, tokenizer, prompts, ends = (checkpoint if "model" in case else gpt2)(case)
    limit, alone = case["limit"], [[index] for index in range(len(prompts))]
    backend, plan = ours(model, tokenizer, limit), batches(prompts, case["batch"])
    engines = {
        "ours": lambda seed: run_ours(backend, prompts, plan, seed),
        "same batches": lambda seed: run_plain(model, ends, prompts, plan, limit),
        "one at a time": lambda seed: run_plain(model, ends, prompts, alone, limit),
    }
    times = {name: [] for name in engines}
    tokens = {name: [] for name in engines}
    for seed in range(case["repeats"]):
        for name, engine in engines.items():
            torch.manual_seed(seed)
            start = time.perf_counter()
            tokens[name].append(engine(seed))
            times[name].append(time.perf_counter() - start)
    row = {key: case[key] for key in ("batch", "repeats", "limit")}
    row |= {"operation": "sampled answers", "shape": case["name"], "prompts": len(prompts)}
    row |= {"prompt_tokens": sum(map(len, prompts))}
    for name in engines:
        about = {"engine": name, "name": f"{case['name']}: {name}"}
        yield row | about | speeds(times[name], tokens[name])
    yield row | {"engine": "noise", "name": f"{case['name']}: noise"} | noise(model, case)


def speeds(times: list[float], tokens: list[int]) -> dict:
    """Medians over the repeats, and their range."""
    rates = [count / each for count, each in zip(tokens, times, strict=True)]
    return {
        "median_s": round(statistics.median(times), 3),
        "min_s": round(min(times), 3),
        "max_s": round(max(times), 3),
        "tokens": tokens,
        "tokens_per_s": round(statistics.median(rates), 1),
        "min_tokens_per_s": round(min(rates), 1),
        "max_tokens_per_s": round(max(rates), 1),
    }


def ours(model, tokenizer, limit):
    """The backend, sampling as the paper does."""
    from distilllens.generate.decoding import Decoding
    from distilllens.generate.transformers_backend import TransformersBackend

    return TransformersBackend(model, tokenizer, Decoding(max_new_tokens=limit))


def batches(prompts, size):
    """Of both batched engines: by length, longest first."""
    from distilllens.generate.transformers_backend import plan_batches

    return plan_batches([len(ids) for ids in prompts], size)


def run_ours(backend, prompts, plan, seed) -> int:
    """Tokens of all answers of the backend."""
    answers = (backend.generate([prompts[i] for i in rows], seed=seed) for rows in plan)
    return sum(answer.num_tokens for batch in answers for answer in batch)


def run_plain(model, ends, prompts, plan, limit) -> int:
    """Tokens of all answers of ``model.generate``, each up to its end."""
    from distilllens.generate.prompts import left_padded, up_to_end

    count = 0
    for rows in plan:
        ids, mask = left_padded([prompts[i] for i in rows], ends[0], "cpu")
        found = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            top_k=0,
            max_new_tokens=limit,
            eos_token_id=ends,
            pad_token_id=ends[0],
        )
        new = found[:, ids.shape[1] :].tolist()
        count += sum(len(up_to_end(answer, ends)) for answer in new)
    return count


def gpt2(case: dict):
    """Model, tokenizer, prompts and ends: random weights, random prompts with Dolly's lengths."""
    from transformers import GPT2Config, GPT2LMHeadModel

    vocab, width, end = case["vocab"], case["width"], case["vocab"] - 1
    shape = {"n_embd": width, "n_layer": case["layers"], "n_head": case["heads"]}
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=vocab, bos_token_id=end, eos_token_id=end, **shape)
    ).eval()
    # Logits of random weights are nearly equal: the end gets one chance in MEAN_ANSWER.
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(vocab))
    model.lm_head.bias.data[end] = math.log(vocab / (MEAN_ANSWER - 1))
    rows = dolly.synthetic_rows(case["prompts"], end)
    prompts = [row["input_ids"][: row["completion_mask"].index(1)] for row in rows]
    return model, Numbers(end), prompts, [end]


def checkpoint(case: dict):
    """The same of a folder and of records: their prompts, or the beginnings of their texts."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from distilllens.data import load_records, to_training_examples

    model = AutoModelForCausalLM.from_pretrained(case["model"], dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(case["model"])
    ends = [tokenizer.eos_token_id]
    prompts = []
    for example in to_training_examples(load_records(case["data"])):
        ids = tokenizer(example.get("prompt") or example["text"], verbose=False)["input_ids"]
        if "text" in example:
            # A model of plain text ends one story with the beginning of the next.
            ids, ends = ids[:STORY_PROMPT], [*ends[:1], tokenizer.bos_token_id]
        if len(ids) + case["limit"] <= model.config.max_position_embeddings:
            prompts.append(ids)
    model.generation_config.eos_token_id = ends
    return model, tokenizer, prompts[: case["prompts"]], ends


class Numbers:
    """A tokenizer that writes ids as numbers."""

    pad_token_id = None

    def __init__(self, end):
        self.eos_token_id = end

    def decode(self, ids, skip_special_tokens):
        return " ".join(map(str, ids))


@torch.no_grad()
def noise(model, case: dict) -> dict:
    """Seconds of choosing a batch of tokens with noise, and of the forward before it."""
    from distilllens.generate.decoding import Decoding, add_gumbel_, noise_keys
    from distilllens.generate.transformers_backend import tempered

    size = case["batch"]
    ids = torch.ones(size, MEAN_ANSWER, dtype=torch.long)
    cache = model(ids, use_cache=True, logits_to_keep=1).past_key_values
    keys = noise_keys([[row] for row in range(size)], 0, 1)[:, 0]
    logits = torch.randn(size, model.config.vocab_size)

    def choose():
        add_gumbel_(scores := tempered(logits, Decoding()), keys)
        scores.topk(2)

    def forward():
        model(ids[:, :1], past_key_values=cache, use_cache=True)

    for call in (choose, forward):
        call()
    return timed(choose, 20) | {"forward_s": timed(forward, 20)["median_s"]}
