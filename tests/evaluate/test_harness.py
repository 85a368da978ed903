"""Tasks of lm-evaluation-harness: its figures are ours, and what we make of its samples.

The truth is the model's own forward in float32, and formulas written out here.
"""

import json
import math
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from processes import python
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from distilllens.cli import main
from distilllens.evaluate import answering, harness

CHOICE = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
"""
SAY = """
task: say
dataset_path: json
dataset_kwargs:
  data_files: {test: two.json}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{said}}"
generation_kwargs: {until: ["<eos>"], max_gen_toks: 3, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
  - {metric: bleu, aggregation: bleu, higher_is_better: true}
"""
TEXT = """
task: text
dataset_path: json
dataset_kwargs:
  data_files: {test: two.json}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list:
  - {metric: word_perplexity}
"""
GROUP = """
group: both
task: [two, three]
aggregate_metric_list:
  - {metric: acc, weight_by_size: true}
"""


def documents(num, choices, seed):
    """Questions with an answer each, of the toys' words."""
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(num):
        words = [str(word) for word in draw.choice(toys.WORDS, 6 + choices, replace=False)]
        question, said = " ".join(words[: draw.integers(3, 7)]), words[6:]
        label = int(draw.integers(choices))
        rows.append({"question": question, "choices": said, "label": label, "said": said[label]})
    return rows


def write(path, rows):
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def bench(workshop):
    """The workshop with a second student, and tasks of local files."""
    pytest.importorskip("lm_eval", reason="needs pip install 'distilllens[lm-eval]'")
    toys.llama(2, 16, seed=5).save_pretrained("other")
    toys.tokenizer().save_pretrained("other")
    write(workshop / "two.json", documents(14, 2, 1))
    write(workshop / "three.json", documents(6, 3, 2))
    (workshop / "tasks").mkdir()
    for name, text in {
        "two": CHOICE.format(name="two", data="two.json") + "tag: short\n",
        "three": CHOICE.format(name="three", data="three.json"),
        "say": SAY,
        "text": TEXT,
        "both": GROUP,
    }.items():
        (workshop / "tasks" / f"{name}.yaml").write_text(text)
    return workshop


def evaluate(*flags, tasks="two", models=("student",), output="results"):
    """Run the command on tasks of the folder."""
    defaults = ["--lm_eval_path", "tasks", "--dtype", "float32", "--output", output]
    words = toys.with_defaults(defaults, flags)
    return main(["evaluate", "--model", *models, "--lm_eval", tasks, *words])


def contents(folder="results"):
    """Every file but the timings, by its path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and path.name != "timings.jsonl"
    }


def rows_of(path):
    """The lines of a JSONL file."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def scores_of(folder="results"):
    """Its scores.json."""
    return json.loads((Path(folder) / "scores.json").read_text())


def log_likelihood(model, tokenizer, before, after):
    """ln p(after | before) of a folder, one token at a time, in float32; before may be nothing."""
    begin = tokenizer(before)["input_ids"] or [tokenizer.eos_token_id]
    total = 0.0
    for token in tokenizer(after)["input_ids"]:
        with torch.no_grad():
            logits = model(torch.tensor([begin])).logits[0, -1].float()
        total += (logits[token] - torch.logsumexp(logits, 0)).item()
        begin = [*begin, token]
    return total


def loaded(name):
    """Model and tokenizer of a folder, in float32."""
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(name)


def correct(name, rows):
    """``(acc, acc_norm)`` of each row, from log-likelihoods; acc_norm is per character."""
    model, tokenizer = loaded(name)
    found = []
    for row in rows:
        each = [log_likelihood(model, tokenizer, row["question"], c) for c in row["choices"]]
        per_character = [one / len(c) for one, c in zip(each, row["choices"], strict=True)]
        found.append([float(np.argmax(one) == row["label"]) for one in (each, per_character)])
    return np.array(found)


def test_accuracy_is_that_of_the_log_likelihoods(bench, capsys):
    """Row by row, in the scores and in the difference of two models; compare shows the same."""
    assert evaluate(models=("student", "other")) == 0
    rows = rows_of("two.json")
    truth = {name: correct(name, rows) for name in ("student", "other")}
    assert 0 < truth["student"][:, 0].mean() < 1 and (truth["student"] != truth["other"]).any()
    found = scores_of()
    for at, metric in enumerate(("acc", "acc_norm")):
        for name, right in truth.items():
            stored = rows_of(f"results/two/{name}/lm_eval.jsonl")
            assert [row[metric] for row in stored] == right[:, at].tolist()
            score = found["scores"][f"lm_eval:{metric}"]["two"][name]
            assert score["mean"] == pytest.approx(right[:, at].mean(), abs=1e-12)
            error = right[:, at].std(ddof=1) / math.sqrt(14)
            assert score["error_over_examples"] == pytest.approx(error, abs=1e-12)
        (row,) = [r for r in found["comparisons"] if r["metric"] == f"lm_eval:{metric}"]
        assert (row["first"], row["second"], row["benchmark"]) == ("other", "student", "two")
        means = truth["other"][:, at].mean() - truth["student"][:, at].mean()
        assert row["difference"] == pytest.approx(means, abs=1e-12)
        assert row["low"] <= means <= row["high"] and row["num_examples"] == 14
    capsys.readouterr()
    assert main(["compare", "results", "--metric", "lm_eval:acc"]) == 0
    table = capsys.readouterr().out
    assert f"{truth['student'][:, 0].mean():.4f} ±" in table and "acc_norm" not in table


def test_answers_are_matched(bench):
    """The greedy continuation is the model's own; exact_match is a mean over the examples."""
    assert evaluate(tasks="say") == 0
    model, tokenizer = loaded("student")
    right = []
    for row, stored in zip(
        rows_of("two.json"), rows_of("results/say/student/lm_eval.jsonl"), strict=True
    ):
        ids, answer = tokenizer(row["question"])["input_ids"], []
        while len(answer) < 3 and (not answer or answer[-1] != tokenizer.eos_token_id):
            logits = model(torch.tensor([ids + answer])).logits[0, -1]
            answer.append(int(logits.argmax()))
        text = tokenizer.decode(answer, skip_special_tokens=True)
        assert stored["resps"][0][0] == text
        right.append(float(text == row["said"]))
    assert scores_of()["scores"]["lm_eval:exact_match"]["say"]["student"]["mean"] == np.mean(right)


def test_a_figure_of_a_whole_task_has_no_interval(bench, capsys):
    """Perplexity and BLEU: the harness's value, no verdict, and the table says why."""
    assert evaluate(tasks="text,say", models=("student", "other")) == 0
    table = capsys.readouterr().out
    rows, found = rows_of("two.json"), scores_of()
    for name in ("student", "other"):
        model, tokenizer = loaded(name)
        total = sum(log_likelihood(model, tokenizer, "", row["question"]) for row in rows)
        words = sum(len(row["question"].split()) for row in rows)
        value = found["lm_eval"]["text"]["lm_eval:word_perplexity (lower is better)"][name]
        assert value == pytest.approx(math.exp(-total / words), rel=1e-5)
        assert f"{value:.4f}" in table
    assert found["lm_eval"]["say"].keys() == {"lm_eval:bleu"}
    assert found["scores"].keys() == {"lm_eval:exact_match"}
    assert "no means of a value for each example" in table


def test_a_group_has_the_examples_of_its_tasks(bench):
    """Its mean weighs each example alike, and its tasks are run one by one."""
    assert evaluate(tasks="both,say") == 0
    assert evaluate(tasks="short", output="tag") == 0
    assert scores_of("tag")["scores"]["lm_eval:acc"].keys() == {"short"}
    right = [correct("student", rows_of(f"{name}.json"))[:, 0] for name in ("two", "three")]
    score = scores_of()["scores"]["lm_eval:acc"]["both"]["student"]
    assert score["num_examples"] == 20
    assert score["mean"] == pytest.approx(np.concatenate(right).mean(), abs=1e-12)
    assert {"two", "three", "say"} < {path.name for path in Path("results").iterdir()}


def test_it_is_the_model_that_was_loaded(bench):
    """A checkpoint with a head of its own keeps it, although its configuration says it is tied."""
    weights = load_file("student/model.safetensors")
    torch.manual_seed(3)
    weights["lm_head.weight"] = torch.randn_like(weights["model.embed_tokens.weight"])
    save_file(weights, "student/model.safetensors", {"format": "pt"})
    assert evaluate() == 0
    model, tokenizer = loaded("student")
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    for row, stored in zip(
        rows_of("two.json"), rows_of("results/two/student/lm_eval.jsonl"), strict=True
    ):
        truth = [log_likelihood(model, tokenizer, row["question"], c) for c in row["choices"]]
        assert [one[0][0] for one in stored["resps"]] == pytest.approx(truth, abs=1e-4)


def test_an_adapter_is_part_of_its_model(bench):
    """Log-likelihoods are those with the adapter, not those of its base."""
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained("student", dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "up_proj"]))
    torch.manual_seed(4)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    adapted.save_pretrained("adapter")
    adapted.eval()
    assert evaluate(models=("adapter",)) == 0
    tokenizer = AutoTokenizer.from_pretrained("student")
    for row, stored in zip(
        rows_of("two.json"), rows_of("results/two/adapter/lm_eval.jsonl"), strict=True
    ):
        truth = [log_likelihood(adapted, tokenizer, row["question"], c) for c in row["choices"]]
        assert [one[0][0] for one in stored["resps"]] == pytest.approx(truth, abs=1e-4)


