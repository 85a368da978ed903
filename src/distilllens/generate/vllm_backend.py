"""Answers from vLLM, which is faster on a GPU and samples with its own random numbers."""

from __future__ import annotations

from collections.abc import Sequence

from distilllens.generate.decoding import Decoding, request_seed
from distilllens.generate.generation import Generation, generation
from distilllens.generate.prompts import check_prompts, encode_prompts, end_tokens

_TEMPERATURES = (0.01, 2.0)  # vLLM silently raises lower temperatures and refuses higher ones


class VllmBackend:
    """Generates with vLLM; has the ``encode`` and ``generate`` of ``TransformersBackend``.

    Every prompt has its own seed, a hash of its tokens and the seed, so an answer does not depend
    on the random draws of other prompts. The random numbers are vLLM's: answers differ from those
    of ``TransformersBackend``. They can be repeated with the same version of vLLM on the same kind
    of device, except where its kernels round differently from batch to batch. vLLM does not
    return the scores that near ties are counted from, so ``near_ties`` is 0.

    Args:
        model: a folder or hub id, which vLLM loads.
        tokenizer: its tokenizer, loaded; it encodes and decodes all text.
        dtype: dtype of weights and computation. vLLM's "auto" turns float32 checkpoints into 16
            bits.
        trust_remote_code: whether code that comes with the model may run.

    Attributes:
        num_positions: the longest sequence that the engine allows.
        note: the dtype in which vLLM computes if it is not the checkpoint's, else None.

    Raises:
        ImportError: vLLM is not installed.
        ValueError: vLLM does not support the temperature.
    """

    def __init__(
        self,
        model: str,
        tokenizer,
        decoding: Decoding,
        *,
        dtype: str = "auto",
        trust_remote_code: bool = False,
    ):
        check_vllm(decoding)
        from vllm import LLM

        self.decoding, self._tokenizer = decoding, tokenizer
        self._engine = LLM(
            model=str(model),
            dtype=dtype,
            skip_tokenizer_init=True,
            trust_remote_code=trust_remote_code,
        )
        config = self._engine.model_config
        self.num_positions = config.max_model_len
        stored = getattr(config.hf_config, "dtype", None)
        self.note = None
        if stored is not None and stored != config.dtype:
            self.note = f"vLLM computes in {config.dtype}, the checkpoint holds {stored}."
        own = config.try_get_generation_config().get("eos_token_id")
        self._ends = end_tokens(own, tokenizer.eos_token_id)

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of prompts, as ``encode_prompts``."""
        return encode_prompts(self._tokenizer, prompts)

    def generate(self, prompt_ids: list[list[int]], *, seed: int) -> list[Generation]:
        """One answer per prompt, in order. vLLM batches by itself: pass as many as possible.

        Raises:
            ValueError: a prompt has no tokens.
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

        sampling = {"temperature": 0.0}  # greedy decoding
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
    """Refuse settings that vLLM does not support, before it is loaded.

    Raises:
        ImportError: vLLM is not installed.
        ValueError: an unsupported temperature, or several processes.
    """
    low, high = _TEMPERATURES
    if not decoding.greedy and not low <= decoding.temperature <= high:
        raise ValueError(
            f"vLLM samples at temperatures from {low} to {high}, got {decoding.temperature}; "
            "use greedy, or the transformers backend"
        )
    if num_processes > 1:
        raise ValueError(
            f"--backend vllm takes one process and was started with {num_processes}; vLLM "
            "distributes the work over devices itself"
        )
    try:
        import vllm  # noqa: F401
    except ImportError as error:
        raise ImportError("vLLM is not installed: pip install 'distilllens[vllm]'") from error
