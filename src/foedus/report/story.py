"""What a journal tells, as plain facts: rounds, who was there, events, bytes, newest metrics.
Rows come in; nothing here knows how a page looks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from foedus.core import EVALUATE
from foedus.journal import Journal
from foedus.metrics import plain
from foedus.pool import MOST_LISTED
from foedus.runs import Kept
from foedus.store import Row

Body = Mapping[str, Any]
Interval = Sequence[float]

# How a site fared in a round, the gravest last: that one is told where it had several Tasks.
STATUS = {
    "absent": "absent",
    "idle": "not asked",
    "counted": "counted",
    "open": "not settled",
    "later": "counted later",
    "dropped": "dropped",
    "declined": "declined",
    "lost": "lost",
    "refused": "refused",
}
RANK = {status: rank for rank, status in enumerate(STATUS)}
PARTS = {
    "": "valid",
    "test_": "test",
    "train_": "train",
    "personal_": "personal valid",
    "personal_test_": "personal test",
}
UNWELL = ("declined", "lost", "refused")


class Measured(NamedTuple):
    """The newest value of a metric, and the round it is of."""

    round: int
    value: float | None
    interval: Interval | None = None
    bound: float | None = None
    site: str = ""


class Event(NamedTuple):
    at: float
    round: int
    what: str
    site: str = ""
    why: str = ""


class Reason(NamedTuple):
    """Why a site was not counted, and in which rounds."""

    site: str
    work: str
    status: str
    why: str
    rounds: Sequence[int]


class Traffic(NamedTuple):
    updates: int = 0
    sent: int = 0
    fetched: int = 0


class Story(NamedTuple):
    """A run as its journal tells it; `end` is None while the run is not finished."""

    rows: Sequence[Row]
    journal: Journal
    about: Body
    end: Body | None
    steps: Sequence[Body]  # of finished rounds, evaluated or not
    grid: Mapping[str, Mapping[int, str]]  # site -> round -> status
    rounds: Sequence[int]  # that the grid knows, the open one too
    reasons: Sequence[Reason]
    events: Sequence[Event]


def read(rows: Sequence[Row]) -> Story:
    """The story of a run from its rows, whole or not."""
    journal = Journal(Kept(list(rows)))
    words = {step["round"] for step in journal.all("step") if not step["digest"]}  # an evaluation, and no round
    rounds = sorted(row["round"] for row in journal.all("round") if row["round"] not in words)
    return Story(
        rows,
        journal,
        journal.find("open") or {},
        journal.find("end"),
        _steps(journal),
        _grid(journal, rounds),
        rounds,
        _reasons(journal),
        _events(rows),
    )


def _steps(journal: Journal) -> list[Body]:
    """One row a round; an evaluation after the last one belongs to it."""
    found = sorted(journal.all("step"), key=lambda step: step["round"])
    if len(found) < 2 or found[-1]["digest"]:
        return found
    *before, last, words = found
    metrics = {k: v for k, v in words["metrics"].items() if k not in ("round", "seconds", "clock")}
    sites = last["per_site"] | words["per_site"]
    both = {s: {**last["per_site"].get(s, {}), **words["per_site"].get(s, {})} for s in sites}
    sure = {k: {**last.get(k, {}), **words.get(k, {})} for k in ("worst", "intervals", "bounds", "site_intervals")}
    return [*before, {**last, "metrics": metrics, "per_site": both, **sure}]


def _grid(journal: Journal, rounds: Sequence[int]) -> dict[str, dict[int, str]]:
    grid: dict[str, dict[int, str]] = {
        site: {} for row in journal.all("roster") for site in _shown(journal, row["round"])
    }
    later = {(s, r, t) for row in journal.all("close") for s, r, t in row["counted"] if r < row["round"]}
    asked = {task["round"] for task in journal.all("task") if task["work"] != EVALUATE}
    for round in rounds:
        for site in _shown(journal, (journal.find("round", round) or {"roster": -1})["roster"]):
            grid[site][round] = "idle"
    for task in journal.all("task"):
        if task["round"] not in rounds or (task["work"] == EVALUATE and task["round"] in asked):
            continue
        for site, status, _ in _settled(journal, task):
            came = "later" if status == "dropped" and (site, task["round"], task["task"]) in later else status
            cells = grid.setdefault(site, {})
            cells[task["round"]] = max(cells.get(task["round"], "absent"), came, key=RANK.__getitem__)
    return dict(sorted(grid.items()))


def _settled(journal: Journal, task: Body) -> list[tuple[str, str, str]]:
    """(site, status, why) of everybody asked."""
    round, number = task["round"], task["task"]
    close = journal.find("close", round, number)
    if close is not None:
        return [(o[0], o[1], o[2]) for o in close["outcomes"]]
    asked = task["asked"] if isinstance(task["asked"], list) else _drawn(journal, round)
    found = {site: (site, "open", "") for site in asked}
    for kind in ("accepted", *UNWELL):
        for row in journal.all(kind):
            if (row["round"], row["task"]) == (round, number):
                status = "open" if kind == "accepted" else kind
                found[row["site"]] = (row["site"], status, row.get("why", ""))
    return list(found.values())


def _shown(journal: Journal, since: int) -> Sequence[str]:
    """The sites of a roster; of a large pool nobody wants to see who was not asked."""
    found = _roster(journal, since)
    return found if len(found) <= MOST_LISTED else ()


def _roster(journal: Journal, since: int) -> Sequence[str]:
    return journal.roster(since) if journal.find("roster", since) else ()


def _drawn(journal: Journal, round: int) -> Sequence[str]:
    row = journal.find("round", round) or {"roster": -1}
    return row.get("cohort") or _roster(journal, row["roster"])


def _reasons(journal: Journal) -> list[Reason]:
    """Every cause once, with its rounds; a first attempt counts even where the second one went well."""
    works = {(task["round"], task["task"]): task["work"] for task in journal.all("task")}
    found: dict[tuple[str, str, str, str], set[int]] = {}
    for at, work in works.items():
        closed = journal.find("close", *at) or {"outcomes": []}
        for site, status, why, _ in closed["outcomes"]:
            if status in UNWELL:
                found.setdefault((site, work, status, why), set()).add(at[0])
    for kind in UNWELL:
        for row in journal.all(kind):
            work = works.get((row["round"], row["task"]), "")
            found.setdefault((row["site"], work, kind, row["why"]), set()).add(row["round"])
    return [Reason(*cause, sorted(rounds)) for cause, rounds in sorted(found.items())]


def _events(rows: Sequence[Row]) -> list[Event]:
    found, round = [], 0
    for row in rows:
        if row.kind == "step":
            round += 1
        elif row.kind == "submitted":
            found.append(Event(row.at, round, "submitted", "", f"by {row.body.get('submitter', '')}"))
        elif row.kind == "open":
            found.append(Event(row.at, round, "started"))
        elif row.kind == "event":
            found.append(Event(row.at, round, row.body["what"], row.body.get("site", ""), row.body.get("why", "")))
        elif row.kind == "end":
            found.append(Event(row.at, row.body["rounds"], "finished", "", row.body["reason"]))
    return found


def pooled(story: Story) -> dict[str, Measured]:
    """name -> its newest value over all sites."""
    found = {}
    for step in story.steps:
        intervals, bounds = step.get("intervals", {}), step.get("bounds", {})
        for name, value in step["metrics"].items():
            found[name] = Measured(step["round"], value, intervals.get(name), bounds.get(name))
    return found


def worst(story: Story) -> dict[str, Measured]:
    """name -> the worst site's value when the metric was last measured."""
    found = {}
    for step in story.steps:
        sure = step.get("site_intervals", {})
        for name, site in step.get("worst", {}).items():
            value = step["per_site"][site][name]
            found[name] = Measured(step["round"], value, sure.get(site, {}).get(name), None, site)
    return found


