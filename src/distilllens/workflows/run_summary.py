"""What a run says of itself: a block before its first step, and one after its last."""

from __future__ import annotations

import logging
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import wrap

import torch
from transformers import TrainerCallback

from distilllens.files import in_bytes
from distilllens.lens.surgery import cut_of
from distilllens.loading import size_in_words
from distilllens.objective import TERMS
from distilllens.teacher import MixedTeacher, ServedTeacher
from distilllens.train.cache_needs import name_of
from distilllens.train.collation import Collation
from distilllens.train.progress import LogLines, duration, losses

try:
    import resource
except ImportError:  # Windows
    resource = None

logger = logging.getLogger(__name__)
_WIDTH = 96


class Opening(TrainerCallback):
    """Log the block of a run right before its first step, when everything is prepared.

    Args:
        student: what it started from, in words.
        chat: whether the chat template writes instruction records.
        source: of the training data, in words; empty if it goes without saying.
    """

    def __init__(self, student: str, *, chat: bool = False, source: str = ""):
        self.student, self.chat, self.source, self.trainer = student, chat, source, None

    def on_train_begin(self, args, state, control, **kwargs):
        """Once for all processes; ``trainer`` must have been set."""
        if self.trainer is not None and state.is_world_process_zero:
            logger.info("%s", block(_opening(self, state)))


def student_in_words(job, model, args) -> str:
    """What the student starts from."""
    if (blocks := job.student_blocks) is not None:
        return f"{blocks_in_words(blocks)} of {args.teacher_model_name_or_path}"
    if job.student_config is not None:
        return f"random weights ({job.student_config['model_type']})"
    return str(model.model_name_or_path)


def blocks_in_words(blocks: int | Sequence[int]) -> str:
    """The value of ``student_blocks``: "6 blocks", or "blocks 0, 3, 6"."""
    if isinstance(blocks, int):
        return f"{blocks} block" + ("s" if blocks > 1 else "")
    return f"block{'s' if len(blocks) > 1 else ''} {', '.join(map(str, blocks))}"


def block(rows: dict[str, str]) -> str:
    """Names and values in two columns, wrapped."""
    width = max(map(len, rows)) + 2
    lines = []
    for name, value in rows.items():
        parts = wrap(value, _WIDTH - width, break_long_words=False, break_on_hyphens=False)
        for number, part in enumerate(parts or [""]):
            lines.append(f"{'' if number else name:{width}}{part}")
    return "\n".join(lines)


def closing(trainer, *, chat: bool = False) -> str:
    """The block after the last step: losses if no line has told them, time, memory, what next."""
    rows = trainer.state.log_history
    last = {name: value for row in rows for name, value in row.items()}
    shown = any(isinstance(each, LogLines) for each in trainer.callback_handler.callbacks)
    values = {} if shown else losses(last)
    found = {"losses": ", ".join(f"{name} {value}" for name, value in values.items())}
    seconds = last.get("train_runtime")
    if seconds is not None:
        speed = last.get("target_tokens_per_second")
        pace = "" if speed is None else f", {speed:,.0f} target tokens a second"
        found["time"] = f"{duration(seconds)} since this start{pace}"
    if (peak := peak_memory(trainer.accelerator.device)) is not None:
        where = "of the GPU" if trainer.accelerator.device.type == "cuda" else "of the process"
        found["memory"] = f"at most {in_bytes(peak)} {where}"
    found = {name: value for name, value in found.items() if value}
    width = max(map(len, [*found, "next"])) + 2
    # Commands are not wrapped: they are there to be copied.
    commands = _next_commands(trainer.args, chat)
    commands = [f"{'next':{width}}{command}" for command in commands]
    return "\n".join([*([block(found)] if found else []), *commands])


