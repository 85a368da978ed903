"""The lens is the model's own read-out, at every depth, or it is refused."""

import lens_families as families
import pytest
import torch
from torch import nn

from distilllens import Head, LogitLens, capture
from distilllens.lens import read_states

EXACT = 1e-5  # of the largest logit, in float32
MODES = {
    **dict.fromkeys(families.CLOSED, "closed"),
    **dict.fromkeys(families.HEAD, "head"),
    **dict.fromkeys(families.STUB, "stub"),
}


@pytest.mark.parametrize("name", MODES)
@torch.no_grad()
def test_equals_the_model_with_its_blocks_skipped(name, family):
    """At every block: the logits of the model's own forward when all blocks return that state."""
    model = family(name)
    lens = LogitLens(model)
    assert lens.mode == MODES[name]
    states, logits = families.streams(name, model)
    assert lens.num_layers == len(states)
    for hidden in states:
        expected = families.truth(name, model, hidden)
        assert families.error(lens.logits(hidden), expected) <= EXACT
    assert families.error(lens.logits(states[-1]), logits) <= EXACT


@pytest.mark.parametrize("name", families.CLOSED)
@torch.no_grad()
def test_head_alone_gives_the_logits_of_a_normed_state(name, family):
    """``lens.head(lens.normalize(h)) == lens.logits(h)``: what the fused loss relies on."""
    model = family(name)
    lens = LogitLens(model)
    states, logits = families.streams(name, model)
    head = lens.head
    assert isinstance(head, Head)
    assert head.weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    normed = lens.normalize(states[-1])
    assert families.error(head(normed), logits) <= EXACT
    assert families.error(lens.logits(normed, normalize=False), logits) <= EXACT


@pytest.mark.parametrize("name", [n for n in families.CLOSED if n not in families.NOT_STACKABLE])
@torch.no_grad()
def test_training_read_equals_the_lens_at_every_depth(name, family):
    """One backbone call with the depths stacked gives what the lens gives depth by depth."""
    model = family(name)
    lens = LogitLens(model)
    lens.check_trainable()
    depths = range(lens.num_layers + 1)
    states, logits = families.streams(name, model)
    read = read_states(lens, depths, input_ids=families.IDS)
    assert read.normed and list(read.states) == list(depths)
    for depth in depths[1:]:
        expected = families.truth(name, model, states[depth - 1])
        assert families.error(lens.head(read[depth]), expected) <= EXACT
    assert families.error(lens.head(read.final), logits) <= EXACT


@pytest.mark.parametrize("name", sorted(families.NOT_STACKABLE))
def test_a_tail_that_counts_its_rows_is_refused_for_training_only(name, family):
    """openai-gpt and gpt_bigcode view their output in the batch's shape: inspect, do not train."""
    lens = LogitLens(family(name))
    assert lens.mode == "closed"
    with pytest.raises(ValueError, match=r"cannot be trained through the lens: .*shape"):
        lens.check_trainable()


@pytest.mark.parametrize("name", [*families.HEAD, *families.STUB])
def test_other_modes_are_for_the_inspector(name, family):
    """No weight alone explains these logits, so there is no head, no training, and a reason."""
    lens = LogitLens(family(name))
    reason = f"only in mode 'closed', and its mode is '{lens.mode}': (its|an|something) .+"
    with pytest.raises(ValueError, match=reason):
        _ = lens.head
    with pytest.raises(ValueError, match="cannot be trained through the lens: .*" + reason):
        lens.check_trainable()
    with pytest.raises(ValueError, match="states for training " + reason):
        read_states(lens, [1], input_ids=families.IDS)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("reformer", "ReformerModelWithLMHead: its logits depend on more than the output"),
        ("xlm", "XLMWithLMHeadModel: it has no list of blocks"),
        (
            "hrm_text",
            r"HrmTextForCausalLM: its blocks \(model.H_module.layers\) run more than once",
        ),
    ],
)
def test_a_model_without_one_stream_is_refused(name, reason, family):
    """Two streams, no block modules, recurrent blocks: the message names class and reason."""
    with pytest.raises(ValueError, match="no exact logit lens for " + reason):
        LogitLens(family(name))


@pytest.mark.parametrize(
    ("thing", "reason"),
    [
        (None, "NoneType: the lens needs a transformers model, got NoneType"),
        (nn.Linear(2, 2), "Linear: it is not a transformers model"),
    ],
)
def test_what_is_no_causal_model_is_refused(thing, reason):
    """Any failure becomes a ValueError that names the class."""
    with pytest.raises(ValueError, match="no exact logit lens for " + reason):
        LogitLens(thing)


def test_a_model_without_its_head_is_refused(family):
    """The backbone of a causal LM has no logits."""
    with pytest.raises(ValueError, match="LlamaModel: it has no output embedding"):
        LogitLens(family("llama").model)


def test_a_broken_forward_is_refused_by_name(family):
    """An error inside the model is reported as the probe's, with the cause attached."""
    model = families.build("llama")

    def broken(*args, **kwargs):
        raise RuntimeError("no such kernel")

    model.model.norm.forward = broken
    reason = "LlamaForCausalLM: the probe failed: RuntimeError: no such kernel"
    with pytest.raises(ValueError, match=reason):
        LogitLens(model)


