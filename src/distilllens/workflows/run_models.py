"""Measure a run's models for its report: divergence by depth, and sample answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from distilllens.data import template_fields, to_training_examples
from distilllens.data.encode import encode_example
from distilllens.data.sources import load_sources
from distilllens.data.streams import RecordStream
from distilllens.errors import first_line
from distilllens.fingerprints import fingerprint
from distilllens.generate.decoding import Decoding
from distilllens.generate.prompts import encode_prompts
from distilllens.generate.transformers_backend import TransformersBackend
from distilllens.lens.reading import inspect_models
from distilllens.loading import (
    least_positions,
    load_config,
    load_model,
    load_tokenizer,
)
from distilllens.report import Observations, Sample
from distilllens.workflows.inspect import target_passage
from distilllens.workflows.students import cut_student, random_student
from distilllens.workflows.train_data import sources_named

_MAX_TEXT_TOKENS, _MAX_QUESTION_CHARACTERS = 256, 1200
# Maximum tokens of an answer; the smaller values apply only if no question leaves more room.
_ANSWER_LENGTHS = (64, 32, 8)
# Records to try for each requested text: some have no target within the maximum length.
_TRIES_PER_TEXT = 16


def observe_run(
    student: Path, run: Mapping, fields: Mapping, pairs: Sequence[str], limit: int, trusted: bool
) -> Observations:
    """Compare a run's newest student with its start and its teacher, on a few texts of the run.

    A part that cannot be measured is left out, and ``missing`` says why.

    Args:
        student: the folder of the newest student.
        run: the contents of run.json (``read_run``).
        fields: the recipe fields of the run.
        pairs: "student:teacher" depths that training compared.
        limit: how many texts to read and how many questions to ask.
        trusted: whether code that comes with a model may run.
    """
    folder = run.get("working_directory")
    folder = Path(folder) if isinstance(folder, str) else Path()
    loader = _ModelLoader(student, run["recipe"].get("models") or {}, fields, folder, trusted)
    missing, models = loader.warnings, {}
    with _record_failure(missing, "The divergence by depth and the answers are left out"):
        tokenizer = load_tokenizer("student", str(student), trust_remote_code=trusted)
        records, description = _records(fields, folder, _TRIES_PER_TEXT * limit)
        models["student"] = loader.student()
    if "student" not in models:
        return Observations(missing=tuple(missing))
    with _record_failure(missing, "The start is left out"):
        models["start"] = loader.start(tokenizer)
    with _record_failure(missing, "The divergence by depth and the teacher's answers are left out"):
        models["teacher"] = loader.teacher()
    # The teacher is None after plain fine-tuning: nothing is missing then.
    available = [name for name in ("teacher", "start", "student") if models.get(name) is not None]
    models = {name: models[name] for name in available}
    chat = bool(fields.get("chat"))
    texts = Texts(records, description, limit, limit, chat)
    observed = observe_models(models, tokenizer, texts, trained=_depth_pairs(pairs))
    return replace(observed, missing=(*missing, *observed.missing))


@dataclass(frozen=True)
class Texts:
    """Records, a description of them, and how many to read and how many to ask.

    Args:
        chat: whether the chat template writes instruction records.
    """

    records: Sequence[dict]
    description: str
    num_read: int
    num_asked: int
    chat: bool = False


def observe_models(
    models: Mapping, tokenizer, texts: Texts, *, trained: Sequence[tuple[int, int]]
) -> Observations:
    """Divergence by depth (if "teacher" is among the models), and sample answers of all models.

    Args:
        models: name -> model in eval mode, in page order.
        texts: the first suitable records are used.
        trained: the pairs of depths that training compared.
    """
    observed, missing = Observations(), []
    positions = least_positions(model.config for model in models.values())
    if "teacher" in models:
        with _record_failure(missing, "The divergence by depth is left out"), torch.no_grad():
            passages = _passages(texts, tokenizer, positions)
            students = [name for name in models if name != "teacher"]
            inspection = inspect_models(
                models["teacher"],
                tqdm(passages, desc="reading", unit="text", leave=False, disable=None),
                [models[name] for name in students],
                trained=[trained] * len(students),
            )
            observed = replace(
                observed,
                inspection=inspection,
                students=tuple(students),
                texts=f"the first {len(passages)} texts of {texts.description}",
            )
    with _record_failure(missing, "The answers are left out"):
        samples, longest = _samples(models, tokenizer, texts, positions)
        observed = replace(
            observed,
            samples=samples,
            answered_by=tuple(models),
            questions=f"Taken from {texts.description}; answered by greedy decoding with at most "
            f"{longest} new tokens.",
        )
    return replace(observed, missing=tuple(missing))


@contextmanager
def _record_failure(missing, consequence):
    """Turn an exception of the block into a sentence: the report shows everything else."""
    try:
        yield
    except Exception as error:  # anything that files, libraries or memory can raise
        reason = first_line(error).rstrip(".")
        missing.append(f"{consequence}: {reason}.")


class _ModelLoader:
    """Loads the student, start and teacher of a run.

    Args:
        folder: of the newest student.
        fingerprints: role -> fingerprint of the model when the run began.
        working_directory: of the run; relative paths in ``fields`` start there.
    """

    def __init__(self, folder, fingerprints, fields, working_directory, trusted):
        self.folder, self.fingerprints, self.fields = folder, fingerprints, fields
        self.working_directory, self.trusted = working_directory, trusted
        self.warnings = []  # sentences about models that may have changed since the run

    def student(self):
        """The newest student."""
        return self._load("student", str(self.folder), {"dtype": "auto"})

    def start(self, tokenizer):
        """The student before training: a named model, blocks of the teacher, or random weights."""
        if self.fields.get("student_config"):
            seed = self.fields.get("seed", 42)
            return self._ready(random_student(self.fields["student_config"], tokenizer, seed))
        if blocks := self.fields.get("student_blocks"):
            path = self._path(self.fields["teacher_model_name_or_path"])
            given = self.fields.get("teacher_model_init_kwargs")
            return self._ready(cut_student(path, blocks, given, trust_remote_code=self.trusted))
        settings = {"dtype": self.fields.get("dtype") or "auto"}
        revision = self.fields.get("model_revision") or "main"
        return self._named("student", self.fields["model_name_or_path"], revision, settings)

    def teacher(self):
        """The teacher named in the recipe; None if there was none.

        Raises:
            ValueError: the run used a teacher cache and names no teacher, or it no longer exists,
                or it has another tokenizer.
        """
        if self.fields.get("cross_tokenizer"):
            raise ValueError("the teacher has another tokenizer, and all models read one")
        name = self.fields.get("teacher_model_name_or_path")
        if self.fields.get("teachers"):
            raise ValueError("the run had several teachers, and the page compares with one")
        if self.fields.get("teacher_server"):
            raise ValueError("the teacher is at a server, which returns no hidden states")
        if not name:
            if self.fields.get("teacher_cache"):
                raise ValueError("the run used a teacher cache and names no teacher")
            return None
        settings = {"dtype": "auto", **(self.fields.get("teacher_model_init_kwargs") or {})}
        settings.pop("trust_remote_code", None)
        revision = settings.pop("revision", "main")
        return self._named("teacher", name, revision, settings)

    def _named(self, role, name, revision, settings):
        path = self._path(name)
        config = load_config(role, path, revision=revision, trust_remote_code=self.trusted)
        before = (self.fingerprints.get(role) or {}).get("weights")
        if before is not None and fingerprint(path, config)["weights"] != before:
            self.warnings.append(
                f"The weights of the {role} {name} may have changed since the run began."
            )
        return self._load(role, path, {**settings, "revision": revision})

    def _path(self, name):
        local = self.working_directory / name
        return str(local) if local.is_dir() else name

    def _load(self, role, path, settings):
        model = load_model(role, path, trust_remote_code=self.trusted, **settings)
        return self._ready(model.requires_grad_(False))

    def _ready(self, model):
        if getattr(model, "hf_device_map", None) is None:
            cuda = torch.cuda.is_available() and not self.fields.get("use_cpu")
            model.to("cuda" if cuda else "cpu")
        return model.eval()


def _depth_pairs(pairs):
    # Pairs of several teachers, "2:8@1", are of none that the page shows.
    return tuple(tuple(map(int, pair.split(":"))) for pair in pairs if "@" not in pair)


def _records(fields, folder, num):
    """The first evaluation data if there are any, else the training data, and a description."""
    fields = {**fields}
    evaluated = fields.get("eval_file") or fields.get("dataset_test_split")
    if fields.get("eval_file"):
        fields = {"train_file": fields["eval_file"]}
    if fields.get("dataset_test_split"):
        fields["dataset_train_split"] = fields["dataset_test_split"]
    if files := fields.get("train_file"):
        files = files if isinstance(files, list) else [files]
        fields["train_file"] = [_moved(file, folder) for file in files]
    if entries := fields.get("datasets"):
        fields["datasets"] = [{**entry, "path": _moved(entry["path"], folder)} for entry in entries]
    sources, chat = sources_named(fields), bool(fields.get("chat"))
    names = [file for source in sources for file in source.files or (source.label,)]
    label = ", ".join(Path(name).name if Path(name).exists() else name for name in names)
    label += "" if evaluated else " (training data)"
    # Files are read as far as they are needed, and other data as training has read them.
    is_streamed = fields.get("dataset_streaming") or fields.get("streaming")
    if is_streamed or all(source.files for source in sources):
        stream = RecordStream(sources, chat=chat, warn=False)
        return [*islice(stream.records(), num)], label
    found = load_sources(sources, chat=chat, warn=False)
    return [*islice(chain.from_iterable(found), num)], label


def _moved(file, folder):
    """A path of a recipe, which counted from the working directory of its run."""
    return str(local) if (local := folder / file).exists() else file


def _passages(texts, tokenizer, positions):
    length, passages = min(_MAX_TEXT_TOKENS, positions or _MAX_TEXT_TOKENS), []
    for example in to_training_examples(texts.records, chat=texts.chat):
        passage = target_passage(*encode_example(example, tokenizer, length), length)
        if passage is not None:
            passages.append(passage)
        if len(passages) == texts.num_read:
            break
    if not passages:
        num = len(texts.records)
        raise ValueError(f"none of the first {num} records has a target within {length} tokens")
    return passages


def _samples(models, tokenizer, texts, positions):
    """Questions that leave room for an answer, with all answers; and the maximum answer length."""
    questions = [q for record in texts.records if (q := _question(record, texts.chat)) is not None]
    prompts, fields = [q.prompt for q in questions], [q.fields for q in questions]
    ids = encode_prompts(tokenizer, prompts, fields)
    for longest in _ANSWER_LENGTHS:
        room = positions - longest if positions else max(map(len, ids), default=0)
        fitting = [n for n, prompt in enumerate(ids) if 0 < len(prompt) <= room]
        if fitting:
            fitting = fitting[: texts.num_asked]
            break
    else:
        return (), 0
    decoding = Decoding(max_new_tokens=longest, greedy=True)
    bar = tqdm(models.values(), desc="answering", unit="model", leave=False, disable=None)
    answers = [
        TransformersBackend(model, tokenizer, decoding).generate([ids[n] for n in fitting], seed=0)
        for model in bar
    ]
    samples = tuple(
        Sample(
            _shortened(questions[n].question),
            _shortened(questions[n].reference),
            tuple(model[index].text for model in answers),
            tuple(not model[index].finished for model in answers),
        )
        for index, n in enumerate(fitting)
    )
    return samples, longest


class _Question(NamedTuple):
    """A prompt with its template fields for the models; question and reference for the page."""

    prompt: Any
    question: str
    reference: str
    fields: dict


def _question(record, chat=False):
    """The question in a record; None if it has none."""
    (example,) = to_training_examples([record], chat=chat)
    if "messages" in example:
        *prompt, last = example["messages"]
        example = {"prompt": prompt, "completion": [last]}
        if not prompt or last["role"] != "assistant":
            return None
    if "prompt" not in example:
        return None
    prompt, reference = example["prompt"], _content(example["completion"])
    fields = template_fields(record)
    if "instruction" in record:
        parts = (record["instruction"], record.get("input") or "")
        return _Question(prompt, "\n".join(filter(None, parts)), reference, fields)
    return _Question(prompt, _content(prompt), reference, fields)


def _content(text):
    """A text itself, or the content of the last of a list of messages."""
    return text if isinstance(text, str) else str(text[-1].get("content") or "")


def _shortened(text):
    longest = _MAX_QUESTION_CHARACTERS
    return text if len(text) <= longest else f"{text[:longest]} […]"
