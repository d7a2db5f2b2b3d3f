"""The journal of a run: every decision of the world, in order, before it has an effect. It is the only truth.
A Log (where rows are kept) comes in as a value; nothing here knows of databases."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from foedus import pool
from foedus.core import Origin, Task
from foedus.errors import JournalError
from foedus.params import digest

Body = Mapping[str, Any]


class Log(Protocol):
    """Where rows are kept: `append` is one durable transaction."""

    def append(self, rows: Sequence[tuple[str, Body]]) -> None: ...
    def rows(self) -> Sequence[tuple[str, Body]]: ...


class Memory:
    """A Log that ends with its process, for tests and for runs that nobody wants to keep."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, Body]] = []

    def append(self, rows: Sequence[tuple[str, Body]]) -> None:
        self.kept.extend((kind, json.loads(json.dumps(body))) for kind, body in rows)

    def rows(self) -> Sequence[tuple[str, Body]]:
        return self.kept


class Place(NamedTuple):
    """What a row speaks of; a second row of one kind and place must say the same."""

    round: int = -1
    task: int = -1
    site: str = ""
    attempt: int = 0


ONCE = {  # kind -> the fields that must agree when recovery or a replay comes by again
    "open": ("job", "seed", "clock"),
    "roster": ("sites", "since", "came", "gone"),
    "round": ("roster", "cohort"),
    "task": ("digest",),
    "close": ("counted",),
    "total": ("digest",),
    "step": ("digest",),
    "end": ("digest",),
}


class Journal:
    """Rows by kind, and what they decide. Adding a row again is no row: it is compared with the first one."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.kept: dict[str, dict[Place, Body]] = {}  # by kind
        self.since = -1  # the round from which the newest roster holds
        self.read: tuple[int, Sequence[str]] = -1, ()  # the roster that was asked for last, and its round
        self.events: list[Body] = []
        for kind, body in log.rows():
            self._index(kind, body)

    def add(self, kind: str, **body: Any) -> bool:
        """Whether the row is new. Raises JournalError if an earlier row of its place says something else."""
        return self.add_all([(kind, body)])

    def add_all(self, rows: Sequence[tuple[str, Body]]) -> bool:
        new = [(kind, body) for kind, body in rows if not self._known(kind, body)]
        if new:
            self.log.append(new)
            for kind, body in new:
                self._index(kind, body)
        return bool(new)

    def find(self, kind: str, round: int = -1, task: int = -1, site: str = "", attempt: int = 0) -> Body | None:
        return self.kept.get(kind, {}).get(Place(round, task, site, attempt))

    def all(self, kind: str) -> list[Body]:
        return list(self.kept.get(kind, {}).values())

    def counted(self, round: int, task: int) -> list[Origin] | None:
        """The counted set of a closed Task."""
        row = self.find("close", round, task)
        return None if row is None else [Origin(s, r, t, round - r) for s, r, t in row["counted"]]

    def roster_of(self, round: int, sites: Sequence[str]) -> int:
        """The round of the roster row that holds in `round`; a new row is added when the roster has changed."""
        known = self.find("round", round)
        if known is not None:
            return int(known["roster"])
        old = self.roster(self.since) if self.since >= 0 else None
        if old is None or (sites is not old and sites != old):
            self.add("roster", round=round, **_changed(self.since, old, sites))
        self.read = self.since, sites
        return self.since

    def roster(self, since: int) -> Sequence[str]:
        """The sites of the roster row of that round, in order. Raises JournalError if there is none."""
        rows, at = [], since
        while at != self.read[0]:
            row = self.find("roster", at)
            if row is None:
                raise JournalError(f"the journal lacks the roster of round {at}: it is damaged")
            rows.append(row)
            if "sites" in row:
                break
            at = row["since"]
        found = self.read[1]
        for row in reversed(rows):
            found = pool.heard(row["sites"]) if "sites" in row else _after(found, row)
        self.read = since, found
        return found

    def newcomers(self, round: int) -> set[str]:
        """The sites that are in a roster for the first time in this round; empty where the roster stays the same."""
        row = self.find("roster", round)
        came = set(self.roster(round) if row and "sites" in row else row["came"] if row else ())
        for old in self.all("roster") if came else ():
            if old["round"] < round:
                came.difference_update(self.roster(old["round"]) if "sites" in old else old["came"])
        return came

    def origins(self) -> dict[tuple[int, int], list[str]]:
        """For each (round, task) that was asked, the sites whose update was ever counted."""
        found: dict[tuple[int, int], list[str]] = {}
        for row in self.all("close"):
            for site, r, t in row["counted"]:
                found.setdefault((r, t), []).append(site)
        return found

    def _index(self, kind: str, body: Body) -> None:
        if kind == "roster":
            self.since = max(self.since, body["round"])
        if kind == "event":
            self.events.append(body)
        else:
            self.kept.setdefault(kind, {}).setdefault(_place(body), body)

    def _known(self, kind: str, body: Body) -> bool:
        old = self.kept.get(kind, {}).get(_place(body)) if kind in ONCE else None
        if old is None:
            return False
        for field in ONCE[kind]:
            if _plain(old.get(field)) != _plain(body.get(field)):
                where = ", ".join(f"{k} {body[k]}" for k in ("round", "task", "site") if k in body)
                raise JournalError(
                    f"the journal's {kind!r} row ({where}) says {field} = {_short(old.get(field))}, now it is "
                    f"{_short(body.get(field))}: the Job, its data or the build is not the one that was "
                    "journaled, so start a new run"
                )
        return True


def _changed(since: int, old: Sequence[str] | None, new: Sequence[str]) -> dict[str, Any]:
    """What a roster row says: the sites, or where that is much shorter, who came and who is gone."""
    said = pool.told(new)
    if old is None or isinstance(said, Mapping) or len(new) <= pool.MOST_LISTED:
        return {"sites": said}
    came, gone = sorted(set(new).difference(old)), sorted(set(old).difference(new))
    if 2 * (len(came) + len(gone)) > len(new):
        return {"sites": said}
    return {"since": since, "came": came, "gone": gone}


def _after(old: Sequence[str], row: Body) -> Sequence[str]:
    gone = set(row["gone"])
    return sorted([*(site for site in old if site not in gone), *row["came"]])


def _place(body: Body) -> Place:
    return Place(body.get("round", -1), body.get("task", -1), body.get("site", ""), body.get("attempt", 0))


def task_digest(task: Task, payload: str, letters: Mapping[str, str] | None = None) -> str:
    """SHA-256 of what a Task asks: work, payload, sites, closing rule and announced returns.

    `payload` and `letters` are digests of what is sent; those of letters may be left out where they are not yet packed.
    """
    letters = letters or {site: digest(letter) for site, letter in sorted(task.letters.items())}
    returns = [list(leaf) for leaf in (task.returns if task.returns is not None else task.payload.spec)]
    asked = [task.work, payload, pool.told(task.sites), task.quorum, task.late, task.busy, returns]
    more = [x for x in (task.reads, letters, task.least is not None and {"least": task.least}, task.seal) if x]
    return hashlib.sha256(json.dumps([*asked, *more]).encode()).hexdigest()


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else text[:77] + "..."
