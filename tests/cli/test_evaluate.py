"""``distilllens evaluate`` and ``compare``: the commands from files to a table."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toys
from data import tool_records
from evaluate.judge.judge_stub import MODEL, opinion, served
from processes import OTHER_HASHES, kill, python
from transformers import PreTrainedTokenizerFast

from distilllens import DistillLensTrainer
from distilllens.cli import main
from distilllens.data import format_prompt, to_dataset
from distilllens.evaluate.results import Results
from distilllens.generate.transformers_backend import Generation, TransformersBackend

ROOT = Path(__file__).parents[2]
QUICK = ["--seeds", "10,20", "--max_new_tokens", "6", "--batch_size", "3"]


@pytest.fixture
def bench(workshop):
    """The workshop with a benchmark of eight questions, the third with two references."""
    rows = [json.loads(line) for line in (workshop / "train.jsonl").read_text().splitlines()]
    rows[2]["output"] = [rows[2]["output"], "the cat"]
    (workshop / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return workshop


def evaluate(*flags, model="student", output="results"):
    """Run the command on the toy benchmark."""
    quick = [] if "--references_only" in flags else QUICK
    words = toys.with_defaults([*quick, "--output", output], flags)
    return main(["evaluate", "--model", model, "--benchmark", "test.jsonl", *words])


def contents(folder):
    """Every file but the timings, by its path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and path.name != "timings.jsonl"
    }


