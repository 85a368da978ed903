"""``distilllens report`` as a user types it, and the page that train leaves."""

import json
import re
import shutil

import pytest
import toys
from toys import recipe

pytest.importorskip("matplotlib")

from distilllens.cli import main

PAGE = "out/report.html"


def train(*flags):
    """The exit status of the run that recipe.yaml describes."""
    return main(["train", "--config", "recipe.yaml", *flags])


def page(folder, name=PAGE):
    return (folder / name).read_text(encoding="utf-8")


def tables(folder, name=PAGE):
    """Plot -> rows, from the page's own data."""
    pattern = r'<script type="application/json" id="data">(.*?)</script>'
    (block,) = re.findall(pattern, page(folder, name), re.S)
    return {plot: table["rows"] for plot, table in json.loads(block)["tables"].items()}


def answers(text):
    """The answers on a page, a list for each question; the reference first."""
    found = []
    for article in text.split("<article")[1:]:
        said = re.findall(r'<h4>(.*?)</h4><p class="said" dir="auto">(.*?)</p>', article, re.S)
        found.append(dict(said))
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with the toys, a recipe and a finished run of it, without a page."""
    folder = tmp_path_factory.mktemp("finished")
    toys.llama(3, 16, positions=128).save_pretrained(folder / "student")
    toys.llama(4, 24, seed=1, positions=128).save_pretrained(folder / "teacher")
    for name in ("student", "teacher"):
        toys.tokenizer().save_pretrained(folder / name)
    rows = [
        {"instruction": e["prompt"], "output": e["completion"].strip()} for e in toys.examples(8)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe(folder, lens_layers="1:2,2:3", learning_rate=0.1, optim="sgd")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["distilllens", "train", "--config", "my recipe.yaml"])
        assert train() == 0
    assert not (folder / PAGE).exists()
    return folder


@pytest.fixture
def copy(finished, tmp_path, monkeypatch):
    """A copy of the finished run, as the working directory."""
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    note = json.loads((folder / "out" / "run.json").read_text())
    assert note["working_directory"] == str(finished)
    (folder / "out" / "run.json").write_text(json.dumps({**note, "working_directory": str(folder)}))
    monkeypatch.chdir(folder)
    return folder


def change(folder, **entries):
    """Overwrite entries of run.json."""
    file = folder / "out" / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def test_train_leaves_the_page(workshop, capsys):
    """With evaluations; running the same command again leaves the page unchanged."""
    flags = {"eval_file": "train.jsonl", "eval_strategy": "steps", "eval_steps": 2}
    recipe(workshop, report=None, **flags)
    assert train() == 0
    assert "the report is out/report.html" in capsys.readouterr().err
    rows = json.loads((workshop / "out" / "trainer_state.json").read_text())["log_history"]
    found = tables(workshop)
    assert {"terms", "pairs", "evaluation", "rate", "speed", "gradient", "divergence"} <= set(found)
    logged = [row["loss"] for row in rows if "loss" in row]
    shown = [v for what, _, v in found["terms"] if what == "total"]
    assert shown == pytest.approx(logged, rel=1e-5)  # a page has six digits
    evaluated = [row["eval_loss"] for row in rows if "eval_loss" in row]
    shown = [v for what, _, v in found["evaluation"] if what == "total"]
    assert shown == pytest.approx(evaluated, rel=1e-5)
    assert len(logged) == 4 and len(evaluated) == 2
    assert all(row["target_tokens_per_second"] > 0 for row in rows if "loss" in row)
    before = (workshop / PAGE).stat().st_mtime_ns
    assert train("--no_report") == 0  # no part of the recipe
    assert "finished run of this recipe" in capsys.readouterr().err
    assert (workshop / PAGE).stat().st_mtime_ns == before


def test_figure_1_and_answers_are_the_models_own(copy):
    """Start and student at every depth, trained pairs, and the greedy answers of each model."""
    import torch
    from transformers import AutoModelForCausalLM

    from distilllens import divergence
    from distilllens.data import load_records, to_training_examples
    from distilllens.lens import divergence_by_depth

    assert main(["report", "out", "--limit", "1"]) == 0
    rows = [row for row in tables(copy)["divergence"] if row[4] == "jsd"]
    assert [row[:4] for row in rows if row[3] == "yes"] == [
        [who, s, t, "yes"] for who in ("start", "student") for s, t in ((1, 2), (2, 3))
    ]
    (example,) = to_training_examples(load_records("train.jsonl")[:1])
    tokenizer = toys.tokenizer()
    prompt = tokenizer(example["prompt"], return_tensors="pt")["input_ids"]
    ids = tokenizer(example["prompt"] + example["completion"] + "<eos>", return_tensors="pt")
    labels = ids["input_ids"].clone()
    labels[0, : prompt.shape[1]] = -100
    models = {"teacher": "teacher", "start": "student", "student": "out"}
    models = {who: AutoModelForCausalLM.from_pretrained(path) for who, path in models.items()}
    for who in ("start", "student"):
        pairs = [tuple(row[1:3]) for row in rows if row[0] == who]
        truth = divergence_by_depth(
            models[who],
            models["teacher"],
            pairs,
            divergence=divergence("jsd"),
            labels=labels,
            input_ids=ids["input_ids"],
        )
        assert [row[5] for row in rows if row[0] == who] == pytest.approx(truth.means, rel=1e-4)
    (said,) = answers(page(copy))
    assert said["reference"] == example["completion"]
    for who, model in models.items():
        text = prompt
        with torch.no_grad():
            while text is prompt or (text.shape[1] < prompt.shape[1] + 64 and text[0, -1] != 0):
                text = torch.cat([text, model(text).logits[:, -1:].argmax(-1)], 1)
        truth = tokenizer.decode(text[0, prompt.shape[1] :], skip_special_tokens=True)
        assert said[who].startswith(truth), who


def test_the_recipe_the_command_and_the_versions(copy):
    """They are shown as set and typed, without secrets."""
    given = {"learning_rate": 0.1, "train_file": ["train.jsonl"], "hub_token": "hf_secret"}
    change(copy, given=given | {"teacher_model_init_kwargs": {"token": "hf_secret"}})
    assert main(["report", "out", "--output", "page.html"]) == 0
    text = page(copy, "page.html")
    assert not (copy / PAGE).exists()
    assert "distilllens train --config &#x27;my recipe.yaml&#x27;" in text
    assert "learning_rate: 0.1" in text and "<dt>torch</dt>" in text
    assert "1 × reverse_kl at the output + 1 × jsd through the lens" in text
    assert "hf_secret" not in text


def test_a_run_of_an_older_version(copy):
    """Without the entries of newer runs, the fields in run.json's recipe are used."""
    note = json.loads((copy / "out" / "run.json").read_text())
    old = {key: note[key] for key in ("recipe", "finished", "command")}
    (copy / "out" / "run.json").write_text(json.dumps(old))
    assert main(["report", "out"]) == 0
    assert "lens_layers: 1:2,2:3" in page(copy) and "divergence" in tables(copy)
    assert "<h3>Versions</h3>" not in page(copy)


