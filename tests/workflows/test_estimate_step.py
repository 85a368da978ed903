"""The memory of a step that was simulated is that of a real one, counted tensor by tensor."""

import sys
from pathlib import Path

import pytest
import torch
import toys
from transformers import GPT2Config, LlamaConfig, Qwen2Config

from distilllens.workflows.estimate_run import run_of
from distilllens.workflows.estimate_step import PARTS, Side, Step, measure
from distilllens.workflows.run_arguments import build

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.meter import LiveBytes

LONG = {"max_length": 48, "per_device_train_batch_size": 6, "save_strategy": "no", "max_steps": 2}
SETTINGS = {
    "live": {},
    "cached": {"teacher_cache": "cache"},
    "sft": {"teacher_model_name_or_path": None, "cross_entropy_weight": 1.0},
    "bf16": {"bf16": True},
    "checkpointing": {"activation_checkpointing": True},
    "accumulation": {"gradient_accumulation_steps": 2},
    "packed": {"packing": True, "per_device_train_batch_size": 2},
    "lora": {"use_peft": True, "lora_target_modules": "all-linear"},
    "no lens": {"lens_weight": 0.0},
}


def arguments(folder, **changes):
    """The arguments of a run of wide toys whose rows are 40 tokens long."""
    for name, layers, width, seed in (("student", 6, 96, 0), ("teacher", 5, 128, 1)):
        toys.llama(layers, width, vocab=800, seed=seed).save_pretrained(folder / name)
    rows = toys.examples(24, longest=40)
    text = "\n".join(
        f'{{"prompt": "{r["prompt"]}", "completion": "{r["completion"]}"}}' for r in rows
    )
    (folder / "train.jsonl").write_text(text)
    fields = {
        "model_name_or_path": "student",
        "teacher_model_name_or_path": "teacher",
        "train_file": ["train.jsonl"],
        "output_dir": "out",
        "logging_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        **LONG,
        **changes,
    }
    return build({name: value for name, value in fields.items() if value is not None})


def prepared(parts):
    """What ``run_job`` makes of arguments before it loads a model."""
    from distilllens.workflows import students, train_data

    job, model, args, _ = parts
    args = students.with_student_settings(job, model, args)
    tokenizer = students.load_student_tokenizer(job, model, args)
    config = students.load_student_config(job, model, args, tokenizer)
    records = train_data.load_all(job, tokenizer, args)
    return (
        job,
        model,
        args,
        tokenizer,
        config,
        train_data.examples_of(job, args, tokenizer, records),
    )


@pytest.mark.parametrize("setting", SETTINGS)
def test_memory_is_what_a_run_allocates(workshop, setting):
    """Within 25 % of the bytes alive at one time in the tensors of two real steps."""
    from distilllens.train.build import build_trainer
    from distilllens.workflows.cache import write_cache
    from distilllens.workflows.estimate_machine import device_of

    parts = arguments(workshop, **SETTINGS[setting])
    if setting == "cached":
        write_cache(*parts[:3])
    job, model, args, tokenizer, config, examples = prepared(parts)
    run = run_of(job, model, args, config, tokenizer, examples["train"])
    found = measure(run.step(device_of("cpu")))
    trainer = build_trainer("student", model, args, tokenizer, examples)
    held = [*trainer.model.parameters(), *trainer.model.buffers()]
    if setting == "cached":
        held.append(torch.empty(800, 128))  # the head that was read from it
    elif trainer.teacher is not None:
        held += trainer.teacher.lens.model.parameters()
    with LiveBytes() as live:
        trainer.train()
    truth = live.most + sum({t.data_ptr(): t.nbytes for t in held}.values())
    assert tuple(found) == PARTS
    assert sum(found.values()) == pytest.approx(truth, rel=0.25), (found, truth)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        # 2 blocks of width 32: 12 d^2 + 13 d; tokens, positions, the last norm.
        (GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=2, n_positions=16), 29184),
        # q, k, v, o, three of 64 x 32 and two norms a block; head apart from the embedding.
        (
            LlamaConfig(
                vocab_size=100,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
            ),
            27040,
        ),
    ],
    ids=["gpt2", "llama"],
)
def test_weights_and_states_by_hand(config, parameters):
    """Four bytes a weight, and two moments of AdamW."""
    found = measure(Step(Side(config), None, rows=1, length=8, targets=4))
    buffers = found["weights"] - 4 * parameters
    assert 0 <= buffers <= 64  # frequencies of rotations
    assert found["optimizer"] == 8 * parameters


def test_blocks_are_extrapolated():
    """A step of 12 blocks from steps of two and three, against one of all of them."""
    from distilllens.workflows import estimate_step

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2}
    config = Qwen2Config(vocab_size=300, num_hidden_layers=12, num_key_value_heads=2, **sizes)
    step = Step(Side(config, depths=3), Side(config, torch.bfloat16, 3), 4, 40, 100)
    guess, truth = estimate_step._moments(step), estimate_step._simulated(step)
    for moment in ("forward", "backward", "tail"):
        sums = (sum(parts[moment].values()) for parts in (guess, truth))
        assert next(sums) == pytest.approx(next(sums), rel=0.05), moment


def test_memory_grows_with_rows():
    """Activations are proportional to the rows; weights are not."""
    config = GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=2, n_positions=16)
    step = Step(Side(config), None, rows=4, length=16, targets=32)
    one, two = measure(step), measure(step.of(8))
    assert two["activations"] == pytest.approx(2 * one["activations"], rel=0.02)
    assert (two["weights"], two["optimizer"]) == (one["weights"], one["optimizer"])
