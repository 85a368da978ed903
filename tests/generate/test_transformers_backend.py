"""Answers equal those of the naive program in any batch, and the model is left unchanged."""

import copy
import hashlib
import logging
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaForCausalLM,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from distilllens.generate.decoding import Decoding
from distilllens.generate.transformers_backend import (
    Generation,
    TransformersBackend,
    check_prompt_lengths,
    plan_batches,
    tempered,
)

sys.path.append(str(Path(__file__).parents[1] / "lens"))
import lens_families

PROMPTS = [
    [71, 4, 19, 3, 60, 21, 100, 11, 14],
    [5],
    [9, 17, 33],
    [6, 90, 12, 44, 8, 23],
    [50, 31, 2],
    [7, 7, 7, 7, 7],
]
ENDS = [3, 20, 41, 58, 66, 79, 87, 101]  # of 113 tokens: about one in fourteen ends an answer
SAMPLING = Decoding(max_new_tokens=14)


def mix(bits):
    """murmur3's finalizer on numpy's uint32."""
    bits = (bits ^ bits >> np.uint32(16)) * np.uint32(0x85EBCA6B)
    bits = (bits ^ bits >> np.uint32(13)) * np.uint32(0xC2B2AE35)
    return bits ^ bits >> np.uint32(16)


def gumbel(prompt, seed, step, vocab):
    """The documented noise of one step, float64."""
    text = " ".join(map(str, [seed, *prompt])).encode()
    first, second = np.frombuffer(hashlib.shake_256(text).digest(8 * step + 8), "<u4")[-2:]
    bits = mix(mix(np.arange(vocab, dtype=np.uint32) + first) + second) & np.uint32(2**31 - 1)
    return -np.log(-np.log1p(-(bits + 0.5) / 2**31))


def share(scores, top_p):
    """-inf for a token before which, from the most probable on, ``top_p`` is already reached."""
    probabilities = np.exp(scores - scores.max())
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities)
    before = np.cumsum(probabilities[order]) - probabilities[order]
    kept = np.full_like(scores, -np.inf)
    kept[order[before < top_p]] = scores[order[before < top_p]]
    return kept


@torch.no_grad()
def naive(model, prompt, decoding=SAMPLING, *, seed=0, ends=ENDS):
    """One prompt, a whole forward without a cache for every token -> ids, gaps of the two best."""
    ids, gaps = [], []
    for step in range(decoding.max_new_tokens):
        inputs = {"input_ids": torch.tensor([prompt + ids])}
        if "use_cache" in model.forward.__code__.co_varnames:
            inputs["use_cache"] = False
        scores = model(**inputs).logits[0, -1].double().numpy()
        if not decoding.greedy:
            scores = share(scores / decoding.temperature, decoding.top_p)
            scores = scores + gumbel(prompt, seed, step, len(scores))
        second, best = np.sort(scores)[-2:]
        ids.append(int(np.argmax(scores)))
        gaps.append(best - second)
        if ids[-1] in ends:
            break
    return ids, gaps


class Letters:
    """A tokenizer of numbers: a text is its tokens, "5 9 17"; nothing is special."""

    pad_token_id, eos_token_id, bos_token_id = 0, None, None

    def __call__(self, texts, **kwargs):
        ids = [[int(word) for word in text.split()] for text in texts]
        return {"input_ids": ids, "special_tokens_mask": [[0] * len(row) for row in ids]}

    def decode(self, ids, skip_special_tokens):
        assert skip_special_tokens
        return " ".join(map(str, ids))


def expected(model, prompts=PROMPTS, decoding=SAMPLING, *, seed=0, ends=ENDS):
    """The naive program's answers."""
    found = []
    for prompt in prompts:
        ids, gaps = naive(model, prompt, decoding, seed=seed, ends=ends)
        finished = ids[-1] in ends
        text = " ".join(map(str, ids[:-1] if finished else ids))
        found.append(Generation(text, len(ids), finished, sum(gap <= 1e-4 for gap in gaps)))
    return found


def family(name, **changes):
    """A tiny model of a family whose generation config has many end tokens."""
    model = lens_families.build(name, **changes)
    model.generation_config = GenerationConfig(eos_token_id=ENDS)
    return model


