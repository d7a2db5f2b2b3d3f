"""One run at the server, as requests see it: what is offered, what was delivered, where it stands.
The journal, blobs and members come in; whoever calls holds `context.news`, except where it says otherwise."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from foedus import build
from foedus.columns import Alike, differ
from foedus.errors import FoedusError
from foedus.journal import Journal
from foedus.server.members import Members
from foedus.server.sealing import Out, Sealing
from foedus.server.tasks import Book, Open, payload_of, task_id
from foedus.store import Store
from foedus.store.blobs import Blobs
from foedus.wire.signing import sign_envelope

log = logging.getLogger(__name__)
UNWANTED = {"status": "dropped", "why": "nobody waits for it any more"}
MOST_ENVELOPES = 4096
MOST_TEXT = 2000  # characters of a reason
Body = dict[str, Any]
Ahead = dict[str, tuple[bytes, Any]]  # site -> keys for a sealed Task that is not there yet, the layout of its metrics


class Delivery:
    """An update that is durable and waits to be checked; `receipt` is there when it was."""

    def __init__(self, site: str, body: Mapping[str, Any], metrics: str) -> None:
        self.site, self.body, self.metrics = site, body, metrics
        self.receipt: Body | None = None
        self.deaths = 0  # of run workers that looked at it


class Context(NamedTuple):
    """What all runs of a server share; `news` is notified whenever anything changed."""

    store: Store
    blobs: Blobs  # what submitters sent
    updates: Callable[[str], Blobs]  # what one site sent; nobody else's bytes can be claimed by knowing their digest
    forget: Callable[[str, Sequence[str]], None]  # deletes bytes that one site sent and no run needs
    members: Members
    news: threading.Condition
    key: Any
    folder: Path


class Run:
    """A run from its submission to its end: its journal, its Tasks, and what sites and submitters are told."""

    def __init__(self, context: Context, id: str, journal: Journal) -> None:
        self.context, self.id, self.journal = context, id, journal
        self.book = Book(self.journal)
        self.submission: Body = dict(self.journal.find("submitted") or {})
        self.scratch = context.folder / "runs" / id
        self.inbox: list[Delivery] = []
        self.state, self.why, self.damaged = "starting", "", False
        self.began = time.monotonic()
        self.nudged = False
        self.envelopes: dict[str, Body] = {}
        self.seals: dict[tuple[int, int], Sealing] = {}
        self.uploads = dict[tuple[str, int, int, int], str]()  # (site, round, number, attempt) -> digest, once begun
        self.ahead: dict[int, tuple[Any, Ahead]] = {}  # by number: what keys are for, and the keys
        self.strange = dict[tuple[str, str], None]()  # builds of updates that their sites did not describe

    def set(self, state: str, why: str = "") -> None:
        """Says where the run stands, and journals what people want to know of it.

        What is over stays so, whatever its conductor was about to say; only the row of its end still counts.
        """
        with self.context.news:
            if (state, why) == (self.state, self.why) or (self.over and state != "finished"):
                return
            log.info("run %s: %s%s", self.id, state, f": {why}" if why else "")
            if state in ("paused", "failed") or self.state == "paused":
                self.event(state, why)
            self.state, self.why = state, why
            self.context.news.notify_all()

    @property
    def over(self) -> bool:
        return self.state in ("finished", "failed", "stopped")

    def answer(self, site: str) -> Body | None:
        """What the site said to `prepare`; it is not ready where its columns are not the run's."""
        said = self.context.store.get("ready", f"{self.id}/{site}")
        row = self.journal.find("columns")
        why = differ(row["of"], row["names"], site, columns_in(said)) if said and said["ready"] and row else ""
        return said | {"ready": False, "why": why} if said and why else said

    def agree(self, roster: Sequence[str]) -> None:
        """Journals the columns that these sites have, once any has named them. Raises JobError where they differ."""
        if self.journal.find("columns"):
            return
        alike = Alike()
        for site in sorted(roster):
            alike.add(site, columns_in(self.answer(site)))
        if alike.names:
            self.journal.add("columns", of=alike.site, names=alike.names)

    def told_build(self, site: str, said: Any) -> None:
        """Journals the build that a site says it is, and whether its bits compare with those of the run worker."""
        if isinstance(said, dict):
            self.journal.add("build", site=site, build=said)
            self.compare(site, said)

    def compare(self, site: str, said: Mapping[str, Any]) -> None:
        """An event that names a site on another build than the run's; nothing before the run is open."""
        row = self.journal.find("open")
        if row is not None and (odd := build.differences(row["build"], dict(said))):
            self.event("build", f"bits not comparable: {'; '.join(odd)[:MOST_TEXT]}", site)

    def opened(self, row: Body, new: bool) -> None:
        """The run worker said what it is: sites that were faster are compared, or this worker with an earlier one."""
        if not new:
            self.compare("", row["build"])
            return
        for site in self.context.members.sites():
            if said := self._build(site):
                self.compare(site, said)

    def made_by(self, site: str, hash: str) -> None:
        """An event, once, where a site's update was made by a build that it did not describe."""
        if hash not in ("", self._build(site).get("hash")) and (site, hash) not in self.strange:
            self.strange[site, hash] = None
            self.event("build", f"bits not comparable: its updates say build {hash}, which it did not describe", site)

    def _build(self, site: str) -> Body:
        """The build that a site says it is."""
        said = ((self.answer(site) or {}).get("report") or {}).get("build")
        return said if isinstance(said, dict) else {}

    def ready(self) -> list[str]:
        """The sites that take part in a round that starts now."""
        members = self.context.members
        there = [s for s in members.sites() if members.accepting(s) and (self.answer(s) or {}).get("ready")]
        return [site for site in there if site not in self.without]

    @property
    def begins(self) -> int:
        """The first round that is this run's own: those before may be another one's."""
        return int(self.submission.get("begins", 0))

    @property
    def without(self) -> Sequence[str]:
        """The sites that this run never asks: it is another one, trained again without them."""
        return list(self.submission.get("without", ()))

    def offers(self, site: str) -> dict[str, Body]:
        """TASKID -> signed envelope of every Task that this site has not answered."""
        if self.over:
            return {}
        delivered = {(d.site, d.body["round"], d.body["task"]) for d in self.inbox}
        found = {}
        for task in self.book.open_tasks():
            if task.wants(site) and (site, task.round, task.number) not in delivered:
                name = task_id(self.id, task.round, task.number, task.attempts[site])
                found[name] = self._envelope(name, task, site)
        return found

    def _envelope(self, name: str, task: Open, site: str) -> Body:
        cached = f"{name}/{site}"
        if cached not in self.envelopes:
            if len(self.envelopes) > MOST_ENVELOPES:
                self.envelopes.clear()
            body, reads = task.body, task.body.get("reads", "")
            base = self.book.bases.get((site, reads or body["work"]))
            stall, total = body["deadline"] or (600.0, None)
            plain = {
                "run": self.id,
                "round": task.round,
                "task": task.number,
                "attempt": task.attempts[site],
                "site": site,
                "work": body["work"],
                "payload": {k: payload_of(body, site)[k] for k in ("digest", "size")},
                "returns": body["returns"],
                "late": body["late"],
                "bundle": self.submission["bundle"]["digest"],
                "deadline": {"stall": float(stall).hex(), "total": None if total is None else float(total).hex()},
                "seed": self.submission["seed"],
                "reads": reads,
                "base": base and {"round": base.round, "task": base.task},
                "verdicts": {},
                "seal": _seal(body),
            }
            self.envelopes[cached] = sign_envelope(self.context.key, "foedus/task/1", plain)
        return self.envelopes[cached]

    def upload(self, site: str, round: int, number: int, attempt: int, digest: str) -> str:
        """The name of a part for an update of this digest, or "" if nobody waits for it."""
        if not self.wants(site, round, number, attempt):
            return ""
        self.uploads[site, round, number, attempt] = digest
        return task_id(self.id, round, number, attempt)

    def wants(self, site: str, round: int, number: int, attempt: int) -> bool:
        """Whether this update of a site would still be taken."""
        task = self.book.tasks.get((round, number))
        return not self.over and task is not None and task.wants(site, attempt)

    def clear(self) -> None:
        """Deletes what came, in whole or in part, of updates for which nobody waits any more; `news` is not held."""
        with self.context.news:
            left = {at: self.uploads.pop(at) for at in list(self.uploads) if not self.wants(*at)}
            late = [d for d in self.inbox if not self.wants(d.site, *(d.body[k] for k in ("round", "task", "attempt")))]
            for delivery in late:
                self.inbox.remove(delivery)
                delivery.receipt = dict(UNWANTED)
            self.context.news.notify_all()
        for delivery in late:
            self.context.forget(delivery.site, (delivery.body["digest"], delivery.metrics))
        for at, digest in left.items():
            self.drop(*at, digest)

    def drop(self, site: str, round: int, number: int, attempt: int, digest: str) -> None:
        """Deletes what came of one update; `news` is not held, for a large part may be on its way to the disk."""
        self.context.updates(site).abandon(task_id(self.id, round, number, attempt))
        if self.journal.find("accepted", round, number, site, attempt) is None:
            self.context.forget(site, (digest,))

    def parts(self, site: str) -> frozenset[str]:
        """The names of parts of updates that would still be taken from a site."""
        tasks = [] if self.over else self.book.open_tasks()
        return frozenset(task_id(self.id, t.round, t.number, t.attempts[site]) for t in tasks if t.wants(site))

    def deliver(self, site: str, body: Mapping[str, Any], metrics: str) -> Delivery | Body:
        """The receipt, or a Delivery whose receipt will come."""
        at = body["round"], body["task"]
        if self.journal.find("accepted", *at, site, body["attempt"]):
            return {"status": "accepted", "why": ""}
        refused = self.journal.find("refused", *at, site, body["attempt"])
        if refused:
            return {"status": "refused", "why": refused["why"]}
        if not self.wants(site, *at, body["attempt"]):
            return dict(UNWANTED)
        waiting = [d for d in self.inbox if (d.site, d.body["round"], d.body["task"]) == (site, *at)]
        if waiting:
            return waiting[0]
        delivery = Delivery(site, body, metrics)
        self.inbox.append(delivery)
        self.context.news.notify_all()
        return delivery

    def sealing(self, task: Open) -> Sealing:
        """The present attempt at sealing a Task, as its journal has it."""
        at = task.round, task.number
        if at not in self.seals or self.seals[at].attempt != task.desk.attempt:
            facts = {"bundle": self.submission["bundle"]["digest"], "seed": self.submission["seed"]}
            publics = self.context.members.publics()
            self.seals[at] = Sealing(self.id, facts, task, self.scratch, self.journal, publics)
            self._use_ahead(task, self.seals[at])
        return self.seals[at]

    def keys_ahead(self, task: Open) -> Ahead:
        """site -> its keys, and the layout of its metrics, for the Task of this number and work in the next round."""
        named = task.round + 1, task.body["work"], tuple(sorted(task.body["asked"]))
        if task.number not in self.ahead or self.ahead[task.number][0] != named:
            self.ahead[task.number] = named, {}
        return self.ahead[task.number][1]

    def _use_ahead(self, task: Open, sealing: Sealing) -> None:
        """Takes the keys that rode on the round before, if everybody's are there; a quorum waits for those of now."""
        roster = tuple(sorted(task.body["asked"]))
        named, kept = self.ahead.get(task.number, (None, {}))
        fits = named == (task.round, task.body["work"], roster) and set(kept) == set(roster)
        if not fits or task.desk.attempt or task.desk.rule.quorum not in (None, len(roster)):
            return
        for site, (message, layout) in kept.items():
            with suppress(FoedusError):  # whoever sent nonsense sends its keys again
                sealing.hear(site, "advertisement", message, layout)

    def sealed(self, site: str, task: Open | None, attempt: int) -> Sealing:
        """The sealing of this attempt at a Task, if this site is asked for it. Raises Out."""
        if self.over or task is None or not task.sealed or task.closed or attempt != task.desk.attempt:
            raise Out("nobody waits for this any more")
        lost = task.desk.settled.get(site)
        if site not in task.desk.asked or (lost is not None and lost.status != "counted"):
            raise Out(f"{site!r} is no part of this sealed Task any more")
        task.spoke(site)
        return self.sealing(task)

    def verdict(self, site: str, round: int, number: int, attempt: int) -> str:
        """That of the book, but whose masked words wait for what it still has to say is asked to go on."""
        found = self.book.verdict(site, round, number, attempt, self.over)
        task = self.book.tasks.get((round, number))
        if found == "unknown" and task is not None and task.sealed and not task.closed:
            with suppress(FoedusError):  # a file that is damaged: the run's conductor says so
                return "send" if self.sealing(task).awaits(site) else found
        return found

    def needs(self, site: str) -> frozenset[str]:
        """The digests of a site's bytes that may still be looked at; none once the run is finished."""
        if self.state == "finished":
            return frozenset()
        waiting = {digest for d in self.inbox if d.site == site for digest in (d.body["digest"], d.metrics)}
        kept = (*self.book.kept.values(), *self.book.settled)
        return frozenset(waiting | {digest for a in kept if a.origin.site == site for digest in (a.digest, a.metrics)})

    def decline(self, site: str, body: Mapping[str, Any]) -> Body:
        """Journals a Decline."""
        task = self.book.tasks.get((body["round"], body["task"]))
        if not self.over and task is not None and task.wants(site, body["attempt"]):
            kind = "refused" if body.get("kind") == "refused" else "declined"
            self.settle_row(kind, task, site, str(body["reason"])[:2000])
            self.context.news.notify_all()
        return {"status": "accepted", "why": ""}

    def payload(self, digest: str, site: str) -> Path | None:
        """The file of a payload that this site was asked to work on."""
        for task in self.book.open_tasks():
            payload = payload_of(task.body, site)
            if payload["digest"] == digest and site in task.desk.asked:
                path = self.scratch / payload["file"]
                return path if path.exists() else None
        return None

    def settle_row(self, kind: str, task: Open, site: str, why: str) -> None:
        """Journals that a site will not be counted, and why."""
        row = {"round": task.round, "task": task.number, "site": site, "attempt": task.attempts[site], "why": why}
        self.journal.add(kind, **row)
        self.book.settle(kind, row)

    def event(self, what: str, why: str = "", site: str = "") -> None:
        """Journals something that people want to read in the report."""
        with self.context.news:
            try:
                self.journal.add("event", what=what, why=why, site=site, round=len(self.journal.all("step")))
            except FoedusError as error:
                log.error("run %s: %s", self.id, error)

    def status(self) -> Body:
        """What `runs` and `status` show."""
        steps = self.journal.all("step")
        waiting = {f"{t.body['work']} {t.round}": t.desk.waiting() for t in self.book.open_tasks() if t.desk.waiting()}
        return {
            "run": self.id,
            "name": self.submission.get("name"),
            "state": self.state,
            "why": self.why,
            "rounds": len(steps),
            "of": self.submission.get("rounds"),
            "waiting": waiting,
            "answers": {site: a for site in self.context.members.sites() if (a := self.answer(site))},
            "metrics": steps[-1]["metrics"] if steps else {},
            "submitter": self.submission.get("submitter"),
        }


def columns_in(answer: Mapping[str, Any] | None) -> list[str]:
    """The names of its columns that a site told, if it knows them."""
    found = ((answer or {}).get("report") or {}).get("columns")
    return [str(name) for name in found] if isinstance(found, list) else []


def _seal(body: Mapping[str, Any]) -> Body | None:
    """What a sealed Task's envelope says of its seal."""
    if not body.get("seal"):
        return None
    threshold, bound, wmax = body["seal"]
    return {"roster": sorted(body["asked"]), "threshold": threshold, "bound": bound, "wmax": wmax}
