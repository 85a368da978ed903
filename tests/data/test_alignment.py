"""Two tokenizations of one text: an oracle that asks of every pair of prefixes what they spell."""

import os
import random
from functools import cache
from pathlib import Path

import pytest
from train.two_tokenizers import byte_level, student_tokenizer, teacher_tokenizer
from transformers import AutoTokenizer

from distilllens.data.alignment import Aligner, TokenReader, aligner_of
from distilllens.data.encode import encode

SHARED = Path(os.environ.get("DISTILLLENS_SHARED", "nowhere"))
REAL = {
    "gpt2": SHARED / "tokenizers" / "gpt2",
    "llama2": SHARED / "tokenizers" / "llama2-32k",
    "stories": SHARED / "models" / "stories260K",
}
needs_real = pytest.mark.skipif(not REAL["gpt2"].exists(), reason="needs the shared tokenizers")
PAIRS = [(a, b) for a in REAL for b in REAL]
TEXTS = {
    "plain": "The cat sat on the mat, and then it ran.",
    "emoji": "fine 😀👩‍👩‍👧 done",
    "chinese": "世界 is 東京 and 世界。",
    "tabs": "\tif x:\n\t\treturn  1\n\n",
    "leading spaces": "   two  spaces   ",
    "digits": "1234567 and 3.14 or 007",
    "accents": "naïve café, e\u0301 and \u0301 alone",
    "special names": "a literal </s> and <|endoftext|> and <s>",
    "byte sign": "a sign Ġ of bytes Â",
    "empty": "",
    "one": "x",
}


@cache
def tokenizer(name):
    return AutoTokenizer.from_pretrained(REAL[name])


@cache
def reader(tokenizer):
    return TokenReader(tokenizer)


@cache
def aligner(student, teacher):
    return Aligner(reader(student), reader(teacher))


def by_hand(one, other, text, end, other_end):
    """Pairs of positions whose prefixes leave the same rest of the text, spelled by decoding."""

    def rests(tokenizer, ids, end):
        bytes_of = reader(tokenizer)
        found = {}
        for position in range(len(ids)):
            behind = b"".join(bytes_of(ids[position + 1 :]))
            if not behind.endswith(end.encode()):
                continue
            behind = behind[: len(behind) - len(end.encode())]
            if behind == b" " + text.encode():  # a space that the tokenizer puts in front
                behind = text.encode()
            if text.encode().endswith(behind):
                found[behind] = position
        return found

    ours, theirs = rests(*one, end), rests(*other, other_end)
    return {(ours[rest], theirs[rest]) for rest in ours.keys() & theirs.keys()}


# stories260K's tokenizer puts a space behind every special name, which the oracle takes for text.
ORACLE = [
    (*pair, text)
    for pair in PAIRS
    for text in TEXTS
    if "stories" not in pair or "names" not in text
]


@needs_real
@pytest.mark.parametrize(("ours", "theirs", "text"), ORACLE)
def test_positions_with_the_same_rest_of_the_text_are_compared(ours, theirs, text):
    """All of them and no others, by the bytes of the tokens behind each position."""
    student, teacher = tokenizer(ours), tokenizer(theirs)
    example = {"prompt": "Q: ", "completion": TEXTS[text]}
    ids = encode(example, student).ids
    found = aligner(student, teacher)(example, ids)
    assert found.problem == ""
    whole = "Q: " + TEXTS[text]
    expected = by_hand(
        (student, ids), (teacher, found.ids), whole, student.eos_token, teacher.eos_token
    )
    pairs = {*zip(found.student, found.teacher, strict=True)}
    # Behind an end token there is nothing to predict; one tokenizer compares that too.
    pairs.discard((len(ids) - 1, len(found.ids) - 1))
    assert pairs == expected
    assert found.ids == encode(example, teacher).ids


@needs_real
@pytest.mark.parametrize("name", REAL)
def test_the_bytes_of_tokens_spell_the_text(name):
    """What all tokens stand for is the text, behind what the tokenizer puts in front."""
    words = tokenizer(name)
    for text in TEXTS.values():
        ids = words(text, add_special_tokens=False)["input_ids"]
        spelled = b"".join(TokenReader(words)(ids))
        if "</s>" not in text:
            assert spelled.decode() in (text, " " + text)


@needs_real
def test_the_sign_for_a_space_is_one():
    """SentencePiece reads its own sign as a space; all else is compared."""
    example = {"prompt": "", "completion": "a ▁ sign"}
    student, teacher = tokenizer("gpt2"), tokenizer("llama2")
    ids = encode(example, student).ids
    found = aligner(student, teacher)(example, ids)
    read = [b"".join(reader(student)(ids[: at + 1])).decode() for at in found.student]
    assert found.problem == "" and [read[0], read[-1]] == ["a", "a ▁ sign"]


@needs_real
def test_shared_tokens_of_real_vocabularies():
    """The same bytes, or the same special name; the ends of text are one token."""
    gpt2, llama = tokenizer("gpt2"), tokenizer("llama2")
    found = aligner_of(gpt2, llama).vocabularies("shared")
    pairs = {tuple(pair) for pair in found.shared.tolist()}
    assert (gpt2.eos_token_id, llama.eos_token_id) in pairs
    for mine, its in (("Ġworld", "▁world"), ("Ċ", "<0x0A>"), ("a", "a"), ("å", "<0xE5>")):
        pair = (gpt2.convert_tokens_to_ids(mine), llama.convert_tokens_to_ids(its))
        assert pair in pairs, mine
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) == 18208
    for each in (gpt2, llama, tokenizer("stories")):
        own = aligner_of(each, each).vocabularies("shared").shared
        assert own.tolist() == [[i, i] for i in range(len(each))]


