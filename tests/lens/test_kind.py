"""The lens of every kind of model: its own forward around stand-in blocks, on its own inputs."""

import re
from pathlib import Path

import model_kinds as kinds
import pytest
import torch

from distilllens import LogitLens, capture, divergence
from distilllens.lens import divergence_by_depth, read_states, trajectory, tuned_lens
from distilllens.lens.kind import WHY_NOT_TRAINED, check_same_kind, kind_of
from distilllens.lens.reading import Passage

EXACT = 1e-5  # of the largest logit, in float32
IDS = torch.tensor([[5, 9, 17, 33, 6, 30, 12], [21, 4, 19, 3, 20, 2, 11]])
ANSWERS = torch.tensor([[0, 7, 8, 29], [0, 31, 4, 4]])
PAGE = Path(__file__).parents[2] / "docs" / "lens.md"
KINDS = {
    **dict.fromkeys([*kinds.VISION_LANGUAGE, *kinds.EXPERTS, *kinds.HYBRID], "causal"),
    **dict.fromkeys([*kinds.PREFIX, *kinds.MASKED], "bidirectional"),
    **dict.fromkeys(kinds.ENCODER_DECODER, "encoder-decoder"),
    **dict.fromkeys(kinds.IMAGES, "images"),
}


@pytest.fixture(scope="module")
def built():
    """name -> its tiny model and its lens, made once: do not change them."""
    made = {}

    def get(name):
        if name not in made:
            model = kinds.ALL[name].build()
            made[name] = model, LogitLens(model)
        return made[name]

    return get


def inputs_of(name):
    """What a user would give a model of this kind: texts, sound or images."""
    noise = torch.Generator().manual_seed(3)
    if name == "Whisper":
        sound = torch.randn(2, 8, 20, generator=noise)
        return {"input_features": sound, "decoder_input_ids": ANSWERS}
    if name in kinds.IMAGES:
        return {"pixel_values": torch.randn(2, 3, 8, 8, generator=noise)}
    mask = torch.ones_like(IDS)
    if name in kinds.ENCODER_DECODER:
        mask[0, -2:] = 0
        return {"input_ids": IDS, "attention_mask": mask, "decoder_input_ids": ANSWERS}
    return {"input_ids": IDS, "attention_mask": mask}


def by_hand(name, model):
    """``(streams after each block, logits of the own forward stopped at each, its own logits)``."""
    blocks, inputs = model.get_submodule(kinds.ALL[name].blocks), inputs_of(name)
    forms, stopped = [], []

    def form(module, args, output):
        forms.append(output)

    hooks = [block.register_forward_hook(form) for block in blocks]
    logits = model(**inputs).logits
    for hook in hooks:
        hook.remove()
    streams = [form if isinstance(form, torch.Tensor) else form[0] for form in forms]
    for stream in streams:
        given = [
            stream if isinstance(each, torch.Tensor) else type(each)([stream, *each[1:]])
            for each in forms
        ]
        for block, output in zip(blocks, given, strict=True):
            block.forward = lambda *args, _output=output, **kwargs: _output
        try:
            stopped.append(model(**inputs).logits)
        finally:
            for block in blocks:
                del block.forward
    return streams, stopped, logits


def error(found, truth):
    """The largest difference, of the largest logit."""
    assert found.shape == truth.shape
    return float((found - truth).abs().max() / truth.abs().max())


@pytest.mark.parametrize("name", kinds.EXACT)
@torch.no_grad()
def test_every_kind_is_its_own_forward_around_its_blocks(name, built):
    """At each block, on real inputs; ``capture`` gives the streams that hooks by hand give."""
    model, lens = built(name)
    streams, stopped, logits = by_hand(name, model)
    assert lens.kind == kind_of(model) == KINDS[name]
    assert lens.num_layers == len(streams)
    states = capture(lens, range(len(streams) + 1), **inputs_of(name))
    alone = capture(model, [1], **inputs_of(name))
    assert torch.equal(alone[1], states[1])
    for depth, (stream, truth) in enumerate(zip(streams, stopped, strict=True), 1):
        assert torch.equal(states[depth], stream)
        assert error(lens.logits(states[depth]), truth) <= EXACT
        if lens.mode != "stub":
            normed = lens.normalize(states[depth])
            assert error(lens.logits(normed, normalize=False), truth) <= EXACT
    assert error(lens.logits(states[len(streams)]), logits) <= EXACT


@pytest.mark.parametrize("name", ["Qwen2-VL", "T5", "T5 (untied)", "BART", "BERT", "ViT", "BEiT"])
@torch.no_grad()
def test_half_precision_is_the_models_own(name):
    """In bfloat16 the lens is bitwise the model's own forward around its blocks."""
    model = kinds.ALL[name].build().to(torch.bfloat16)
    lens = LogitLens(model)
    inputs = inputs_of(name)
    if name in kinds.IMAGES:
        inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    states = capture(lens, [lens.num_layers], **inputs)
    logits = model(**inputs).logits
    assert torch.equal(lens.logits(states[lens.num_layers]), logits)


