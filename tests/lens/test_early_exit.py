"""docs/early_exit.md: a draft is the lens at its depth, and the answers are the whole model's."""

import json
import re
import runpy
from pathlib import Path

import lens_families as families
import pytest
import torch
import toys
from transformers.generation.candidate_generator import EarlyExitCandidateGenerator

from distilllens import LogitLens, capture

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "early_exit.md"
SCRIPT = ROOT / "examples" / "early_exit" / "measure.py"
# What transformers' forward does with a changed num_hidden_layers: stop, or run all of its blocks.
STOP = ["llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "gemma", "gemma2", "gemma3"]
STOP += ["phi", "phi3", "olmo2", "granite", "cohere", "smollm3", "starcoder2", "glm4"]
STOP += ["deepseek_v3", "minicpm3", "nanochat"]
DO_NOT = ["gpt2", "gpt_neo", "gpt_neox", "gptj", "gpt_oss", "opt", "bloom", "falcon", "stablelm"]
DO_NOT += ["nemotron", "cohere2"]
STATEFUL = ["mamba", "mamba2", "rwkv", "jamba", "falcon_h1", "recurrent_gemma"]


def prepared(model, *, draft=4, confidence=0.0):
    """The model with drafts of a fixed length; no token of an answer ends it or is padding."""
    settings = model.generation_config
    settings.eos_token_id = settings.pad_token_id = None
    settings.num_assistant_tokens, settings.assistant_confidence_threshold = draft, confidence
    return model


def answer(model, **settings):
    ids = families.IDS[:1]
    return model.generate(ids, do_sample=False, max_new_tokens=20, **settings)


@pytest.fixture
def drafts(monkeypatch):
    """What every draft was given, wrote and predicted; and what was kept of it."""
    found = []
    propose = EarlyExitCandidateGenerator.get_candidates
    learn = EarlyExitCandidateGenerator.update_candidate_strategy

    def proposed(self, ids, **settings):
        written, logits = propose(self, ids, **settings)
        found.append([ids.shape[1], written, logits, None])
        return written, logits

    def learned(self, ids, scores, num_matches):
        found[-1][3] = int(num_matches)
        return learn(self, ids, scores, num_matches)

    monkeypatch.setattr(EarlyExitCandidateGenerator, "get_candidates", proposed)
    monkeypatch.setattr(EarlyExitCandidateGenerator, "update_candidate_strategy", learned)
    return found


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("name", STOP)
def test_a_draft_is_the_lens_at_its_depth(name, depth, drafts):
    """Its logits are LogitLens's of what it wrote, and the answer is that without early exit."""
    model = prepared(families.build(name))
    lens = LogitLens(model)
    expected = answer(model)
    assert torch.equal(answer(model, assistant_early_exit=depth), expected)
    compared = 0
    for given, written, logits, _ in drafts:
        if logits is not None:  # where one token is left there is nothing to draft
            with torch.no_grad():
                states = capture(lens, [depth], input_ids=written)
                right = lens.logits(states[depth])[:, given - 1 : -1]
            assert families.error(logits, right) < 2e-6
            assert torch.equal(written[:, given:], right.argmax(-1))
            compared += logits.shape[1]
    assert compared >= 12


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [(name, IndexError, "out of range") for name in DO_NOT]
    + [(name, ValueError, "not supported with stateful models") for name in STATEFUL],
)
def test_other_families_fail(name, error, message):
    """transformers runs all their blocks on a cache for some of them, or refuses them."""
    model = prepared(families.build(name))
    layers = model.config.num_hidden_layers
    with pytest.raises(error, match=message):
        answer(model, assistant_early_exit=1)
    # A failure half-way leaves the model's configuration changed, as the page says.
    assert model.config.num_hidden_layers == (1 if error is IndexError else layers)


def test_the_page_names_these_families():
    """Those that stop early, those that do not, and the stateful ones, each in its paragraph."""
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    for names in (STOP, DO_NOT, STATEFUL):
        assert ", ".join(f"`{name}`" for name in sorted(names)) in text


def test_settings_of_a_draft_are_the_models(drafts):
    """An argument of generate() does not change the length of a draft."""
    model = prepared(families.build("llama"), draft=3)
    answer(model, assistant_early_exit=2, num_assistant_tokens=7)
    lengths = [written.shape[1] - given for given, written, _, _ in drafts]
    assert max(lengths) == 3


def test_several_prompts_at_once_are_refused():
    """As the page says."""
    model, ids = prepared(families.build("llama")), families.IDS
    with pytest.raises(ValueError, match="only supported for batch_size = 1"):
        model.generate(ids, do_sample=False, max_new_tokens=4, assistant_early_exit=1)


def measured(folder, monkeypatch, capsys, *words):
    """The cells of every row that the script prints."""
    monkeypatch.setattr("sys.argv", ["measure.py", "--data", str(folder / "data.jsonl"), *words])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines[1:]]


