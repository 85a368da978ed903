"""What a configuration names is what is loaded, or it is refused."""

import sys
from pathlib import Path

import pytest
import toys
from transformers import BertConfig, BertLMHeadModel

from distilllens.architectures import check_writes_text, input_of
from distilllens.loading import check_architectures, load_model

sys.path.insert(0, str(Path(__file__).parent / "lens"))
import model_kinds as kinds

OTHER = ("T5", "BART", "BERT", "ModernBERT")


@pytest.mark.parametrize("name", ["Qwen2-VL", "Gemma 3", "SmolVLM", "Mixtral", *OTHER])
def test_a_folder_is_loaded_as_the_class_it_names(name, tmp_path):
    """With equal weights; encoder-decoders and masked LMs only where they are wanted."""
    model = kinds.ALL[name].build()
    model.save_pretrained(tmp_path)
    found = load_model("model", str(tmp_path), every_kind=True)
    assert type(found) is type(model)
    assert toys.drift(toys.weights(model), toys.weights(found)) == 0
    if name in OTHER:
        text = f"cannot load the teacher .+: it is a {type(model).__name__}, and no causal language"
        with pytest.raises(ValueError, match=text):
            load_model("teacher", str(tmp_path))
    else:
        assert type(load_model("teacher", str(tmp_path))) is type(model)


def test_a_decoder_of_an_encoders_family_is_causal(tmp_path):
    """BERT as a decoder is saved as another class, and loaded as before."""
    settings = kinds.ALL["BERT"].settings
    BertLMHeadModel(BertConfig(**settings, is_decoder=True)).save_pretrained(tmp_path)
    assert type(load_model("model", str(tmp_path))) is BertLMHeadModel


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("Qwen2-VL", "input_ids"),
        ("T5", "input_ids"),
        ("BERT", "input_ids"),
        ("Whisper", "input_features"),
        ("ViT", "pixel_values"),
    ],
)
def test_what_a_model_reads(name, read):
    """By the class that its configuration names; text by default."""
    config = kinds.ALL[name].build().config
    config.architectures = [kinds.ALL[name].cls]
    assert input_of(config) == read
    config.architectures = None
    assert input_of(config) == "input_ids"


def test_a_student_that_writes_no_text_is_refused():
    """By its object, or by the name in its configuration; an unknown class passes."""
    bert, vit = kinds.ALL["BERT"].build(), kinds.ALL["ViT"].build()
    for model in (bert, vit, "BertForMaskedLM", "ViTForImageClassification", "LlamaModel"):
        with pytest.raises(ValueError, match=r"cannot be trained .+: it does not write text"):
            check_writes_text(model)
    for model in (
        toys.llama(),
        "LlamaForCausalLM",
        "MyOwnModel",
        "Qwen2VLForConditionalGeneration",
    ):
        check_writes_text(model)
    bert.config.architectures = ["BertForMaskedLM"]
    with pytest.raises(ValueError, match="BertForMaskedLM cannot be trained"):
        check_architectures("folder", bert.config)
