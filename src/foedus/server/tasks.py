"""One run's Tasks as the server sees them: who was asked, what arrived, what each site is to be told.
The journal's rows and the closing rule come in; nothing here does I/O."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from foedus.core import Origin, Outcome
from foedus.journal import Journal
from foedus.settle import Desk, Rule

At = tuple[int, int]  # (round, task)
STALL = 600.0
SPARE = 60.0  # seconds that heartbeats and a restarted agent may take


class Accepted(NamedTuple):
    """An update that passed every check and waits to be counted."""

    origin: Origin
    weight: str
    digest: str
    metrics: str
    stateful: bool


class Open:
    """A Task that was published: open until its close row, and with late="keep" until everybody asked has settled."""

    def __init__(self, round: int, number: int, body: Mapping[str, Any], asked: Iterable[str]) -> None:
        self.round, self.number, self.body = round, number, body
        self.desk = Desk(Rule(body["quorum"], body["least"]), asked)
        self.attempts: dict[str, int] = dict.fromkeys(self.desk.asked, 0)
        self.began = {site: time.monotonic() for site in self.desk.asked}  # when it was asked
        self.since = dict(self.began)  # its last progress
        self.progress: dict[str, float] = {}  # its newest figure
        self.closed = False

    @property
    def keeps(self) -> bool:
        return bool(self.body["late"] == "keep")

    def wants(self, site: str, attempt: int | None = None) -> bool:
        """Whether an update of this site (and attempt) would still be taken."""
        if site not in self.desk.asked or site in self.desk.settled or (self.closed and not self.keeps):
            return False
        return attempt is None or attempt == self.attempts[site]

    def ask(self, sites: Iterable[str]) -> None:
        """More sites of a buffered asynchronous Task."""
        for site in sites:
            self.desk.asked.setdefault(site)
            self._begin(site, 0)

    @property
    def sealed(self) -> bool:
        return bool(self.body.get("seal"))

    def again(self) -> list[str]:
        """A new attempt for those that did not deliver; a sealed Task has one for all, under new keys."""
        if self.sealed:
            self.desk.arrived.clear()
            self.desk.settled.clear()
        sites = self.desk.ask_again()
        for site in sites:
            self._begin(site, self.desk.attempt)
        return sites

    def _begin(self, site: str, attempt: int) -> None:
        self.attempts[site], self.began[site] = attempt, time.monotonic()
        self.since[site] = self.began[site]
        self.progress.pop(site, None)

    def spoke(self, site: str) -> None:
        """A message of a sealed Task: its site is there."""
        self.since[site] = time.monotonic()

    def told(self, site: str, figure: float) -> None:
        """A heartbeat with a progress figure: only one that rises is progress; it falls where an agent restarts."""
        if figure > self.progress.get(site, -1.0):
            self.since[site] = time.monotonic()
        self.progress[site] = figure

    def stalled(self, now: float) -> dict[str, str]:
        """The sites that are not waited for any longer, by this machine's monotonic clock, and why."""
        stall, total = self.body["deadline"] or (STALL, None)
        slow = 2 * stall + SPARE  # the agent restarts a stalled worker once by itself; this is for sites that are gone
        found = {}
        for site in self.desk.waiting():
            if now - self.since[site] > slow:
                found[site] = f"no progress for {slow:g} s: `foedus site status` there says whether its agent works"
            elif total is not None and now - self.began[site] > total:
                found[site] = f"not done within the Task's total deadline of {total:g} s"
        return found


