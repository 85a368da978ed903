"""The cost of a run by hand."""

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
    updates = 12 * (blocks + 2 * 30 * 16) * 10
    found = measures._flops({}, tmp_path, {"num_tokens": 1000}, 10)
    assert found == of_blocks + of_head + updates
