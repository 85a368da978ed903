"""``distilllens generate --server``: answers of a model that a server runs."""

from __future__ import annotations

import logging
import os
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import asdict
from urllib.parse import urlsplit

from tqdm.auto import tqdm

from distilllens.data.encode import template_settings
from distilllens.evaluate.processes import Process
from distilllens.evaluate.tasks import Task
from distilllens.generate.answer_file import AnswerFile, AnswerRow
from distilllens.generate.decoding import request_seed
from distilllens.generate.server import KEY, QuestionRefused, Reply, Server, ServerFailed, Stopped
from distilllens.workflows.generate_inputs import Prepared, read_data

logger = logging.getLogger(__name__)
_RETRIES, _TIMEOUT = 5, 600.0
_SEED_BITS = 31  # what servers take at least
_MOST_NAMED = 3
# Settings of a model that runs here -> their defaults.
_LOCAL = {
    "backend": "transformers",
    "dtype": "auto",
    "device": None,
    "trust_remote_code": False,
    "max_prompt_length": None,
}


def check_served(plan):
    """Refuse an address that is none, and flags that nobody would heed.

    Raises:
        ValueError: with the flag.
    """
    if plan.server is None:
        if plan.server_key is not None:
            raise ValueError("--server_key belongs to --server, and none is named")
        return
    if plan.server_key is not None and not os.environ.get(plan.server_key, "").strip():
        raise ValueError(
            f"--server_key: the environment variable {plan.server_key} holds no key; set it, or "
            "leave --server_key out for a server that needs none"
        )
    parts = urlsplit(plan.server)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"--server {plan.server!r} is no address such as http://localhost:8000/v1")
    if parts.username or parts.password:
        raise ValueError("--server holds a password: put the key into --server_key's variable")
    if unheeded := [name for name, value in _LOCAL.items() if getattr(plan, name) != value]:
        raise ValueError(
            f"--{unheeded[0]} is for a model that runs here; with --server, leave it out"
        )


def prepare_served(plan, process: Process) -> Prepared:
    """Load and check the prompts; the server is asked later.

    Raises:
        ValueError: data that cannot be used, or several processes.
    """
    if process.size > 1:
        raise ValueError(
            f"--server takes one process and was started with {process.size}; --batch_size says "
            "how many requests are sent at a time"
        )
    records, data, hashes = read_data(plan)
    settings = {
        "model": {"name": plan.model},
        "data": dict(enumerate(hashes, 1)),
        "seeds": list(plan.seeds),
        "decoding": asdict(plan.decoding),
        **{name: getattr(plan, name) for name in ("limit", "chat")},
        "backend": "server",
    }
    return Prepared(None, records, Task(data, dict(enumerate(data.examples)), {}), settings)


def answer_served(plan, prepared: Prepared, file: AnswerFile, done):
    """Ask the server for the answers that are missing, and append each as it comes.

    Args:
        done: ``(prompt, seed)`` of those that are there.

    Raises:
        ValueError: the server refuses the key or the model.
        OSError: it does not answer, after all retries; what it has answered stays.
    """
    examples = prepared.task.examples
    todo = [(n, seed) for seed in plan.seeds for n in examples if (n, seed) not in done]
    if not todo:
        return
    if done:
        logger.info("going on: %d answers are in %s", len(done), file.part)
    with (
        _connected(plan) as server,
        tqdm(total=len(todo), desc=plan.model, unit=" answers") as bar,
    ):
        for text in {isinstance(examples[n].prompt, str) for n, _ in todo}:
            server.settle_parameters(*(["Ready"] if text else []))
        num_refused = 0
        try:
            for (number, seed), reply in _replies(server, plan, examples, todo):
                if isinstance(reply, QuestionRefused):
                    num_refused += 1
                    if num_refused <= _MOST_NAMED:
                        logger.warning("%s is not answered: %s", examples[number].place, reply)
                    reply = Reply("", False, 0, 0)
                file.append(0, [_row(number, seed, reply)])
                bar.update()
        except ServerFailed as failure:
            num = len(file.answers())
            raise ServerFailed(
                f"{failure}; {num} answers are in {file.part}, and the same command goes on"
            ) from failure
    if num_refused > _MOST_NAMED:
        logger.warning("%d prompts in all are refused by the server", num_refused)


def _connected(plan):
    decoding = plan.decoding
    parameters = {"temperature": 0.0}
    if not decoding.greedy:
        parameters = {"temperature": decoding.temperature, "top_p": decoding.top_p, "seed": 0}
    return Server(
        plan.server.rstrip("/"),
        plan.model,
        key_variable=plan.server_key or KEY,
        parameters={"max_tokens": decoding.max_new_tokens, **parameters},
        retries=_RETRIES,
        timeout=_TIMEOUT,
    )


def _replies(server, plan, examples, todo):
    """``((prompt, seed), reply or refusal)`` as they come, ``batch_size`` asked at a time."""
    waiting, left = {}, iter(todo)
    pool = ThreadPoolExecutor(plan.batch_size)
    try:
        while True:
            while len(waiting) < plan.batch_size and (key := next(left, None)) is not None:
                waiting[pool.submit(_ask, server, examples[key[0]], key[1])] = key
            if not waiting:
                return
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                yield waiting.pop(future), future.result()
    finally:
        # Requests under way end with the connection, which is closed next.
        server.stop()
        pool.shutdown(wait=False, cancel_futures=True)


def _ask(server, example, seed):
    settings = {}
    if seed is not None:
        written = repr((example.prompt, example.template_fields)).encode()
        settings["seed"] = request_seed(written, seed) >> (63 - _SEED_BITS)
    if not isinstance(example.prompt, str):
        found = template_settings(example.template_fields)
        if (tools := found.pop("tools")) is not None:
            settings["tools"] = tools
        if found:
            settings["extra_body"] = {"chat_template_kwargs": found}
    try:
        return server.ask(example.prompt, **settings)
    except QuestionRefused as refusal:
        return refusal
    except Stopped:
        return Reply("", True, 0, 0)  # nobody waits for it


def _row(number, seed, reply) -> AnswerRow:
    return AnswerRow(
        prompt=number,
        seed=seed,
        answer=reply.text,
        num_tokens=reply.completion_tokens,
        finished=not reply.cut,
        near_ties=0,
    )
