"""Similarity of sentence embeddings of answers and references; needs the ``sbert`` extra."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from distilllens.errors import first_line


class SentenceSimilarity:
    """Cosine similarity between the sentence embeddings of an answer and of its best reference.

    Each text is embedded once per call. Embeddings of references are kept for later calls, since a
    benchmark is answered with several seeds.

    Args:
        model: a folder, or a hub id, of sentence-transformers. A folder is read without network.
        device: where it runs; None leaves the choice to sentence-transformers.
        trust_remote_code: whether code that comes with the model may run.

    Raises:
        ValueError: the model cannot be loaded or the device cannot be used.
        ImportError: sentence-transformers is not installed.

    Source: Reimers and Gurevych 2019.
    """

    def __init__(
        self,
        model: str = "sentence-transformers/all-MiniLM-L6-v2",
        device=None,
        *,
        trust_remote_code: bool = False,
    ):
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ImportError(
                "sentence similarity needs sentence-transformers, which is not installed: "
                "pip install 'distilllens[sbert]'"
            ) from error
        is_folder = Path(model).is_dir()
        try:
            self._model = SentenceTransformer(
                str(model),
                device=None if device is None else str(device),
                local_files_only=is_folder,
                trust_remote_code=trust_remote_code,
            )
        except Exception as error:  # huggingface_hub, transformers and torch: own classes each
            raise ValueError(
                f"cannot load the sentence model {str(model)!r}: {first_line(error)}; "
                "name a folder or a hub id of sentence-transformers"
            ) from error
        self._kept: dict[str, np.ndarray] = {}

    def __call__(
        self,
        answers: Sequence[str],
        references: Sequence[Sequence[str]],
        batch_size: int = 64,
    ) -> list[float]:
        """The similarity of each answer to the best of its own references, -1 to 1.

        Raises:
            ValueError: the numbers of answers and of lists of references differ.
        """
        if len(answers) != len(references):
            raise ValueError(
                f"there are {len(answers)} answers, but references for {len(references)}"
            )
        accepted = [text for texts in references for text in texts]
        self._kept |= self._embedded(accepted, batch_size)
        vectors = self._kept | self._embedded(answers, batch_size)
        return [
            max(float(np.clip(vectors[answer] @ vectors[text], -1, 1)) for text in texts)
            for answer, texts in zip(answers, references, strict=True)
        ]

    def _embedded(self, texts, batch_size):
        """text -> unit vector (0 if the text has no tokens), for texts that are not kept yet."""
        new = [text for text in dict.fromkeys(texts) if text not in self._kept]
        if not new:
            return {}
        vectors = self._model.encode(new, batch_size=batch_size, show_progress_bar=False)
        vectors = vectors.astype(np.float64)
        lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
        return dict(zip(new, vectors / np.where(lengths > 0, lengths, 1), strict=True))
