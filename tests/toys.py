"""Toy models, tokenizer and data for tests of training; no test in here."""

import copy
from functools import partial

import torch
import yaml
from datasets import Dataset, IterableDataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

WORDS = [
    "the",
    "cat",
    "dog",
    "sat",
    "ran",
    "on",
    "a",
    "mat",
    "hill",
    "and",
    "then",
    "it",
    "was",
    "red",
    "big",
    "old",
    "new",
    "day",
    "to",
    "of",
]


def tokenizer(words=WORDS):
    """A word-level tokenizer: <eos>, <unk>, then the words in order."""
    vocab = {token: i for i, token in enumerate(["<eos>", "<unk>", *words])}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<eos>", pad_token="<eos>", unk_token="<unk>"
    )


def llama(layers=3, hidden=16, *, vocab=24, seed=0, tied=True, positions=64):
    """A Llama with weights large enough for predictions to differ."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=positions,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def gpt2(layers=2, hidden=16, *, vocab=24, seed=0, dropout=0.0):
    """A GPT-2 with weights large enough for predictions to differ."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocab,
        n_embd=hidden,
        n_layer=layers,
        n_head=2,
        n_positions=64,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def examples(count=8, *, seed=0, longest=9):
    """Prompts and completions of unequal lengths."""
    generator = torch.Generator().manual_seed(seed)

    def words(low, high):
        length = int(torch.randint(low, high, (), generator=generator))
        picks = torch.randint(len(WORDS), (length,), generator=generator)
        return " ".join(WORDS[i] for i in picks)

    return [{"prompt": words(1, 5), "completion": " " + words(1, longest)} for _ in range(count)]


def dataset(count=8, **kwargs):
    """Those examples as a Dataset."""
    return Dataset.from_list(examples(count, **kwargs))


def stream(count=8, *, shards=3, **kwargs):
    """Those examples as a stream of so many shards."""
    rows = examples(count, **kwargs)

    def read(first):
        for start in first:
            yield from rows[start::shards]

    return IterableDataset.from_generator(read, gen_kwargs={"first": [*range(shards)]})


# A few plain SGD steps: no momentum, no decay, no clipping, no saving.
SETTINGS = {
    "max_steps": 3,
    "per_device_train_batch_size": 4,
    "learning_rate": 0.1,
    "lr_scheduler_type": "constant",
    "optim": "sgd",
    "max_grad_norm": 0.0,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "bf16": False,
    "max_length": 64,
}


# Of two pairs one, of tokens about six in ten: what a step measures differs from step to step.
SAMPLED = {"lens_pair_fraction": 0.5, "lens_token_fraction": 0.6}


# Forms of the lens and the feature loss; the models' widths differ, so features are projected.
FORMS = {
    "sampled": SAMPLED,
    "scheduled": {"lens_weight_schedule": "linear", "lens_weight_until": 0.6},
    "weighted": {
        "lens_pair_weights": "depth",
        "lens_token_weights": "entropy",
        "lens_detach_head": True,
    },
    "exits": {"lens_layers": "exits", "lens_divergence": "forward_kl"},
    "features": {"feature_weight": 0.1},
    "tuned": {"lens_readout": "tuned"},
    "on-policy": {"on_policy_fraction": 1.0, "on_policy_max_new_tokens": 6},
}
FORMS["drawn by entropy"] = {**FORMS["weighted"], **SAMPLED, "lens_layers": "1:1,2:3"}


# Every evaluation answers its data.
ANSWERED = {
    "eval_generate": True,
    "eval_strategy": "steps",
    "eval_steps": 100,
    "save_strategy": "steps",
    "save_steps": 100,
}


def score_answers():
    """Rouge-L of short answers to seven questions."""
    from distilllens.evaluate.answer_scorer import AnswerScorer

    return partial(AnswerScorer(max_new_tokens=6, batch_size=2), examples(7, seed=3))


def texts(count=8):
    """Rows of plain text: every token is a target, the first one too."""
    return Dataset.from_list([{"text": e["prompt"] + e["completion"]} for e in examples(count)])


def config(output_dir, **kwargs):
    """A DistillLensConfig of those settings."""
    from distilllens import DistillLensConfig

    return DistillLensConfig(output_dir=str(output_dir), **(SETTINGS | kwargs))


_PARTS = ("eval_dataset", "peft_config", "callbacks", "score_answers")


def trainer(args, *, student=None, teacher="default", data=None, **kwargs):
    """A trainer of toys; ``args`` is a config or an output folder, ``teacher=None`` is none."""
    from distilllens import DistillLensConfig, DistillLensTrainer

    parts = {k: kwargs.pop(k) for k in _PARTS if k in kwargs}
    return DistillLensTrainer(
        llama() if student is None else student,
        llama(4, 24, seed=1) if isinstance(teacher, str) else teacher,
        args=args if isinstance(args, DistillLensConfig) else config(args, **kwargs),
        train_dataset=dataset() if data is None else data,
        processing_class=tokenizer(),
        **parts,
    )


def with_gaps(trainer):
    """Let about half of the rows have no targets; returns the numbers of targets of the batches."""
    collate, counts = trainer.data_collator, []

    def collated(rows):
        batch = collate(rows)
        batch["labels"][batch["input_ids"].sum(1) % 2 == 0] = -100
        counts.append(int((batch["labels"][:, 1:] != -100).sum()))
        return batch

    trainer.data_collator = collated
    return counts


def lora():
    """Adapters on every linear layer of the blocks, moved from the start."""
    from peft import LoraConfig

    return LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights="gaussian")


def weights(model):
    """A copy of the trainable weights by name."""
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def drift(before, after):
    """The largest difference of any weight."""
    assert before.keys() == after.keys()
    return max(float((before[name] - after[name]).abs().max()) for name in before)


def twin(model):
    """An independent copy."""
    return copy.deepcopy(model)


def recipe(folder, **changes):
    """Write recipe.yaml: a run of four steps with a checkpoint at the second."""
    fields = {
        "model_name_or_path": "student",
        "teacher_model_name_or_path": "teacher",
        "train_file": "train.jsonl",
        "output_dir": "out",
        "max_steps": 4,
        "save_steps": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "max_length": 64,
        "report_to": "none",
        "use_cpu": True,
        "report": False,
    }
    fields = {k: v for k, v in (fields | changes).items() if v is not None}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(fields))


def with_defaults(defaults, flags):
    """A command line: the flags, and of the defaults, each with a value, those that are not set."""
    given = {word.partition("=")[0] for word in flags}
    pairs = zip(defaults[::2], defaults[1::2], strict=True)
    return [*(word for pair in pairs if pair[0] not in given for word in pair), *flags]
