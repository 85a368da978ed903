"""Calls of vLLM, tested with a stand-in of vLLM 0.33's signatures, not with the real one."""

import sys
import types

import pytest
import torch
import toys

from distilllens.generate.decoding import Decoding
from distilllens.generate.transformers_backend import Generation
from distilllens.generate.vllm_backend import VllmBackend


class SamplingParams:
    """The fields of vLLM that are set here, with vLLM's defaults and checks."""

    def __init__(
        self,
        *,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        repetition_penalty=1.0,
        seed=None,
        stop_token_ids=None,
        ignore_eos=False,
        max_tokens=16,
        min_tokens=0,
        detokenize=True,
    ):
        assert 0 <= temperature <= 2 and not 0 < temperature < 0.01 and 0 < top_p <= 1
        assert max_tokens >= 1 and seed != -1 and all(isinstance(i, int) for i in stop_token_ids)
        vars(self).update(locals())


class TokensPrompt(dict):
    """A typed dictionary there, with one field that must be given."""

    def __init__(self, *, prompt_token_ids):
        super().__init__(prompt_token_ids=prompt_token_ids)


class LLM:
    """Answers with the last token of a prompt plus 1, 2, ... until a stop token or the length."""

    def __init__(
        self,
        model,
        *,
        tokenizer=None,
        skip_tokenizer_init=False,
        trust_remote_code=False,
        dtype="auto",
        seed=0,
    ):
        assert isinstance(model, str) and skip_tokenizer_init
        computed = {"auto": torch.bfloat16, "float32": torch.float32}[dtype]
        self.model_config = types.SimpleNamespace(
            max_model_len=48,
            dtype=computed,
            hf_config=types.SimpleNamespace(dtype=torch.float32),
            try_get_generation_config=lambda: {"eos_token_id": [9, 0], "temperature": 0.1},
        )
        self.asked = []

    def generate(self, prompts, sampling_params=None, *, use_tqdm=True, lora_request=None):
        assert not use_tqdm and len(prompts) == len(sampling_params)
        self.asked += sampling_params
        return [self.answer(*pair) for pair in zip(prompts, sampling_params, strict=True)]

    def answer(self, prompt, parameters):
        ids = []
        while len(ids) < parameters.max_tokens and (ids or [None])[-1] not in (
            parameters.stop_token_ids
        ):
            ids.append(prompt["prompt_token_ids"][-1] + len(ids) + 1)
        output = types.SimpleNamespace(token_ids=tuple(ids), text="")
        return types.SimpleNamespace(outputs=[output])


@pytest.fixture
def engine(monkeypatch):
    """``import vllm`` finds the stand-in."""
    module = types.ModuleType("vllm")
    module.LLM, module.SamplingParams, module.TokensPrompt = LLM, SamplingParams, TokensPrompt
    monkeypatch.setitem(sys.modules, "vllm", module)


def test_answers_end_at_the_models_and_the_tokenizers_ends(engine):
    """Token 9 ends an answer and is not in its text; other answers run to max_new_tokens."""
    found = VllmBackend("folder", toys.tokenizer(), Decoding(max_new_tokens=3))
    prompts = found.encode(["the cat", "dog sat ran on", "a"])
    assert prompts == [[2, 3], [4, 5, 6, 7], [8]]
    assert found.generate(prompts, seed=10) == [
        Generation("dog sat ran", 3, False, 0),
        Generation("a", 2, True, 0),
        Generation("", 1, True, 0),
    ]
    assert found.generate([], seed=10) == [] and found.num_positions == 48
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        found.generate([[]], seed=10)


def test_only_our_settings_are_asked_for(engine):
    """Each prompt has its own seed, a hash of its tokens and the seed; greedy is temperature 0."""
    found = VllmBackend("folder", toys.tokenizer(), Decoding(temperature=0.7, top_p=0.9))
    asked = found._engine.asked
    for prompts, seed in (([[2], [3]], 1), ([[3]], 1), ([[3]], 2)):
        found.generate(prompts, seed=seed)
    assert {(p.temperature, p.top_p, p.max_tokens) for p in asked} == {(0.7, 0.9, 256)}
    assert all(p.stop_token_ids == [9, 0] and not p.detokenize for p in asked)
    first, second, again, other = (p.seed for p in asked)
    assert second == again and len({first, second, other}) == 3
    greedy = VllmBackend("folder", toys.tokenizer(), Decoding(greedy=True, temperature=5.0))
    greedy.generate([[2]], seed=0)
    assert [p.temperature for p in greedy._engine.asked] == [0.0]


@pytest.mark.parametrize("temperature", [0.005, 2.5])
def test_temperatures_that_vllm_changes_or_refuses(engine, temperature):
    """vLLM silently raises a temperature below 0.01; here that is an error."""
    with pytest.raises(ValueError, match=rf"from 0.01 to 2.0, got {temperature}; use greedy"):
        VllmBackend("folder", toys.tokenizer(), Decoding(temperature=temperature))


def test_another_dtype_than_the_checkpoints_is_said(engine):
    """vLLM's "auto" rounds a float32 checkpoint."""
    found = VllmBackend("folder", toys.tokenizer(), Decoding())
    assert found.note == "vLLM computes in torch.bfloat16, the checkpoint holds torch.float32."
    assert VllmBackend("folder", toys.tokenizer(), Decoding(), dtype="float32").note is None


def test_without_vllm_the_extra_is_named(monkeypatch):
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match=r"pip install 'distilllens\[vllm\]'"):
        VllmBackend("folder", toys.tokenizer(), Decoding())
