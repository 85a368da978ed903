"""Damaged and senseless inputs end as success or as one line: 300 in every run, 10,000 by -m fuzz.

Each input is made of its kind and its number alone, so that a failure names what repeats it.
"""

import json
import random
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
import toys
import yaml

from distilllens.cli.train import _check, read_arguments
from distilllens.data import load_records, to_dataset
from distilllens.errors import one_line
from distilllens.layer_map import Cut, LayerMap, parse_blocks
from distilllens.teacher.cache import CachedTeacher
from distilllens.train import checkpoint, run_folder
from distilllens.train.elastic import StepRows, settle
from distilllens.workflows.compare import compare_results
from distilllens.workflows.study.file import read_study

OLD = Path(__file__).parents[1] / "old_files" / "0.1.0"
SECONDS = 20  # of an input, on a busy machine
VALUES = [None, True, False, 0, -1, 1, 2**63, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf")]
VALUES += [
    "",
    " ",
    "0",
    "-1",
    "a",
    "é\u202e",
    "\ud800",
    "\0",
    "x" * 5000,
    "../up",
    "/",
    "~",
    "null",
]
VALUES += ["1:2", "auto", "true", "1e5", [], {}, [[]], {"a": 1}, [None], [1, "a"], {"": {}}, [{}]]
BYTES = [
    b"",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\n",
    b"{",
    b"}",
    b"]",
    b'"',
    b":",
    b",",
    b"- ",
    b"\t",
]
BYTES += [b"1e999", b"NaN", b"&a ", b"*a", b"!!python/object:os.system ", b"\\ud800", b"[" * 3000]


ROWS = {"per_device": 2, "accumulation": 1, "processes": 1, "asked": 1}


class Hang(BaseException):
    """An input took too long; nothing in the code catches it."""


def damaged(draw, value, depth=0):
    """A value of JSON with one of its parts changed, removed, repeated or added."""
    if isinstance(value, dict) and value and (depth == 0 or draw.random() < 0.8):
        key = draw.choice(sorted(value))
        what = draw.random()
        if what < 0.15:
            return {k: v for k, v in value.items() if k != key}
        if what < 0.25:
            return value | {str(draw.choice(VALUES))[:50]: draw.choice(VALUES)}
        return value | {key: damaged(draw, value[key], depth + 1)}
    if isinstance(value, list) and value and draw.random() < 0.8:
        at = draw.randrange(len(value))
        what = draw.random()
        if what < 0.15:
            return value[:at] + value[at + 1 :]
        if what < 0.3:
            return [*value, value[at]]
        return [*value[:at], damaged(draw, value[at], depth + 1), *value[at + 1 :]]
    if isinstance(value, str) and value and draw.random() < 0.4:
        return "".join(draw.sample(value, len(value))) if draw.random() < 0.5 else value[:-1]
    return draw.choice(VALUES)


def torn(draw, data):
    """Bytes cut, changed, doubled or with others among them."""
    for _ in range(draw.randint(1, 3)):
        at, end = sorted(draw.randint(0, len(data)) for _ in range(2))
        end = min(end, at + draw.choice([0, 1, 2, 50]))
        middle = draw.choice(
            [*BYTES, data[at:end] * 2, bytes(draw.randrange(256) for _ in range(3))]
        )
        data = draw.choice([data[:at], data[:at] + middle + data[end:]])
    return data


def change(draw, path):
    """Damage a file: its values where it is JSON, lines of JSON or YAML, or its bytes."""
    data = path.read_bytes()
    if draw.random() < 0.4:
        path.write_bytes(torn(draw, data))
        return
    if path.suffix == ".jsonl":
        lines = data.decode().splitlines()
        at = draw.randrange(len(lines))
        lines[at] = json.dumps(damaged(draw, json.loads(lines[at])))
        text = "\n".join(lines) + draw.choice(["\n", ""])
    elif path.suffix == ".yaml":
        text = yaml.dump(damaged(draw, yaml.safe_load(data)), allow_unicode=True)
    else:
        text = json.dumps(damaged(draw, json.loads(data)))
    path.write_bytes(text.encode("utf-8", "surrogatepass"))


def recipe(draw, folder):
    fields = {"train_file": "train.jsonl", "model_name_or_path": "student", "output_dir": "out"}
    fields |= {"teacher_model_name_or_path": "teacher", "lens_layers": "1:2,2:3", "use_cpu": True}
    fields |= {"learning_rate": 1e-3, "max_steps": 4, "lens_pair_weights": [1, 2], "bf16": False}
    fields |= {"datasets": [{"path": "train.jsonl", "rows": 3}]} if draw.random() < 0.2 else {}
    fields |= (
        {"student_config": {"model_type": "gpt2", "n_layer": 2}} if draw.random() < 0.2 else {}
    )
    fields |= {"seed": 1, "lens_weight_schedule": "cosine", "report_to": "none", "optim": "sgd"}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(fields))
    change(draw, path)
    read_arguments(["--config", str(path)], "train", "", check=_check)


