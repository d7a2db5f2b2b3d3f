"""One Task at a site, in the order that a crash cannot hurt: compute, check, keep durably, send, settle.
A line, a shelf and a worker come in; only what the Task announced and the policy allows goes out."""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

import numpy as np

from foedus import frames, midway
from foedus.aggregators.folding import CHECKING, check, check_finite, check_room
from foedus.core import Update
from foedus.errors import FoedusError, Refused
from foedus.faults import point
from foedus.files import delete
from foedus.measured import undeclared
from foedus.params import DTYPES, Params
from foedus.privacy.secagg import ROWS, TOLD
from foedus.site.orders import Activity, At, Blob, Order, Seal, Verdict
from foedus.site.policy import Policy
from foedus.site.sealing import About, Sealer, rule_of
from foedus.site.shelf import Pending, Shelf
from foedus.site.transfer import TRIES, fetch, holds, upload
from foedus.site.workerhost import Died, Raised, Spent, Stalled, WorkerHost
from foedus.wire.link import Answered, Link, Member, Stopped
from foedus.wire.signing import sign_envelope

RECEIPT = 180.0  # seconds that the server may take to check an update
MOST_METRICS = 4 << 20
Json = dict[str, Any]
Declared = Collection[str] | None  # None: whatever the Job's code says


class Declined(FoedusError):
    """This site will not do the Task; `kind` says how the server settles it."""

    def __init__(self, reason: str, kind: Literal["declined", "refused"] = "declined") -> None:
        super().__init__(reason)
        self.kind = kind


class Done(NamedTuple):
    """What a worker says of an update that it wrote."""

    weight: float
    metrics: Json
    stateful: bool


