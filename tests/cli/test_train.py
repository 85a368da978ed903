"""``distilllens train`` as a user types it: recipes, flags, resume, and ways to get it wrong."""

import json
import math
import shutil

import pytest
import toys
from toys import recipe

from distilllens.cli import main


def test_a_recipe_trains_a_model(workshop, capsys):
    """The final model, its tokenizer, a card and the run's record lie in output_dir."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    recipe(workshop, eval_file="train.jsonl", eval_strategy="steps", eval_steps=4)
    assert main(["train", "--config", "recipe.yaml", "--lens_layers", "1:2"]) == 0
    out = workshop / "out"
    for name in ("model.safetensors", "tokenizer.json", "README.md", "run.json", "checkpoint-4"):
        assert (out / name).exists(), name
    assert not list(out.glob("*.part"))
    assert "`1:2`" in (out / "README.md").read_text()
    model = AutoModelForCausalLM.from_pretrained(out)
    assert toys.drift(toys.weights(toys.llama(3, 16)), toys.weights(model)) > 1e-3
    assert AutoTokenizer.from_pretrained(out).eos_token == "<eos>"
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    assert math.isfinite(history[0]["lens_loss/1:2"])
    assert any("eval_loss" in row for row in history)
    assert "final model and its tokenizer are in out" in capsys.readouterr().err


def test_the_same_recipe_finishes_and_another_is_refused(workshop, capsys):
    """A finished run is left alone; a changed recipe says what differs; display may change."""
    recipe(workshop)
    assert main(["train", "--config", "recipe.yaml"]) == 0
    before = (workshop / "out" / "model.safetensors").stat().st_mtime_ns
    assert main(["train", "--config", "recipe.yaml", "--logging_steps", "2"]) == 0
    assert "finished run of this recipe" in capsys.readouterr().err
    assert main(["train", "--config", "recipe.yaml", "--lens_weight", "0.5"]) == 2
    assert "another recipe: lens_weight was not set and is now 0.5" in capsys.readouterr().err
    (workshop / "train.jsonl").write_text('{"instruction": "the", "output": "cat"}\n')
    assert main(["train", "--config", "recipe.yaml"]) == 2
    assert "data file train.jsonl was" in capsys.readouterr().err
    assert (workshop / "out" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", ["killed while saving", "killed between checkpoints"])
def test_a_killed_run_goes_on_from_the_last_whole_checkpoint(workshop, damage):
    """Killed at step 3 or while it writes a checkpoint, the same command ends at the same bits."""
    recipe(workshop, output_dir="whole")
    assert main(["train", "--config", "recipe.yaml"]) == 0
    recipe(workshop)
    shutil.copytree(workshop / "whole", workshop / "out")
    out = workshop / "out"
    run = json.loads((out / "run.json").read_text()) | {"finished": False}
    (out / "run.json").write_text(json.dumps(run))
    (out / "model.safetensors").unlink()
    if damage == "killed while saving":
        torn = out / "checkpoint-4"
        (torn / "complete.json").unlink()
        (torn / "optimizer.pt").write_bytes((torn / "optimizer.pt").read_bytes()[:100])
    else:
        shutil.rmtree(out / "checkpoint-4")
    assert main(["train", "--config", "recipe.yaml"]) == 0
    whole = (workshop / "whole" / "model.safetensors").read_bytes()
    assert (out / "model.safetensors").read_bytes() == whole


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lens-weight", "0.5"], "lens_weight was not set and is now 0.5"),
        (["--no_lens_norm"], "lens_norm was not set and is now False"),
        (["--dataloader_drop_last", "true"], "dataloader_drop_last was not set"),
    ],
)
def test_every_spelling_of_a_flag_is_part_of_the_recipe(workshop, capsys, flags, message):
    """Dashes, negations and data order: what changes the result is another recipe."""
    recipe(workshop)
    assert main(["train", "--config", "recipe.yaml"]) == 0
    assert main(["train", "--config", "recipe.yaml", *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_retrained_teacher_is_another_recipe(workshop, capsys):
    """The same shapes and other weights in the teacher's folder are noticed."""
    recipe(workshop)
    assert main(["train", "--config", "recipe.yaml"]) == 0
    toys.llama(4, 24, seed=2).save_pretrained(workshop / "teacher")
    assert main(["train", "--config", "recipe.yaml"]) == 2
    assert "the teacher model was" in capsys.readouterr().err


