"""Sentence similarity of a tiny real sentence model against pooling by hand."""

import builtins
import socket

import huggingface_hub.constants
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from distilllens.evaluate.sbert import SentenceSimilarity

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "mat", "hill", "red"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random BERT of two blocks with mean pooling, saved as sentence-transformers save it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    where = tmp_path_factory.mktemp("sentences")
    vocab = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    core = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32
    ).save_pretrained(where / "bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocab),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(where / "bert")
    parts = [Transformer(str(where / "bert")), Pooling(16, pooling_mode="mean")]
    SentenceTransformer(modules=parts, device="cpu").save(str(where / "sbert"))
    return where


@pytest.fixture
def similarity(folder):
    return SentenceSimilarity(str(folder / "sbert"), device="cpu")


@pytest.fixture
def encoded(similarity, monkeypatch):
    """The texts that the sentence model was given, call by call."""
    calls, encode = [], similarity._model.encode

    def watched(texts, **kwargs):
        calls.append(list(texts))
        return encode(texts, **kwargs)

    monkeypatch.setattr(similarity._model, "encode", watched)
    return calls


def by_hand(folder, text):
    """Mean of the last states over a text's own tokens, one text at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "bert")
    model = AutoModel.from_pretrained(folder / "bert").eval()
    with torch.no_grad():
        inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        return model(**inputs).last_hidden_state[0].mean(0)


ANSWERS = ["the cat sat", "a dog ran on the hill", "", "unheard words"]
REFERENCES = [["a cat sat on a mat"], ["the red cat", "the dog ran", "mat"], ["dog"], ["a", "on"]]


def test_equals_pooling_by_hand(similarity, folder):
    """The largest cosine over the references, at any batch size; it differs between texts."""
    expected = [
        max(
            float(torch.cosine_similarity(by_hand(folder, a), by_hand(folder, r), dim=0))
            for r in references
        )
        for a, references in zip(ANSWERS, REFERENCES, strict=True)
    ]
    for batch_size in (1, 3, 64):
        found = similarity(ANSWERS, REFERENCES, batch_size)
        assert found == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.05


def test_an_answer_that_is_the_reference(similarity):
    """Similarity 1, and never above, where rounding would have it."""
    texts = [f"{one} {two}" for one in WORDS for two in WORDS]
    found = similarity(texts, [[text, "mat"] for text in texts])
    assert found == pytest.approx([1.0] * len(texts), abs=1e-12) and max(found) <= 1


def test_each_text_is_embedded_once(similarity, encoded):
    """Equal texts are embedded once per call, and references only in the first call."""
    similarity(["the cat", "the cat", "mat"], [["mat", "red"], ["mat"], ["red"]])
    assert encoded == [["mat", "red"], ["the cat"]]
    similarity(["red", "a dog", "mat"], [["mat", "red"], ["mat"], ["hill"]])
    assert encoded[2:] == [["hill"], ["a dog"]]
    similarity(["the cat"], [["mat"]])
    assert encoded[4:] == [["the cat"]]


def test_nothing_to_compare(similarity, encoded):
    """No answers give no values and no call of the model."""
    assert similarity([], []) == [] == encoded


def test_refuses_lists_that_do_not_match(similarity):
    """One list of references for each answer."""
    with pytest.raises(ValueError, match="2 answers, but references for 1"):
        similarity(["a", "b"], [["a"]])


def test_a_folder_asks_nothing_of_the_network(folder, monkeypatch):
    """A folder whose name could be a hub id is not looked up on the hub, even when online."""
    asked = []

    def refuse(*args, **kwargs):
        asked.append(args)
        raise AssertionError("no network")  # an OSError would be tried again for a minute

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.chdir(folder.parent)
    SentenceSimilarity(f"{folder.name}/sbert", device="cpu")(["a cat"], [["a dog"]])
    assert asked == []
    with pytest.raises(ValueError, match="cannot load the sentence model"):
        SentenceSimilarity("nobody/no-such-model")
    assert asked != []  # the watch sees those who try


@pytest.mark.parametrize("name", ["nobody/no-such-model", "no/such/folder"])
def test_a_model_that_is_not_there(name):
    """One line has the name and a remedy."""
    with pytest.raises(ValueError, match=f"cannot load the sentence model '{name}': .+") as caught:
        SentenceSimilarity(name)
    assert "\n" not in str(caught.value) and str(caught.value).endswith("of sentence-transformers")


def test_a_device_that_is_not_there(folder):
    """One line as well."""
    with pytest.raises(ValueError, match="cannot load the sentence model"):
        SentenceSimilarity(str(folder / "sbert"), device="no-such-device")


def test_says_what_is_missing(monkeypatch):
    """Without sentence-transformers, one line shows how to install it."""
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "sentence_transformers":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'distilllens\[sbert\]'$"):
        SentenceSimilarity("anything")


@pytest.mark.parametrize("trusted", [False, True])
def test_code_of_the_model_needs_trust(monkeypatch, trusted):
    """sentence-transformers is told to run it only where the caller says so."""
    told = []
    monkeypatch.setattr(
        "sentence_transformers.SentenceTransformer", lambda *_, **settings: told.append(settings)
    )
    SentenceSimilarity("anything", **({"trust_remote_code": True} if trusted else {}))
    assert [settings["trust_remote_code"] for settings in told] == [trusted]