@torch.no_grad()
def test_a_bias_behind_the_head_is_read(built):
    """Marian adds a trained bias after its head: another mode, and still exact."""
    model = kinds.ALL["Marian"].build()
    model.final_logits_bias.copy_(torch.linspace(-1, 1, kinds.VOCAB)[None])
    lens = LogitLens(model)
    states = capture(lens, [kinds.DEPTH], **inputs_of("Marian"))
    assert lens.mode == "head"
    logits = model(**inputs_of("Marian")).logits
    assert error(lens.logits(states[kinds.DEPTH]), logits) <= EXACT


@pytest.mark.parametrize("name", ["T5", "BART", "Whisper", "BERT", "ViT", "BEiT", "Gemma 3"])
@torch.no_grad()
def test_a_trajectory_has_the_shape_of_the_predictions(name, built):
    """``[K, B, T, k]``; of images ``[K, B, k]``: the softmax of the logits at each depth."""
    lens, inputs = built(name)[1], inputs_of(name)
    found = trajectory(lens, depths=[0, 2], top_k=3, chunk_size=3, **inputs)
    assert found.depths == (0, 2)
    state = capture(lens, [2], **inputs)[2]
    p = lens.logits(state).softmax(-1)
    assert found.tokens.shape == (2, *p.shape[:-1], 3)
    best = p.sort(-1, descending=True)
    assert torch.equal(found.tokens[1], best.indices[..., :3])
    torch.testing.assert_close(found.probabilities[1], best.values[..., :3])
    torch.testing.assert_close(found.entropy[1], -(p * p.log()).sum(-1))


@pytest.mark.parametrize("with_labels", [False, True])
@pytest.mark.parametrize("name", ["T5", "BART", "BERT", "ViT", "Qwen2-VL"])
@torch.no_grad()
def test_two_models_are_compared_where_their_labels_lie(name, with_labels, built):
    """Next tokens only of causal models; else each position, or each image, with a label."""
    _, student = built(name)
    other = kinds.ALL[name].build()
    for parameter in other.parameters():
        parameter.mul_(1.3)
    teacher = LogitLens(other)
    inputs = inputs_of(name)
    texts = ANSWERS if "decoder_input_ids" in inputs else IDS
    labels = torch.tensor([3, 0]) if name == "ViT" else texts.clone()
    if name == "ViT":
        at = torch.ones(2, dtype=torch.bool)
    else:
        at = torch.ones_like(texts, dtype=torch.bool)
        if with_labels:
            labels[0, 1] = labels[1, -1] = -100
            at = at & (labels != -100)
        if name == "Qwen2-VL":
            at = torch.cat([at[:, 1:], torch.zeros(2, 1, dtype=torch.bool)], 1)
    given = {"labels": labels} if with_labels else {}
    kl = divergence("forward_kl")
    found = divergence_by_depth(student, teacher, [(1, 2)], divergence=kl, **given, **inputs)
    q = student.logits(capture(student, [1], **inputs)[1])[at].double().log_softmax(-1)
    p = teacher.logits(capture(teacher, [2], **inputs)[2])[at].double().log_softmax(-1)
    assert found.num_tokens == int(at.sum())
    assert found.means[0] == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-5)


@pytest.mark.parametrize("name", ["T5", "BART"])
@torch.no_grad()
def test_an_encoder_decoder_reads_its_decoders_text(name, built):
    """Labels become its inputs as in the model; without either, BART would read the wrong text."""
    model, lens = built(name)
    labels = torch.tensor([[7, 8, 29, 1], [31, 4, 4, 1]])
    states = capture(lens, [kinds.DEPTH], input_ids=IDS, labels=labels)
    logits = model(input_ids=IDS, labels=labels).logits
    assert error(lens.logits(states[kinds.DEPTH]), logits) <= EXACT
    path = trajectory(lens, depths=[kinds.DEPTH], input_ids=IDS, labels=labels)
    assert torch.equal(path.tokens[0, ..., 0], logits.argmax(-1))
    for read in (lambda **inputs: capture(lens, [1], **inputs), lambda **i: trajectory(lens, **i)):
        with pytest.raises(ValueError, match="encoder-decoder: pass decoder_input_ids"):
            read(input_ids=IDS)


def test_whisper_takes_its_decoders_text(built):
    """It cannot make it from labels outside of its own forward, and says what to pass."""
    with pytest.raises(ValueError, match="no decoder_input_ids from labels: pass decoder_input"):
        capture(built("Whisper")[1], [1], labels=ANSWERS)


