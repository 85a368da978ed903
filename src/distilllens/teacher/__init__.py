"""Where the teacher's states come from."""

from distilllens.teacher.source import LiveTeacher, TeacherSource

__all__ = ["LiveTeacher", "TeacherSource"]
