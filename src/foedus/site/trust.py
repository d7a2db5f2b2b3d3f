"""The register as this site has pinned it, and whose code its owner lets in.
Changes come in from the server and are verified; a register that went back or was rewritten is refused."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple, final

from foedus.errors import Denied
from foedus.site.policy import Policy
from foedus.store import Store
from foedus.wire.ed25519 import fingerprint, unbase64
from foedus.wire.identity import Federation
from foedus.wire.plain import plain, read
from foedus.wire.register import Change, Member, Pin, Register

CHANGES, TRUSTED, APPROVED, REFUSED = "register", "trusted", "approved", "refused"
SHOWN = 12  # digits of a bundle's hash that people type


class Code(NamedTuple):
    """Whose code it is: the bundle's SHA-256, the submitter's name and the key that signed the submission."""

    bundle: str
    submitter: str
    public: str


@final
class Roll:
    """The pinned register. One thread extends it; any may read."""

    def __init__(self, store: Store, federation: Federation) -> None:
        self.store, self.register = store, Register(federation.id, federation.owner)
        for _, body in store.items(CHANGES):
            self.register.apply(read(Change, body))

    @property
    def pin(self) -> Pin:
        return self.register.pin

    def extend(self, told: Mapping[str, Any]) -> None:
        """Takes in the changes since the pin. Raises Denied unless they end in the epoch and digest that were told."""
        with self.store.transaction():
            for body in told["changes"]:
                change = read(Change, {name: body.get(name) for name in Change._fields})
                self.register.apply(change)
                self.store.put(CHANGES, f"{change.epoch:012}", plain(change))
        if self.pin != Pin(told["epoch"], told["digest"]):
            raise Denied("the server's register is not the end of the changes that it sent; ask the federation's owner")

    def member(self, name: str) -> Member | None:
        """The unrevoked member of this name, expired or not; None where the pinned register has none."""
        try:
            return self.register.admit(name, now=0)
        except Denied:
            return None

    def publics(self) -> dict[str, bytes]:
        """name -> the raw public key of every site in the pinned register."""
        names = self.register.roster(int(time.time()))
        return {name: unbase64(self.register.admit(name, now=0).entry.public) for name in names}

    def submitter(self, public: str) -> str:
        """The name of the submitter with this key. Raises Denied for anybody else."""
        now = int(time.time())
        for name in self.register.roster(now, "submitter"):
            if self.register.admit(name, now).entry.public == public:
                return name
        raise Denied(f"the key {public} belongs to no submitter of this federation; its owner can invite one")


def consent(store: Store, policy: Policy, code: Code, privacy: str) -> str:
    """ "" if the site's owner lets this code run here, else why not and the remedy.

    Trust in a submitter is none in a job without protection: such a one is let in by hand, or by the policy's word.
    """
    if store.get(REFUSED, code.bundle):
        return f"the site's owner refused this code: foedus site approve {code.bundle[:SHOWN]} would take that back"
    if code.bundle in policy.approved or store.get(APPROVED, code.bundle):
        return ""
    if code.submitter in policy.trust:
        store.add(TRUSTED, code.submitter, {"public": code.public})
        known = (store.get(TRUSTED, code.submitter) or {}).get("public")
        if known == code.public and (privacy != "none" or policy.privacy):  # what that demands is another matter
            return ""
        if known == code.public:
            return (
                f"its privacy is 'none', and trust in {code.submitter!r} does not cover that: waiting for approval: "
                f'foedus site approve {code.bundle[:SHOWN]} (or privacy = "none" in policy.toml, for all such jobs)'
            )
        return (
            f"{code.submitter!r} is trusted with another key ({fingerprint(str(known))}) than the one that signed "
            f"({fingerprint(code.public)}): waiting for approval: foedus site approve {code.bundle[:SHOWN]}"
        )
    return f"waiting for approval: foedus site approve {code.bundle[:SHOWN]}"


def approve(store: Store, bundle: str) -> None:
    """Notes that this code may run here."""
    with store.transaction():
        store.delete(REFUSED, bundle)
        store.put(APPROVED, bundle, {"at": int(time.time())})


def refuse(store: Store, bundle: str) -> None:
    """Notes that this code may not run here, whoever signed it."""
    with store.transaction():
        store.delete(APPROVED, bundle)
        store.put(REFUSED, bundle, {"at": int(time.time())})
