"""``distilllens generate`` as a user types it."""

import errno
import fcntl
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch
import toys
from data import tool_records
from processes import python
from transformers import AutoModelForCausalLM, AutoTokenizer

from distilllens.cli import main
from distilllens.data import encode_example, load_records, to_training_examples
from distilllens.generate.answer_file import AnswerFile
from distilllens.generate.generation import Generation
from distilllens.generate.transformers_backend import TransformersBackend

ROOT = Path(__file__).parents[2]
QUICK = ["--max_new_tokens", "16", "--batch_size", "3"]


@pytest.fixture
def shop(workshop):
    """The workshop, with a teacher whose tokenizer has a chat template."""
    tool_records.tokenizer().save_pretrained(workshop / "teacher")
    return workshop


def generate(*flags, model="teacher", data="train.jsonl", output="answers.jsonl"):
    """The exit status of the command on the toys."""
    words = toys.with_defaults([*QUICK, "--output", output], flags)
    return main(["generate", "--model", model, "--data", data, *words])


def rows_of(path="answers.jsonl"):
    """The lines of a JSONL file."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def write(path, rows):
    """Rows as JSON lines."""
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def greedy(ids, longest=16):
    """What the teacher says to a prompt, by full forwards alone: the text, and whether it ended."""
    model = AutoModelForCausalLM.from_pretrained("teacher").eval()
    tokenizer, said = AutoTokenizer.from_pretrained("teacher"), []
    while len(said) < longest:
        with torch.no_grad():
            said.append(int(model(torch.tensor([[*ids, *said]])).logits[0, -1].argmax()))
        if said[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(said, skip_special_tokens=True), said[-1] == tokenizer.eos_token_id


ASK, REPLY = {"role": "user", "content": "the cat"}, {"role": "assistant", "content": "a dog"}
NEXT = {"role": "user", "content": "old hill"}
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\nthe cat\n\n### Response:\n"
)
TOOLS = [tool_records.tool("hill", "big")]
CHAT = "user the cat <eos> assistant "
# The record -> what the teacher reads, and the record as it is trained on when A is the answer.
KINDS = {
    "instruction": (
        {"id": 7, "instruction": "the cat", "input": "", "output": ["a", "b"], "text": "old"},
        ALPACA,
        {"id": 7, "instruction": "the cat", "input": "", "output": "A"},
    ),
    "no answer yet": (
        {"instruction": "the cat"},
        ALPACA,
        {"instruction": "the cat", "output": "A"},
    ),
    "chat": (
        {"instruction": "the cat", "output": "b"},
        CHAT,
        {"instruction": "the cat", "output": "A"},
    ),
    "prompt": (
        {"prompt": "the cat", "completion": " b", "score": 0.5},
        "the cat",
        {"prompt": "the cat", "completion": " A", "score": 0.5},
    ),
    "prompt alone": ({"prompt": "the cat"}, "the cat", {"prompt": "the cat", "completion": " A"}),
    "prompt of messages": (
        {"prompt": [ASK], "completion": [REPLY], "tools": TOOLS},
        f"hill big {CHAT}",
        {"prompt": [ASK], "completion": [{"role": "assistant", "content": "A"}], "tools": TOOLS},
    ),
    "messages": (
        {"messages": [ASK, REPLY, NEXT, REPLY]},
        "user the cat <eos> assistant a dog <eos> user old hill <eos> assistant ",
        {"messages": [ASK, REPLY, NEXT, {"role": "assistant", "content": "A"}]},
    ),
    "messages without an answer": (
        {"messages": [ASK], "tools": json.dumps(TOOLS)},
        f"hill big {CHAT}",
        {"messages": [ASK, {"role": "assistant", "content": "A"}], "tools": json.dumps(TOOLS)},
    ),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "the cat"}, {"from": "gpt", "value": "b"}]},
        CHAT,
        {"messages": [ASK, {"role": "assistant", "content": "A"}]},
    ),
    "system": (
        {"system": "red", "conversations": [{"from": "human", "value": "the cat"}]},
        f"system red <eos> {CHAT}",
        {
            "messages": [
                {"role": "system", "content": "red"},
                ASK,
                {"role": "assistant", "content": "A"},
            ]
        },
    ),
}


def with_text(value, answer):
    """The value with every text that ends in A ending in the answer instead."""
    if isinstance(value, str):
        return value[:-1] + answer if value in ("A", " A") else value
    if isinstance(value, list):
        return [with_text(item, answer) for item in value]
    if isinstance(value, dict):
        return {key: with_text(item, answer) for key, item in value.items()}
    return value


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_its_record_with_the_teachers_answer(shop, monkeypatch, kind):
    """The answer is that of full forwards; the prompt's tokens are those that training reads."""
    record, written, expected = KINDS[kind]
    write("train.jsonl", [record])
    read = []
    call = TransformersBackend.generate
    monkeypatch.setattr(
        TransformersBackend, "generate", lambda *args, **k: read.append(args[1]) or call(*args, **k)
    )
    flags = ["--chat"] if kind == "chat" else []
    assert generate("--greedy", "--keep_truncated", *flags) == 0
    tokenizer = tool_records.tokenizer()
    ids = tokenizer(written)["input_ids"]
    assert read == [[ids]]
    answer, _ = greedy(ids)
    assert answer
    assert rows_of() == [with_text(expected, answer)]
    (example,) = to_training_examples(load_records("answers.jsonl"))
    if kind != "chat":
        trained, first = encode_example(example, tokenizer)
        assert trained[: len(ids)] == ids and (first in (0, len(ids)))
        assert tokenizer.decode(trained[len(ids) :]).split() == [*answer.split(), "<eos>"]


