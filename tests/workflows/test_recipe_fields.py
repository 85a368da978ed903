"""Recipes and the traps of YAML: one line with file and line, or the value that is meant."""

import argparse
import datetime

import pytest

from distilllens.cli import main
from distilllens.cli.train import read_arguments
from distilllens.workflows.recipe_fields import check_recipe
from distilllens.workflows.recipe_file import read_recipe


def read(folder, text):
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    return read_recipe(str(folder / "recipe.yaml"))


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
# What is wrong: (the recipe, the line, what is said of it).
TRAPS = {
    "alias bomb": (BOMB, 4, "more than 10000 values"),
    "alias bomb of merged keys": (
        BOMB.replace("x, ", "{x: 1}, ").replace("x]", "{x: 1}]") + "z: {<<: *i}\n",
        4,
        "more than 10000 values",
    ),
    "a value in itself": ("seed: 1\na: &a [*a]\n", 2, "holds itself by an alias"),
    "a field twice": ("seed: 1\n\nlens_weight: 1\nseed: 2\n", 4, "seed is given twice, first on"),
    "a setting twice": ("a: {b: 1,\n  c: 2,\n  b: 3}\n", 3, "b is given twice, first on line 1"),
    "base 60": ("seed: 1\nmax_steps: 190:20:30\n", 2, "190:20:30 as the number 685230"),
    "a layer map": ("lens_layers: 1:20\n", 1, 'the number 80; write it in quotes, "1:20"'),
    "a layer map in a list": ("lens_layers:\n - 2:8\n", 2, "the number 128; write it in quotes"),
    "base 60 with a point": ("temperature: 1:20.5\n", 1, "1:20.5 as the number 80.5"),
    "octal": ("seed: 010\n", 1, "010 as the number 8"),
    "too large": ("seed: 1\nlearning_rate: 1.0e+999\n", 2, "the number 1.0e+999 is too large"),
    "an exponent in a mapping": (
        "seed: 1\nlr_scheduler_kwargs:\n  min_lr: 1e-6\n",
        3,
        "got the text '1e-6': YAML reads it as text without a decimal point and a sign of the "
        "exponent; write 1.0e-6, or put it in quotes",
    ),
    "too long": ("seed: " + "9" * 5000, 1, "is no number that can be used"),
    "broken": ("seed: 1\nlens_layers: [1\nseed: 2", 3, "broken YAML"),
    "an object": (
        "seed: 1\na: !!python/object:os.system {}",
        2,
        "broken YAML: could not determine",
    ),
}


@pytest.mark.parametrize("name", TRAPS)
def test_traps_are_one_line_with_file_and_line(tmp_path, name):
    """At once, whatever an alias would grow to."""
    text, line, message = TRAPS[name]
    with pytest.raises(ValueError) as refused:
        read(tmp_path, text)
    said = str(refused.value)
    assert f"recipe.yaml:{line}: " in said and message in said
    assert "\n" not in said and len(said) < 400


def test_what_is_written_is_what_is_read(tmp_path):
    """Aliases of a reasonable size, merged keys, dates as text, hexadecimal and 1.0e-7."""
    recipe = read(
        tmp_path,
        "a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nrun_name: 2024-01-31\nseed: 0x10\n"
        "c: {d: '1e-6', e: [1e-6]}\n"
        "rate: 1.0e-7\nzero: 0\nmany: 1_000\ntext: '1:20'\nepochs: 007\n",
    )
    assert recipe.values == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 3, "y": 2},
        "run_name": "2024-01-31",
        "seed": 16,
        "rate": 1e-7,
        "c": {"d": "1e-6", "e": ["1e-6"]},
        "zero": 0,
        "many": 1000,
        "text": "1:20",
        "epochs": 7,
    }
    assert recipe.lines["seed"] == 4 and recipe.where("seed").endswith("recipe.yaml:4")
    import yaml

    assert yaml.safe_load("2024-01-31") == datetime.date(2024, 1, 31)  # PyYAML is left alone


