"""A student of some of the teacher's blocks: the teacher with the others skipped, in any family.

The truth is the teacher's own forward, in which hooks written here give back each skipped block's
input; no code of the package decides what it is.
"""

import copy
import re
from contextlib import contextmanager

import lens_families as families
import pytest
import torch
from lens_families import CLOSED, IDS, blocks_of, build
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3Config,
    LlamaConfig,
    LlamaForCausalLM,
)

from distilllens import LogitLens, capture, student_from_blocks
from distilllens.layer_map import Cut
from distilllens.lens import surgery
from distilllens.lens.surgery import cut_config, cut_of


@contextmanager
def skipping(blocks, kept):
    """Inside, each block that is not kept returns the stream that it was given."""

    def stream(args, kwargs):
        return args[0] if args else kwargs["hidden_states"]

    def skip(module, args, kwargs, output):
        given = stream(args, kwargs)
        if isinstance(output, torch.Tensor):
            return given
        return type(output)([given, *output[1:]])

    dropped = [block for i, block in enumerate(blocks) if i not in kept]
    hooks = [block.register_forward_hook(skip, with_kwargs=True) for block in dropped]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def logits(model, ids=IDS):
    """Without a cache, whose other layout of the same keys rounds differently in a few families."""
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def with_blocks(name, model, kept, ids=IDS):
    """The teacher's own logits with the other blocks skipped."""
    with skipping(blocks_of(name, model), kept):
        return logits(model, ids)


# Without the block of attention in the middle its cache does not work.
ENDS = {"granitemoehybrid": (0, 1)}


@pytest.mark.parametrize("name", CLOSED)
def test_a_student_is_its_teacher_with_the_other_blocks_skipped(name, family, tmp_path):
    """To the last bit: all blocks, the ends, and what plain transformers reads back from disk."""
    teacher = family(name)
    last = len(blocks_of(name, teacher)) - 1
    whole, pairs = student_from_blocks(teacher, last + 1)
    assert pairs == [(depth, depth) for depth in range(1, last + 2)]
    assert torch.equal(logits(whole), logits(teacher))
    before = {key: tensor.clone() for key, tensor in teacher.state_dict().items()}
    ends = ENDS.get(name, (0, last))
    student, pairs = student_from_blocks(teacher, ends)
    assert pairs == [(1, 1), (2, ends[1] + 1)]
    truth = with_blocks(name, teacher, ends)
    assert torch.equal(logits(student), truth)
    assert not torch.equal(truth, logits(teacher))
    student.save_pretrained(tmp_path)
    loaded, found = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    assert torch.equal(logits(loaded.eval()), truth)
    assert cut_of(loaded.config) == Cut(ends, last + 1)
    after = teacher.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    shared = {t.data_ptr() for t in after.values()} & {t.data_ptr() for t in student.parameters()}
    assert not shared


@pytest.mark.parametrize(
    "name",
    [
        "gpt2",
        "llama-tied",
        "gemma3",
        "qwen3",
        "llama4",
        "granitemoehybrid",
        "mamba",
        "jamba",
        "recurrent_gemma",
        "gpt_neo",
        "smollm3",
        "falcon_h1",
    ],
)
def test_a_cut_answers_with_a_cache_as_without(name, family):
    """Greedy answers longer than the window of what has one."""
    blocks = [1, 2] if name == "recurrent_gemma" else [0, 1]
    student, _ = student_from_blocks(family(name), blocks)
    answers = [
        student.generate(
            IDS[:1],
            max_new_tokens=12,
            do_sample=False,
            use_cache=cached,
            eos_token_id=None,
            pad_token_id=0,
        )
        for cached in (True, False)
    ]
    assert torch.equal(*answers) and answers[0].shape[1] == IDS.shape[1] + 12


