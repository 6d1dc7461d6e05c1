"""`report`: redraw the report of any run folder from its files."""

from __future__ import annotations

from typing import Any

from diffcompress.errors import UsageError
from diffcompress.records.run_folder import RunFolder
from diffcompress.report.page import write_report


def report(run: str) -> dict[str, Any]:
    """Rewrite report.html, report.json and the model card of the run folder `run`; return report.json's content.

    Raises UsageError when `run` is not a run folder or cannot be written to.
    """
    try:
        return write_report(RunFolder(run)).to_json()
    except OSError as error:
        raise UsageError(
            f"cannot write the report into {run}: {error.strerror or error}", "check the folder's permissions"
        ) from error
