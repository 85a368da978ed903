"""Benchmarks from files and names."""

import json

import pytest
from data import tool_records

from distilllens.data import format_instruction, format_prompt
from distilllens.evaluate import benchmarks
from distilllens.evaluate.benchmarks import NAMED, load_benchmarks, unique_names
from distilllens.files import sha256

RECORD = {"instruction": "Say hello.", "input": "politely", "output": ["  Good day", "Hello"]}


def write(path, *records):
    """A file of those records."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_an_instruction_is_asked_as_in_training(tmp_path):
    """Prompt and completion are those of training; all references are kept as they are."""
    (found,) = load_benchmarks([write(tmp_path / "test.jsonl", RECORD)])
    (example,) = found.examples
    assert (found.name, found.sha256) == ("test", sha256(tmp_path / "test.jsonl"))
    assert example.prompt == format_prompt(RECORD)
    assert example.completion == format_instruction(RECORD)["completion"] == "Good day"
    assert example.references == ("  Good day", "Hello")
    assert example.question == "Say hello.\n\npolitely"
    assert example.place == "test example 0"


def test_a_chat_is_asked_by_its_messages(tmp_path):
    """The last answer is the reference, what is before it the prompt; --chat makes one."""
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    path = write(tmp_path / "chat.jsonl", {"messages": messages})
    (example,) = load_benchmarks([path])[0].examples
    assert (example.prompt, example.references) == (messages[:1], ("Hello",))
    assert example.completion == messages[1:]
    (example,) = load_benchmarks([write(tmp_path / "i.jsonl", RECORD)], chat=True)[0].examples
    assert example.prompt == [{"role": "user", "content": "Say hello.\n\npolitely"}]
    assert example.references == ("  Good day", "Hello")


def test_system_and_history_are_asked_too(tmp_path):
    """In Alpaca's template they are part of the text, with --chat they are messages."""
    record = {**RECORD, "system": "Be kind.", "history": [["Hi", "Hello"]]}
    path = write(tmp_path / "i.jsonl", record)
    (example,) = load_benchmarks([path])[0].examples
    assert example.prompt.startswith("Be kind.\n\n### Instruction:\nHi\n\n### Response:\nHello\n\n")
    (example,) = load_benchmarks([path], chat=True)[0].examples
    assert [m["content"] for m in example.prompt] == [
        "Be kind.",
        "Hi",
        "Hello",
        "Say hello.\n\npolitely",
    ]


def test_a_record_without_a_reference_is_refused_by_line(tmp_path):
    """Training leaves such a record out; the mean of an evaluation would be over fewer answers."""
    path = write(tmp_path / "i.jsonl", {**RECORD, "output": ""})
    with pytest.raises(ValueError, match=r"i\.jsonl:1: 'output' is empty"):
        load_benchmarks([path])


def test_prompts_and_completions_are_taken_as_they_are(tmp_path):
    """No template, nothing stripped."""
    path = write(tmp_path / "p.jsonl", {"prompt": "2 + 2 =", "completion": " 4"})
    (example,) = load_benchmarks([path])[0].examples
    assert (example.prompt, example.completion, example.references) == ("2 + 2 =", " 4", (" 4",))


@pytest.mark.parametrize("kind", ["messages", "conversations"])
def test_an_example_carries_tools_and_template_settings(tmp_path, kind):
    """Unchanged from the record; with --chat, also from instruction records."""
    records = getattr(tool_records, kind)()
    (found,) = load_benchmarks([write(tmp_path / "t.jsonl", *records)])
    assert [dict(e.template_fields) for e in found.examples] == [*tool_records.HANDED]
    instruction = RECORD | {"chat_template_kwargs": {"enable_thinking": False}}
    path = write(tmp_path / "i.jsonl", instruction)
    (example,) = load_benchmarks([path], chat=True)[0].examples
    assert example.template_fields == {"chat_template_kwargs": {"enable_thinking": False}}
    (example,) = load_benchmarks([path])[0].examples
    assert example.template_fields == {}


