"""What an evaluation asks: the examples that every model can answer, encoded once per model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from distilllens.data import encode_example
from distilllens.evaluate.benchmarks import Benchmark, Example
from distilllens.evaluate.models import Candidate
from distilllens.fingerprints import Unshared
from distilllens.generate.decoding import Decoding
from distilllens.generate.prompts import encode_prompts
from distilllens.generate.transformers_backend import check_prompt_lengths
from distilllens.loading import positions_of


@dataclass(frozen=True, eq=False)
class Task:
    """A benchmark, the examples of it that take part, and the token ids of their prompts.

    Args:
        examples: number in the benchmark, from 0 -> example.
        prompt_ids: label of a model -> number of an example -> token ids of its prompt.
    """

    benchmark: Benchmark
    examples: Mapping[int, Example] = field(repr=False)
    prompt_ids: Mapping[str, Mapping[int, list[int]]] = field(repr=False)


def make_task(
    benchmark: Benchmark,
    candidates: Sequence[Candidate],
    decoding: Decoding,
    max_prompt_length: int | None = None,
) -> Task:
    """The task of answering a benchmark with all the candidates.

    Args:
        max_prompt_length: examples whose prompt has more tokens for any candidate do not take part.

    Raises:
        ValueError: a prompt has no tokens or one outside a candidate's vocabulary, a prompt leaves
            no room for an answer in a candidate's context, or no example takes part.
    """
    prompt_ids = {c.label: _encoded(benchmark, c) for c in candidates}
    numbers = range(len(benchmark.examples))
    if max_prompt_length is not None:
        longest = [max(map(len, ids)) for ids in zip(*prompt_ids.values(), strict=True)]
        numbers = [n for n in numbers if longest[n] <= max_prompt_length]
        if not numbers:
            raise ValueError(
                f"{benchmark.name}: all {len(longest)} prompts have more than "
                f"--max_prompt_length {max_prompt_length} tokens; the shortest has {min(longest)}"
            )
    examples = {n: benchmark.examples[n] for n in numbers}
    kept = {label: {n: ids[n] for n in numbers} for label, ids in prompt_ids.items()}
    places = [example.place for example in examples.values()]
    for candidate in candidates:
        lengths = [len(ids) for ids in kept[candidate.label].values()]
        check_prompt_lengths(lengths, positions_of(candidate.config), decoding, places)
    return Task(benchmark, examples, kept)


def prompts_of(examples: Sequence[Example], tokenizer) -> list[list[int]]:
    """The token ids of the examples' prompts, with their tools and chat template settings.

    Raises:
        ValueError: the tokenizer cannot write the messages of a prompt.
    """
    return encode_prompts(
        tokenizer,
        [e.prompt for e in examples],
        [e.template_fields for e in examples],
        [e.place for e in examples],
    )


def check_shared(unshared: Unshared, candidate: Candidate, tasks: Sequence[Task]):
    """Refuse prompts and references with a token that a candidate and its teacher do not share.

    Raises:
        ValueError: with the token and the example.
    """
    for example in (e for task in tasks for e in task.examples.values()) if unshared else ():
        row = {"prompt": example.prompt, "completion": example.completion}
        ids, _ = encode_example(row | dict(example.template_fields), candidate.tokenizer)
        unshared.check([ids], candidate.tokenizer, [example.place])


def _encoded(benchmark, candidate):
    prompt_ids = prompts_of(benchmark.examples, candidate.tokenizer)
    vocab_size = candidate.config.get_text_config().vocab_size
    for example, ids in zip(benchmark.examples, prompt_ids, strict=True):
        if not ids:
            raise ValueError(f"{example.place}: the prompt has no tokens; it needs at least one")
        if max(ids) >= vocab_size:
            raise ValueError(
                f"{example.place}: the prompt has token {max(ids)}, but {candidate.label} knows "
                f"only {vocab_size}: its tokenizer is another model's"
            )
    return prompt_ids
