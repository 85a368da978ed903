"""Flags of a training job: mappings, and typos that are answered before torch is imported."""

import os
import subprocess
import sys
import time

import pytest
from toys import recipe

from distilllens.cli import main
from distilllens.cli.train_arguments import make_parser, parse
from distilllens.cli.train_flags import fields_of, flag_parser, merged, split_flags
from distilllens.workflows.field_table import Field, read_table

# Flag -> its words, the mapping that is read.
MAPPINGS = {
    "teacher_model_init_kwargs": ("{dtype: float32}", {"dtype": "float32"}),
    "student_config": (
        "{model_type: gpt2, n_layer: 4, ids: [1, 2]}",
        {"model_type": "gpt2", "n_layer": 4, "ids": [1, 2]},
    ),
    "eval_generate_kwargs": ('{"greedy": true, "top_p": 9e-1}', {"greedy": True, "top_p": 0.9}),
    "lr_scheduler_kwargs": ("{min_lr: 1e-6}", {"min_lr": 1e-6}),
    "gradient_checkpointing_kwargs": ("use_reentrant: false", {"use_reentrant": False}),
    "model_init_kwargs": ("{revision: 2024-01-31}", {"revision": "2024-01-31"}),
    "liger_kernel_config": ('{"rope": false}', {"rope": False}),
    "lens_divergence_kwargs": ("{}", {}),
    "output_divergence_kwargs": ("{beta: 5.0e-1}", {"beta": 0.5}),
}


@pytest.fixture(scope="module")
def parser():
    """The parser of the table."""
    return flag_parser("train", "", read_table().fields)


def read(parser, *flags, **recipe):
    return merged(parser, {"output_dir": "out", **recipe}, list(flags))


def test_every_mapping_can_be_a_flag(parser):
    """YAML, of which JSON is a part: every field of ours, TRL's and transformers' that is one."""
    named = {name for name, action in fields_of(parser).items() if dict in action.kinds}
    for name in named:
        assert read(parser, f"--{name}", "{a: {b: [1, x]}}")[name] == {"a": {"b": [1, "x"]}}
    for name, (text, value) in MAPPINGS.items():
        assert name in named
        assert read(parser, f"--{name}", text)[name] == value
        assert read(parser, f"--{name.replace('_', '-')}={text}")[name] == value
        assert read(parser, **{name: text})[name] == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{a: 1", "--lr_scheduler_kwargs: broken YAML: "),
        ("{a: 1:20}", "--lr_scheduler_kwargs: YAML reads 1:20 as the number 80; write it in quo"),
        ("{a: 1, a: 2}", "--lr_scheduler_kwargs: a is given twice"),
        ("{a: 010}", "--lr_scheduler_kwargs: YAML reads 010 as the number 8"),
        ("[1, 2]", "--lr_scheduler_kwargs must be a mapping, got '[1, 2]'; write a mapping"),
        ("a=1", "--lr_scheduler_kwargs must be a mapping, got 'a=1'"),
        ("{a: !!python/object:os.system {}}", "--lr_scheduler_kwargs: broken YAML: "),
        ("[" * 5000, "--lr_scheduler_kwargs is nested too deeply"),
    ],
)
def test_a_text_that_is_no_mapping(parser, text, message):
    """One line with the flag."""
    with pytest.raises(ValueError) as refused:
        read(parser, "--lr_scheduler_kwargs", text)
    assert str(refused.value).startswith(message) and "\n" not in str(refused.value)


def test_files_of_mappings_are_left_to_the_libraries(parser):
    """The name of a JSON file, where transformers takes one."""
    for name in ("deepspeed", "fsdp_config", "accelerator_config"):
        assert read(parser, f"--{name}", "ds.json")[name] == "ds.json"


