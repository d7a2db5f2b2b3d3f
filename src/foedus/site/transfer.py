"""Bytes between a site and its server, in both directions resumable: what arrived once is not sent again.
A line, a path and a digest come in; a file that is not what was announced is deleted."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from threading import Event
from typing import final

from foedus.errors import WireError
from foedus.faults import point
from foedus.site.orders import Activity, At, Blob
from foedus.wire.link import MOST_BYTES, Answered, Link, Stopped

TRIES = 3  # for bytes that arrive damaged
SHOWN_AT = 0.6  # the share of a body after which the fault point lies
GONE, NO_MORE, ELSEWHERE = 410, 416, (400, 409)


def fetch(line: Link, run: str, blob: Blob, into: Path, activity: Activity | None, gone: Event) -> Path:
    """The blob as the file `into`, whose bytes have its digest. Raises WireError, Answered or Stopped."""
    for _ in range(TRIES):
        incoming = _Incoming(into.with_name(f"{blob.digest}.part"), activity)
        line.patient(lambda: incoming.more(line, run, blob), gone)  # noqa: B023
        if incoming.sha.hexdigest() == blob.digest:
            os.replace(incoming.path, into)
            return into
        incoming.path.unlink()
    raise WireError(f"blob {blob.digest[:12]} of run {run}: {TRIES} times other bytes came than were announced")


def holds(path: Path, blob: Blob) -> bool:
    """Whether the file is there and is this blob."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == blob.digest


@final
class _Incoming:
    """A file that grows over any number of connections, and the hash of what it holds."""

    def __init__(self, path: Path, activity: Activity | None) -> None:
        self.path, self.activity = path, activity
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            file.seek(0)
            self.sha = hashlib.file_digest(file, "sha256")
            self.offset = file.tell()

    def more(self, line: Link, run: str, blob: Blob) -> None:
        """Takes what is missing; a blob of unknown size is whole when the server has no more of it."""
        if blob.size == self.offset:
            return
        limit = MOST_BYTES if blob.size < 0 else blob.size - self.offset
        try:
            line.download(f"/v1/blobs/{blob.digest}", f"run={run}", self.path, limit, self.offset, self._took)
        except Answered as error:
            if error.status != NO_MORE:
                raise

    def _took(self, piece: memoryview) -> None:
        self.sha.update(piece)
        self.offset += len(piece)
        if self.activity is not None:
            self.activity.advance()


def upload(line: Link, at: At, path: Path, blob: Blob, activity: Activity, fresh: bool) -> bool:
    """Whether the server has all bytes of the update now, durably; False if it does not want them any more.

    `fresh`: none were ever sent, so that the first attempt need not ask where to go on. Raises Answered or Stopped.
    """
    outgoing = _Outgoing(line, at, path, blob, activity, 0 if fresh else None)
    for last in (False, False, True):
        try:
            line.patient(outgoing.rest, activity.gone)
            return True
        except Answered as error:
            if error.status == GONE:
                return False
            if error.status not in ELSEWHERE or last:
                raise
    return False


@final
class _Outgoing:
    def __init__(self, line: Link, at: At, path: Path, blob: Blob, activity: Activity, offset: int | None) -> None:
        self.line, self.url, self.path, self.blob = line, f"/v1/uploads/{at}", path, blob
        self.activity, self.offset = activity, offset
        self.sent, self.length = 0, 0

    def rest(self) -> None:
        """Sends what the server does not have; whatever happens, the next attempt asks it again."""
        offset = self.offset if self.offset is not None else int(self.line.call("GET", self.url)["offset"])
        self.offset = None
        self.sent, self.length = 0, self.blob.size - offset
        self.line.upload(self.url, self.path, offset, self.blob.digest, self._told)

    def _told(self, count: int) -> None:
        before, self.sent = self.sent, self.sent + count
        self.activity.advance()
        if self.activity.gone.is_set():
            raise Stopped("nobody waits for this update any more")
        if before < SHOWN_AT * self.length <= self.sent:
            point("agent.mid-upload")
