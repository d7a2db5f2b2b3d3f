"""One attempt at a sealed Task at the server: it passes on what sites sign and encrypt, and journals before it asks.
Messages of sites come in by requests; what each step needs is in a file that the journal names: a restart goes on."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from foedus.errors import FoedusError
from foedus.faults import point
from foedus.files import write_atomic
from foedus.journal import Journal
from foedus.privacy.masking import Terms, figures, server, terms
from foedus.privacy.masking.terms import holders
from foedus.privacy.masking.words import LIMBS
from foedus.server.tasks import Open

STAGES = ("keys", "shares", "survivors", "endorsement", "reveals")
HEARD = {"advertisement": "keys", "shares": "shares", "masked": "survivors", "agreement": "endorsement", "reveal": ""}
Body = dict[str, Any]


class Out(FoedusError):
    """This site is no part of the sum (any more)."""


class Sealing:
    """What was said so far; `publics` are the raw keys of the register. Whoever calls holds the news."""

    def __init__(
        self,
        run: str,
        facts: Mapping[str, Any],
        task: Open,
        folder: Path,
        journal: Journal,
        publics: Mapping[str, bytes],
    ) -> None:
        self.run, self.facts, self.task, self.folder, self.journal = run, facts, task, folder, journal
        self.publics, self.attempt = publics, task.desk.attempt
        self.said: dict[str, dict[str, bytes]] = {kind: {} for kind in HEARD}
        self.layouts: dict[str, figures.Layout] = {}
        self.kept: dict[str, Any] = {}
        self.moved, self.since = True, time.monotonic()
        for stage in STAGES:
            row = journal.find(f"seal-{stage}", task.round, task.number, "", self.attempt)
            if row is not None:
                self.kept[stage] = read(folder / row["file"], row["digest"])

    @property
    def needed(self) -> int:
        threshold: int = self.task.body["seal"][0]
        return threshold

    @property
    def layout(self) -> figures.Layout:
        return figures.read_layout(self.kept["keys"]["figures"]) if "keys" in self.kept else ()

    @property
    def terms(self) -> Terms:
        body, (threshold, *ring) = self.task.body, self.task.body["seal"]
        job = figures.about(self.facts["bundle"], self.facts["seed"], body["work"], ring, body["returns"], self.layout)
        at = self.run, self.task.round, self.task.number, self.attempt
        return terms(*at, sorted(body["asked"]), body["payload"]["digest"], job, threshold)

    @property
    def words(self) -> int:
        """How many words an update has."""
        numbers: int = sum(math.prod(leaf[1]) for leaf in self.task.body["returns"])
        return numbers + LIMBS + figures.size(self.layout)

    # ---- what a site says, and what it hears ---------------------------------------------------------------------
    def hear(self, site: str, kind: str, message: bytes, announced: Any) -> None:
        """Takes in a message. Raises Refused for one that is not what it should be, Out where it is too late."""
        self._check_place(site, kind)
        if HEARD[kind] in self.kept or kind == "masked":
            return
        match kind:
            case "advertisement":
                layout = figures.read_layout(announced)
                server.read_advert(self.terms, self.publics, site, message)
                self.layouts[site] = layout
            case "shares":
                server.read_shares(self.terms, self.adverts, site, message)
            case "agreement":
                server.read_agreement(self.terms, self.publics, self.message("survivors"), site, message)
            case "reveal":
                server.read_reveal(self.terms, self.shares, site, message)
        self.said[kind][site] = message
        self.moved = True

    def reply(self, site: str, kind: str) -> Body | None:
        """What the site hears after that message, once it is known. Raises Out."""
        stage = HEARD[kind]
        if not stage:
            return {"kind": "done", "data": b""}
        if stage not in self.kept:
            return None
        self._check_place(site, kind)
        match stage:
            case "keys":
                data = server.keys(self.terms, self.adverts)
                return {"kind": "keys", "data": data, "figures": self.kept["keys"]["figures"]}
            case "shares":
                return {"kind": "delivery", "data": self.deliveries[site]}
        return {"kind": stage, "data": self.message(stage)}

    def awaits(self, site: str) -> bool:
        """Whether this site, whose words were accepted, has still something to say."""
        return "reveals" not in self.kept and site not in self.said["reveal"]

    def _check_place(self, site: str, kind: str) -> None:
        """Raises Out for a site that is not among those who were asked for this."""
        before = {"advertisement": None, "shares": "keys", "masked": "shares"}.get(kind, "survivors")
        asked = self.task.body["asked"] if before is None else self._part(before)
        after = self._part(HEARD[kind]) if HEARD[kind] in ("keys", "shares", "survivors") else None
        if site not in asked or (after and site not in after):
            raise Out(f"{site!r} is no part of this sealed Task any more")

    def _part(self, stage: str) -> Sequence[str]:
        """Who is in what was kept of a stage."""
        found = self.kept.get(stage)
        if found is None:
            return ()
        return list(found["adverts"] if stage == "keys" else found["alive"] if stage == "survivors" else found)

    @cached_property
    def adverts(self) -> dict[str, bytes]:
        given, texts = self.terms, self.kept["keys"]["adverts"]
        return {s: server.read_advert(given, self.publics, s, bytes.fromhex(text)) for s, text in texts.items()}

    @cached_property
    def shares(self) -> dict[str, server.Shares]:
        given, adverts = self.terms, self.adverts
        return {s: server.read_shares(given, adverts, s, bytes.fromhex(x)) for s, x in self.kept["shares"].items()}

    @cached_property
    def deliveries(self) -> dict[str, bytes]:
        return server.deliveries(self.terms, self.shares)

    def message(self, stage: str) -> bytes:
        return bytes.fromhex(self.kept[stage]["message"])

    # ---- how it goes on, by the run's conductor ------------------------------------------------------------------
    def gather(self) -> dict[str, str]:
        """Closes the stages before the words as far as everybody has spoken who is still waited for.

        site -> why it is left out, for those who are not in what was closed; all of them if too few are left.
        """
        self.moved = False
        left: dict[str, str] = {}
        for stage, kind in (("keys", "advertisement"), ("shares", "shares")):
            waiting = [site for site in self.task.desk.waiting() if site not in left]
            if stage in self.kept or "survivors" in self.kept:
                continue
            asked = waiting if stage == "keys" else [site for site in waiting if site in self._part("keys")]
            there = {site: self.said[kind][site] for site in asked if site in self.said[kind]}
            if len(there) < len(asked) and not (stage == "keys" and self._enough(len(there))):
                break
            if len(there) < self.needed:
                return left | dict.fromkeys(waiting, f"only {len(there)} of {self.needed} sites were there to seal")
            left |= {site: "the sealed Task went on without it" for site in waiting if site not in there}
            self._close(stage, there)
        return left

    def _enough(self, count: int) -> bool:
        quorum = self.task.desk.rule.quorum
        return quorum is not None and count >= max(quorum, self.needed)

    def _close(self, stage: str, there: Mapping[str, bytes]) -> None:
        texts = {site: message.hex() for site, message in there.items()}
        if stage == "shares":
            self._keep(stage, texts)
            return
        layout = figures.merged([self.layouts[site] for site in there])
        self._keep(stage, {"adverts": texts, "figures": [list(figure) for figure in layout]})

    def settle(self, alive: Sequence[str]) -> bool:
        """Whether the masks can be taken off the sum of these sites: asks them to sign, then to reveal."""
        self.moved = False
        if "survivors" not in self.kept:
            self._keep("survivors", {"alive": list(alive), "message": server.survivors(self.terms, alive).hex()})
            self.since = time.monotonic()
        if "endorsement" not in self.kept and len(self.said["agreement"]) >= self.needed:
            survivors = self.message("survivors")
            signed = {
                site: server.read_agreement(self.terms, self.publics, survivors, site, message)
                for site, message in self.said["agreement"].items()
            }
            self._keep("endorsement", {"message": server.endorsement(self.terms, signed).hex()})
        if "reveals" not in self.kept and "endorsement" in self.kept and self._revealed():
            self._keep("reveals", {site: message.hex() for site, message in self.said["reveal"].items()})
        return "reveals" in self.kept

    def lacking(self) -> str:
        """Who is awaited, for people."""
        kind = "reveal" if "endorsement" in self.kept else "agreement"
        missing = [site for site in self._part("survivors") if site not in self.said[kind]]
        return f"a sealed sum waits for {', '.join(missing[:5])}, and goes on when {self.needed} sites have answered"

    def _revealed(self) -> bool:
        """Whether everybody has revealed, or so many that they hold enough shares of each."""
        heard = self.said["reveal"]
        if len(heard) < self.needed:
            return False
        shares, given = self.shares, self.terms
        reveals = [server.read_reveal(given, shares, site, message) for site, message in heard.items()]
        least = holders(given)[1]
        return all(sum(site in held for held in reveals) >= least for site in shares)

    def _keep(self, stage: str, found: Any) -> None:
        """Journals a stage, and from here on it is so: a file, durable, and then its row."""
        data = json.dumps(found, sort_keys=True).encode()
        name = f"seal-{self.task.round}-{self.task.number}-{self.attempt}-{stage}.json"
        write_atomic(self.folder / name, data)
        point(f"server.before-seal-{stage}")
        row = {"round": self.task.round, "task": self.task.number, "attempt": self.attempt, "file": name}
        self.journal.add(f"seal-{stage}", **row, digest=hashlib.sha256(data).hexdigest())
        point(f"server.after-seal-{stage}")
        self.kept[stage] = found
        self.moved = True

    def unsealing(self) -> Body:
        """What the run worker needs to take the masks off."""
        files = {
            stage: f"seal-{self.task.round}-{self.task.number}-{self.attempt}-{stage}.json"
            for stage in ("keys", "shares", "survivors", "reveals")
        }
        return {"terms": list(self.terms), "files": files}


def read(path: Path, digest: str) -> Any:
    """What was kept of a stage. Raises FoedusError where the file is not the one that the journal names."""
    data = path.read_bytes() if path.exists() else b""
    if hashlib.sha256(data).hexdigest() != digest:
        raise FoedusError(f"{path.name} is gone or damaged: restore the server's folder from a backup")
    return json.loads(data)
