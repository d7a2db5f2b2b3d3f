"""What a federation's owner does with the owner's key: create, invite, revoke. The server holds only its public half.
Identity comes in; the store only when a federation is made."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal

from foedus.errors import FoedusError
from foedus.server.place import Place, check_vacant, create, find
from foedus.wire import submitter
from foedus.wire.ed25519 import load_key
from foedus.wire.identity import Revocation, enrol, invite, read_token, signed
from foedus.wire.link import Link, publish
from foedus.wire.plain import plain

WEEK = 7 * 86_400
OWNER = "owner"


def found(home: Path, name: str, host: str, port: int, urls: tuple[str, ...]) -> Place:
    """A new federation, whose owner is its first submitter."""
    from foedus.server.members import REGISTER, Members
    from foedus.store.sql import SqlStore

    check_vacant(home)
    key = submitter.key(home)  # first: where somebody has logged in from here, nothing is made
    place = create(home, name, host, port, urls)
    store = SqlStore(place.url)
    members = Members(store, place.federation)
    token = read_token(_invitation(home, OWNER, "submitter", WEEK))
    members.add(enrol(token, key))
    store.release(REGISTER, members.epoch)
    store.close()
    submitter.save(home, OWNER, place.federation)
    return place


def invitations(
    home: Path, names: Sequence[str], role: Literal["site", "submitter"] = "site", seconds: int = WEEK
) -> dict[str, str]:
    """name -> one-time token, made offline with the owner's key."""
    return {name: _invitation(home, name, role, seconds) for name in names}


def _invitation(home: Path, name: str, role: Literal["site", "submitter"], seconds: int) -> str:
    place = find(home, "owner")
    return invite(
        load_key(home / "owner" / "owner.key"), place.federation, name, role, expires=int(time.time()) + seconds
    )


def revoke(home: Path, name: str, reason: str) -> None:
    """Revokes a site's key at the running server, which cuts its connections."""
    place = find(home, "owner")
    with closing(Link(submitter.load(home))) as link:
        changes = link.call("POST", "/v1/hello", {})["register"]["changes"]
    entries = [c["statement"] for c in changes if c["statement"].get("invitation", {}).get("name") == name]
    if not entries:
        raise FoedusError(f"there is no {name!r} in the register: `foedus sites` lists them")
    blank = Revocation(place.federation.id, name, entries[-1]["public"], int(time.time()), reason)
    statement = signed(load_key(home / "owner" / "owner.key"), blank)
    publish(place.federation, "/v1/revoke", {"revocation": plain(statement)})
