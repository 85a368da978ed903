"""Started by torchrun: a few toy steps on two gloo processes; each saves what it found.

usage: distributed_worker.py {ddp,fsdp2,zero3} OUTPUT
           [--untied] [--lora] [--cached] [--answers] [--stream] [--gaps] [--as-is]
           [--from-main] [--replicated] [--form NAME] [--teachers ENTRIES] [--cross]
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import sharded_runs
import torch
import toys
from torch.distributed.tensor import DTensor

from distilllens.train._trl import end_training
from distilllens.workflows.launch import read_profile

torch.set_num_threads(1)


def count_gathers(trainer):
    """How often whole tensors are made of shards, and the student's last norm runs."""
    counts, whole = {"tensors": 0, "norms": 0}, DTensor.full_tensor

    def full_tensor(*args, **kwargs):
        counts["tensors"] += 1
        return whole(*args, **kwargs)

    def norm(*args):
        counts["norms"] += 1

    DTensor.full_tensor = full_tensor
    trainer.student_lens.model.model.norm.register_forward_hook(norm)
    return counts


def main(kind, output, *flags):
    """Train, gather the weights and save them."""
    settings = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2}
    settings |= toys.FORMS[flags[1]] if "--form" in flags else {}
    by_name = {"--cached", "--from-main"} & {*flags}
    if by_name:  # the trainer loads, shards and fingerprints it
        settings |= {"teacher_model_name_or_path": f"{output}/teacher"}
    settings |= {"teacher_cache": f"{output}/cache"} if "--cached" in flags else {}
    settings |= {"max_steps": 20} if "--gaps" in flags else {}
    settings |= toys.ANSWERED if "--answers" in flags else {}
    teacher = None if by_name else "default"
    if "--teachers" in flags:
        settings["teachers"] = json.loads(flags[flags.index("--teachers") + 1])
        teacher = [toys.llama(4, 24, seed=1), toys.llama(5, 32, seed=2, vocab=26)]
    if kind == "fsdp2":
        from_main = "--from-main" in flags
        config = sharded_runs.FSDP2_WHOLE["fsdp_config"]
        settings |= {"fsdp": True}
        settings["fsdp_config"] = {**config, "cpu_ram_efficient_loading": from_main}
        if from_main:  # as accelerate launch has it, of which transformers asks when it loads
            os.environ["ACCELERATE_USE_FSDP"] = "true"
    settings |= {"teacher_sharding": "replicate"} if "--replicated" in flags else {}
    if kind == "zero3":
        settings |= read_profile("zero3").fields
    if kind == "fsdp2" and "--as-is" not in flags:
        exec(sharded_runs.ON_CPU, {})
    args = toys.config(output, **settings)
    trainer = (
        _trainer_of_two_tokenizers(args, output)
        if "--cross" in flags
        else toys.trainer(
            args,
            student=toys.llama(tied="--untied" not in flags),
            teacher=teacher,
            data=toys.stream(7) if "--stream" in flags else None,
            eval_dataset=(toys.stream if "--stream" in flags else toys.dataset)(7, seed=3),
            peft_config=toys.lora() if "--lora" in flags else None,
            score_answers=toys.score_answers() if "--answers" in flags else None,
        )
    )
    before = trainer.evaluate() if kind == "ddp" else None
    counts = toys.with_gaps(trainer) if "--gaps" in flags else []
    gathers = count_gathers(trainer)
    trainer.train()
    gathers = dict(gathers)
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    torch.save(
        {
            "weights": (state or {}) | toys.weights(trainer.companions),
            "wrapper": type(trainer.model_wrapped).__name__,
            "log": trainer.state.log_history,
            "before": before,
            "teacher": type(trainer.teacher).__name__,
            "targets": counts,
            "gathers": gathers,
            "teacher_in_shards": _is_in_shards(trainer.teacher),
        },
        f"{output}/rank{trainer.accelerator.process_index}.pt",
    )
    end_training(trainer.accelerator)


def _is_in_shards(teacher):
    """Whether a weight of a live teacher is split; None for another teacher."""
    if not hasattr(teacher, "lens"):
        return None
    weight = teacher.lens.model.get_input_embeddings().weight
    return isinstance(weight, DTensor) or hasattr(weight, "ds_id")


def _trainer_of_two_tokenizers(args, output):
    """Twenty steps of the pair in the folder, with evaluation data."""
    from train import two_tokenizers

    words = two_tokenizers.student_tokenizer(), two_tokenizers.teacher_tokenizer()
    pair = two_tokenizers.Pair(Path(output) / "teacher", *words)
    settings = {"max_steps": 20, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 2}
    return pair.trainer(output, eval_dataset=toys.dataset(7, seed=3), **settings)


if __name__ == "__main__":
    main(*sys.argv[1:])
