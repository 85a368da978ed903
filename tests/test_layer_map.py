"""LayerMap: pairs that rise, the paper's maps, and errors that say what would be right."""

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilllens.layer_map import Cut, LayerMap

layers = st.integers(1, 130)


@pytest.mark.parametrize(
    ("n", "student", "teacher", "text"),
    [
        # arXiv 2602.13567, the depths of its published settings for GPT-2
        (5, 12, 48, "2:8,4:16,6:24,8:32,10:40"),
        (5, 24, 48, "4:8,8:16,12:24,16:32,20:40"),
        # 10 / 6 k rounded, and three times that
        (5, 10, 30, "2:6,3:9,5:15,7:21,8:24"),
        # the shallower teacher's depths are spaced evenly, and the student's follow
        (5, 30, 10, "6:2,9:3,15:5,21:7,24:8"),
        (3, 6, 6, "2:2,3:3,4:4"),
    ],
)
def test_evenly_gives_the_papers_depths(n, student, teacher, text):
    """Evenly in the shallower model, the nearest relative depth in the other."""
    assert LayerMap.evenly(n, student, teacher) == LayerMap.parse(text)


@pytest.mark.parametrize(
    ("student", "teacher", "published", "ours", "sides"),
    [  # Qwen2.5 1.5B from 3B: both sides rounded; TinyLlama from Llama 7B: the teacher's down
        (28, 36, "6:7,11:14,17:22,22:29", "6:8,11:14,17:22,22:28", (round, round)),
        (22, 32, "4:5,7:10,11:16,15:21,18:26", "4:6,7:10,11:16,15:22,18:26", (round, int)),
    ],
    ids=["qwen2.5", "tinyllama"],
)
def test_two_of_the_papers_maps_round_both_sides_apart(student, teacher, published, ours, sides):
    """So they must be written out: each side of them is L k / (n + 1), rounded on its own."""
    pairs = LayerMap.parse(published)
    steps = range(1, len(pairs) + 1)
    each = [
        [way(size * k / (len(pairs) + 1)) for k in steps]
        for way, size in zip(sides, (student, teacher), strict=True)
    ]
    assert list(pairs) == list(zip(*each, strict=True))
    assert LayerMap.evenly(len(pairs), student, teacher) == LayerMap.parse(ours) != pairs


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
    least = min(student, teacher)
    depths = [round(k * least / (n + 1)) for k in range(1, n + 1)]
    sides = [[round(depth * size / least) for depth in depths] for size in (student, teacher)]
    if all(len(set(depths)) == n for depths in sides):
        assert list(LayerMap.evenly(n, student, teacher)) == list(zip(*sides, strict=True))
    else:
        with pytest.raises(ValueError, match="do not fit"):
            LayerMap.evenly(n, student, teacher)


@given(student=st.integers(2, 130), teacher=st.integers(2, 130), n=st.integers(1, 8))
def test_no_other_depth_is_nearer_in_relative_depth(student, teacher, n):
    """Of the deeper model's depths; and no pair differs by more than half of its blocks."""
    if n >= min(student, teacher):
        return
    for s, t in LayerMap.evenly(n, student, teacher):
        shallow, deep = sorted([(student, s), (teacher, t)])
        wanted = Fraction(shallow[1], shallow[0])
        found = abs(Fraction(deep[1], deep[0]) - wanted)
        assert all(found <= abs(Fraction(d, deep[0]) - wanted) for d in range(deep[0] + 1))
        assert found <= Fraction(1, 2 * deep[0])


# The cut of the published SmolLM2 that most tests of this project look at.
CUT = Cut((0, 3, 6, 10, 13, 16, 19, 23, 26, 29), of=30)


@pytest.mark.parametrize(
    ("spec", "text"),
    [  # depth d of the student follows block CUT.blocks[d - 1], whose depth is one more
        ("auto", "2:4,3:7,5:14,7:20,8:24"),
        ("2", "3:7,7:20"),
        ("1:2,9:9", "1:2,9:9"),
    ],
)
def test_a_cut_student_is_paired_by_its_blocks(spec, text):
    """ "auto" and a number follow the blocks; written pairs are what they are."""
    assert str(LayerMap.resolve(spec, 10, 30, CUT)) == text
    assert LayerMap.resolve_or_none(spec, 10, 30, CUT) == LayerMap.parse(text)


@pytest.mark.parametrize(("student", "teacher"), [(10, 12), (9, 30), (30, 10)])
def test_a_cut_of_another_model_counts_for_nothing(student, teacher):
    """The blocks say nothing of a teacher of another depth, or of a student that was cut again."""
    assert LayerMap.resolve("auto", student, teacher, CUT) == LayerMap.evenly(
        "auto", student, teacher
    )


@given(st.data())
def test_pairs_of_a_cut_rise_to_an_inner_depth(data):
    """Whatever the blocks: at most five pairs, all of inner depths, on the diagonal if all stay."""
    of = data.draw(st.integers(2, 60))
    blocks = sorted(data.draw(st.sets(st.integers(0, of - 1), min_size=2)))
    cut = Cut(tuple(blocks), of)
    pairs = LayerMap.evenly("auto", len(blocks), of, cut)
    assert len(pairs) == min(5, len(blocks) - 1)
    assert all(0 < s < len(blocks) and 0 < t < of and t == blocks[s - 1] + 1 for s, t in pairs)
    assert cut.pairs == [(k + 1, block + 1) for k, block in enumerate(blocks)]
    if len(blocks) == of:
        assert all(s == t for s, t in pairs)


@pytest.mark.parametrize(
    ("blocks", "of", "expected"),
    [
        (10, 30, (0, 3, 6, 10, 13, 16, 19, 23, 26, 29)),  # 29 / 9 k, rounded
        ("5", 13, (0, 3, 6, 9, 12)),
        (2, 30, (0, 29)),
        (1, 30, (0,)),
        (3, 3, (0, 1, 2)),
        ([0, 3, 6], 7, (0, 3, 6)),
        (" 0, 3 ,6", 30, (0, 3, 6)),
        ([5], 7, (5,)),
    ],
)
def test_blocks_are_a_number_or_a_list(blocks, of, expected):
    """A number of blocks is spread evenly, with the first and the last; one block is the first."""
    assert Cut.chosen(blocks, of) == Cut(expected, of)


@given(st.integers(1, 200), st.data())
def test_so_many_blocks_stay_as_are_asked_for(of, data):
    """With the first and the last, and no gap more than a block wider than another."""
    number = data.draw(st.integers(1, of))
    blocks = Cut.chosen(number, of).blocks
    gaps = [b - a for a, b in pairwise(blocks)]
    assert len(blocks) == number and blocks[0] == 0 and (number == 1 or blocks[-1] == of - 1)
    assert not gaps or (min(gaps) >= 1 and max(gaps) - min(gaps) <= 1)