def test_a_run_that_never_began_leaves_the_folder_free(workshop, capsys):
    """After a refusal, or a kill in its first moment, the corrected recipe may use the folder."""
    recipe(workshop, lr_scheduler_type="cosine", lr_scheduler_kwargs={"foo": 1})
    assert main(["train", "--config", "recipe.yaml"]) == 2
    (workshop / "out").mkdir()
    (workshop / "out" / "run.json.7.part").write_text('{"rec')
    recipe(workshop)
    assert main(["train", "--config", "recipe.yaml"]) == 0


def test_other_files_beside_the_data_change_nothing(workshop, capsys):
    """Of a data folder only the data files count."""
    (workshop / "data").mkdir()
    shutil.copy(workshop / "train.jsonl", workshop / "data")
    recipe(workshop, train_file="data")
    assert main(["train", "--config", "recipe.yaml"]) == 0
    (workshop / "data" / "nohup.log").write_text("noise")
    assert main(["train", "--config", "recipe.yaml"]) == 0
    assert "finished run of this recipe" in capsys.readouterr().err


def test_a_torn_checkpoint_is_not_resumed_by_name(workshop, capsys):
    """Named explicitly, a checkpoint must still be whole."""
    recipe(workshop, output_dir="first")
    assert main(["train", "--config", "recipe.yaml"]) == 0
    (workshop / "first" / "checkpoint-2" / "optimizer.pt").write_bytes(b"torn")
    recipe(workshop, resume_from_checkpoint="first/checkpoint-2")
    assert main(["train", "--config", "recipe.yaml"]) == 2
    assert "is torn" in capsys.readouterr().err
    recipe(workshop, output_dir="first", resume_from_checkpoint="false", learning_rate=0.01)
    (workshop / "first" / "run.json").write_text(
        json.dumps(json.loads((workshop / "first" / "run.json").read_text()) | {"finished": False})
    )
    assert main(["train", "--config", "recipe.yaml"]) == 2
    assert "resume_from_checkpoint is false, but" in capsys.readouterr().err


def test_sft_from_random_weights_makes_a_teacher(workshop):
    """No teacher, cross_entropy_weight 1, a student_config: how one makes the teacher."""
    recipe(
        workshop,
        model_name_or_path=None,
        teacher_model_name_or_path=None,
        student_config={
            "model_type": "gpt2",
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 2,
            "n_positions": 64,
        },
        tokenizer_name_or_path="student",
        cross_entropy_weight=1,
        max_prompt_length=60,
    )
    assert main(["train", "--config", "recipe.yaml"]) == 0
    config = json.loads((workshop / "out" / "config.json").read_text())
    assert (config["vocab_size"], config["n_layer"]) == (22, 2)


def test_one_seed_is_one_start(workshop):
    """Random students of one seed are the same model, so that two losses can be compared."""
    student = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    start = {"model_name_or_path": None, "student_config": student, "learning_rate": 0.0}
    start["tokenizer_name_or_path"] = "student"
    found = {}
    for name, changes in {"a": {}, "b": {"lens_weight": 0}, "c": {"seed": 7}}.items():
        recipe(workshop, output_dir=name, **start, **changes)
        assert main(["train", "--config", "recipe.yaml"]) == 0
        found[name] = (workshop / name / "model.safetensors").read_bytes()
    assert found["a"] == found["b"] != found["c"]


