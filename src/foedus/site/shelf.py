"""What a site keeps for a run until it is settled: computed updates (pending) and the local state that counted (base).
The store and files come in; the order of writes here is what a crash cannot hurt."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any, NamedTuple, final

from foedus.faults import point
from foedus.files import fsync_dir
from foedus.site.orders import At, Blob, Verdict
from foedus.store import Store

PENDING, BASE, SENT = "pending", "base", "sent"
Json = dict[str, Any]


class Pending(NamedTuple):
    """An update that was computed and is not settled; its files are durable before this is."""

    at: At
    work: str
    file: str  # the stem of its files
    blob: Blob
    weight: str
    metrics: Json
    stateful: bool
    build: str
    seal: Json | None = None  # of a sealed one: what its masks are bound to

    @classmethod
    def read(cls, body: Json) -> Pending:
        return cls(**{**body, "at": At(*body["at"]), "blob": Blob(*body["blob"])})

    @property
    def numbers(self) -> int:
        """How many numbers its metrics are."""
        return sum(math.prod(x["shape"]) for x in self.metrics.values())

    def told(self) -> Json:
        """What the site's own record says of it: no arrays; of metrics the names, and how many numbers they are."""
        facts = {"run": self.at.run, "round": self.at.round, "task": self.at.task, "attempt": self.at.attempt}
        sizes = {"bytes": self.blob.size, "digest": self.blob.digest, "weight": float.fromhex(self.weight)}
        return (
            facts
            | sizes
            | {"work": self.work, "metrics": sorted(self.metrics), "numbers": self.numbers, "status": "pending"}
        )

    def envelope(self, site: str) -> Json:
        """The body of its signed envelope."""
        body = self.at._asdict() | self.blob._asdict() | {"site": site, "weight": self.weight, "metrics": self.metrics}
        return body | {"stateful": self.stateful, "build": self.build}


class Base(NamedTuple):
    """The local state of a work that counted last: its origin, and the file's name."""

    round: int
    task: int
    file: str


@final
class Shelf:
    """One run's pending updates and bases, their documents in the store and their files in `folder`."""

    def __init__(self, store: Store, folder: Path, run: str) -> None:
        self.store, self.folder, self.run = store, folder, run
        folder.mkdir(parents=True, exist_ok=True)

    def update(self, stem: str) -> Path:
        return self.folder / f"{stem}.update"

    def words(self, stem: str) -> Path:
        return self.folder / f"{stem}.words"

    def local(self, stem: str) -> Path:
        return self.folder / f"{stem}.local"

    def pending(self) -> list[Pending]:
        return [Pending.read(body) for _, body in self.store.items(PENDING, f"{self.run}/")]

    def find(self, at: At) -> Pending | None:
        body = self.store.get(PENDING, str(at))
        return None if body is None else Pending.read(body)

    def keep(self, pending: Pending) -> None:
        """Makes the files durable, and then the update pending: from here on it is sent, never computed again."""
        _sync(self.update(pending.file))
        if pending.stateful:
            _sync(self.local(pending.file))
        fsync_dir(self.folder)
        point("agent.before-pending")
        with self.store.transaction():
            self.store.put(PENDING, str(pending.at), pending._asdict())
            self.store.put(SENT, str(pending.at), pending.told() | {"at": int(time.time())})
        point("agent.after-pending")

    def adopt(self, at: At) -> Pending | None:
        """The update of an earlier attempt at this Task, which the server never had, as that of this attempt."""
        older = [p for p in self.pending() if p.at[:3] == at[:3] and p.at.attempt < at.attempt]
        if not older:
            return None
        new = older[-1]._replace(at=at)
        with self.store.transaction():
            self.store.put(PENDING, str(at), new._asdict())
            told = self.store.get(SENT, str(older[-1].at)) or new.told()
            self.store.put(SENT, str(at), told | {"attempt": at.attempt})
            for table in (PENDING, SENT):
                self.store.delete(table, str(older[-1].at))
        return new

    def sealed(self, at: At, blob: Blob) -> None:
        """Notes in the site's own record that masked words are what leaves."""
        told = self.store.get(SENT, str(at))
        if told is not None:
            self.store.put(SENT, str(at), told | {"bytes": blob.size, "digest": blob.digest, "sealed": True})

    def settle(self, at: At, verdict: Verdict) -> bool:
        """Whether the verdict settled a pending update: a counted one becomes the base, others are deleted."""
        pending = self.find(at)
        if pending is None or verdict in ("send", "unknown"):
            return False
        counted, stateful = verdict == "counted", verdict == "counted" and pending.stateful
        local, old = self.local(pending.file), self.base(pending.work)
        if counted:
            point("agent.before-base")
        with self.store.transaction():
            if stateful:
                self.store.put(BASE, f"{self.run}/{pending.work}", Base(at.round, at.task, local.name)._asdict())
            self.store.delete(PENDING, str(at))
            self._verdict(at, verdict)
        if counted:
            point("agent.after-base")
        self.update(pending.file).unlink(missing_ok=True)
        self.words(pending.file).unlink(missing_ok=True)
        if not stateful:
            local.unlink(missing_ok=True)
        elif old is not None and old.file != local.name:
            (self.folder / old.file).unlink(missing_ok=True)
        return True

    def base(self, work: str) -> Base | None:
        body = self.store.get(BASE, f"{self.run}/{work}")
        return None if body is None else Base(**body)

    def bases(self) -> dict[str, Base]:
        """work -> the local state of it that counted last."""
        return {text.partition("/")[2]: Base(**body) for text, body in self.store.items(BASE, f"{self.run}/")}

    def sweep(self) -> None:
        """Deletes files that a crash left and no document names."""
        named = {
            path.name for p in self.pending() for path in (self.update(p.file), self.local(p.file), self.words(p.file))
        }
        named |= {body["file"] for _, body in self.store.items(BASE, f"{self.run}/")}
        for path in self.folder.iterdir():
            if path.name not in named:
                path.unlink()

    def clear(self) -> None:
        """Forgets the run; its folder goes afterwards."""
        with self.store.transaction():
            for pending in self.pending():
                self._verdict(pending.at, "unsettled")  # it may have left; the run ended before its verdict came
            for table in (PENDING, BASE):
                for key, _ in self.store.items(table, f"{self.run}/"):
                    self.store.delete(table, key)

    def _verdict(self, at: At, verdict: str) -> None:
        """Notes what became of an update, in the record that the site keeps of what left it."""
        if told := self.store.get(SENT, str(at)):
            self.store.put(SENT, str(at), told | {"status": verdict})


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