def backend(model, decoding=SAMPLING, tokenizer=None):
    return TransformersBackend(model, tokenizer or Letters(), decoding)


def batch_sizes(model, call):
    """How many rows each forward had."""
    sizes = []
    with model.get_input_embeddings().register_forward_hook(
        lambda module, args, output: sizes.append(len(args[0]))
    ):
        call()
    return sizes


@pytest.fixture
def silent(caplog):
    """Fails a test in which transformers warns."""
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    yield
    logger.removeHandler(caplog.handler)
    assert [r.message for r in caplog.records if r.levelno >= logging.WARNING] == []


FAMILIES = {
    "llama": ({}, True),
    "gpt2": ({}, True),
    "opt": ({}, True),
    "bloom": ({}, True),
    "mistral": ({"sliding_window": 4}, True),
    "gemma2": ({"sliding_window": 4}, True),
    "mixtral": ({}, True),
    "granitemoehybrid": ({}, True),
    "falcon_h1": ({}, True),
    "mamba": ({}, False),
    "mamba2": ({}, False),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_answers_as_the_naive_program(name, silent):
    """Learned, rotary and linear positions, windows, experts, states; rows end at many places."""
    changes, cut = FAMILIES[name]
    model = family(name, **changes)
    found, right = backend(model), expected(model, seed=10)
    assert found.note is None
    answers = []
    ids = found.encode([" ".join(map(str, prompt)) for prompt in PROMPTS])
    sizes = batch_sizes(model, lambda: answers.extend(found.generate(ids, seed=10)))
    assert answers == right
    assert len({answer.num_tokens for answer in right}) > 2 and any(a.finished for a in right)
    # Once half of the rows have ended, the others go on alone, if the cache can be cut.
    lengths = [answer.num_tokens for answer in right]
    if cut:
        alive = [sum(length > step for length in lengths) for step in range(max(lengths))]
        assert all(rows < 2 * going for rows, going in zip(sizes, alive, strict=True))
        assert sizes[-1] < len(PROMPTS)
    else:
        assert set(sizes) == {len(PROMPTS)}


@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(max_new_tokens=14, greedy=True, temperature=9.0, top_p=0.1),
        Decoding(max_new_tokens=14, temperature=0.5),
        Decoding(max_new_tokens=14, temperature=3.0, top_p=0.3),
        Decoding(max_new_tokens=14, temperature=1e-60, top_p=1e-9),
        Decoding(max_new_tokens=1),
    ],
    ids=str,
)
def test_settings_mean_what_the_naive_program_means(decoding):
    """Greedy ignores the rest; temperature divides before top-p, top-p cuts before the noise."""
    model = family("llama")
    if decoding.temperature == 1e-60:  # the naive program would overflow; the limit is greedy
        right = expected(model, decoding=Decoding(max_new_tokens=14, greedy=True))
    else:
        right = expected(model, decoding=decoding)
    assert backend(model, decoding).generate(PROMPTS, seed=0) == right


def test_neither_order_nor_batches_matter():
    """Answers of shuffled prompts in batches of 1, 2 and 4; other seeds give other texts."""
    found = backend(family("gpt2"))
    right = found.generate(PROMPTS, seed=3)
    for size in (1, 2, 4):
        order = random.Random(size).sample(range(len(PROMPTS)), len(PROMPTS))
        answers = {}
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            answers |= zip(rows, found.generate([PROMPTS[r] for r in rows], seed=3), strict=True)
        assert [answers[row] for row in range(len(PROMPTS))] == right
    assert found.generate(PROMPTS, seed=4) != right
    assert found.generate([], seed=3) == []


def test_equal_prompts_have_equal_answers_and_random_ones_differ():
    """The noise depends on the tokens of a prompt, not on its position."""
    answers = backend(family("llama")).generate([[5, 6], [6, 5], [5, 6]], seed=0)
    assert answers[0] == answers[2] != answers[1]


