"""Where the teacher's states come from: a model that runs, or a cache of its states."""

from distilllens.teacher.aligned import AlignedTeacher
from distilllens.teacher.cache import CachedTeacher, CacheWriter
from distilllens.teacher.mixed import MixedTeacher
from distilllens.teacher.served import ServedTeacher
from distilllens.teacher.source import LiveTeacher, TeacherSource

__all__ = [
    "AlignedTeacher",
    "CacheWriter",
    "CachedTeacher",
    "LiveTeacher",
    "MixedTeacher",
    "ServedTeacher",
    "TeacherSource",
]
