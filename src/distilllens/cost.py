"""Flops and bytes of a training step, by term, computed from shapes alone.

Symbols: T tokens of a row, n of them targets, V words; a model has L blocks of width d whose
weights are W (12 L d^2 for GPT-2); s is the student, t the teacher; P layer pairs.
docs/performance.md lists the formulas; tests compare them with torch's own count of flops.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Model:
    """The sizes that costs depend on.

    Args:
        block_weights: that a token meets in all blocks.
        untied: embedding and head are two matrices.
        idle_weights: of the experts that a token does not meet; other tokens of its batch do.
    """

    layers: int
    width: int
    vocab: int
    block_weights: int
    untied: bool = False
    idle_weights: int = 0

    @property
    def weights(self) -> int:
        """The number of weights: blocks with all experts, embedding and head."""
        blocks = self.block_weights + self.idle_weights
        return blocks + self.vocab * self.width * (1 + self.untied)


def gpt2(layers: int, width: int, vocab: int = 50257) -> Model:
    """A GPT-2 of this shape, without biases, norms and positions (0.1 % of it)."""
    return Model(layers, width, vocab, 12 * layers * width**2)


def forward_flops(model: Model, lengths: list[int]) -> int:
    """``2 W T + 4 L d T^2`` per row; attention is counted as if there were no causal mask."""
    blocks = 2 * model.block_weights * sum(lengths)
    return blocks + 4 * model.layers * model.width * sum(length**2 for length in lengths)


def divergence_flops(n: int, student: Model, teacher: Model, projections: int = 1) -> int:
    """``2 n V (k dt + (k + 2) ds)``: k ``projections`` of both, and two gradient products."""
    widths = projections * teacher.width + (projections + 2) * student.width
    return 2 * n * student.vocab * widths


PIPELINES = {  # name: (lens term, live teacher)
    "plain KD": (False, True),
    "DistillLens": (True, True),
    "DistillLens, cached teacher": (True, False),
    "plain KD, cached teacher": (False, False),
}


def step_flops(
    pipeline: str,
    student: Model,
    teacher: Model,
    rows: list[tuple[int, int]],
    pairs: int,
    *,
    share: float = 1.0,
    length: int = 512,
) -> dict[str, int]:
    """Flops of one optimizer step by term, for ``rows`` of (tokens, targets).

    ``share`` is the fraction of (pair, token) combinations that the lens measures. "published" pads
    every row to ``length`` and measures every position; "TRL" projects twice for a KL.
    """
    lengths, n = [tokens for tokens, _ in rows], sum(targets for _, targets in rows)
    if pipeline == "published":
        lengths, n = [length] * len(rows), length * len(rows)
    lens, live = PIPELINES.get(pipeline, (pipeline == "published", True))
    # Ours also logs a cross-entropy: one more projection, without a gradient.
    extra = 2 * n * student.vocab * student.width if pipeline in PIPELINES else 0
    projections = 2 if pipeline == "TRL" else 1
    forward = forward_flops(student, lengths)
    one = divergence_flops(n, student, teacher)
    return {
        "student forward": forward,
        "student backward": 2 * forward,
        "teacher forward": forward_flops(teacher, lengths) if live else 0,
        "output": divergence_flops(n, student, teacher, projections) + extra,
        "lens": round(pairs * share * one) if lens else 0,
        "optimizer": 12 * student.weights,
    }


def training_flops(
    student: Model,
    teacher: Model | None,
    *,
    tokens: int,
    targets: int,
    steps: int,
    comparisons: float,
    live: bool,
) -> int:
    """Flops of a training run, attention left out: it matters for long rows only.

    Args:
        tokens, targets: of all steps.
        comparisons: with the teacher, of each target: 1 at the output, and 1 for each pair of
            depths, times its share of the targets.
        live: whether the teacher runs beside the student.
    """
    flops = 6 * student.block_weights * tokens + 12 * student.weights * steps
    flops += 6 * targets * student.vocab * student.width  # cross-entropy
    if teacher is not None:
        flops += round(comparisons * divergence_flops(targets, student, teacher))
        flops += 2 * teacher.block_weights * tokens * live
    return flops


# Passes over a float32 [n, V] block: EAGER counts the reads and writes of linear_divergence's jsd
# in torch; FUSED counts two logit tiles and the gradient, each written once and read by the next
# operation.
EAGER, FUSED = 38, 7


def step_bytes(
    pipeline: str,
    student: Model,
    teacher: Model,
    rows: list[tuple[int, int]],
    pairs: int,
    *,
    size: int = 4,
    passes: int = EAGER,
    chunk: int = 256,
) -> dict[str, int]:
    """Bytes to and from main memory by term, for our own pipelines; a weight has ``size`` bytes.

    Weights once per pass, 16 activations per token, block and unit of width, heads once per chunk.
    """
    lens, live = PIPELINES[pipeline]
    tokens, n = sum(row[0] for row in rows), sum(row[1] for row in rows)

    def forward(model):
        activations = 16 * tokens * model.layers * model.width
        return size * (model.block_weights + model.idle_weights + activations)

    def divergence(count):
        chunks = -(-count // chunk)
        # The student's head is read twice, the teacher's once; a sum is read and written.
        heads = size * (2 * student.width + teacher.width) + 2 * 4 * student.width
        return student.vocab * (chunks * heads + 4 * passes * count)

    return {
        "student forward": forward(student),
        "student backward": 2 * forward(student),
        "teacher forward": forward(teacher) if live else 0,
        "output": divergence(n),
        "lens": divergence(pairs * n) if lens else 0,
        # AdamW reads weight, gradient and two moments, writes three; clipping reads and scales.
        "optimizer": 10 * 4 * student.weights,
    }


def roofline_seconds(flops: dict, bytes_: dict, rate: float, bandwidth: float) -> dict[str, float]:
    """Seconds by term: the larger of flops / rate and bytes / bandwidth."""
    return {term: max(flops[term] / rate, bytes_[term] / bandwidth) for term in flops}


def cache_bytes(teacher: Model, n: int, pairs: int, size: int = 2) -> int:
    """Bytes of a teacher cache: states of the mapped depths and the last one, for every target."""
    return (pairs + 1) * n * teacher.width * size


# NVIDIA's data sheet of the H100 SXM: dense bf16 tensor cores, HBM3. No program reaches the peak;
# half of the flops and 80 % of the bandwidth are what well-tuned training code achieves.
H100 = {"rate": 0.5 * 989e12, "bandwidth": 0.8 * 3.35e12}
LLAMA_7B = Model(32, 4096, 32000, 6_476_005_376, untied=True)
TINYLLAMA = Model(22, 2048, 32000, 968_884_224, untied=True)