def test_gradients_reach_an_image_classifiers_blocks():
    """Through the states and the model's own pooling: what a loop of one's own trains on."""
    model = kinds.ALL["ViT"].build().train()
    lens = LogitLens(model)
    state = capture(lens, [2], **inputs_of("ViT"))[2]
    lens.logits(state).square().sum().backward()
    first, second, third = model.get_submodule("vit.layers")
    assert all(p.grad is not None for block in (first, second) for p in block.parameters())
    assert all(p.grad is None for p in third.parameters())
    assert model.classifier.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["ViT", "BEiT"])
def test_rows_of_an_image_are_no_prediction(name, built):
    """A classifier reads its positions together: rows are refused, with what to pass."""
    lens = built(name)[1]
    assert not lens.reads_rows
    with pytest.raises(ValueError, match=r"stream has 3 axes, got shape \[5, 32\]: pass it as"):
        lens.logits(torch.randn(5, 32))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ALBERT", "AlbertForMaskedLM: its blocks .+ run more than once in a forward"),
        ("Swin", r"SwinForImage.+: its blocks lie in the stages of swin.encoder.layers, not in"),
        ("ConvNeXt", "ConvNextForImage.+: its blocks return streams of different shapes"),
        ("ResNet", "ResNetForImage.+: its configuration does not say how large its images are"),
    ],
)
def test_what_has_no_single_stream_is_refused(name, reason):
    """With its class and the reason."""
    with pytest.raises(ValueError, match="no exact logit lens for " + reason):
        LogitLens(kinds.ALL[name].build())


def test_what_training_cannot_read_is_refused_by_its_kind(built):
    """``check_trainable`` and ``read_states`` say why, and what reads it instead."""
    for name in (*kinds.ENCODER_DECODER, *kinds.MASKED, *kinds.PREFIX, *kinds.IMAGES):
        _, lens = built(name)
        with pytest.raises(ValueError, match=re.escape(WHY_NOT_TRAINED[lens.kind])):
            lens.check_trainable()
    for name in ("T5", "BART", "ViT"):
        with pytest.raises(ValueError, match=r"read_states does not read .+; use capture and"):
            read_states(built(name)[1], [1], **inputs_of(name))


def test_models_of_two_kinds_are_not_compared(built):
    """A masked LM beside a causal one: their logits are of different tokens."""
    pair = built("BERT")[1], built("Qwen2-MoE")[1]
    text = r"BertForMaskedLM \(bidirectional\) and Qwen2MoeForCausalLM \(causal\) predict different"
    with pytest.raises(ValueError, match=text):
        check_same_kind(*pair)
    with pytest.raises(ValueError, match=text):
        divergence_by_depth(*pair, [(1, 1)], divergence=divergence("jsd"), input_ids=IDS)


def test_a_tuned_lens_reads_every_kind_of_text(built):
    """Fitted to a masked LM and, with the encoder's text, to an encoder-decoder; not to images."""
    _, lens = built("BERT")
    tuned, count = tuned_lens(lens, [Passage(row, torch.arange(7)) for row in IDS])
    assert count == 14 and tuned.translators is not None
    passages = [Passage(a, torch.arange(4), source=s) for s, a in zip(IDS, ANSWERS, strict=True)]
    assert tuned_lens(built("BART")[1], passages)[1] == 8
    with pytest.raises(ValueError, match=r"ViT.+reads images"):
        tuned_lens(built("ViT")[1], passages)


def test_a_kind_is_found_by_what_its_logits_see():
    """The same class and weights, causal or not: a position that sees later tokens tells."""
    from transformers import BertConfig, BertLMHeadModel

    settings = kinds.ALL["BERT"].settings
    for decodes, expected in ((True, "causal"), (False, "bidirectional")):
        torch.manual_seed(0)
        config = BertConfig(**settings, is_decoder=decodes)
        assert LogitLens(BertLMHeadModel(config).eval()).kind == expected
        config.initializer_range = 0.3
        model = BertLMHeadModel(config).eval()
        assert LogitLens(model.to(torch.bfloat16)).kind == expected


def table():
    """The table of kinds in docs/lens.md: model -> (class, mode, predicts, trained)."""
    rows = re.findall(
        r"^\| ([^|]+) \| `(\w+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", PAGE.read_text(), re.M
    )
    return {name: cells for name, *cells in rows}


def test_the_page_has_a_row_for_each_kind_tried():
    """And for no other."""
    assert list(table()) == list(kinds.ALL)


@pytest.mark.parametrize("name", kinds.ALL)
def test_the_page_says_what_is_found(name, built):
    """Class, mode, what is predicted, and what training does with it."""
    cls, mode, predicts, trained = table()[name]
    model = kinds.ALL[name].build() if name in kinds.REFUSED else built(name)[0]
    assert type(model).__name__ == cls
    if name in kinds.REFUSED:
        assert (mode, predicts, trained) == ("`refused`", "–", "no")
        return
    lens = built(name)[1]
    assert (mode, predicts) == (f"`{lens.mode}`", lens.kind)
    try:
        lens.check_trainable()
    except ValueError:
        assert trained == "no"
    else:
        assert trained == "yes"
