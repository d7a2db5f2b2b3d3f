"""Who is enrolled, who is here, and whether a request is theirs: the register, lives, nonces and presence.
The store and identity may come in; nothing here knows of runs."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from foedus.errors import Denied
from foedus.store import Store
from foedus.store.lease import this_process
from foedus.wire.ed25519 import unbase64
from foedus.wire.freshness import Life, Nonces, check_alive, check_life
from foedus.wire.identity import Entry, Federation, Renewal, Revocation
from foedus.wire.plain import plain, read
from foedus.wire.register import Change, Member, Pin, Register
from foedus.wire.signing import Claim, Target, verify_request

REGISTER = "register"
LEASE = 10 * 365 * 86_400.0


class Members:
    """The register in the store, and what this process knows of each member's presence. Safe for threads."""

    def __init__(self, store: Store, federation: Federation) -> None:
        self.store, self.federation = store, federation
        self.epoch = store.acquire(REGISTER, this_process(), LEASE)
        self.register = Register(federation.id, federation.owner)
        self.changes: list[dict[str, Any]] = [row.body for row in store.rows(REGISTER)]
        for body in self.changes:
            self.register.apply(read(Change, body))
        self.nonces, self.seen, self.lives = Nonces(), dict[str, float](), dict[str, Life]()
        self.lock, self.polls, self.began = threading.Lock(), Counter[str](), time.monotonic()

    def add(self, statement: Entry | Renewal | Revocation) -> None:
        """Records a statement that may be recorded; one that is recorded already is fine. Denied otherwise."""
        with self.lock:
            if self.register.holds(statement):
                return
            change = self.register.draft(statement, int(time.time()))
            body = plain(change)
            self.store.append(REGISTER, [("change", body)], self.epoch)
            self.register.apply(change)
            self.changes.append(body)

    def since(self, pinned: Pin | None) -> list[dict[str, Any]]:
        """The changes after `pinned`, which must be part of this register's past."""
        if pinned is not None:
            self.register.check_extends(pinned)
        return self.changes[pinned.epoch if pinned else 0 :]

    def authenticate(
        self, target: Target, headers: Any, life: bool = True, renewing: bool = False
    ) -> tuple[Claim, Member]:
        """Whose request this is. Denied for a bad signature, a replay, an expired or revoked entry, or a clone."""
        now = int(time.time())
        admit = partial(self.register.admit, now=now, renewing=renewing)
        claim = verify_request(lambda name: admit(name).entry.public, self.federation.id, target, headers)
        self.nonces.accept(claim.keyid, claim.nonce, claim.counter)
        member = admit(claim.keyid)
        if life and member.entry.invitation.role == "site":
            check_alive(claim.keyid, self.life(claim.keyid), claim.life)
        self.seen[claim.keyid] = time.monotonic()
        return claim, member

    def hello(self, name: str, presented: Life, claimed: int) -> None:
        """Takes in a new life of a site's agent; Denied if another agent uses the key."""
        if presented.number != claimed:
            raise Denied(
                f"site {name!r} presents life {presented.number} and signs in life {claimed}; start its agent again"
            )
        with self.lock:
            known = self.life(name)
            life = check_life(name, known, presented)
            if known is None or known.session != life.session:
                self.store.put("life", name, plain(life))
                self.nonces.close(name)
        self.lives[name] = life

    def life(self, name: str) -> Life | None:
        if name not in self.lives and (found := self.store.get("life", name)) is not None:
            self.lives[name] = read(Life, found)
        return self.lives.get(name)

    def sites(self) -> list[str]:
        """The unrevoked, unexpired sites, sorted."""
        return self.register.roster(int(time.time()))

    def publics(self) -> dict[str, bytes]:
        """name -> the raw public key of every site."""
        now = int(time.time())
        return {name: unbase64(self.register.admit(name, now).entry.public) for name in self.sites()}

    def role(self, name: str) -> str:
        return self.register.admit(name, int(time.time())).entry.invitation.role

    def accepting(self, name: str) -> bool:
        """Whether the site takes part at present: it has not left or paused."""
        found = self.store.get("accepting", name)
        return found is None or bool(found["accepting"])

    @contextmanager
    def polling(self, name: str) -> Iterator[None]:
        """While a site's poll is open, the site is there."""
        with self.lock:
            self.polls[name] += 1
        try:
            yield
        finally:
            with self.lock:
                self.polls[name] -= 1
            self.seen[name] = time.monotonic()

    def away(self, name: str) -> float:
        """Seconds for which nothing was heard of a site, since this process began at most; 0 while it polls."""
        return 0.0 if self.polls[name] else time.monotonic() - max(self.seen.get(name, 0.0), self.began)
