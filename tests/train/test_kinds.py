"""Training on text with every kind of model that docs/lens.md says can be, on both sides."""

import copy
import sys
from pathlib import Path

import pytest
import torch
import toys

from distilllens import DistillLensTrainer

sys.path.insert(0, str(Path(__file__).parents[1] / "lens"))
import model_kinds

TRAINED = {**model_kinds.VISION_LANGUAGE, **model_kinds.EXPERTS, **model_kinds.HYBRID}
REFUSED = {
    **model_kinds.PREFIX,
    **{name: model_kinds.ENCODER_DECODER[name] for name in ("T5", "BART", "Whisper")},
    **{name: model_kinds.MASKED[name] for name in ("BERT", "ModernBERT")},
    **{name: model_kinds.IMAGES[name] for name in ("ViT", "BEiT")},
}
PAIR = (1, 2)
EXACT = 2e-5  # float32, against float64 formulas on float32 logits


def of(made, seed):
    """A model of a kind, its weights moved at random: predictions that are far apart."""
    model = made.build()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def logits_at(made, model, depth, batch):
    """The logits of the model's own forward: as it is, or with the blocks stopped at a depth."""
    blocks, kept = model.get_submodule(made.blocks), []

    def stop(module, args, output):
        if isinstance(output, torch.Tensor):
            return kept[0]
        return type(output)([kept[0], *output[1:]])

    def keep(module, args, output):
        kept.append(output if isinstance(output, torch.Tensor) else output[0])

    hooks = [] if depth is None else [blocks[depth - 1].register_forward_hook(keep)]
    hooks += [] if depth is None else [b.register_forward_hook(stop) for b in blocks[depth:]]
    with torch.no_grad():
        found = model(**batch, use_cache=False).logits.double()
    for hook in hooks:
        hook.remove()
    return found


def expected(made, student, teacher, batch, labels):
    """Reverse KL at the output and JSD at the pair: means over the targets, written out."""
    at = labels[:, 1:] != -100

    def log_p(model, depth):
        return logits_at(made, model, depth, batch)[:, :-1][at].log_softmax(-1)

    q, p = log_p(student, None), log_p(teacher, None)
    output = (q.exp() * (q - p)).sum(-1).mean()
    q, p = log_p(student, PAIR[0]), log_p(teacher, PAIR[1])
    m = ((q.exp() + p.exp()) / 2).log()
    lens = ((q.exp() * (q - m)).sum(-1) + (p.exp() * (p - m)).sum(-1)).mean() / 2
    return float(output), float(lens)


@pytest.mark.parametrize("name", TRAINED)
def test_a_kind_is_trained_as_student_and_teacher(name, tmp_path):
    """The logged terms of the first step are the formulas on both models' own logits."""
    made = TRAINED[name]
    student, teacher = of(made, 1), of(made, 2)
    trainer = toys.trainer(
        tmp_path,
        student=student,
        teacher=teacher,
        max_steps=1,
        lens_layers=f"{PAIR[0]}:{PAIR[1]}",
        output_divergence="reverse_kl",
        lens_divergence="jsd",
    )
    assert type(trainer) is DistillLensTrainer
    before = copy.deepcopy(student).eval()
    seen = []
    compute = trainer.compute_loss

    def watching(model, inputs, *args, **kwargs):
        seen.append({key: value.clone() for key, value in inputs.items()})
        return compute(model, inputs, *args, **kwargs)

    trainer.compute_loss = watching
    trainer.train()
    row = next(row for row in trainer.state.log_history if "output_loss" in row)
    batch = {key: seen[0][key] for key in ("input_ids", "attention_mask")}
    output, lens = expected(made, before, teacher.eval(), batch, seen[0]["labels"])
    assert row["output_loss"] == pytest.approx(output, rel=EXACT)
    assert row["lens_loss"] == pytest.approx(lens, rel=EXACT)
    moved = toys.drift(toys.weights(before), toys.weights(student))
    assert moved > 0


@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("name", REFUSED)
def test_a_kind_is_refused_on_either_side(name, side, tmp_path):
    """With the reason, before a step."""
    models = {side: REFUSED[name].build()}
    with pytest.raises(ValueError, match=r"cannot be trained through the lens: .+"):
        toys.trainer(tmp_path, **models)