ACTIONS = {
    "save_strategy": argparse.Action([], "save_strategy", type=str, choices=["no", "steps"]),
    "run_name": argparse.Action([], "run_name", type=str),
    "rate": argparse.Action([], "rate", type=float),
    "steps": argparse.Action([], "steps", type=int),
}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("save_strategy: off", 'YAML reads a bare off as false; write "no" in quotes'),
        ("save_strategy: No", 'YAML reads a bare No as false; write "no" in quotes'),
        ("run_name: off", 'YAML reads a bare off as false; write "off" in quotes'),
        ("run_name: 007", 'must be text, got 7; write "007" in quotes'),
        ("rate: 1e-7", "write 1.0e-7"),
        ("rate: 1e7", "write 1.0e+7"),
        ("rate: 1.0e7", "write 1.0e+7"),
        ("rate: '1.0e-7'", "write 1e-07 without quotes"),
        ("rate: 1e999", "must be a number, got the text '1e999'"),
        ("steps: 2.5", "must be a whole number, got 2.5"),
        ("stepps: 2", "unknown field 'stepps'; did you mean steps?"),
    ],
)
def test_fields_are_refused_with_file_and_line(tmp_path, text, message):
    """Each with the word that YAML misreads, or the number as it must be written."""
    recipe = read(tmp_path, f"# a comment\n{text}\n")
    with pytest.raises(ValueError) as refused:
        check_recipe(recipe, ACTIONS)
    assert "recipe.yaml:2: " in str(refused.value) and message in str(refused.value)


def test_the_advice_on_numbers_is_right(tmp_path):
    """What is written as advised is read as that number."""
    assert read(tmp_path, "a: 1.0e-7\nb: 1.0e+7").values == {"a": 1e-7, "b": 1e7}


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("temperature: 0", "recipe.yaml:3: temperature must be above 0"),
        ("label_smoothing_factor: .nan", "recipe.yaml:3: label_smoothing_factor must be finite, g"),
        ("adam_epsilon: .nan", "recipe.yaml:3: adam_epsilon must be at least 0 and at most 1, got"),
        ("logging_steps: .inf", "recipe.yaml:3: logging_steps must be finite, got inf"),
        ("save_steps: 1" + 30 * "0", "recipe.yaml:3: save_steps must be below 2^63"),
        ("seed: -1", "recipe.yaml:3: seed must be at least 0"),
        ("lens_layers: 99999999999", "recipe.yaml:3: lens_layers is the number 99999999999"),
        ("lens_layers: '1:99999999999'", "has the depth '99999999999'"),
    ],
)
def test_values_that_no_run_can_use_are_named_with_file_and_line(workshop, capsys, field, message):
    """Whether a field has bounds of its own or not; a flag is not blamed on the recipe."""
    (workshop / "recipe.yaml").write_text(
        f"train_file: train.jsonl\noutput_dir: out\n{field}\nmodel_name_or_path: student\n"
        "use_cpu: true\nteacher_model_name_or_path: teacher\n"
    )
    assert main(["train", "--config", "recipe.yaml"]) == 2
    assert message in capsys.readouterr().err


