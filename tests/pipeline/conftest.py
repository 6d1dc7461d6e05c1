"""The tiny pipeline on disk of tests/sources."""

from tests.sources.conftest import pipeline, saved

__all__ = ["pipeline", "saved"]