@final
class Tasks:
    """Does one run's Tasks, one after another, in one thread."""

    def __init__(
        self,
        who: Member,
        shelf: Shelf,
        payloads: Path,
        log: logging.Logger,
        publics: Callable[[], Mapping[str, bytes]] = dict,
    ) -> None:
        self.who, self.shelf, self.payloads, self.log = who, shelf, payloads, log
        self.line = Link(who)
        self.publics = publics
        self.sealer = Sealer(who, shelf.store, self.line, publics, log)
        self.checked: set[str] = set()  # payloads whose bytes this process has hashed

    def do(
        self, order: Order, worker: WorkerHost, policy: Policy, activity: Activity, declared: Declared = None
    ) -> None:
        """Computes the Task's update, unless an earlier attempt did, and sends it; or declines. Raises Stopped.

        `declared`: the metrics that the submission names.
        """
        for text, verdict in order.verdicts.items():
            self.settle(text, verdict, activity)
        if self.shelf.find(order.at) is not None:
            return
        try:
            if order.seal is not None and self.sealer.released(order.at):
                raise Declined("a share of this Task has left this site: its update is not masked a second time")
            pending = self.shelf.adopt(order.at) or self._computed(order, worker, policy, activity, declared)
        except Declined as error:
            self.decline(order.at, str(error), error.kind, activity)
            return
        self.send(pending, activity, fresh=True)

    def settle(self, text: str, verdict: Verdict, activity: Activity) -> None:
        """Does what the verdict on a pending update says."""
        found = [p for p in self.shelf.pending() if str(p.at) == text]
        if found and verdict == "send":
            self.send(found[0], activity, fresh=False)
        elif found and self._settled(found[0], verdict):
            self.log.info("%s: %s", text, verdict)

    def _settled(self, pending: Pending, verdict: Verdict) -> bool:
        """As the shelf's, and no secret of a sealed Task is left."""
        done = self.shelf.settle(pending.at, verdict)
        if done and pending.seal is not None:
            self.sealer.settled(pending.at)
        return done

    def send(self, pending: Pending, activity: Activity, fresh: bool) -> None:
        """Sends a pending update as far as the server wants it; its receipt may settle it at once."""
        path = self.shelf.update(pending.file)
        if not path.exists():
            self.log.error("%s: its file is gone from %s; it is computed again", pending.at, path.parent)
            self._settled(pending, "dropped")
            return
        if pending.seal is not None:
            self._send_sealed(pending, path, activity)
            return
        self._send(pending, path, activity, fresh)

    def _send_sealed(self, pending: Pending, update: Path, activity: Activity) -> None:
        """Masks a pending update with the others' help, sends the words, and reveals what takes the masks off the sum.

        Whatever the server says that is not what this site agreed to costs the Task this site, and nothing else.
        """
        about, words = about_of(pending), self.shelf.words(pending.file)
        try:
            if not self.sealer.released(pending.at):
                blob = self.sealer.words(about, update, words, activity)
                self.shelf.sealed(pending.at, blob)
                sealed = pending._replace(blob=blob, weight=(0.0).hex(), metrics={})
                if not self._send(sealed, words, activity, fresh=False):
                    return
            self.sealer.finish(about, activity)
        except Answered as error:
            self.log.warning("%s: not sealed, %s", pending.at, error)
        except Stopped:
            raise
        except FoedusError as error:
            self.log.error("%s: %s", pending.at, error)
            self.decline(pending.at, str(error), "declined", activity)

    def _send(self, pending: Pending, path: Path, activity: Activity, fresh: bool) -> bool:
        """Whether the server has accepted it."""
        try:
            receipt = self._delivered(pending, path, activity, fresh)
        except Answered as error:
            self.log.warning("%s: not taken, %s", pending.at, error)
            return False
        if receipt is None:
            self.log.info("%s: the server does not need it any more", pending.at)
            return False
        point("agent.after-receipt")
        status = receipt.get("status")
        self.log.info("%s: %s%s", pending.at, status, f", {receipt['why']}" if receipt.get("why") else "")
        if status in ("refused", "dropped"):
            self._settled(pending, status)
        return bool(status == "accepted")

    def _delivered(self, pending: Pending, path: Path, activity: Activity, fresh: bool) -> Json | None:
        """The server's receipt, or None if it does not want the bytes any more. Raises Answered.

        A server that restarts clears away bytes that no row names yet: it asks for them again.
        """
        for _ in range(TRIES):
            if not upload(self.line, pending.at, path, pending.blob, activity, fresh):
                return None
            point("agent.after-upload")
            try:
                receipt = self._told("updates", "update", pending.envelope(self.who.name), activity)
            except Answered as error:
                receipt = dict(error.body)
                if receipt.get("status") != "send":
                    raise
            if receipt.get("status") != "send":
                break
            fresh = False
        return receipt

    def decline(self, at: At, reason: str, kind: str, activity: Activity) -> None:
        """Tells the server, and the owner, why there is no update."""
        self.log.warning("%s: declined: %s", at, reason)
        body = at._asdict() | {"site": self.who.name, "reason": reason[:2000], "kind": kind}
        try:
            self._told("declines", "decline", body, activity)
        except Answered as error:
            self.log.warning("%s: the server did not take that, %s", at, error)

    def _told(self, path: str, purpose: str, body: Json, activity: Activity) -> Json:
        envelope = sign_envelope(self.who.key, f"foedus/{purpose}/1", body)
        asked = {"envelope": envelope}
        return self.line.patient(lambda: self.line.call("POST", f"/v1/{path}", asked, timeout=RECEIPT), activity.gone)

    def _computed(
        self, order: Order, worker: WorkerHost, policy: Policy, activity: Activity, declared: Declared
    ) -> Pending:
        """The update, durable. Raises Declined."""
        local = self._base(order)
        payload = self._payload(order, activity)
        stem, standing = order.at.file, self._standing(order.at, worker.loading.get("excluded"))
        message = {
            "do": "work", "round": order.at.round, "task": order.at.task, "work": order.work, "payload": str(payload),
            "returns": [list(leaf) for leaf in order.returns], "local": local,
            "seal": order.seal and [len(order.seal.roster), order.seal.threshold],
            "publics": self._publics() if worker.report.get("relays") else None,
            "midway": str(standing), "update": str(self.shelf.update(stem)), "new_local": str(self.shelf.local(stem)),
        }  # fmt: skip
        point("agent.before-work")
        done = done_of(self._worked(worker, message, activity, order.stall))
        point("agent.after-work")
        done, few = of_enough(order, done, policy, worker.report.get("rows", {}))
        if few:
            self.log.info("%s: of fewer than %d examples, so it stays here: %s", order.at, policy.least_measured, few)
        build = str(worker.report.get("build", {}).get("hash", ""))
        pending = self._checked(order, done, policy, build, declared)
        self.shelf.keep(pending)
        midway.clear(standing)
        return pending

    def _standing(self, at: At, excluded: Any) -> Path:
        """The folder where the worker keeps how far a long training is, for another attempt at this Task.

        What saw rows that their owner has excluded since is let go of.
        """
        saw = hashlib.sha256(json.dumps(excluded, sort_keys=True).encode()).hexdigest()[:16]
        path = self.payloads.with_name(midway.FOLDER) / f"{at.round}-{at.task}-{saw}"
        path.parent.mkdir(exist_ok=True)
        for other in path.parent.iterdir():
            if other != path:
                midway.clear(other)
        return path

    def _publics(self) -> dict[str, str]:
        """The enrolled keys of all sites, as this one pinned them."""
        return {name: public.hex() for name, public in self.publics().items()}

    def _base(self, order: Order) -> str | None:
        """The file of the local state that the Task goes on from."""
        if order.base is None:
            return None
        for pending in self.shelf.pending():  # a base that is still pending here: the server has counted it
            if (pending.work, pending.at[1:3]) == (order.reads or order.work, order.base):
                self._settled(pending, "counted")
        base = self.shelf.base(order.reads or order.work)
        path = self.shelf.folder / base.file if base else None
        if base is None or path is None or (base.round, base.task) != order.base or not path.exists():
            raise Declined("local state lost")
        return str(path)

    def _payload(self, order: Order, activity: Activity) -> Path:
        """The payload's file; those of other Tasks are deleted."""
        path = self.payloads / order.payload.digest
        for other in self.payloads.glob("*"):
            if not other.name.startswith(order.payload.digest):
                delete(other)
        if not (path.exists() and (order.payload.digest in self.checked or holds(path, order.payload))):
            try:
                fetch(self.line, order.at.run, order.payload, path, activity, activity.gone)
            except (Answered, OSError, FoedusError) as error:
                if isinstance(error, Stopped):
                    raise
                raise Declined(f"fetching the payload: {error}") from error
        self.checked = {order.payload.digest}
        return path

    def _worked(self, worker: WorkerHost, message: Json, activity: Activity, stall: float) -> Json:
        try:
            return worker.work(message, activity, stall)
        except (Died, Spent, Stalled, Raised) as error:
            raise Declined(str(error)) from error

    def _checked(self, order: Order, done: Done, policy: Policy, build: str, declared: Declared) -> Pending:
        """The update as it will be signed, if it is what the Task announced and the policy lets it out."""
        stem, seal = order.at.file, None
        blob = let_out(order, done, self.shelf.update(stem), policy, self.who.name, declared)
        if order.seal is not None:
            facts = {"bundle": order.bundle, "seed": order.seed, "work": order.work, "payload": order.payload.digest}
            seal = {"facts": facts | {"returns": [list(leaf) for leaf in order.returns]}, "seal": list(order.seal)}
        return Pending(order.at, order.work, stem, blob, done.weight.hex(), done.metrics, done.stateful, build, seal)


