"""The server's state in one object: members, blobs and runs; what requests and the main thread share.
Runs and members come in; nothing here speaks HTTP."""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foedus.errors import FoedusError, JournalError, WireError
from foedus.journal import Journal, Memory
from foedus.retrain import before
from foedus.server.conductor import Conductor
from foedus.server.members import LEASE, REGISTER, Members
from foedus.server.place import Place
from foedus.server.run import Context, Run
from foedus.store import verify_chain
from foedus.store.blobs import Blobs
from foedus.store.lease import this_process
from foedus.store.log import StoreLog
from foedus.store.sql import SqlStore
from foedus.wire.bundle import unpack
from foedus.wire.signing import sign_envelope

log = logging.getLogger(__name__)
CHECKING, CHECKED = "checking", "it was a check: nothing was trained"
RUN = re.compile(r"[A-Za-z0-9._-]{1,85}")  # the name of a folder, here and at sites
Json = dict[str, Any]


class News(threading.Condition):
    """A condition that counts its notifications, so that nobody misses one between two looks."""

    def __init__(self) -> None:
        super().__init__()
        self.version = 0

    def notify_all(self) -> None:
        self.version += 1
        super().notify_all()


class Hub:
    """Everything that lives as long as the server does."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.store = SqlStore(place.url)
        self.members = Members(self.store, place.federation)
        self.blobs = Blobs(place.folder / "blobs")
        self.of_sites: dict[str, Blobs] = {}
        self.news = News()
        self.runs: dict[str, Run] = {}
        self.conductors: dict[str, Conductor] = {}
        self.key = place.key()
        self.threads: list[threading.Thread] = []
        self.began = time.time()
        self.cut_connections: Any = lambda name: 0

    @property
    def version(self) -> int:
        return self.news.version

    def start(self) -> None:
        """Takes up every run that was not over when the last server ended."""
        for run in self.store.runs():
            if run != REGISTER:
                live = self._found(run)
                if live.damaged:
                    log.error("run %s: %s", run, live.why)
                elif live.journal.find("end"):
                    live.state = "finished"
                elif live.submission.get("check"):
                    live.state, live.why = "stopped", CHECKED
                elif stopped := self.store.get("stopped", run):
                    live.state, live.why = stopped["state"], stopped["why"]
                else:
                    live.event("server restarted")
                    self._serve(live)
        self._sweep()

    def _sweep(self) -> None:
        """Deletes what sites sent and no run needs: bytes whose site was told on the way that nobody waits."""
        for place in (self.place.folder / "updates").glob("*/"):
            with self.news:
                needed = {digest for live in self.runs.values() for digest in live.needs(place.name)}
                parts = {part for live in self.runs.values() for part in live.parts(place.name)}
            self.updates(place.name).sweep(needed, parts)

    def _open(self, run: str) -> Run:
        """The run as its journal has it. Raises JournalError or another FoedusError for one that cannot be read."""
        epoch = self.store.acquire(run, this_process(), LEASE)
        try:
            verify_chain(self.store.rows(run))
            live = Run(self._context(), run, Journal(StoreLog(self.store, run, epoch)))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise JournalError(f"its rows make no sense ({type(error).__name__}: {error})") from error
        self.runs[run] = live
        return live

    def _found(self, run: str) -> Run:
        """A run of an earlier server; one that cannot be read is over and says why, and the others go on."""
        try:
            return self._open(run)
        except FoedusError as error:
            live = self.runs[run] = Run(self._context(), run, Journal(Memory()))
            live.state, live.damaged = "failed", True
            live.why = f"its journal cannot be read: {error}; restore the server's folder from a backup"
            return live

    def _context(self) -> Context:
        return Context(
            self.store, self.blobs, self.updates, self.forget, self.members, self.news, self.key, self.place.folder
        )

    def updates(self, site: str) -> Blobs:
        """The blobs of one site."""
        with self.news:
            if site not in self.of_sites:
                self.of_sites[site] = Blobs(self.place.folder / "updates" / site)
            return self.of_sites[site]

    def forget(self, site: str, digests: Sequence[str]) -> None:
        """Deletes bytes that a site sent, unless some run still needs them: equal updates are one file."""
        with self.news:
            needed = {digest for live in self.runs.values() for digest in live.needs(site)}
            for digest in set(digests) - needed - {""}:
                self.updates(site).delete(digest)

    def _serve(self, live: Run) -> None:
        conductor = self.conductors[live.id] = Conductor(live)
        thread = threading.Thread(target=self._served, args=(conductor,), name=f"run {live.id}", daemon=True)
        self.threads.append(thread)
        thread.start()

    def _served(self, conductor: Conductor) -> None:
        conductor.serve()
        live = conductor.run
        live.clear()
        if live.state in ("failed", "stopped"):
            self.store.put("stopped", live.id, {"state": live.state, "why": live.why})

    def close(self) -> None:
        for conductor in self.conductors.values():
            conductor.stop(state="")
        for thread in self.threads:
            thread.join(5.0)
        self.store.close()

    # ---- runs ------------------------------------------------------------------------------------------------------
    def submit(self, submitter: str, body: Mapping[str, Any], envelope: Json) -> str:
        """The id of a new run, whose first row is durable; the same envelope again gives the same run."""
        digest = hashlib.sha256(envelope["signature"].encode()).hexdigest()
        with self.news:
            known = self.store.get("submission", digest)
            if known is not None:
                return str(known["run"])
            if not self.blobs.has(body["bundle"]["digest"]):
                raise FoedusError("the bundle is not here: upload it first")
            stamp = time.strftime("%Y%m%d-%H%M%S")
            run = f"{stamp}-{body.get('name') or 'run'}-{secrets.token_hex(2)}"
            if not RUN.fullmatch(run):
                raise WireError(f"a run's name has letters, digits, '.', '_' and '-', at most 64; {run!r:.99} is none")
            self._unpack(run, body)
            with self.store.transaction():
                live = self._open(run)
                live.journal.add("submitted", **body, submitter=submitter, envelope=envelope)
                self.store.put("submission", digest, {"run": run})
            live.submission = dict(live.journal.find("submitted") or {})
            if body.get("check"):
                live.state = CHECKING  # sites prepare and answer; nothing is trained
            else:
                self._serve(live)
            self.told()
            return run

    def retrain(self, run: str, without: Sequence[str], who: str) -> str:
        """The id of a new run of the same submission, which goes on from before these sites joined, without them."""
        with self.news:
            old = self.find(run)
            kept = before(old.journal, old.scratch, without)
            body = {k: v for k, v in old.submission.items() if k not in ("without", "after", "begins")}
            new = f"{time.strftime('%Y%m%d-%H%M%S')}-{body.get('name') or 'run'}-{secrets.token_hex(2)}"
            self._unpack(new, body)
            away = sorted({*without, *old.without})
            live = self._open(new)
            live.journal.add("submitted", **body, without=away, after=old.id, begins=kept.round)
            kept.into(live.journal, live.scratch)
            live = self._open(new)
            live.event("retrained", f"by {who}, run {old.id} from round {kept.round + 1} on, without {', '.join(away)}")
            self._serve(live)
            self.told()
            return new

    def _unpack(self, run: str, body: Mapping[str, Any]) -> None:
        folder = self.place.folder / "runs" / run / "bundle"
        unpack(self.blobs.path(body["bundle"]["digest"]).read_bytes(), folder)

    def run(self, run: str) -> Run:
        found = self.runs.get(run)
        if found is None:
            raise FoedusError(f"there is no run {run!r} at this server")
        return found

    def at_work(self, live: Run) -> bool:
        """Whether this is the run's present life: one that is stopped or resumed answers nothing any more."""
        return not live.over and self.runs.get(live.id) is live

    def find(self, run: str) -> Run:
        """The run of this id or unique prefix."""
        found = [live for name, live in self.runs.items() if name.startswith(run)]
        if len(found) != 1:
            raise FoedusError(f"{len(found)} runs begin with {run!r}: `foedus runs` lists them")
        return found[0]

    def steer(self, run: str, verb: str, body: Mapping[str, Any], who: str) -> None:
        """stop, resume or skip a run, on a submitter's word."""
        with self.news:
            live = self.find(run)
            if verb == "skip":
                skipped = [t for t in live.book.open_tasks() if t.wants(body["site"])]
                if not skipped:
                    raise FoedusError(f"nobody waits for {body['site']!r} in run {live.id}")
                for task in skipped:
                    live.settle_row("lost", task, body["site"], f"skipped by {who}")
                live.event("skipped", f"by {who}", body["site"])
            elif verb == "stop":
                if live.state in ("finished", "failed"):
                    raise FoedusError(f"run {live.id} is {live.state} already: there is nothing to stop")
                if live.id in self.conductors:
                    self.conductors[live.id].stop()
                why = CHECKED if live.submission.get("check") else f"by {who}"
                live.set("stopped", why)
                self.store.put("stopped", live.id, {"state": "stopped", "why": why})
            elif live.over and live.state != "finished" and not live.submission.get("check"):
                self.store.delete("stopped", live.id)
                again = self._open(live.id)
                again.event("resumed", f"by {who}")
                self._serve(again)
            else:
                live.nudged = True
            self.told()

    # ---- what sites are told ---------------------------------------------------------------------------------------
    def prepare(self, site: str, prepared: set[str]) -> list[Json]:
        """A signed `prepare` for every run under way that this site has not answered."""
        found = []
        for run, live in self.runs.items():
            if not live.over and run not in prepared and site not in live.without:
                body = {k: live.submission[k] for k in ("name", "bundle", "entry")}
                body |= {
                    "run": run,
                    "submission": live.submission["envelope"],
                    "submitter": live.submission["submitter"],
                }
                found.append(sign_envelope(self.key, "foedus/prepare/1", body))
        return found

    def ended_for(self, site: str, known: set[str]) -> list[Json]:
        """The runs that are over, of which this site was a part and does not know it yet."""
        found = []
        for run, live in self.runs.items():
            if live.over and not live.damaged and run not in known and live.answer(site) is not None:
                end = live.journal.find("end") or {}
                models = end.get("models", {})
                found.append(
                    {
                        "run": run,
                        "state": live.state,
                        "digest": end.get("digest"),
                        "final": models.get("final"),
                        "best": models.get("best"),
                    }
                )
        return found

    def granted(self, digest: str, run: str, name: str, role: str) -> Path | None:
        """The file of a blob that this member may read in this run; knowing a digest gives nothing."""
        with self.news:
            live = self.runs.get(run)
            if live is None or live.damaged:
                return None
            if digest == live.submission["bundle"]["digest"]:
                return self.blobs.path(digest)
            if role == "site" and (path := live.payload(digest, name)) is not None:
                return path
            if role == "submitter" or live.answer(name) is not None:
                for model, known in (live.journal.find("end") or {}).get("models", {}).items():
                    if known == digest:
                        return live.scratch / f"{model}.safetensors"
        return None

    def told(self) -> None:
        with self.news:
            self.news.notify_all()

    def returned(self, site: str) -> None:
        """A site is back: runs that paused for want of it ask again."""
        with self.news:
            for live in self.runs.values():
                live.nudged = live.nudged or (live.state == "paused" and live.answer(site) is not None)
            self.news.notify_all()

    def event(self, what: str, why: str, site: str) -> None:
        """Journals an event of a site in every run under way that it is part of."""
        with self.news:
            for live in self.runs.values():
                if not live.over and live.answer(site) is not None:
                    live.event(what, why, site)

    def cut(self, name: str) -> None:
        """Ends every connection of a member whose entry was revoked."""
        self.members.nonces.close(name)
        self.cut_connections(name)
        self.event("revoked", "", name)
        self.told()

    def table(self) -> list[Json]:
        """Every site with what is known of it."""
        now, members = time.monotonic(), self.members
        found = []
        for name in members.sites():
            seen = members.seen.get(name)
            ago = None if seen is None else round(now - seen, 1)
            state = (
                "left"
                if not members.accepting(name)
                else "reachable"
                if ago is not None and ago < 70
                else "not reachable"
            )
            found.append({"site": name, "state": state, "seconds": ago})
        return found

    def figures(self) -> Json:
        states = [live.state for live in self.runs.values()]
        return {
            "federation": self.place.federation.name,
            "sites": len(self.members.sites()),
            "runs": len(states),
            "running": states.count("running"),
            "up": round(time.time() - self.began, 1),
            "free": self.blobs.free(),
            "epoch": self.members.register.pin.epoch,
        }
