"""The same answers' shape from vLLM, which is faster on a GPU and draws by itself."""

from __future__ import annotations

from collections.abc import Sequence

from distilllens.generate.decoding import Decoding, request_seed
from distilllens.generate.prompts import check_prompts, encode_prompts, end_tokens
from distilllens.generate.transformers_backend import Generation, generation

_TEMPERATURES = (0.01, 2.0)  # vLLM raises what lies below without a word, and refuses the rest


class VllmBackend:
    """Generates with vLLM; ``encode`` and ``generate`` are those of ``TransformersBackend``.

    Every prompt has a seed of its own, made of its tokens and the seed, so answers do not depend on
    their neighbours' draws. The random streams are vLLM's, though: texts differ from those of
    ``TransformersBackend``, and are the same again only with the same version of vLLM, on the same
    kind of device, and as far as its kernels round alike in every batch. Near ties are not seen
    from outside: ``near_ties`` is 0.

    Args:
        model: a folder or hub id; vLLM loads it itself.
        tokenizer: its tokenizer, a loaded one, which reads and writes all text.
        dtype: of weights and arithmetic. vLLM's "auto" makes 16 bits of a float32 checkpoint.

    Attributes:
        num_positions: the longest sequence that the engine allows.
        note: in which dtype vLLM computes, if not in the checkpoint's; else None.

    Raises:
        ImportError: vLLM is not installed.
        ValueError: a temperature that vLLM does not take as it is.
    """

    def __init__(self, model: str, tokenizer, decoding: Decoding, *, dtype: str = "auto"):
        check_vllm(decoding)
        from vllm import LLM

        self.decoding, self._tokenizer = decoding, tokenizer
        self._engine = LLM(model=str(model), dtype=dtype, skip_tokenizer_init=True)
        config = self._engine.model_config
        self.num_positions = config.max_model_len
        stored = getattr(config.hf_config, "dtype", None)
        self.note = None
        if stored is not None and stored != config.dtype:
            self.note = f"vLLM computes in {config.dtype}, the checkpoint holds {stored}."
        own = config.try_get_generation_config().get("eos_token_id")
        self._ends = end_tokens(own, tokenizer.eos_token_id)

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of prompts as they begin a training sequence."""
        return encode_prompts(self._tokenizer, prompts)

    def generate(self, prompt_ids: list[list[int]], *, seed: int) -> list[Generation]:
        """One answer to each prompt, in their order; give as many as there are: vLLM batches them.

        Raises:
            ValueError: a prompt without a token.
        """
        from vllm import TokensPrompt

        check_prompts(prompt_ids)
        if not prompt_ids:
            return []
        outputs = self._engine.generate(
            [TokensPrompt(prompt_token_ids=ids) for ids in prompt_ids],
            [self._parameters(request_seed(ids, seed)) for ids in prompt_ids],
            use_tqdm=False,
        )
        answers = [list(output.outputs[0].token_ids) for output in outputs]
        return [generation(self._tokenizer, ids, self._ends, near_ties=0) for ids in answers]

    def _parameters(self, seed):
        from vllm import SamplingParams

        sampling = {"temperature": 0.0}  # vLLM's word for greedy
        if not self.decoding.greedy:
            sampling = {"temperature": self.decoding.temperature, "top_p": self.decoding.top_p}
        return SamplingParams(
            **sampling,
            seed=seed,
            max_tokens=self.decoding.max_new_tokens,
            stop_token_ids=self._ends,
            detokenize=False,
        )


def check_vllm(decoding: Decoding, num_processes: int = 1):
    """Refuse what vLLM cannot do here, before it is loaded.

    Raises:
        ImportError: it is not installed.
        ValueError: a temperature that it does not take as it is, or several processes.
    """
    low, high = _TEMPERATURES
    if not decoding.greedy and not low <= decoding.temperature <= high:
        raise ValueError(
            f"vLLM samples at temperatures from {low} to {high}, got {decoding.temperature}; "
            "use greedy, or the transformers backend"
        )
    if num_processes > 1:
        raise ValueError(
            f"--backend vllm takes one process and was started with {num_processes}; vLLM shares "
            "the work among devices by itself"
        )
    try:
        import vllm  # noqa: F401
    except ImportError as error:
        raise ImportError("vLLM is not installed: pip install 'distilllens[vllm]'") from error
