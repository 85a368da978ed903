"""The layer maps of several teachers as one."""

from distilllens.joined_map import JoinedMap, TeacherDepth
from distilllens.layer_map import LayerMap

MAPS = [LayerMap([(1, 2), (2, 4)]), LayerMap([(1, 1), (2, 3), (3, 3)])]


def test_pairs_say_whose_depth_they_are():
    """In the order of the teachers, and back to their maps."""
    joined = JoinedMap.of(MAPS)
    assert str(joined) == "1:2@1,2:4@1,1:1@2,2:3@2,3:3@2" and len(joined) == 5
    assert joined.of_teachers() == MAPS
    assert joined.student_depths == (1, 2, 3)
    assert joined.teacher_depths == tuple(
        TeacherDepth(*each) for each in ((0, 2), (0, 4), (1, 1), (1, 3))
    )


def test_no_group_mixes_teachers_or_repeats_a_depth():
    """The first teacher's pairs are one term; the second's, which share a depth, one each."""
    groups = JoinedMap.of(MAPS).groups()
    assert groups == [slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 5)]
    assert JoinedMap.of(MAPS[:1]).groups() == [slice(0, 2)]


def test_a_teacher_without_pairs_leaves_none():
    """As for one teacher that is too shallow."""
    assert JoinedMap.of([*MAPS, None]) is None
