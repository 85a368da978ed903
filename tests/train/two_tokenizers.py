"""Toys of a student and a teacher with two tokenizers; no test in here."""

from dataclasses import dataclass
from pathlib import Path

import toys
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [f"{e['prompt']}{e['completion']}" for e in toys.examples(60, seed=5)]
CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Other words around messages, and messages without spaces at their ends.
PLAIN = (
    "Talk.{% for m in messages %}\n{{ m.role }}: {{ m.content | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}\nassistant: {% endif %}"
)


def byte_level(vocab_size, end, *, texts=TEXTS, template=None, digits=False):
    """A byte-level BPE of GPT-2's kind with merges learned from texts, and an end token."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if digits:
        parts = [pre_tokenizers.Digits(individual_digits=True), core.pre_tokenizer]
        core.pre_tokenizer = pre_tokenizers.Sequence(parts)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[end], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=end, pad_token=end)
    made.chat_template = template
    return made


def student_tokenizer():
    """Few merges: words in pieces."""
    return byte_level(300, "<end>", template=CHATML)


def teacher_tokenizer():
    """More merges, learned from other text, and another end."""
    texts = [*(text.replace("cat", "cow") for text in TEXTS[::2]), "a dog ran then", "12 34"]
    return byte_level(330, "</s>", texts=texts, template=PLAIN)


@dataclass
class Pair:
    """A student, and a teacher in a folder with its tokenizer."""

    folder: Path
    student_words: object
    teacher_words: object

    def student(self, **kwargs):
        """A student of its tokenizer's vocabulary."""
        return toys.llama(vocab=len(self.student_words), positions=256, **kwargs)

    def trainer(self, output, *, data=None, student=None, **kwargs):
        """A trainer of the pair."""
        from distilllens import DistillLensTrainer

        parts = {k: kwargs.pop(k) for k in toys._PARTS if k in kwargs}
        teacher = kwargs.pop("teacher", str(self.folder))
        kwargs = {"cross_tokenizer": "shared", "max_length": 128, **kwargs}
        return DistillLensTrainer(
            student or self.student(),
            teacher,
            args=toys.config(output, **kwargs),
            train_dataset=toys.dataset() if data is None else data,
            processing_class=self.student_words,
            **parts,
        )


def pair_in(folder, student_words=None, teacher_words=None):
    """A pair whose teacher is saved in a folder."""
    theirs = teacher_words or teacher_tokenizer()
    teacher = toys.llama(4, 24, vocab=len(theirs), seed=1, positions=256)
    teacher.save_pretrained(folder)
    theirs.save_pretrained(folder)
    return Pair(Path(folder), student_words or student_tokenizer(), theirs)


def chats(count=6):
    """Conversations of a prompt and a completion."""
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": e["prompt"]}],
                "completion": [{"role": "assistant", "content": e["completion"]}],
            }
            for e in toys.examples(count)
        ]
    )