def test_a_bf16_student_trains_in_float32(workshop):
    """Its weights are float32 unless dtype says otherwise; the final model is as it was saved."""
    from transformers import AutoConfig

    toys.llama(3, 16).bfloat16().save_pretrained(workshop / "student")
    recipe(workshop)
    assert main(["train", "--config", "recipe.yaml"]) == 0
    assert str(AutoConfig.from_pretrained("out/checkpoint-4").dtype) == "torch.float32"
    assert str(AutoConfig.from_pretrained("out").dtype) == "torch.bfloat16"


# What is wrong: (changes to the recipe, flags, what the one line says).
ANSWERED = {
    "eval_file": "train.jsonl",
    "eval_strategy": "steps",
    "eval_steps": 2,
    "eval_generate": True,
    "eval_generate_kwargs": {"max_new_tokens": 6, "limit": 4},
}


def test_the_best_answers_make_the_final_model(workshop, capsys):
    """Scored at each evaluation; the final weights are of the best, and evaluate agrees on it."""
    recipe(workshop, **ANSWERED, learning_rate=0.1)
    assert main(["train", "--config", "recipe.yaml"]) == 0
    state = json.loads((workshop / "out" / "trainer_state.json").read_text())
    found = {e["step"]: e["eval_rouge_l"] for e in state["log_history"] if "eval_rouge_l" in e}
    assert set(found) == {2, 4} and state["best_metric"] == max(found.values())
    best = workshop / "out" / f"checkpoint-{max(found, key=found.get)}"
    final = (workshop / "out" / "model.safetensors").read_bytes()
    assert final == (best / "model.safetensors").read_bytes()
    flags = ["--seeds", "10", "--max_new_tokens", "6", "--limit", "4", "--output", "results"]
    command = ["evaluate", "--model", "out", "--benchmark", "train.jsonl", *flags]
    assert main(command) == 0
    scores = json.loads((workshop / "results" / "scores.json").read_text())["scores"]
    mean = scores["rouge_l"]["train"]["out"]["mean"]
    assert mean == pytest.approx(state["best_metric"])
    # What decides the final weights is part of the recipe.
    every = ["--eval_steps", "1", "--save_steps", "1"]
    assert main(["train", "--config", "recipe.yaml", *every]) == 2
    assert "eval_steps was 2 and is now 1" in capsys.readouterr().err