def rows_of(path):
    """The lines of a JSONL file."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_the_table_is_that_of_the_rows(bench, capsys):
    """It is printed and stored; its means are those of the stored rows."""
    assert evaluate("--teacher", "teacher") == 0
    printed = capsys.readouterr().out
    assert printed.strip() == (bench / "results" / "scores.md").read_text().strip()
    found = json.loads((bench / "results" / "scores.json").read_text())["scores"]
    rows = [row for s in (10, 20) for row in rows_of(f"results/test/student/seed-{s}.jsonl")]
    assert [row["example"] for row in rows] == [*range(8), *range(8)]
    mean = sum(row["rouge_l"] for row in rows) / 16
    assert found["rouge_l"]["test"]["student"]["mean"] == pytest.approx(mean)
    references = rows_of("results/test/student/references.jsonl")
    kl = sum(row["kl"] for row in references) / sum(row["num_tokens"] for row in references)
    assert found["kl"]["test"]["student"]["mean"] == pytest.approx(kl)
    settings = json.loads((bench / "results" / "evaluation.json").read_text())["settings"]
    assert settings["seeds"] == [10, 20] and settings["decoding"]["top_p"] == 1.0
    assert {"model.safetensors", "tokenizer.json"} <= settings["models"]["student"].keys()
    assert settings["versions"]["torch"]


def test_the_teacher_has_a_row(bench, capsys):
    """Its perplexity is that of the teacher as a model; as a model it is marked in its rows."""
    assert evaluate("--greedy", "--teacher", "teacher", output="one") == 0
    assert evaluate("--greedy", model="teacher", output="alone") == 0
    capsys.readouterr()
    assert evaluate("--greedy", "--model", "teacher", "--teacher", "teacher", output="two") == 0
    said = capsys.readouterr().out
    one, alone, two = (
        json.loads((bench / name / "scores.json").read_text()) for name in ("one", "alone", "two")
    )
    expected = alone["scores"]["perplexity"]["test"]["teacher"]
    for found in (one, two):
        row = found["scores"]["perplexity"]["test"]["teacher"]
        assert row["mean"] == pytest.approx(expected["mean"], rel=1e-6)
        assert row["num_examples"] == 8 and found["teachers"] == ["teacher"]
    assert "teacher" not in one["scores"]["rouge_l"]["test"]
    assert "teacher" in two["scores"]["rouge_l"]["test"]
    assert "| teacher - student |" in said and "seeds" not in said


def test_the_end_says_where_things_are_and_what_comes_next(bench, capsys):
    """On standard error; the files are there, and the command to inspect is one."""
    assert evaluate("--greedy", output="my results") == 0
    err = capsys.readouterr().err
    assert "tables: my results/scores.md, unrounded in scores.json" in err
    assert "distilllens compare 'my results' OTHER_RESULTS" in err
    assert "the same command with --teacher DIR" in err
    assert evaluate("--greedy", "--model", "teacher", "--teacher", "teacher", output="two") == 0
    (line,) = (x for x in capsys.readouterr().err.splitlines() if "distilllens inspect" in x)
    command, _ = line.split("distilllens ")[1].split("   #")
    assert "--student student --data test.jsonl" in command
    pytest.importorskip("matplotlib")
    assert main(command.split()) == 0 and (bench / "page.html").exists()
    capsys.readouterr()
    assert main(["compare", "my results", "two"]) == 0
    said = capsys.readouterr()
    assert "tables of each folder: my results/scores.md, two/scores.md" in said.err
    assert "next: distilllens compare 'my results' two --json > comparison.json" in said.err
    assert main(["compare", "two", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) and said.err == ""


def test_trivial_answers_are_noted(bench):
    """With the examples that took part; a second run leaves them as they are."""
    (first, *_) = rows_of("test.jsonl")
    rows = [first, first, {**first, "output": "the day"}, {**first, "output": "of"}]
    (bench / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert evaluate("--greedy", "--limit", "3") == 0
    before = contents("results")
    noted = json.loads(before["evaluation.json"])["settings"]["trivial"]["test"]
    assert noted["exact_match"]["the most frequent reference"] == pytest.approx(200 / 3)
    found = json.loads(before["scores.json"])["trivial"]
    assert found["rouge_l"]["test"] == max(noted["rouge_l"].values())
    assert evaluate("--greedy", "--limit", "3") == 0
    assert contents("results") == before


def test_answers_do_not_depend_on_the_batch(bench):
    """One at a time or all at once: the same texts (no near tie is among them)."""
    evaluate("--batch_size", "1", output="one")
    evaluate("--batch_size", "8", output="eight")
    for seed in (10, 20):
        one, eight = (rows_of(f"{f}/test/student/seed-{seed}.jsonl") for f in ("one", "eight"))
        assert one == eight
        assert not any(row["near_ties"] for row in one)
    first, second = (rows_of(f"one/test/student/seed-{seed}.jsonl") for seed in (10, 20))
    assert [row["answer"] for row in first] != [row["answer"] for row in second]


def test_a_prompt_is_encoded_once_per_model(bench, monkeypatch):
    """For any number of seeds and batches, and once more to score the references."""
    texts = []
    call = PreTrainedTokenizerFast.__call__

    def counted(self, text=None, **settings):
        texts.extend([text] if isinstance(text, str) else text)
        return call(self, text, **settings)

    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", counted)
    assert evaluate("--model", "teacher", "--batch_size", "1", "--max_prompt_length", "40") == 0
    prompts = [format_prompt(row) for row in rows_of("test.jsonl")]
    assert [texts.count(prompt) for prompt in prompts] == [
        2 * 2 * prompts.count(p) for p in prompts
    ]


@pytest.mark.parametrize("written", ["tools", "nothing"])
def test_tools_and_template_settings_reach_every_model_input(bench, monkeypatch, written):
    """Prompts and references are written with them: the perplexity is that of the trainer."""
    records = tool_records.conversations()
    if written == "nothing":
        records = [{key: r[key] for key in ("prompt", "completion")} for r in records]
    (bench / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records))
    tool_records.tokenizer().save_pretrained(bench / "student")
    answered = []
    generate = TransformersBackend.generate

    def watched(self, prompt_ids, *, seed):
        answered.extend(prompt_ids)
        return generate(self, prompt_ids, seed=seed)

    monkeypatch.setattr(TransformersBackend, "generate", watched)
    assert evaluate("--greedy", "--max_prompt_length", "10") == 0
    tokens = sorted(
        len(f"{front} user a b c <eos> assistant".split())
        for front in (tool_records.WRITTEN if written == "tools" else [""] * 4)
    )
    assert sorted(map(len, answered)) == tokens
    found = json.loads((bench / "results" / "scores.json").read_text())["scores"]["perplexity"]
    host = DistillLensTrainer(
        toys.llama(),
        toys.llama(4, 24, seed=1),
        args=toys.config(bench / "out"),
        train_dataset=to_dataset(records),
        eval_dataset=to_dataset(records),
        processing_class=tool_records.tokenizer(),
    )
    expected = math.exp(host.evaluate()["eval_cross_entropy"])
    assert found["test"]["student"]["mean"] == pytest.approx(expected, rel=1e-6)


def test_greedy_needs_no_seeds(bench):
    """One file, and no error over seeds."""
    assert evaluate("--greedy") == 0
    names = {path.name for path in (bench / "results" / "test" / "student").iterdir()}
    assert names == {"greedy.jsonl", "references.jsonl", "calibration.json"}
    found = json.loads((bench / "results" / "scores.json").read_text())["scores"]
    assert found["rouge_l"]["test"]["student"]["error_over_seeds"] is None


class Killed(BaseException):
    """No code of the package catches it, like SIGKILL."""


def test_killed_at_any_batch_it_ends_at_the_same_files(bench, monkeypatch):
    """Interrupted before or during any write of answers, and while results are written."""
    evaluate(model="student", output="whole")
    expected = contents("whole")
    append, finish = Results.append, Results.finish
    for at in range(8):  # 2 seeds of 3 batches, then 2 finished files
        left = [at]

        def dying(call, torn=None, left=left):
            def wrapped(self, unit, *args):
                if left[0] == 0:
                    if torn:
                        torn(self, unit, *args)
                    raise Killed
                left[0] -= 1
                return call(self, unit, *args)

            return wrapped

        def tear(self, unit, rank, rows):
            append(self, unit, rank, rows)
            path = self.of(unit.benchmark, unit.model) / f"{unit.name}.process-{rank}.jsonl"
            path.write_bytes(path.read_bytes()[:-9])

        with monkeypatch.context() as killing, pytest.raises(Killed):
            killing.setattr(Results, "append", dying(append, tear if at % 2 else None))
            killing.setattr(Results, "finish", dying(finish))
            evaluate(output=f"killed{at}")
        evaluate(output=f"killed{at}")
        found = contents(f"killed{at}")
        found["evaluation.json"] = found["evaluation.json"].replace(b"killed%d" % at, b"whole")
        assert found == expected


FILES = ("evaluation", "calibration", "references", "scores", "complete")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "more"),
    [("--greedy", ("greedy.jsonl.", "greedy.process-0.jsonl")), ("--references_only", ())],
)
def test_killed_at_any_file_it_ends_at_the_same_files(bench, monkeypatch, flag, more):
    """Before any file gets its name or is deleted: settings, references, answers, tables, seal."""
    evaluate(flag, output="whole")
    expected, points = contents("whole"), []
    for at in range(99):
        left = [at]

        def dying(call, left=left):
            def wrapped(path, *args, **settings):
                if left[0] == 0:
                    points.append(Path(path).name)
                    raise Killed
                left[0] -= 1
                return call(path, *args, **settings)

            return wrapped

        with monkeypatch.context() as killing:
            killing.setattr("os.replace", dying(os.replace))
            killing.setattr("pathlib.Path.unlink", dying(Path.unlink))
            try:
                evaluate(flag, output=f"killed{at}")
                break
            except Killed:
                pass
        evaluate(flag, output=f"killed{at}")
        found = contents(f"killed{at}")
        found["evaluation.json"] = found["evaluation.json"].replace(b"killed%d" % at, b"whole")
        assert found == expected
    named = " ".join(points)
    assert all(name in named for name in (*FILES, *more))


def test_a_changed_answer_is_named_and_made_again(bench, capsys):
    """One character of a finished file: refused by both commands until it is deleted."""
    evaluate()
    before = contents("results")
    for name in ("seed-10.jsonl", "references.jsonl", "calibration.json"):
        path = bench / "results" / "test" / "student" / name
        path.write_bytes(path.read_bytes().replace(b"0", b"1", 1))
        capsys.readouterr()
        for command in (lambda: main(["compare", "results"]), evaluate):
            assert command() == 2
            error = capsys.readouterr().err.strip().splitlines()[-1]
            assert f"student/{name} has changed since it was finished" in error
            assert "delete the file and repeat this folder's distilllens evaluate" in error
        path.unlink()
        assert main(["compare", "results"]) == 2
        assert "results is not finished" in capsys.readouterr().err
        assert evaluate() == 0
        assert contents("results") == before


def test_answers_of_an_old_version_are_scored_again(bench, monkeypatch):
    """No answer is made again; the scores are those of a new evaluation."""
    rows = [{"instruction": "the cat", "output": "кот"}, {"instruction": "a dog", "output": "猫。"}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (bench / "test.jsonl").write_text(text)
    said = {"seed": 0}

    def generate(self, prompt_ids, *, seed):
        said["seed"] = seed
        return [Generation("кот" if seed == 10 else "猫", 2, True, 0) for _ in prompt_ids]

    monkeypatch.setattr(TransformersBackend, "generate", generate)
    assert evaluate() == 0
    expected = contents("results")
    rows = rows_of("results/test/student/seed-10.jsonl")
    assert [row["rouge_l"] for row in rows] == [100.0, 0.0]
    assert [row["exact_match"] for row in rows_of("results/test/student/seed-20.jsonl")] == [0, 100]
    (bench / "results" / "complete.json").unlink()
    note = json.loads((bench / "results" / "evaluation.json").read_text())
    del note["settings"]["text_metrics"], note["settings"]["judge_reads"]
    (bench / "results" / "evaluation.json").write_text(json.dumps(note))
    for seed in (10, 20):
        path = bench / "results" / "test" / "student" / f"seed-{seed}.jsonl"
        path.write_text(path.read_text().replace("100.0", "0.0"))
    monkeypatch.setattr(Results, "append", None)  # any new answer would fail
    assert evaluate() == 0
    found = contents("results")
    notes = ("evaluation.json", "complete.json")  # the seal has the hash of the settings, too
    assert {n: found[n] for n in found if n not in notes} == {
        n: expected[n] for n in expected if n not in notes
    }
    seals = [json.loads(files["complete.json"])["files"] for files in (found, expected)]
    assert seals[0] == seals[1]
    settings = json.loads(found["evaluation.json"])["settings"]
    assert settings["text_metrics"] == "words of every script"


@pytest.mark.slow
def test_a_process_that_is_killed_goes_on(bench):
    """SIGKILL in the middle of the answers; what goes on hashes texts to other numbers."""
    command = [python(), "-m", "distilllens", "evaluate", "--model", "student"]
    command += ["--benchmark", "test.jsonl", *QUICK[:-1], "1", "--output", "results"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    part = bench / "results" / "test" / "student" / "seed-10.process-0.jsonl"
    until = time.monotonic() + 120
    while not part.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.001)
    kill(process)
    assert part.exists() and not (bench / "results" / "scores.json").exists()
    subprocess.run(command, check=True, capture_output=True, env=os.environ | OTHER_HASHES)
    assert main([*command[3:-1], "whole"]) == 0
    found, whole = contents("results"), contents("whole")
    assert found.keys() == whole.keys()
    assert all(found[name] == whole[name] for name in whole if name != "evaluation.json")


@pytest.mark.slow
def test_two_processes_share_the_prompts(bench):
    """The same files as of one process, but for the command in the note."""
    torchrun = [python(), "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = ["-m", "distilllens", "evaluate", "--model", "student", "--benchmark", "test.jsonl"]
    subprocess.run(
        [*torchrun, *command, *QUICK, "--output", "two"],
        check=True,
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    evaluate(output="one")
    one, two = contents("one"), contents("two")
    assert one.keys() == two.keys()
    assert all(two[name] == one[name] for name in one if name != "evaluation.json")
    processes = {row["process"] for row in rows_of("two/timings.jsonl")}
    assert processes == {0, 1}


def test_a_metric_is_added_without_new_answers(bench, monkeypatch):
    """The answers stay, the references get their KL, the table its column."""
    evaluate()
    before = contents("results")
    monkeypatch.setattr(Results, "append", None)  # any new answer would fail
    assert evaluate("--teacher", "teacher") == 0
    after = contents("results")
    for seed in (10, 20):
        name = f"test/student/seed-{seed}.jsonl"
        assert before[name] == after[name]
    found = json.loads(after["scores.json"])
    assert "kl" in found["scores"] and found["teachers"] == ["teacher"]
    names = json.loads(after["evaluation.json"])["settings"]["names"]
    assert names["teacher"] == "teacher" and names["models"] == {"student": "student"}


def test_a_judge_is_asked_in_both_orders(bench, capsys, monkeypatch):
    """Its verdicts are in the rows and the table, its replies in the folder, its key nowhere."""
    pytest.importorskip("openai")
    monkeypatch.setenv("JUDGE_KEY", "sk-not-to-be-seen")
    with served() as (stub, url):
        judge = ["--judge", MODEL, "--judge_url", url, "--judge_key", "JUDGE_KEY"]
        assert evaluate(*judge) == 0
        asked = stub.num_questions
        assert evaluate(*judge) == 0
        assert stub.num_questions == asked
    said = capsys.readouterr()
    assert "judge stub: " in said.err and "| judge (1-10) |" in said.out
    (row, *_) = rows_of("results/test/student/seed-10.jsonl")
    reference = rows_of("test.jsonl")[0]["output"]
    assert row["judge"] == opinion(row["answer"]) + 0.5  # a point more for whoever comes first
    assert row["judge_reference"] == opinion(reference) + 0.5
    replies = (bench / "results" / "judge.jsonl").read_text()
    assert replies.splitlines() == sorted(replies.splitlines())
    everything = "".join(said) + "".join(str(text) for text in contents("results").values())
    assert "sk-not-to-be-seen" not in everything


def test_a_judge_reads_whole_conversations(bench, monkeypatch):
    """Every turn; verdicts of an older version, on the last turn, are given again."""
    pytest.importorskip("openai")
    monkeypatch.setenv("JUDGE_KEY", "sk-1")
    turns = [
        {"role": "user", "content": "the cat"},
        {"role": "assistant", "content": "the dog"},
        {"role": "user", "content": "a red mat"},
        {"role": "assistant", "content": "a hill"},
    ]
    rows = [{"messages": turns}, {"messages": turns[2:]}]
    (bench / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tool_records.tokenizer().save_pretrained(bench / "student")
    with served() as (stub, url):
        judge = ["--greedy", "--judge", MODEL, "--judge_url", url, "--judge_key", "JUDGE_KEY"]
        assert evaluate(*judge) == 0
        asked = "".join(body["messages"][0]["content"] for body in stub.requests)
        whole = "[user]\nthe cat\n\n[assistant]\nthe dog\n\n[user]\na red mat\n[end "
        assert asked.count(whole) == 2 and asked.count("]\na red mat\n[end ") == 4
        path, count = bench / "results" / "test" / "student" / "greedy.jsonl", stub.num_questions
        verdicts = [row["judge"] for row in rows_of(path)]
        old = [row | {"judge": 9.5} for row in rows_of(path)]
        path.write_text("".join(json.dumps(row) + "\n" for row in old))
        note = json.loads((bench / "results" / "evaluation.json").read_text())
        del note["settings"]["judge_reads"]
        (bench / "results" / "evaluation.json").write_text(json.dumps(note))
        (bench / "results" / "complete.json").unlink()
        assert evaluate("--greedy") == 0
        assert [row["judge"] for row in rows_of(path)] == [9.5, 9.5]
        assert evaluate(*judge) == 0
        assert [row["judge"] for row in rows_of(path)] == verdicts
        assert stub.num_questions == count
    settings = json.loads((bench / "results" / "evaluation.json").read_text())["settings"]
    assert settings["judge_reads"] == "whole conversations"


def test_a_judge_that_is_not_there_stops_before_any_answer(bench, capsys):
    """One line has its address, and no folder is created."""
    pytest.importorskip("openai")
    assert evaluate("--judge", "gpt", "--judge_url", "http://127.0.0.1:9/v1") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "127.0.0.1:9" in error
    assert not (bench / "results").exists()


def test_weights_that_lack_some_are_not_made_up(bench, capsys):
    """transformers would initialise them at random; with whole weights the evaluation runs."""
    whole = (bench / "student" / "model.safetensors").read_bytes()
    model = toys.llama(3, 16)
    weights = {k: v for k, v in model.state_dict().items() if "layers.1.mlp.up" not in k}
    model.save_pretrained(bench / "student", state_dict=weights)
    assert evaluate() == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the weights of student lack model.layers.1.mlp.up_proj.weight" in error
    assert not list((bench / "results").rglob("*.process-*"))
    (bench / "student" / "model.safetensors").write_bytes(whole)
    assert evaluate(output="again") == 0


CODE = """
import pathlib
from transformers import LlamaConfig, LlamaForCausalLM
pathlib.Path({ran!r}).touch()

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_code_of_a_model_runs_only_where_it_is_trusted(bench, capsys, monkeypatch):
    """Without the flag one line and nothing run, for students and for the teacher."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(bench / "cache"))
    monkeypatch.setattr("sys.path", [*sys.path])
    ran = bench / "ran"
    (bench / "student" / "own.py").write_text(CODE.format(ran=str(ran)))
    path = bench / "student" / "config.json"
    config = json.loads(path.read_text()) | {"model_type": "own"}
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    path.write_text(json.dumps(config | {"auto_map": names}))
    for flags, model in (([], "student"), (["--teacher", "student"], "teacher")):
        assert evaluate(*flags, model=model) == 2
        assert "cannot load the model 'student'" in capsys.readouterr().err.splitlines()[-1]
    assert not ran.exists() and not (bench / "results").exists()
    assert evaluate("--trust_remote_code", "--greedy") == 0
    assert ran.exists()


def test_a_budget_needs_prices(bench, capsys):
    """The price of a judge that is not OpenAI's is unknown."""
    pytest.importorskip("openai")
    with served() as (_, url):
        judge = ["--judge", MODEL, "--judge_url", url, "--judge_budget", "2"]
        assert evaluate(*judge) == 2
    assert "--judge_budget needs prices" in capsys.readouterr().err
    assert not (bench / "results").exists()


