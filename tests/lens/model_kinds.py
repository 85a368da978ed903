"""Tiny models of every kind in the table of docs/lens.md, with their blocks named by hand.

Nothing here uses distilllens. Every norm and bias is moved off its initial value, as in
lens_families, so that an operation the lens forgets shows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import transformers as hf
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

WIDTH, DEPTH, VOCAB = 32, 3, 40
_TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_HEAD_DIM = {**_TEXT, "head_dim": 8}
_TOWER = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
_ROTARY = {"rope_scaling": {"rope_type": "default", "mrope_section": [1, 1, 2]}}
_TOWER_QWEN = {"depth": 2, "num_heads": 4, "patch_size": 4, "hidden_size": WIDTH}
_TOWER_25 = {"out_hidden_size": WIDTH, "intermediate_size": 48, "fullatt_block_indexes": [1]}
_TOWER_3 = {**_TOWER_QWEN, "out_hidden_size": WIDTH, "intermediate_size": 48}
_TOWER_3 |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
_MARKS = {
    "image_token_id": 36,
    "video_token_id": 37,
    "vision_start_token_id": 38,
    "vision_end_token_id": 39,
}
_MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
_MOE_QWEN = {**_MOE, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
_MAMBA2 = {"mamba_d_state": 8, "mamba_n_heads": 4, "mamba_n_groups": 1, "mamba_chunk_size": 8}
_BERT = {k: v for k, v in _TEXT.items() if "key_value" not in k}
_SEQ = {
    "vocab_size": VOCAB,
    "d_model": WIDTH,
    "encoder_layers": 2,
    "decoder_layers": DEPTH,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
    "forced_eos_token_id": None,
}
_T5 = {
    "vocab_size": VOCAB,
    "d_model": WIDTH,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": DEPTH,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
_SOUND = {"num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 64}
_SOUND |= {"suppress_tokens": None, "begin_suppress_tokens": None, "bos_token_id": 2}
_IMAGE = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "image_size": 8,
    "patch_size": 4,
    "num_labels": 5,
}
_STAGES = {"image_size": 16, "patch_size": 2, "num_labels": 5}


@dataclass(frozen=True)
class Made:
    """A class of transformers, its type of configuration, settings, and the path of its blocks."""

    cls: str
    config: str
    settings: dict
    blocks: str
    text: dict = field(default_factory=dict)
    tower: dict = field(default_factory=dict)

    def build(self, **changes):
        """The model, in evaluation mode, its weights off their initial values."""
        settings = {**self.settings, **changes}
        if self.text:
            settings["text_config"] = {**self.text, **changes.pop("text", {})}
            settings["vision_config"] = dict(self.tower)
        config = CONFIG_MAPPING[self.config](**settings)
        torch.manual_seed(0)
        kind = getattr(hf, self.cls)
        causal = kind is AutoModelForCausalLM
        model = (kind.from_config(config) if causal else kind(config)).eval()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                size = 0.3 if parameter.ndim == 1 else 0.05
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))
        return model


def _causal(kind, blocks="model.layers", **settings):
    return Made("AutoModelForCausalLM", kind, {**_TEXT, **settings}, blocks)


def _seq(cls, kind, blocks="model.decoder.layers", **settings):
    return Made(cls, kind, settings, blocks)


def _image(name, blocks, **settings):
    return Made(f"{name}ForImageClassification", name.lower(), {**_IMAGE, **settings}, blocks)


_LANGUAGE = "model.language_model.layers"
VISION_LANGUAGE = {
    "Qwen2-VL": Made(
        "Qwen2VLForConditionalGeneration",
        "qwen2_vl",
        _MARKS,
        _LANGUAGE,
        {**_TEXT, **_ROTARY},
        {**_TOWER_QWEN, "embed_dim": WIDTH, "mlp_ratio": 2},
    ),
    "Qwen2.5-VL": Made(
        "Qwen2_5_VLForConditionalGeneration",
        "qwen2_5_vl",
        _MARKS,
        _LANGUAGE,
        {**_TEXT, **_ROTARY},
        {**_TOWER_QWEN, **_TOWER_25},
    ),
    "Qwen3-VL": Made(
        "Qwen3VLForConditionalGeneration",
        "qwen3_vl",
        _MARKS,
        _LANGUAGE,
        {**_HEAD_DIM, **_ROTARY},
        _TOWER_3,
    ),
    "Gemma 3": Made(
        "Gemma3ForConditionalGeneration",
        "gemma3",
        {"mm_tokens_per_image": 4, "image_token_id": 36, "boi_token_id": 37, "eoi_token_id": 38},
        _LANGUAGE,
        {**_HEAD_DIM, "final_logit_softcapping": 1.5},
        _TOWER,
    ),
    "SmolVLM": Made(
        "SmolVLMForConditionalGeneration",
        "smolvlm",
        {"image_token_id": 36, "scale_factor": 2},
        "model.text_model.layers",
        {**_TEXT, "model_type": "llama"},
        _TOWER,
    ),
    "Idefics3": Made(
        "Idefics3ForConditionalGeneration",
        "idefics3",
        {"image_token_id": 36, "scale_factor": 2},
        "model.text_model.layers",
        {**_TEXT, "model_type": "llama"},
        _TOWER,
    ),
    "LLaVA": Made(
        "LlavaForConditionalGeneration",
        "llava",
        {"image_token_id": 36},
        _LANGUAGE,
        {**_TEXT, "model_type": "llama"},
        {**_TOWER, "model_type": "clip_vision_model"},
    ),
}
PREFIX = {
    "PaliGemma": Made(
        "PaliGemmaForConditionalGeneration",
        "paligemma",
        {"image_token_id": 36, "projection_dim": WIDTH},
        _LANGUAGE,
        {**_HEAD_DIM, "model_type": "gemma"},
        {**_TOWER, "model_type": "siglip_vision_model"},
    ),
}
EXPERTS = {
    "Mixtral": _causal("mixtral", **_MOE),
    "Qwen2-MoE": _causal("qwen2_moe", **_MOE_QWEN),
    "Qwen3-MoE": _causal("qwen3_moe", **_MOE_QWEN, head_dim=8),
    "gpt-oss": _causal("gpt_oss", **_MOE, head_dim=8),
}
HYBRID = {
    "Mamba": Made(
        "AutoModelForCausalLM",
        "mamba",
        {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": DEPTH, "state_size": 8},
        "backbone.layers",
    ),
    "Jamba": _causal(
        "jamba",
        **_MOE,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        mamba_d_state=8,
        mamba_dt_rank=4,
    ),
    "Zamba2": _causal(
        "zamba2",
        num_hidden_layers=4,
        mamba_d_state=8,
        mamba_headdim=16,
        n_mamba_heads=4,
        mamba_ngroups=1,
        chunk_size=8,
        num_mem_blocks=1,
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
    ),
    "Bamba": _causal("bamba", **_MAMBA2, mamba_d_head=16, attn_layer_indices=[1]),
    "Falcon-H1": _causal(
        "falcon_h1",
        **_MAMBA2,
        head_dim=8,
        mamba_d_ssm=WIDTH,
        mamba_d_head=8,
        lm_head_multiplier=0.4,
    ),
    "Granite-MoE-hybrid": _causal(
        "granitemoehybrid",
        **_MOE,
        **_MAMBA2,
        mamba_d_head=16,
        layer_types=["mamba", "attention", "mamba"],
        logits_scaling=3.0,
    ),
    "Nemotron-H": _causal(
        "nemotron_h",
        mamba_num_heads=4,
        mamba_head_dim=8,
        ssm_state_size=8,
        n_groups=1,
        chunk_size=8,
        head_dim=8,
        hybrid_override_pattern="M*-",
    ),
    "LFM2": _causal("lfm2", layer_types=["conv", "full_attention", "conv"]),
    "Qwen3-Next": _causal(
        "qwen3_next",
        **_MOE_QWEN,
        head_dim=8,
        linear_num_value_heads=2,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
    ),
}
ENCODER_DECODER = {
    "T5": _seq("T5ForConditionalGeneration", "t5", "decoder.block", **_T5),
    "T5 (untied)": _seq(
        "T5ForConditionalGeneration",
        "t5",
        "decoder.block",
        **_T5,
        tie_word_embeddings=False,
        feed_forward_proj="gated-gelu",
    ),
    "BART": _seq("BartForConditionalGeneration", "bart", **_SEQ),
    "mBART": _seq("MBartForConditionalGeneration", "mbart", **_SEQ),
    "Pegasus": _seq("PegasusForConditionalGeneration", "pegasus", **_SEQ),
    "Marian": _seq("MarianMTModel", "marian", **_SEQ),
    "Whisper": _seq("WhisperForConditionalGeneration", "whisper", **{**_SEQ, **_SOUND}),
}
MASKED = {
    "BERT": Made("BertForMaskedLM", "bert", _BERT, "bert.encoder.layer"),
    "RoBERTa": Made("RobertaForMaskedLM", "roberta", _BERT, "roberta.encoder.layer"),
    "DistilBERT": Made(
        "DistilBertForMaskedLM",
        "distilbert",
        {"vocab_size": VOCAB, "dim": WIDTH, "n_layers": DEPTH, "n_heads": 4, "hidden_dim": 48},
        "distilbert.transformer.layer",
    ),
    "ELECTRA": Made("ElectraForMaskedLM", "electra", _BERT, "electra.encoder.layer"),
    "ModernBERT": Made("ModernBertForMaskedLM", "modernbert", _BERT, "model.layers"),
    "DeBERTa-v2": Made("DebertaV2ForMaskedLM", "deberta-v2", _BERT, "deberta.encoder.layer"),
    "MPNet": Made("MPNetForMaskedLM", "mpnet", _BERT, "mpnet.encoder.layer"),
}
IMAGES = {
    "ViT": _image("ViT", "vit.layers"),
    "DeiT": _image("DeiT", "deit.layers"),
    "BEiT": _image("Beit", "beit.layers"),
    "DINOv2": _image("Dinov2", "dinov2.encoder.layer"),
    "SigLIP": Made(
        "SiglipForImageClassification",
        "siglip",
        {"num_labels": 5},
        "vision_model.encoder.layers",
        {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 20},
        _IMAGE,
    ),
}
REFUSED = {
    "ALBERT": Made("AlbertForMaskedLM", "albert", _BERT, ""),
    "Swin": Made(
        "SwinForImageClassification",
        "swin",
        {**_STAGES, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 2},
        "",
    ),
    "ConvNeXt": Made("ConvNextForImageClassification", "convnext", _STAGES, ""),
    "ResNet": Made("ResNetForImageClassification", "resnet", {"num_labels": 5}, ""),
}
EXACT = {
    **VISION_LANGUAGE,
    **PREFIX,
    **EXPERTS,
    **HYBRID,
    **ENCODER_DECODER,
    **MASKED,
    **IMAGES,
}
ALL = EXACT | REFUSED
