"""What must hold before a run: quantised models are read exactly, or refused."""

import tempfile

import pytest
import torch
import toys
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from distilllens.train.checks import check_packed_weights

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:MatMul8bitLt"),
]


def quantized(folder, bits):
    """A toy of 64 dimensions in 4 or 8 bits, and the same model with the weights that these mean.

    bitsandbytes' own dequantisation is the definition of the weights.
    """
    bnb = pytest.importorskip("bitsandbytes")
    toys.llama(3, 64, seed=3).save_pretrained(folder)
    config = BitsAndBytesConfig(
        load_in_4bit=bits == 4,
        load_in_8bit=bits == 8,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)
    plain = toys.llama(3, 64, seed=3)
    for name, module in model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            weight = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
        elif isinstance(module, bnb.nn.Linear8bitLt):
            weight = module.weight.data.float() * module.weight.SCB[:, None] / 127
        else:
            continue
        plain.get_submodule(name).weight.data.copy_(weight)
    return model, plain


def one_step(student, teacher, **settings):
    """The losses of a first step of plain SGD, and what it adds to each trained weight."""
    trainer = toys.trainer(
        tempfile.mkdtemp(),
        student=student,
        teacher=teacher,
        max_steps=1,
        lens_layers="1:2",
        use_cpu=True,
        **settings,
    )
    generator = torch.Generator().manual_seed(0)
    for name, weight in trainer.model.named_parameters():
        if "lora" in name:
            weight.data.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    before = toys.weights(trainer.model)
    trainer.train()
    after = toys.weights(trainer.model)
    losses = {k: float(v) for k, v in trainer.state.log_history[0].items() if "loss" in k}
    return losses, {name: after[name] - before[name] for name in before}


@pytest.mark.parametrize(("who", "bits"), [("teacher", 4), ("teacher", 8), ("student", 8)])
def test_quantized_models_train_as_what_their_weights_mean(tmp_path, who, bits):
    """Losses and gradients of a model with the same weights in float32, to the rounding of the
    kernels (bfloat16 or float16 inputs: 2^-8, and sums of them)."""
    model, plain = quantized(tmp_path, bits)
    if who == "teacher":
        steps = [one_step(toys.llama(3, 16), each) for each in (model, plain)]
    else:
        other = toys.llama(4, 24, seed=1)
        steps = [one_step(each, other, peft_config=toys.lora()) for each in (model, plain)]
    (ours, moved), (theirs, expected) = steps
    for name, loss in theirs.items():
        assert ours[name] == pytest.approx(loss, rel=1e-2), name
    assert moved.keys() == expected.keys()
    largest = max(float(each.abs().max()) for each in expected.values())
    assert toys.drift(moved, expected) < 0.05 * largest


def test_a_student_in_four_bits_has_its_gradients_or_is_refused(tmp_path):
    """On CPUs for which bitsandbytes packs the weights, its kernel has no backward."""
    model, plain = quantized(tmp_path, 4)
    packs = model.model.layers[0].mlp.up_proj.support_avx512bf16_for_cpu
    other = toys.llama(4, 24, seed=1)
    if packs:
        with pytest.raises(ValueError, match="in 4 bits cannot be trained on this CPU"):
            one_step(model, other, peft_config=toys.lora())
        return
    _, moved = one_step(model, other, peft_config=toys.lora())
    _, expected = one_step(plain, other, peft_config=toys.lora())
    largest = max(float(each.abs().max()) for each in expected.values())
    assert toys.drift(moved, expected) < 0.05 * largest


def test_packed_weights_are_named():
    """The first layer that has them; on another device they are not packed."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    check_packed_weights(model)
    model[1].support_avx512bf16_for_cpu = True
    with pytest.raises(ValueError, match="bitsandbytes computes 1 without gradients here; train"):
        check_packed_weights(model)
    check_packed_weights(model.to("meta"))


def test_a_bf16_teacher_beside_a_float32_student(tmp_path):
    """The terms are measured in more than bfloat16, on the logits that the teacher itself makes of
    its states: here in float64."""
    student, teacher = toys.llama(3), toys.llama(4, 24, seed=1).bfloat16()
    trainer = toys.trainer(
        tmp_path,
        student=student,
        teacher=teacher,
        lens_layers="1:2",
        eval_dataset=toys.dataset(),
        per_device_eval_batch_size=1,  # padding would round the teacher's states otherwise
    )
    found = trainer.evaluate()
    assert all(p.dtype == torch.bfloat16 for p in teacher.parameters())
    terms = {"eval_output_loss": [], "eval_lens_loss": []}
    for row in trainer.eval_dataset:
        is_target = torch.tensor(row["labels"][1:]) != -100
        ids = torch.tensor([row["input_ids"]])
        (ours, ours_inside), (theirs, theirs_inside) = (
            log_probabilities(model, ids, depth) for model, depth in ((student, 1), (teacher, 2))
        )
        terms["eval_output_loss"].append(kl(ours, theirs)[is_target])
        middle = ((ours_inside.exp() + theirs_inside.exp()) / 2).log()
        inside = (kl(ours_inside, middle) + kl(theirs_inside, middle)) / 2
        terms["eval_lens_loss"].append(inside[is_target])
    for name, values in terms.items():
        assert found[name] == pytest.approx(float(torch.cat(values).mean()), rel=1e-5), name


def log_probabilities(model, ids, depth):
    """Float64, after each token but the last: at the output, and read at a depth."""
    with torch.no_grad():
        found = model(ids, output_hidden_states=True)
        inside = model.lm_head(model.model.norm(found.hidden_states[depth]))
        return [each[0, :-1].double().log_softmax(-1) for each in (found.logits, inside)]


def kl(a, b):
    """KL(a ‖ b) of each row in nats."""
    return (a.exp() * (a - b)).sum(-1)