@pytest.mark.parametrize("suffix", ["csv", "parquet", "json", "folder"])
def test_every_format_of_training_is_read(shop, suffix):
    """Dates become text and numbers that are none null; a folder's files are read in order."""
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(
        {
            "instruction": ["the cat", "a dog"],
            "output": ["b", "b"],
            "score": [1.5, float("nan")],
            "day": pandas.to_datetime(["2024-01-02", "2024-01-03"]),
        }
    )
    source = f"data.{suffix}"
    if suffix == "csv":
        table.to_csv(source, index=False)
    elif suffix == "parquet":
        table.to_parquet(source)
    else:
        source = "folder" if suffix == "folder" else source
        Path("folder").mkdir()
        Path("folder/a.json" if suffix == "folder" else source).write_text(
            table.to_json(orient="records", date_format="iso")
        )
    assert generate("--greedy", "--keep_truncated", data=source) == 0
    first, second = rows_of()
    assert first["instruction"] == "the cat" and float(first["score"]) == 1.5
    assert first["day"].startswith("2024-01-02") and second.get("score") is None
    assert "NaN" not in Path("answers.jsonl").read_text()
    ids = tool_records.tokenizer()(ALPACA)["input_ids"]
    assert first["output"] == greedy(ids)[0]


def test_answers_do_not_depend_on_the_batch_and_seeds_have_a_row_each(shop):
    """One at a time or all at once: the same bytes; each record has its rows in a block."""
    for size in ("1", "3", "8"):
        flags = ["--seeds", "10,20", "--keep_truncated", "--batch_size", size]
        assert generate(*flags, output=f"{size}.jsonl") == 0
        note = json.loads(Path(f"{size}.jsonl.settings").read_text())
        assert note["near_ties"] == 0 and note["prompts"] == 8 and note["answers"] == 16
    contents = {Path(f"{size}.jsonl").read_bytes() for size in (1, 3, 8)}
    assert len(contents) == 1
    rows = rows_of("1.jsonl")
    asked = [row["instruction"] for row in rows_of("train.jsonl")]
    assert note["rows"] == len(rows) and note["left_out"]["truncated"] == 0
    if note["left_out"]["empty"] == 0:
        assert [row["instruction"] for row in rows] == [a for a in asked for _ in range(2)]
    assert len({row["output"] for row in rows}) > 8