def test_the_limit_takes_the_first(tmp_path):
    """The first examples of each benchmark, in the order of the file."""
    records = [{**RECORD, "instruction": str(number)} for number in range(5)]
    (found,) = load_benchmarks([write(tmp_path / "t.jsonl", *records)], limit=2)
    assert [example.question[0] for example in found.examples] == ["0", "1"]


def test_names_are_as_short_as_they_can_be(tmp_path):
    """The last parts that tell paths apart."""
    assert unique_names(["runs/kd", "runs/lens"]) == ["kd", "lens"]
    assert unique_names(["kd/final", "lens/final", "Org/Model-0.5B"]) == [
        "kd_final",
        "lens_final",
        "Model-0.5B",
    ]
    (tmp_path / "model").mkdir()
    assert unique_names([str(tmp_path / "model" / ".")]) == ["model"]
    with pytest.raises(ValueError, match="named twice"):
        unique_names([str(tmp_path / "model"), f"{tmp_path}/model/"])
    with pytest.raises(ValueError, match="a/b and a_b would both be called a_b; rename one"):
        unique_names(["a/b", "c/b", "a_b"])
    files = [write(tmp_path / part / "test.jsonl", RECORD) for part in ("a", "b")]
    assert [found.name for found in load_benchmarks(files)] == ["a_test", "b_test"]


def test_a_name_is_a_file_on_the_hub(tmp_path, monkeypatch):
    """The file of the paper's bucket is chosen."""
    asked = []

    def snapshot_download(repository, repo_type, allow_patterns):
        asked.append((repository, repo_type, allow_patterns))
        write(tmp_path / "11_" / "valid.jsonl", RECORD)
        write(tmp_path / "5_10" / "valid.jsonl", RECORD, RECORD)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    (found,) = load_benchmarks(["sni"])
    assert (found.name, len(found.examples)) == ("sni", 1)
    assert asked == [("MiniLLM/sinst", "dataset", ["11_/valid.jsonl", "*/11_/valid.jsonl"])]
    assert set(NAMED) == {"dolly", "selfinst", "vicuna", "sni", "unni"}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "Once upon a time"}, "t example 0: a 'text' record has no reference"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "do not end in an answer"),
        ({"instruction": "Hi"}, "t.jsonl:1: the record has no 'output'"),
        ({"instruction": "Hi", "output": []}, "t.jsonl:1: 'output' is an empty list"),
    ],
)
def test_a_benchmark_needs_references(tmp_path, record, message):
    """Each error names the place."""
    with pytest.raises(ValueError, match=message):
        load_benchmarks([write(tmp_path / "t.jsonl", record)])


def test_what_is_no_benchmark(tmp_path, monkeypatch):
    """An unknown name, a missing or empty file, a folder of several files, no connection."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="'dolli' is no file here and no known name; known are do"):
        load_benchmarks(["dolli"])
    with pytest.raises(ValueError, match="no such file"):
        load_benchmarks(["missing.jsonl"])
    with pytest.raises(ValueError, match="holds no record"):
        load_benchmarks([write(tmp_path / "empty.jsonl")])
    write(tmp_path / "a.jsonl", RECORD)
    with pytest.raises(ValueError, match="holds 2 data files; name one"):
        load_benchmarks([str(tmp_path)])
    with pytest.raises(ValueError, match="limit must be at least 1"):
        load_benchmarks(["a.jsonl"], limit=0)

    def away(*args, **kwargs):
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", away)
    with pytest.raises(ValueError, match=r"not download benchmark vicuna .*no route; name a l"):
        load_benchmarks(["vicuna"])
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: str(tmp_path))
    with pytest.raises(ValueError, match=r"MiniLLM/Vicuna on the hub has no valid.jsonl"):
        load_benchmarks(["vicuna"])


def test_names_know_minillms_repositories():
    """Read in MiniLLM's own instructions for its data."""
    repositories = {name: repository for name, (repository, _) in benchmarks.NAMED.items()}
    assert repositories == {
        "dolly": "MiniLLM/dolly",
        "selfinst": "MiniLLM/self-inst",
        "vicuna": "MiniLLM/Vicuna",
        "sni": "MiniLLM/sinst",
        "unni": "MiniLLM/uinst",
    }