# (a line of a recipe, the value that its field gets)
TAKEN = [
    ("max_steps: 2.0", 2),
    ("data_seed: 3.0", 3),
    ("gradient_accumulation_steps: 2.0", 2),
    ("lora_r: 4.0", 4),
    ("max_prompt_length: 4.0", 4),
    ("pad_to_multiple_of: 7", 7),
    ("pad_to_multiple_of: 8.0", 8),
    ("max_length:", None),
    ("dtype:", None),
    ("optim_target_modules: [a, b]", ["a", "b"]),
    ("trackio_static_space_id: false", False),
    ("lens_layers: 3", "3"),
    ("report_to: []", []),
    ("label_names: []", []),
]
EMPTY = (
    "weight_decay max_grad_norm learning_rate seed max_steps num_train_epochs adam_beta1 log_level"
)
EMPTY += " per_device_train_batch_size eval_strategy lens_norm output_divergence lora_r report"
# (a line of a recipe, what is said of it after its field)
REFUSED = [
    *(
        (f"{name}:", " is empty; give it a value, or leave the line out for")
        for name in EMPTY.split()
    ),
    ("lora_r: 4.5", " must be a whole number, got 4.5"),
    ("pad_to_multiple_of: 7.5", " must be a whole number, got 7.5"),
    ("pad_to_multiple_of: 0", ' must be "auto" or a whole number from 1 to'),
    ("pad_to_multiple_of: abc", ' must be "auto" or a whole number from 1 to'),
    ("output_weight: 1.0e+39", " must be at most 3e+38, got 1e+39"),
    ("lens_weight: 1.0e+39", " must be at most 3e+38, got 1e+39"),
    ("cross_entropy_weight: 1.0e+39", " must be at most 3e+38, got 1e+39"),
    ("lens_token_fraction: 1.0e-39", " must be at least lens_weight / 3e+38, got 1e-39 for"),
    ("use_liger_kernel: true", " needs a GPU, and this run is on the CPU; leave it out"),
    ("activation_offloading: true", " needs a GPU, and this run is on the CPU; leave it out"),
    ("chat_template_path: {}", " takes one value, got the mapping {}"),
    ("neftune_noise_alpha: -1", " must be at least 0, got -1"),
    ("adam_beta1: 1.0", " must be at least 0 and below 1, got 1.0"),
    ("output_divergence: abc", ": unknown divergence 'abc'; known: forward_kl,"),
    ("output_divergence_kwargs: {beta: 2}", ": divergence 'reverse_kl' takes no parameter 'beta'"),
    ("lens_divergence_kwargs: {a: 1}", ": divergence 'jsd' takes no parameter 'a'; valid: beta"),
    ("lens_beta: 99999999", " must be above 0 and below 1, got 99999999"),
    ("lens_layers: 0", " must be a whole number of pairs from 1, got 0"),
    ("lens_layers: -1", " must be a whole number of pairs from 1, got -1"),
    ("lens_layers: {}", " takes one value, got the mapping {}"),
    ("lens_layers: abc", ": cannot read the layer map 'abc'"),
    ("optim_args: abc", ' must be settings such as "rank=64,scale=0.1", got'),
    ("output_divergence_kwargs: -1", " must be a mapping such as {key: value}, got -1"),
    ("output_divergence_kwargs: true", " must be a mapping such as {key: value}, got True"),
    ("lr_scheduler_kwargs: abc", " must be a mapping, got 'abc'"),
    ("label_names: [1]", " must be a list of texts, got 1 in it"),
    ("log_level: abc", " must be one of "),
    ("accelerator_config: {a: 1}", " {'a': 1} cannot be used: TypeError"),
    ("logging_steps: 0", " and file"),
    ("logging_steps: 1.5", " and file"),
    ("tf32: true", " and file"),
    ("fsdp: abc", " and file"),
]


def arguments(folder, line):
    """What a recipe with this line gives, on the CPU."""
    text = f"# comment\n{line}\noutput_dir: out\nuse_cpu: true\ntrain_file: train.jsonl\n"
    (folder / "recipe.yaml").write_text(text)
    return read_arguments(["--config", str(folder / "recipe.yaml")], "train", "")


@pytest.mark.parametrize(("line", "value"), TAKEN)
def test_a_value_becomes_one_of_its_fields_type(tmp_path, line, value):
    """A whole number is one however it is written; nothing is a value where a field takes it."""
    given = arguments(tmp_path, line).given[line.split(":")[0]]
    assert given == value and type(given) is type(value)


@pytest.mark.parametrize(("line", "message"), REFUSED)
def test_a_value_that_a_field_does_not_take_is_one_line(tmp_path, line, message):
    """With file, line and field, whether we or a library noticed ("and file": in its words)."""
    with pytest.raises(ValueError) as refused:
        arguments(tmp_path, line)
    said, name = str(refused.value), line.split(":")[0]
    assert f"recipe.yaml:2: {'' if message == ' and file' else name + message}" in said
    assert name in said and "\n" not in said


def test_a_flag_is_not_blamed_on_the_recipe(workshop, capsys):
    """It overrides the recipe, and the recipe's line says nothing of it."""
    (workshop / "recipe.yaml").write_text("train_file: train.jsonl\ntemperature: 1.0\n")
    flags = ["--temperature", "0", "--output_dir", "out", "--use_cpu"]
    assert main(["train", "--config", "recipe.yaml", *flags]) == 2
    assert "error: temperature must be above 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is a folder; name a YAML file in it"),
        (lambda path: path.write_text("a" * 2**21), "is larger than 1 MB"),
        (lambda path: path.write_bytes(b"a: 1\nb: \xff"), ":2: recipe is not UTF-8"),
        (lambda path: path.write_text("[" * 100_000), "is nested too deeply"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path, make, message):
    """A wrong path, or the data given as the recipe."""
    make(tmp_path / "recipe.yaml")
    with pytest.raises(ValueError, match=message):
        read_recipe(str(tmp_path / "recipe.yaml"))