# What is typed after a whole recipe: (words, what is said).
TYPOS = [
    ("--lens_layer 3", "unknown argument --lens_layer; did you mean --lens_layers?"),
    ("--lens-layer=3", "unknown argument --lens-layer; did you mean --lens_layers?"),
    ("-lens_layers 3", "unknown argument -lens_layers; did you mean --lens_layers?"),
    ("--lr 1", "unknown argument --lr; did you mean --learning_rate?"),
    ("--teacher x", "unknown argument --teacher; did you mean --teacher_model_name_or_path?"),
    ("--qqq", "unknown argument --qqq (see distilllens train --help)"),
    ("--", "unknown argument --"),
    ("--lens_layers 2:6 4:12", "--lens_layers takes one value, got 2: 2:6 4:12; write --lens_laye"),
    ("--seed=1 2", "--seed takes one value, got 2: 1 2"),
    ("--student_config {a: b}", "put the mapping in quotes: --student_config '{a: b}'"),
    ("--no_lens_norm false", "--no_lens_norm takes no value, got false"),
    ("--seed 1 --seed 2", "--seed is given twice; give it once"),
    ("--train_file a --train-file b", "give it once, a list as --train_file A B"),
    ("--lens_norm --no_lens_norm", "--lens_norm and --no_lens_norm set the same field"),
    ("--max_steps", "argument --max_steps: expected one argument"),
    ("--learning_rate fast", "argument --learning_rate: must be a number, got 'fast'"),
    ("--lens_norm maybe", "argument --lens_norm: must be true or false, got 'maybe'"),
    ("--save_strategy step", "argument --save_strategy: invalid choice: 'step'"),
    ("--save_strategy step", "did you mean steps?"),
    ("--output_dir=", "--output_dir is empty"),
]


@pytest.mark.parametrize(("words", "message"), TYPOS)
def test_a_typo_is_one_line_that_says_what_is_right(parser, words, message):
    """Whichever spelling of a flag; nothing of what a library calls it."""
    with pytest.raises(ValueError) as refused:
        read(parser, *words.split())
    assert message in str(refused.value)
    assert "\n" not in str(refused.value) and "HfArgumentParser" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recipe.yaml"], "unknown argument recipe.yaml; did you mean --config recipe.yaml?"),
        (["--config", "a.yaml", "b.yaml"], "unknown argument b.yaml"),
        (["--config", "a.yaml", "--config=b.yaml"], "--config is given twice"),
        (["--config"], "--config needs the path of a recipe"),
        (["--config="], "--config needs the path of a recipe"),
        (["-config", "a.yaml"], "unknown argument -config; did you mean --config?"),
    ],
)
def test_the_recipe_is_named_once(capsys, words, message):
    """By --config, and nothing is beside it."""
    assert main(["train", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ("--learning-rate -1e-3", {"learning_rate": -1e-3}),
        ("--bf16", {"bf16": True}),
        ("--bf16 false --packing", {"bf16": False, "packing": True}),
        ("--no-lens-norm", {"lens_norm": False}),
        ("--max_length none", {"max_length": None}),
        ("--report_to none", {"report_to": "none"}),
        ("--report_to tensorboard wandb", {"report_to": ["tensorboard", "wandb"]}),
        ("--train_file a.jsonl b.jsonl", {"train_file": ["a.jsonl", "b.jsonl"]}),
        ("--lora_target_modules q_proj", {"lora_target_modules": ["q_proj"]}),
        ("--pad_to_multiple_of 8", {"pad_to_multiple_of": "8"}),
        ("--include_num_input_tokens_seen true", {"include_num_input_tokens_seen": True}),
    ],
)
def test_values_of_flags(parser, words, values):
    """What TRL's own parser makes of them, and a little more."""
    assert read(parser, *words.split()) == {"output_dir": "out", **values}


def test_the_parser_of_trl_reads_the_same(parser):
    """For one flag of every field that takes a plain value."""
    from trl import ModelConfig, TrlParser

    from distilllens.train.config import DistillLensConfig
    from distilllens.workflows.train_inputs import JobArguments

    samples = {"int": "3", "float": "0.5", "bool": "true", "str": "word"}
    host = TrlParser((JobArguments, ModelConfig, DistillLensConfig))
    for field in read_table().fields:
        # Of these TRL takes fewer values than transformers does, or makes objects at once.
        others = ("parallelism_config", "include_num_input_tokens_seen", "debug")
        if "dict" in (*field.kinds, field.items) or field.name in others:
            continue
        value = str((field.choices or [samples[field.type]])[0])
        theirs = vars(host.parse_known_args([f"--{field.name}", value])[0])[field.name]
        ours = read(parser, f"--{field.name}", value)[field.name]
        alone = theirs[0] if isinstance(theirs, list) and "str" in field.kinds else theirs
        assert ours == alone, field.name