@pytest.mark.parametrize(
    ("name", "note", "rows"),
    [
        ("rwkv", "Batching changes this model's logits, so prompts run one at a time.", {1}),
        ("reformer", "Left padding changes this model's logits", {1, 2}),
    ],
)
def test_a_model_that_batches_harm_runs_in_smaller_ones(name, note, rows):
    """RWKV mixes its rows and Reformer sees padding: a note says so, and the answers are right."""
    model = family(name)
    found = backend(model)
    assert found.note.startswith(note)
    answers = []
    assert set(batch_sizes(model, lambda: answers.extend(found.generate(PROMPTS, seed=1)))) <= rows
    assert answers == expected(model, seed=1)


class Forgetful(LlamaForCausalLM):
    """A Llama whose forward forgets the attention mask, as some models of the hub do."""

    def forward(self, input_ids=None, attention_mask=None, past_key_values=None, **kwargs):
        return super().forward(input_ids, past_key_values=past_key_values, **kwargs)


def test_a_model_without_an_attention_mask_is_not_padded():
    """Its padding would be read as text."""
    model = Forgetful(family("llama").config).eval()
    model.generation_config = GenerationConfig(eos_token_id=ENDS)
    found = backend(model)
    assert "Left padding" in found.note
    assert found.generate(PROMPTS, seed=2) == expected(model, seed=2)


def test_a_model_that_generates_something_else_is_refused():
    """RoBERTa counts positions from 2 in its forward and from 0 in generate."""
    with pytest.raises(ValueError, match=r"RobertaForCausalLM.generate disagrees .* off by"):
        backend(family("roberta"))


def test_the_models_own_wishes_do_not_count(silent):
    """Only the end tokens of its generation config are used, and the config is unchanged after."""
    model = family("llama")
    right = backend(model).generate(PROMPTS, seed=5)
    wishes = GenerationConfig(
        eos_token_id=ENDS,
        max_length=3,
        min_new_tokens=12,
        do_sample=True,
        temperature=0.01,
        top_k=1,
        top_p=0.01,
        min_p=0.5,
        typical_p=0.2,
        repetition_penalty=9.0,
        no_repeat_ngram_size=1,
        bad_words_ids=[[i] for i in range(50)],
        suppress_tokens=list(range(50, 80)),
        forced_bos_token_id=7,
        forced_eos_token_id=8,
        num_beams=3,
        num_return_sequences=2,
        use_cache=False,
        cache_implementation="static",
        output_scores=True,
        stop_strings=["1"],
        max_time=0.0,
    )
    model.generation_config = wishes
    before = wishes.to_dict()
    assert backend(model).generate(PROMPTS, seed=5) == right
    assert model.generation_config is wishes and wishes.to_dict() == before


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails, silent):
    """Training with gradient checkpointing goes on: modes, states, attributes, random numbers."""
    model = family("llama", use_cache=False, attention_dropout=0.5)
    right = expected(model, seed=6)
    model.train()
    model.activation_checkpointing_enable()
    model.model.layers[1].eval()
    found = backend(model)
    config, attributes = model.config.to_dict(), set(vars(model))
    modes = [module.training for module in model.modules()]
    own, state = model.generation_config, torch.get_rng_state()
    if fails:
        hook = model.lm_head.register_forward_hook(lambda *args: 1 / 0)
        with hook, pytest.raises(ZeroDivisionError):
            found.generate(PROMPTS, seed=6)
    else:
        assert found.generate(PROMPTS, seed=6) == right
    assert [module.training for module in model.modules()] == modes
    assert model.config.to_dict() == config and set(vars(model)) == attributes
    assert model.generation_config is own and torch.equal(torch.get_rng_state(), state)
    model(input_ids=torch.tensor([PROMPTS[0]])).logits.sum().backward()
    assert model.lm_head.weight.grad is not None


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_adapters_answer_too(name):
    """A LoRA model answers as its merged copy, and not as the model inside."""
    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    base = family(name)
    plain = expected(base, seed=7)
    lora = LoraConfig(
        task_type="CAUSAL_LM", r=4, init_lora_weights=False, target_modules="all-linear"
    )
    model = get_peft_model(copy.deepcopy(base), lora)
    right = expected(copy.deepcopy(model).merge_and_unload(), seed=7)
    assert backend(model).generate(PROMPTS, seed=7) == right != plain
    soft = get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ValueError, match="adds virtual tokens"):
        backend(soft)