def test_what_did_not_end_or_is_empty_is_left_out_and_counted(shop, capsys):
    """Of the answers by full forwards, the rows are those that ended; the end says how many."""
    toys.llama(2, 16, seed=24, tied=False).save_pretrained("teacher")
    write("train.jsonl", [{"prompt": word} for word in toys.WORDS])
    assert generate("--greedy", "--max_new_tokens", "6") == 0
    tokenizer = tool_records.tokenizer()
    found = {w: greedy(tokenizer(w)["input_ids"], 6) for w in toys.WORDS}
    empty = [w for w, (text, _) in found.items() if not text]
    cut = [w for w, (text, ended) in found.items() if text and not ended]
    kept = [w for w in toys.WORDS if w not in empty + cut]
    assert empty and cut and kept
    assert [row["prompt"] for row in rows_of()] == kept
    said = capsys.readouterr().err
    assert f"wrote answers.jsonl: {len(kept)} rows of 20 answers, " in said
    assert f"left out: {len(cut)} answers that did not end within --max_new_tokens 6; " in said
    assert f"left out: {len(empty)} empty answers" in said
    assert generate("--greedy", "--max_new_tokens", "6", "--keep_truncated", output="k.jsonl") == 0
    assert [row["prompt"] for row in rows_of("k.jsonl")] == [w for w in found if w not in empty]


def test_nothing_to_keep_is_an_error_that_keep_truncated_mends(shop, capsys):
    """No empty file is written; the answers that were given are not given again."""
    write("train.jsonl", [{"prompt": w} for w in toys.WORDS[:3]])
    flags = ["--greedy", "--max_new_tokens", "1"]
    assert generate(*flags) == 2
    said = capsys.readouterr().err
    assert "none of 3 answers is kept: 3 did not end within --max_new_tokens 1, 0 are" in said
    assert not Path("answers.jsonl").exists()
    assert generate(*flags, "--keep_truncated") == 0
    assert "model: " not in capsys.readouterr().err and len(rows_of()) == 3


def test_the_beginning_and_the_end_say_what_is_done(shop, capsys):
    """Model, size and device first; what was written and a command that works last."""
    assert generate("--keep_truncated", "--max_prompt_length", "30") == 0
    said = capsys.readouterr().err
    num = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained("teacher").parameters())
    assert f"model: teacher: {num:,} parameters, float32, on cpu" in said
    assert "8 prompts, 1 sampled answer each, up to 16 tokens" in said and "tokens/s" in said
    (line,) = (x for x in said.splitlines() if x.startswith("next: distilllens train"))
    words = line.split("   #")[0].replace("STUDENT", "student").split()[2:]
    assert main([*words, "--max_steps", "2", "--use_cpu", "--report", "false"]) == 0
    assert Path("runs/seqkd/model.safetensors").exists()


def test_a_folder_of_answers_can_be_trained_on(shop):
    """The files beside the rows are no data."""
    Path("answers").mkdir()
    assert generate("--keep_truncated", output="answers/all.jsonl") == 0
    assert len(list(Path("answers").iterdir())) == 2
    assert (
        load_records("answers") == load_records("answers/all.jsonl") == rows_of("answers/all.jsonl")
    )


def test_a_benchmark_is_known_by_its_name(shop, monkeypatch):
    """Its file comes from the hub's cache; a file of that name here goes first."""
    write("valid.jsonl", [{"instruction": "the cat", "output": "b"}])
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **settings: str(shop))
    assert generate("--greedy", "--keep_truncated", data="dolly") == 0
    assert [row["instruction"] for row in rows_of()] == ["the cat"]
    Path("dolly").mkdir()
    write("dolly/a.jsonl", [{"instruction": "a dog"}])
    assert generate("--greedy", "--keep_truncated", data="dolly", output="b.jsonl") == 0
    assert [row["instruction"] for row in rows_of("b.jsonl")] == ["a dog"]


def test_vllm_is_asked_as_by_an_evaluation(shop, monkeypatch):
    """With the prompts' tokens, the seed, and the loaded tokenizer."""
    asked = []

    class Engine:
        note = None

        def __init__(self, *args, **settings):
            asked.append((args[0], settings))

        def generate(self, prompt_ids, *, seed):
            return [Generation(f"{seed}", 2, True, 0, (3, 0)) for _ in prompt_ids]

    monkeypatch.setattr("distilllens.workflows.generate.VllmBackend", Engine)
    monkeypatch.setattr("distilllens.workflows.generate_inputs.check_vllm", lambda *_: None)
    assert generate("--backend", "vllm", "--seeds", "4,5") == 0
    assert asked == [("teacher", {"dtype": "auto", "trust_remote_code": False})]
    assert [row["output"] for row in rows_of()] == ["4", "5"] * 8


