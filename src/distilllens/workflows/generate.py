"""``distilllens generate``: a model's answers to prompts, as data to train on; resumes."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from shlex import join

from tqdm.auto import tqdm

from distilllens.data import kind_of, with_answer
from distilllens.evaluate.processes import this_process
from distilllens.generate.answer_file import AnswerFile, AnswerRow
from distilllens.generate.decoding import Decoding
from distilllens.generate.generation import continuation
from distilllens.generate.transformers_backend import TransformersBackend, plan_batches
from distilllens.generate.vllm_backend import VllmBackend
from distilllens.loading import size_in_words
from distilllens.workflows.evaluate_checks import check_flags, check_seeds
from distilllens.workflows.generate_inputs import prepare
from distilllens.workflows.generate_served import answer_served, check_served, prepare_served
from distilllens.workflows.provenance import command_line, versions

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """Which model answers what, and how.

    Args:
        model: a folder or hub id.
        data: files or folders of records (see ``load_prompts``), or names of benchmarks.
        output: the .jsonl file to write.
        seeds: sampling seeds, one answer each; greedy decoding uses none.
        limit: number of records to answer; all by default.
        max_prompt_length: leave out records whose prompt has more tokens.
        chat: write instruction records with the model's chat template.
        keep_truncated: keep answers that were cut at ``max_new_tokens``.
        dtype: dtype of the weights; "auto" is the one they were saved in.
        backend: "transformers" or "vllm".
        server: the address of an OpenAI-compatible server that has the model, or None.
        server_key: the environment variable with its key, which is written nowhere; by default
            OPENAI_API_KEY, if that is set.
        trust_remote_code: whether code that comes with the model may run.

    Raises:
        ValueError: a value is out of range.
    """

    model: str
    data: tuple[str, ...]
    output: str
    decoding: Decoding = field(default_factory=Decoding)
    seeds: tuple[int | None, ...] = (10,)
    batch_size: int = 32
    limit: int | None = None
    max_prompt_length: int | None = None
    chat: bool = False
    keep_truncated: bool = False
    dtype: str = "auto"
    device: str | None = None
    backend: str = "transformers"
    server: str | None = None
    server_key: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self):
        if self.decoding.greedy:
            object.__setattr__(self, "seeds", (None,))
        else:
            check_seeds(self.seeds)
        check_flags(self)
        check_served(self)


def generate(plan: Plan) -> str:
    """Write a model's answers to prompts as records of the same kind; returns what was written.

    Everything that can be checked is checked before weights are loaded. The same call goes on
    after an interruption and ends at the same bytes; a finished file is left as it is.

    Raises:
        ValueError: a model, record, prompt or output file cannot be used; no answer is kept.
    """
    process = this_process(plan.device)
    file = AnswerFile(plan.output)
    with ExitStack() as stack:
        with process.together():
            file.check_place()
            prepared = prepare_served(plan, process) if plan.server else prepare(plan, process)
            settings = prepared.settings | {"keep_truncated": plan.keep_truncated}
            if process.is_main and not file.is_finished(settings):
                stack.enter_context(file.claimed(prepared.settings))
        with process.together():
            # Again, for another command may have finished it before we had the lock.
            if file.is_finished(settings):
                if process.is_main:
                    file.drop_parts()
                return f"nothing to do: {plan.output} holds these answers\n{_next(plan)}"
            if not file.part.exists():
                raise ValueError(f"--output {plan.output} must be a file that all processes see")
            before, began = file.answers(), time.perf_counter()
        with _going_on(file), process.together():
            if plan.server:
                answer_served(plan, prepared, file, before.keys())
            else:
                _answer(plan, process, prepared, file, before.keys())
        with process.together():
            if process.is_main:
                about = _finish(plan, prepared, file, settings)
                seconds = time.perf_counter() - began
                new = about["tokens"] - sum(row["num_tokens"] for row in before.values())
                return _said(plan, about, f"{seconds:,.1f} s, {new / seconds:,.0f} tokens/s")
    return ""


def _answer(plan, process, prepared, file, done):
    """Give this process's share of the answers that are missing."""
    candidate, _, task, _ = prepared
    prompt_ids = task.prompt_ids[candidate.label]
    todo = []
    numbers, lengths = list(prompt_ids), [*map(len, prompt_ids.values())]
    batches = plan_batches(lengths, plan.batch_size)[process.rank :: process.size]
    for seed in plan.seeds:
        for batch in ([numbers[row] for row in rows] for rows in batches):
            # A batch is repeated as a whole, so that a restart computes what one run would compute.
            if not {(number, seed) for number in batch} <= done:
                todo.append((batch, seed))
    if not todo:
        return
    if done and process.is_main:
        total = len(numbers) * len(plan.seeds)
        logger.info("going on: %d of %d answers are in %s", len(done), total, file.part)
    backend = _backend(plan, process, candidate)
    if process.is_main:
        each = (
            f"{_num(len(plan.seeds), 'sampled answer')} each" if plan.seeds != (None,) else "greedy"
        )
        longest = plan.decoding.max_new_tokens
        logger.info("%s, %s, up to %d tokens", _num(len(numbers), "prompt"), each, longest)
    num_tokens, began = 0, time.perf_counter()
    total = sum(len(batch) for batch, _ in todo)
    with tqdm(
        total=total, desc=candidate.label, unit=" answers", disable=not process.is_main
    ) as bar:
        for batch, seed in todo:
            answers = backend.generate([prompt_ids[n] for n in batch], seed=seed or 0)
            rows = [
                _row(prepared, number, seed, answer)
                for number, answer in zip(batch, answers, strict=True)
            ]
            file.append(process.rank, rows)
            num_tokens += sum(row["num_tokens"] for row in rows)
            bar.set_postfix_str(f"{num_tokens / (time.perf_counter() - began):.0f} tokens/s")
            bar.update(len(batch))


