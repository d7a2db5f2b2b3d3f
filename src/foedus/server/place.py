"""The folder of a server: what `federation create` makes and `server start` reads.
Identity and store may come in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from foedus.errors import FoedusError
from foedus.files import write_atomic
from foedus.wire.certificate import self_signed
from foedus.wire.ed25519 import load_key, new_key, public_text, save_key, write_secret
from foedus.wire.identity import Federation, new_federation
from foedus.wire.plain import plain, read

PORT = 8443


class Place(NamedTuple):
    """A server's folder: `federation.json`, `server.key`, `tls.pem`, `tls.key`, `state.db`, `blobs`, `runs`."""

    folder: Path
    federation: Federation
    host: str
    port: int

    @property
    def url(self) -> str:
        return f"sqlite:///{self.folder / 'state.db'}"

    def key(self) -> Ed25519PrivateKey:
        return load_key(self.folder / "server.key")


def create(home: Path, name: str, host: str = "127.0.0.1", port: int = PORT, urls: tuple[str, ...] = ()) -> Place:
    """Makes a federation: the server's folder, and the owner's key in `owner/`, which the server never reads.

    FoedusError if there is one already.
    """
    check_vacant(home)
    folder, owner = home / "server", home / "owner"
    for made in (folder, owner):
        made.mkdir(parents=True, exist_ok=True)
        made.chmod(0o700)
    owner_key, server_key = new_key(), new_key()
    certificate, tls_key = self_signed(sorted({host, "localhost", "127.0.0.1"} - {"0.0.0.0", "::"}))
    federation = new_federation(
        name, urls or (f"https://{host}:{port}",), public_text(owner_key), public_text(server_key), certificate.decode()
    )
    save_key(owner / "owner.key", owner_key)
    save_key(folder / "server.key", server_key)
    write_atomic(folder / "tls.pem", certificate)
    write_secret(folder / "tls.key", tls_key)
    facts = {"federation": plain(federation), "host": host, "port": port}
    for where in (owner, folder):
        write_atomic(where / "federation.json", json.dumps(facts, indent=2).encode())
    return Place(folder, federation, host, port)


def check_vacant(home: Path) -> None:
    """FoedusError where a federation is in this home already."""
    folder = home / "server"
    if (folder / "federation.json").exists():
        raise FoedusError(f"{folder} holds a federation already: choose another --home, or remove it")


def find(home: Path, room: str = "server") -> Place:
    """The federation in this home, as its server (or its owner) keeps it."""
    folder = home / room
    try:
        facts = json.loads((folder / "federation.json").read_bytes())
    except FileNotFoundError:
        raise FoedusError(f"there is no federation in {folder}: `foedus federation create NAME` makes one") from None
    except ValueError as error:
        raise FoedusError(f"{folder / 'federation.json'} is damaged ({error}): restore it from a copy") from None
    return Place(folder, read(Federation, facts["federation"]), facts["host"], facts["port"])