def saved(model, folder, name):
    """The model in a folder with the toy tokenizer; its data beside it."""
    rows = "".join(json.dumps(row) + "\n" for row in toys.examples(6))
    (folder / "data.jsonl").write_text(rows)
    prepared(model).save_pretrained(folder / name)
    toys.tokenizer().save_pretrained(folder / name)
    return str(folder / name)


def test_the_script_counts_what_is_kept(tmp_path, monkeypatch, capsys, drafts):
    """Drafted and kept tokens are those of transformers' own generator."""
    name = saved(toys.llama(4, 16, seed=3), tmp_path, "model")
    words = ["--model", name, "--exits", "3", "--draft", "3", "--confidence", "0"]
    words += ["--repeats", "1", "--max_new_tokens", "20"]
    alone, early = measured(tmp_path, monkeypatch, capsys, *words)
    lengths = [written.shape[1] - given for given, written, _, _ in drafts]
    kept = sum(found[3] for found in drafts)
    assert 0 < kept < sum(lengths)
    assert early[2] == f"{kept / sum(lengths):.0%} of {sum(lengths)}"
    assert early[3] == f"{6 * 20 / len(drafts):.2f}"
    assert early[4] == f"{(3 * sum(lengths) + 4 * len(drafts)) / (6 * 20):.2f}"
    assert (alone[1:5], alone[6:]) == (["-", "-", "1.00", "4.00"], ["1.00", "6 of 6"])
    assert early[-1] == "6 of 6"


@pytest.mark.parametrize(
    ("answer", "drafts", "kept"),
    [
        ([5, 6, 7], [[], [], []], 0),
        ([5, 6, 7], [[5, 6]], 2),
        ([5, 6, 7, 8], [[5, 9, 7], [7, 8]], 3),  # 6 is the forward's own; then the end is drafted
        ([5], [[6, 5]], 0),
    ],
)
def test_drafted_tokens_are_kept_up_to_the_first_that_differs(answer, drafts, kept):
    """The next draft goes on behind the forward's own token."""
    assert runpy.run_path(str(SCRIPT))["kept_of"](answer, drafts) == kept


def test_a_block_that_adds_nothing_is_never_missed(tmp_path, monkeypatch, capsys):
    """Its draft is kept whole: 10 tokens are 8 drafted, by 2 of 3 blocks, and 2 whole forwards."""
    model = toys.llama(3, 16)
    with torch.no_grad():
        model.model.layers[2].self_attn.o_proj.weight.zero_()
        model.model.layers[2].mlp.down_proj.weight.zero_()
    name = saved(model, tmp_path, "model")
    words = ["--model", name, "--exits", "2", "--draft", "4", "--confidence", "0"]
    words += ["--repeats", "1", "--max_new_tokens", "10"]
    _, early = measured(tmp_path, monkeypatch, capsys, *words)
    assert early[2:5] == ["100% of 48", "5.00", f"{(8 * 2 + 2 * 3) / 10:.2f}"]


@pytest.mark.parametrize(
    ("model", "exits", "message"),
    [
        (lambda: toys.llama(3), "3", "exit 3: the model's inner depths are 1 to 2"),
        (lambda: toys.gpt2(3), "1", "cannot stop GPT2LMHeadModel"),
    ],
    ids=["the last depth", "a family that does not stop"],
)
def test_the_script_refuses(tmp_path, monkeypatch, capsys, model, exits, message):
    """One line and status 2."""
    name = saved(model(), tmp_path, "model")
    with pytest.raises(SystemExit) as left:
        measured(tmp_path, monkeypatch, capsys, "--model", name, "--exits", exits)
    assert left.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_training_exits_makes_drafts_that_are_kept(tmp_path, monkeypatch, capsys):
    """The recipe of the page on the demo's data: of the third block's drafts more are kept."""
    from distilllens.cli import main
    from distilllens.data.synthetic import synthetic_records

    for name, count, split in (("train", 400, "train"), ("data", 20, "held_out")):
        rows = synthetic_records(count, split=split)
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    teacher = str(ROOT / "src" / "distilllens" / "cli" / "demo_teacher")
    words = ["train", "--config", str(SCRIPT.with_name("exits.yaml")), "--no_report"]
    words += ["--model_name_or_path", teacher, "--teacher_model_name_or_path", teacher]
    words += ["--train_file", str(tmp_path / "train.jsonl"), "--max_steps", "20"]
    assert main([*words, "--output_dir", str(tmp_path / "exits")]) == 0
    capsys.readouterr()
    words = ["--model", teacher, "--model", str(tmp_path / "exits"), "--exits", "2"]
    words += ["--draft", "5", "--repeats", "1", "--max_new_tokens", "12"]
    _, before, _, after = measured(tmp_path, monkeypatch, capsys, *words)
    assert int(after[2].split("%")[0]) > int(before[2].split("%")[0]) + 10
    assert before[-1] == after[-1] == "20 of 20"