WINDOWED = {"sliding_window": 4, "num_hidden_layers": 6, "max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("name", "changes", "blocks", "entry", "expected"),
    [
        (
            "gemma3",
            {**WINDOWED, "layer_types": ["sliding_attention", "full_attention"] * 3},
            (0, 1, 4, 5),
            "layer_types",
            ["sliding_attention", "full_attention"] * 2,
        ),
        (
            "gemma3",
            {**WINDOWED, "layer_types": ["sliding_attention"] * 5 + ["full_attention"]},
            (2, 5),
            "layer_types",
            ["sliding_attention", "full_attention"],
        ),
        (
            "qwen2",
            {**WINDOWED, "use_sliding_window": True, "max_window_layers": 3},
            (1, 2, 4),
            "layer_types",
            ["full_attention", "full_attention", "sliding_attention"],
        ),
        (
            "gpt_neo",
            {"num_layers": 4, "window_size": 3},
            (1, 2),
            "attention_layers",
            ["local", "global"],
        ),
        (
            "smollm3",
            {"num_hidden_layers": 6, "no_rope_layers": [1, 0, 1, 1, 0, 1]},
            (1, 2, 5),
            "no_rope_layers",
            [0, 1, 1],
        ),
        (
            "llama4",
            {"num_hidden_layers": 6, "moe_layers": [1, 3, 4], "no_rope_layers": [1, 1, 0, 1, 1, 0]},
            (2, 3, 4),
            "moe_layers",
            [1, 2],
        ),
        (
            "qwen2_moe",
            {"num_hidden_layers": 6, "decoder_sparse_step": 2, "mlp_only_layers": [3]},
            (0, 1, 3, 5),
            "mlp_only_layers",
            [0, 2],
        ),
        (
            "deepseek_v3",
            {"num_hidden_layers": 5, "first_k_dense_replace": 3},
            (1, 2, 4),
            "first_k_dense_replace",
            2,
        ),
        (
            "jamba",
            {"num_hidden_layers": 8},
            (0, 3, 6, 7),
            "layers_block_type",
            ["mamba", "attention"] * 2,
        ),
        (
            "recurrent_gemma",
            {"num_hidden_layers": 6},
            (1, 2, 5),
            "block_types",
            ["recurrent", "attention", "attention"],
        ),
        (
            "granitemoehybrid",
            {"num_hidden_layers": 4, "layer_types": ["mamba", "attention", "attention", "mamba"]},
            (0, 2),
            "layer_types",
            ["linear_attention", "full_attention"],
        ),
    ],
)
def test_settings_of_single_blocks_are_cut_with_them(
    name, changes, blocks, entry, expected, tmp_path
):
    """Windows, kinds of attention, rotary or not, dense or experts: also of what is read back."""
    teacher = build(name, **changes)
    student, pairs = student_from_blocks(teacher, blocks)
    student.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    truth = with_blocks(name, teacher, blocks)
    for cut in (student, loaded):
        assert getattr(cut.config, entry) == expected
        assert torch.equal(logits(cut), truth)
    assert [s for s, _ in pairs] == [*range(1, len(blocks) + 1)]


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (0, "blocks must be at least 1 block, got 0"),
        (4, "4 blocks cannot be kept: the model has 3"),
        ([0, 3], "block 3 does not exist: the model has blocks 0 to 2"),
        ([0, 0], "blocks must rise, each once, but 0 is given twice"),
        ([2, 1], "blocks must rise, each once, but 1 follows 2"),
        ([-1, 2], r"blocks \[-1, 2\]: write how many blocks to keep, such as 6, or which"),
        ([], r"blocks \[\]: write how many"),
        ("0;2", "blocks '0;2': write how many"),
        ("0-2", "blocks '0-2': write how many"),
        (True, "blocks True: write how many"),
        (1.5, r"blocks 1\.5: write how many"),
        (None, "blocks None: write how many"),
    ],
)
def test_blocks_that_a_teacher_does_not_have(blocks, message, family):
    """None, too many, repeated, out of order or out of range: one line each."""
    with pytest.raises(ValueError, match=message):
        student_from_blocks(family("llama"), blocks)


