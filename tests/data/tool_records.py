"""Conversations with tools and settings for the chat template; no tests here."""

import json

import toys

# Prints the name and the parameters of each tool, and enable_thinking where it is defined.
TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool.function.name }} "
    "{% for name in tool.function.parameters %}{{ name }} {% endfor %}{% endfor %}"
    "{% if enable_thinking is defined %}{{ enable_thinking and 'new' or 'old' }} {% endif %}"
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} <eos> {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


def tokenizer():
    """The toys' words and the roles, with that chat template."""
    made = toys.tokenizer([*toys.WORDS, "user", "assistant"])
    made.chat_template = TEMPLATE
    return made


def tool(name, *parameters):
    """A tool as its JSON schema; the parameters are keys, so tools differ in their keys."""
    return {
        "type": "function",
        "function": {"name": name, "parameters": dict.fromkeys(parameters, 1)},
    }


# Each row hands the template something else: a list, JSON text, settings alone, nothing.
HANDED = (
    {"tools": [tool("hill", "big", "red")], "chat_template_kwargs": {"enable_thinking": False}},
    {"tools": json.dumps([tool("mat", "day"), tool("dog")])},
    {"chat_template_kwargs": {"enable_thinking": True}},
    {},
)
# What the template writes in front of the messages of these rows.
WRITTEN = ("hill big red old", "mat day dog", "new", "")


def turns(number):
    """A question and its answer."""
    question, answer = toys.WORDS[number : number + 3], toys.WORDS[number + 5 : number + 9]
    return (
        {"role": "user", "content": " ".join(question)},
        {"role": "assistant", "content": " ".join(answer)},
    )


def messages():
    """Rows of messages."""
    return [{"messages": [*turns(n)], **handed} for n, handed in enumerate(HANDED)]


def conversations():
    """The same rows as prompt and completion."""
    rows = [(*turns(n), handed) for n, handed in enumerate(HANDED)]
    return [{"prompt": [ask], "completion": [reply], **handed} for ask, reply, handed in rows]