def rows(draw, folder):
    kinds = [
        {"instruction": "the cat", "input": "sat", "output": "on a mat", "history": [["a", "b"]]},
        {"prompt": "the cat", "completion": " sat"},
        {"messages": [{"role": "user", "content": "the"}, {"role": "assistant", "content": "dog"}]},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"text": "the dog ran"},
    ]
    row = draw.choice(kinds)
    path = folder / f"train.{draw.choice(['jsonl', 'jsonl', 'json', 'csv'])}"
    path = path.with_suffix(".jsonl") if draw.random() < 0.7 else path
    text = json.dumps([row] * 4) if path.suffix == ".json" else (json.dumps(row) + "\n") * 4
    path.write_text(",".join(row) + "\na,b\n" if path.suffix == ".csv" else text)
    if path.suffix == ".csv":
        path.write_bytes(torn(draw, path.read_bytes()))
    else:
        change(draw, path)
    to_dataset(load_records(path))


def layers(draw, folder):
    text = draw.choice(["1:2,2:3", "auto", "exits", "3", "0:0", "2:8, 4:16", "1,2,3", "0,3,5", "6"])
    text = torn(draw, text.encode()).decode("utf-8", "replace") if draw.random() < 0.8 else text
    if draw.random() < 0.5:
        LayerMap.resolve(text, draw.randint(1, 6), draw.randint(1, 8))
    else:
        Cut.chosen(parse_blocks(draw.choice([text, *VALUES])), draw.randint(1, 8))


def cache(draw, folder):
    shutil.copytree(OLD / "cache-auto", folder / "cache")
    change(draw, folder / "cache" / draw.choice(["manifest.json", "complete.json"]))
    CachedTeacher(folder / "cache", "cpu")


def marks(draw, folder):
    shutil.copytree(OLD / "stopped", folder / "out")
    run = folder / "out"
    identity = json.loads((run / "run.json").read_text())["recipe"]
    saved = run / "checkpoint-2"
    if draw.random() < 0.5:
        checkpoint.mark_whole(saved, versions={"torch": "2"}, run="a", step_rows=ROWS)
    files = [run / "run.json", saved / "complete.json", saved / "trainer_state.json"]
    change(draw, draw.choice(files))
    found = run_folder.resume_point(run, identity)
    args = toys.config(folder / "new")
    if before := run_folder.step_rows(run):
        settle(args, before)
    checkpoint.versions_of(saved)
    settle(args, StepRows.of_checkpoint(saved, args))
    if found is not None:
        run_folder.check_checkpoint(found, {"model_type": "llama"})
    run_folder.read_run(run)
    run_folder.read_state(run)


def results(draw, folder):
    shutil.copytree(OLD / "results", folder / "results")
    files = [f for f in sorted((folder / "results").rglob("*.json*")) if "timings" not in f.name]
    change(draw, draw.choice(files))
    compare_results([folder / "results"], as_json=draw.random() < 0.5)


def study(draw, folder):
    base = {"train_file": "train.jsonl", "student_blocks": [0, 2], "max_steps": 3}
    base |= {"teacher_model_name_or_path": "teacher", "eval_file": "train.jsonl"}
    fields = {"base": base, "methods": {"kd": {"lens_weight": 0}, "lens": {}}, "baseline": "kd"}
    fields |= {"seeds": 3, "learning_rates": [1e-3, 2e-3], "evaluate": {"benchmarks": ["a.jsonl"]}}
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(fields))
    change(draw, path)
    read_study(str(path))


# Kind -> inputs of the short run; the long one has 10,000 in the same shares.
KINDS = {recipe: 80, rows: 60, layers: 60, cache: 20, marks: 30, results: 20, study: 30}


@contextmanager
def limited(what):
    def stop(number, frame):
        raise Hang(f"{what} took more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(kind, number, folder):
    """None for success or an error of one line; otherwise what went wrong, to repeat it."""
    what = f"{kind.__name__} {number}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        with limited(what):
            kind(random.Random(what), folder)
    except (ValueError, OSError, ImportError) as error:
        if "\n" in one_line(error):
            return f"{what}: more than a line: {error!r}"
    except (Exception, Hang, SystemExit) as error:
        return f"{what}: {type(error).__name__}: {str(error)[:200]}"
    return None


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    "share", [1, pytest.param(10_000 / sum(KINDS.values()), marks=pytest.mark.fuzz)]
)
@pytest.mark.filterwarnings("default")
def test_any_input_is_taken_or_refused_on_one_line(tmp_path, monkeypatch, kind, share):
    """No other error, no hang, and no file beside the input's own folder."""
    for name in ("student", "teacher"):
        toys.llama(3, 16).save_pretrained(tmp_path / name)
        toys.tokenizer().save_pretrained(tmp_path / name)
    (tmp_path / "train.jsonl").write_text('{"prompt": "the", "completion": "cat"}\n' * 4)
    monkeypatch.chdir(tmp_path)
    before = {path for path in tmp_path.rglob("*")}
    count = round(KINDS[kind] * share)
    failures = [f for n in range(count) if (f := outcome(kind, n, tmp_path / "input")) is not None]
    shutil.rmtree(tmp_path / "input")
    assert failures == [], "\n".join(failures)
    assert {path for path in tmp_path.rglob("*")} == before
