"""The register: who is enrolled, as a hash chain of signed changes that the server appends to and every site can pin.
Changes come in from the server's store or from the wire; each is verified in full before it has an effect.

Who says when an entry ends? Nobody chooses it. A Change carries the second at which the server recorded it, and an
entry ends LIFETIME after its enrolment or last renewal was recorded. A site signs only "my renewal number n": its clock
is never asked, a lost renewal is simply sent again, and each counts once. A server that lies about time wins little:
an enrolment must be recorded before the invitation's owner-signed end, and each further term needs a fresh signature of
the site, recorded at most GRACE after the last term ended. In that time an expired entry may do one thing, renew with
the same key. After it, or once revoked, only a new invitation helps, and a revoked key never comes back.

A site pins (epoch, digest). Going back is then visible as a rollback, and a rewritten past as a fork. Two sites that
were shown different presents find out when they compare pins.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from foedus.errors import Denied
from foedus.wire.identity import (
    Entry,
    Renewal,
    Revocation,
    day,
    verify_entry,
    verify_renewal,
    verify_revocation,
)
from foedus.wire.plain import canonical, plain

DAY = 86_400
LIFETIME = 90 * DAY
GRACE = 90 * DAY
RENEWABLE = 60 * DAY  # not earlier than this before the end, or a site could flood the chain
DUE = 45 * DAY  # when an agent renews; its clock may be two weeks off, and the server finds it neither early nor late


class Pin(NamedTuple):
    """What a site remembers of the register."""

    epoch: int
    digest: str


class Change(NamedTuple):
    """One link of the chain: the digest before it, and what was recorded at Unix second `at`."""

    epoch: int
    previous: str
    at: int
    statement: Entry | Renewal | Revocation


class Member(NamedTuple):
    """An enrolled name: its entry, how often it was renewed, and the Unix second at which it ends."""

    entry: Entry
    renewals: int
    valid_until: int

    def due(self, now: int) -> bool:
        """Whether the agent should renew by now."""
        return now > self.valid_until - DUE


def first_digest(federation: str, owner: str) -> str:
    """The digest of the empty register: the chain of one federation fits no other."""
    return hashlib.sha256(canonical({"register": 1, "federation": federation, "owner": owner})).hexdigest()


def register_digest(change: Change) -> str:
    """The digest after a change; it covers the digest before, so it stands for all of the past."""
    return hashlib.sha256(canonical(plain(change))).hexdigest()


class Register:
    """The fold of the changes so far. One thread applies changes; any may read, and sees each wholly or not at all."""

    def __init__(self, federation: str, owner: str) -> None:
        self._federation, self._owner = federation, owner
        self._digests = [first_digest(federation, owner)]
        self._members: dict[str, Member] = {}
        self._spent: set[str] = set()  # every key of site or token ever taken: none comes back
        self._revoked: dict[str, Revocation] = {}

    @property
    def pin(self) -> Pin:
        """The newest epoch with its digest."""
        digests = self._digests
        return Pin(len(digests) - 1, digests[-1])

    def draft(self, statement: Entry | Renewal | Revocation, now: int) -> Change:
        """The change that records a statement now, to be stored and then applied; Denied where it may not be."""
        self._judge(statement, now)
        return Change(self.pin.epoch + 1, self.pin.digest, now, statement)

    def apply(self, change: Change) -> None:
        """Takes in the next change, or raises Denied and is as it was."""
        self._check_link(change)
        outcome, digest = self._judge(change.statement, change.at), register_digest(change)
        if isinstance(outcome, Revocation):
            self._revoked[outcome.public] = outcome
        else:
            self._spent |= _keys(outcome.entry)
            self._members[outcome.entry.invitation.name] = outcome
        self._digests.append(digest)

    def holds(self, statement: Entry | Renewal | Revocation) -> bool:
        """Whether this very statement is recorded already, so that a retry is answered and not refused."""
        if isinstance(statement, Revocation):
            return self._revoked.get(statement.public) == statement
        name = statement.invitation.name if isinstance(statement, Entry) else statement.name
        member = self._members.get(name)
        if member is None or isinstance(statement, Entry):
            return member is not None and member.entry == statement
        return (member.entry.public, member.renewals) == (statement.public, statement.number)

    def check_extends(self, pinned: Pin) -> None:
        """Denied unless what a site pinned is part of this register's past."""
        if pinned.epoch > self.pin.epoch:
            raise Denied(
                f"the register went back from epoch {pinned.epoch} to {self.pin.epoch} (rollback): its store came "
                "from an old backup, or this is not the server that you joined; ask the federation's owner"
            )
        if self._digests[pinned.epoch] != pinned.digest:
            raise Denied(
                f"the register's past differs at epoch {pinned.epoch} (fork): it was rewritten, or this is not the "
                "server that you joined; ask the federation's owner"
            )

    def roster(self, now: int, role: str = "site") -> list[str]:
        """The names of a role that are neither revoked nor expired at Unix second `now`, sorted."""
        return sorted(name for name, member in self._members.copy().items() if self._counts(member, now, role))

    def admit(self, name: str, now: int, *, renewing: bool = False) -> Member:
        """The member of this name if it may act now; Denied with the reason and the remedy otherwise."""
        member = self._known(name)
        if now > member.valid_until + (GRACE if renewing else 0):
            late = now > member.valid_until + GRACE
            remedy = "ask the owner for a new invitation" if late else "it can still renew with the same key"
            raise Denied(f"the entry of {name!r} expired on {day(member.valid_until)}; {remedy}")
        return member

    def _counts(self, member: Member, now: int, role: str) -> bool:
        return member.entry.invitation.role == role and now <= member.valid_until and not self._revocation(member)

    def _known(self, name: str) -> Member:
        member = self._members.get(name)
        if member is None:
            raise Denied(f"{name!r} is not in the register; ask the federation's owner for an invitation")
        if revocation := self._revocation(member):
            raise Denied(
                f"the entry of {name!r} was revoked on {day(revocation.at)} ({revocation.reason}); "
                "ask the federation's owner for a new invitation"
            )
        return member

    def _revocation(self, member: Member) -> Revocation | None:
        return self._revoked.get(member.entry.public) or self._revoked.get(member.entry.invitation.token)

    def _check_link(self, change: Change) -> None:
        if change.epoch != self.pin.epoch + 1 or change.previous != self.pin.digest:
            raise Denied(
                f"the register's change {change.epoch} does not follow epoch {self.pin.epoch}: one is missing, or the "
                "past was rewritten (fork); ask the federation's owner"
            )

    def _judge(self, statement: Entry | Renewal | Revocation, at: int) -> Member | Revocation:
        """What the register would hold after this statement; Denied where it must not be recorded."""
        match statement:
            case Entry():
                return self._enrolled(statement, at)
            case Renewal():
                return self._renewed(statement, at)
            case Revocation():
                return self._withdrawn(statement)

    def _enrolled(self, entry: Entry, at: int) -> Member:
        verify_entry(entry, self._federation, self._owner, at)
        name = entry.invitation.name
        if not (_keys(entry).isdisjoint(self._spent) and _keys(entry).isdisjoint(self._revoked)):
            raise Denied(
                f"enrolling {name!r}: this token or key was used or revoked before; ask the owner for a new "
                "invitation and join with a new key"
            )
        holder = self._members.get(name)
        if holder is not None and not self._revocation(holder):
            raise Denied(f"enrolling {name!r}: the name is taken; the owner must revoke the key that has it first")
        return Member(entry, 0, at + LIFETIME)

    def _renewed(self, renewal: Renewal, at: int) -> Member:
        member = self.admit(renewal.name, at, renewing=True)
        verify_renewal(renewal, self._federation, member.entry.public)
        if renewal.number != member.renewals + 1 or at < member.valid_until - RENEWABLE:
            raise Denied(
                f"renewal {renewal.number} of {renewal.name!r} is not due: {member.renewals} recorded, the entry ends "
                f"on {day(member.valid_until)} and renews in its last {RENEWABLE // DAY} days"
            )
        return Member(member.entry, renewal.number, at + LIFETIME)

    def _withdrawn(self, revocation: Revocation) -> Revocation:
        verify_revocation(revocation, self._federation, self._owner)
        if revocation.public in self._revoked:
            raise Denied(f"this key of {revocation.name!r} is revoked already; there is nothing to do")
        for name, member in self._members.items():
            if revocation.public in _keys(member.entry) and name != revocation.name:
                raise Denied(f"revoking {revocation.name!r}: this key belongs to {name!r}; name that one")
        return revocation


def _keys(entry: Entry) -> set[str]:
    return {entry.public, entry.invitation.token}