def test_an_interrupted_evaluation_goes_on(bench, monkeypatch):
    """Tasks that are finished are not run again, and the files are those of one run."""
    models = ("student", "other")
    assert evaluate(tasks="two,say", models=models, output="whole") == 0
    ran, run_task = [], harness.run_task

    def stopping(task, *args, **kwargs):
        if len(ran) == 3:
            raise KeyboardInterrupt
        ran.append(task.name)
        return run_task(task, *args, **kwargs)

    monkeypatch.setattr(answering, "run_task", stopping)
    assert evaluate(tasks="two,say", models=models) == 130
    assert ran == ["two", "say", "two"] and not Path("results/complete.json").exists()
    assert main(["compare", "results"]) == 2
    ran.clear()
    assert evaluate(tasks="two,say", models=models) == 0
    assert ran == ["say"]
    found, whole = contents(), contents("whole")
    for one in (found, whole):  # it has the command
        one["evaluation.json"] = json.loads(one["evaluation.json"])["settings"]
    assert found == whole
    monkeypatch.setattr(answering, "run_task", None)
    assert evaluate(tasks="two,say", models=models) == 0


def test_tasks_are_added_to_an_evaluation(bench, monkeypatch):
    """Answers and tasks that are there stay as they are; left out later, they are still shown."""
    quick = ["--benchmark", "train.jsonl", "--seeds", "1", "--max_new_tokens", "4"]
    base = ["evaluate", "--model", "student", "--output", "results", "--dtype", "float32", *quick]
    assert main(base) == 0
    assert "lm_eval" not in (Path("results") / "evaluation.json").read_text()
    before = contents()
    assert evaluate(*quick) == 0
    assert evaluate(*quick, tasks="two,say") == 0
    after = contents()
    kept = [name for name in before if name.startswith("train/")]
    assert kept and all(after[name] == before[name] for name in kept)
    assert main(base) == 0
    assert evaluate(*quick, tasks="say") == 0
    assert contents() == after
    found = scores_of()["scores"]
    assert {"rouge_l", "lm_eval:acc", "lm_eval:exact_match"} < found.keys()
    assert found["rouge_l"].keys() == {"train"} and found["lm_eval:acc"].keys() == {"two"}