BAD = {
    "answers without evaluations": (
        {"eval_generate": True},
        [],
        "eval_generate needs evaluations: set eval_strategy",
    ),
    "answers to nothing": (ANSWERED | {"eval_file": None}, [], "eval_generate needs eval_file"),
    "evaluations of nothing": (
        {"eval_strategy": "steps", "eval_steps": 2},
        [],
        "eval_strategy steps needs eval_file or dataset_test_split",
    ),
    "a folder below a file": ({}, ["--output_dir", "train.jsonl/x"], "train.jsonl is a file"),
    "a folder that cannot be": ({}, ["--output_dir", "/proc/x"], "/proc cannot be written"),
    "answers to no question": (
        ANSWERED | {"train_file": "story.txt", "eval_file": "story.txt"},
        [],
        "evaluation data example 0: a 'text' record has no reference",
    ),
    "answers beyond the context": (
        ANSWERED | {"eval_generate_kwargs": {"max_new_tokens": 64}},
        [],
        "beyond the model's 64 positions",
    ),
    "answers by an unknown setting": (
        ANSWERED | {"eval_generate_kwargs": {"seeds": 3}},
        [],
        "no 'seeds'; did you mean seed",
    ),
    "Rouge-L without answers": (
        {"metric_for_best_model": "rouge_l"},
        [],
        "'rouge_l' is never measured; it needs eval_generate",
    ),
    "unknown field": (
        {"lens_wieght": 1},
        [],
        "unknown field 'lens_wieght'; did you mean lens_weight?",
    ),
    "unknown flag": (
        {"train_file": None},
        ["--lens_wieght", "1"],
        "unknown argument --lens_wieght; did you mean --lens_weight? (see distilllens train",
    ),
    "value of nothing": ({}, ["1"], "unknown argument 1 (see distilllens train --help)"),
    "unknown divergence": ({"lens_divergence": "kl"}, [], "'kl'"),
    "sexagesimal": ({"lens_layers": 128}, [], 'write it in quotes, "2:8"'),
    "number as text": ({"learning_rate": "1e-7"}, [], "write 1.0e-7"),
    "list for a number": ({"lens_weight": [1, 2]}, [], "lens_weight must be a number, got [1, 2]"),
    "text for true": ({"lens_norm": "maybe"}, [], "lens_norm must be true or false, got 'maybe'"),
    "temperature": ({"temperature": 0}, [], "temperature must be above 0"),
    "no share of pairs": (
        {"lens_pair_fraction": 0},
        [],
        "lens_pair_fraction must be above 0 and at most 1, got 0",
    ),
    "too many tokens": (
        {},
        ["--lens_token_fraction", "1.5"],
        "lens_token_fraction must be above 0 and at most 1, got 1.5",
    ),
    "a share of nan": (
        {"lens_token_fraction": math.nan},
        [],
        "lens_token_fraction must be above 0 and at most 1, got nan",
    ),
    "a share in words": (
        {"lens_pair_fraction": "a lot"},
        [],
        "lens_pair_fraction must be a number, got the text 'a lot'",
    ),
    "a share of true": (
        {"lens_token_fraction": True},
        [],
        "lens_token_fraction must be a number, got True",
    ),
    "depth": ({"lens_layers": "1:9"}, [], "teacher depth 9, but the teacher has depths 0 to 4"),
    "unsorted map": ({"lens_layers": "2:3,1:2"}, [], "must rise strictly"),
    "repeated depth": ({"lens_layers": "1:2,1:3"}, [], "must rise strictly"),
    "length": (
        {"max_length": 65, "packing": True, "packing_strategy": "wrapped"},
        [],
        "beyond the student's 64 positions",
    ),
    "no student": ({"model_name_or_path": None}, [], "model_name_or_path"),
    "missing student": ({"model_name_or_path": "nowhere"}, [], "'nowhere'"),
    "missing teacher": ({"teacher_model_name_or_path": "nowhere"}, [], "the teacher 'nowhere'"),
    "no data": ({"train_file": None}, [], "train_file"),
    "missing data": ({"train_file": "nowhere.jsonl"}, [], "nowhere.jsonl"),
    "nothing to learn": ({"teacher_model_name_or_path": None}, [], "cross_entropy_weight"),
    "bad value of a flag": ({}, ["--max_steps", "many"], "must be a whole number, got 'many'"),
    "no output_dir": ({"output_dir": None}, [], "output_dir is missing"),
    "bare no": ({"save_strategy": False}, [], 'write "no" in quotes'),
    "text that is a list": ({"model_name_or_path": ["a"]}, [], "takes one value, got the list"),
    "folder that is a number": ({"output_dir": 3}, [], "output_dir must be text, got 3"),
    "empty list": ({"train_file": []}, [], "train_file is empty"),
    "paths that are numbers": (
        {"train_file": [1, 2]},
        [],
        "train_file must be a list of texts, got 1",
    ),
    "accumulation 0": ({"gradient_accumulation_steps": 0}, [], "gradient_accumulation_steps must"),
    "batch 0": ({}, ["--per-device-train-batch-size=0"], "per_device_train_batch_size must be at"),
    "negative rate": ({"learning_rate": -0.1}, [], "learning_rate must be at least 0, got -0.1"),
    "rate nan": ({"learning_rate": math.nan}, [], "learning_rate must be at least 0, got nan"),
    "scheduler of nothing": (
        {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"foo": 1}},
        [],
        "the run cannot start: TypeError",
    ),
    "teacher of no dtype": (
        {"teacher_model_init_kwargs": {"dtype": "float99"}},
        [],
        "float99",
    ),
    "batch beyond reason": (
        {"per_device_train_batch_size": 10**30},
        [],
        "per_device_train_batch_size must be at least 1 and at most 1048576",
    ),
    "unknown metric": (
        {"metric_for_best_model": "rouge"},
        [],
        "metric_for_best_model 'rouge' is never measured; known: loss, cross_entropy",
    ),
    "a pair that is not compared": (
        {
            "metric_for_best_model": "lens_loss/9:9",
            "load_best_model_at_end": True,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "eval_file": "train.jsonl",
        },
        [],
        "metric_for_best_model 'lens_loss/9:9' is never measured: the pairs are ",
    ),
    "an evaluation of nothing": (
        {"eval_on_start": True},
        [],
        "eval_on_start needs eval_file or dataset_test_split",
    ),
    "two recipes": ({}, ["--config", "recipe.yaml"], "--config is given twice"),
    "splits of a file": ({"dataset_test_split": "test"}, [], "dataset_test_split goes with"),
    "misspelt student": (
        {
            "model_name_or_path": None,
            "student_config": {"model_type": "gpt2", "n_layers": 2},
            "tokenizer_name_or_path": "student",
        },
        [],
        "gpt2 has no setting 'n_layers'; did you mean n_layer?",
    ),
    "wrong parameter": ({}, ["--output_divergence_kwargs", '{"alpha": 1}'], "alpha"),
    "another checkpoint": (
        {},
        ["--resume_from_checkpoint", "teacher"],
        "checkpoint of another model",
    ),
    "no checkpoint": ({}, ["--resume_from_checkpoint", "nowhere"], "is no checkpoint"),
    "cache in the run's folder": (
        {"teacher_cache": "student/../out/cache"},
        [],
        "teacher_cache student/../out/cache lies in output_dir out",
    ),
    "no cache there": (
        {"teacher_cache": "somewhere", "teacher_model_name_or_path": None},
        [],
        "teacher_cache somewhere does not exist; write one with distilllens cache",
    ),
    "adapter of nothing": (
        {
            "model_name_or_path": None,
            "student_config": {"model_type": "gpt2"},
            "tokenizer_name_or_path": "student",
            "use_peft": True,
        },
        [],
        "use_peft trains an adapter for existing weights",
    ),
    "student of no kind": (
        {
            "model_name_or_path": None,
            "student_config": {"model_type": "gpt7"},
            "tokenizer_name_or_path": "student",
        },
        [],
        "student_config is not valid",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_status_2(workshop, capsys, name):
    """One line on standard error, status 2, and no output folder."""
    changes, flags, message = BAD[name]
    (workshop / "story.txt").write_text("the cat sat on the mat")
    recipe(workshop, **changes)
    assert main(["train", "--config", "recipe.yaml", *flags]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1
    assert message in lines[0]
    assert not (workshop / "out").exists()


BAD_DATA = {
    "no output": (
        '{"instruction": "the", "output": "cat"}\n{"instruction": "the"}\n',
        "train.jsonl:2",
    ),
    "broken JSON": ('{"instruction": "the", "output": "cat"}\n{"instru\n', "train.jsonl:2"),
    "empty": ("", "train.jsonl"),
    "blank": ("\n\n", "train.jsonl"),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data_names_file_and_line(workshop, capsys, name):
    """The complaint says where."""
    text, where = BAD_DATA[name]
    recipe(workshop)
    (workshop / "train.jsonl").write_text(text)
    assert main(["train", "--config", "recipe.yaml"]) == 2
    assert where in capsys.readouterr().err
    assert not (workshop / "out").exists()


BAD_RECIPES = {
    "broken YAML": ("a: [1, 2\nb: 3\n", "recipe.yaml:2: broken YAML"),
    "no mapping": ("- 1\n- 2\n", "must be a mapping"),
    "empty": ("", "must be a mapping"),
}


@pytest.mark.parametrize("name", BAD_RECIPES)
def test_bad_recipes(workshop, capsys, name):
    """A file that is no recipe says so before anything heavy loads."""
    text, message = BAD_RECIPES[name]
    (workshop / "recipe.yaml").write_text(text)
    assert main(["train", "--config=recipe.yaml"]) == 2
    assert message in capsys.readouterr().err


def test_bad_folders(workshop, capsys):
    """Broken UTF-8, a missing recipe, an output folder that is a file or holds other things."""
    assert main(["train", "--config", "nowhere.yaml"]) == 2
    assert "recipe nowhere.yaml does not exist" in capsys.readouterr().err
    (workshop / "recipe.yaml").write_bytes(b"output_dir: \xff\n")
    assert main(["train", "--config", "recipe.yaml"]) == 2
    assert "not UTF-8" in capsys.readouterr().err
    recipe(workshop, output_dir="student")
    assert main(["train", "--config", "recipe.yaml"]) == 2
    assert "not empty and holds no run" in capsys.readouterr().err
    recipe(workshop, output_dir="train.jsonl")
    assert main(["train", "--config", "recipe.yaml"]) == 2
    assert "is a file" in capsys.readouterr().err


def test_unknown_commands_and_help(capsys):
    """The door lists the commands."""
    assert main(["distil"]) == 2
    assert "invalid choice: 'distil'" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    assert "distilllens train --config recipe.yaml" in text
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert "examples:" in text
    assert "--lens_layers" in text


@pytest.mark.parametrize("damage", ["deleted", "flipped"])
def test_a_damaged_final_model_is_made_again(workshop, capsys, damage):
    """From its last checkpoint, to the same bits; an intact one is left alone."""
    recipe(workshop)
    assert main(["train", "--config", "recipe.yaml"]) == 0
    file = workshop / "out" / "model.safetensors"
    whole = file.read_bytes()
    if damage == "deleted":
        file.unlink()
    else:
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert main(["train", "--config", "recipe.yaml"]) == 0
    said = capsys.readouterr().err
    assert "warning: the final model is damaged, and is made again: " in said
    assert "resuming from out/checkpoint-4" in said
    assert file.read_bytes() == whole
    assert main(["train", "--config", "recipe.yaml"]) == 0
    assert "nothing to do" in capsys.readouterr().err


@pytest.mark.parametrize("second", ["--train_file", "--train-file", "--train_file=b.jsonl"])
def test_a_repeated_flag_is_refused(capsys, second):
    """Its first values would be dropped without a word."""
    assert main(["train", "--train_file", "a.jsonl", second, "b.jsonl"]) == 2
    assert "--train_file is given twice" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "trainer_state.json"])
def test_other_files_of_a_final_model(workshop, capsys, name):
    """A deleted one is made again; an edited one stays, with a warning."""
    recipe(workshop)
    assert main(["train", "--config", "recipe.yaml"]) == 0
    file = workshop / "out" / name
    whole = file.read_bytes()
    file.write_bytes(whole + b"\n")
    assert main(["train", "--config", "recipe.yaml"]) == 0
    said = capsys.readouterr().err
    assert f"warning: {name} changed since the run wrote" in said and "nothing to do" in said
    assert file.read_bytes() == whole + b"\n"
    file.unlink()
    assert main(["train", "--config", "recipe.yaml"]) == 0
    assert f"made again: {name} is missing" in capsys.readouterr().err
    if name != "trainer_state.json":  # it notes how long training took
        assert file.read_bytes() == whole


def test_checkpoints_of_another_run_are_not_resumed_from(workshop, capsys):
    """Somebody copied one here: it is named, and the run ends at its own bits."""
    recipe(workshop, output_dir="other", seed=7)
    assert main(["train", "--config", "recipe.yaml"]) == 0
    recipe(workshop, output_dir="out")
    assert main(["train", "--config", "recipe.yaml"]) == 0
    out, model = workshop / "out", workshop / "out" / "model.safetensors"
    whole = model.read_bytes()
    model.unlink()
    shutil.rmtree(out / "checkpoint-4")
    shutil.copytree(workshop / "other" / "checkpoint-4", out / "checkpoint-4")
    capsys.readouterr()
    assert main(["train", "--config", "recipe.yaml"]) == 0
    said = capsys.readouterr().err
    assert "checkpoint-4 is a checkpoint of another run and not used" in said
    assert model.read_bytes() == whole


def test_a_run_killed_before_its_report_gets_one(workshop, capsys):
    """The same command makes what is missing, and trains nothing."""
    pytest.importorskip("matplotlib")
    recipe(workshop)
    assert main(["train", "--config", "recipe.yaml"]) == 0
    assert not (workshop / "out" / "report.html").exists()
    assert main(["train", "--config", "recipe.yaml", "--report", "true"]) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert (workshop / "out" / "report.html").exists()


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_foreign_thing_in_the_place_of_the_temporary_folder_is_left_alone(workshop, capsys, kind):
    """Its contents are neither moved into the output nor deleted."""
    recipe(workshop)
    mine = workshop / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    assert main(["train", "--config", "recipe.yaml", "--max_steps", "2"]) == 0
    out = workshop / "out"
    run = json.loads((out / "run.json").read_text()) | {"finished": False}
    (out / "run.json").write_text(json.dumps(run))
    if kind == "link":
        (out / "final.part").symlink_to(mine)
    else:
        (out / "final.part").write_text("mine")
    assert main(["train", "--config", "recipe.yaml", "--max_steps", "2"]) == 2
    assert "final.part is in the place of our temporary folder" in capsys.readouterr().err
    assert (mine / "thesis.txt").read_text() == "mine" and not (out / "thesis.txt").exists()


def test_remains_of_an_interrupted_save_are_not_installed(workshop):
    """What a killed save left in the temporary folder is removed before the next one."""
    recipe(workshop)
    assert main(["train", "--config", "recipe.yaml"]) == 0
    out = workshop / "out"
    run = json.loads((out / "run.json").read_text()) | {"finished": False}
    (out / "run.json").write_text(json.dumps(run))
    (out / "final.part").mkdir()
    (out / "final.part" / ".tmpAbCdEf").write_bytes(b"half a model")
    assert main(["train", "--config", "recipe.yaml"]) == 0
    assert not (out / ".tmpAbCdEf").exists() and not (out / "final.part").exists()


def test_a_checkpoint_of_another_recipe_is_named(workshop, caplog):
    """It may be resumed from, by name, and the first difference is told."""
    recipe(workshop, output_dir="kd", lens_weight=0.0)
    assert main(["train", "--config", "recipe.yaml"]) == 0
    recipe(workshop)
    flags = ["--resume_from_checkpoint", "kd/checkpoint-2"]
    assert main(["train", "--config", "recipe.yaml", *flags]) == 0
    assert "kd/checkpoint-2 belongs to a run of another recipe: lens_weight was 0.0" in caplog.text


def test_a_spoilt_configuration_of_the_student_is_named(workshop, capsys):
    """Also where only the model that is made of it refuses it."""
    file = workshop / "student" / "config.json"
    settings = json.loads(file.read_text())
    for change, message in (
        ({"hidden_act": "abc"}, "student/config.json is not valid: KeyError: 'abc'"),
        ({"vocab_size": 1.5}, "student/config.json is not valid: Validation error for field 'voc"),
        ({"architectures": []}, "in its config.json, architectures is []"),
    ):
        file.write_text(json.dumps(settings | change))
        recipe(workshop)
        assert main(["train", "--config", "recipe.yaml"]) == 2
        said = capsys.readouterr().err
        assert message in said and "set tokenizer_name_or_path" not in said


def test_an_unknown_model_type_is_one_short_line(workshop, capsys):
    """Not the list of every model that transformers knows."""
    fields = {"student_config": {"model_type": "llamma"}, "tokenizer_name_or_path": "teacher"}
    recipe(workshop, model_name_or_path=None, **fields)
    assert main(["train", "--config", "recipe.yaml"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "no model_type 'llamma'; did you mean llama?" in error and len(error) < 200


@pytest.mark.parametrize("name", ["checkpoint-2", "trainer_state.json"])
def test_nothing_is_written_through_a_link(workshop, capsys, name):
    """transformers would write into what it leads to."""
    recipe(workshop, max_steps=2)
    assert main(["train", "--config", "recipe.yaml"]) == 0
    out, mine = workshop / "out", workshop / "mine"
    run = json.loads((out / "run.json").read_text()) | {"finished": False}
    (out / "run.json").write_text(json.dumps(run))
    (out / name).rename(mine)
    before = sorted(mine.iterdir()) if mine.is_dir() else mine.read_bytes()
    (out / name).symlink_to(mine)
    assert main(["train", "--config", "recipe.yaml"]) == 2
    assert f"output_dir out: {name} is a symbolic link" in capsys.readouterr().err
    assert before == (sorted(mine.iterdir()) if mine.is_dir() else mine.read_bytes())


@pytest.mark.parametrize("adapter", [False, True])
def test_a_readme_of_others_stays(workshop, caplog, adapter):
    """Beside a run, with and without PEFT, which writes one of its own."""
    recipe(workshop, max_steps=2, use_peft=adapter or None)
    assert main(["train", "--config", "recipe.yaml"]) == 0
    card = workshop / "out" / "README.md"
    assert "with DistillLens" in card.read_text()
    run = json.loads((workshop / "out" / "run.json").read_text()) | {"finished": False}
    for text in (card.read_text().replace("Made", "made"), "my notes"):
        (workshop / "out" / "run.json").write_text(json.dumps(run))
        card.write_text(text)
        assert main(["train", "--config", "recipe.yaml"]) == 0
    assert card.read_text() == "my notes"
    assert "README.md is no model card of distilllens and stays" in caplog.text


def test_names_of_models_are_literal_in_the_card(workshop):
    """Whatever Markdown would make of them."""
    name = "stu|dent`_$x$_"
    (workshop / "student").rename(workshop / name)
    recipe(workshop, max_steps=1, model_name_or_path=name, output_dir="o_ut*")
    assert main(["train", "--config", "recipe.yaml"]) == 0
    card = (workshop / "o_ut*" / "README.md").read_text()
    assert "# o\\_ut\\*\n" in card
    assert "| student started from | `` stu\\|dent`_$x$_ `` |" in card


@pytest.mark.parametrize(
    ("recipe", "flags", "expected"),
    [
        ({"train_file": "a.jsonl", "eval_file": "b.jsonl"}, ["--dataset_name", "org/data"], None),
        (
            {"dataset_name": "org/data", "dataset_test_split": "test"},
            ["--train_file", "a.jsonl"],
            ["a.jsonl"],
        ),
    ],
)
def test_data_of_a_flag_replace_those_of_a_recipe(recipe, flags, expected):
    """Files and data sets exclude each other, and a flag overrides."""
    from distilllens.cli.train_arguments import make_parser, parse

    found = parse(make_parser("train", ""), {"output_dir": "out", **recipe}, flags)
    assert found.job.train_file == expected and not recipe.keys() & found.given.keys()
    assert found.job.dataset_name == (None if expected else "org/data")


def test_both_kinds_of_data_in_one_place_are_refused():
    """Nothing says which is meant."""
    from distilllens.cli.train_arguments import make_parser, parse

    flags = ["--train_file", "a.jsonl", "--dataset_name", "b", "--output_dir", "out"]
    with pytest.raises(ValueError, match="either train_file or dataset_name"):
        parse(make_parser("train", ""), {}, flags)


def test_a_missing_tensorboard_is_named_before_anything_is_loaded(workshop, capsys, monkeypatch):
    """With the extra that installs it."""
    from distilllens.workflows import train

    monkeypatch.setattr(train, "is_tensorboard_available", lambda: False)
    recipe(workshop, report_to="tensorboard")
    assert main(["train", "--config", "recipe.yaml"]) == 2
    err = capsys.readouterr().err
    assert "distilllens[tensorboard]" in err and "loading the tokenizer" not in err