@pytest.mark.slow
def test_the_mistake_of_one_process_is_said_by_the_first(bench):
    """Two benchmarks, one per process; only the second process meets broken weights."""
    torchrun = [python(), "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    (bench / "more.jsonl").write_text((bench / "test.jsonl").read_text())
    model = toys.llama(4, 24, seed=1)
    model.lm_head.weight.data.fill_(float("nan"))
    model.save_pretrained(bench / "teacher")
    command = ["-m", "distilllens", "evaluate", "--model", "student", "--teacher", "teacher"]
    command += ["--benchmark", "test.jsonl", "more.jsonl", *QUICK, "--output", "two"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*torchrun, *command], capture_output=True, text=True, env=environment, timeout=300
    )
    assert run.returncode != 0
    said = [line for line in run.stderr.splitlines() if line.startswith("distilllens: error")]
    assert len(said) == 1 and "the teacher's logits are NaN" in said[0]
    assert "Connection closed by peer" not in run.stderr


def test_killed_while_a_metric_is_added(bench, monkeypatch, capsys):
    """A folder with the metric in some files reads as before; the same command completes it."""

    class Similarity:  # its own tests have a real one
        def __init__(self, model, device, *, trust_remote_code):
            assert not trust_remote_code

        def __call__(self, answers, references):
            return [len(answer) / 100 for answer in answers]

    monkeypatch.setattr("distilllens.evaluate.sbert.SentenceSimilarity", Similarity)
    evaluate("--sbert", "mini", output="whole")
    evaluate()
    finish, left = Results.finish, [1]

    def dying(self, unit, rows):
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        finish(self, unit, rows)

    with monkeypatch.context() as killing, pytest.raises(Killed):
        killing.setattr(Results, "finish", dying)
        evaluate("--sbert", "mini")
    capsys.readouterr()
    assert main(["compare", "results"]) == 0
    assert "SBERT" not in capsys.readouterr().out
    assert evaluate() == 0
    assert evaluate("--sbert", "mini") == 0
    found, expected = contents("results"), contents("whole")
    assert found.keys() == expected.keys()
    assert all(found[name] == expected[name] for name in found if name != "evaluation.json")
    assert evaluate("--sbert", "another") == 2
    assert "sbert was 'mini' and is now 'another'" in capsys.readouterr().err