def peak_memory(device: torch.device) -> int | None:
    """The most memory in bytes that this process has used on a device since it started.

    On a GPU the tensors of torch, elsewhere everything the process holds, libraries included; None
    where the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Not getrusage, which on Linux starts with what the process that started this one has held.
    if (status := Path("/proc/self/status")).exists():
        found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found else None
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _next_commands(args, chat):
    """Commands that read what a run has left."""
    student = shlex.quote(str(args.output_dir))
    models = f"--model {student}"
    if args.teacher_model_name_or_path and args.cross_tokenizer is None:
        teacher = shlex.quote(args.teacher_model_name_or_path)
        models = f"--teacher {teacher} --student {student}"
    return [
        f"distilllens evaluate --model {student} --benchmark FILE --output results"
        + (" --chat" if chat else ""),
        f'distilllens inspect {models} --prompt "TEXT" --output page.html',
    ]


def loss_in_words(value: Callable[[str], object]) -> str:
    """The weighted terms of a loss; ``value`` is the value of a field of the configuration."""
    return " + ".join(
        f"{value(term.weight_field):g} × "
        + (f"{value(term.divergence_field)} {term.place}" if term.divergence_field else term.label)
        for term in TERMS
        if value(term.weight_field)
    )


def on_policy_in_words(value: Callable[[str], object]) -> str:
    """How the student writes answers in training, or ""; ``value`` as in ``loss_in_words``."""
    share, start = value("on_policy_fraction"), value("on_policy_from")
    if not share:
        return ""
    when = "all steps" if share == 1 else f"{share:g} of the steps"
    when += f" after the first {start:g} of them" if start else ""
    longest, heat = value("on_policy_max_new_tokens"), value("on_policy_temperature")
    return f"{when}: answers of the student, up to {longest} tokens, at temperature {heat:g}"


def _opening(opening, state):
    trainer, student = opening.trainer, opening.student
    args, accelerator = trainer.args, trainer.accelerator
    model = accelerator.unwrap_model(trainer.model)
    mixed = accelerator.mixed_precision
    compute = "each model in its own dtype" if mixed == "no" else f"{mixed} autocast"
    many = f", {accelerator.num_processes} processes" if accelerator.num_processes > 1 else ""
    rows = {
        "student": f"{student}: {size_in_words(model)}",
        "teacher": _teacher(trainer),
        "precision": f"{compute}, on {_device(accelerator.device)}{many}",
        "loss": "cross-entropy"
        if trainer.teacher is None
        else loss_in_words(lambda name: getattr(args, name)),
        "tokens": "" if trainer.overlap is None else str(trainer.overlap),
        "layers": _layers(trainer),
        "lens": _forms(args) if lens_is_read(trainer) else "",
        "on-policy": on_policy_in_words(lambda name: getattr(args, name)),
        "data": _data(trainer, opening.source),
        "steps": _steps(args, state, accelerator.num_processes),
        "output": _output(args),
    }
    return {name: value for name, value in rows.items() if value}


def _forms(args):
    """How the lens differs from the plain one: read-out, weights and shares that were set."""
    pairs = args.lens_pair_weights
    if not isinstance(pairs, str):
        pairs = ", ".join(f"{weight:g}" for weight in pairs)
    until = f"{args.lens_weight_schedule}, 0 from {args.lens_weight_until:g} of the steps on"
    found = {
        "without the final norm": not args.lens_norm,
        "tuned": args.lens_readout == "tuned",
        f"weight {until}": args.lens_weight_falls,
        f"pairs weighted {pairs}": pairs != "uniform",
        f"tokens weighted by the teacher's {args.lens_token_weights}": args.lens_token_weights
        != "uniform",
        f"{args.lens_pair_fraction:g} of the pairs": args.lens_pair_fraction < 1,
        f"{args.lens_token_fraction:g} of the tokens": args.lens_token_fraction < 1,
        "the student's head is left alone": args.lens_detach_head,
    }
    return "; ".join(words for words, is_set in found.items() if is_set)


def _teacher(trainer):
    teacher, folder = trainer.teacher, trainer.args.teacher_cache
    if teacher is None:
        return "none"
    name = trainer.args.teacher_model_name_or_path or name_of(teacher)
    if isinstance(teacher, MixedTeacher):
        return f"{name}: the mixture of their predictions"
    if isinstance(teacher, ServedTeacher):
        return f"{name}: its {teacher.top_k} most likely tokens at each position"
    if folder is not None:
        return f"{name}: its states are read from {folder}"
    return f"{name}: {size_in_words(teacher.source.lens.model)}, runs beside the student"


def lens_is_read(trainer) -> bool:
    """Whether training reads pairs of depths."""
    return trainer.teacher is not None and trainer.objective.needs_lens()


def _layers(trainer):
    """The layer map and its rule; empty where no lens is measured."""
    if not lens_is_read(trainer):
        return ""
    asked, pairs = str(trainer.args.lens_layers), str(trainer.objective.layer_map)
    pairs = pairs.replace(",", ", ")
    how = "as in lens_layers"
    if trainer.args.teachers is not None:
        return f"{pairs} (student:depth@teacher)"
    if asked == "auto" or asked.isdecimal():
        how = f"lens_layers {asked}: {_rule(trainer)}"
    return f"{pairs} (student:teacher; {how})"


def _rule(trainer):
    """How the pairs were chosen; a student that was cut out of another teacher is told."""
    lens, teacher = trainer.student_lens, trainer.teacher
    if (cut := cut_of(lens.model.config)) is None:
        return "evenly spaced"
    if cut.fits(lens.num_layers, teacher.num_layers):
        return "after the blocks that the student has of its teacher"
    return (
        f"evenly spaced, for the student was cut to {len(cut.blocks)} of {cut.of} blocks, and has "
        f"{lens.num_layers} beside a teacher of {teacher.num_layers}"
    )


def _data(trainer, source):
    unit = "packs" if trainer.args.packing else "rows"
    sizes = [
        f"{'' if kind == 'training' else f'{kind}: '}{rows:,} {unit}, {tokens:,} target tokens"
        for kind, rows, tokens in Collation.of(trainer).sizes()
    ]
    if len(sizes) > 1 and trainer.args.eval_strategy == "no":
        sizes[-1] += " (eval_strategy no: training does not evaluate)"
    return "; ".join(filter(None, [source, *sizes]))


def _steps(args, state, num_processes):
    sizes = [
        _rows(args.per_device_train_batch_size),
        f"{args.gradient_accumulation_steps} accumulated",
        f"{num_processes} process" + ("es" if num_processes > 1 else ""),
    ]
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * num_processes
    done = f", going on after step {state.global_step}" if state.global_step else ""
    steps = f"{state.max_steps:,} step" + ("s" if state.max_steps > 1 else "")
    return f"{steps} of {_rows(batch)} ({' x '.join(sizes)}){done}"


def _rows(num):
    return f"{num} row" + ("s" if num > 1 else "")


def _output(args):
    strategy = str(getattr(args.save_strategy, "value", args.save_strategy))
    often = {"no": "no checkpoints", "epoch": "a checkpoint each epoch"}.get(strategy)
    often = often or f"a checkpoint every {args.save_steps:g} steps and at the end"
    final = "" if args.save_dtype == "auto" else f"; the final model is saved in {args.save_dtype}"
    return f"{Path(args.output_dir)}; {often}{final}"


def _device(device):
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device.type)
