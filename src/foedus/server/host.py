"""One run at the server: starts its worker, journals what the world decides, offers Tasks and takes updates.
The journal, blobs and members come in; the Job itself never does."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import foedus
from foedus.errors import FoedusError, WireError
from foedus.faults import point
from foedus.journal import Journal
from foedus.server.members import Members
from foedus.server.tasks import Book, Open, task_id
from foedus.store import Fenced, Store
from foedus.store.blobs import Blobs, fsync_dir
from foedus.store.log import StoreLog
from foedus.wire.pipe import Pipe, pair
from foedus.wire.signing import sign_envelope

log = logging.getLogger(__name__)
GATHER = 60.0  # seconds that a run waits at its start for enrolled sites that have not answered yet
MOST_DEATHS = 5
Body = dict[str, Any]


class Delivery:
    """An update that is durable and waits to be checked; `receipt` is there when it was."""

    def __init__(self, site: str, body: Mapping[str, Any], metrics: str) -> None:
        self.site, self.body, self.metrics = site, body, metrics
        self.receipt: Body | None = None


class Context(NamedTuple):
    """What all runs of a server share; `news` is notified whenever anything changed."""

    store: Store
    blobs: Blobs  # what submitters sent
    updates: Callable[[str], Blobs]  # what one site sent; nobody else's bytes can be claimed by knowing their digest
    members: Members
    news: threading.Condition
    key: Any
    folder: Path


class Host:
    """A run from its submission to its end; `serve` runs in a thread of its own, the rest is called by requests."""

    def __init__(self, context: Context, run: str, epoch: int) -> None:
        self.context, self.run = context, run
        self.journal = Journal(StoreLog(context.store, run, epoch))
        self.book = Book(self.journal)
        self.submission: Body = dict(self.journal.find("submitted") or {})
        self.scratch = context.folder / "runs" / run
        self.inbox: list[Delivery] = []
        self.state, self.why = "starting", ""
        self.began = time.monotonic()
        self.stopping = self.nudged = False
        self.process: subprocess.Popen[bytes] | None = None
        self.envelopes: dict[str, Body] = {}
        self.deaths = 0

    # ---- the run's own thread ------------------------------------------------------------------------------------
    def serve(self) -> None:
        """Keeps a worker at work until the run ends, fails or is stopped."""
        while not self.stopping and self.deaths < MOST_DEATHS:
            try:
                if self._with_worker():
                    return
            except WireError:
                self.deaths += 1
                if not self.stopping:
                    self.event("run worker restarted", f"it died ({self._exit()})")
            except Fenced as error:
                log.error("run %s: %s", self.run, error)
                return
            except Exception as error:
                log.exception("run %s", self.run)
                self._set("failed", f"{type(error).__name__}: {error}")
                return
        if not self.stopping:
            self._set("failed", f"the run worker died {self.deaths} times; see {self.scratch / 'worker.log'}")

    def _with_worker(self) -> bool:
        """Whether the run is over."""
        pipe = self._start()
        try:
            while True:
                message, _ = pipe.receive()
                if message["do"] == "ended":
                    self._ended(message)
                    return True
                if message["do"] == "failed":
                    self._set("failed", message["why"])
                    return True
                self._answer(pipe, message)
                self.deaths = 0
        finally:
            pipe.close()

    def _start(self) -> Pipe:
        self.scratch.mkdir(parents=True, exist_ok=True)
        mine, theirs = pair()
        with (self.scratch / "worker.log").open("ab") as out, theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "foedus.server.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=scrubbed(self.scratch),
                cwd=self.scratch,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        body = self.submission
        mine.send(
            {
                "run": self.run,
                "scratch": str(self.scratch),
                "bundle": str(self.scratch / "bundle"),
                "entry": body["entry"],
                "options": body["options"],
                "seed": body["seed"],
                "rounds": body.get("override_rounds"),
                "source": {"file": None},
            }
        )
        return mine

    def _exit(self) -> str:
        code = self.process.wait(10) if self.process else None
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"

    def _answer(self, pipe: Pipe, message: Body) -> None:
        match message["do"]:
            case "rows":
                pipe.send({"rows": list(self.journal.log.rows())})
            case "append":
                self._append(message["rows"])
                pipe.send({})
            case "roster":
                pipe.send({"sites": self._roster(message["least"])})
            case "tasks":
                self._tasks(pipe, message)
            case other:
                raise WireError(f"the run worker asks for {other!r}")

    def _append(self, rows: Sequence[tuple[str, Body]]) -> None:
        with self.context.news:
            self.journal.add_all([(kind, body) for kind, body in rows])
            for kind, body in rows:
                if kind == "step":
                    self._settled(body["round"])
            self.context.news.notify_all()

    def _roster(self, least: int) -> list[str]:
        """The sites of the next round, as soon as there are enough."""
        with self.context.news:
            while not (roster := self.ready()) or len(roster) < least or self._gathering():
                if len(roster) < least and not self._gathering():
                    self._set(
                        "paused", f"{len(roster)} of the {least} sites needed take part; it goes on when they return"
                    )
                self._wait()
            self._set("running")
            return roster

    def _gathering(self) -> bool:
        first = self.journal.find("round", 0) is None and time.monotonic() - self.began < GATHER
        return first and any(self.answer(site) is None for site in self.context.members.sites())

    def _wait(self, seconds: float = 1.0) -> None:
        if self.stopping:
            raise WireError("the run is stopped")
        self.context.news.wait(seconds)

    def _tasks(self, pipe: Pipe, message: Body) -> None:
        first, round = message["first"], message["round"]
        with self.context.news:
            tasks = [self._publish(round, first + i, body) for i, body in enumerate(message["tasks"])]
            self.context.news.notify_all()
        left = {task.number: task for task in tasks}
        while left:
            self._check_inbox(pipe)
            for number, task in list(left.items()):
                if self._may_close(task):
                    self._close(pipe, task)
                    del left[number]
            with self.context.news:
                if left and not self.inbox and not any(self._ripe(task) for task in left.values()):
                    self._wait()

    def _publish(self, round: int, number: int, body: Body) -> Open:
        known = self.journal.find("task", round, number)
        row = {k: v for k, v in body.items() if k != "sites"} | {"round": round, "task": number}
        asked = self._may_ask(body["sites"], body) if known is None else known["asked"]
        row |= {"asked": asked, "candidates": body["sites"] if body["busy"] else None}
        self.journal.add("task", **row)
        if known is None:
            self.context.blobs.require(len(asked) * body["payload"]["size"])
            return self.book.publish(row)
        return self.book.tasks[round, number]

    def _may_ask(self, sites: Sequence[str], body: Body) -> list[str]:
        flying = self.book.flying()
        free = [site for site in sites if site not in flying]
        return free if body["busy"] is None else free[: max(0, body["busy"] - len(flying))]

    def _ripe(self, task: Open) -> bool:
        return task.closed or task.desk.verdict() != "open"

    def _may_close(self, task: Open) -> bool:
        with self.context.news:
            if task.closed:
                return True
            self._lose(task)
            self._refill(task)
            verdict = task.desk.verdict()
            if verdict == "short":
                self._short(task)
            return verdict == "close"

    def _lose(self, task: Open) -> None:
        members, now = self.context.members, time.monotonic()
        enrolled = set(members.sites())
        for site in task.desk.waiting():
            if site not in enrolled:
                self.settle_row("lost", task, site, "its entry was revoked or expired")
            elif not members.accepting(site):
                self.settle_row("lost", task, site, "it left")
        for site in task.stalled(now):
            self.settle_row("lost", task, site, "no progress, and nothing was heard of it")

    def _refill(self, task: Open) -> None:
        if not task.body["busy"]:
            return
        rest = [s for s in task.body["candidates"] if s not in task.desk.asked]
        new = self._may_ask(rest, dict(task.body))
        if new:
            self.journal.add("asked", round=task.round, task=task.number, sites=new, attempt=len(task.desk.asked))
            task.ask(new)
            self.context.news.notify_all()

    def _short(self, task: Open) -> None:
        if task.desk.attempt == 0 or self.nudged:
            self.nudged = False
            self._set("running")
            task.again()
            self.context.news.notify_all()
            return
        bad = [
            f"{o.site}: {o.status} ({o.why})" for o in task.desk.outcomes() if o.status not in ("counted", "dropped")
        ]
        self._set("paused", f"round {task.round}, task {task.body['work']!r}: too few updates; {'; '.join(bad)}")
        self._wait()

    def _check_inbox(self, pipe: Pipe) -> None:
        """Has the worker look at what arrived; rows first, receipts after."""
        with self.context.news:
            arrived, self.inbox = self.inbox, []
        for delivery in arrived:
            self._check(pipe, delivery)

    def _check(self, pipe: Pipe, delivery: Delivery) -> None:
        body = delivery.body
        task = self.book.tasks[body["round"], body["task"]]
        fd = os.open(self.context.updates(delivery.site).path(body["digest"]), os.O_RDONLY)
        try:
            found = pipe.ask({"check": {"task": task.number, "site": delivery.site}}, [fd])
        except WireError:
            with self.context.news:
                self.inbox.append(delivery)
            raise
        finally:
            os.close(fd)
        with self.context.news:
            if not task.wants(delivery.site, body["attempt"]):
                delivery.receipt = {"status": "dropped", "why": "it came too late"}
            elif not found["checked"]:
                self.settle_row("refused", task, delivery.site, found["why"])
                delivery.receipt = {"status": "refused", "why": found["why"]}
            else:
                self._accept(task, delivery)
            self.context.news.notify_all()

    def _accept(self, task: Open, delivery: Delivery) -> None:
        body = delivery.body
        row = {
            "round": task.round,
            "task": task.number,
            "site": delivery.site,
            "attempt": body["attempt"],
            "digest": body["digest"],
            "size": body["size"],
            "weight": body["weight"],
            "metrics": delivery.metrics,
            "stateful": body["stateful"],
            "build": body.get("build", ""),
        }
        point("server.before-accept")
        self.journal.add("accepted", **row)
        point("server.after-accept")
        self.book.settle("accepted", row)
        delivery.receipt = {"status": "accepted", "why": ""}

    def settle_row(self, kind: str, task: Open, site: str, why: str) -> None:
        """Journals that a site will not be counted, and why."""
        row = {"round": task.round, "task": task.number, "site": site, "attempt": task.attempts[site], "why": why}
        self.journal.add(kind, **row)
        self.book.settle(kind, row)

    def _close(self, pipe: Pipe, task: Open) -> None:
        with self.context.news:
            row = self.journal.find("close", task.round, task.number)
            if row is None:
                row = self.book.close_row(task)
                point("server.before-close")
                self.journal.add("close", **row)
                point("server.after-close")
            done = self.journal.find("total", task.round, task.number)
            counted = [self.journal.find("accepted", r, t, s, self._attempt(s, r, t)) for s, r, t in row["counted"]]
            self.book.close(row)
            self.context.news.notify_all()
        if done is not None:
            pipe.send({"task": task.number, "total": done["file"]})
            return
        close = [
            {
                "site": c["site"],
                "round": c["round"],
                "task": c["task"],
                "age": task.round - c["round"],
                "weight": c["weight"],
                "metrics": self._metrics(c["site"], c["metrics"]),
            }
            for c in counted
            if c
        ]
        outcomes = [o[:3] for o in row["outcomes"]]
        fds = [os.open(self.context.updates(c["site"]).path(c["digest"]), os.O_RDONLY) for c in counted if c]
        try:
            pipe.send({"task": task.number, "close": close, "outcomes": outcomes}, fds)
        finally:
            for fd in fds:
                os.close(fd)
        self._total(pipe, task)

    def _total(self, pipe: Pipe, task: Open) -> None:
        """Waits for the worker's Total, looking at late arrivals meanwhile is not needed: they wait in the inbox."""
        message, _ = pipe.receive()
        point("server.before-total")
        fsync_dir(self.scratch)
        with self.context.news:
            self.journal.add("total", round=task.round, task=task.number, file=message["file"], digest="")
        point("server.after-total")
        pipe.send({})

    def _attempt(self, site: str, round: int, number: int) -> int:
        found = [a for a in range(16) if self.journal.find("accepted", round, number, site, a)]
        return found[-1] if found else 0

    def _metrics(self, site: str, digest: str) -> Any:
        return json.loads(self.context.updates(site).path(digest).read_bytes()) if digest else {}

    def _settled(self, round: int) -> None:
        """Deletes the updates of rounds that are over: the journal keeps their digests, never their arrays."""
        for accepted in self.book.done(round):
            for digest in filter(None, (accepted.digest, accepted.metrics)):
                self.context.updates(accepted.origin.site).delete(digest)
        for path in [*self.scratch.glob("payload-*"), *self.scratch.glob("total-*")]:
            r, number = map(int, path.stem.split("-")[1:3])
            task = self.book.tasks.get((r, number))
            if r <= round and not (task and task.keeps and task.desk.waiting()):
                path.unlink(missing_ok=True)

    def _ended(self, message: Body) -> None:
        models = {
            name: digest for name in ("final", "best") if (digest := file_digest(self.scratch / f"{name}.safetensors"))
        }
        with self.context.news:
            self.journal.add(
                "end",
                **{k: v for k, v in message.items() if k != "do"},
                models=models,
                seconds=round(time.monotonic() - self.began, 3),
            )
            self._set("finished", message["reason"])

    def _set(self, state: str, why: str = "") -> None:
        if (state, why) == (self.state, self.why):
            return
        log.info("run %s: %s%s", self.run, state, f": {why}" if why else "")
        if state in ("paused", "failed") or self.state == "paused":
            self.event(state, why)
        with self.context.news:
            self.state, self.why = state, why
            self.context.news.notify_all()

    def event(self, what: str, why: str = "", site: str = "") -> None:
        """Journals something that people want to read in the report."""
        with self.context.news:
            try:
                self.journal.add("event", what=what, why=why, site=site, round=len(self.journal.all("step")))
            except FoedusError as error:
                log.error("run %s: %s", self.run, error)

    # ---- called by requests, holding `news` -----------------------------------------------------------------------
    @property
    def over(self) -> bool:
        return self.state in ("finished", "failed", "stopped")

    def answer(self, site: str) -> Body | None:
        """What the site said to `prepare`."""
        return self.context.store.get("ready", f"{self.run}/{site}")

    def ready(self) -> list[str]:
        """The sites that take part in a round that starts now."""
        members = self.context.members
        return [s for s in members.sites() if members.accepting(s) and (self.answer(s) or {}).get("ready")]

    def offers(self, site: str) -> dict[str, Body]:
        """TASKID -> signed envelope of every Task that this site has not answered."""
        if self.over:
            return {}
        delivered = {(d.site, d.body["round"], d.body["task"]) for d in self.inbox}
        found = {}
        for task in self.book.open_tasks():
            if task.wants(site) and (site, task.round, task.number) not in delivered:
                name = task_id(self.run, task.round, task.number, task.attempts[site])
                found[name] = self._envelope(name, task, site)
        return found

    def _envelope(self, name: str, task: Open, site: str) -> Body:
        cached = f"{name}/{site}"
        if cached not in self.envelopes:
            if len(self.envelopes) > 4096:
                self.envelopes.clear()
            body, base = task.body, self.book.bases.get((site, task.body["work"]))
            stall, total = body["deadline"] or (600.0, None)
            plain = {
                "run": self.run,
                "round": task.round,
                "task": task.number,
                "attempt": task.attempts[site],
                "site": site,
                "work": body["work"],
                "payload": {k: body["payload"][k] for k in ("digest", "size")},
                "returns": body["returns"],
                "late": body["late"],
                "bundle": self.submission["bundle"]["digest"],
                "deadline": {"stall": float(stall).hex(), "total": None if total is None else float(total).hex()},
                "seed": self.submission["seed"],
                "base": base and {"round": base.round, "task": base.task},
                "verdicts": {},
            }
            self.envelopes[cached] = sign_envelope(self.context.key, "foedus/task/1", plain)
        return self.envelopes[cached]

    def deliver(self, site: str, body: Mapping[str, Any], metrics: str) -> Delivery | Body:
        """The receipt, or a Delivery whose receipt will come."""
        at = body["round"], body["task"]
        if self.journal.find("accepted", *at, site, body["attempt"]):
            return {"status": "accepted", "why": ""}
        refused = self.journal.find("refused", *at, site, body["attempt"])
        if refused:
            return {"status": "refused", "why": refused["why"]}
        task = self.book.tasks.get(at)
        if self.over or task is None or not task.wants(site, body["attempt"]):
            return {"status": "dropped", "why": "nobody waits for it any more"}
        waiting = [d for d in self.inbox if (d.site, d.body["round"], d.body["task"]) == (site, *at)]
        if waiting:
            return waiting[0]
        delivery = Delivery(site, body, metrics)
        self.inbox.append(delivery)
        self.context.news.notify_all()
        return delivery

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
            if task.body["payload"]["digest"] == digest and site in task.desk.asked:
                path = self.scratch / task.body["payload"]["file"]
                return path if path.exists() else None
        return None

    def stop(self, state: str = "stopped") -> None:
        """Ends the worker; the run can be resumed unless it is finished."""
        self.stopping = True
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
        if state and not self.over:
            self._set(state)

    def status(self) -> Body:
        """What `runs` and `status` show."""
        steps = self.journal.all("step")
        waiting = {f"{t.body['work']} {t.round}": t.desk.waiting() for t in self.book.open_tasks() if t.desk.waiting()}
        return {
            "run": self.run,
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


def file_digest(path: Path) -> str | None:
    """The SHA-256 of a file; None if it is not there."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def scrubbed(scratch: Path) -> dict[str, str]:
    """An environment without secrets, proxies or threads; faults that a test asked for pass through."""
    kept = {
        k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "LC_ALL", "TMPDIR") or k.startswith("FOEDUS_KILL")
    }
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    code = str(Path(foedus.__file__).parents[1])
    return kept | threads | {"HOME": str(scratch), "PYTHONPATH": code, "PYTHONDONTWRITEBYTECODE": "1"}
