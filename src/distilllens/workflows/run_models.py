"""What a report shows of the models: divergence by depth, and answers side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from distilllens.data import load_hub, load_records, to_training_examples
from distilllens.data.encode import encode_example
from distilllens.errors import first_line
from distilllens.fingerprints import fingerprint
from distilllens.generate.decoding import Decoding
from distilllens.generate.prompts import encode_prompts
from distilllens.generate.transformers_backend import TransformersBackend
from distilllens.lens.reading import inspect_models
from distilllens.loading import least_positions, load_config, load_model, load_tokenizer
from distilllens.report import Observations, Sample
from distilllens.workflows.inspect import target_passage
from distilllens.workflows.train_inputs import random_student

_LONGEST_TEXT, _LONGEST_QUESTION = 256, 1200
# Tokens of an answer; fewer only where no question leaves more room.
_ANSWERS = (64, 32, 8)
# Records that are tried for each text that is wanted: some have no target within reach.
_TRIES = 16


def observe_run(
    where: Path, note: Mapping, fields: Mapping, pairs: Sequence[str], limit: int, trusted: bool
) -> Observations:
    """The newest student of a run beside its start and its teacher, on the first of its texts.

    What cannot be had is missing from what is returned, with a sentence each.

    Args:
        where: the folder of the newest student.
        note: of the run (``read_run``).
        pairs: "student:teacher" depths that training compared.
        trusted: whether code that comes with a model may run.
    """
    home = note.get("working_directory")
    home = Path(home) if isinstance(home, str) else Path()
    source = _Source(where, note["recipe"].get("models") or {}, fields, home, trusted)
    missing, models = source.said, {}
    with _noted(missing, "Figure 1 and answers are left out"):
        tokenizer = load_tokenizer("student", str(where), trust_remote_code=trusted)
        records, what = _records(fields, home)
        models["student"] = source.student()
    if "student" not in models:
        return Observations(missing=tuple(missing))
    with _noted(missing, "The start is left out"):
        models["start"] = source.start(tokenizer)
    with _noted(missing, "Figure 1 and the teacher's answers are left out"):
        models["teacher"] = source.teacher()
    # Plain fine-tuning has no teacher, and misses none.
    there = [name for name in ("teacher", "start", "student") if models.get(name) is not None]
    models = {name: models[name] for name in there}
    texts = Texts(records[: _TRIES * limit], what, limit, limit)
    observed = observe_models(models, tokenizer, texts, trained=_map(pairs))
    return replace(observed, missing=(*missing, *observed.missing))


@dataclass(frozen=True)
class Texts:
    """Records, what they are in words, and how many are read and how many asked."""

    records: Sequence[dict]
    what: str
    num_read: int
    num_asked: int


def observe_models(
    models: Mapping, tokenizer, texts: Texts, *, trained: Sequence[tuple[int, int]]
) -> Observations:
    """Figure 1's numbers where "teacher" is among the models, and answers of all of them.

    Args:
        models: name -> model in eval mode, in the order of the page.
        texts: the first that serve are used.
        trained: the pairs of depths of training.
    """
    observed, missing = Observations(), []
    positions = least_positions(model.config for model in models.values())
    if "teacher" in models:
        with _noted(missing, "Figure 1 is left out"), torch.no_grad():
            found = _documents(texts, tokenizer, positions)
            students = [name for name in models if name != "teacher"]
            read = inspect_models(
                models["teacher"],
                found,
                [models[name] for name in students],
                trained=[trained] * len(students),
            )
            observed = replace(observed, read=read, students=tuple(students))
            observed = replace(observed, texts=f"the first {len(found)} texts of {texts.what}")
    with _noted(missing, "Answers are left out"):
        samples, longest = _samples(models, tokenizer, texts, positions)
        words = f"From {texts.what}; answered greedily, in at most {longest} tokens."
        observed = replace(observed, samples=samples, speakers=tuple(models), questions=words)
    return replace(observed, missing=tuple(missing))


@contextmanager
def _noted(missing, consequence):
    """A failure of the block becomes a sentence: a report shows what there is."""
    try:
        yield
    except Exception as error:  # whatever files, libraries and memory say
        reason = first_line(error).rstrip(".")
        missing.append(f"{consequence}: {reason}.")


class _Source:
    """Where the models of a run are."""

    def __init__(self, where, fingerprints, fields, home, trusted):
        self.where, self.fingerprints, self.fields = where, fingerprints, fields
        self.home, self.trusted = home, trusted
        self.said = []  # sentences on what is missing or may be another

    def student(self):
        """The newest, from its folder."""
        return self._load("student", str(self.where), {"dtype": "auto"})

    def start(self, tokenizer):
        """What it started from: a model by name, or random weights of the same seed."""
        if self.fields.get("student_config"):
            seed = self.fields.get("seed", 42)
            return self._ready(random_student(self.fields["student_config"], tokenizer, seed))
        settings = {"dtype": self.fields.get("dtype") or "float32"}
        revision = self.fields.get("model_revision") or "main"
        return self._named("student", self.fields["model_name_or_path"], revision, settings)

    def teacher(self):
        """The one that is named; None where there was none.

        Raises:
            ValueError: the run read a cache in its place, or it is gone.
        """
        name = self.fields.get("teacher_model_name_or_path")
        if not name:
            if self.fields.get("teacher_cache"):
                raise ValueError("the run read a teacher's cached states, and names no teacher")
            return None
        settings = {"dtype": "auto", **(self.fields.get("teacher_model_init_kwargs") or {})}
        settings.pop("trust_remote_code", None)
        revision = settings.pop("revision", "main")
        return self._named("teacher", name, revision, settings)

    def _named(self, role, name, revision, settings):
        there = self.home / name
        path = str(there) if there.is_dir() else name
        config = load_config(role, path, revision=revision, trust_remote_code=self.trusted)
        before = (self.fingerprints.get(role) or {}).get("weights")
        if before is not None and fingerprint(path, config)["weights"] != before:
            self.said.append(
                f"The {role} {name} may hold other weights now than when the run began."
            )
        return self._load(role, path, {**settings, "revision": revision})

    def _load(self, role, path, settings):
        return self._ready(load_model(role, path, trust_remote_code=self.trusted, **settings))

    def _ready(self, model):
        if getattr(model, "hf_device_map", None) is None:
            cuda = torch.cuda.is_available() and not self.fields.get("use_cpu")
            model.to("cuda" if cuda else "cpu")
        return model.eval()


def _map(pairs):
    return tuple(tuple(map(int, pair.split(":"))) for pair in pairs)


def _records(fields, home):
    """The evaluation data where there are any, else the training data; and which, in words."""
    if name := fields.get("dataset_name"):
        test = fields.get("dataset_test_split")
        split = test or fields.get("dataset_train_split", "train")
        records = load_hub(name, split, fields.get("dataset_config"))
        return records, f"{name}[{split}]" + ("" if test else " (training data)")
    role = "eval_file" if fields.get("eval_file") else "train_file"
    files = fields.get(role)
    files = files if isinstance(files, list) else [files]
    paths = [there if (there := home / file).exists() else file for file in files]
    what = ", ".join(Path(file).name for file in files)
    trained = " (training data)" if role == "train_file" else ""
    return load_records(paths), what + trained


def _documents(texts, tokenizer, positions):
    length, found = min(_LONGEST_TEXT, positions or _LONGEST_TEXT), []
    for example in to_training_examples(texts.records):
        document = target_passage(*encode_example(example, tokenizer), length)
        if document is not None:
            found.append(document)
        if len(found) == texts.num_read:
            break
    if not found:
        num = len(texts.records)
        raise ValueError(f"none of the first {num} records has a target in {length} tokens")
    return found


def _samples(models, tokenizer, texts, positions):
    """Questions that leave room for an answer, and the answers to them; and the longest allowed."""
    asked = [q for record in texts.records if (q := _question(record)) is not None]
    ids = encode_prompts(tokenizer, [prompt for prompt, _, _ in asked])
    for longest in _ANSWERS:
        most = positions - longest if positions else max(map(len, ids), default=0)
        fitting = [n for n, found in enumerate(ids) if 0 < len(found) <= most]
        if fitting:
            fitting = fitting[: texts.num_asked]
            break
    else:
        return (), 0
    decoding = Decoding(max_new_tokens=longest, greedy=True)
    said = [
        TransformersBackend(model, tokenizer, decoding).generate([ids[n] for n in fitting], seed=0)
        for model in models.values()
    ]
    samples = tuple(
        Sample(
            _shortened(asked[n][1]),
            _shortened(asked[n][2]),
            tuple(answers[at].text for answers in said),
            tuple(not answers[at].finished for answers in said),
        )
        for at, n in enumerate(fitting)
    )
    return samples, longest


def _question(record):
    """``(prompt, question, reference)`` of a record, as a model and a person read it; or None."""
    (example,) = to_training_examples([record])
    if "messages" in example:
        *prompt, last = example["messages"]
        example = {"prompt": prompt, "completion": [last]}
        if not prompt or last["role"] != "assistant":
            return None
    if "prompt" not in example:
        return None
    prompt, reference = example["prompt"], _said(example["completion"])
    if "instruction" in record:
        parts = (record["instruction"], record.get("input") or "")
        return prompt, "\n".join(filter(None, parts)), reference
    return prompt, _said(prompt), reference


def _said(text):
    """A text, or what the last of some messages says."""
    return text if isinstance(text, str) else str(text[-1].get("content") or "")


def _shortened(text):
    return text if len(text) <= _LONGEST_QUESTION else f"{text[:_LONGEST_QUESTION]} […]"
