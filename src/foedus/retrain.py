"""Training again as if some sites had never joined: what of the old run still counts, and what is decided anew.
A finished run's journal and folder come in; who goes on from there does not matter.

Before the first round with one of these sites in its roster nothing of them is in the model: those rounds stay as they
are, from the checkpoint that was kept when they joined. Bits are a function of rosters and counted sets, so the rest is
that of a run which they never joined.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from foedus.backends.locals import FILE
from foedus.errors import FoedusError, JobError
from foedus.journal import Journal
from foedus.run import Checkpoints, Plan, draw

Row = tuple[str, Mapping[str, Any]]
SETTLED = ("accepted", "declined", "refused", "lost")
KINDS = ("roster", "round", "task", "asked", "again", *SETTLED, "close", "total", "step")


class Before(NamedTuple):
    """What a run begins with: rows of its journal, and files as name in its folder -> where they are now."""

    round: int
    rows: Sequence[Row]
    files: Mapping[str, Path]

    def into(self, journal: Journal, folder: Path) -> None:
        """Copies the files, then writes the rows: who dies in between begins at round 0, to the same bits."""
        for name, path in self.files.items():
            shutil.copyfile(path, folder / name)
        journal.add_all(self.rows)


def before(old: Journal, folder: Path, without: Collection[str]) -> Before:
    """The rounds of the run in `folder` that stay as they are. Raises FoedusError where the sites never took part."""
    first = _first(old, without)
    if first is None:
        named = " or ".join(sorted(without))
        raise FoedusError(f"run {folder.name} never had {named} in a roster: there is nothing to train again")
    kept = [r for r in range(first) if (folder / Checkpoints.kept(r)).exists()]
    if not kept or _carries(old, folder, kept[-1]):
        return Before(0, [], {})
    last = kept[-1]
    name = old.find("step", last)["checkpoint"]  # type: ignore[index]  # a checkpoint is kept after its row
    found = {name: Checkpoints.kept(last), f"beside-{name}": Checkpoints.kept(last, "beside-")}
    files = {name: folder / there for name, there in found.items() if (folder / there).exists()}
    return Before(last + 1, [(kind, row) for kind in KINDS for row in old.all(kind) if row["round"] <= last], files)


def rosters(old: Journal, plan: Plan, without: Collection[str], begin: int) -> list[Row]:
    """Rows that decide the rosters from round `begin` on as they were, without these sites; none if they never changed.

    Cohorts are drawn anew, for they are drawn from the roster.
    """
    if len(old.all("roster")) < 2:
        return []
    if callable(plan.cohort):
        raise JobError("its cohorts are drawn by a rule that may read results: retrain it at its federation's server")
    made, before = list[Row](), None
    for row in sorted(old.all("round"), key=lambda row: row["round"]):
        roster = [site for site in old.roster(row["roster"]) if site not in without]
        if row["round"] >= begin and roster:
            if roster != before:
                made.append(("roster", {"round": row["round"], "sites": roster}))
                since, before = row["round"], roster
            cohort = list(draw(plan, row["round"], roster))
            asked = None if len(cohort) == len(roster) else cohort
            made.append(("round", {"round": row["round"], "roster": since, "cohort": asked}))
    return made


def _first(old: Journal, without: Collection[str]) -> int | None:
    """The first round with one of the sites in its roster."""
    rounds = sorted(old.all("round"), key=lambda row: row["round"])
    return next((row["round"] for row in rounds if set(without) & set(old.roster(row["roster"]))), None)


def _carries(old: Journal, folder: Path, last: int) -> bool:
    """Whether something of the rounds up to `last` went on beside the model: states at sites, updates under way."""
    told = any(row.get("stateful") for row in old.all("accepted") if row["round"] <= last)
    late = any(row.get("late") == "keep" for row in old.all("task") if row["round"] <= last)
    return told or late or (folder / FILE).exists()
