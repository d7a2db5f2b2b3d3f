"""What drives one run at the server: keeps its worker at work, checks what arrived, closes Tasks, in the durable order.
A Run comes in; the Job's code runs in the worker process alone."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foedus import build
from foedus.aggregators.folding import CHECKING
from foedus.errors import FoedusError, Refused, WireError
from foedus.faults import point
from foedus.files import delete
from foedus.server.run import Body, Delivery, Run
from foedus.server.tasks import Open, payload_of
from foedus.store import Fenced
from foedus.wire.ed25519 import derived
from foedus.wire.pipe import Pipe, pair

log = logging.getLogger(__name__)
NAMED = 5  # sites that the reason of a pause lists
GATHER = 60.0  # seconds that a run waits at its start for sites that are there and have not answered yet
AWAY = 15.0  # seconds of silence after which a site is not there: an agent polls all the time, or tries to
MOST_DEATHS = 5
QUIET = 120.0  # seconds in which survivors of a sealed Task may say nothing before people are told
NOTHING = (0.0).hex()  # the weight that a sealed update shows
KEPT = ("payload", "total", "seal")  # files of a Task, until its round is over
ACCEPTED = {"status": "accepted", "why": ""}
SAID = ("site", "size", "weight", "metrics", "stateful", "build")  # of an update's envelope, for the run worker


class Failed(FoedusError):
    """What the run worker says when it cannot go on."""


class Conductor:
    """Serves one run in a thread of its own until it is over or stopped."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.stopping = False
        self.process: subprocess.Popen[bytes] | None = None
        self.asked = set[int]()  # numbers of the Tasks that this worker knows
        self.deaths = 0

    def stop(self, state: str = "stopped") -> None:
        """Ends the worker; the run can be resumed unless it is finished."""
        self.stopping = True
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
        with self.run.context.news:
            self.run.context.news.notify_all()  # so that it is noticed at once
        if state and not self.run.over:
            self.run.set(state)

    def serve(self) -> None:
        """Keeps a worker at work until the run ends, fails or is stopped."""
        while not self.stopping and self.deaths < MOST_DEATHS:
            try:
                if self._with_worker():
                    return
            except WireError:
                self.deaths += 1
                if not self.stopping:
                    self.run.event("run worker restarted", f"it died ({self._exit()})")
            except Fenced as error:
                log.error("run %s: %s", self.run.id, error)
                return
            except FoedusError as error:
                self.run.set("failed", str(error))
                return
            except Exception as error:
                log.exception("run %s", self.run.id)
                self.run.set("failed", f"{type(error).__name__}: {error}")
                return
        if not self.stopping:
            self.run.set("failed", f"the run worker died {self.deaths} times; see {self.run.scratch / 'worker.log'}")

    def _with_worker(self) -> bool:
        """Whether the run is over."""
        pipe = self._start()
        try:
            while True:
                message = _heard(pipe)
                if message["do"] == "ended":
                    self._ended(message)
                    return True
                self._answer(pipe, message)
                self.deaths = 0
        finally:
            pipe.close()  # at which the worker ends
            self._exit()

    def _start(self) -> Pipe:
        self.asked.clear()
        self.run.scratch.mkdir(parents=True, exist_ok=True)
        mine, theirs = pair()
        with (self.run.scratch / "worker.log").open("ab") as out, theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "foedus.server.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=build.scrubbed(self.run.scratch, **{k: v for k, v in os.environ.items() if k == "TMPDIR"}),
                cwd=self.run.scratch,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        body = self.run.submission
        mine.send(
            {
                "run": self.run.id,
                "scratch": str(self.run.scratch),
                "bundle": str(self.run.scratch / "bundle"),
                "entry": body["entry"],
                "options": body["options"],
                "seed": body["seed"],
                "secret": derived(self.run.context.key, f"run/{self.run.id}"),
                "rounds": body.get("override_rounds"),
                "privacy": body.get("override_privacy"),
                "source": {"file": None},
            }
        )
        return mine

    def _exit(self) -> str:
        assert self.process is not None
        try:
            code = self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def _answer(self, pipe: Pipe, message: Body) -> None:
        match message["do"]:
            case "rows":
                pipe.send({"rows": list(self.run.journal.log.rows())})
            case "append":
                self._append(message["rows"])
                pipe.send({})
                for kind, body in message["rows"]:
                    if kind == "step":
                        self._settled(body["round"])
            case "roster":
                pipe.send({"sites": self._roster(message["least"])})
            case "tasks":
                self._tasks(pipe, message)
            case other:
                raise WireError(f"the run worker asks for {other!r}")

    def _append(self, rows: Sequence[tuple[str, Body]]) -> None:
        with self.run.context.news:
            new = self.run.journal.add_all([(kind, body) for kind, body in rows])
            for kind, body in rows:
                if kind == "open":
                    self.run.opened(body, new)
            self.run.context.news.notify_all()

    def _roster(self, least: int) -> list[str]:
        """The sites of the next round, as soon as there are enough."""
        with self.run.context.news:
            least = max(least, int(self.run.submission.get("min_sites") or 1))
            while not (roster := self.run.ready()) or len(roster) < least or self._gathering():
                if len(roster) < least and not self._gathering():
                    there = f"{len(roster)} of the {least} sites needed take part"
                    self.run.set("paused", "; ".join([there, *self._absent(), "it goes on when enough do"]))
                self._wait()
            self.run.agree(roster)
            self.run.set("running")
            return roster

    def _absent(self) -> list[str]:
        """Why sites that are enrolled take no part, as far as they said so."""
        members, run = self.run.context.members, self.run
        others = [site for site in members.sites() if site not in run.without and site not in run.ready()]
        told = {site: run.answer(site) or {} for site in others}
        why = {site: said.get("why") or "away" for site, said in told.items()}
        named = [f"{site}: {text}" for site, text in why.items()]
        return named[:NAMED] + ([f"and {len(named) - NAMED} more"] if len(named) > NAMED else [])

    def _gathering(self) -> bool:
        """Whether a run that starts waits for sites that are there, or may come back to a server that just began."""
        if self.run.journal.find("round", self.run.begins) is not None or time.monotonic() - self.run.began > GATHER:
            return False
        members = self.run.context.members
        there = [site for site in members.sites() if members.accepting(site) and members.away(site) < AWAY]
        return any(self.run.answer(site) is None for site in there)

    def _wait(self, seconds: float = 1.0) -> None:
        if self.stopping:
            raise WireError("the run is stopped")
        self.run.context.news.wait(seconds)

    def _tasks(self, pipe: Pipe, message: Body) -> None:
        first, round = message["first"], message["round"]
        with self.run.context.news:
            tasks = [self._publish(round, first + i, body) for i, body in enumerate(message["tasks"])]
            self.run.context.news.notify_all()
        left = {task.number: task for task in tasks}
        self.asked |= left.keys()
        while left:
            self._check_inbox(pipe)
            for number, task in list(left.items()):
                if self._may_close(task):
                    self._close(pipe, task)
                    del left[number]
            with self.run.context.news:
                if left and self._next() is None and not any(self._ripe(task) for task in left.values()):
                    self._wait()

    def _publish(self, round: int, number: int, body: Body) -> Open:
        known = self.run.journal.find("task", round, number)
        row = {k: v for k, v in body.items() if k != "sites"} | {"round": round, "task": number}
        asked = self._may_ask(body["sites"], body) if known is None else known["asked"]
        more = body["busy"] or (self.run.book.asynchronous and body["late"] == "drop")
        row |= {"asked": asked, "candidates": body["sites"] if more else None}
        self.run.journal.add("task", **row)
        if known is None:
            self.run.context.blobs.require(sum(payload_of(body, site)["size"] for site in asked))
            return self.run.book.publish(row)
        return self.run.book.tasks[round, number]

    def _may_ask(self, sites: Sequence[str], body: Body) -> list[str]:
        flying = self.run.book.flying()
        free = [site for site in sites if site not in flying]
        return free if body["busy"] is None else free[: max(0, body["busy"] - len(flying))]

    def _ripe(self, task: Open) -> bool:
        if task.sealed and not task.closed:
            return self.run.sealing(task).moved
        return task.closed or self._verdict(task) != "open"

    def _verdict(self, task: Open) -> str:
        """That of its desk, but an asynchronous run is never short of sites that are at work."""
        verdict = task.desk.verdict()
        return "open" if verdict == "short" and self.run.book.awaited() else verdict

    def _may_close(self, task: Open) -> bool:
        with self.run.context.news:
            if task.closed:
                return True
            for each in [task, *self.run.book.late()]:
                self._lose(each)
            self._refill(task)
            if task.sealed:
                self._gathered(task)
            verdict = self._verdict(task)
            if verdict == "short":
                self._short(task)
            return verdict == "close" and (not task.sealed or self._unsealed(task))

    def _gathered(self, task: Open) -> None:
        """Goes on with the stages of a sealed Task before its words."""
        sealing = self.run.sealing(task)
        for site, why in sealing.gather().items():
            self.run.settle_row("lost", task, site, why)
        if sealing.moved:
            self.run.context.news.notify_all()

    def _unsealed(self, task: Open) -> bool:
        """Whether the survivors of a sealed Task have given what takes the masks off. It is one set, for ever."""
        sealing = self.run.sealing(task)
        if sealing.settle([origin.site for origin in task.desk.counted()]):
            self.run.set("running")
            return True
        if sealing.moved:
            self.run.context.news.notify_all()
        if time.monotonic() - sealing.since > QUIET:
            self.run.set("paused", f"round {task.round}, task {task.body['work']!r}: {sealing.lacking()}")
        return False

    def _lose(self, task: Open) -> None:
        """Journals who is not waited for any longer. To measure, an asynchronous run waits for nobody who is silent."""
        members, now = self.run.context.members, time.monotonic()
        enrolled, measures = set(members.sites()), self.run.book.asynchronous and not task.keeps
        for site in task.desk.waiting():
            if site not in enrolled:
                self.run.settle_row("lost", task, site, "its entry was revoked or expired")
            elif not members.accepting(site):
                self.run.settle_row("lost", task, site, "it left")
            elif measures and members.away(site) > AWAY:
                self.run.settle_row("lost", task, site, f"nothing was heard of it for {AWAY:g} s")
        for site, why in task.stalled(now).items():
            self.run.settle_row("lost", task, site, why)

    def _refill(self, task: Open) -> None:
        """Asks more sites: as many as may be at work at a time, or, to measure, others than those that were lost."""
        if not task.body["candidates"] or not (task.body["busy"] or task.desk.verdict() == "short"):
            return
        rest = [s for s in task.body["candidates"] if s not in task.desk.asked]
        new = self._may_ask(rest, dict(task.body))
        if new:
            self.run.journal.add("asked", round=task.round, task=task.number, sites=new, attempt=len(task.desk.asked))
            task.ask(new)
            self.run.context.news.notify_all()

    def _short(self, task: Open) -> None:
        if task.desk.attempt == 0 or self.run.nudged:
            self.run.nudged = False
            self.run.set("running")
            self.run.journal.add("again", round=task.round, task=task.number, attempt=task.desk.attempt + 1)
            self.run.book.again(task)
            self._lose(task)  # who is still away is not asked meanwhile
            self.run.context.news.notify_all()
            return
        bad = [
            f"{o.site}: {o.status} ({o.why})" for o in task.desk.outcomes() if o.status not in ("counted", "dropped")
        ]
        self.run.set("paused", f"round {task.round}, task {task.body['work']!r}: too few updates; {'; '.join(bad)}")
        self._wait()

    def _check_inbox(self, pipe: Pipe) -> None:
        """Has the worker look at what arrived; rows first, receipts after."""
        while (delivery := self._next()) is not None:
            task = self.run.book.tasks[delivery.body["round"], delivery.body["task"]]
            self._receive(delivery, task, self._looked(pipe, delivery, task))

    def _next(self) -> Delivery | None:
        """The first update that arrived for a Task that the worker knows: one that began anew may not be there yet."""
        return next((d for d in self.run.inbox if d.body["task"] in self.asked), None)

    def _looked(self, pipe: Pipe, delivery: Delivery, task: Open) -> str | None:
        """ "" if the worker finds that the update can be counted, else why not; None if its bytes are gone."""
        if task.sealed:
            return self._looked_sealed(delivery, task)
        if delivery.deaths >= MOST_DEATHS:
            return str(Refused(delivery.site, CHECKING, f"the run worker died {MOST_DEATHS} times over it"))
        said = {name: delivery.body.get(name) for name in SAID}
        try:
            fd = os.open(self.run.context.updates(delivery.site).path(delivery.body["digest"]), os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            pipe.send({"check": {"task": task.number, **said}}, [fd])
            return str(_heard(pipe)["why"])
        except WireError:
            delivery.deaths += 1
            raise
        finally:
            os.close(fd)

    def _looked_sealed(self, delivery: Delivery, task: Open) -> str | None:
        """The same of masked words, of which all that can be seen is how many they are."""
        body, size = delivery.body, 4 * self.run.sealing(task).words
        if not self.run.context.updates(delivery.site).has(body["digest"]):
            return None
        if body["size"] != size or self.run.context.updates(delivery.site).path(body["digest"]).stat().st_size != size:
            return str(Refused(delivery.site, CHECKING, f"it has {body['size']!r:.40} bytes of words, not {size}"))
        if body["weight"] != NOTHING or body.get("metrics") or type(body["stateful"]) is not bool:
            return str(Refused(delivery.site, CHECKING, "under a seal weight and metrics travel masked, and only so"))
        if delivery.site not in self.run.sealing(task).kept.get("shares", ()):
            return str(Refused(delivery.site, CHECKING, "it shared no secrets for this Task"))
        return ""

    def _receive(self, delivery: Delivery, task: Open, why: str | None) -> None:
        """Journals what became of an update, and has its site told."""
        body = delivery.body
        with self.run.context.news:
            if delivery not in self.run.inbox:
                return  # the run was stopped meanwhile, and its site told
            self.run.inbox.remove(delivery)
            if not task.wants(delivery.site, body["attempt"]):
                delivery.receipt = {"status": "dropped", "why": "it came too late"}
            elif why is None:
                delivery.receipt = {"status": "send", "why": "its bytes are gone: upload them again"}
            elif why:
                self.run.settle_row("refused", task, delivery.site, why)
                delivery.receipt = {"status": "refused", "why": why}
            else:
                self._accept(task, delivery)
            self.run.context.news.notify_all()
        if delivery.receipt != ACCEPTED:
            self.run.context.forget(delivery.site, (body["digest"], delivery.metrics))

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
        self.run.journal.add("accepted", **row)
        point("server.after-accept")
        self.run.book.settle("accepted", row)
        delivery.receipt = ACCEPTED
        self.run.made_by(delivery.site, row["build"])

    def _close(self, pipe: Pipe, task: Open) -> None:
        with self.run.context.news:
            row = self.run.journal.find("close", task.round, task.number)
            if row is None:
                row = self.run.book.close_row(task)
                point("server.before-close")
                self.run.journal.add("close", **row)
                point("server.after-close")
            done = self.run.journal.find("total", task.round, task.number)
            counted = [self.run.journal.find("accepted", r, t, s, self._attempt(s, r, t)) for s, r, t in row["counted"]]
            self.run.book.close(row)
            self.run.context.news.notify_all()
        if done is not None and file_digest(self.run.scratch / done["file"]) == done["digest"]:
            pipe.send({"task": task.number, "total": done["file"]})
            return
        close = [
            {
                "site": c["site"],
                "round": c["round"],
                "task": c["task"],
                "age": task.round - c["round"],
                "weight": c["weight"],
                "metrics": json.loads(self._kept(c, "metrics").read_bytes()) if c["metrics"] else {},
            }
            for c in counted
            if c
        ]
        outcomes = [o[:3] for o in row["outcomes"]]
        seal = {"seal": self.run.sealing(task).unsealing()} if task.sealed else {}
        fds = list[int]()
        try:
            fds += (os.open(self._kept(c, "digest"), os.O_RDONLY) for c in counted if c)
            pipe.send({"task": task.number, "close": close, "outcomes": outcomes, **seal}, fds)
        finally:
            for fd in fds:
                os.close(fd)
        self._total(pipe, task)

    def _total(self, pipe: Pipe, task: Open) -> None:
        """Journals the worker's Total, which is on disk: before anything that the worker says next has an effect."""
        message = _heard(pipe)
        digest = file_digest(self.run.scratch / message["file"])
        point("server.before-total")
        with self.run.context.news:
            self.run.journal.add("total", round=task.round, task=task.number, file=message["file"], digest=digest)
            self.run.seals.pop((task.round, task.number), None)
        point("server.after-total")

    def _kept(self, row: Mapping[str, Any], name: str) -> Path:
        """The file of a counted update's `digest` or `metrics`. FoedusError if it is gone."""
        path = self.run.context.updates(row["site"]).path(row[name])
        if not path.exists():
            raise FoedusError(
                f"round {row['round']}: the update of {row['site']!r} is gone, and the Total of it is damaged; "
                "restore the server's folder from a backup, or submit the job again"
            )
        return path

    def _attempt(self, site: str, round: int, number: int) -> int:
        attempts = range(self.run.book.tasks[round, number].desk.attempt + 1)
        found = [a for a in attempts if self.run.journal.find("accepted", round, number, site, a)]
        return found[-1] if found else 0

    def _settled(self, round: int) -> None:
        """Deletes the updates of rounds that are over: the journal keeps their digests, never their arrays."""
        with self.run.context.news:
            done = self.run.book.done(round)
        for accepted in done:
            self.run.context.forget(accepted.origin.site, (accepted.digest, accepted.metrics))
        self.run.clear()
        for path in [path for kind in KEPT for path in self.run.scratch.glob(f"{kind}-*")]:
            r, number = map(int, path.stem.split("-")[1:3])
            task = self.run.book.tasks.get((r, number))
            if r <= round and not (task and task.keeps and task.desk.waiting()):
                delete(path)

    def _ended(self, message: Body) -> None:
        models = {
            name: digest
            for name in ("final", "best")
            if (digest := file_digest(self.run.scratch / f"{name}.safetensors"))
        }
        with self.run.context.news:
            self.run.journal.add(
                "end",
                **{k: v for k, v in message.items() if k != "do"},
                models=models,
                seconds=round(time.monotonic() - self.run.began, 3),
            )
            left = [*self.run.book.kept.values(), *self.run.book.settled]  # such as updates that came late
            self.run.set("finished", message["reason"])
        for accepted in left:
            self.run.context.forget(accepted.origin.site, (accepted.digest, accepted.metrics))


def _heard(pipe: Pipe) -> Body:
    """What the run worker says next. Raises Failed with its cause if it cannot go on."""
    message: Body = pipe.receive()[0]
    if message.get("do") == "failed":
        raise Failed(message["why"])
    return message


def file_digest(path: Path) -> str | None:
    """The SHA-256 of a file; None if it is not there."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
