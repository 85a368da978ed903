"""Two tiny chat models, one with a constant reply and one with random words; no tests here."""

import itertools

import torch
import toys
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

SAID = ["SCORES:", "7", "4"]
# Whatever is said before, the last token of a prompt is this one.
TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}<judge>"


def save_constant(folder):
    """A Llama whose next token depends on the last one alone: <judge> SCORES: 7 4 <eos>."""
    chain = ["<judge>", *SAID, "<eos>"]
    tokenizer = _tokenizer(chain[:-1])
    ids = tokenizer.convert_tokens_to_ids(chain)
    model = _llama(len(tokenizer), width=8)
    with torch.no_grad():
        for layer in model.model.layers:  # blocks that add nothing
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(len(tokenizer), 8))
        model.lm_head.weight.zero_()
        for before, after in itertools.pairwise(ids):
            model.lm_head.weight[after, before] = 1.0
    _save(model, tokenizer, folder)


def save_babbling(folder):
    """A random model over words, none of which is a number."""
    tokenizer = _tokenizer(["<judge>", *toys.WORDS])
    model = _llama(len(tokenizer), width=16)
    model.generation_config.max_new_tokens = 8
    _save(model, tokenizer, folder)


def _tokenizer(words):
    tokenizer = toys.tokenizer(words)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _llama(vocab, width):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def _save(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