CONVERSATIONS = {
    "one turn": [("user", "Hi there"), ("assistant", "a big dog ran")],
    "spaces around": [("user", "Hi"), ("assistant", "  the old cat \n")],
    "names of roles": [("user", "assistant"), ("assistant", "user")],
    "two turns": [("user", "a"), ("assistant", "b a"), ("user", "a"), ("assistant", "the mat")],
    "what the template writes": [("user", "Talk."), ("assistant", "Talk.")],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_each_model_reads_messages_by_its_own_template(name):
    """Positions inside messages are compared where the same text follows, and no others."""
    student, teacher = student_tokenizer(), teacher_tokenizer()
    messages = [{"role": role, "content": text} for role, text in CONVERSATIONS[name]]
    example = {"messages": messages}
    ids = encode(example, student).ids
    found = aligner_of(student, teacher)(example, ids)
    assert found.problem == "" and found.end == (student.eos_token_id, teacher.eos_token_id)
    ours, theirs = TokenReader(student), TokenReader(teacher)
    answer = CONVERSATIONS[name][-1][1]
    compared = set()
    for mine, its in zip(found.student, found.teacher, strict=True):
        behind = b"".join(ours(ids[mine + 1 :])).decode(errors="ignore")
        other = b"".join(theirs(found.ids[its + 1 :])).decode(errors="ignore")
        mine_rest, its_rest = behind.removesuffix("<end>"), other.removesuffix("</s>")
        if "<" not in mine_rest and "<" not in its_rest:  # inside the last message
            assert mine_rest.strip() == its_rest.strip()
            compared.add(mine_rest.strip())
    # The student's first token may begin in what the teacher's template writes.
    assert ("" in compared) == (answer == answer.strip())
    assert len(compared) > len(answer.split()) // 2


def test_a_cut_student_is_compared_as_far_as_it_goes():
    """Tokens that ``max_length`` cuts off change nothing in front of them."""
    student, teacher = student_tokenizer(), teacher_tokenizer()
    example = {"prompt": "the cat", "completion": " sat on a hill and then it was red"}
    ids, align = encode(example, student).ids, aligner_of(student, teacher)
    whole = align(example, ids)
    for limit in (1, 5, len(ids) - 1):
        cut = align(example, ids[:limit])
        assert cut.student == [position for position in whole.student if position < limit]
        assert cut.teacher == whole.teacher[: len(cut.student)]


def test_random_texts_agree_with_one_tokenizer():
    """With one tokenizer every position is compared with itself, whatever the text."""
    words, draw = student_tokenizer(), random.Random(0)
    align = aligner_of(words, words)
    for _ in range(50):
        text = "".join(chr(draw.choice([32, 97, 233, 0x4E16, 0x1F600, 10])) for _ in range(20))
        for example in ({"text": text}, {"messages": [{"role": "user", "content": text + "."}]}):
            ids = encode(example, words).ids
            found = align(example, ids)
            assert found.student == found.teacher and found.ids == ids
            assert found.student[-1] == len(ids) - 1 and len(found.student) >= len(ids) - 1


def test_a_normalising_tokenizer_is_compared_around_what_it_changes():
    """NFC reads e + accent as one letter: what stands before and behind it is compared."""
    from tokenizers import normalizers

    plain, composing = student_tokenizer(), teacher_tokenizer()
    composing.backend_tokenizer.normalizer = normalizers.NFC()
    example = {"prompt": "a", "completion": " cat e\u0301 dog"}
    ids = encode(example, plain).ids
    found = aligner_of(plain, composing)(example, ids)
    ours, theirs = TokenReader(plain), TokenReader(composing)
    read = [
        (b"".join(ours(ids[: a + 1])), b"".join(theirs(found.ids[: b + 1])))
        for a, b in zip(found.student, found.teacher, strict=True)
    ]
    assert (b"a cat", b"a cat") in read
    assert ("a cat e\u0301 dog".encode(), "a cat \u00e9 dog".encode()) in read
    assert ("a cat e\u0301".encode(), "a cat \u00e9".encode()) in read
    assert not any(a.endswith(b" e") for a, _ in read)


def test_what_cannot_be_compared_says_why():
    """A tokenizer that loses spaces, a template that changes messages, no template."""
    import toys

    good, lossy = student_tokenizer(), toys.tokenizer()
    example = {"prompt": "the cat", "completion": " sat"}
    assert "student's tokens do not spell" in aligner_of(lossy, good)(example, [2, 3, 4]).problem
    shouting = byte_level(300, "</s>", template="{{ messages[0].content | upper }}</s>")
    chat = {"messages": [{"role": "user", "content": "hello"}]}
    found = aligner_of(good, shouting)(chat, encode(chat, good).ids)
    assert "teacher's chat template changes messages" in found.problem and not found.student
    with pytest.raises(ValueError, match="the teacher's tokenizer cannot write these messages"):
        aligner_of(good, byte_level(300, "</s>"))(chat, encode(chat, good).ids)
