"""The folder of a site on this machine, and the documents that its agent keeps there durably.
Identity and the store may come in; the agent and the verbs of the command line share it."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from foedus import home
from foedus.errors import FoedusError
from foedus.files import make_folder, write_atomic
from foedus.keys import Key
from foedus.privacy import relays
from foedus.store.sqlite import SqliteStore
from foedus.wire.ed25519 import derived, load_key, new_key, save_key
from foedus.wire.freshness import Life, next_life
from foedus.wire.identity import Federation
from foedus.wire.plain import plain, read

Json = dict[str, Any]
OPEN: Json = {"accepting": True, "why": "", "stop": False, "change": ""}
PATIENCE = 1.0  # seconds for which an agent tries to become the only one


@final
class Place:
    """A site's folder: `key.pem`, `site.db`, `policy.toml`, `agent.log`, `logs/`, `work/RUN/`, `models/RUN/`.

    Documents: what `site join` set up and what the agent must find again after a crash.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / "site.db").exists():
            raise FoedusError(f"there is no site in {folder}: `foedus site join TOKEN` makes one")
        self.folder, self.name = folder, folder.name
        self.store = SqliteStore(folder / "site.db")

    @classmethod
    def make(cls, folder: Path, federation: Federation) -> Self:
        """The folder of a site of this federation, with a key of its own; one that is there already goes on."""
        make_folder(folder)
        folder.chmod(0o700)
        if not (folder / "key.pem").exists():
            save_key(folder / "key.pem", new_key())
        SqliteStore(folder / "site.db").close()
        place = cls(folder)
        known = place.store.get("about", "federation")
        if known is not None and known["id"] != federation.id:
            raise FoedusError(f"{folder} belongs to the federation {known['name']!r}: use another --home, or remove it")
        place.store.put("about", "federation", plain(federation))
        return place

    def key(self) -> Ed25519PrivateKey:
        return load_key(self.folder / "key.pem")

    def federation(self) -> Federation:
        found = self.store.get("about", "federation")
        if found is None:
            raise FoedusError(f"{self.folder} is half made: run `foedus site join TOKEN` again")
        return read(Federation, {**found, "urls": list(found["urls"])})

    def new_life(self) -> Life:
        """The life that starts now, durable."""
        saved = self.store.get("about", "life")
        life = next_life(None if saved is None else read(Life, saved))
        self.store.put("about", "life", plain(life))
        return life

    def confirm(self, life: Life) -> None:
        """Notes that the server has heard of this life."""
        self.store.put("about", "life", plain(life._replace(confirmed=True)))

    # ---- what the owner wants; the verbs write it, a running agent notices within a second ---------------------------
    def wish(self) -> Json:
        return OPEN | (self.store.get("about", "wish") or {})

    def change(self, **wishes: Any) -> None:
        """Changes what the owner wants (`accepting`, `why`, `stop`); without any, has the agent look at its tables."""
        with self.store.transaction():
            self.store.put("about", "wish", self.wish() | (wishes or {"change": secrets.token_hex(8)}))

    # ---- one agent at a time -----------------------------------------------------------------------------------------
    @contextmanager
    def alone(self) -> Iterator[None]:
        """Holds this folder for one agent; FoedusError while another process has it."""
        handle = os.open(self.folder / "agent.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if not _locked(handle, PATIENCE):
                raise FoedusError(
                    f"site {self.name!r}: an agent (process {os.pread(handle, 20, 0).decode()}) is at work in "
                    f"{self.folder}; stop it first, there is one agent a site"
                )
            os.ftruncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
            yield
        finally:
            os.close(handle)

    def agent(self) -> int | None:
        """The pid of the agent at work here, or None."""
        handle = os.open(self.folder / "agent.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if _locked(handle, 0.0):
                return None
            return int(os.pread(handle, 20, 0) or 0)
        finally:
            os.close(handle)

    # ---- what people are shown ---------------------------------------------------------------------------------------
    def show(self, status: Mapping[str, Any]) -> None:
        """Replaces what the agent says of itself."""
        write_atomic(self.folder / "status.json", json.dumps(status).encode(), durable=False)

    def shown(self) -> Json:
        """What the agent at work says of itself; empty without one."""
        try:
            found: Json = json.loads((self.folder / "status.json").read_bytes()) if self.agent() else {}
        except (FileNotFoundError, ValueError):
            return {}
        return found


def find(given: str | os.PathLike[str] | None = None, name: str | None = None) -> Place:
    """The site of that name in this home, or the only one there."""
    sites = home.folder(given) / "sites"
    names = [name] if name else sorted(path.parent.name for path in sites.glob("*/site.db"))
    if len(names) == 1:
        return Place(sites / names[0])
    if names:
        raise FoedusError(f"{sites} holds the sites {', '.join(names)}: choose one with --name")
    raise FoedusError(f"there is no site in {sites}: `foedus site join TOKEN` makes one")


def _locked(handle: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)


def stated(place: Place, run: str) -> str:
    """What this site tells the others of a run of its key for messages, signed with its enrolled key, as hex."""
    own = place.key()
    return relays.stated(run, place.name, Key((derived(own, run),)), own.sign).hex()
