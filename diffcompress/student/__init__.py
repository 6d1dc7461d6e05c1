"""Deriving the student: size, shape, and a start from the teacher's weights."""