def test_a_finished_file_stays(shop, capsys):
    """The same command does nothing; another one, or another file there, is refused."""
    assert generate("--greedy", "--keep_truncated") == 0
    before = {path: path.read_bytes() for path in Path().glob("answers*")}
    capsys.readouterr()
    assert generate("--greedy", "--keep_truncated", "--batch_size", "1") == 0
    said = capsys.readouterr().err
    assert "nothing to do: answers.jsonl holds these answers" in said and "model: " not in said
    for flags, difference in (
        (["--greedy"], "keep_truncated was True and is now False"),
        (["--greedy", "--keep_truncated", "--limit", "3"], "limit was None and is now 3"),
        (["--keep_truncated"], "decoding.greedy was True and is now False"),
    ):
        assert generate(*flags) == 2
        assert f"answers.jsonl holds answers of other settings: {difference}; name an" in (
            capsys.readouterr().err
        )
    assert {path: path.read_bytes() for path in Path().glob("answers*")} == before
    Path("answers.jsonl").write_text(Path("answers.jsonl").read_text() + "\n")
    assert generate("--greedy", "--keep_truncated") == 2
    assert "answers.jsonl has changed since it was finished" in capsys.readouterr().err


def killed(call, at):
    """Run a call in a process that kills itself as it appends for the n-th time, or later."""
    child = os.fork()
    if child == 0:
        append, finish, left = AnswerFile.append, AnswerFile.finish, [at]

        def dying(self, rank, rows):
            if left[0] == 0:
                append(self, rank, rows)
                if at % 2:  # the last line is torn
                    os.truncate(self.part, os.path.getsize(self.part) - 9)
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            append(self, rank, rows)

        def last(self, *args):
            if at == 6:
                os.kill(os.getpid(), signal.SIGKILL)
            self.drop_parts = lambda: os.kill(os.getpid(), signal.SIGKILL)
            finish(self, *args)

        AnswerFile.append, AnswerFile.finish = dying, last
        call()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.parametrize("at", range(8))
