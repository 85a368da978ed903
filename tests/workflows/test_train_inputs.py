"""What is encoded before there is a trainer is encoded as in it."""

import json

import pytest
import toys
from data import tool_records
from transformers import AutoTokenizer

from distilllens.cli import main
from distilllens.data import load_records, to_dataset
from distilllens.evaluate.benchmarks import load_benchmarks
from distilllens.evaluate.tasks import prompts_of
from distilllens.loading import with_chat_template
from distilllens.train.collation import Collation

EVALUATED = {
    "eval_file": "train.jsonl",
    "eval_generate": True,
    "eval_generate_kwargs": {"max_new_tokens": 4},
    "eval_strategy": "steps",
    "eval_steps": 2,
}


@pytest.fixture
def chats(workshop):
    """A workshop whose data are conversations and whose tokenizers have no chat template."""
    for name in ("student", "teacher"):
        toys.tokenizer([*toys.WORDS, "user", "assistant"]).save_pretrained(workshop / name)
        toys.llama(3).save_pretrained(workshop / name)
    rows = tool_records.conversations()
    (workshop / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (workshop / "chat.jinja").write_text(tool_records.TEMPLATE)
    return workshop


@pytest.mark.parametrize("command", ["train", "cache"])
def test_a_template_by_path_serves_what_comes_before_the_trainer(chats, capsys, command):
    """Long prompts are counted and answers checked with it; without it, one line says how."""
    settings = {"teacher_cache": "states"} if command == "cache" else EVALUATED
    toys.recipe(chats, max_prompt_length=9, **settings)
    assert main([command, "--config", "recipe.yaml"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert "has no chat template; set chat_template_path" in said[-1]
    toys.recipe(chats, max_prompt_length=9, chat_template_path="chat.jinja", **settings)
    assert main([command, "--config", "recipe.yaml"]) == 0
    assert "leaving out 1 of 4 train records" in capsys.readouterr().err


def test_a_template_of_another_model_brings_its_tokens(tmp_path):
    """Template, added tokens and end of sequence, as TRL clones them, into a copy."""
    source = tool_records.tokenizer()
    source.add_special_tokens({"eos_token": "<|end|>"})
    source.save_pretrained(tmp_path)
    own = toys.tokenizer()
    made = with_chat_template(own, str(tmp_path))
    assert made.chat_template == tool_records.TEMPLATE and made.eos_token == "<|end|>"
    assert made("<|end|>")["input_ids"] == [len(own)]
    assert own.chat_template is None and own.eos_token == "<eos>" and len(own) == 22


def test_a_template_that_is_not_there_is_said(tmp_path):
    """One line each."""
    toys.tokenizer().save_pretrained(tmp_path)
    for path, message in (
        (str(tmp_path), "its tokenizer has no chat template"),
        (str(tmp_path / "none.jinja"), "chat_template_path .*none.jinja"),
    ):
        with pytest.raises(ValueError, match=message):
            with_chat_template(toys.tokenizer(), path)


# Instructions with everything that a chat template reads; the second has two references.
INSTRUCTIONS = [
    {"instruction": "the cat", "output": "sat on a mat"},
    {"instruction": "a dog", "input": "old", "output": [" ran", "sat"]},
    {"instruction": "it was", "system": "red", "history": [["on", "a hill"]], "output": "new"},
    {"instruction": "then", "output": "day", **tool_records.HANDED[0]},
    {"instruction": "then", "output": "to", **tool_records.HANDED[1]},
]
# What the template writes of them, typed by hand.
PROMPTS = [
    "user the cat <eos> assistant",
    "user a dog old <eos> assistant",
    "system red <eos> user on <eos> assistant a hill <eos> user it was <eos> assistant",
    "hill big red old user then <eos> assistant",
    "mat day dog user then <eos> assistant",
]
ANSWERS = ["sat on a mat <eos>", "ran <eos>", "new <eos>", "day <eos>", "to <eos>"]


@pytest.fixture
def instructions(chats):
    """A workshop of instructions, with a tokenizer that has a chat template."""
    made = toys.tokenizer([*toys.WORDS, "user", "assistant"])
    for name in ("student", "teacher"):
        made.chat_template = tool_records.TEMPLATE
        made.save_pretrained(chats / name)
    write(chats, INSTRUCTIONS)
    return chats


def write(folder, rows):
    """The training file."""
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_training_reads_the_prompts_of_an_evaluation(instructions):
    """With chat, both read the chat template's tokens, and the answer with its end is the target:
    written out by hand."""
    made = AutoTokenizer.from_pretrained("student")
    data = to_dataset(load_records("train.jsonl", chat=True), chat=True)
    rows = Collation.prepared(toys.config(instructions / "out"), made, data).train_dataset
    (benchmark,) = load_benchmarks(["train.jsonl"], chat=True)
    asked = prompts_of(benchmark.examples, made)
    for row, prompt, question, answer in zip(rows, asked, PROMPTS, ANSWERS, strict=True):
        expected = made.convert_tokens_to_ids(question.split())
        targets = made.convert_tokens_to_ids(answer.split())
        assert prompt == expected
        assert row["input_ids"] == expected + targets
        assert row["labels"] == [-100] * len(expected) + targets


def test_a_run_with_chat_trains_answers_and_reports(instructions, capsys):
    """Through train, its answers, report and evaluate; the next command says --chat."""
    toys.recipe(instructions, chat=True, report=True, max_prompt_length=12, **EVALUATED)
    assert main(["train", "--config", "recipe.yaml"]) == 0
    said = capsys.readouterr().err
    targets = sum(len(answer.split()) for answer in (ANSWERS[n] for n in (0, 1, 3, 4)))
    assert f"4 rows, {targets} target tokens" in said  # the third prompt has more than 12 tokens
    assert "evaluate --model out --benchmark FILE --output results --chat" in said
    assert "nothing reads" not in said and "warning: both models" not in said
    page = (instructions / "out" / "report.html").read_text()
    assert "the cat" in page and "### Instruction" not in page
    command = ["evaluate", "--model", "out", "--benchmark", "train.jsonl", "--chat", "--greedy"]
    assert main([*command, "--max_new_tokens", "4", "--output", "results"]) == 0
    said = capsys.readouterr().err
    assert said.count("model out: ") == 1 and "parameters, float32, on cpu" in said
    # The same recipe without chat, which is off by default, is another run.
    toys.recipe(instructions, report=True, max_prompt_length=99, **EVALUATED)
    assert main(["train", "--config", "recipe.yaml"]) == 2
    assert "chat was True and is now not set" in capsys.readouterr().err


def test_chat_that_is_off_is_the_default(instructions, capsys):
    """A run that does not set it is the same as one that sets it to false."""
    toys.recipe(instructions)
    assert main(["train", "--config", "recipe.yaml"]) == 0
    toys.recipe(instructions, chat=False)
    assert main(["train", "--config", "recipe.yaml"]) == 0
    assert "holds the finished run of this recipe" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "cache"])
@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (
            INSTRUCTIONS,
            {"chat": True, "template": None},
            "chat is set, and the student's tokenizer "
            "has no chat template; set chat_template_path, or leave chat out",
        ),
        (
            [{"text": "the cat"}],
            {"assistant_only_loss": True},
            "train.jsonl:1: assistant_only_loss needs conversations, and the data are text",
        ),
        (
            INSTRUCTIONS,
            {"assistant_only_loss": True, "chat": True},
            "train.jsonl:1: assistant_only_loss is set, and the chat template marks no token",
        ),
        (
            [*INSTRUCTIONS, {"instruction": "bad", "output": "day"}],
            {
                "chat": True,
                "template": "{% for m in messages %}{% if m.content == 'bad' %}"
                "{{ raise_exception('no bad words') }}{% endif %}{{ m.content }} <eos> "
                "{% endfor %}",
            },
            "train.jsonl:6: the tokenizer cannot write these messages: its chat template says "
            "'no bad words'",
        ),
    ],
)
def test_what_a_template_cannot_do_is_said(instructions, capsys, command, rows, settings, message):
    """One line with file and line, before the student's weights are read."""
    made = toys.tokenizer([*toys.WORDS, "user", "assistant"])
    settings = {"template": tool_records.TEMPLATE, **settings}
    made.chat_template = settings.pop("template")
    (instructions / "student" / "chat_template.jinja").unlink()
    made.save_pretrained(instructions / "student")
    if len(rows) < 6:
        (instructions / "student" / "model.safetensors").write_text("not read yet")
    write(instructions, rows)
    toys.recipe(instructions, teacher_cache="states", **settings)
    assert main([command, "--config", "recipe.yaml"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert message in said[-1], said


def test_templates_are_compared_at_the_start(instructions, capsys):
    """A teacher with another template, an answer without an end, and chat without an effect."""
    made = toys.tokenizer([*toys.WORDS, "user", "assistant"])
    made.chat_template = "{{ messages[0]['content'] }}"
    made.save_pretrained(instructions / "teacher")
    toys.recipe(instructions, chat=True)
    assert main(["train", "--config", "recipe.yaml"]) == 0
    said = capsys.readouterr().err
    assert said.count("warning: both models read what the student's chat template writes") == 1
    assert "'user the cat <eos> " in said and "the teacher's would write 'the cat'" in said
    template = tool_records.TEMPLATE.replace(" <eos>", "")
    (instructions / "chat.jinja").write_text(template)
    toys.recipe(instructions, chat=True, chat_template_path="chat.jinja", output_dir="other")
    assert main(["train", "--config", "recipe.yaml"]) == 0
    assert "warning: the chat template does not end answers with '<eos>'" in capsys.readouterr().err
    write(instructions, [{"prompt": "the", "completion": " cat"}] * 4)
    toys.recipe(instructions, chat=True, output_dir="third")
    assert main(["train", "--config", "recipe.yaml"]) == 0
    assert (
        "warning: chat changes instruction records only: the train records, of prompt and "
        "completion, are trained on as they are" in capsys.readouterr().err
    )