def with_shared_weights():
    model = build("llama")
    model.model.layers[2].mlp = model.model.layers[0].mlp
    return model


class PlacedMLP(torch.nn.Module):
    """Its output depends on the place of its block, and nothing but the place says so."""

    def __init__(self, config, layer_idx):
        super().__init__()
        self.layer_idx = layer_idx
        self.inner = torch.nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, stream):
        return self.inner(stream) * (1 + self.layer_idx)


class PlacedLlama(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        for place, layer in enumerate(self.model.layers):
            layer.mlp = PlacedMLP(config, place)


def with_blocks_that_know_their_place():
    torch.manual_seed(0)
    return PlacedLlama(build("llama").config)


def quantised():
    model = build("llama")
    model.config.quantization_config = {"quant_method": "fp8"}
    return model


def with_an_adapter_inside():
    """As transformers loads the folder of an adapter: the model itself, LoRA in its layers."""
    model = build("llama")
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj"]), model)
    return model


# What cannot be cut exactly -> why.
INEXACT = {
    "head": (lambda: build("bert"), None, "its lens is not closed"),
    "stub": (lambda: build("gemma3n"), None, "its lens is not closed"),
    "quantised": (quantised, None, "its weights are quantised"),
    "adapted": (with_an_adapter_inside, None, "it has an adapter; merge it"),
    "shared": (with_shared_weights, None, "its blocks 0 and 2 share weights"),
    "place": (
        lambda: build("gpt2", scale_attn_by_inverse_layer_idx=True),
        (0, 2),
        "attn.scaling of block 2 is 0.11.*, and 0.17.* in the cut",
    ),
    "place in the forward": (
        with_blocks_that_know_their_place,
        (0, 2),
        "its logits differ by .* a block depends on its place",
    ),
    "first": (lambda: build("rwkv"), (1, 2), "its configuration cannot describe them: .*pre_ln"),
    "regular": (
        lambda: build("jamba", num_hidden_layers=8),
        (1, 3, 4),
        "its configuration cannot describe them",
    ),
    "no cache": (
        lambda: build("granitemoehybrid"),
        (0, 2),
        "transformers cannot generate with the cut: .*only contain LinearAttention",
    ),
}


@pytest.mark.parametrize("case", INEXACT)
def test_what_cannot_be_cut_exactly_is_refused(case):
    """Whatever the reason; the teacher's random state, mode and weights stay."""
    make, blocks, message = INEXACT[case]
    teacher = make().train()
    before, state = copy.deepcopy(teacher.state_dict()), torch.get_rng_state()
    with pytest.raises(ValueError, match=message) as refused:
        student_from_blocks(teacher, blocks or [0, 1])
    assert "\n" not in str(refused.value)
    assert teacher.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())


def test_a_window_that_no_probe_would_show_is_compared(monkeypatch):
    """A wrong kind of attention changes no logit of a few tokens, and is found all the same."""
    window = {"sliding_window": 40, "layer_types": ["sliding_attention", "full_attention"] * 3}
    teacher = build("gemma3", num_hidden_layers=6, **window)
    monkeypatch.setattr(surgery, "_NO_BLOCKS", re.compile("layer_types|architectures|.*_ids?"))
    with pytest.raises(
        ValueError, match=r"\.is_sliding|\.sliding_window|\.attention_type|layer_type"
    ):
        student_from_blocks(teacher, [0, 2, 5])


def test_a_list_of_tokens_is_no_list_of_blocks():
    """Three blocks and three tokens that end an answer: these stay."""
    teacher = build("llama", eos_token_id=[2, 5, 9])
    student, _ = student_from_blocks(teacher, 2)
    assert student.config.eos_token_id == [2, 5, 9]
    assert student.generation_config.eos_token_id == [2, 5, 9]