def test_killed_at_any_time_it_ends_at_the_same_bytes(shop, capsys, at):
    """SIGKILL during any of 6 appended batches, before and after the file gets its name."""
    flags = ["--seeds", "10,20", "--keep_truncated"]
    assert generate(*flags, output="whole.jsonl") == 0
    killed(lambda: generate(*flags), at)
    there = {path.name for path in Path().glob("answers*")}
    assert ("answers.jsonl" in there) == (at == 7)
    assert "answers.jsonl.part" in there
    other = generate(*flags, "--temperature", "0.5")
    said = capsys.readouterr().err
    assert other == 2 and "decoding.temperature was 1.0 and is now 0.5" in said
    assert ("delete answers.jsonl.part" in said) == (at < 7)
    assert generate(*flags) == 0
    assert Path("answers.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
    assert {path.name for path in Path().glob("answers*")} == {
        "answers.jsonl",
        "answers.jsonl.settings",
    }
    first, second = (Path(f"{n}.jsonl.settings").read_text() for n in ("answers", "whole"))
    assert first == second.replace("whole", "answers")


def test_a_batch_that_was_begun_is_repeated_as_a_whole(shop, monkeypatch):
    """So the model sees the batches of an undisturbed command."""
    assert generate("--keep_truncated", output="whole.jsonl") == 0
    killed(lambda: generate("--keep_truncated"), 1)
    sizes = []
    call = TransformersBackend.generate
    monkeypatch.setattr(
        TransformersBackend,
        "generate",
        lambda self, ids, **k: sizes.append(len(ids)) or call(self, ids, **k),
    )
    assert generate("--keep_truncated") == 0
    assert sizes == [3, 2]  # of 3, 3 and 2, of which the second was torn


def test_data_or_model_that_changed_meanwhile(shop, capsys):
    """The remains are of the former contents, and the message says which changed."""
    killed(lambda: generate(), 1)
    write("train.jsonl", rows_of("train.jsonl")[1:])
    assert generate() == 2
    said = capsys.readouterr().err
    assert "the contents of data.1 are no longer the same; name another --output, or del" in said
    toys.llama(4, 24, seed=9).save_pretrained("teacher")
    os.remove("answers.jsonl.part")
    killed(lambda: generate(), 1)
    toys.llama(4, 24, seed=8).save_pretrained("teacher")
    assert generate() == 2
    assert "the contents of model.model.safetensors are no longer" in capsys.readouterr().err


def test_interrupted_by_the_user(shop, capsys, monkeypatch):
    """Ctrl-C says what is there and how to go on."""
    append, left = AnswerFile.append, [1]

    def interrupted(self, *args):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        append(self, *args)

    monkeypatch.setattr(AnswerFile, "append", interrupted)
    assert generate() == 130
    said = capsys.readouterr().err
    assert "interrupted; 3 answers are in answers.jsonl.part, and the same command goes on" in said
    assert generate(output="b.jsonl") == 130
    assert "interrupted; nothing is written" in capsys.readouterr().err
    assert not list(Path().glob("b.jsonl*"))


def test_two_commands_at_once(shop, capsys):
    """The second is refused while the first holds the file."""
    killed(lambda: generate(), 1)
    with open("answers.jsonl.part", "ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert generate() == 2
        assert "answers.jsonl is being made by another process" in capsys.readouterr().err
    assert generate() == 0


def test_a_full_disk(shop, capsys, monkeypatch):
    """One line, and the same command goes on."""
    fsync, left = os.fsync, [3]

    def full(number):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return fsync(number)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert generate("--keep_truncated") == 2
    assert "answers.jsonl.part cannot be written: No space left on device; make room, and" in (
        capsys.readouterr().err
    )
    assert generate("--keep_truncated") == 0 and rows_of()


def no_template(_):
    toys.tokenizer().save_pretrained("teacher")
    os.remove("teacher/chat_template.jinja")


# What the user did -> flags that change the command, and the line.
BAD = {
    "no such data": (None, {"data": "tarin.jsonl"}, "tarin.jsonl: no such file or folder"),
    "no such benchmark": (None, {"data": "dollly"}, "'dollly' is no file here and no known name"),
    "empty file": (lambda p: write("train.jsonl", []), {}, "train.jsonl:1: the file holds no rec"),
    "broken row": (
        lambda p: Path("train.jsonl").write_text('{"prompt": "a"}\n{"pro\n'),
        {},
        "train.jsonl:2: broken JSON",
    ),
    "no prompt in messages": (
        lambda p: write("train.jsonl", [{"messages": [ASK]}, {"messages": [REPLY]}]),
        {},
        "train.jsonl:2: 'messages' holds nothing before the answer: no prompt",
    ),
    "plain text": (
        lambda p: write("train.jsonl", [{"text": "a cat"}]),
        {},
        "train.jsonl:1: a text has no prompt to answer",
    ),
    "empty prompt": (
        lambda p: write("train.jsonl", [{"prompt": "a"}, {"prompt": ""}]),
        {},
        "train.jsonl:2: the prompt has no tokens",
    ),
    "no instruction": (
        lambda p: write("train.jsonl", [{"output": "a"}]),
        {},
        "train.jsonl:1: the record has no 'instruction'",
    ),
    "half a character": (
        lambda p: Path("train.jsonl").write_text('{"prompt": "a", "id": "\\ud800"}\n'),
        {},
        "train.jsonl:1: a field has half a surrogate pair",
    ),
    "two kinds": (
        lambda p: write("train.jsonl", [{"prompt": "a"}, {"messages": [ASK]}]),
        {},
        "train.jsonl:2: a 'messages' record, but train.jsonl:1 is a 'prompt' record",
    ),
    "no model": (None, {"model": "techer"}, "cannot load the model 'techer'"),
    "no tokenizer": (
        lambda p: [os.remove(f"teacher/{n}") for n in ("tokenizer.json", "tokenizer_config.json")],
        {},
        "cannot load the tokenizer of the model 'teacher': the folder holds no tokenizer",
    ),
    "no weights": (
        lambda p: os.remove("teacher/model.safetensors"),
        {},
        "model teacher holds no weights",
    ),
    "no template for messages": (
        lambda p: (no_template(p), write("train.jsonl", [{"messages": [ASK]}])),
        {},
        "train.jsonl:1: the tokenizer cannot write these messages: it has no chat template",
    ),
    "no template for --chat": (
        no_template,
        {"flags": ["--chat"]},
        "--chat: the tokenizer of teacher has no chat template",
    ),
    "--chat for texts": (
        lambda p: write("train.jsonl", [{"prompt": "a"}]),
        {"flags": ["--chat"]},
        "--chat is for instructions, and train.jsonl:1 has a prompt that is a finished text",
    ),
    "beyond the positions": (
        None,
        {"flags": ["--max_new_tokens", "60"]},
        "beyond the model's 64 positions; lower --max_new_tokens",
    ),
    "all too long": (None, {"flags": ["--max_prompt_length", "2"]}, "train.jsonl: all 8 prompts"),
    "output is a folder": (None, {"output": "teacher"}, "--output teacher is a folder"),
    "output is no .jsonl": (None, {"output": "a.json"}, "--output a.json: name a .jsonl file"),
    "output in no folder": (None, {"output": "a/b.jsonl"}, "there is no folder a; create it first"),
    "output is the input": (None, {"output": "train.jsonl"}, "train.jsonl is a file of --data"),
    "output in the data": (
        lambda p: (Path("d").mkdir(), write("d/a.jsonl", [{"prompt": "a"}])),
        {"data": "d", "output": "d/b.jsonl"},
        "--output d/b.jsonl is in the folder d, which is read as --data",
    ),
    "output is a foreign file": (
        lambda p: Path("answers.jsonl").write_text("mine"),
        {},
        "answers.jsonl exists and is not of distilllens generate, so it is not replaced",
    ),
    "output is a link": (
        lambda p: Path("answers.jsonl").symlink_to("elsewhere"),
        {},
        "answers.jsonl is a symbolic link",
    ),
    "a foreign part": (
        lambda p: Path("answers.jsonl.part").write_text("mine\n"),
        {},
        "answers.jsonl.part is in the place of our unfinished answers, and is none",
    ),
    "a damaged part": (
        lambda p: Path("answers.jsonl.part").write_text(
            '{"made_by": "distilllens generate", "set\n{"prompt": 0}\n'
        ),
        {},
        "answers.jsonl.part is in the place of our unfinished answers, and is none",
    ),
    "foreign settings": (
        lambda p: Path("answers.jsonl.settings").write_text("{}"),
        {},
        "answers.jsonl.settings: the entry 'made_by' is missing; move it away",
    ),
    "temperature": (
        None,
        {"flags": ["--temperature", "-1"]},
        "temperature must be a finite number",
    ),
    "top_p": (None, {"flags": ["--top_p", "0"]}, "top_p must be above 0 and at most 1"),
    "batch_size": (None, {"flags": ["--batch_size", "0"]}, "--batch_size must be at least 1"),
    "limit": (None, {"flags": ["--limit", "0"]}, "--limit must be at least 1, got 0"),
    "seeds": (None, {"flags": ["--seeds", "1,1"]}, "--seeds names one twice: 1,1"),
    "backend": (None, {"flags": ["--backend", "tgi"]}, "--backend is one of transformers, vllm"),
    "no vLLM": (
        None,
        {"flags": ["--backend", "vllm"]},
        "vLLM is not installed: pip install 'distilllens[vllm]'",
    ),
    "dtype": (None, {"flags": ["--dtype", "int8"]}, "--dtype is one of auto, float32"),
    "device": (None, {"flags": ["--device", "tpu9"]}, "--device tpu9 cannot be used"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(shop, capsys, case):
    """Status 2, before any weights are loaded; files that were there stay as they were."""
    prepare, change, line = BAD[case]
    if prepare:
        prepare(shop)
    before = {p: p.read_bytes() for p in sorted(shop.rglob("*")) if p.is_file()}
    flags = change.get("flags", [])
    assert generate(*flags, **{k: v for k, v in change.items() if k != "flags"}) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("distilllens: error: ") and line in said[-1]
    assert not any(text.startswith("model: ") for text in said)
    assert {p: p.read_bytes() for p in sorted(shop.rglob("*")) if p.is_file()} == before


@pytest.mark.slow
def test_several_processes_make_the_same_file(shop):
    """Two processes of torchrun, and what one of them left when both were killed."""
    assert generate("--keep_truncated") == 0
    command = [python(), "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["-m", "distilllens", "generate", "--model", "teacher", "--data", "train.jsonl"]
    command += ["--output", "two.jsonl", *QUICK, "--keep_truncated"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert Path("two.jsonl").read_bytes() == Path("answers.jsonl").read_bytes()
    assert done.stderr.count("wrote two.jsonl") == 1 and "2 processes" in done.stderr
    assert {p.name for p in Path().glob("two*")} == {"two.jsonl", "two.jsonl.settings"}