def test_a_task_that_was_not_finished_must_be_named(bench, capsys, monkeypatch):
    """A later command without it would show half of it."""
    quick = ["--benchmark", "train.jsonl", "--seeds", "1", "--max_new_tokens", "4"]
    base = ["evaluate", "--model", "student", "--output", "results", "--dtype", "float32", *quick]
    with monkeypatch.context() as patch:
        patch.setattr(answering, "run_task", lambda *_, **__: exec("raise KeyboardInterrupt"))
        assert evaluate(*quick) == 130
    assert main(base) == 2
    assert "unfinished --lm_eval two; name it in this command" in capsys.readouterr().err
    assert evaluate(*quick) == 0


def other_document(folder):
    """The label of the last document changes."""
    rows = rows_of(folder / "two.json")
    write(folder / "two.json", [*rows[:-1], {**rows[-1], "label": 1 - rows[-1]["label"]}])


def other_prompt(folder):
    """The task asks in other words."""
    path = folder / "tasks" / "two.yaml"
    path.write_text(path.read_text().replace('"{{question}}"', '"the {{question}}"'))


@pytest.mark.parametrize("change", [other_document, other_prompt])
def test_another_task_of_that_name_is_refused(bench, capsys, change):
    """In the same folder; side by side with another folder, it is left out with a note."""
    assert evaluate(tasks="two,three") == 0
    change(bench)
    assert evaluate(tasks="two,three") == 2
    assert "other settings: lm_eval.two.two.sha256 was" in capsys.readouterr().err
    assert evaluate(tasks="two,three", models=("other",), output="more") == 0
    capsys.readouterr()
    assert main(["compare", "results", "more"]) == 0
    table = capsys.readouterr().out
    assert "two (lm_eval) is left out: the folders have other versions of the task" in table
    assert "| three " in table and "| two " not in table