def test_tied_heads_stay_tied_and_untied_ones_apart(family):
    """The student's head is its embedding if the teacher's is; neither is the teacher's tensor."""
    for name, tied in (("llama-tied", True), ("llama", False)):
        teacher = family(name)
        student, _ = student_from_blocks(teacher, 2)
        head, embedding = (
            get().weight for get in (student.get_output_embeddings, student.get_input_embeddings)
        )
        assert (head is embedding) == tied
        assert embedding.data_ptr() != teacher.get_input_embeddings().weight.data_ptr()
        assert all(p.requires_grad for p in student.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_dtype_is_the_teachers(dtype):
    """Bit for bit in it."""
    teacher = build("llama").to(dtype)
    student, _ = student_from_blocks(teacher, 2)
    assert {p.dtype for p in student.parameters()} == {dtype}
    assert torch.equal(logits(student), with_blocks("llama", teacher, (0, 2)))


def test_an_adapter_is_merged():
    """LoRA on a teacher: of the merged weights, by the formula W + s B A; the teacher keeps it."""
    torch.manual_seed(0)
    settings = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], init_lora_weights=False)
    teacher = get_peft_model(build("llama"), settings).eval()
    student, _ = student_from_blocks(teacher, [0, 2])
    inner = teacher.get_base_model().model.layers
    for place, block in enumerate((0, 2)):
        adapted = inner[block].self_attn.q_proj
        low = adapted.lora_B["default"].weight @ adapted.lora_A["default"].weight
        wanted = adapted.base_layer.weight + 2.0 * low
        found = student.model.layers[place].self_attn.q_proj.weight
        assert torch.allclose(found, wanted, atol=1e-6)
    assert hasattr(inner[0].self_attn.q_proj, "lora_A")


def test_a_text_model_inside_a_configuration_of_several_is_cut():
    """The blocks of a nested configuration; the rest of it stays."""
    part = {k: v for k, v in families.CLOSED["gemma3"][2].items() if "softcap" not in k}
    vision = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 28,
        "patch_size": 14,
    }
    text = {**part, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    found = cut_config(config, [0, 1])
    assert found.text_config.num_hidden_layers == 2
    assert found.text_config.layer_types == ["sliding_attention", "full_attention"]
    assert found.vision_config.num_hidden_layers == 1 and config.text_config.num_hidden_layers == 3
    assert cut_of(found) == Cut((0, 1), 3)


def test_a_configuration_remembers_its_blocks_through_training(tmp_path):
    """save_pretrained and from_pretrained of configuration and model; a cut of a cut is of that."""
    teacher = build("llama", num_hidden_layers=6)
    student, _ = student_from_blocks(teacher, 3)
    student.save_pretrained(tmp_path / "a")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    again.save_pretrained(tmp_path / "b")
    assert cut_of(AutoConfig.from_pretrained(tmp_path / "b")) == Cut((0, 2, 5), 6)
    second, pairs = student_from_blocks(again, [0, 2])
    assert pairs == [(1, 1), (2, 3)] and cut_of(second.config) == Cut((0, 2), 3)
    assert cut_of(teacher.config) is None


@pytest.mark.parametrize("noted", [None, 3, {}, {"kept": [3], "of": 2}, {"kept": "x", "of": 2}])
def test_other_entries_of_that_name_are_no_memory(noted):
    """A configuration with something else there is that of a model that was not cut."""
    assert cut_of(LlamaConfig(distilllens_blocks=noted)) is None


def test_the_lens_of_a_cut_reads_its_teachers_states(family):
    """Depth 1 of the first block alone: the teacher's own read-out after the same block."""
    teacher = family("llama")
    student, pairs = student_from_blocks(teacher, [0, 2])
    ours, theirs = LogitLens(student), LogitLens(teacher)
    states = [
        capture(model, [depth], input_ids=IDS)
        for model, depth in zip((ours, theirs), pairs[0], strict=True)
    ]
    with torch.no_grad():
        found, wanted = (
            lens.logits(s[d]) for lens, s, d in zip((ours, theirs), states, pairs[0], strict=True)
        )
    assert torch.equal(found, wanted)
