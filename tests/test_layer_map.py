"""LayerMap: pairs that rise, the paper's maps, and errors that say what would be right."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilllens.layer_map import LayerMap

layers = st.integers(1, 130)


@pytest.mark.parametrize(
    ("n", "student", "teacher", "text"),
    [  # arXiv 2602.13567, the depths of its published settings
        (5, 12, 48, "2:8,4:16,6:24,8:32,10:40"),
        (5, 24, 48, "4:8,8:16,12:24,16:32,20:40"),
        (4, 28, 36, "6:7,11:14,17:22,22:29"),
    ],
)
def test_evenly_gives_the_papers_depths(n, student, teacher, text):
    """GPT-2 120M and 340M from 1.5B, Qwen2.5 1.5B from 3B: the paper's depths by one formula."""
    assert LayerMap.evenly(n, student, teacher) == LayerMap.parse(text)


def test_the_papers_llama_map_is_rounded_down_and_so_given_explicitly():
    """TinyLlama's side follows the formula; Llama's is floor(32 k / 6), not round."""
    published = LayerMap.parse("4:5,7:10,11:16,15:21,18:26").check(22, 32)
    assert LayerMap.evenly(5, 22, 32).student_depths == published.student_depths
    assert published.teacher_depths == tuple(k * 32 // 6 for k in range(1, 6))
    assert published != LayerMap.evenly(5, 22, 32)


@given(student=layers, teacher=layers, data=st.data())
def test_evenly_rises_from_one_whenever_steps_are_at_least_a_block(student, teacher, data):
    """1 <= n < L on both sides always fits: depths within 1..L-1, the last block left out."""
    most = min(student, teacher) - 1
    if most < 1:
        return
    found = LayerMap.evenly(data.draw(st.integers(1, most)), student, teacher)
    for depths, size in ((found.student_depths, student), (found.teacher_depths, teacher)):
        assert 1 <= depths[0] <= depths[-1] <= size - 1
        assert list(depths) == sorted(set(depths))


@given(student=st.integers(2, 130), teacher=st.integers(2, 130))
def test_auto_is_the_largest_of_at_most_five(student, teacher):
    """ "auto" takes 5 pairs, or as many as still rise from depth 1 on both sides."""
    found = LayerMap.evenly("auto", student, teacher)
    assert len(found) == min(5, student - 1, teacher - 1)
    assert found == LayerMap.resolve("auto", student, teacher)


@given(st.sets(st.integers(0, 99), min_size=1), st.sets(st.integers(0, 99), min_size=1))
def test_text_and_pairs_say_the_same(students, teachers):
    """parse(str(map)) is the map; iteration, length and both sides agree."""
    pairs = list(zip(sorted(students), sorted(teachers), strict=False))
    found = LayerMap(pairs)
    assert LayerMap.parse(str(found)) == found and hash(LayerMap.parse(str(found))) == hash(found)
    assert list(found) == pairs and len(found) == len(pairs)
    assert list(zip(found.student_depths, found.teacher_depths, strict=True)) == pairs


@pytest.mark.parametrize("spec", ["3", 3, "3:12,6:24,9:36", " 3:12 , 6 : 24,9:36"])
def test_resolve_reads_a_number_or_a_map(spec):
    """What a recipe may write for the same three pairs."""
    assert LayerMap.resolve(spec, 12, 48) == LayerMap([(3, 12), (6, 24), (9, 36)])


@pytest.mark.parametrize("pairs", [[(0, 0)], [(12, 48)]])
def test_embeddings_and_last_state_are_depths(pairs):
    """0 and L are valid on both sides."""
    assert LayerMap(pairs).check(12, 48) == LayerMap(pairs)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "at least one pair"),
        ([(4, 16), (2, 8)], "rise strictly .* but 2:8 follows 4:16"),
        ([(2, 8), (2, 16)], "2:16 follows 2:8"),
        ([(2, 8), (4, 7)], "teacher's must not fall .* but 4:7 follows 2:8"),
        ([(-1, 8)], "whole number from 0, got -1"),
        ([(1.0, 8)], r"whole number from 0, got 1\.0"),
        ([(True, 8)], "got True"),
        ([(1, 2, 3)], r"\(student depth, teacher depth\), got \(1, 2, 3\)"),
        ([7], r"\(student depth, teacher depth\), got 7"),
    ],
)
def test_pairs_that_are_refused(pairs, message):
    """No pair, no pair of numbers, or depths that do not rise."""
    with pytest.raises(ValueError, match=message):
        LayerMap(pairs)