def test_a_run_that_is_not_finished(copy, capsys):
    """The page shows the newest complete checkpoint and says so; without one it is refused."""
    change(copy, finished=False)
    (copy / "out" / "checkpoint-4" / "complete.json").unlink()
    assert main(["report", "out"]) == 0
    text = page(copy)
    assert "This run is not finished; the report shows its newest checkpoint, step 2." in text
    assert [step for what, step, _ in tables(copy)["terms"] if what == "total"] == [1, 2]
    assert "divergence" in tables(copy) and answers(text)
    shutil.rmtree(copy / "out" / "checkpoint-2")
    capsys.readouterr()
    refused(capsys, ["out"], "without a whole checkpoint so far")
    assert page(copy) == text


def gone(folder):
    shutil.rmtree(folder / "teacher")
    return (
        "The divergence by depth and the teacher&#x27;s answers are left out: "
        "cannot load the teacher",
        "teacher",
    )


def start_gone(folder):
    shutil.rmtree(folder / "student")
    return "The start is left out: cannot load the student", "start"


def cached(folder):
    note = json.loads((folder / "out" / "run.json").read_text())
    del note["given"]["teacher_model_name_or_path"]
    del note["recipe"]["fields"]["teacher_model_name_or_path"]
    note["given"]["teacher_cache"] = "cache"
    (folder / "out" / "run.json").write_text(json.dumps(note))
    return "names no teacher", "teacher"


def data_gone(folder):
    (folder / "train.jsonl").unlink()
    return "The divergence by depth and the answers are left out: train.jsonl: no such file", None


def model_gone(folder):
    (folder / "out" / "model.safetensors").unlink()
    return "The divergence by depth and the answers are left out: ", None


@pytest.mark.parametrize("lose", [gone, start_gone, cached, data_gone, model_gone])
def test_what_cannot_be_had_costs_a_sentence(copy, lose):
    """The sections that need it are left out; the others are shown."""
    message, who = lose(copy)
    assert main(["report", "out"]) == 0
    text = page(copy)
    assert message in text and "terms" in tables(copy)
    if who is None:
        assert not answers(text) and "divergence" not in tables(copy)
    else:
        assert answers(text) and who not in answers(text)[0]
        assert ("divergence" in tables(copy)) == (who == "start")