def test_compare_reads_folders_again(bench, capsys):
    """Two folders in one table, in Markdown or JSON, for one metric or all."""
    evaluate(output="one")
    evaluate(model="teacher", output="two")
    capsys.readouterr()
    assert main(["compare", "one", "two"]) == 0
    assert "| teacher - student |" in capsys.readouterr().out
    assert main(["compare", "one", "two", "--metric", "rouge_l"]) == 0
    assert "perplexity" not in capsys.readouterr().out
    assert main(["compare", "one", "two", "--json"]) == 0
    comparisons = json.loads(capsys.readouterr().out)["comparisons"]
    likelihood = {"perplexity", "log_perplexity"}
    assert {c["metric"] for c in comparisons} == {"rouge_l", "exact_match", *likelihood}


@pytest.mark.parametrize("flags", [[], ["--references_only"]])
def test_a_longer_reference_than_the_context_is_cut(bench, flags):
    """Only the part within the context is scored."""
    row = {"instruction": "the cat", "output": "the cat sat " * 40}
    (bench / "test.jsonl").write_text(json.dumps(row) + "\n")
    assert evaluate(*flags) == 0
    (row,) = rows_of("results/test/student/references.jsonl")
    assert 0 < row["num_tokens"] < 64  # positions of the student


def no_tokens(folder):
    """Save the student with a tokenizer that has neither padding nor end."""
    tokenizer = toys.tokenizer()
    tokenizer.pad_token = tokenizer.eos_token = None
    model = toys.llama(3, 16)
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    model.save_pretrained(folder / "endless")
    tokenizer.save_pretrained(folder / "endless")