def test_bfloat16_is_compared_in_float32():
    """Equal to the naive program up to the first step that the rounding of logits may decide."""
    model = family("llama").bfloat16()
    found = backend(model).generate(PROMPTS, seed=8)
    compared = 0
    for prompt, answer in zip(PROMPTS, found, strict=True):
        ids, gaps = naive(model, prompt, seed=8)
        # Logits are below 2, so they are rounded to 2**-8; two of them, and as much for the sums.
        sure = next((step for step, gap in enumerate(gaps) if gap < 2**-6), len(gaps))
        compared += sure
        assert answer.text.split()[:sure] == [str(i) for i in ids[:sure] if i not in ENDS]
    assert compared > 40


def test_near_ties_are_counted():
    """Two words with one embedding and a far larger logit than others tie where no noise is."""
    model = family("llama", tie_word_embeddings=True)
    with torch.no_grad():
        model.lm_head.weight[:] *= 1e-3
        model.lm_head.weight[9] = 0
        model.lm_head.weight[10] = 0
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(113))
    model.lm_head.bias.data[9] = 5.0
    for gap, count in ((0.5e-4, 6), (2e-4, 0)):
        model.lm_head.bias.data[10] = 5.0 + gap
        (answer,) = backend(model, Decoding(max_new_tokens=6, greedy=True)).generate([[5]], seed=0)
        assert answer == Generation("10 10 10 10 10 10", 6, False, count)


def test_ties_after_the_end_do_not_count():
    """Two tokens tie at every step, also of rows that have ended beside others."""
    model = family("llama")
    model.lm_head.weight.data[56:112] = model.lm_head.weight.data[:56].clone()
    answers = backend(model, Decoding(max_new_tokens=14, greedy=True)).generate(PROMPTS, seed=0)
    assert len({answer.num_tokens for answer in answers}) > 1
    assert all(answer.near_ties == answer.num_tokens for answer in answers)


def test_every_end_token_ends_and_is_no_text():
    """The model's list and the tokenizer's own; ids that the model does not know do no harm."""
    tokenizer = toys.tokenizer()
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 0
    model = toys.llama()
    decoding = Decoding(max_new_tokens=20)
    for own, ends in (
        (None, [0]),
        (5, [5, 0]),
        ([5, 6], [5, 6, 0]),
        ([50256, 6, 5, 0], [5, 6, 0]),
    ):
        model.generation_config.eos_token_id = own
        prompts = [[token] for token in range(1, 22)]
        last = set()
        answers = backend(model, decoding, tokenizer).generate(prompts, seed=0)
        for prompt, answer in zip(prompts, answers, strict=True):
            ids, _ = naive(model, prompt, decoding, ends=ends)
            finished = ids[-1] in ends
            last |= {ids[-1]} if finished else set()
            words = tokenizer.decode(ids[:-1] if finished else ids, skip_special_tokens=True)
            assert (answer.text, answer.num_tokens, answer.finished) == (words, len(ids), finished)
        assert last == set(ends)


def test_a_tokenizer_without_padding_pads_with_an_end(silent):
    """GPT-2 has none; the answers are right and a note says so. Nothing at all is refused."""
    model = family("gpt2")
    tokenizer = Letters()
    tokenizer.pad_token_id, tokenizer.eos_token_id = None, 3
    found = backend(model, tokenizer=tokenizer)
    assert found.note.startswith("The tokenizer has no padding token that the model knows; ")
    assert found.generate(PROMPTS, seed=9) == expected(model, seed=9)
    tokenizer.pad_token_id = 113  # added to the tokenizer, but not to the model
    found = backend(model, tokenizer=tokenizer)
    assert found.note and found.generate(PROMPTS, seed=9) == expected(model, seed=9)
    tokenizer.pad_token_id = tokenizer.eos_token_id = model.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match=r"neither a padding nor .* set the tokenizer's eos_token"):
        backend(model, tokenizer=tokenizer)


def test_a_model_without_an_end_runs_to_the_last_token():
    """A padding token alone is enough; no answer finishes."""
    model = family("llama")
    model.generation_config.eos_token_id = None
    answers = backend(model).generate(PROMPTS, seed=0)
    assert answers == expected(model, ends=[])
    assert {(a.num_tokens, a.finished) for a in answers} == {(14, False)}