def of_enough(order: Order, done: Done, policy: Policy, rows: Mapping[str, int]) -> tuple[Done, list[str]]:
    """What was done, without metrics of too few examples, and the names of these; a seal lets them out, summed."""
    few = [name for name in done.metrics if policy.few(name, rows)] if order.seal is None else []
    kept = {name: x for name, x in done.metrics.items() if name not in few}
    return done._replace(metrics=kept), sorted(few)


def let_out(order: Order, done: Done, path: Path, policy: Policy, site: str, declared: Declared = None) -> Blob:
    """Digest and size of an update's file that is what the Task announced and may leave the site. Raises Declined."""
    shapes = {name: x["shape"] for name, x in done.metrics.items()}
    if declared is not None and (odd := undeclared(shapes, declared)):
        raise Declined(f"it returns {odd[0]!r}, which is none of the metrics that the submission names", "refused")
    try:
        blob = checked(path, done.weight, order, site)
    except FoedusError as error:
        raise Declined(str(error), "refused") from error
    if why := policy.update(blob.size, done.metrics):
        raise Declined(f"{site!r}: {why}")
    if order.seal is not None and not (order.seal.wmax >= done.weight and site in order.seal.roster):
        raise Declined(f"weight {done.weight:g} is above wmax={order.seal.wmax:g}; raise wmax", "refused")
    if order.seal is None and counts_rows(order) and done.metrics:
        raise Declined("the count of rows came with metrics", "refused")
    return blob