def test_a_teacher_that_has_changed_is_named(copy):
    """The current teacher is used, and the page says that its weights may have changed."""
    toys.llama(4, 24, seed=5, positions=128).save_pretrained(copy / "teacher")
    assert main(["report", "out"]) == 0
    assert "The weights of the teacher teacher may have changed" in page(copy)
    assert "The weights of the student" not in page(copy)


def test_fine_tuning_without_a_teacher(workshop):
    """The start is random weights from the same seed; no teacher is reported missing."""
    from distilllens.workflows.run_models import _ModelLoader

    config = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128}
    recipe(
        workshop,
        model_name_or_path=None,
        teacher_model_name_or_path=None,
        student_config=config,
        tokenizer_name_or_path="student",
        cross_entropy_weight=1,
        learning_rate=0.0,
        seed=7,
        report=None,
    )
    assert train() == 0
    assert "left out" not in page(workshop) and "divergence" not in tables(workshop)
    assert list(answers(page(workshop))[0]) == ["reference", "start", "student"]
    fields = {"student_config": config, "seed": 7}
    loader = _ModelLoader(workshop / "out", {}, fields, workshop, False)
    start, after = loader.start(toys.tokenizer()), loader.student()
    after.requires_grad_(True)  # loaded to be read
    assert toys.drift(toys.weights(start), toys.weights(after)) == 0.0  # at rate 0 nothing moves


def test_an_adapter_has_a_page(workshop):
    """A run that trained an adapter is read through its base."""
    pytest.importorskip("peft")
    recipe(workshop, report=None, use_peft=True, lora_target_modules=["q_proj", "v_proj"])
    assert train() == 0
    assert "left out" not in page(workshop)
    assert "divergence" in tables(workshop) and answers(page(workshop))


def test_stories_are_read_and_not_asked(workshop):
    """Plain text has no questions: the page shows the divergence alone."""
    (workshop / "story.txt").write_text("the cat sat\n<|endoftext|>\na dog ran on a hill\n")
    recipe(workshop, report=None, train_file="story.txt")
    assert train() == 0
    assert "divergence" in tables(workshop) and answers(page(workshop)) == []
    assert "left out" not in page(workshop) and "Sample answers" not in page(workshop)


def test_without_matplotlib_the_run_is_whole(workshop, capsys, monkeypatch):
    """A page that cannot be drawn gives one warning line; the status is 0, the model is saved."""
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    recipe(workshop, report=None)
    assert train() == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "distilllens: " in line]
    assert len(lines) == 1
    assert "warning: no report of out: " in lines[0] and "distilllens[plot]" in lines[0]
    assert (workshop / "out" / "model.safetensors").exists() and not (workshop / PAGE).exists()
    refused(capsys, ["out"], "pip install 'distilllens[plot]'")


def test_only_the_first_process_makes_the_page(monkeypatch):
    """The other processes write no page."""
    from types import SimpleNamespace

    from distilllens.workflows import train

    made = []
    job = SimpleNamespace(report=True)
    args = SimpleNamespace(
        output_dir="nowhere", trust_remote_code=False, push_to_hub=False, ddp_timeout=1800
    )
    monkeypatch.setattr(train, "check_job", lambda *_: None)
    monkeypatch.setattr(train.train_inputs, "say_idle", lambda *_: None)
    monkeypatch.setattr(train, "_run", lambda *_: "done")
    monkeypatch.setattr(train, "_write_report", lambda *call: made.append(call) or "a page")
    for rank, count in (("1", 0), ("0", 1)):
        monkeypatch.setenv("RANK", rank)
        line = train.run_job(job, None, args, {})
        assert line == ("done\na page" if count else "done") and len(made) == count


def test_the_command_is_what_a_shell_takes(workshop, monkeypatch):
    """Quoted where it must be, with torchrun's part, and without the hub's token."""
    from distilllens.workflows.provenance import command_line

    words = ["--config", "my recipe.yaml", "--hub_token", "hf_a", "--hub-token=hf_b", "--seed", "3"]
    monkeypatch.setattr("sys.argv", ["/bin/distilllens", "train", *words])
    quoted = "train --config 'my recipe.yaml' --hub_token '***' '--hub-token=***' --seed 3"
    assert command_line() == f"distilllens {quoted}"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert command_line() == f"torchrun --nproc_per_node 2 -m distilllens {quoted}"