def test_damaged_models_and_empty_prompts_are_refused():
    """NaN at the start or later, and a prompt without tokens."""
    model = family("llama")
    found = backend(model)
    with pytest.raises(ValueError, match="prompt 2 has no tokens"):
        found.generate([[1], []], seed=0)
    model.lm_head.weight.data[7] = torch.nan
    with pytest.raises(ValueError, match=r"logits are no numbers \(NaN or infinite\)"):
        found.generate(PROMPTS, seed=0)
    with pytest.raises(ValueError, match="logits are no numbers"):
        backend(model)


@pytest.mark.parametrize("greedy", [True, False])
def test_one_infinite_logit_is_refused(greedy):
    """float16 that overflowed in one token: the rest are numbers, and so would the answer look."""
    model = family("llama")
    found = backend(model, replace(SAMPLING, greedy=greedy))
    model.lm_head.weight.data[7, 0], model.lm_head.weight.data[8, 0] = torch.inf, -torch.inf
    with pytest.raises(ValueError, match="logits are no numbers"):
        found.generate(PROMPTS, seed=0)


def test_top_p_is_that_of_transformers():
    """Kept tokens and their differences are those of its two warpers, for random logits."""
    logits = torch.randn(200, 97, generator=torch.Generator().manual_seed(0)) * 3
    for top_p in (1e-6, 0.1, 0.5, 0.9, 0.999, 1.0):
        for temperature in (0.3, 1.0, 2.5):
            warmed = TemperatureLogitsWarper(temperature)(None, logits)
            right = TopPLogitsWarper(top_p)(None, warmed)
            given = logits.clone()
            found = tempered(given, Decoding(temperature=temperature, top_p=top_p))
            assert torch.equal(given, logits)
            assert torch.equal(found.isinf(), right.isinf())
            assert torch.allclose(found.softmax(-1), right.softmax(-1), rtol=1e-4, atol=1e-7)


def test_positions_are_the_text_configs():
    """From the configuration, under any of its names; None if there is no limit."""
    assert backend(family("gpt2")).num_positions == 64
    assert backend(family("llama")).num_positions == 64
    assert backend(family("mamba")).num_positions is None


def test_batches_are_planned_longest_first():
    """Every index once, lengths falling, equal ones in their order."""
    assert plan_batches([3, 9, 3, 1, 9], 2) == [[1, 4], [0, 2], [3]]
    assert plan_batches([], 4) == []
    for size in (0, -1):
        with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {size}"):
            plan_batches([1], size)


def test_prompts_that_leave_no_room_are_refused():
    """The first one is named, with the numbers and a remedy; a prompt at the limit passes."""
    decoding = Decoding(max_new_tokens=50)
    check_prompt_lengths([14, 3], 64, decoding, ["a", "b"])
    check_prompt_lengths([10**9], None, decoding, ["a"])
    with pytest.raises(ValueError) as error:
        check_prompt_lengths([14, 15, 99], 64, decoding, ["a:1", "a:2", "a:3"])
    assert str(error.value) == (
        "a:2: the prompt has 15 tokens, and with --max_new_tokens 50 that is beyond the model's 64 "
        "positions; lower --max_new_tokens, or leave such prompts out by --max_prompt_length 14"
    )
    with pytest.raises(ValueError, match=r"lower --max_new_tokens$"):
        check_prompt_lengths([1], 50, decoding, ["a"])


def test_a_real_model_answers_alike_in_any_batch(shared):
    """Stories of 40 tokens, 12 at once and one at a time; near ties are rare."""
    folder = shared / "models" / "stories260K"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = backend(model, Decoding(max_new_tokens=40), tokenizer)
    names, verbs = ("Tom", "Lily", "A cat", "The old man and his dog"), ("saw", "was", "")
    prompts = found.encode([f"{name} {verb}" for name in names for verb in verbs])
    together = found.generate(prompts, seed=10)
    assert sum(answer.near_ties for answer in together) <= 3
    for prompt, answer in zip(prompts, together, strict=True):
        if not answer.near_ties:
            assert found.generate([prompt], seed=10) == [answer]
    assert "the" in together[0].text and "<s>" not in together[0].text
