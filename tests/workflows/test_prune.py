"""Blocks by importance: the measure by a formula, the choice, and what stands in the folder."""

import json

import pytest
import torch
import toys
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from distilllens import LogitLens
from distilllens.data import format_prompt
from distilllens.layer_map import Cut
from distilllens.lens.surgery import cut_of
from distilllens.workflows import model_folder
from distilllens.workflows import prune as room
from distilllens.workflows.prune import block_changes, most_important, prune

TEXTS = [[3, 9, 4, 17, 5], [8, 2], [11, 6, 7]]


def changes_by_hand(model, texts):
    """1 - x y / (|x| |y|) of each block's input and output, in float64, a mean over all tokens."""
    sums, count = [0.0] * len(model.model.layers), 0
    for ids in texts:
        streams = []

        def keep(layer, args, output, streams=streams):
            streams.append((args[0], output))

        hooks = [layer.register_forward_hook(keep) for layer in model.model.layers]
        with torch.no_grad():
            model(torch.tensor([ids]))
        for hook in hooks:
            hook.remove()
        for block, (before, after) in enumerate(streams):
            for x, y in zip(before[0].double(), after[0].double(), strict=True):
                sums[block] += 1 - float(x @ y) / float((x @ x).sqrt() * (y @ y).sqrt())
        count += len(ids)
    return [each / count for each in sums]


def test_the_change_of_a_block_is_one_minus_the_cosine():
    """Every token counts once, whatever the length of its text; the model stays as it is."""
    model = toys.llama(4, 24, seed=1).train()
    found = block_changes(LogitLens(model), TEXTS)
    assert model.training
    assert found == pytest.approx(changes_by_hand(model.eval(), TEXTS), abs=1e-9)


@pytest.mark.parametrize(
    ("scores", "number", "drop_ends", "expected"),
    [
        ([0.1, 0.9, 0.3, 0.8, 0.2], 4, False, (0, 1, 3, 4)),
        ([0.1, 0.9, 0.3, 0.8, 0.2], 2, False, (0, 4)),
        ([0.1, 0.9, 0.3, 0.8, 0.2], 2, True, (1, 3)),
        ([0.1, 0.9, 0.3, 0.8, 0.2], 1, True, (1,)),
        ([0.5, 0.5, 0.5, 0.5], 3, False, (0, 1, 3)),
        ([0.5, 0.5], 2, False, (0, 1)),
    ],
)
def test_the_blocks_that_change_most_stay(scores, number, drop_ends, expected):
    """With the first and the last, unless these may go; of equal ones the first."""
    assert most_important(scores, number, drop_ends=drop_ends) == expected


def test_the_folder_is_one_of_plain_transformers(workshop):
    """Weights, configuration, generation settings, tokenizer and chat template; nothing else."""
    tokenizer = AutoTokenizer.from_pretrained("teacher")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained("teacher")
    GenerationConfig(temperature=0.3, do_sample=True, eos_token_id=0).save_pretrained("teacher")
    written = prune("teacher", 2, "made")
    assert written.cut == Cut((0, 3), 4) and written.scores is None and written.table() == ""
    assert written.line.startswith("wrote made: 2 of 4 blocks (0, 3); ")
    model = AutoModelForCausalLM.from_pretrained("made")
    assert model.config.num_hidden_layers == 2 and cut_of(model.config) == written.cut
    assert model.generation_config.temperature == 0.3
    assert AutoTokenizer.from_pretrained("made").chat_template == tokenizer.chat_template
    assert {path.name for path in (workshop / "made").iterdir()} == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert not list(workshop.glob("*.part"))


def test_importance_is_measured_on_the_tokens_of_training(workshop, monkeypatch):
    """The prompts and answers of the records, at most so many and so long; the scores are shown."""
    read = []
    monkeypatch.setattr(
        room, "block_changes", lambda lens, texts: read.extend(texts) or [0.1, 0.2, 0.4, 0.3]
    )
    written = prune(
        "teacher", 3, "made", by="importance", data=["train.jsonl"], limit=2, max_length=7
    )
    rows = [json.loads(line) for line in (workshop / "train.jsonl").read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained("teacher")
    assert len(read) == 2 and all(len(ids) == 7 for ids in read)
    wanted = tokenizer(format_prompt(rows[0]))["input_ids"][:7]
    assert read[0] == wanted
    assert written.cut == Cut((0, 2, 3), 4) and written.scores == (0.1, 0.2, 0.4, 0.3)
    assert written.table().splitlines() == [
        "block    change",
        "    0    0.1000  kept",
        "    1    0.2000  -",
        "    2    0.4000  kept",
        "    3    0.3000  kept",
    ]


def test_a_failure_leaves_nothing_behind(workshop, monkeypatch):
    """A disk that fails in the middle: one line, no folder, no part of one."""

    def fail(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(room, "find_tokenizer", lambda *a, **k: toys.tokenizer())
    monkeypatch.setattr(model_folder, "make_saveable", lambda student, tokenizer: None)
    monkeypatch.setattr(
        "transformers.PreTrainedTokenizerFast.save_pretrained", lambda self, folder: fail(folder)
    )
    before = {path.name for path in workshop.iterdir()}
    with pytest.raises(OSError, match="No space left"):
        prune("teacher", 2, "made")
    assert {path.name for path in workshop.iterdir()} == before


def test_a_model_without_a_tokenizer_is_cut_all_the_same(workshop, caplog):
    """A line says that the folder has none."""
    toys.llama(4, 24, seed=1).save_pretrained("bare")
    prune("bare", [1], "made")
    assert "made will have none either" in caplog.text
    assert AutoModelForCausalLM.from_pretrained("made").config.num_hidden_layers == 1