def about_of(pending: Pending) -> About:
    """A pending update as it is to be sealed."""
    assert pending.seal is not None
    roster, *ring = pending.seal["seal"]
    seal, weight = Seal(tuple(roster), *ring), float.fromhex(pending.weight)
    return About(pending.at, seal, pending.seal["facts"], weight, pending.metrics)


def counts_rows(order: Order) -> bool:
    """Whether the Task asks for the count of training rows alone, which a sealed Job needs first."""
    return order.work == ROWS and order.returns == TOLD


def checked(path: Path, weight: float, order: Order, site: str) -> Blob:
    """Digest and size of an update's file that holds what the Task announced, all of it finite. Raises Refused."""
    params, looked = frames.read(path), "look into the worker's log"
    if not isinstance(params, Params):
        raise Refused(site, CHECKING, "the file holds no Params", looked)
    if check(Update(params, weight), order.returns, site).params is not params:
        raise Refused(site, CHECKING, "its arrays are in another order than announced", looked)
    check_finite(params, site)
    if order.seal is not None:
        check_room(rule_of(order.seal), Update(params, weight), site, len(order.seal.roster))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return Blob(hashlib.sha256(data).hexdigest(), len(data))


def done_of(answer: Mapping[str, Any]) -> Done:
    """What a worker answered to a Task. Raises Declined where it is no update."""
    if "declined" in answer:
        raise Declined(str(answer["declined"]))
    if "refused" in answer:
        raise Declined(str(answer["refused"]), "refused")
    if "raised" in answer:
        raise Declined(f"{answer.get('stage')}: {answer['raised']}")
    try:
        done = answer["done"]
        return Done(float(done["weight"]), _metrics(done["metrics"]), bool(done["stateful"]))
    except (KeyError, TypeError, ValueError) as error:
        raise Declined(f"the worker's answer is malformed ({type(error).__name__} {error})", "refused") from error


def _metrics(found: Mapping[str, Any]) -> Json:
    """Metrics that are what they say: named arrays of numbers, small enough for a control message."""
    plain: Json = {}
    for name, x in found.items():
        shape, data = [int(n) for n in x["shape"]], str(x["data"])
        size = DTYPES[x["dtype"]].itemsize * int(np.prod(shape, dtype=np.int64))
        if len(data) != 4 * -(-size // 3) or min(shape, default=0) < 0:
            raise ValueError(f"metric {name!r} does not fit its shape")
        plain[str(name)] = {"dtype": str(x["dtype"]), "shape": shape, "data": data}
    if sum(len(x["data"]) for x in plain.values()) > MOST_METRICS:
        raise ValueError(f"metrics above {MOST_METRICS} bytes")
    return plain