@pytest.mark.parametrize("text", ["", "2", "2:8;4:16", "2:8,", "a:b", "-1:4", 128, None])
def test_texts_that_are_refused(text):
    """The message shows the form, and YAML's trap of the unquoted 2:8."""
    with pytest.raises(ValueError, match=r'"2:8" or "2:8,4:16", in quotes in YAML'):
        LayerMap.parse(text)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("13:48", "pairs student depth 13, but the student has depths 0 to 12"),
        ("12:49", "pairs teacher depth 49, but the teacher has depths 0 to 48"),
        ("12", "12 evenly spread pairs do not fit 12 student and 48 .*valid: 1 to 11 pairs"),
        ("0", "whole number >= 1, got 0"),
        (True, "True is not a text"),
        (None, "None is not a text"),
    ],
)
def test_recipes_that_do_not_fit_the_models(spec, message):
    """Each message states the valid range."""
    with pytest.raises(ValueError, match=message):
        LayerMap.resolve(spec, 12, 48)


@pytest.mark.parametrize("spec", ["1:4,2:4,3:4", "exits", " exits "])
def test_several_depths_may_share_one_of_the_teacher(spec):
    """It is one depth to read; "exits" is every inner depth with the teacher's last."""
    found = LayerMap.resolve(spec, 4, 4)
    assert found == LayerMap([(1, 4), (2, 4), (3, 4)]) == LayerMap.parse(str(found))
    assert found.student_depths == (1, 2, 3) and found.teacher_depths == (4,)
    assert LayerMap.resolve("0:2,1:2,2:5,3:5", 3, 5).teacher_depths == (2, 5)


def test_exits_need_an_inner_depth():
    """One block has none; without a weight there is then no lens at all, as for "auto"."""
    with pytest.raises(ValueError, match="no inner depth for exits: it has 1 block"):
        LayerMap.resolve("exits", 1, 4)
    assert LayerMap.resolve_or_none("exits", 1, 4) is None
    assert LayerMap.resolve("exits", 2, 1) == LayerMap([(1, 1)])


@pytest.mark.parametrize(("student", "teacher"), [(1, 48), (12, 1), (1, 1)])
def test_auto_without_an_inner_depth_is_an_error(student, teacher):
    """One block has no depth between the embeddings and the last state."""
    with pytest.raises(ValueError, match="both need at least 2"):
        LayerMap.evenly("auto", student, teacher)


@pytest.mark.parametrize("n", [0, -1, 2.0, True, "five"])
def test_evenly_wants_a_whole_number(n):
    """The number of pairs is "auto" or a whole number from 1."""
    with pytest.raises(ValueError, match="whole number >= 1"):
        LayerMap.evenly(n, 12, 48)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("9999999999", "evenly spread pairs do not fit 12 .* valid: 1 to 11 pairs"),
        (9999999999, "evenly spread pairs do not fit 12 .* valid: 1 to 11 pairs"),
        ("9" * 5000, "evenly spread pairs do not fit 12"),
        ("1:9999999999", "has the depth '9999999999'; the deepest that can be written is 99999"),
        ("1:" + "9" * 5000, r"'1:9{35}\.\.\.' has the depth '9{37}\.\.\.'"),
        ("-3", "cannot read the layer map '-3'"),
        ("1:-4", "cannot read the layer map"),
        ("1-4", "cannot read the layer map '1-4'"),
        ("1..4:5..8", "cannot read the layer map"),
        ("²", "cannot read the layer map"),
        ("1:2," * 999, "cannot read the layer map"),
    ],
)
def test_numbers_beyond_reason_are_refused_at_once(spec, message):
    """Before a list of that length is built, and in a short line."""
    with pytest.raises(ValueError, match=message) as refused:
        LayerMap.resolve(spec, 12, 48)
    assert len(str(refused.value)) < 250


@given(n=st.integers(1, 200), student=layers, teacher=layers)
def test_the_bound_refuses_no_map_that_exists(n, student, teacher):
    """Evenly spread depths that rise strictly are as many as the depths at most."""
    sides = [[round(k * size / (n + 1)) for k in range(1, n + 1)] for size in (student, teacher)]
    if all(len(set(depths)) == n for depths in sides):
        assert list(LayerMap.evenly(n, student, teacher)) == list(zip(*sides, strict=True))
    else:
        with pytest.raises(ValueError, match="do not fit"):
            LayerMap.evenly(n, student, teacher)
