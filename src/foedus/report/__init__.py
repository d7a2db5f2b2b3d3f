"""The report of a run: one page without scripts or outside references, written from the journal alone.
A run's folder or its rows come in, finished or not."""

from __future__ import annotations

from pathlib import Path

from foedus import runs
from foedus.files import write_atomic
from foedus.report.page import page

__all__ = ["page", "write"]


def write(folder: Path, path: str | Path | None = None) -> Path:
    """The path of the report: `path`, else report.html in the run's folder. JournalError if the chain is broken."""
    to = folder / "report.html" if path is None else Path(path).expanduser()
    write_atomic(to, page(runs.rows(folder), folder.name).encode(), durable=False)
    return to
