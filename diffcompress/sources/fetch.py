"""Everything that a teacher is made of, fetched before anything is opened."""

from __future__ import annotations

from diffcompress.runtime import Progress
from diffcompress.sources.assembly import assembled
from diffcompress.sources.reference import Reference


def fetch(reference: Reference, progress: Progress | None = None) -> None:
    """Download the whole pipeline, or put it together around a single checkpoint; what lies here stays as it is.

    Raises AccessError when the Hub refuses, or offline when something is not in the cache.
    """
    if reference.surroundings is not None:
        assembled(reference, progress)
    else:
        reference.fetch(progress=progress)
