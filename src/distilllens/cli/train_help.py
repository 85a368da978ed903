"""The help of ``distilllens train`` and ``cache``: the fields that people use, in groups."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from distilllens.cli import CommandParser
from distilllens.cli.train_flags import fields_of, flag_parser
from distilllens.workflows.field_table import read_table

# Group -> field -> its help; "" is the help that the field declares.
GROUPS = {
    "data": {
        "train_file": "",
        "eval_file": "",
        "dataset_name": "",
        "dataset_config": "",
        "dataset_train_split": "",
        "dataset_test_split": "",
        "datasets": "",
        "test_split_size": "",
        "dataset_streaming": "",
        "streaming": "",
        "dataset_shuffle_buffer": "",
        "max_prompt_length": "",
        "chat": "",
        "max_length": "Truncate examples to this many tokens.",
        "packing": "Pack several examples into one sequence of max_length tokens.",
        "assistant_only_loss": "Train on the assistant's turns of a conversation only.",
    },
    "student": {
        "model_name_or_path": "The student: a folder or hub id.",
        "model_revision": "Branch, tag or commit of the student on the hub.",
        "student_config": "",
        "student_blocks": "",
        "tokenizer_name_or_path": "",
        "dtype": "Precision of the student: float32, bfloat16, float16, or auto (as saved).",
        "attn_implementation": "Attention of the student, such as sdpa or flash_attention_2.",
        "trust_remote_code": "Run code that comes with a model.",
        "use_peft": "Train a LoRA adapter instead of all weights.",
        "lora_r": "Rank of the LoRA matrices.",
        "lora_alpha": "Scale of the LoRA update, which is multiplied by lora_alpha / lora_r.",
        "lora_dropout": "Dropout on the input of the LoRA layers.",
        "lora_target_modules": "Modules that get an adapter, such as q_proj v_proj, or all-linear.",
        "load_in_4bit": "Load the student in 4 bits with bitsandbytes; needs use_peft.",
    },
    "teacher": {
        "teacher_model_name_or_path": "",
        "teacher_model_init_kwargs": "",
        "teachers": "",
        "teacher_server": "",
        "teacher_server_model": "",
        "teacher_server_top_k": "",
        "teacher_tokenizer_name_or_path": "",
        "cross_tokenizer": "",
        "teacher_cache": "",
        "teacher_cache_dtype": "",
    },
    "distillation losses": {
        "output_weight": "",
        "output_divergence": "",
        "output_divergence_kwargs": "",
        "lens_weight": "",
        "lens_weight_schedule": "",
        "lens_weight_until": "",
        "lens_layers": "",
        "lens_divergence": "",
        "lens_beta": "",
        "lens_divergence_kwargs": "",
        "lens_norm": "",
        "lens_readout": "",
        "lens_pair_fraction": "",
        "lens_token_fraction": "",
        "lens_pair_weights": "",
        "lens_token_weights": "",
        "lens_detach_head": "",
        "feature_weight": "",
        "feature_loss": "",
        "cross_entropy_weight": "",
        "temperature": "",
    },
    "on-policy distillation": {
        "on_policy_fraction": "",
        "on_policy_from": "",
        "on_policy_max_new_tokens": "",
        "on_policy_temperature": "",
    },
    "training": {
        "num_train_epochs": "Passes over the training data.",
        "max_steps": "Stop after this many optimizer steps; overrides num_train_epochs.",
        "per_device_train_batch_size": "Examples per device and forward pass.",
        "gradient_accumulation_steps": "Forward passes per optimizer step.",
        "learning_rate": "Peak learning rate.",
        "lr_scheduler_type": "Schedule: linear, cosine, constant, constant_with_warmup ...",
        "warmup_steps": "Warmup: a number of steps, or below 1 a share of all steps.",
        "weight_decay": "Weight decay of AdamW.",
        "max_grad_norm": "Clip the gradient to this norm; 0 turns clipping off.",
        "seed": "Seed of the order of the data, of dropout and of random weights.",
        "bf16": "Train with bf16 autocast.",
        "activation_checkpointing": "Recompute activations in the backward pass to save memory.",
        "use_cpu": "Train on the CPU even if there is an accelerator.",
    },
    "evaluation": {
        "eval_strategy": "When to evaluate: no, steps or epoch.",
        "eval_steps": "Steps between evaluations, with eval_strategy steps.",
        "per_device_eval_batch_size": "Examples per device in an evaluation.",
        "eval_generate": "",
        "eval_generate_kwargs": "",
        "load_best_model_at_end": "Make the best checkpoint the final model.",
        "metric_for_best_model": "The metric of load_best_model_at_end.",
    },
    "output": {
        "output_dir": "Folder for checkpoints, the final model and the report.",
        "report": "",
        "save_dtype": "",
        "logging_steps": "Steps between lines of the log.",
        "save_strategy": "When to save a checkpoint: no, steps, epoch or best.",
        "save_steps": "Steps between checkpoints, with save_strategy steps.",
        "save_total_limit": "Keep only this many checkpoints.",
        "report_to": "Also log to these, such as tensorboard or wandb.",
        "resume_from_checkpoint": "Begin at this checkpoint of another run, or go back to one.",
    },
}
_PROCESSES = (
    (
        "num_processes",
        "N",
        "start N processes (default: 1; with --accelerate_config one a GPU)",
    ),
    ("accelerate_config", "NAME", "ddp (default), fsdp2, zero3 or a file of accelerate"),
)
# What happens without a value, where the default of a field is None or a code.
_UNSET = {
    "output_dir": "required",
    "max_steps": "-1, not set",
    "tokenizer_name_or_path": "the student's",
    "student_blocks": "not set",
    "attn_implementation": "chosen by transformers",
    "lora_target_modules": "chosen by PEFT",
    "bf16": "on if the accelerator supports it",
    "activation_checkpointing": "on with an accelerator",
    "eval_steps": "logging_steps",
    "save_total_limit": "keep all",
    "metric_for_best_model": "loss",
}
_METAVARS = {"float": "X", "int": "N", "bool": "true|false"}
_ENDINGS = {
    "_cache": "DIR",
    "_dir": "DIR",
    "_file": "FILE",
    "_kwargs": "MAPPING",
    "_or_path": "MODEL",
    "student_config": "MAPPING",
}
_FIELDS = """\
A recipe is a YAML file with these fields, and flags override it. A true/false field FIELD can also
be written --FIELD (true) and, if it is true by default, --no_FIELD (false). A mapping is one text,
in YAML or JSON, such as --teacher_model_init_kwargs '{dtype: bfloat16}'."""
_MORE = "--help-all also lists the other fields of TRL and transformers."


def print_help(command: str, description: str, *, everything: bool = False) -> None:
    """Print the fields in groups; with ``everything``, also all others of TRL and transformers."""
    table = read_table()
    note = _FIELDS if everything else f"{_FIELDS}\n{_MORE}"
    fields, named = table.fields, {name for texts in GROUPS.values() for name in texts}
    is_old = not named <= {field.name for field in fields}
    if is_old or (everything and not table.is_of_installed_versions()):
        from distilllens.cli.train_arguments import declared_fields

        fields = declared_fields()
    actions = fields_of(flag_parser(command, description, fields))
    parser = CommandParser(
        prog=f"distilllens {command}",
        description=f"{description}\n{note}",
        usage=f"distilllens {command} --config recipe.yaml [--FIELD VALUE ...]",
        formatter_class=_Formatter,
    )
    parser.add_argument("--help-all", action="store_true", help="show all fields and exit")
    parser.add_argument("--config", metavar="FILE", help="recipe to read")
    if command == "train":
        group = parser.add_argument_group("several processes")
        for name, metavar, text in _PROCESSES:
            group.add_argument(f"--{name}", metavar=metavar, help=text)
    for title, texts in GROUPS.items():
        _add(parser, title, ((actions[name], text) for name, text in texts.items()))
    if everything:
        others = [(action, "") for name, action in sorted(actions.items()) if name not in named]
        _add(parser, "more fields of TRL and transformers", others)
    parser.print_help()


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog):
        super().__init__(prog, max_help_position=30)


def _add(parser, title, entries: Iterable[tuple]):
    group = parser.add_argument_group(title)
    for action, text in entries:
        text = (text or action.help or "").strip().rstrip(".").replace("%", "%%")
        default = _default(action)
        value = "" if default == "required" else "default: "
        settings = {"help": f"{text} ({value}{default})"}
        if action.type.__name__ == "bool" and action.default is not None:
            settings["action"] = "store_true"
        else:
            settings["metavar"] = _metavar(action)
        group.add_argument(f"--{action.dest}", **settings)


def _metavar(action):
    found = (metavar for end, metavar in _ENDINGS.items() if action.dest.endswith(end))
    metavar = next(found, _METAVARS.get(action.type.__name__, "VALUE"))
    return f"{metavar} ..." if action.nargs == "+" else metavar


def _default(action):
    if action.dest in _UNSET:
        return _UNSET[action.dest]
    value = getattr(action.default, "value", action.default)
    if value is None or value == []:
        return "not set"
    return str(value).lower() if isinstance(value, bool) else str(value)
