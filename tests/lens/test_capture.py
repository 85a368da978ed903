"""``capture`` is hooks on the blocks, without logits; ``read_states`` is the training path."""

import gc
import weakref

import lens_families as families
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from distilllens import LayerStates, LogitLens, capture
from distilllens.lens import read_states

VOCABULARY, TOKENS = 113, families.IDS.numel()


class LargestVocabularyTensor(TorchDispatchMode):
    """The most rows of any tensor ``[..., V]`` made inside."""

    rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.ndim >= 2 and out.shape[-1] == VOCABULARY:
            rows = out.numel() // VOCABULARY
            weight = rows in (32, 64)  # the head's weight, transposed, ends in V too
            self.rows = max(self.rows, 0 if weight else rows)
        return out


# A cache lays their keys out anew, and products of other strides round otherwise.
ROUNDED_BY_A_CACHE = ("gpt_neo", "gptj", "codegen")


@pytest.mark.parametrize("name", [*families.CLOSED, *families.HEAD, *families.STUB])
@torch.no_grad()
def test_equals_hooks_on_the_blocks(name, family):
    """States are what the blocks return, bitwise; no tensor ``[B, T, V]`` is made."""
    model = family(name)
    without = {"use_cache": False} if name in ROUNDED_BY_A_CACHE else {}
    expected, _ = families.streams(name, model, **without)
    depths = range(len(expected) + 1)
    capture(model, [0], input_ids=families.IDS)  # locates the blocks, once
    with LargestVocabularyTensor() as seen:
        states = capture(model, depths, input_ids=families.IDS)
    assert isinstance(states, LayerStates) and not states.normed and states.final is None
    assert list(states.states) == list(depths)
    for depth in depths[1:]:
        assert torch.equal(states[depth], expected[depth - 1])
    assert states[0].shape == states[1].shape
    assert seen.rows < TOKENS
    assert capture(LogitLens(model), [1], input_ids=families.IDS)[1].equal(states[1])


@torch.no_grad()
def test_depth_0_is_the_embeddings(family):
    """The first block's input: token plus position embedding for gpt2."""
    model = family("gpt2")
    transformer = model.transformer
    expected = transformer.wte(families.IDS) + transformer.wpe(torch.arange(9))
    assert torch.equal(capture(model, [0], input_ids=families.IDS)[0], expected)


def test_inputs_go_to_the_model_untouched(family):
    """Masks, positions and embeddings count as in the model's own forward; labels do nothing."""
    model = family("llama")
    mask = torch.ones_like(families.IDS)
    mask[0, :3] = 0
    with torch.no_grad():
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        given = {"attention_mask": mask, "position_ids": positions}
        expected, _ = families.streams("llama", model, **given)
        states = capture(model, [2], input_ids=families.IDS, labels=families.IDS, **given)
        assert torch.equal(states[2], expected[1])
        embedded = capture(model, [2], inputs_embeds=model.model.embed_tokens(families.IDS))
        assert torch.equal(embedded[2], capture(model, [2], input_ids=families.IDS)[2])


def test_keeps_the_callers_grad_mode(family):
    """Gradients flow where the caller has them on, and nowhere else."""
    model = families.build("gpt2")
    states = capture(model, [2], input_ids=families.IDS)
    states[2].sum().backward()
    assert model.transformer.wte.weight.grad is not None
    with torch.no_grad():
        assert not capture(model, [2], input_ids=families.IDS)[2].requires_grad


@torch.no_grad()
def test_only_the_depths_asked_for_stay_alive(family):
    """The other blocks' outputs are gone when capture returns."""
    model = families.build("llama")
    alive = []
    hooks = [
        block.register_forward_hook(lambda m, args, out: alive.append(weakref.ref(out)))
        for block in model.model.layers
    ]
    capture(model, [1], input_ids=families.IDS)  # with the locating forward
    alive.clear()
    states = capture(model, [2], input_ids=families.IDS)
    gc.collect()
    assert [ref() is not None for ref in alive] == [False, True, False]
    assert 2 in states and 1 not in states and list(states) == [2] and len(states) == 1
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("depths", [[4], [-1], [1, 7], [1.0], [True], ["1"]])
def test_refuses_a_depth_that_does_not_exist(depths, family):
    """The message states the valid range, for both ways of reading."""
    match = r"depth .* does not exist: valid depths are 0 \(embeddings\) to 3"
    with pytest.raises(ValueError, match=match):
        capture(family("llama"), depths, input_ids=families.IDS)
    with pytest.raises(ValueError, match=match):
        read_states(LogitLens(family("llama")), depths, input_ids=families.IDS)


def test_takes_depths_in_any_order_and_form(family):
    """A range, a set, a generator; repeated depths once, in the requested order."""
    model = family("llama")
    states = capture(model, iter([3, 0, 3]), input_ids=families.IDS)
    assert list(states) == [3, 0]
    assert list(capture(model, [], input_ids=families.IDS)) == []


def test_a_model_without_blocks_is_refused(family):
    """capture names the class, as the lens does."""
    with pytest.raises(ValueError, match="no blocks to read in XLMWithLMHeadModel: it has no list"):
        capture(family("xlm"), [0], input_ids=families.IDS)


def test_sees_a_model_whose_blocks_were_exchanged():
    """Blocks are located again after the list of blocks has changed."""
    model = families.build("llama")
    capture(model, [1], input_ids=families.IDS)
    model.model.layers = model.model.layers[:2]
    model.config.num_hidden_layers = 2
    with pytest.raises(ValueError, match=r"0 \(embeddings\) to 2"):
        capture(model, [3], input_ids=families.IDS)


