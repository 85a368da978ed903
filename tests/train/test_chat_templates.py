"""What a run asks of a chat template, and that its marks decide what is measured."""

import logging
import re

import pytest
import torch
import toys
import trl.chat_template_utils
from data import tool_records
from datasets import Dataset
from transformers import AutoTokenizer

from distilllens import DistillLensTrainer
from distilllens.train.chat_templates import (
    assistant_tokens,
    check_marks,
    other_template,
    unended_answers,
)
from distilllens.train.collation import Collation

MARKED = (
    "{% for m in messages %}{{ m['role'] }} {% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }} <eos> {% endgeneration %}"
    "{% else %}{{ m['content'] }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
TALK = {"messages": [*tool_records.turns(0), *tool_records.turns(4)]}
ASKED = {"prompt": [tool_records.turns(0)[0]], "completion": [tool_records.turns(0)[1]]}


def tokenizer(template, *, words=()):
    """The toys' words and the roles, with a chat template."""
    made = toys.tokenizer([*toys.WORDS, "user", "assistant", *words])
    made.chat_template = template
    return made


@pytest.mark.parametrize(
    ("template", "example", "message"),
    [
        (MARKED, TALK, None),
        (MARKED, ASKED, None),
        ({"default": MARKED, "tool_use": tool_records.TEMPLATE}, TALK, None),
        (
            tool_records.TEMPLATE,
            TALK,
            "no {% generation %} around answers; write the rows as prompt and completion, both "
            "lists of messages, whose loss is on the completion without it; or as instruction and "
            "output, whose loss is on the output, with chat: true; or set chat_template_path",
        ),
        (
            tool_records.TEMPLATE,
            ASKED,
            "around answers; leave it out, since the loss of these rows is on the completion "
            "anyway; or set chat_template_path",
        ),
        (None, TALK, "needs a chat template that marks the answers, and the tokenizer has none"),
        (
            MARKED,
            {"prompt": "the", "completion": " cat"},
            "needs conversations, and the data are prompts with completions as text, whose loss is "
            "on the completion without it; leave it out, or set chat: true",
        ),
        (MARKED, {"text": "the cat"}, "the data are text, all of which is trained; leave it out"),
    ],
)
def test_marks_are_there_or_the_ways_out_are_said(template, example, message):
    """One line before anything heavy is loaded."""
    if message is None:
        check_marks(tokenizer(template), example)
        return
    with pytest.raises(ValueError) as caught:
        check_marks(tokenizer(template), example)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("example", [TALK, ASKED])
@pytest.mark.parametrize(
    ("template", "ends", "message"),
    [
        (tool_records.TEMPLATE, [0], None),
        (tool_records.TEMPLATE.replace("<eos>", "<turn>"), [99, 24], None),
        (
            tool_records.TEMPLATE.replace("<eos>", "<turn>"),
            [0],
            "ends answers with '<turn>', and generation ends at '<eos>' only: set eos_token: "
            "'<turn>'",
        ),
        (
            tool_records.TEMPLATE.replace("<eos>", ""),
            [0],
            "does not end answers with '<eos>', at which generation ends, so the student does not "
            "learn to stop",
        ),
    ],
)
def test_an_answer_without_an_end_is_said(template, ends, message, example):
    """The token that training writes at the end of an answer is one at which generation ends."""
    made = tokenizer(template)
    made.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    assert made.convert_tokens_to_ids("<turn>") == 24
    found = unended_answers(made, ends, example)
    assert found is None if message is None else message in found


def test_a_question_at_the_end_has_no_answer_to_end():
    """Nothing is said of it."""
    asked = {"messages": TALK["messages"][:3]}
    assert unended_answers(tokenizer(tool_records.TEMPLATE), [0], asked) is None


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (tool_records.TEMPLATE, None),
        (tool_records.TEMPLATE + "{# other #}", None),  # another text that writes the same
        (None, "the teacher has none of its own"),
        ("{{ raise_exception('no roles') }}", "refuses the first example: .*'no roles'"),
        (
            "[{{ messages[0]['content'] }}]",
            r"the first example has 'user the cat dog <eos> assistant .*' \.\.\. where the "
            r"teacher's would write '\[the cat dog\]'",
        ),
    ],
)
def test_a_teacher_with_another_template_is_said(teacher, message):
    """Both models read what the student's writes."""
    found = other_template(tokenizer(tool_records.TEMPLATE), tokenizer(teacher), TALK)
    if message is None:
        assert found is None
    else:
        assert found.startswith("both models read what the student's chat template writes")
        assert re.search(message, found) and "\n" not in found


@pytest.mark.parametrize("content", ["hi", "é ☃", "a\nb  "])
def test_marks_at_a_space_or_in_a_character_of_several_tokens(shared, content):
    """GPT-2's tokens of the text between the marks, which are tokenised apart here."""
    gpt2 = AutoTokenizer.from_pretrained(shared / "tokenizers" / "gpt2")
    gpt2.chat_template = (
        "{% for m in messages %}{{ m['role'] + ':' }}{% if m['role'] == 'assistant' %}"
        "{% generation %}{{ ' ' + m['content'] }}{% endgeneration %}{{ '<|endoftext|>' }}"
        "{% else %}{{ ' ' + m['content'] }}<|endoftext|>{% endif %}{% endfor %}"
    )
    talk = [{"role": role, "content": content} for role in ("user", "assistant") * 2]
    found = assistant_tokens(talk, gpt2, {"messages": talk})
    ids, said = [], []
    for message in talk:
        parts = (message["role"] + ":", " " + content, "<|endoftext|>")
        for part, is_content in zip(parts, (False, True, False), strict=True):
            tokens = gpt2(part)["input_ids"]
            ids += tokens
            said += [is_content and message["role"] == "assistant"] * len(tokens)
    assert found == (ids, said)


