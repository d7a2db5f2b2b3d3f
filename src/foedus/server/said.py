"""What a site says in a signed envelope or a heartbeat of one of its Tasks, its place read field by field.
Plain JSON comes in; what an update says of its arrays is looked at later (`checking`), and may be refused then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foedus.errors import WireError
from foedus.server.sealing import HEARD
from foedus.store.blobs import DIGEST
from foedus.wire.ed25519 import unbase64

MOST = 1 << 53
Body = dict[str, Any]


def place(body: Mapping[str, Any]) -> Body:
    """The same body, if it names a Task's attempt: run, round, task, attempt. Raises WireError."""
    run, numbers = body.get("run"), [body.get(name) for name in ("round", "task", "attempt")]
    if type(run) is not str or not all(type(n) is int and 0 <= n < MOST for n in numbers):
        raise WireError("a Task is named by its run (text) and by round, task and attempt (whole numbers)")
    return dict(body)


def sealing(body: Mapping[str, Any]) -> tuple[str, bytes]:
    """(kind, message) of what a site says in a sealed Task. Raises WireError."""
    kind, data = body.get("kind"), body.get("data")
    if kind not in HEARD or type(data) is not str:
        raise WireError(f"a message of a sealed Task is one of {', '.join(HEARD)}, with its data")
    return kind, unbase64(data)


def ahead(body: Mapping[str, Any]) -> bytes | None:
    """The keys for the next round that come with the last message of a sealed Task, if they do. Raises WireError."""
    data = body.get("ahead")
    if data is not None and type(data) is not str:
        raise WireError("keys for the next round are text")
    return None if data is None else unbase64(data)


def update(body: Mapping[str, Any]) -> Body:
    """The same body, if it names a Task's attempt and the bytes that were uploaded. Raises WireError."""
    if type(body.get("digest")) is not str or not DIGEST.fullmatch(body["digest"]):
        raise WireError("an update's digest is 64 hexadecimal digits")
    return place(body)