def test_a_question_of_every_kind_of_record():
    """Prompt, displayed question and reference; plain text has no question."""
    from distilllens.workflows.run_models import _question

    def said(role, content):
        return {"role": role, "content": content}

    ask, reply = said("user", "why?"), said("assistant", "so")
    alpaca = {"instruction": "Add.", "input": "1 2", "output": ["3", "three"]}
    prompt, *shown = _question(alpaca)
    assert prompt.endswith("1 2\n\n### Response:\n") and shown == ["Add.\n1 2", "3", {}]
    assert _question({"prompt": "a", "completion": " b"}) == ("a", "a", " b", {})
    assert _question({"messages": [ask, reply]}) == ([ask], "why?", "so", {})
    assert _question({"prompt": [ask], "completion": [reply]}) == ([ask], "why?", "so", {})
    tools = {"tools": [{"name": "search"}]}
    assert _question({"messages": [ask, reply], **tools}) == ([ask], "why?", "so", tools)
    assert _question({"messages": [ask]}) is None and _question({"messages": [reply]}) is None
    assert _question({"text": "a"}) is None


def test_a_diverged_student_has_a_page(copy):
    """NaN weights: the log is shown, and a sentence says what is left out."""
    import torch
    from safetensors.torch import load_file, save_file

    file = copy / "out" / "model.safetensors"
    weights = {name: torch.full_like(w, torch.nan) for name, w in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    assert main(["report", "out"]) == 0
    assert "terms" in tables(copy) and "left out: " in page(copy)
    assert answers(page(copy)) == []


def refused(capsys, argv, message):
    """Assert status 2 and one line with the message."""
    assert main(["report", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err, err


BAD = {
    "no flag value": (["out", "--limit", "0"], "--limit must be at least 1, got 0"),
    "nowhere": (["nowhere"], "nowhere does not exist"),
    "a file": (["train.jsonl"], "train.jsonl is a file"),
    "a model": (["teacher"], "teacher holds no run of distilllens train"),
    "a folder as page": (["out", "--output", "teacher"], "--output teacher is a folder"),
    "no folder": (["out", "--output", "no/page.html"], "there is no folder no"),
    "a second run": (["out", "out"], "unrecognized arguments: out"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(finished, monkeypatch, capsys, name):
    """Status 2, one line, no page."""
    monkeypatch.chdir(finished)
    refused(capsys, *BAD[name])
    assert not (finished / PAGE).exists()


@pytest.mark.parametrize("text", ['{"log_history": [{"st', "[]", '{"log_history": [1]}', None])
def test_half_a_log_is_refused(copy, capsys, text):
    """A trainer_state.json that is truncated, invalid or missing; the old page stays."""
    (copy / PAGE).write_text("old")
    file = copy / "out" / "trainer_state.json"
    file.unlink() if text is None else file.write_text(text)
    refused(capsys, ["out"], "out/trainer_state.json cannot be read")
    assert page(copy) == "old" and not list((copy / "out").glob("*.part"))


@pytest.mark.parametrize("text", ["{", "[]", '{"recipe": []}', '{"recipe": {"fields": 3}}'])
def test_half_a_note_is_no_run(copy, capsys, text):
    """A run.json that is truncated or invalid."""
    (copy / "out" / "run.json").write_text(text)
    refused(capsys, ["out"], "out holds no run of distilllens train")


DAMAGED = {
    "a command": ({"command": 3}, "out/run.json: the entry 'command' is 3; it must be text"),
    "a version": (
        {"versions": {"torch": 2.13}},
        "out/run.json: the entry 'versions.torch' is 2.13; it must be text",
    ),
    "fields": ({"given": ["seed"]}, "the entry 'given' is [\"seed\"]; it must be an object"),
    "a weight": (
        {"given": {"lens_weight": "much"}},
        "out/run.json: recipe.fields or given: the entry 'lens_weight' is \"much\"; it must be a",
    ),
    "data": ({"given": {"train_file": [5]}}, "the entry 'train_file[0]' is 5; it must be text"),
    "a student": ({"given": {"student_config": "gpt2"}}, "the entry 'student_config' is"),
    "a number that is none": ({"given": {"seed": float("nan")}}, "the entry 'seed' is NaN"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_entry_is_named(copy, capsys, name):
    """With the file, what it holds and what it must be; no page is written."""
    entries, message = DAMAGED[name]
    change(copy, **entries)
    refused(capsys, ["out"], message)
    assert not (copy / PAGE).exists()


def test_a_page_of_others_stays(copy, capsys):
    """By name or in the place of the run's own; only our pages are replaced."""
    (copy / "thesis.html").write_text("<html>mine</html>")
    refused(capsys, ["out", "--output", "thesis.html"], "thesis.html exists and is no page of")
    (copy / PAGE).write_text("<html>mine</html>")
    refused(capsys, ["out"], "out/report.html exists and is no page of distilllens")
    assert page(copy) == page(copy, "thesis.html") == "<html>mine</html>"
