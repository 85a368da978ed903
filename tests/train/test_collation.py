"""Student and teacher whose tokenizers differ by added tokens."""

import pytest
import toys
from datasets import Dataset

from distilllens import DistillLensTrainer
from distilllens.train.collation import Collation

FILLERS = [f"<extra_id_{n}>" for n in range(8)]


def grown():
    """The toys' tokenizer, of 22 tokens, with eight fillers and a <pad> of number 30."""
    made = toys.tokenizer()
    made.add_special_tokens({"additional_special_tokens": FILLERS})
    made.add_special_tokens({"pad_token": "<pad>"})
    return made


@pytest.fixture
def teacher(tmp_path):
    """A teacher in a folder, with 24 embeddings and the plain tokenizer."""
    folder = tmp_path / "teacher"
    toys.llama(4, 24, seed=1).save_pretrained(folder)
    toys.tokenizer().save_pretrained(folder)
    return str(folder)


def trained(tmp_path, teacher, made, data=None, **settings):
    """The weights of a student of 32 embeddings after three steps."""
    trainer = DistillLensTrainer(
        toys.llama(vocab=32),
        args=toys.config(tmp_path / "out", teacher_model_name_or_path=teacher, **settings),
        train_dataset=toys.dataset() if data is None else data,
        processing_class=made,
    )
    trainer.train()
    return toys.weights(trainer.model)


@pytest.mark.parametrize("cached", [False, True])
def test_added_tokens_that_no_row_has_change_nothing(tmp_path, teacher, cached):
    """The weights are those of the teacher's own tokenizer; <pad> is beyond its embeddings."""
    settings = [{"teacher_cache": str(tmp_path / f"cache-{n}")} if cached else {} for n in "ab"]
    plain = trained(tmp_path, teacher, toys.tokenizer(), **settings[0])
    added = trained(tmp_path, teacher, grown(), **settings[1])
    assert toys.drift(plain, added) == 0


@pytest.mark.parametrize("token", ["<extra_id_3>", "<pad>"])
def test_an_added_token_in_the_data_is_named(tmp_path, teacher, token):
    """With its row, before the teacher is loaded."""
    rows = [*toys.examples(3), {"prompt": "the", "completion": f" cat {token} ran"}]
    with pytest.raises(
        ValueError, match=f"'{token}' for the student .* row 3 of the training data"
    ):
        trained(tmp_path, teacher, grown(), Dataset.from_list(rows))


def test_padding_beyond_the_students_embeddings_is_replaced(tmp_path):
    """A tokenizer with a <pad> for which nobody has made room in the model."""
    trainer = DistillLensTrainer(
        toys.llama(),
        toys.llama(4, 24, seed=1),
        args=toys.config(tmp_path),
        train_dataset=toys.dataset(),
        processing_class=grown(),
    )
    trainer.train()
    rows = [(trainer.train_dataset, index) for index in range(4)]
    batch = Collation.of(trainer).batch(rows)
    assert batch["input_ids"].max() < 24 and 0 in batch["attention_mask"]