def test_folders_are_compared_on_the_tasks_of_both(bench, capsys):
    """Moved data and task files are the same task; what one folder lacks is named."""
    assert evaluate(tasks="two,say") == 0
    (bench / "moved").mkdir()
    text = (bench / "tasks" / "two.yaml").read_text().replace("two.json", "moved/same.json")
    (bench / "moved" / "renamed.yaml").write_text(text)
    (bench / "moved" / "same.json").write_bytes((bench / "two.json").read_bytes())
    command = ["evaluate", "--model", "other", "--lm_eval", "two", "--lm_eval_path", "moved"]
    assert main([*command, "--dtype", "float32", "--output", "more"]) == 0
    capsys.readouterr()
    assert main(["compare", "results", "more"]) == 0
    table = capsys.readouterr().out
    assert "other - student" in table
    assert "say (lm_eval) is left out: not every folder has it" in table


def test_a_lower_value_may_be_better(bench):
    """The task says so; the verdict follows, and so does the title."""
    path = bench / "tasks" / "two.yaml"
    wrong = "\n".join(
        [
            "process_results: !function wrong.wrong",
            "metric_list:",
            "  - {metric: wrong, aggregation: mean, higher_is_better: false}",
        ]
    )
    path.write_text(path.read_text() + wrong)
    (bench / "tasks" / "wrong.py").write_text(
        "def wrong(doc, results):\n"
        "    best = max(range(len(results)), key=lambda i: results[i][0])\n"
        "    return {'wrong': best != doc['label']}\n"
    )
    rows = documents(28, 2, 3)
    found = correct("student", rows)[:, 0].astype(int)
    for row, right in zip(rows, found, strict=True):  # the student is always right
        row["label"] = row["label"] if right else 1 - row["label"]
    write(bench / "two.json", rows)
    assert evaluate(models=("student", "other")) == 0
    key = "lm_eval:wrong (lower is better)"
    assert scores_of()["scores"][key]["two"]["student"]["mean"] == 0
    (row,) = [one for one in scores_of()["comparisons"] if one["metric"] == key]
    assert row["difference"] > 0 and row["verdict"] == "worse"


def test_the_first_documents_only(bench):
    """--limit is the number of documents of each task."""
    assert evaluate("--limit", "3") == 0
    assert [row["doc_id"] for row in rows_of("results/two/student/lm_eval.jsonl")] == [0, 1, 2]
    assert scores_of()["scores"]["lm_eval:acc"]["two"]["student"]["num_examples"] == 3
    assert evaluate() == 2


def test_a_chat_goes_through_the_template(bench):
    """Prompts of tasks are written by the model's template."""
    tokenizer = toys.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}the {{ m['content'] }} and {% endfor %}"
    tokenizer.save_pretrained("student")
    assert evaluate("--chat") == 0
    row, *_ = rows_of("results/two/student/lm_eval.jsonl")
    assert row["arguments"][0][0] == f"the {row['doc']['question']} and "


def test_cut_prompts_are_said(bench, capsys):
    """A document beyond the model's context loses its beginning, as the harness does it."""
    rows = rows_of("two.json")
    rows[1]["question"] = " ".join(toys.WORDS * 4)
    write(bench / "two.json", rows)
    assert evaluate() == 0
    error = capsys.readouterr().err
    assert "warning: lm_eval task two: Combined length of context (80)" in error
    assert "Truncating 18 tokens from the left" in error and "already-initialized" not in error


def no_metric(name):
    """A task without a metric."""
    return CHOICE.format(name=name, data="two.json") + "metric_list: [{metric: bypass}]\n"