BAD = {
    "no such model": (["--model", "missing"], "cannot load the model 'missing'"),
    "one model twice": (["--model", "./student"], "./student is named twice"),
    "a file for a model": (["--model", "test.jsonl"], "model test.jsonl is a file"),
    "a folder without weights": (["--model", "hollow"], "model hollow holds no weights"),
    "no end and no padding": (["--model", "endless"], "no end-of-sequence"),
    "no such benchmark": (["--benchmark", "trivia"], "no known name; known are dolly, selfinst"),
    "an empty file": (["--benchmark", "empty.jsonl"], "empty.jsonl:1: the file holds no record"),
    "no references": (["--benchmark", "open.jsonl"], "open.jsonl:1: the record has no 'output'"),
    "a prompt beyond the context": (
        ["--max_new_tokens", "60"],
        "test example 0: the prompt has",
    ),
    "no prompt is short enough": (["--max_prompt_length", "3"], "more than --max_prompt_length 3"),
    "seeds that are none": (
        ["--seeds", "ten"],
        "argument --seeds: must be numbers such as 10,20,30",
    ),
    "a seed twice": (["--seeds", "1,1"], "--seeds names one twice"),
    "a negative seed": (["--seeds=-1"], "--seeds must be between 0"),
    "temperature 0": (["--temperature", "0"], "temperature must be a finite number above 0"),
    "top_p of two": (["--top_p", "2"], "top_p must be above 0 and at most 1"),
    "no tokens": (["--max_new_tokens", "0"], "max_new_tokens must be a whole number, at least 1"),
    "batch size 0": (["--batch_size", "0"], "--batch_size must be at least 1"),
    "limit 0": (["--limit", "0"], "--limit must be at least 1"),
    "a budget of nothing": (["--judge_budget=-1"], "--judge_budget must be at least 0"),
    "a tokenizer of another model": (["--model", "wordy"], "its tokenizer is another model's"),
    "a prompt of nothing": (["--benchmark", "silent.jsonl"], "silent example 0: the prompt has no"),
    "a reserved name": (["--benchmark", "average.jsonl"], "a benchmark cannot be called 'average'"),
    "vLLM that is not there": (["--backend", "vllm"], "vLLM is not installed"),
    "no such device": (["--device", "abacus"], "--device abacus cannot be used"),
    "no such dtype": (["--dtype", "float3"], "--dtype is one of auto, float32"),
    "no such backend": (["--backend", "tgi"], "--backend is one of transformers, vllm"),
    "a budget without a judge": (["--judge_budget", "1"], "--judge_budget goes with --judge"),
    "another tokenizer": (["--teacher", "stranger"], "different tokenizers"),
    "no such teacher": (["--teacher", "missing"], "cannot load the model 'missing'"),
    "no such sbert model": (["--sbert", "./missing"], "missing"),
    "a chat without a template": (["--chat"], "chat_template"),
    "a file for a folder": (["--output", "test.jsonl"], "--output test.jsonl is a file"),
    "a folder of other things": (["--output", "student"], "is not empty and holds no evaluation"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(bench, capsys, case):
    """One line with the value and the remedy; nothing is written."""
    flags, message = BAD[case]
    (bench / "hollow").mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (bench / "hollow" / name).write_bytes((bench / "student" / name).read_bytes())
    no_tokens(bench)
    toys.llama().save_pretrained(bench / "stranger")
    toys.tokenizer([*toys.WORDS[::-1]]).save_pretrained(bench / "stranger")
    toys.llama(vocab=9).save_pretrained(bench / "wordy")
    toys.tokenizer().save_pretrained(bench / "wordy")
    (bench / "silent.jsonl").write_text('{"prompt": "", "completion": "the cat"}\n')
    (bench / "average.jsonl").write_text((bench / "test.jsonl").read_text())
    (bench / "empty.jsonl").write_text("")
    (bench / "open.jsonl").write_text('{"instruction": "the cat"}\n')
    before = sorted(str(path) for path in bench.rglob("*"))
    assert evaluate(*flags) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("distilllens: error: ")
    assert message in error
    assert sorted(str(path) for path in bench.rglob("*")) == before


def test_references_alone(bench, capsys):
    """The files of a whole evaluation but for its answers; tables without their columns."""
    assert evaluate("--teacher", "teacher", output="whole") == 0
    capsys.readouterr()
    assert evaluate("--teacher", "teacher", "--references_only") == 0
    said = capsys.readouterr()
    found, whole = contents("results"), contents("whole")
    rows = {f"test/student/{name}" for name in ("references.jsonl", "calibration.json")}
    others = {"evaluation.json", "scores.json", "scores.md", "complete.json"}
    assert found.keys() == rows | others
    assert all(found[name] == whole[name] for name in rows)
    scores, before = (json.loads(files["scores.json"])["scores"] for files in (found, whole))
    assert scores == {name: before[name] for name in ("perplexity", "log_perplexity", "kl")}
    assert said.out.strip() == found["scores.md"].decode().strip()
    for word in ("Rouge", "exact", "cut at", "near ties", "tokens, mean", "trivial", "seeds"):
        assert word not in said.out
    assert "| calibration | model   | ECE " in said.out
    assert "every reference: results/BENCHMARK/MODEL/references.jsonl" in said.err
    settings = json.loads(found["evaluation.json"])["settings"]
    assert settings["references_only"] is True
    assert settings["seeds"] == [] and settings["decoding"] == {}
    assert "references_only" not in json.loads(whole["evaluation.json"])["settings"]


def test_references_alone_are_not_read_again(bench, monkeypatch):
    """A finished folder stays as it is; a teacher is added to one without, as to any other."""
    assert evaluate("--references_only") == 0
    assert evaluate("--references_only", "--teacher", "teacher") == 0
    before = contents("results")
    assert "kl" in json.loads(before["scores.json"])["scores"]
    monkeypatch.setattr(Results, "finish_references", None)  # reading any again would fail
    assert evaluate("--references_only") == 0
    assert evaluate("--references_only", "--teacher", "teacher") == 0
    assert contents("results") == before


def test_a_changed_likelihood_is_named_and_made_again(bench, capsys):
    """As a changed answer is."""
    evaluate("--references_only")
    before = contents("results")
    path = bench / "results" / "test" / "student" / "references.jsonl"
    path.write_bytes(path.read_bytes().replace(b"0", b"1", 1))
    for command in (["compare", "results"], None):
        capsys.readouterr()
        assert (main(command) if command else evaluate("--references_only")) == 2
        assert "references.jsonl has changed since it was" in capsys.readouterr().err
    path.unlink()
    assert main(["compare", "results"]) == 2
    said = capsys.readouterr().err
    assert "results is not finished: reference likelihoods of student on test are missing" in said
    assert evaluate("--references_only") == 0
    assert contents("results") == before


def test_a_folder_has_answers_or_none(bench, capsys):
    """Neither goes on as the other, whatever else differs."""
    evaluate("--greedy", output="whole")
    evaluate("--references_only", output="alone")
    before = contents(bench)
    capsys.readouterr()
    other = "holds an evaluation of other settings: references_only was"
    assert evaluate("--references_only", "--teacher", "teacher", output="whole") == 2
    assert f"whole {other} False and is now True; name" in capsys.readouterr().err
    for flags in ([], ["--greedy"], ["--limit", "2"]):
        assert evaluate(*flags, output="alone") == 2
        assert f"alone {other} True and is now False; name" in capsys.readouterr().err
    assert contents(bench) == before


# Values that are the defaults are refused as well: they were asked for.
OF_ANSWERS = (
    ["--seeds", "10,20,30,40,50"],
    ["--seeds=1"],
    ["--greedy"],
    ["--temperature", "1.0"],
    ["--top_p", "0.9"],
    ["--max_new_tokens", "256"],
    ["--batch_size", "32"],
    ["--backend", "transformers"],
    ["--backend", "vllm"],
    ["--sbert", "mini"],
    ["--judge", "gpt"],
    ["--judge_url", "http://127.0.0.1:9/v1"],
    ["--judge_key", "OPENAI_API_KEY"],
    ["--judge_budget", "0"],
)


@pytest.mark.parametrize("flags", OF_ANSWERS, ids=" ".join)
def test_flags_of_answers_are_refused_beside_references_only(bench, capsys, flags):
    """By name, before any library is loaded; no model is looked for."""
    before = contents(bench)
    assert evaluate(*flags, "--references_only", model="missing") == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    name = flags[0].partition("=")[0]
    assert f"so {name} would do nothing; leave out that, or --references_only" in error
    assert contents(bench) == before


BAD_REFERENCES = {
    "two flags of answers": (["--greedy", "--sbert", "x"], "so --greedy, --sbert would do nothing"),
    "a value for the flag": (["--references_only=yes"], "--references_only takes no value"),
    "a misspelt flag": (["--reference_only"], "mean --references_only?"),
    "a prompt that fills the context": (
        ["--benchmark", "long.jsonl"],
        "long example 1: the prompt fills the 64 positions of the context, so nothing of its "
        "reference is left; leave it out, as by --max_prompt_length 63",
    ),
    "a reference of another vocabulary": (
        ["--model", "wordy", "--benchmark", "last.jsonl"],
        "last example 0: the prompt with its reference has token",
    ),
    "no prompt is short enough": (["--max_prompt_length", "3"], "more than --max_prompt_length 3"),
    "no references": (["--benchmark", "open.jsonl"], "open.jsonl:1: the record has no 'output'"),
    "an empty file": (["--benchmark", "empty.jsonl"], "empty.jsonl:1: the file holds no record"),
    "limit 0": (["--limit", "0"], "--limit must be at least 1"),
    "no such dtype": (["--dtype", "float3"], "--dtype is one of auto, float32"),
    "another tokenizer": (["--teacher", "stranger"], "different tokenizers"),
    "no end of a reference": (["--model", "endless"], "no end-of-sequence"),
    "a folder of other things": (["--output", "student"], "is not empty and holds no evaluation"),
}


@pytest.mark.parametrize("case", BAD_REFERENCES)
def test_bad_input_beside_references_only(bench, capsys, case):
    """One line with the value and the remedy; no weights are loaded and nothing is written."""
    flags, message = BAD_REFERENCES[case]
    no_tokens(bench)
    toys.llama().save_pretrained(bench / "stranger")
    toys.tokenizer([*toys.WORDS[::-1]]).save_pretrained(bench / "stranger")
    toys.llama(vocab=len(toys.tokenizer())).save_pretrained(bench / "wordy")
    toys.tokenizer([*toys.WORDS, "zebra"]).save_pretrained(bench / "wordy")
    rows = [{"prompt": "the cat " * n, "completion": "zebra"} for n in (1, 32)]
    (bench / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (bench / "last.jsonl").write_text(json.dumps(rows[0]) + "\n")
    (bench / "empty.jsonl").write_text("")
    (bench / "open.jsonl").write_text('{"instruction": "the cat"}\n')
    before = contents(bench)
    assert evaluate("--references_only", *flags) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("distilllens: error: ") and message in error
    assert contents(bench) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["nowhere"], "nowhere holds no results; name the --output of a distilllens evaluate"),
        (["results", "results"], "results is named twice"),
        (["results", "--metric", "bleu"], "'bleu' is not in these results; they have rouge_l"),
        ([], "the following arguments are required: DIR"),
    ],
)
def test_compare_says_what_is_wrong(bench, capsys, flags, message):
    """One line, status 2."""
    evaluate()
    capsys.readouterr()
    assert main(["compare", *flags]) == 2
    assert message in capsys.readouterr().err
