"""The server's state in one object: members, blobs, and a host for every run; what requests and the main thread share.
Hosts and members come in; nothing here speaks HTTP."""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foedus.errors import FoedusError
from foedus.server.host import Context, Host
from foedus.server.members import LEASE, REGISTER, Members
from foedus.server.place import Place
from foedus.store.blobs import Blobs
from foedus.store.lease import this_process
from foedus.store.sql import SqlStore
from foedus.wire.bundle import unpack
from foedus.wire.signing import sign_envelope

log = logging.getLogger(__name__)
CHECKING = "checking"
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
        self.hosts: dict[str, Host] = {}
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
                host = self._open(run)
                if host.journal.find("end"):
                    host.state = "finished"
                elif host.submission.get("check"):
                    host.state = "stopped"
                elif stopped := self.store.get("stopped", run):
                    host.state, host.why = stopped["state"], stopped["why"]
                else:
                    host.event("server restarted")
                    self._serve(host)

    def _open(self, run: str) -> Host:
        epoch = self.store.acquire(run, this_process(), LEASE)
        context = Context(self.store, self.blobs, self.updates, self.members, self.news, self.key, self.place.folder)
        host = self.hosts[run] = Host(context, run, epoch)
        return host

    def updates(self, site: str) -> Blobs:
        """The blobs of one site."""
        with self.news:
            if site not in self.of_sites:
                self.of_sites[site] = Blobs(self.place.folder / "updates" / site)
            return self.of_sites[site]

    def _serve(self, host: Host) -> None:
        thread = threading.Thread(target=self._served, args=(host,), name=f"run {host.run}", daemon=True)
        self.threads.append(thread)
        thread.start()

    def _served(self, host: Host) -> None:
        host.serve()
        if host.state in ("failed", "stopped"):
            self.store.put("stopped", host.run, {"state": host.state, "why": host.why})

    def close(self) -> None:
        for host in self.hosts.values():
            host.stop(state="")
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
            self._unpack(run, body)
            with self.store.transaction():
                host = self._open(run)
                host.journal.add("submitted", **body, submitter=submitter, envelope=envelope)
                self.store.put("submission", digest, {"run": run})
            host.submission = dict(host.journal.find("submitted") or {})
            if body.get("check"):
                host.state = CHECKING  # sites prepare and answer; nothing is trained
            else:
                self._serve(host)
            self.told()
            return run

    def _unpack(self, run: str, body: Mapping[str, Any]) -> None:
        folder = self.place.folder / "runs" / run / "bundle"
        unpack(self.blobs.path(body["bundle"]["digest"]).read_bytes(), folder)

    def host(self, run: str) -> Host:
        found = self.hosts.get(run)
        if found is None:
            raise FoedusError(f"there is no run {run!r} at this server")
        return found

    def find(self, run: str) -> Host:
        """The run of this id or unique prefix."""
        found = [host for name, host in self.hosts.items() if name.startswith(run)]
        if len(found) != 1:
            raise FoedusError(f"{len(found)} runs begin with {run!r}: `foedus runs` lists them")
        return found[0]

    def steer(self, run: str, verb: str, body: Mapping[str, Any], who: str) -> None:
        """stop, resume or skip a run, on a submitter's word."""
        with self.news:
            host = self.find(run)
            if verb == "skip":
                skipped = [t for t in host.book.open_tasks() if t.wants(body["site"])]
                if not skipped:
                    raise FoedusError(f"nobody waits for {body['site']!r} in run {host.run}")
                for task in skipped:
                    host.settle_row("lost", task, body["site"], f"skipped by {who}")
                host.event("skipped", f"by {who}", body["site"])
            elif verb == "stop":
                host.stop()
                self.store.put("stopped", host.run, {"state": "stopped", "why": f"by {who}"})
            elif host.over and host.state != "finished" and not host.submission.get("check"):
                self.store.delete("stopped", host.run)
                again = self._open(host.run)
                again.event("resumed", f"by {who}")
                self._serve(again)
            else:
                host.nudged = True
            self.told()

    # ---- what sites are told ---------------------------------------------------------------------------------------
    def prepare(self, site: str, prepared: set[str]) -> list[Json]:
        """A signed `prepare` for every run under way that this site has not answered."""
        found = []
        for run, host in self.hosts.items():
            if not host.over and run not in prepared:
                body = {k: host.submission[k] for k in ("name", "bundle", "entry")}
                body |= {
                    "run": run,
                    "submission": host.submission["envelope"],
                    "submitter": host.submission["submitter"],
                }
                found.append(sign_envelope(self.key, "foedus/prepare/1", body))
        return found

    def ended_for(self, site: str, known: set[str]) -> list[Json]:
        """The runs that are over, of which this site was a part and does not know it yet."""
        found = []
        for run, host in self.hosts.items():
            if host.over and run not in known and host.answer(site) is not None:
                end = host.journal.find("end") or {}
                models = end.get("models", {})
                found.append(
                    {
                        "run": run,
                        "state": host.state,
                        "digest": end.get("digest"),
                        "final": models.get("final"),
                        "best": models.get("best"),
                    }
                )
        return found

    def granted(self, digest: str, run: str, name: str, role: str) -> Path | None:
        """The file of a blob that this member may read in this run; knowing a digest gives nothing."""
        with self.news:
            host = self.hosts.get(run)
            if host is None:
                return None
            if digest == host.submission["bundle"]["digest"]:
                return self.blobs.path(digest)
            if role == "site" and (path := host.payload(digest, name)) is not None:
                return path
            if role == "submitter" or host.answer(name) is not None:
                for model, known in (host.journal.find("end") or {}).get("models", {}).items():
                    if known == digest:
                        return host.scratch / f"{model}.safetensors"
        return None

    def told(self) -> None:
        with self.news:
            self.news.notify_all()

    def returned(self, site: str) -> None:
        """A site is back: runs that paused for want of it ask again."""
        with self.news:
            for host in self.hosts.values():
                host.nudged = host.nudged or (host.state == "paused" and host.answer(site) is not None)
            self.news.notify_all()

    def event(self, what: str, why: str, site: str) -> None:
        """Journals an event of a site in every run under way that it is part of."""
        with self.news:
            for host in self.hosts.values():
                if not host.over and host.answer(site) is not None:
                    host.event(what, why, site)

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
        states = [host.state for host in self.hosts.values()]
        return {
            "federation": self.place.federation.name,
            "sites": len(self.members.sites()),
            "runs": len(states),
            "running": states.count("running"),
            "up": round(time.time() - self.began, 1),
            "free": self.blobs.free(),
            "epoch": self.members.register.pin.epoch,
        }
