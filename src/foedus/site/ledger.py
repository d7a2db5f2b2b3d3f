"""What a site has spent of each dataset's privacy, over all Jobs and submitters: signed rows, each over the one before.
The site's folder, store and key come in. A row is on disk before the training that it counts begins.

The file is `ledger.jsonl`; the site's database holds how many rows there are and the hash of the last. Who puts back
an older file, cuts it, or changes a row is found out by one of the two; who puts back the whole folder, by the server,
which knows the site's last life.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from foedus.errors import Denied, FoedusError
from foedus.faults import point
from foedus.files import explained, fsync_dir, write_all
from foedus.privacy.accounting import Steps
from foedus.privacy.spending import Limit, beyond, epsilon
from foedus.store import Store, canonical
from foedus.wire.ed25519 import public_text
from foedus.wire.signing import open_envelope, sign_envelope

FILE, PURPOSE = "ledger.jsonl", "foedus/ledger/1"
ABOUT, HEAD = "about", "ledger"
ONCE = ("dataset", "run", "round", "task", "attempt", "payload")  # what makes a training another one
Json = dict[str, Any]


class Damaged(FoedusError):
    """The ledger is not the one that this site wrote: nothing trains here until its owner has looked at it."""


class Training(NamedTuple):
    """One training that is about to begin; `spends` None: nothing bounds what it tells of a record."""

    run: str
    round: int
    task: int
    attempt: int
    payload: str  # digest of the model that was sent
    work: str
    submitter: str
    privacy: str  # as the submitter signed it
    spends: Steps | None


@final
class Ledger:
    """The rows of one site, verified when it is opened; one agent at a time writes, others `look` only."""

    def __init__(self, folder: Path, store: Store, key: Ed25519PrivateKey, look: bool = False) -> None:
        self.path, self.store, self.key, self.look = folder / FILE, store, key, look
        self.lock, self.last, self.whole = threading.Lock(), "", hashlib.sha256()
        self.rows: list[Json] = []
        self._read()

    def count(
        self,
        training: Training,
        datasets: Sequence[str],
        limits: Mapping[str, Limit],
        approvals: Mapping[str, str] = {},
    ) -> str:
        """Counts a training of these datasets, durably, and once; or why it may not begin, and then nothing is counted.

        Raises Damaged.
        """
        with self.lock:
            self._check_head()
            rows = [_row(training, dataset, approvals.get(dataset, "")) for dataset in datasets]
            new = [row for row in rows if not self._known(row)]
            for row in new:
                limit = limits.get(row["dataset"])
                if limit is not None and (why := self._refused(row["dataset"], training, limit)):
                    return why
            if new:
                self._append(new)
            return ""

    def spent(self, dataset: str) -> list[Steps]:
        """The steps of all trainings of a dataset that were protected."""
        return [steps for row in self.rows if row["dataset"] == dataset and (steps := steps_of(row)) is not None]

    def _refused(self, dataset: str, training: Training, limit: Limit) -> str:
        if training.spends is None:
            return (
                f"dataset {dataset!r} has a limit of epsilon {limit.epsilon:g}, and this job ({training.privacy}) says "
                "nothing of what it spends: submit it with fd.dp_sgd(…) or privacy='hospital'"
            )
        found = beyond(self.spent(dataset), training.spends, limit)
        if found is None:
            return ""
        before, alone = (epsilon(steps, limit.delta) for steps in (self.spent(dataset), [training.spends]))
        return (
            f"dataset {dataset!r}: all jobs have spent epsilon {before:.3g} at delta {limit.delta:g}, this training "
            f"asks for {alone:.3g}, together that is {found:.3g}, and its owner's limit is {limit.epsilon:g}: train "
            "fewer rounds, or with more noise"
        )

    def _known(self, row: Json) -> bool:
        return any(all(row[name] == old[name] for name in ONCE) for old in reversed(self.rows))

    def _append(self, rows: Sequence[Json]) -> None:
        lines, before = list[bytes](), self.last
        for i, row in enumerate(rows):
            body = {**row, "n": len(self.rows) + i, "before": before, "at": int(time.time())}
            lines.append(canonical(sign_envelope(self.key, PURPOSE, body)).encode() + b"\n")
            before = _hash(lines[-1])
        with explained(self.path), open(self.path, "ab", buffering=0) as file:
            os.fchmod(file.fileno(), 0o600)
            write_all(file, b"".join(lines))
            os.fsync(file.fileno())
        if not self.rows:
            fsync_dir(self.path.parent)
        point("agent.after-ledger")
        self.whole.update(b"".join(lines))
        self.rows += [json.loads(line)["body"] for line in lines]
        self._note(before)

    def _note(self, last: str) -> None:
        self.last = last
        self.store.put(ABOUT, HEAD, {"rows": len(self.rows), "last": last})

    def _read(self) -> None:
        """Reads and verifies the file; a last line that was not written to its end was never acted upon."""
        data = self.path.read_bytes() if self.path.exists() else b""
        whole, _, torn = data.rpartition(b"\n")
        if torn and not self.look:
            os.truncate(self.path, len(data) - len(torn))
        public = public_text(self.key)
        for n, line in enumerate(whole.split(b"\n") if whole else ()):
            self.rows.append(self._verified(n, line, public))
            self.last = _hash(line + b"\n")
            self.whole.update(line + b"\n")
        head = self.store.get(ABOUT, HEAD)
        if head is None or (len(self.rows), self.last) != (head["rows"], head["last"]):
            self._caught_up(head)

    def _verified(self, n: int, line: bytes, public: str) -> Json:
        try:
            body = open_envelope(json.loads(line), PURPOSE, public)
        except (Denied, ValueError) as error:
            raise self._damaged(f"row {n} is not as this site signed it ({error})") from None
        if (body["n"], body["before"]) != (n, self.last):
            raise self._damaged(f"row {n} does not follow the one before it")
        return body

    def _caught_up(self, head: Mapping[str, Any] | None) -> None:
        """Who died between a training's rows and the note of them goes on; any other difference is damage."""
        known, newer = (0, self.rows) if head is None else (head["rows"], self.rows[head["rows"] :])
        if known > len(self.rows) or len({tuple(row[name] for name in ONCE[1:]) for row in newer}) > 1:
            raise self._damaged(f"it has {len(self.rows)} rows, and the site's database knows of {known}")
        if head is not None and (newer[0]["before"] if newer else self.last) != head["last"]:
            raise self._damaged(f"row {known - 1} is another one than the site's database knows")
        if newer and not self.look:
            self._note(self.last)

    def _check_head(self) -> None:
        """Raises Damaged where the file was changed under a running agent."""
        data = self.path.read_bytes() if self.path.exists() else b""
        head = self.store.get(ABOUT, HEAD) or {"rows": 0, "last": ""}
        if (len(self.rows), self.last) != (head["rows"], head["last"]) or hashlib.sha256(
            data
        ).digest() != self.whole.digest():
            raise self._damaged("it changed while the agent was at work")

    def _damaged(self, what: str) -> Damaged:
        return Damaged(
            f"{self.path}: {what}: it was changed, or an older one was put back, so what was spent is not known; "
            "nothing trains here until the file is restored"
        )


def steps_of(row: Mapping[str, Any]) -> Steps | None:
    """What a row's training spent; None where nothing bounds it."""
    if row["spends"] is None:
        return None
    noise, rate, steps = row["spends"]
    return Steps(float.fromhex(noise), float.fromhex(rate), steps)


def _row(training: Training, dataset: str, approval: str) -> Json:
    spends = training.spends and [training.spends[0].hex(), training.spends[1].hex(), training.spends[2]]
    return {"dataset": dataset, **training._asdict(), "spends": spends, "approval": approval}


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
