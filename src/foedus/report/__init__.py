"""The report of a run: one page without scripts or outside references, written from the journal alone.
A run's folder or its rows come in, finished or not."""

from __future__ import annotations

from pathlib import Path

from foedus import frames, runs
from foedus.errors import FoedusError
from foedus.files import write_atomic
from foedus.report import story
from foedus.report.card import card
from foedus.report.page import page

__all__ = ["card", "hand_over", "page", "write"]


def write(folder: Path, path: str | Path | None = None) -> Path:
    """The path of the report: `path`, else report.html in the run's folder. JournalError if the chain is broken."""
    to = folder / "report.html" if path is None else Path(path).expanduser()
    write_atomic(to, page(runs.rows(folder), folder.name).encode(), durable=False)
    return to


def hand_over(run: Path, folder: str | Path, best: bool = False) -> Path:
    """Writes `model.safetensors` and `MODEL_CARD.md` of a finished run into the folder; the path of the card.

    `best`: the model of the round that its Job's `best=` metric chose. Raises FoedusError where there is none.
    """
    found, to = runs.result(run), Path(folder).expanduser()
    if best and found.best is None:
        raise FoedusError(f"run {run.name} has no best model: its Job names no metric for it (best=…)")
    model, what = found.params, f"the model after {found.rounds} rounds"
    if best and found.best is not None:
        model, what = found.best, f"the best model, of round {found.best_round}"
    to.mkdir(parents=True, exist_ok=True)
    write_atomic(to / "model.safetensors", frames.model(model, found.about()))
    write_atomic(to / "MODEL_CARD.md", card(story.read(runs.rows(run)), run.name, model, what).encode())
    return to / "MODEL_CARD.md"