class Book:
    """All Tasks of a run, rebuilt from its journal."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.tasks: dict[At, Open] = {}
        self.kept: dict[Origin, Accepted] = {}  # accepted, neither counted nor dropped
        self.settled: list[Accepted] = []  # counted or dropped, its blobs not yet deleted
        self.live: dict[At, Open] = {}  # Tasks for which somebody may still be at work
        self.asynchronous = False  # whether late updates of any Task are kept
        self.verdicts: dict[Origin, str] = {}
        self.bases: dict[tuple[str, str], Origin] = {}  # (site, work) -> origin of the base it must have
        self.stateful: dict[Origin, str] = {}
        for kind, row in journal.log.rows():
            self._replayed(kind, row)

    def _replayed(self, kind: str, row: Mapping[str, Any]) -> None:
        """Takes in a row in its turn: what an attempt or a late update meant depends on the rows before it."""
        match kind:
            case "task":
                self.publish(row)
            case "asked":
                self.tasks[_at(row)].ask(row["sites"])
            case "again":
                self.again(self.tasks[_at(row)])
            case "accepted" | "declined" | "refused" | "lost":
                self.settle(kind, row)
            case "close":
                self.close(row)

    def again(self, task: Open) -> None:
        """A new attempt at a Task; words that were masked under the keys of an earlier one are of no use to it."""
        for origin in [o for o in self.kept if task.sealed and o[1:3] == (task.round, task.number)]:
            self._gone(origin, "dropped")
        task.again()

    def publish(self, row: Mapping[str, Any]) -> Open:
        task = self.live[_at(row)] = self.tasks[_at(row)] = Open(row["round"], row["task"], row, row["asked"])
        self.asynchronous |= task.keeps
        if task.keeps:
            for origin, accepted in self.kept.items():
                if self.tasks[origin[1:3]].keeps:
                    task.desk.arrived.append((origin, _counted(accepted)))
        return task

    def settle(self, kind: str, row: Mapping[str, Any]) -> None:
        """Takes in an accepted, declined, refused or lost row."""
        task, site = self.tasks[_at(row)], row["site"]
        if row["attempt"] > task.attempts.get(site, 0):
            self.again(task)
        if kind == "accepted":
            self._accept(task, row)
        else:
            task.desk.settle(Outcome(site, kind, row["why"]))  # type: ignore[arg-type]
        self._leave(task)

    def _accept(self, task: Open, row: Mapping[str, Any]) -> None:
        site, origin = row["site"], Origin(row["site"], row["round"], row["task"])
        accepted = Accepted(origin, row["weight"], row["digest"], row["metrics"], row["stateful"])
        self.kept[origin] = accepted
        if row["stateful"]:
            self.stateful[origin] = task.body["work"]
        if task.closed:
            task.desk.settled[site] = _counted(accepted)
            for other in self.live.values():
                if other.keeps and not other.closed:
                    other.desk.arrived.append((origin, _counted(accepted)))
        else:
            task.desk.accept(origin, _counted(accepted))

    def close(self, row: Mapping[str, Any]) -> None:
        """Takes in a close row: counted updates leave, dropped ones too unless late updates are kept."""
        task = self.tasks[_at(row)]
        if task.closed:
            return
        task.closed = True
        for site, r, t in row["counted"]:
            origin = Origin(site, r, t)
            self._gone(origin, "counted")
            if origin in self.stateful:
                self.bases[site, self.stateful[origin]] = origin
        self._leave(task)
        if not task.keeps:
            for origin in [o for o in self.kept if o[1:3] == _at(row)]:
                self._gone(origin, "dropped")

    def _leave(self, task: Open) -> None:
        """Forgets a closed Task for which nobody is at work any more."""
        if task.closed and not (task.keeps and task.desk.waiting()):
            self.live.pop((task.round, task.number), None)

    def _gone(self, origin: Origin, verdict: str) -> None:
        accepted = self.kept.pop(origin, None)
        self.verdicts[origin] = verdict
        if accepted is not None:
            self.settled.append(accepted)

    def done(self, round: int) -> list[Accepted]:
        """The updates of rounds up to this one that are settled, each given out once: their bytes can go."""
        found = [a for a in self.settled if a.origin.round <= round]
        self.settled = [a for a in self.settled if a.origin.round > round]
        return found

    def close_row(self, task: Open) -> dict[str, Any]:
        """What closing this Task now would journal."""
        outcomes = task.desk.outcomes()
        return {
            "round": task.round,
            "task": task.number,
            "counted": [list(o[:3]) for o in task.desk.counted()],
            "outcomes": [[o.site, o.status, o.why, o.weight] for o in outcomes],
        }

    def open_tasks(self) -> list[Open]:
        return list(self.live.values())

    def late(self) -> list[Open]:
        """The closed Tasks for which somebody is still at work."""
        return [task for task in self.live.values() if task.closed]

    def awaited(self) -> set[str]:
        """Sites at work for a Task whose late updates are kept."""
        return {site for task in self.live.values() if task.keeps for site in task.desk.waiting()}

    def flying(self) -> set[str]:
        """Sites that are awaited, and sites whose stateful update is not settled."""
        return self.awaited() | {origin.site for origin in self.kept if origin in self.stateful}

    def verdict(self, site: str, round: int, number: int, attempt: int, ended: bool) -> str:
        """A repeatable read of the journal: what became of the update that a site keeps."""
        if self.journal.find("refused", round, number, site, attempt):
            return "refused"
        task = self.tasks.get((round, number))
        accepted = self.journal.find("accepted", round, number, site, attempt)
        if accepted is None:
            return "send" if task is not None and not ended and task.wants(site, attempt) else "dropped"
        if Origin(site, round, number) in self.kept and not ended:
            return "unknown"
        return self.verdicts.get(Origin(site, round, number), "dropped")


def payload_of(body: Mapping[str, Any], site: str) -> Mapping[str, Any]:
    """What a Task's row says of the payload that a site gets: digest, size, file."""
    found: Mapping[str, Any] = body.get("letters", {}).get(site, body["payload"])
    return found


def _counted(accepted: Accepted) -> Outcome:
    return Outcome(accepted.origin.site, "counted", "", float.fromhex(accepted.weight))


def _at(row: Mapping[str, Any]) -> At:
    return row["round"], row["task"]


def task_id(run: str, round: int, number: int, attempt: int) -> str:
    return f"{run}/{round}/{number}/{attempt}"


def read_task_id(text: str) -> tuple[str, int, int, int]:
    """(run, round, task, attempt). Raises ValueError."""
    run, round, number, attempt = text.split("/")
    return run, int(round), int(number), int(attempt)
