"""Freshness without clocks: nonces with counters against replay, and lives against a cloned agent.
What comes in has a verified signature (`signing.verify_request`); nothing else may touch the book."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import threading
from dataclasses import dataclass, field
from typing import NamedTuple

from foedus.errors import Denied


class UnknownNonce(Denied):
    """The server no longer knows, or never gave, this nonce (it restarted, say): ask for a new one and sign again."""


@dataclass
class _Book:
    floor: int = 0  # nonces up to this serial are closed unless they are in `counters`
    counters: dict[int, int] = field(default_factory=dict)


class Nonces:
    """The server's book, in memory: which counter each nonce of each key has reached. Safe for threads.

    A nonce is a serial number with a MAC under a secret of this process. So issuing stores nothing (strangers cannot
    fill the book or push others out of it), and no nonce outlives the process. A site uses one nonce per connection, as
    counters must arrive in order; of those in use the `open_per_key` newest stay open, older ones close for good.
    """

    def __init__(self, open_per_key: int = 64) -> None:
        self._secret = secrets.token_bytes(32)
        self._limit = open_per_key
        self._issued = 0
        self._books: dict[str, _Book] = {}
        self._lock = threading.Lock()

    def issue(self, keyid: str) -> str:
        """A fresh nonce for this key id, 32 URL-safe characters."""
        with self._lock:
            self._issued += 1
            return self._nonce(keyid, self._issued.to_bytes(8))

    def accept(self, keyid: str, nonce: str, counter: int) -> None:
        """Denied unless the counter, from 1, is above all before it on this nonce; UnknownNonce asks for a new one."""
        serial = self._serial(keyid, nonce)
        with self._lock:
            book = self._books.setdefault(keyid, _Book())
            last = book.counters.get(serial, 0 if serial > book.floor else None)
            if last is None:
                raise _unknown(keyid)
            if counter <= last:
                raise Denied(f"request of {keyid!r}: counter {counter} was used (replay); count on from {last}")
            book.counters[serial] = counter
            if len(book.counters) > self._limit:
                book.floor = min(book.counters)
                del book.counters[book.floor]

    def close(self, keyid: str) -> None:
        """Closes every nonce issued so far to this key id: at a new life of the agent, or at its revocation."""
        with self._lock:
            self._books[keyid] = _Book(self._issued)

    def _nonce(self, keyid: str, serial: bytes) -> str:
        tag = hmac.new(self._secret, serial + keyid.encode(), hashlib.sha256).digest()[:16]
        return base64.urlsafe_b64encode(serial + tag).decode()

    def _serial(self, keyid: str, nonce: str) -> int:
        try:
            serial = base64.urlsafe_b64decode(nonce)[:8]
        except ValueError:
            raise _unknown(keyid) from None
        if not hmac.compare_digest(self._nonce(keyid, serial).encode(), nonce.encode()):
            raise _unknown(keyid)
        return int.from_bytes(serial)


def _unknown(keyid: str) -> UnknownNonce:
    return UnknownNonce(f"request of {keyid!r}: the server does not know this nonce; ask for a new one and sign again")


class Life(NamedTuple):
    """One life of an agent, from start to end: its number from 1, a random session, and the session it follows.

    The agent keeps it durably; `confirmed` once the server has answered.
    """

    number: int
    session: str
    previous: str
    confirmed: bool = False


def next_life(saved: Life | None) -> Life:
    """The life to save, fsync and present at an agent's start.

    A life that the server never confirmed is presented again: whether its message arrived or its answer was lost, the
    server then sees one life, and no false alarm.
    """
    if saved is None:
        return Life(1, secrets.token_hex(16), "")
    return Life(saved.number + 1, secrets.token_hex(16), saved.session) if saved.confirmed else saved


def check_life(name: str, stored: Life | None, presented: Life) -> Life:
    """What the server stores from now on; Denied unless the presented life is the stored one or follows it.

    Two agents that share a key also share the past up to the copy; the one that starts first goes on, and the other can
    never name the session that it missed. (A key that was moved on purpose thus works, and its old home is refused.)
    """
    if stored is not None and stored.session not in (presented.session, presented.previous):
        raise _cloned(name, presented.number, stored.number)
    return presented


def check_alive(name: str, stored: Life | None, number: int) -> None:
    """Denied unless a request carries the number of the life that the server stored last."""
    if stored is None:
        raise Denied(f"site {name!r} has not told this server of its start; restart its agent")
    if number != stored.number:
        raise _cloned(name, number, stored.number)


def _cloned(name: str, number: int, stored: int) -> Denied:
    return Denied(
        f"another agent uses the key of site {name!r}: this one is in life {number}, the server knows life {stored}. "
        "Stop the copy; if there is none (the agent's state came from an old backup), the owner revokes the key and "
        "invites the site again"
    )