def _row(prepared, number, seed, answer) -> AnswerRow:
    candidate, records, task, _ = prepared
    text = answer.text
    if isinstance(task.examples[number].prompt, str) and kind_of(records[number]) == "prompt":
        # What training appends to the prompt as it is.
        ids = task.prompt_ids[candidate.label][number]
        text = continuation(candidate.tokenizer, ids, answer)
    return AnswerRow(
        prompt=number,
        seed=seed,
        answer=text,
        num_tokens=answer.num_tokens,
        finished=answer.finished,
        near_ties=answer.near_ties,
    )


def _backend(plan, process, candidate):
    if plan.backend == "vllm":
        backend = VllmBackend(
            candidate.name,
            candidate.tokenizer,
            plan.decoding,
            dtype=plan.dtype,
            trust_remote_code=plan.trust_remote_code,
        )
    else:
        model = candidate.load(process.device, plan.dtype)
        if process.is_main:
            processes = f", {process.size} processes" if process.size > 1 else ""
            size = size_in_words(model.requires_grad_(False))
            logger.info("model: %s: %s, on %s%s", plan.model, size, process.device, processes)
        backend = TransformersBackend(model, candidate.tokenizer, plan.decoding)
    if backend.note and process.is_main:
        tqdm.write(f"distilllens: {candidate.label}: {backend.note}", file=sys.stderr)
    return backend


@contextmanager
def _going_on(file) -> Iterator[None]:
    """Say what an interruption leaves, and how to go on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        num = len(file.answers())
        raise KeyboardInterrupt(
            f"interrupted; {num} answers are in {file.part}, and the same command goes on"
            if num
            else "interrupted; nothing is written"
        ) from stop


def _finish(plan, prepared, file, settings):
    """Write the file; returns what its note says beside the settings."""
    found = file.answers()
    rows, left_out = [], {"truncated": 0, "empty": 0}
    for number in prepared.task.examples:
        for seed in plan.seeds:
            answer = found[number, seed]
            if not answer["answer"].strip():
                left_out["empty"] += 1
            elif not answer["finished"] and not plan.keep_truncated:
                left_out["truncated"] += 1
            else:
                rows.append(with_answer(prepared.records[number], answer["answer"]))
    if not rows:
        raise ValueError(
            f"none of {_num(len(found), 'answer')} is kept: {left_out['truncated']} did not end "
            f"within --max_new_tokens {plan.decoding.max_new_tokens}, {left_out['empty']} are "
            "empty; raise --max_new_tokens and name another --output, or add --keep_truncated"
        )
    about = {
        "command": command_line(),
        "model": plan.model,
        "data": list(plan.data),
        "prompts": len(prepared.task.examples),
        "prompts_left_out": len(prepared.records) - len(prepared.task.examples),
        "answers": len(found),
        "left_out": left_out,
        "rows": len(rows),
        "tokens": sum(row["num_tokens"] for row in found.values()),
        "near_ties": sum(row["near_ties"] for row in found.values()),
        "versions": versions(),
    }
    file.finish(rows, settings, about)
    return about


def _said(plan, about, speed):
    lines = [
        f"wrote {plan.output}: {_num(about['rows'], 'row')} of {_num(about['answers'], 'answer')}, "
        f"{about['tokens']:,} tokens; {speed}"
    ]
    if skipped := about["prompts_left_out"]:
        lines.append(
            f"not answered: {_num(skipped, 'prompt')} with more than --max_prompt_length "
            f"{plan.max_prompt_length} tokens"
        )
    if truncated := about["left_out"]["truncated"]:
        lines.append(
            f"left out: {_num(truncated, 'answer')} that did not end within --max_new_tokens "
            f"{plan.decoding.max_new_tokens}; raise it, or keep them by --keep_truncated"
        )
    if empty := about["left_out"]["empty"]:
        lines.append(f"left out: {_num(empty, 'empty answer')}")
    return "\n".join([*lines, _next(plan)])


def _num(number, thing):
    return f"{number:,} {thing}{'s' * (number != 1)}"


def _next(plan):
    words = ["train", "--model_name_or_path", "STUDENT", "--train_file", plan.output]
    words += ["--cross_entropy_weight", "1", *(["--chat"] if plan.chat else [])]
    command = join(["distilllens", *words, "--output_dir", "runs/seqkd"])
    return f"next: {command}   # the student learns these answers (SeqKD)"