def test_leaves_no_hook_and_no_reference_behind():
    """Hooks are gone after a capture, after an error in it, and the model can be freed."""
    model = families.build("llama")
    lens = LogitLens(model)
    read_states(lens, [1], input_ids=families.IDS)
    capture(model, [1], input_ids=families.IDS)
    with pytest.raises(TypeError):
        capture(model, [1], input_ids="text")
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    ref = weakref.ref(model)
    del model, lens
    gc.collect()
    assert ref() is None


@torch.no_grad()
def test_a_block_that_writes_in_place_is_read_before(family):
    """A later block that overwrites its input does not change what was captured."""
    model = families.build("llama")
    forward = model.model.layers[2].forward

    def in_place(hidden, *args, **kwargs):
        out = forward(hidden, *args, **kwargs)
        hidden.zero_()
        return out

    expected = capture(model, [2], input_ids=families.IDS)[2]
    model.model.layers[2].forward = in_place
    lens = LogitLens(model)
    assert torch.equal(capture(lens, [2], input_ids=families.IDS)[2], expected)


# ---- the training path ----


def lens_loss(read, lens):
    """A scalar that depends on every state read."""
    head = lens.head
    rows = [head(state).square().mean() for state in read.states.values()]
    return torch.stack([*rows, head(read.final).square().mean()]).sum()


def gradients(model):
    return [torch.zeros(1) if p.grad is None else p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt2", "gemma2", "mixtral", "falcon"])
def test_training_read_has_the_gradients_of_the_naive_one(name):
    """read_states against capture and a norm call per depth: equal values and gradients."""
    model = families.build(name)
    lens = LogitLens(model)
    read = read_states(lens, [1, 2], input_ids=families.IDS)
    lens_loss(read, lens).backward()
    ours = gradients(model)
    model.zero_grad()
    states = capture(model, [1, 2, 3], input_ids=families.IDS)
    normed = {d: lens.normalize(states[d]) for d in (1, 2)}
    naive = LayerStates(normed, normed=True, final=lens.normalize(states[3]))
    lens_loss(naive, lens).backward()
    for a, b in zip(ours, gradients(model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning:transformers")
@pytest.mark.parametrize("name", ["llama", "gpt2", "mamba", "gemma3", "qwen2_moe"])
def test_checkpointing_gives_the_same_gradients(name):
    """Gradient checkpointing, non-reentrant: hooks are gone before the recomputation."""
    model = families.build(name).train()
    for module in model.modules():  # dropout would differ, and is not at issue here
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    lens = LogitLens(model)
    lens_loss(read_states(lens, [1, 2], input_ids=families.IDS), lens).backward()
    plain = gradients(model)
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    lens = LogitLens(model)
    lens.check_trainable()
    lens_loss(read_states(lens, [1, 2], input_ids=families.IDS), lens).backward()
    assert all(map(torch.equal, plain, gradients(model)))


def test_training_read_with_dropout_is_one_forward(family):
    """In train mode the states come from the same forward as ``final``."""
    model = families.build("gpt2", resid_pdrop=0.5).train()
    lens = LogitLens(model)
    torch.manual_seed(3)
    read = read_states(lens, [3, 1], input_ids=families.IDS)
    torch.manual_seed(3)
    logits = model(input_ids=families.IDS).logits
    assert families.error(lens.head(read.final), logits) <= 1e-6
    assert torch.equal(read[3], read.final)
    assert list(read) == [3, 1]


@torch.no_grad()
def test_unnormed_training_read(family):
    """normalize=False: the blocks' own states, but a normed ``final``."""
    model = family("llama")
    lens = LogitLens(model)
    read = read_states(lens, [0, 2, 3], normalize=False, input_ids=families.IDS)
    states = capture(model, [0, 2, 3], input_ids=families.IDS)
    assert not read.normed
    assert all(torch.equal(read[d], states[d]) for d in (0, 2, 3))
    assert torch.equal(read.final, lens.normalize(states[3]))


def test_unnormed_training_read_needs_the_heads_width(family):
    """opt-350m projects 32 to 16 after its blocks: raw states do not fit its head."""
    lens = LogitLens(family("opt-350m"))
    with pytest.raises(ValueError, match="depth 1 is 32 wide and the head reads 16"):
        read_states(lens, [1], normalize=False, input_ids=families.IDS)


def test_training_read_never_calls_the_head(family):
    """The head's module stays untouched: its weight is read by the loss."""
    model = families.build("llama")
    lens = LogitLens(model)

    def refuse(*args):
        raise AssertionError("the head module ran")

    model.lm_head.register_forward_pre_hook(refuse)
    calls = []
    model.model.norm.register_forward_hook(lambda m, args, out: calls.append(out.shape))
    read_states(lens, [1, 2], input_ids=families.IDS)
    assert calls == [(6, 9, 32)]  # once, over two depths and the last, of 2 rows each


def test_gradients_survive_a_lens_made_inside_autocast():
    """Autocast caches cast weights; a probe without gradients must not leave it such copies."""
    model = families.build("llama")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = capture(model, [3], input_ids=families.IDS)  # locates the blocks in here
        LogitLens(model).logits(states[3]).float().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_model_that_returns_tuples_is_read(family):
    """``return_dict=False`` in the config changes the form of outputs, not their meaning."""
    model = families.build("gpt_neo", return_dict=False)
    lens = LogitLens(model)
    lens.check_trainable()
    with torch.no_grad():
        states = capture(lens, [4], input_ids=families.IDS)
        expected = model(input_ids=families.IDS)[0]
    assert families.error(lens.logits(states[4]), expected) <= 1e-6


def test_the_training_read_wants_a_lens(family):
    """A bare model is named, with what to make of it."""
    with pytest.raises(ValueError, match=r"takes a LogitLens, got Llama.*LogitLens\(model\)"):
        read_states(family("llama"), [1], input_ids=families.IDS)
