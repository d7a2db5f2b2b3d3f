"""A submitter's identity in a home's `submitter/`: the name, the key and the federation they belong to.
Identity comes in; whoever holds the folder may submit."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from foedus.errors import Denied, FoedusError
from foedus.files import write_atomic
from foedus.wire.ed25519 import load_key, new_key, save_key
from foedus.wire.identity import Federation, Renewal, renew
from foedus.wire.link import Member
from foedus.wire.plain import plain, read
from foedus.wire.register import DUE, LIFETIME


def key(home: Path) -> Ed25519PrivateKey:
    """The key of who is about to log in from this home, durable; an attempt that was cut off left it for the next.

    Denied where somebody has logged in already.
    """
    folder = home / "submitter"
    if (folder / "identity.json").exists():
        who = load(home)
        raise Denied(f"{who.name!r} of {who.federation.name!r} has logged in from {home}: choose another --home")
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    if not (folder / "key.pem").exists():
        save_key(folder / "key.pem", new_key())
    return load_key(folder / "key.pem")


def save(home: Path, name: str, federation: Federation, renewals: int = 0) -> None:
    """Notes whose `key` it is that was enrolled or renewed just now."""
    facts = {"name": name, "federation": plain(federation), "renewals": renewals, "due": time.time() + LIFETIME - DUE}
    write_atomic(home / "submitter" / "identity.json", json.dumps(facts, indent=2).encode())


def load(home: Path) -> Member:
    """The submitter who logged in from this home."""
    facts = _facts(home)
    return Member(read(Federation, facts["federation"]), facts["name"], load_key(home / "submitter" / "key.pem"))


def due(home: Path) -> Renewal | None:
    """The renewal of this submitter's register entry, if it is time for it."""
    facts, who = _facts(home), load(home)
    if time.time() < facts["due"]:
        return None
    return renew(who.key, who.federation.id, who.name, facts["renewals"] + 1)


def _facts(home: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((home / "submitter" / "identity.json").read_bytes())
    except FileNotFoundError:
        raise FoedusError(f"nobody has logged in from {home}: `foedus login TOKEN`, or name the right --home") from None
    return found
