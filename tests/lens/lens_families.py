"""Tiny random models of many families, and the truth about them by hand-named blocks.

Nothing here uses distilllens.lens. Sizes: vocabulary 113, width 32 (xlstm 64), 3 to 5 blocks. Every
norm weight and bias is moved off its initial value and every transform of the logits is
non-trivial, so that an operation the lens forgets shows.
"""

from contextlib import contextmanager

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

IDS = torch.tensor([[5, 9, 17, 33, 6, 90, 12, 44, 8], [71, 4, 19, 3, 60, 21, 100, 11, 14]])

_LLAMA = {
    "vocab_size": 113,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MHA = {**_LLAMA, "num_key_value_heads": 4}
_BERT = {**{k: v for k, v in _LLAMA.items() if "key_value" not in k}, "is_decoder": True}
_GPT = {"vocab_size": 113, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
_OPT = {
    "vocab_size": 113,
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "ffn_dim": 48,
    "max_position_embeddings": 64,
}
_RWKV = {"vocab_size": 113, "hidden_size": 32, "num_hidden_layers": 3, "context_length": 64}
_MAMBA = {"vocab_size": 113, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 8}
_MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
_MAMBA2 = {"mamba_d_state": 8, "mamba_n_heads": 4, "mamba_n_groups": 1, "mamba_chunk_size": 8}
_MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8}
_GEMMA = {**_LLAMA, "head_dim": 8}

# name -> (model type, path of the blocks, settings)
CLOSED = {
    "gpt2": ("gpt2", "transformer.h", _GPT),
    "gpt_neo": (
        "gpt_neo",
        "transformer.h",
        {
            "vocab_size": 113,
            "hidden_size": 32,
            "num_layers": 4,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 2]],
            "max_position_embeddings": 64,
            "window_size": 4,
        },
    ),
    "gpt_neox": ("gpt_neox", "gpt_neox.layers", _BERT),
    "gptj": ("gptj", "transformer.h", {**_GPT, "rotary_dim": 4}),
    "codegen": ("codegen", "transformer.h", {**_GPT, "rotary_dim": 4}),
    "ctrl": (
        "ctrl",
        "transformer.h",
        {"vocab_size": 113, "n_embd": 32, "n_layer": 3, "n_head": 4, "dff": 48, "n_positions": 64},
    ),
    "opt": ("opt", "model.decoder.layers", _OPT),
    "opt-350m": (
        "opt",
        "model.decoder.layers",
        {**_OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    ),
    "opt-no-final-norm": (
        "opt",
        "model.decoder.layers",
        {**_OPT, "_remove_final_layer_norm": True},
    ),
    "bloom": (
        "bloom",
        "transformer.h",
        {"vocab_size": 113, "hidden_size": 32, "n_layer": 3, "n_head": 4},
    ),
    "falcon": (
        "falcon",
        "transformer.h",
        {k: v for k, v in _LLAMA.items() if k not in ("num_key_value_heads", "intermediate_size")},
    ),
    "mpt": (
        "mpt",
        "transformer.blocks",
        {"vocab_size": 113, "d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 64},
    ),
    "phi": ("phi", "model.layers", _LLAMA),
    "phi3": ("phi3", "model.layers", _LLAMA),
    "llama": ("llama", "model.layers", _LLAMA),
    "llama-tied": ("llama", "model.layers", {**_LLAMA, "tie_word_embeddings": True}),
    "llama4": (
        "llama4_text",
        "model.layers",
        {**_GEMMA, **_MOE, "intermediate_size_mlp": 48, "num_experts_per_tok": 1},
    ),
    "mistral": ("mistral", "model.layers", _LLAMA),
    "mixtral": ("mixtral", "model.layers", {**_LLAMA, **_MOE}),
    "qwen2": ("qwen2", "model.layers", _LLAMA),
    "qwen2_moe": (
        "qwen2_moe",
        "model.layers",
        {**_LLAMA, **_MOE, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    ),
    "qwen3": ("qwen3", "model.layers", {**_LLAMA, "head_dim": 8}),
    "gemma": ("gemma", "model.layers", _GEMMA),
    "gemma2": ("gemma2", "model.layers", {**_GEMMA, "final_logit_softcapping": 1.5}),
    "gemma3": ("gemma3_text", "model.layers", {**_GEMMA, "final_logit_softcapping": 1.5}),
    "olmo2": ("olmo2", "model.layers", _LLAMA),
    "granite": ("granite", "model.layers", {**_LLAMA, "logits_scaling": 3.0}),
    "granitemoe": ("granitemoe", "model.layers", {**_LLAMA, **_MOE, "logits_scaling": 3.0}),
    "granitemoehybrid": (
        "granitemoehybrid",
        "model.layers",
        {
            **_LLAMA,
            **_MOE,
            **_MAMBA2,
            "mamba_d_head": 16,
            "layer_types": ["mamba", "attention", "mamba"],
            "logits_scaling": 3.0,
        },
    ),
    "cohere": ("cohere", "model.layers", {**_LLAMA, "logit_scale": 0.125}),
    "cohere2": ("cohere2", "model.layers", {**_LLAMA, "logit_scale": 0.125}),
    "hyperclovax": ("hyperclovax", "model.layers", {**_LLAMA, "logits_scaling": 3.0}),
    "stablelm": ("stablelm", "model.layers", _LLAMA),
    "starcoder2": ("starcoder2", "model.layers", _LLAMA),
    "smollm3": ("smollm3", "model.layers", _LLAMA),
    "glm4": ("glm4", "model.layers", {**_LLAMA, "head_dim": 8}),
    "nanochat": ("nanochat", "model.layers", {**_MHA, "final_logit_softcapping": 1.5}),
    "deepseek_v3": (
        "deepseek_v3",
        "model.layers",
        {
            **_MHA,
            **_MLA,
            "v_head_dim": 8,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 1,
        },
    ),
    "mamba": ("mamba", "backbone.layers", _MAMBA),
    "mamba2": (
        "mamba2",
        "backbone.layers",
        {**_MAMBA, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8},
    ),
    "rwkv": ("rwkv", "rwkv.blocks", _RWKV),
    "recurrent_gemma": (
        "recurrent_gemma",
        "model.layers",
        {**_GEMMA, "lru_width": 32, "logits_soft_cap": 1.5},
    ),
    "jamba": (
        "jamba",
        "model.layers",
        {
            **_LLAMA,
            **_MOE,
            "num_hidden_layers": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "use_mamba_kernels": False,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
        },
    ),
    "nemotron": ("nemotron", "model.layers", _LLAMA),
    "minicpm3": (
        "minicpm3",
        "model.layers",
        {**_MHA, **_MLA, "v_head_dim": 8, "dim_model_base": 12, "scale_emb": 3},
    ),
    "falcon_h1": (
        "falcon_h1",
        "model.layers",
        {
            **_LLAMA,
            **_MAMBA2,
            "head_dim": 8,
            "mamba_d_ssm": 32,
            "mamba_d_head": 8,
            "lm_head_multiplier": 0.4,
        },
    ),
    "xglm": (
        "xglm",
        "model.layers",
        {"vocab_size": 113, "d_model": 32, "num_layers": 3, "attention_heads": 4, "ffn_dim": 48},
    ),
    "xlstm": (
        "xlstm",
        "backbone.blocks",
        {
            "vocab_size": 113,
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "num_heads": 4,
            "qk_dim_factor": 1.0,
            "output_logit_soft_cap": 1.5,
        },
    ),
    "openai-gpt": ("openai-gpt", "transformer.h", _GPT),
    "gpt_bigcode": ("gpt_bigcode", "transformer.h", _GPT),
    "gpt_oss": ("gpt_oss", "model.layers", {**_GEMMA, **_MOE}),
}
# Their tail reshapes to the batch it was given, so it cannot run over stacked depths.
NOT_STACKABLE = {"openai-gpt", "gpt_bigcode"}

HEAD = {
    "bert": ("bert", "bert.encoder.layer", _BERT),
    "roberta": ("roberta", "roberta.encoder.layer", _BERT),
    "electra": ("electra", "electra.encoder.layer", {**_BERT, "embedding_size": 16}),
    "modernbert": ("modernbert-decoder", "model.layers", _BERT),
}
STUB = {
    "gemma3n": (
        "gemma3n_text",
        "model.layers",
        {
            **_GEMMA,
            "num_hidden_layers": 5,
            "vocab_size_per_layer_input": 113,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 4,
            "num_kv_shared_layers": 0,
            "layer_types": ["sliding_attention", "full_attention"] * 2 + ["full_attention"],
            "activation_sparsity_pattern": [0.0] * 5,
            "final_logit_softcapping": 1.5,
        },
    ),
    "xlnet": (
        "xlnet",
        "transformer.layer",
        {"vocab_size": 113, "d_model": 32, "n_layer": 3, "n_head": 4, "d_inner": 48},
    ),
    "rwkv-rescaled": (
        "rwkv",
        "rwkv.blocks",
        {**_RWKV, "num_hidden_layers": 4, "rescale_every": 2},
    ),
}
REFUSED = {
    "reformer": (
        "reformer",
        "",
        {
            "vocab_size": 113,
            "hidden_size": 32,
            "attention_head_size": 8,
            "num_attention_heads": 4,
            "feed_forward_size": 48,
            "attn_layers": ["local"] * 3,
            "axial_pos_embds": False,
            "max_position_embeddings": 64,
            "is_decoder": True,
            "local_attn_chunk_length": 7,
            "local_num_chunks_before": 0,
        },
    ),
    "xlm": ("xlm", "", {"vocab_size": 113, "emb_dim": 32, "n_layers": 3, "n_heads": 4}),
    "hrm_text": ("hrm_text", "", {**_MHA, "head_dim": 8}),
}
ALL = CLOSED | HEAD | STUB | REFUSED


def build(name, **changes):
    """A tiny model in evaluation mode, its weights off their initial values."""
    kind, _, settings = ALL[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**{**settings, **changes})).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            size = 0.3 if parameter.ndim == 1 else 0.05
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return model


def blocks_of(name, model):
    """The blocks, by the path written down above."""
    return list(model.get_submodule(ALL[name][1]))


def streams(name, model, ids=IDS, **inputs):
    """The first tensor of what each block returns, and the model's own logits."""
    found = []

    def keep(module, args, output):
        found.append(output if isinstance(output, torch.Tensor) else output[0])

    hooks = [block.register_forward_hook(keep) for block in blocks_of(name, model)]
    logits = model(input_ids=ids, **inputs).logits
    for hook in hooks:
        hook.remove()
    return found, logits


@contextmanager
def blocks_return(name, model, hidden):
    """Inside, every block returns ``hidden`` in the form of its own output: the truth's model."""
    blocks = blocks_of(name, model)
    forms = []

    def form(module, args, output):
        forms.append(output)

    hooks = [block.register_forward_hook(form) for block in blocks]
    with torch.no_grad():
        model(input_ids=IDS)
    for hook in hooks:
        hook.remove()
    for block, output in zip(blocks, forms, strict=True):
        given = hidden
        if not isinstance(output, torch.Tensor):
            given = type(output)([hidden, *output[1:]])
        block.forward = lambda *args, _given=given, **kwargs: _given
    try:
        yield model
    finally:
        for block in blocks:
            del block.forward


def truth(name, model, hidden, ids=IDS):
    """The model's own logits when its stack stops at ``hidden``."""
    with blocks_return(name, model, hidden), torch.no_grad():
        return model(input_ids=ids).logits


def error(found, expected):
    """max |found - expected| / max |expected|."""
    assert found.shape == expected.shape
    found, expected = found.detach().float(), expected.detach().float()
    return float((found - expected).abs().max() / expected.abs().max())
