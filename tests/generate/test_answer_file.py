"""A file of answers, and what a crash at any byte leaves of it."""

import json

import pytest

from distilllens.generate.answer_file import AnswerFile, AnswerRow
from distilllens.jsonl import read_rows
from distilllens.stored import DamagedFile

SETTINGS = {"model": {"config.json": "a" * 64}, "seeds": [10], "limit": None}


def answer(prompt, text="é\u2028京"):
    """A row of a part file."""
    return AnswerRow(prompt=prompt, seed=10, answer=text, num_tokens=2, finished=True, near_ties=0)


def test_what_is_appended_is_found_again(tmp_path):
    """Of all processes; a finished file is written at once, and its parts go."""
    file = AnswerFile(tmp_path / "a[1].jsonl")
    other = AnswerFile(tmp_path / "a1.jsonl")
    with file.claimed(SETTINGS), other.claimed(SETTINGS):
        file.append(0, [answer(0)])
        file.append(1, [answer(2)])
        file.append(0, [answer(1)])
        other.append(1, [answer(7)])
        assert {*file.answers()} == {(0, 10), (1, 10), (2, 10)}
        assert file.answers()[2, 10] == answer(2) and {*other.answers()} == {(7, 10)}
        assert not file.is_finished(SETTINGS)
        (tmp_path / "a[1].jsonl.123.part").write_text("of a process that was killed")
        (tmp_path / "a[1].jsonl.mine.part").write_text("of the user")
        file.finish([{"text": "京"}], SETTINGS, {"rows": 1})
    assert read_rows(file.path) == [{"text": "京"}] and file.is_finished(SETTINGS)
    assert {*tmp_path.glob("a[[]1*")} == {
        file.path,
        file.note,
        tmp_path / "a[1].jsonl.mine.part",
    }
    assert json.loads(file.note.read_text())["rows"] == 1


def test_a_part_file_cut_at_any_byte_is_ours(tmp_path):
    """Whole answers are found again, the settings are written again, and appending goes on."""
    file = AnswerFile(tmp_path / "a.jsonl")
    with file.claimed(SETTINGS):
        file.append(0, [answer(0), answer(1)])
        content = file.part.read_bytes()
    for cut in range(len(content)):
        file.part.write_bytes(content[:cut])
        # A line is whole without its end.
        whole = max(content[: cut + 1].count(b"\n") - 1, 0)
        with file.claimed(SETTINGS):
            assert len(file.answers()) == whole
            file.append(0, [answer(5)])
            assert len(file.answers()) == whole + 1
        if whole:
            with pytest.raises(ValueError, match="limit was None and is now 3"):
                file.claimed(SETTINGS | {"limit": 3}).__enter__()


def test_without_an_answer_nothing_stays(tmp_path):
    """Neither after an error nor of other settings."""
    file = AnswerFile(tmp_path / "a.jsonl")
    with pytest.raises(KeyError), file.claimed(SETTINGS):
        assert file.part.exists()
        raise KeyError
    assert not file.part.exists()
    file.part.write_text('{"made_by": "distilllens generate", "settings": {"limit": 5}}\n')
    with file.claimed(SETTINGS):
        file.append(0, [answer(0)])
    with file.claimed(SETTINGS):
        assert len(file.answers()) == 1


def test_deleting_the_part_file_forgets_every_process(tmp_path):
    """What the others left has no settings of its own."""
    file = AnswerFile(tmp_path / "a.jsonl")
    with file.claimed(SETTINGS):
        file.append(0, [answer(0)])
        file.append(1, [answer(1)])
    with file.claimed(SETTINGS):
        assert len(file.answers()) == 2
    file.part.unlink()
    with file.claimed(SETTINGS | {"limit": 3}):
        assert file.answers() == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "row, message",
    [
        ({"prompt": 1}, "row 2: the entry 'seed' is missing"),
        (
            answer(1) | {"finished": 1},
            "'finished' is 1; it must be true or false; delete that line",
        ),
        (answer("1"), "'prompt' is \"1\"; it must be a whole number"),
    ],
)
def test_a_whole_row_of_another_shape_is_damage(tmp_path, row, message):
    """It is named, not skipped."""
    file = AnswerFile(tmp_path / "a.jsonl")
    with file.claimed(SETTINGS):
        file.append(0, [row])
        with pytest.raises(DamagedFile, match=message):
            file.answers()
        file.part.unlink()


def test_another_command_holds_the_file(tmp_path):
    """Until it ends; the first of two differences is named."""
    file = AnswerFile(tmp_path / "a.jsonl")
    with file.claimed(SETTINGS):
        with pytest.raises(ValueError, match=r"a\.jsonl is being made by another process"):
            AnswerFile(file.path).claimed(SETTINGS).__enter__()
        file.append(0, [answer(0)])
    changed = SETTINGS | {"limit": 1, "model": {"config.json": "b" * 64}}
    with pytest.raises(ValueError, match="settings: limit was None and is now 1; name another"):
        file.claimed(changed).__enter__()
    with pytest.raises(ValueError, match=r"the contents of model.config.json are no longer the"):
        file.claimed(changed | {"limit": None}).__enter__()
