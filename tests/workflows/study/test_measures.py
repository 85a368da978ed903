"""The cost of a run by hand."""

import json

import pytest
import toys
from transformers import MixtralConfig

from distilllens.workflows.study import measures


def test_a_token_meets_some_of_the_experts(monkeypatch, tmp_path):
    """Two of eight: their weights, those of attention, of the router and of the norms."""
    config = MixtralConfig(
        vocab_size=30,
        hidden_size=16,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=8,
        num_experts_per_tok=2,
        tie_word_embeddings=False,
    )
    monkeypatch.setattr(measures, "load_config", lambda *args, **kwargs: config)
    monkeypatch.setattr(measures, "_share_of_targets", lambda *args: 0.5)
    attention, router, expert, norms = 16 * (16 + 8 + 8 + 16), 8 * 16, 3 * 16 * 20, 2 * 16
    blocks = 2 * (attention + router + 2 * expert + norms) + 16
    of_blocks, of_head = 6 * blocks * 1000, 6 * 500 * 30 * 16
    updates = 12 * (blocks + 2 * 6 * expert + 2 * 30 * 16) * 10  # of all experts
    found = measures._flops({}, tmp_path, {"num_tokens": 1000}, 10)
    assert found == of_blocks + of_head + updates


@pytest.mark.parametrize(
    ("begun", "seconds", "processor"),
    [(0, 40.0, 60.0), (50, 80.0, 120.0), (60, 100.0, None), (99, 4000.0, None), (100, None, None)],
)
def test_the_cost_of_a_run_that_went_on(monkeypatch, tmp_path, begun, seconds, processor):
    """Of 100 steps: loading is no step, so it is not multiplied by a hundred."""
    log = [{"train_runtime": 40.0}]
    monkeypatch.setattr(
        measures.run_folder,
        "read_state",
        lambda folder: (None, {"global_step": 100, "log_history": log}),
    )
    found = measures.cost_of_run({}, tmp_path, measures.Begun(begun, 60.0))
    assert (found["seconds"], found["processor_seconds"]) == (seconds, processor)
    assert found["flops"] is None


def test_texts_whose_prompts_are_long_are_passed_over(tmp_path, caplog):
    """The distance is that of those that fit; None where none does."""
    for name, seed in (("student", 0), ("teacher", 1)):
        toys.llama(2, 16, seed=seed).save_pretrained(tmp_path / name)
        toys.tokenizer().save_pretrained(tmp_path / name)
    long = {"prompt": " ".join(["the"] * 70), "completion": " cat"}
    short = {"prompt": "the", "completion": " cat"}
    fields = {"eval_file": str(tmp_path / "dev.jsonl"), "use_cpu": True, "max_length": 32}
    for rows, tokens in (([long] * 40 + [short], 2), ([long] * 3, None)):
        (tmp_path / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = measures.by_depth(fields, tmp_path / "student", str(tmp_path / "teacher"))
        assert (found and found["tokens"]) == tokens
    assert "no text of the development set has targets in its first 32 tokens" in caplog.text