BAD = {
    "an unknown task": (["three,tex"], "harness has no such task; did you mean text?"),
    "a task twice": (["two,two"], "--lm_eval names two twice"),
    "a task and its tag": (["two", "short"], "two and short both hold the task two; name it once"),
    "an empty name": (["two,"], "--lm_eval two, has an empty name"),
    "vLLM": (["two", "--backend", "vllm"], "--lm_eval runs with --backend transformers"),
    "no folder": (["two", "--lm_eval_path", "nowhere"], "--lm_eval_path nowhere is no folder"),
    "data of the hub": (["remote"], "--lm_eval remote: the task or its data set cannot be loaded"),
    "no data": (["lost"], "--lm_eval lost: the task or its data set cannot be loaded"),
    "no metric": (["silent"], "--lm_eval silent has no metric"),
    "code of the model's": (["unsafe"], "--lm_eval unsafe runs code that a model wrote"),
    "images": (["seen"], "--lm_eval seen asks about images or sound"),
    "a reserved name": (["average"], "a task cannot be called 'average'"),
    "no room for an answer": (["long"], "the lm_eval task long failed: Invalid configuration"),
    "a chat without a template": (["two", "--chat"], "--chat: the tokenizer of student has no"),
    "a teacher without a benchmark": (["two", "--teacher", "teacher"], "--teacher is about a"),
    "a length without prompts": (["two", "--max_prompt_length", "9"], "--max_prompt_length is"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(bench, capsys, monkeypatch, case):
    """With the task and the remedy; but for what only the model shows, no model is loaded."""
    flags, message = BAD[case]
    extra = {
        "remote": CHOICE.format(name="remote", data="x").replace("path: json", "path: some/data"),
        "lost": CHOICE.format(name="lost", data="lost.json"),
        "silent": no_metric("silent"),
        "unsafe": CHOICE.format(name="unsafe", data="two.json") + "unsafe_code: true\n",
        "seen": CHOICE.format(name="seen", data="two.json") + "doc_to_image: question\n",
        "average": CHOICE.format(name="average", data="two.json"),
        "long": SAY.replace("task: say", "task: long").replace("toks: 3", "toks: 64"),
    }
    for name, text in extra.items():
        (bench / "tasks" / f"{name}.yaml").write_text(text)
    if case != "no room for an answer":
        monkeypatch.setattr(answering.Answering, "_load", None)
    defaults = ["--model", "student", "--lm_eval_path", "tasks", "--output", "results"]
    assert main(["evaluate", *toys.with_defaults(defaults, ["--lm_eval", *flags])]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("distilllens: error: ") and message in error
    assert case == "no room for an answer" or not Path("results").exists()


DAMAGE = {
    "a row that is gone": (lambda lines: lines[:-1], "doc_id 13 is missing (1 of 14 are)"),
    "a row twice": (lambda lines: [*lines, lines[0]], ":15: doc_id 0 is there already, on line 1"),
    "a number that is none": (
        lambda lines: [lines[0].replace('"acc": ', '"acc": "x", "was": '), *lines[1:]],
        ":1: acc is 'x'; it must be a number",
    ),
    "no JSON": (lambda lines: ["{", *lines[1:]], ":1: broken JSON"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_file_is_named(bench, capsys, case):
    """With its line, where the seal does not say it already."""
    damage, message = DAMAGE[case]
    assert evaluate() == 0
    path = Path("results/two/student/lm_eval.jsonl")
    path.write_text("\n".join(damage(path.read_text().splitlines())) + "\n")
    assert main(["compare", "results"]) == 2
    assert "two/student/lm_eval.jsonl has changed since it was" in capsys.readouterr().err
    Path("results/complete.json").unlink()
    assert main(["compare", "results"]) == 2
    assert message in capsys.readouterr().err
    path.unlink()
    assert evaluate() == 0  # deleted, it is made again


def test_two_processes_share_the_tasks(bench):
    """The files are those of one process."""
    assert evaluate(tasks="two,say,text", output="one") == 0
    command = [python(), "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["-m", "distilllens", "evaluate", "--model", "student", "--dtype", "float32"]
    command += ["--lm_eval", "two,say,text", "--lm_eval_path", "tasks", "--output", "two-of-them"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    found, one = contents("two-of-them"), contents("one")
    assert found.keys() == one.keys()
    assert {n for n in one if found[n] != one[n]} <= {"evaluation.json"}


def test_without_the_harness(workshop, capsys, monkeypatch):
    """The line says what to install, before anything is loaded."""
    monkeypatch.setattr(harness, "find_spec", lambda _: None)
    assert main(["evaluate", "--model", "x", "--lm_eval", "arc_easy", "--output", "results"]) == 2
    assert "pip install 'distilllens[lm-eval]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "name a --benchmark, or tasks of lm-evaluation-harness with --lm_eval"),
        (["--lm_eval_path", "tasks"], "--lm_eval_path goes with --lm_eval TASK"),
        (["--lm_eval", ","], "--lm_eval , has an empty name"),
    ],
)
def test_nothing_to_do(workshop, capsys, flags, message):
    """Neither a benchmark nor a task."""
    assert main(["evaluate", "--model", "student", "--output", "results", *flags]) == 2
    assert message in capsys.readouterr().err
