"""A sealed Task without a network: sites as states on a disk, a server that passes on bytes, hands that change them.
Whatever a site refuses costs that site its place; the sum is checked by whoever drives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from foedus.errors import Refused
from foedus.privacy import masking
from foedus.privacy.masking import Own, Terms, Unsafe, server

STAGES = ("advertise", "share", "mask", "agree", "reveal")
Tamper = Callable[[str, str, bytes], bytes]  # (what, the site that sends or gets it, message) -> message
MODEL, JOB = "ab" * 32, "cd" * 32


def given(names: Sequence[str], **changes: Any) -> Terms:
    facts = {"run": "r1", "round": 3, "task": 0, "attempt": 0, "model": MODEL, "job": JOB} | changes
    return masking.terms(roster=list(names), **facts)


class Rig:
    """`n` sites with `size` words each; `lost`: site -> the stage at which it is gone; `tamper` sees every message."""

    def __init__(
        self, n: int, size: int = 5, lost: Mapping[str, str] | None = None, tamper: Tamper | None = None, **facts: Any
    ) -> None:
        self.names = [f"s{i:03}" for i in range(n)]
        keys = {site: Ed25519PrivateKey.from_private_bytes(bytes([i + 1] * 32)) for i, site in enumerate(self.names)}
        self.publics = {site: key.public_key().public_bytes_raw() for site, key in keys.items()}
        self.own = {site: Own(site, key, self.publics, masking.rest_key(key), least=2) for site, key in keys.items()}
        self.terms = given(self.names, **facts)
        self.lost, self.tamper = dict(lost or {}), tamper or (lambda what, site, message: message)
        rng = np.random.default_rng(n)
        self.plain = {site: rng.integers(0, 2**32, size, dtype=np.uint32) for site in self.names}
        self.states: dict[str, bytes] = {}
        self.refusals: list[Exception] = []
        self.revealed: dict[str, bytes] = {}
        self.adverts: dict[str, bytes] = {}

    def there(self, stage: str) -> list[str]:
        gone = STAGES[: STAGES.index(stage) + 1]
        return [site for site in self.names if self.lost.get(site) not in gone]

    def ask(
        self, stage: str, function: Callable[..., Any], question: Mapping[str, bytes] | None, *more: Any
    ) -> dict[str, Any]:
        """What the sites still there answer, each from the state on its disk; who refuses is lost."""
        answers = {}
        for site in self.there(stage):
            if question is not None and site not in question:
                continue
            told = [] if question is None else [self.tamper(stage, site, question[site])]
            own = self.own[site]
            before = [] if stage == "advertise" else [self.states[site]]
            try:
                made = function(own, self.terms, *before, *told, *(x[site] for x in more))
            except Unsafe as error:
                self.give_up(site, stage, error)
                continue
            self.states[site], answers[site] = made if isinstance(made, tuple) else (made, b"")
        return answers

    def read(
        self, stage: str, function: Callable[..., Any], answers: Mapping[str, bytes], *before: Any
    ) -> dict[str, Any]:
        """What the server makes of the answers; who is refused is lost."""
        found = {}
        for site, message in answers.items():
            try:
                found[site] = function(self.terms, *before, site, self.tamper(f"{stage} answer", site, message))
            except Refused as error:
                self.give_up(site, stage, error)
        return found

    def give_up(self, site: str, stage: str, error: Exception) -> None:
        self.refusals.append(error)
        self.lost[site] = stage

    def to_all(self, message: bytes) -> dict[str, bytes]:
        return dict.fromkeys(self.names, message)

    # the stages, one after another; each may be driven alone

    def advertised(self) -> None:
        self.adverts = self.read(
            "advertise", server.read_advert, self.ask("advertise", masking.advertise, None), self.publics
        )
        self.keys = server.keys(self.terms, self.adverts)

    def shared(self) -> None:
        answers = self.ask("share", masking.share, self.to_all(self.keys))
        self.shares = self.read("share", server.read_shares, answers, self.adverts)
        self.deliveries = server.deliveries(self.terms, self.shares)

    def masked(self) -> None:
        self.words = {site: x.astype("<u4") for site, x in self.plain.items()}
        arrived = self.ask("mask", masking.mask, self.deliveries, self.words)
        self.alive = sorted(arrived)
        self.total: Any = None
        for site in self.alive:
            self.total = server.fold(self.total, self.words[site])
        self.survivors = server.survivors(self.terms, self.alive)

    def agreed(self) -> None:
        answers = self.ask("agree", masking.agree, {site: self.survivors for site in self.alive})
        self.signatures = self.read("agree", server.read_agreement, answers, self.publics, self.survivors)
        self.endorsement = server.endorsement(self.terms, self.signatures)

    def unmasked(self) -> Any:
        answers = self.ask("reveal", masking.reveal, {site: self.endorsement for site in self.alive})
        self.revealed = dict(answers)
        reveals = self.read("reveal", server.read_reveal, answers, self.shares)
        sealed = server.Sealed(self.adverts, self.shares, frozenset(self.alive))
        server.unmask(self.terms, sealed, reveals, self.total)
        return self.total

    def run(self, until: str = "reveal") -> Any:
        steps = (self.advertised, self.shared, self.masked, self.agreed, self.unmasked)
        found = None
        for step in steps[: STAGES.index(until) + 1]:
            found = step()
        return found

    def expected(self) -> Any:
        """The sum of those whose masked words arrived, by Python's whole numbers."""
        columns = zip(*(self.plain[site].tolist() for site in self.alive), strict=True)
        return [sum(column) % 2**32 for column in columns]
