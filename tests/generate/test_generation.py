"""Generated tokens as text, alone and after their prompt."""

import pytest
import toys
from transformers import AutoTokenizer

from distilllens.data.encode import encode_example, encode_text
from distilllens.generate.generation import Generation, continuation, generation


def test_an_end_token_is_in_the_count_and_not_in_the_text():
    """Also where it is no special token; the ids are all that were generated."""
    made = toys.tokenizer()
    found = generation(made, [3, 4, 8], [8], 2)
    assert found == Generation("cat dog", 3, True, 2) and found.ids == (3, 4, 8)
    assert generation(made, [3, 4], [8], 0) == Generation("cat dog", 2, False, 0)


@pytest.mark.parametrize("name", ["models/stories260K", "tokenizers/gpt2", "tokenizers/llama2-32k"])
@pytest.mark.parametrize("finished", [True, False])
def test_prompt_and_completion_are_trained_on_as_they_were_generated(shared, name, finished):
    """Of a text cut in two anywhere between words, the tokens are those of the whole text."""
    made = AutoTokenizer.from_pretrained(shared / name)
    text = "Once upon a time, there was a little girl. She liked the red café."
    ids, end = encode_text(text, made), made.eos_token_id
    for at in range(2, len(ids)):
        prompt = made.decode(ids[:at], skip_special_tokens=True)
        if encode_text(prompt, made) != ids[:at]:
            continue  # no prompt that a tokenizer would make
        said = [*ids[at:], end] if finished else ids[at:]
        answer = generation(made, said, [end], 0)
        completion = continuation(made, ids[:at], answer)
        assert prompt + completion == text
        trained, first = encode_example({"prompt": prompt, "completion": completion}, made)
        assert (trained, first) == ([*ids, end], at)


def test_a_sentencepiece_answer_alone_loses_its_first_space(shared):
    """Which is why the text of an answer is no completion."""
    made = AutoTokenizer.from_pretrained(shared / "models/stories260K")
    ids = encode_text("Once upon a time", made)
    (at,) = (n for n in range(1, len(ids)) if made.decode(ids[:n]).endswith("Once upon a"))
    answer = generation(made, ids[at:], [], 0)
    assert answer.text == "time" and continuation(made, ids[:at], answer) == " time"


def test_a_character_that_the_answer_completes(shared):
    """Then there is no text that continues the prompt's, and the answer's own is taken."""
    made = AutoTokenizer.from_pretrained(shared / "tokenizers/gpt2")
    ids = encode_text("a 京 b", made)
    answer = generation(made, ids[2:], [], 0)
    assert continuation(made, ids[:2], answer) == answer.text