def per_site(story: Story) -> dict[str, dict[str, Measured]]:
    """site -> name -> the newest value that the site has reported."""
    found: dict[str, dict[str, Measured]] = {}
    for step in story.steps:
        for site, row in step["per_site"].items():
            sure = step.get("site_intervals", {}).get(site, {})
            found.setdefault(site, {}).update({n: Measured(step["round"], v, sure.get(n)) for n, v in row.items()})
    return dict(sorted(found.items()))


def families(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """A metric's own name -> part (valid, test, train, personal …) -> the name in the journal."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        found.setdefault(plain(name), {})[PARTS[name.removesuffix(plain(name))]] = name
    return {own: {p: row[p] for p in PARTS.values() if p in row} for own, row in sorted(found.items())}


def traffic(story: Story) -> dict[str, Traffic]:
    """site -> updates that arrived, their bytes, and the bytes of the payloads it was asked to fetch."""
    found: dict[str, Traffic] = {}
    for row in story.journal.all("accepted"):
        old = found.get(row["site"], Traffic())
        found[row["site"]] = old._replace(updates=old.updates + 1, sent=old.sent + row["size"])
    tasks = {(t["round"], t["task"]): t for t in story.journal.all("task")}
    asked = [(t, t["asked"]) for t in story.journal.all("task") if isinstance(t["asked"], list)]
    for row, sites in [*asked, *((row, row["sites"]) for row in story.journal.all("asked"))]:
        for site in sites:
            old = found.get(site, Traffic())
            told = tasks[row["round"], row["task"]]
            payload = told.get("letters", {}).get(site, told.get("payload", {}))
            found[site] = old._replace(fetched=old.fetched + payload.get("size", 0))
    return dict(sorted(found.items()))


def builds(story: Story) -> dict[str, list[str]]:
    """Each site's build hash -> the sites whose updates carried it."""
    found: dict[str, set[str]] = {}
    for row in story.journal.all("accepted"):
        if row.get("build"):
            found.setdefault(row["build"], set()).add(row["site"])
    return {build: sorted(sites) for build, sites in sorted(found.items())}
