"""Started by torchrun: a few toy steps on two gloo processes; each saves what it found.

usage: distributed_worker.py {ddp,fsdp2} OUTPUT
           [--untied] [--lora] [--cached] [--answers] [--stream] [--form NAME]
           [--teachers ENTRIES] [--cross]
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import toys
from accelerate import PartialState
from accelerate.utils import DistributedType

from distilllens.train._trl import end_training

torch.set_num_threads(1)
FSDP2 = {
    "version": 2,
    "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
    "state_dict_type": "FULL_STATE_DICT",
    "cpu_ram_efficient_loading": False,
}


def main(kind, output, *flags):
    """Train, gather the weights and save them."""
    settings = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2}
    settings |= toys.FORMS[flags[1]] if "--form" in flags else {}
    if "--cached" in flags:  # by name: the trainer loads, shards and fingerprints it
        name = f"{output}/teacher"
        settings |= {"teacher_cache": f"{output}/cache", "teacher_model_name_or_path": name}
    settings |= toys.ANSWERED if "--answers" in flags else {}
    teacher = None if "--cached" in flags else "default"
    if "--teachers" in flags:
        settings["teachers"] = json.loads(flags[flags.index("--teachers") + 1])
        teacher = [toys.llama(4, 24, seed=1), toys.llama(5, 32, seed=2, vocab=26)]
    if kind == "fsdp2":
        settings |= {"fsdp": True, "fsdp_config": FSDP2}
    args = toys.config(output, **settings)
    if kind == "fsdp2":
        # On the CPU accelerate quietly runs DDP for FSDP, unless it takes itself for several GPUs.
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
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
    trainer.train()
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    torch.save(
        {
            "weights": state | toys.weights(trainer.companions),
            "wrapper": type(trainer.model_wrapped).__name__,
            "log": trainer.state.log_history,
            "before": before,
            "teacher": type(trainer.teacher).__name__,
        },
        f"{output}/rank{trainer.accelerator.process_index}.pt",
    )
    end_training(trainer.accelerator)


def _trainer_of_two_tokenizers(args, output):
    """Twenty steps of the pair in the folder, with evaluation data."""
    from train import two_tokenizers

    words = two_tokenizers.student_tokenizer(), two_tokenizers.teacher_tokenizer()
    pair = two_tokenizers.Pair(Path(output) / "teacher", *words)
    settings = {"max_steps": 20, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 2}
    return pair.trainer(output, eval_dataset=toys.dataset(7, seed=3), **settings)


if __name__ == "__main__":
    main(*sys.argv[1:])