def test_a_tail_over_several_blocks_is_refused(family):
    """A model whose logits mix in an earlier block's output cannot be read block by block."""
    model = families.build("llama")
    kept = []
    model.model.layers[0].register_forward_hook(lambda m, args, out: kept.append(out))
    model.model.norm.register_forward_hook(lambda m, args, out: out + kept[-1])
    with pytest.raises(ValueError, match="its logits depend on more than the output of its last"):
        LogitLens(model)


def snapshot(model):
    """Everything that the lens must leave unchanged."""
    return {
        "modes": [m.training for m in model.modules()],
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for m in model.modules()
        ],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "checkpointing": [getattr(m, "gradient_checkpointing", None) for m in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "no_grad": [p.grad is None for p in model.parameters()],
        "config": str(model.config),
        "rng": torch.get_rng_state().tolist(),
    }


@pytest.mark.parametrize("name", ["gpt2", "bert", "gemma3n", "xlnet"])
def test_leaves_the_model_as_it_was(name):
    """Modes (unequal among modules), hooks, attributes, gradients and random state stay."""
    model = families.build(name).train()
    families.blocks_of(name, model)[1].eval()
    next(model.parameters()).requires_grad_(False)
    before = snapshot(model)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    lens = LogitLens(model)
    if lens.mode == "closed":
        lens.check_trainable()
    assert snapshot(model) == before
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_leaves_the_model_as_it_was_when_refusing(family):
    """A refusal midway restores as much as success."""
    model = families.build("reformer").train()
    before = snapshot(model)
    with pytest.raises(ValueError, match="no exact logit lens"):
        LogitLens(model)
    assert snapshot(model) == before


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.bfloat16) for name in families.CLOSED),
        *((name, torch.float16) for name in ("llama", "gpt2", "gemma2", "mamba", "minicpm3")),
    ],
)
@torch.no_grad()
def test_half_precision_is_the_models_own(name, dtype):
    """In bf16 and fp16 the lens is bitwise the model's stubbed forward, and trainable."""
    model = families.build(name).to(dtype)
    lens = LogitLens(model)
    assert lens.mode == "closed"
    if name not in families.NOT_STACKABLE:
        lens.check_trainable()
    for hidden in families.streams(name, model)[0]:
        expected = families.truth(name, model, hidden)
        assert lens.logits(hidden).dtype == expected.dtype
        assert torch.equal(lens.logits(hidden), expected)


@torch.no_grad()
def test_autocast_follows_the_model(family):
    """Inside autocast the lens is bitwise what the model is there."""
    model = family("llama")
    lens = LogitLens(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states, logits = families.streams("llama", model)
        assert torch.equal(lens.logits(states[-1]), logits)
        read = read_states(lens, [1, 3], input_ids=families.IDS)
        assert torch.equal(lens.head(read[3]), logits)


def test_rows_and_gradients_pass_through(family):
    """Closed mode takes ``[N, D]`` rows, and gradients reach the state, the norm and the head."""
    model = families.build("llama")
    lens = LogitLens(model)
    rows = torch.randn(5, 32, requires_grad=True)
    lens.logits(rows).square().sum().backward()
    assert rows.grad.abs().sum() > 0
    assert model.model.norm.weight.grad.abs().sum() > 0
    assert model.lm_head.weight.grad.abs().sum() > 0
    head = LogitLens(family("bert"))
    assert head.logits(torch.randn(5, 32)).shape == (5, 113)
    with pytest.raises(ValueError, match=r"stream has 4 axes, got shape \[5, 32\]"):
        LogitLens(family("gemma3n")).logits(torch.randn(5, 32))


def test_a_lens_shows_what_it_reads(family):
    """In a notebook, a lens prints its model, depth and mode."""
    assert (
        repr(LogitLens(family("gpt2"))) == "LogitLens(GPT2LMHeadModel, num_layers=3, mode='closed')"
    )


def test_head_is_read_live():
    """Weights swapped after construction are the weights of ``lens.head``."""
    model = families.build("llama")
    lens = LogitLens(model)
    model.lm_head.weight = nn.Parameter(torch.zeros(113, 32))
    assert lens.head.weight is model.lm_head.weight


def test_a_scale_before_a_biased_head_has_no_head():
    """``W (c h) + b`` is not ``c (W h + b)``: the lens can read it, the Head cannot."""
    model = families.build("minicpm3")
    model.lm_head.bias = nn.Parameter(torch.randn(113))
    lens = LogitLens(model)
    with pytest.raises(ValueError, match="scales its states before a head with a bias"):
        _ = lens.head


def test_real_pretrained_llama(shared):
    """stories260K, trained weights: exact at each of its 5 blocks."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(shared / "models/stories260K").eval()
    lens = LogitLens(model)
    lens.check_trainable()
    with torch.no_grad():
        states = capture(lens, range(6), input_ids=families.IDS)
        logits = model(input_ids=families.IDS).logits
    assert lens.num_layers == 5
    assert families.error(lens.logits(states[5]), logits) <= EXACT
