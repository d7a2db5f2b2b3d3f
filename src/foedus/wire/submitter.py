"""A submitter's identity in a home's `submitter/`: the name, the key and the federation they belong to.
Identity comes in; whoever holds the folder may submit."""

from __future__ import annotations

import json
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from foedus.errors import FoedusError
from foedus.files import write_atomic
from foedus.wire.ed25519 import load_key, save_key
from foedus.wire.identity import Federation
from foedus.wire.link import Member
from foedus.wire.plain import plain, read


def save(home: Path, name: str, key: Ed25519PrivateKey, federation: Federation) -> None:
    """Keeps a submitter's identity; a key that is there already is never overwritten."""
    folder = home / "submitter"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    save_key(folder / "key.pem", key)
    facts = {"name": name, "federation": plain(federation)}
    write_atomic(folder / "identity.json", json.dumps(facts, indent=2).encode())


def load(home: Path) -> Member:
    """The submitter who logged in from this home."""
    folder = home / "submitter"
    try:
        facts = json.loads((folder / "identity.json").read_bytes())
    except FileNotFoundError:
        raise FoedusError(f"nobody has logged in from {home}: `foedus login TOKEN`, or name the right --home") from None
    return Member(read(Federation, facts["federation"]), facts["name"], load_key(folder / "key.pem"))
