"""A run as its recipe, its configurations and its rows describe it: what an estimate is made of."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from types import SimpleNamespace
from typing import Any

import torch

from distilllens import cost
from distilllens.loading import is_adapter_folder, saved_dtype
from distilllens.train.build import with_adapter
from distilllens.train.teacher_fields import each_alone
from distilllens.train.teachers import depths_of, layer_map_of
from distilllens.workflows.estimate_devices import Device
from distilllens.workflows.estimate_rows import Batch, Rows, rows_of, unknown_rows
from distilllens.workflows.estimate_step import Side, Step, build
from distilllens.workflows.identity import teacher_config_of

# Numbers that an optimizer keeps for a trained one; those in 8 bits are a quarter of a float32.
_STATES = {"sgd": 0, "adafactor": 0.01, "adagrad": 1, "rmsprop": 1, "lion": 1, "8bit": 0.5}


@dataclass(frozen=True)
class Run:
    """A training run.

    Args:
        job, model, args: of the recipe.
        config: the student's.
        teacher_config: None without a teacher, or where only a cache is known.
        rows: of the training data.
        unknown: what could not be told, in words.
        others: the same run with each other teacher alone.
    """

    job: Any
    model: Any
    args: Any
    config: Any
    teacher_config: Any
    rows: Rows
    unknown: list[str] = field(default_factory=list)
    others: tuple[Run, ...] = ()

    @property
    def each(self) -> tuple[Run, ...]:
        """The run with each of its teachers alone."""
        return (self, *self.others)

    @property
    def live(self) -> list[Run]:
        """Those of ``each`` whose teacher runs beside the student."""
        return [run for run in self.each if run.has_teacher and not run.is_cached]

    @property
    def has_teacher(self) -> bool:
        """Whether training compares with a teacher of known shape."""
        return self.teacher_config is not None

    @cached_property
    def num_pairs(self) -> int:
        """Pairs of depths that are read; 0 where neither lens nor features are trained."""
        args = self.args
        if not self.has_teacher or not (args.lens_weight > 0 or args.feature_weight > 0):
            return 0
        layers = SimpleNamespace(num_layers=_layers(self.teacher_config))
        return len(layer_map_of(args, depths_of(self.config), layers) or ())

    @property
    def student(self) -> Side:
        """The student's side of a step."""
        name = (self.args.model_init_kwargs or {}).get("dtype", self.model.dtype or "float32")
        dtype = _dtype(saved_dtype(self.config) if name == "auto" else name)
        adapt = partial(with_adapter, model=self.model)
        return Side(self.config, dtype, self.num_pairs, adapt)

    @property
    def teacher(self) -> Side | None:
        """The teacher's."""
        if not self.has_teacher:
            return None
        name = (self.args.teacher_model_init_kwargs or {}).get("dtype", "auto")
        dtype = saved_dtype(self.teacher_config) if name == "auto" else name
        return Side(self.teacher_config, _dtype(dtype), self.num_pairs)

    @property
    def is_cached(self) -> bool:
        """Whether the teacher's states are read from a cache."""
        return self.args.teacher_cache is not None

    def batch(self, size: int | None = None) -> Batch:
        """A micro-batch of ``size`` rows, by default of the recipe's."""
        args = self.args
        size = size or args.per_device_train_batch_size
        length = args.max_length or self.rows.batch(1, 0).longest
        return self.rows.batch(
            size, length, packing=bool(args.packing), free=bool(args.padding_free)
        )

    @property
    def state_bytes(self) -> float:
        """Bytes that the optimizer keeps for a trained number."""
        name = str(getattr(self.args.optim, "value", self.args.optim))
        numbers = next((n for part, n in _STATES.items() if part in name), 2)
        return numbers * self.student.dtype.itemsize

    def autocast(self) -> torch.dtype | None:
        """The dtype of autocast."""
        half = torch.float16 if self.args.fp16 else None
        return torch.bfloat16 if self.args.bf16 else half

    def step(self, device: Device, size: int | None = None) -> Step:
        """A step with the longest rows that a run of these rows is likely to see."""
        batch, args = self.batch(size), self.args
        sides = [self.student, self.teacher]
        if not device.is_cpu:
            sides = [side and replace(side, config=_fused(side.config)) for side in sides]
        return Step(
            *sides,
            batch.rows,
            batch.longest,
            max(1, min(batch.most, batch.rows * batch.longest)),
            is_cached=self.is_cached,
            autocast=self.autocast(),
            checkpointing=bool(args.activation_checkpointing),
            accumulation=args.gradient_accumulation_steps,
            state_bytes=self.state_bytes,
            has_kernel=not device.is_cpu,
            beside=tuple(run.step(device, size) for run in self.others),
        )

    def steps(self, num_devices: int) -> int | None:
        """Optimizer steps; None where the number of rows is not known."""
        args, rows = self.args, self.rows
        if args.max_steps > 0:
            return args.max_steps
        if rows.num is None:
            return None
        num = rows.num
        if args.packing:
            num = -(-num * rows.tokens // (args.max_length or rows.tokens))
        whole = args.per_device_train_batch_size * args.gradient_accumulation_steps * num_devices
        return math.ceil(args.num_train_epochs * -(-num // whole))

    @cached_property
    def sizes(self) -> Sizes:
        """Parameters, counted on models without numbers."""
        teacher = build(self.teacher) if self.has_teacher else None
        return Sizes.of(build(self.student), teacher)


@dataclass(frozen=True)
class Sizes:
    """Parameters of the models, and their shapes for the cost model.

    Args:
        student, teacher: the shapes.
        parameters, trained, teacher_parameters: numbers of weights; of the student's, all and those
            that are trained.
        trained_bytes, student_bytes, teacher_bytes: of these weights.
    """

    student: cost.Model
    teacher: cost.Model | None
    parameters: int
    trained: int
    trained_bytes: int
    student_bytes: int
    teacher_parameters: int = 0
    teacher_bytes: int = 0

    @classmethod
    def of(cls, student, teacher) -> Sizes:
        """The sizes of two models; the teacher may be None."""
        parameters = [*student.parameters()]
        trained = [p for p in parameters if p.requires_grad]
        theirs = [*teacher.parameters()] if teacher is not None else []
        inner = getattr(student, "get_base_model", lambda: student)()
        return cls(
            shape_of(inner),
            None if teacher is None else shape_of(teacher),
            *(sum(p.numel() for p in each) for each in (parameters, trained)),
            *(sum(p.nbytes for p in each) for each in (trained, parameters)),
            sum(p.numel() for p in theirs),
            sum(p.nbytes for p in theirs),
        )


_QUANTISED = ("load_in_4bit", "load_in_8bit", "quantization_config")


def run_of(job, model, args, config, reader, examples) -> Run:
    """A run whose training examples are at hand; None of them for rows that are not known.

    Raises:
        ValueError: a teacher that cannot be found, or an example that cannot be written.
    """
    unknown = []
    if examples is None:
        rows = unknown_rows(args.max_length)
        unknown.append(f"the rows: all are taken to be {rows.sample[0][0]} tokens long")
    else:
        rows = rows_of(examples, reader, args.max_length)
    found, quantised = [], [hasattr(config, "quantization_config")]
    for alone in [args] if args.teachers is None else each_alone(args):
        teacher = teacher_config_of(alone) if alone.teacher_model_name_or_path else None
        if teacher is None and alone.teacher_cache:
            unknown.append(f"the teacher of the cache {alone.teacher_cache}, which names none")
        found.append(Run(job, model, alone, config, teacher, rows, unknown))
        given = alone.teacher_model_init_kwargs or {}
        quantised += [any(map(given.get, _QUANTISED)), hasattr(teacher, "quantization_config")]
    if args.teacher_server:
        unknown.append(
            f"the teacher at {args.teacher_server}: the time of its answers and of comparing with "
            "them; a step is counted as one without a teacher"
        )
    if model.load_in_4bit or model.load_in_8bit or any(quantised):
        unknown.append("what quantisation saves: weights are counted in their own dtype")
    if is_adapter_folder(model.model_name_or_path):
        unknown.append("the adapter that is trained on: all weights are counted as trained")
    if args.on_policy_fraction:
        unknown.append("the time in which the student writes answers (on_policy_fraction)")
    if args.deepspeed or args.fsdp:
        unknown.append("the settings of fsdp and deepspeed: the plans below are the plain ones")
    first, *others = sorted(found, key=lambda run: not run.has_teacher)
    return replace(first, others=tuple(run for run in others if run.has_teacher))


def on_device(args, given, device: Device):
    """Fields that follow the machine, as they would be on the device of an estimate."""
    found = replace_fields(args, use_cpu=device.is_cpu)
    if given.get("bf16") is None:
        found.bf16 = not device.is_cpu and device.has_bfloat16 and not args.fp16
    asked = given.get("activation_checkpointing", given.get("gradient_checkpointing"))
    found.activation_checkpointing = (not device.is_cpu) if asked is None else asked
    return found


def replace_fields(args, **fields):
    """A copy of the arguments, of which no check is repeated."""
    found = copy.copy(args)
    for name, value in fields.items():
        setattr(found, name, value)
    return found


def cached(run: Run) -> Run:
    """The same run with every teacher in a cache."""
    args = replace_fields(run.args, teacher_cache="cache")
    return replace(run, args=args, others=tuple(map(cached, run.others)))


def _fused(config):
    """A configuration whose attention keeps no [T, T] matrix; on a CPU dropout in it does."""
    config = copy.deepcopy(config)
    for name in ("attn_pdrop", "attention_dropout"):
        if getattr(config.get_text_config(), name, 0):
            setattr(config.get_text_config(), name, 0.0)
    return config


def _layers(config):
    return config.get_text_config().num_hidden_layers


def _dtype(name):
    return getattr(torch, str(name or "float32").removeprefix("torch."))


def shape_of(model) -> cost.Model:
    """The sizes of a model that its costs depend on."""
    inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    untied = inputs is not outputs
    config = model.config.get_text_config()
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    num = next((n for key in _EXPERTS if (n := getattr(config, key, None))), 1)
    used = min(1, (getattr(config, "num_experts_per_tok", None) or num) / num)
    whole = sum(p.numel() for name, p in model.named_parameters() if "lora_" not in name)
    idle = round(experts * (1 - used))
    blocks = whole - inputs.numel() - untied * outputs.numel() - idle
    vocab, width = outputs.shape
    return cost.Model(config.num_hidden_layers, width, vocab, blocks, untied, idle)


_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