def test_words_belong_to_the_flag_before_them():
    """Negative numbers and texts that begin with a dash are values."""
    words = ["a", "--b", "-1", "-1e-3", "- c", "--d=e", "-f", "--"]
    groups = [["a"], ["--b", "-1", "-1e-3", "- c"], ["--d=e"], ["-f"], ["--"]]
    assert split_flags(words) == groups


def test_flags_reach_the_dataclasses(workshop):
    """With the types that fields have; what is not set has its default."""
    flags = ["--train_file", "train.jsonl", "--use_cpu", "--output_dir", "out"]
    flags += ["--student_config", MAPPINGS["student_config"][0], "--lora_target_modules", "q"]
    found = parse(make_parser("train", ""), {"seed": 3}, flags)
    assert found.job.student_config == MAPPINGS["student_config"][1]
    assert found.training.seed == 3 and found.training.learning_rate == 2e-5
    assert found.model.lora_target_modules == "q"  # as trl.ModelConfig makes it
    assert set(found.given) == {
        *("train_file", "use_cpu", "output_dir", "student_config", "lora_target_modules", "seed")
    }


# (changes to the recipe, flags, what is said): all without torch.
CHEAP = {
    "unknown field": ({"lens_wieght": 1}, "", "did you mean lens_weight?"),
    "field of another tool": ({"lr": 1}, "", "unknown field 'lr'; did you mean learning_rate?"),
    "unknown flag": ({}, "--lens_layer 3", "did you mean --lens_layers?"),
    "divergence": ({"lens_divergence": "kl"}, "", "lens_divergence: unknown divergence 'kl'; know"),
    "layer map": ({}, "--lens_layers 2:8,x", "lens_layers: cannot read the layer map '2:8,x'"),
    "type": ({"learning_rate": "fast"}, "", "learning_rate must be a number, got the text 'fast'"),
    "range": ({"eval_steps": -1}, "", "eval_steps must be above 0, got -1"),
    "data": ({}, "--train_file nowhere.jsonl", "nowhere.jsonl: no such file or folder"),
    "both data": ({"dataset_name": "a"}, "", "either train_file or dataset_name"),
    "recipe": ({}, "--config=nowhere.yaml", "recipe nowhere.yaml does not exist"),
    "teacher": ({}, "--teacher_model_name_or_path ./teach", "no such folder; did you mean teacher"),
    "student": ({}, "--model_name_or_path ./studnet", "cannot load the student './studnet'"),
    "no model": ({}, "--model_name_or_path empty", "the folder has no readable config.json"),
    "folder": ({"output_dir": "train.jsonl"}, "", "output_dir train.jsonl"),
    "dtype": ({"save_dtype": "int4"}, "", "save_dtype is one of auto, float32"),
}


def test_cheap_mistakes_are_found_before_torch_is_imported(workshop):
    """In one process, which must not have it at the end; and nothing is written."""
    (workshop / "empty").mkdir()
    lines = ["import sys", "from distilllens.cli import main"]
    for number, (changes, flags, _) in enumerate(CHEAP.values()):
        recipe(workshop, **changes)
        (workshop / "recipe.yaml").rename(workshop / f"recipe.yaml.{number}")
        config = [] if "--config" in flags else [f"--config=recipe.yaml.{number}"]
        lines.append(f"assert main(['train', *{config}, *{flags.split()}]) == 2")
    lines.append("assert not {'torch', 'transformers', 'trl', 'datasets'} & sys.modules.keys()")
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    assert len(said) == len(CHEAP)
    for line, (_, _, message) in zip(said, CHEAP.values(), strict=True):
        assert message in line
    assert not (workshop / "out").exists()


@pytest.mark.parametrize("command", ["train", "cache"])
def test_help_needs_no_torch(command):
    """Nor two seconds of a processor."""
    code = f"import sys; from distilllens.cli import main; main(['{command}', '--help'])\n"
    code += "assert not {'torch', 'transformers', 'trl'} & sys.modules.keys()"
    before = os.times()
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    after = os.times()
    spent = after.children_user + after.children_system
    spent -= before.children_user + before.children_system
    assert spent < 1.5, f"{spent:.2f} s of a processor, {time.monotonic() - began:.2f} s"