def test_templates_that_trl_knows_need_no_marks(shared, tmp_path):
    """Qwen2.5's: prepared rows have the labels written out by hand, of every turn."""
    made = AutoTokenizer.from_pretrained(shared / "tokenizers" / "gpt2")
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = trl.chat_template_utils.qwen2_5_chat_template
    talk = [
        {"role": r, "content": c} for r, c in zip(("user", "assistant") * 2, "abcd", strict=True)
    ]
    check_marks(made, {"messages": talk})
    args = toys.config(tmp_path, assistant_only_loss=True, max_length=None)
    data = Dataset.from_list([{"messages": talk}])
    (row,) = Collation.prepared(args, made, data).train_dataset
    system = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    parts = [("<|im_start|>", False), (f"system\n{system}", False), ("<|im_end|>", False)]
    for message in talk:
        said = message["role"] == "assistant"
        parts += [("\n", parts[-1][1]), ("<|im_start|>", False), (message["role"], False)]
        parts += [("\n" + message["content"], said), ("<|im_end|>", said)]
    parts.append(("\n", True))
    tokens = [(token, said) for part, said in parts for token in made(part)["input_ids"]]
    assert row["input_ids"] == [token for token, _ in tokens]
    assert row["labels"] == [token if said else -100 for token, said in tokens]


# Conversations of several turns as (words of the user, words of the assistant).
TURNS = [
    [("the cat", "sat on a mat"), ("and then", "it ran")],
    [("a dog", "was big"), ("red hill", "the old new day")],
    [("on", "a mat and then it was red")],
    [("the dog sat on a hill and then the cat ran to a hill of", "new")],
]


def by_hand(rows, made, max_length):
    """Token ids, and whether each is the assistant's, written out word by word."""
    found = []
    for turns in rows:
        words, said = [], []
        for asked, answered in turns:
            asked, answered = ["user", *asked.split()], [*answered.split(), "<eos>"]
            words += [*asked, "assistant", *answered]
            said += [False] * (len(asked) + 1) + [True] * len(answered)
        ids = made.convert_tokens_to_ids(words)
        found.append((ids[:max_length], said[:max_length]))
    return found


def log_probabilities(model, ids, depth):
    """Float64 log-probabilities after each token, read at a depth; None is the model's own."""
    with torch.no_grad():
        out = model(torch.tensor([ids]), output_hidden_states=True)
        logits = out.logits
        if depth is not None:
            logits = model.lm_head(model.model.norm(out.hidden_states[depth]))
    return logits[0].double().log_softmax(-1)


def kl(a, b):
    """KL(a ‖ b) of each row in nats."""
    return (a.exp() * (a - b)).sum(-1)


def jsd(a, b):
    """The Jensen-Shannon divergence of each row in nats."""
    middle = ((a.exp() + b.exp()) / 2).log()
    return (kl(a, middle) + kl(b, middle)) / 2


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize(("max_length", "num_left"), [(64, 4), (12, 3)])
def test_only_the_assistants_tokens_are_measured(tmp_path, caplog, packing, max_length, num_left):
    """Output and lens terms are means over a mask written out by hand; a row that lost all of its
    answers is left out and counted."""
    made = tokenizer(MARKED)
    names = ("user", "assistant")
    rows = [
        {"messages": [{"role": names[n % 2], "content": c} for n, c in enumerate(sum(turns, ()))]}
        for turns in TURNS
    ]
    student, teacher = toys.llama(3, vocab=24), toys.llama(4, 24, vocab=24, seed=1)
    with caplog.at_level(logging.WARNING):
        trainer = DistillLensTrainer(
            student,
            teacher,
            args=toys.config(
                tmp_path,
                assistant_only_loss=True,
                lens_layers="1:2",
                packing=packing,
                max_length=max_length,
            ),
            train_dataset=Dataset.from_list(rows),
            eval_dataset=Dataset.from_list(rows),
            processing_class=made,
        )
        found = trainer.evaluate()
    expected = {"eval_output_loss": [], "eval_lens_loss": [], "eval_cross_entropy": []}
    kept = [pair for pair in by_hand(TURNS, made, max_length) if any(pair[1])]
    assert len(kept) == num_left
    for ids, said in kept:
        is_target = torch.tensor(said[1:])
        ours, theirs = (log_probabilities(m, ids, None)[:-1] for m in (student, teacher))
        expected["eval_output_loss"].append(kl(ours, theirs)[is_target])
        own = ours.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
        expected["eval_cross_entropy"].append(-own[is_target])
        ours = log_probabilities(student, ids, 1)[:-1]
        theirs = log_probabilities(teacher, ids, 2)[:-1]
        expected["eval_lens_loss"].append(jsd(ours, theirs)[is_target])
    for name, values in expected.items():
        assert found[name] == pytest.approx(float(torch.cat(values).mean()), abs=2e-6)
    lost = "1 of 4 training examples have no response token within max_length 12"
    assert (lost in caplog.text) == (num_left == 3)
