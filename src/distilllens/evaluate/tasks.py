"""What an evaluation asks: the examples that every model can answer, encoded once per model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from distilllens.data import encode_example
from distilllens.evaluate.benchmarks import Benchmark, Example
from distilllens.evaluate.models import Candidate
from distilllens.evaluate.reference_likelihood import encode_references
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
    decoding: Decoding | None,
    max_prompt_length: int | None = None,
) -> Task:
    """The task of answering a benchmark with all the candidates, or of reading its references.

    Args:
        decoding: None where only the references are read.
        max_prompt_length: examples whose prompt has more tokens for any candidate do not take part.

    Raises:
        ValueError: a prompt to answer has no tokens, a token is outside a candidate's vocabulary, a
            prompt leaves no room for an answer or for any of its reference in a candidate's
            context, or no example takes part.
    """
    prompt_ids = {c.label: _encoded(benchmark, c, decoding) for c in candidates}
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
        longest = positions_of(candidate.config)
        if decoding is None:
            rows = [*map(as_trained, examples.values())]
            found = encode_references(rows, candidate.tokenizer, places, longest)
            _check_vocabulary([ids for ids, _ in found], places, candidate)
        else:
            lengths = [len(ids) for ids in kept[candidate.label].values()]
            check_prompt_lengths(lengths, longest, decoding, places)
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


def as_trained(example: Example) -> dict:
    """An example with its first reference, as training encodes it."""
    return {"prompt": example.prompt, "completion": example.completion, **example.template_fields}


def check_shared(unshared: Unshared, candidate: Candidate, tasks: Sequence[Task]):
    """Refuse prompts and references with a token that a candidate and its teacher do not share.

    Raises:
        ValueError: with the token and the example.
    """
    for example in (e for task in tasks for e in task.examples.values()) if unshared else ():
        ids, _ = encode_example(as_trained(example), candidate.tokenizer)
        unshared.check([ids], candidate.tokenizer, [example.place])


def _encoded(benchmark, candidate, decoding):
    prompt_ids = prompts_of(benchmark.examples, candidate.tokenizer)
    places = [example.place for example in benchmark.examples]
    for place, ids in zip(places, prompt_ids, strict=True):
        if not ids and decoding is not None:
            raise ValueError(f"{place}: the prompt has no tokens; it needs at least one")
    _check_vocabulary(prompt_ids, places, candidate, "the prompt")
    return prompt_ids


def _check_vocabulary(rows, places, candidate, what="the prompt with its reference"):
    vocab_size = candidate.config.get_text_config().vocab_size
    for place, ids in zip(places, rows, strict=True):
        if (largest := max(ids, default=0)) >= vocab_size:
            raise ValueError(
                f"{place}: {what} has token {largest}, but {candidate.label} knows only "
                f"{vocab_size}: its tokenizer is another model's"
            )
