"""The tiny teacher and student of tests/export."""

from tests.export.conftest import one_thread, student, teacher, teacher_folder

__all__ = ["one_thread", "student", "teacher", "teacher_folder"]