def test_a_field_that_the_table_lacks_is_decided_by_trl(workshop, monkeypatch, capsys):
    """A table of other versions is not the authority: neither on names nor on values."""
    from distilllens.cli import train

    table = read_table()
    names = ("padding_free", "lens_norm", "optim")
    fields = [field for field in table.fields if field.name not in names]
    fields.append(Field("optim", "str", ["str"], choices=["adamw_of_other_versions"]))
    other = table._replace(fields=fields, versions={"trl": "0", "transformers": "0"})
    monkeypatch.setattr(train, "read_table", lambda: other)
    known = {"padding_free": False, "optim": "adamw_torch", "max_steps": 1}
    recipe(workshop, **known)
    flags = ["--config", "recipe.yaml", "--no_lens_norm"]
    found = train.read_arguments(flags, "train", "")
    assert found.given["optim"] == "adamw_torch" and found.given["lens_norm"] is False
    assert main(["train", *flags, "--lens_nrm"]) == 2
    assert "unknown argument --lens_nrm" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("0 3 6", [0, 3, 6]),
        ("15", 15),
        ("0,3,6", "0,3,6"),
        ("[0,3,6]", [0, 3, 6]),
        ("[0.5", "broken YAML"),
    ],
)
def test_fields_of_lists_of_numbers(words, value):
    """A list as words or as YAML; a number or a text alone is one, where the field takes it."""
    kinds = ["int", "list", "none", "str"]
    many = Field("blocks", "str", kinds, nargs="+", items="int")
    output = Field("output_dir", "str", ["str"])
    parser = flag_parser("train", "", [many, output])
    if isinstance(value, str) and "YAML" in value:
        with pytest.raises(ValueError, match="--blocks: broken YAML"):
            read(parser, "--blocks", *words.split())
    else:
        assert read(parser, "--blocks", *words.split())["blocks"] == value


def test_elements_of_lists_have_a_type(tmp_path):
    """Whole numbers, numbers or texts, in the recipe as in the declaration of the field."""
    from dataclasses import dataclass

    from distilllens.train.config_checks import items_of
    from distilllens.workflows.recipe_fields import check_recipe
    from distilllens.workflows.recipe_file import parse_recipe

    @dataclass
    class Declared:
        a: list[int] | str | int | None = None
        b: list[float] | str | None = None
        c: list[str] | None = None
        d: str = ""

    assert items_of(Declared) == {"a": int, "b": float, "c": str}
    kinds = ["list", "str"]
    names = {"a": "int", "b": "float", "c": "str"}
    fields = [Field(name, "str", kinds, nargs="+", items=kind) for name, kind in names.items()]
    actions = fields_of(flag_parser("train", "", fields))
    for text, message in (
        ("a: [1, 2.5]", "must be a list of whole numbers, got 2.5 in it"),
        ("a: [true]", "must be a list of whole numbers, got True in it"),
        ("b: [1, x]", "must be a list of numbers, got 'x' in it"),
        ("c: [a, 1]", "must be a list of texts, got 1 in it"),
    ):
        with pytest.raises(ValueError, match=message):
            check_recipe(parse_recipe(text, "r.yaml"), actions)
    text = "a: [1, 2]\nb: [1, 2.5]\nc: [a]"
    assert check_recipe(parse_recipe(text, "r.yaml"), actions) == {
        "a": [1, 2],
        "b": [1, 2.5],
        "c": ["a"],
    }


def test_the_folder_that_a_command_does_not_use_may_be_named(workshop):
    """In the recipe or as a flag: ``distilllens cache`` has another."""
    from distilllens.cli.train import read_arguments

    recipe(workshop)
    for flags in ([], ["--output_dir", "a"], ["--output-dir=a", "--max_steps", "3"]):
        argv = ["--config", "recipe.yaml", *flags]
        found = read_arguments(argv, "cache", "", output_dir="unused")
        assert found.training.output_dir == "unused"
        assert found.training.max_steps == (3 if len(flags) == 3 else 4)
