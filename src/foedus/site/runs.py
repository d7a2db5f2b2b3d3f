"""One run at a site, in a thread of its own: it is prepared for, does Tasks one at a time, and is cleared away.
Tasks, policy and the worker's host come in; the agent's main thread hands over what the server said."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, final

from foedus.core import EVALUATE
from foedus.errors import FoedusError
from foedus.files import STRETCH, write_atomic
from foedus.privacy.accounting import Steps
from foedus.privacy.presets import guards
from foedus.site import bindings, policy
from foedus.site.ledger import Ledger, Training
from foedus.site.orders import Activity, At, Blob, Ending, Offer, Order, Verdict, kept_offer
from foedus.site.orders import verdicts as read_verdicts
from foedus.site.place import Place, stated
from foedus.site.shelf import Shelf
from foedus.site.tasks import Tasks, counts_rows
from foedus.site.transfer import fetch, holds
from foedus.site.trust import Code, Roll, consent
from foedus.site.workerhost import ARCHIVE, WorkerHost
from foedus.wire.bundle import MOST_BYTES, unpack
from foedus.wire.ed25519 import derived
from foedus.wire.link import Answered, Member, Stopped

RUNS, ENDED = "runs", "ended"
CODES = "codes"  # of every bundle that a run here has: whose it is; its files lie in the folder of that name
OWN = "personal.safetensors"  # beside the run's last model
LOADING = 600.0  # seconds without progress in which the data must be loaded
Json = dict[str, Any]


class Context(NamedTuple):
    """What all runs of an agent share."""

    place: Place
    who: Member
    roll: Roll
    log: logging.Logger
    ledger: Callable[[], Ledger]  # raises Damaged


class NotReady(FoedusError):
    """Why this site cannot take part in a run, with the remedy."""


@final
class SiteRun:
    """`prepared`, `have` and `pending` are what the next poll tells of this run; all else is queued for its thread."""

    def __init__(self, context: Context, run: str) -> None:
        self.context, self.run = context, run
        self.folder = context.place.folder / "work" / run
        self.shelf = Shelf(context.place.store, self.folder / "kept", run)
        self.shelf.sweep()
        self.tasks = Tasks(context.who, self.shelf, self.folder / "payloads", context.log, context.roll.publics)
        self.offer, self.prepared = self._remembered()
        self.says = [*(context.place.store.get(RUNS, run) or {}).get("says", ())]  # the Job's privacy in full
        self.answered: Json = {}
        self.worker: WorkerHost | None = None
        self.queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self.held: dict[str, Activity] = {}  # Tasks and uploads that are queued or under way
        self.settling: set[str] = set()  # pending updates whose verdict is queued
        self.unwanted: set[str] = set()  # cancelled: no longer spoken of
        self.leaving = threading.Event()
        self.now: Activity | None = None  # the Task at work
        self.thread = threading.Thread(target=self._serve, name=f"run {run}", daemon=True)
        self.thread.start()

    # ---- called by the agent's main thread -----------------------------------------------------------------------
    def have(self) -> set[str]:
        return (set(self.held) | self._kept()) - self.settling - self.unwanted

    def pending(self) -> set[str]:
        return self._kept() - set(self.held) - self.settling

    def prepare(self, offer: Offer) -> None:
        self.offer, self.prepared = offer, True
        self.queue.put(self._prepare)

    def look(self) -> None:
        """The owner changed something: a run that could not begin here may begin now."""
        if self.offer is not None:
            self.queue.put(self._prepare)

    def task(self, order: Order) -> bool:
        """Whether the Task is new here. One of a run that was not offered yet is offered again after that."""
        text = str(order.at)
        self.unwanted.discard(text)
        if self.offer is None or text in self.held or text in self._kept():
            return False
        activity = self.held[text] = Activity(order.at)
        self.queue.put(partial(self._task, order, activity))
        return True

    def verdicts(self, found: Mapping[str, Verdict]) -> bool:
        """Whether any of these verdicts says something new."""
        known = {str(p.at): p.at for p in self.shelf.pending()}
        idle = known.keys() - self.settling - self.held.keys()
        new = {text: verdict for text, verdict in found.items() if text in idle and verdict != "unknown"}
        for text, verdict in new.items():
            activity = Activity(known[text])
            if verdict == "send":
                self.unwanted.discard(text)
                self.held[text] = activity
            else:
                self.settling.add(text)
            self.queue.put(partial(self._settle, text, verdict, activity))
        return bool(new)

    def cancel(self, texts: Iterable[str]) -> bool:
        """Whether any of these Tasks was under way. An update that is computed stays until its verdict."""
        mine = [text for text in texts if text.startswith(f"{self.run}/") and text not in self.unwanted]
        self.unwanted.update(mine)
        for text in mine:
            if text in self.held and text not in self._kept():
                self.held[text].gone.set()
        return bool(mine)

    def end(self, ending: Ending) -> None:
        self.drop()
        self.queue.put(partial(self._end, ending))

    def drop(self) -> None:
        """Gives up what is under way."""
        for activity in [*self.held.values()]:
            activity.gone.set()

    def stop(self) -> None:
        """Ends the thread and the worker; what is durable stays."""
        self.leaving.set()
        self.drop()
        self.queue.put(None)

    # ---- the run's own thread --------------------------------------------------------------------------------------
    def _serve(self) -> None:
        while not self.leaving.is_set() and (action := self.queue.get()) is not None:
            try:
                action()
            except Stopped:
                self.context.log.info("run %s: stopped what nobody waits for", self.run)
            except FoedusError as error:
                self.context.log.warning("run %s: %s", self.run, error)
            except Exception:
                self.context.log.exception("run %s: the agent failed", self.run)
        if self.worker is not None:
            self.worker.kill()
        self.tasks.line.close()

    def _task(self, order: Order, activity: Activity) -> None:
        self.now = activity
        try:
            if not activity.gone.is_set():
                self._do(order, activity)
        finally:
            self.now = None
            self.held.pop(str(order.at), None)

    def _do(self, order: Order, activity: Activity) -> None:
        try:
            rules = self._allowed(order)
            worker = self._host(rules)
            self._count(order, rules, worker, activity)
        except Stopped:
            raise
        except FoedusError as error:
            self.tasks.decline(order.at, str(error), "declined", activity)
            return
        self.context.log.info("%s: %s", order.at, order.work)
        try:
            assert self.offer is not None
            self.tasks.do(order, worker, rules, activity, self.offer.metrics)
        except Stopped:
            raise
        except Exception as error:
            self.tasks.decline(order.at, f"the agent failed: {type(error).__name__} {error}", "declined", activity)
            raise

    def _settle(self, text: str, verdict: Verdict, activity: Activity) -> None:
        self.now = activity if verdict == "send" else None
        try:
            self.tasks.settle(text, verdict, activity)
        finally:
            self.now = None
            self.settling.discard(text)
            self.held.pop(text, None)

    def _allowed(self, order: Order) -> policy.Policy:
        """The policy, if it still lets this run's code at the data. Raises NotReady or Denied."""
        if self.offer is None:
            raise NotReady("this site was not told of the run; it asks the server for it")
        if (order.bundle, order.seed) != (self.offer.bundle.digest, self.offer.seed):
            raise NotReady("the Task's bundle or seed is not the one that the submitter signed")
        if guards(self.offer.privacy, "secagg") and order.seal is None and not counts_rows(order):
            raise NotReady("the submitter signed privacy 'secagg', and the Task has no seal: nothing leaves this site")
        rules = policy.load(self.context.place.folder / "policy.toml")
        bound = self._bound()
        if why := self._consent(rules) or self._forbidden(rules, bound):
            raise NotReady(why)
        return rules

    def _forbidden(self, rules: policy.Policy, bound: Sequence[bindings.Binding]) -> str:
        """Why the policy does not let a run of this privacy and purpose at these datasets."""
        assert self.offer is not None
        names = [binding.name for binding in bound]
        return rules.private(self.offer.privacy) or rules.dataset(names) or rules.agreed(names, self.offer.purpose)

    def _count(self, order: Order, rules: policy.Policy, worker: WorkerHost, activity: Activity) -> None:
        """Counts a training, or an evaluation with noise, in the site's ledger, before it begins.

        Raises NotReady where a limit forbids it.
        """
        assert self.offer is not None
        privacy, said, measures = self.offer.privacy, None, order.work == EVALUATE
        if counts_rows(order) or (measures and not guards(privacy, "dp_metrics")):
            return
        if measures or any(guards(privacy, word) for word in policy.SIGNED["dp"]):
            told = worker.ready(activity, order.stall).get("privacy") or {}
            said = told.get("measures" if measures else "spends")
        steps = said and Steps(float.fromhex(said[0]), float.fromhex(said[1]), int(said[2]))
        submitter = self.context.roll.submitter(self.offer.public)
        training = Training(*order.at, order.payload.digest, order.work, submitter, privacy, steps or None)
        names = [binding.name for binding in self._bound()]
        approvals = {name: found.approval for name, found in rules.terms.items()}
        if why := self.context.ledger().count(training, names, rules.budgets, approvals):
            raise NotReady(f"site {self.context.place.name!r}: {why}")

    def _consent(self, rules: policy.Policy) -> str:
        assert self.offer is not None
        submitter = self.context.roll.submitter(self.offer.public)
        code = Code(self.offer.bundle.digest, submitter, self.offer.public)
        return consent(self.context.place.store, rules, code, self.offer.privacy)

    # ---- getting ready -----------------------------------------------------------------------------------------------
    def _prepare(self) -> None:
        report: Json = {}
        try:
            self._ready(report)
            why = ""
        except (FoedusError, OSError) as error:
            if isinstance(error, Stopped):
                raise
            why = str(error)
        answer, line = {"run": self.run, "ready": not why, "why": why, "report": report}, self.tasks.line
        if answer != self.answered:
            said = f"not ready: {why}" if why else f"ready, {report.get('rows')} rows"
            self.context.log.info("run %s: %s", self.run, said)
            line.patient(lambda: line.call("POST", "/v1/ready", answer), self.leaving)
            self.answered = answer
        self._remember(why)  # after the answer: who dies in between is asked again

    def _ready(self, report: Json) -> None:
        """Fills in the report for the submitter. Raises FoedusError for whatever is missing."""
        offer, place = self.offer, self.context.place
        assert offer is not None
        self._fetch_bundle(offer)
        rules = policy.load(place.folder / "policy.toml")
        why = self._consent(rules)
        report["approval"] = why or "given"
        lacking = bindings.missing(offer.requires)
        report["packages"] = bindings.remedy(lacking) if lacking else "present"
        bound = self._bound()
        report["dataset"] = ", ".join(binding.name for binding in bound)
        if why := why or self._forbidden(rules, bound):
            raise NotReady(why)
        if lacking:
            raise NotReady(f"packages are missing: {report['packages']}")
        report |= self._host(rules).ready(Activity(At(self.run, -1, -1, 0), self.leaving), LOADING)
        self._agrees(report)
        if why := rules.examples(report.get("rows", {}).get("train", 0)):
            raise NotReady(why)

    def _agrees(self, report: Json) -> None:
        """Tells the owner what the Job's privacy is. Raises NotReady where it is not the one that was signed."""
        assert self.offer is not None
        found = report.get("privacy") or {}
        self.says = [str(line) for line in found.get("said", ())]
        if found.get("stated") != self.offer.privacy:
            raise NotReady(
                f"the submitter signed privacy {self.offer.privacy!r}, and the Job has {found.get('stated')!r}: "
                "submit it anew"
            )
        for line in self.says:
            self.context.log.info("run %s: privacy: %s", self.run, line)

    def _fetch_bundle(self, offer: Offer) -> None:
        """The bundle's bytes, and its source for the owner to read, which outlives the run; nothing of it is run."""
        if not 0 < offer.bundle.size <= 2 * MOST_BYTES:
            raise NotReady(f"the bundle is larger than the {MOST_BYTES >> 20} MB that are taken")
        place = self.context.place
        archive, source = self.folder / ARCHIVE, place.folder / CODES / offer.bundle.digest
        if not holds(archive, offer.bundle):
            fetch(self.tasks.line, self.run, offer.bundle, archive, None, self.leaving)
        shutil.rmtree(source, ignore_errors=True)
        source.parent.mkdir(exist_ok=True)
        if unpack(archive.read_bytes(), source).entry != offer.entry:
            raise NotReady("the bundle's entry is not the one that the submitter signed")
        told: Json = {"run": self.run, "name": offer.name, "submitter": self.context.roll.submitter(offer.public)}
        told |= {"offer": offer._asdict()}  # with which its owner may see what it would send, when the run is over too
        place.store.put(CODES, offer.bundle.digest, told)

    def _bound(self) -> list[bindings.Binding]:
        """The data that the run sees: what it named, or what was the only one when this site got ready for it."""
        assert self.offer is not None
        store = self.context.place.store
        known = (store.get(RUNS, self.run) or {}).get("bound", ())
        return bindings.chosen(store, self.offer.datasets or known)

    def _host(self, rules: policy.Policy) -> WorkerHost:
        offer, place = self.offer, self.context.place
        assert offer is not None
        bound = self._bound()
        loading = {"entry": offer.entry, "options": offer.options, "seed": offer.seed, "site": place.name,
                   "data": [list(binding) for binding in bound], "many": len(bound) > 1,
                   "network": rules.network, "limits": rules.limits, "privacy": offer.override_privacy,
                   "excluded": rules.excluded(b.name for b in bound),
                   "error_texts": rules.error_texts, "secret": derived(place.key(), self.run),
                   "run": self.run, "statement": stated(place, self.run)}  # fmt: skip
        if self.worker is None or self.worker.loading != loading:
            self._retire()
            log = place.folder / "logs" / f"{self.run}.log"
            self.worker = WorkerHost(self.folder, offer.bundle, log, loading)
        return self.worker

    def _retire(self) -> None:
        if self.worker is not None:
            self.worker.kill()
            self.worker = None

    # ---- what is remembered ------------------------------------------------------------------------------------------
    def _remembered(self) -> tuple[Offer | None, bool]:
        """The offer, and whether this site answered that it is ready."""
        body = self.context.place.store.get(RUNS, self.run)
        return (None, False) if body is None else (kept_offer(body["offer"]), not body["why"])

    def _remember(self, why: str) -> None:
        assert self.offer is not None
        try:
            submitter = self.context.roll.submitter(self.offer.public)
        except FoedusError:
            submitter = "?"
        bound = [] if why else [binding.name for binding in self._bound()]
        body = {"offer": self.offer._asdict(), "why": why, "submitter": submitter, "bound": bound, "says": self.says}
        self.context.place.store.put(RUNS, self.run, body)

    def _kept(self) -> set[str]:
        return {str(p.at) for p in self.shelf.pending()}

    # ---- the end -----------------------------------------------------------------------------------------------------
    def _end(self, ending: Ending) -> None:
        place, log = self.context.place, self.context.log
        models = {name: self._model(name, blob) for name, blob in ending.models.items()}
        saved = [*models.values(), self._own_model(models.get("final"))]
        self._retire()
        self.tasks.sealer.clear(self.run)
        with place.store.transaction():
            self.shelf.clear()
            place.store.delete(RUNS, self.run)
            place.store.put(ENDED, self.run, {"state": ending.state})
        shutil.rmtree(self.folder, ignore_errors=True)
        kept = f"; kept: {', '.join(str(path) for path in saved if path)}" if any(saved) else ""
        log.info("run %s: %s, its state here is deleted%s", self.run, ending.state, kept)
        self.leaving.set()

    def _model(self, name: str, blob: Blob) -> Path | None:
        path = self.context.place.folder / "models" / self.run / f"{name}.safetensors"
        try:
            return fetch(self.tasks.line, self.run, blob, path, None, self.leaving)
        except (Answered, FoedusError, OSError) as error:
            if isinstance(error, Stopped):
                raise
            self.context.log.warning("run %s: the %s model could not be fetched: %s", self.run, name, error)
            return None

    def _own_model(self, final: Path | None) -> Path | None:
        """The file of the site's own model, which its worker makes of the last one and of what is kept here."""
        if final is None or self.offer is None:
            return None
        try:
            self._settle_last()
            locals = {work: str(self.shelf.folder / base.file) for work, base in self.shelf.bases().items()}
            rules = policy.load(self.context.place.folder / "policy.toml")
            if not locals or self._consent(rules):
                return None
            made, path = self.folder / OWN, final.with_name(OWN)
            asked = {"do": "own", "run": self.run, "model": str(final), "locals": locals, "file": str(made)}
            answer = self._host(rules).work(asked, Activity(At(self.run, -1, -1, 0), self.leaving), LOADING)
            if "own" not in answer:
                raise FoedusError(f"{answer.get('stage')}: {answer.get('raised')}")
            if not answer["own"]:
                return None
            with made.open("rb") as file:
                write_atomic(path, iter(lambda: file.read(STRETCH), b""))
            return path
        except (FoedusError, OSError) as error:
            if isinstance(error, Stopped):
                raise
            self.context.log.warning("run %s: this site's own model could not be made: %s", self.run, error)
            return None

    def _settle_last(self) -> None:
        """Asks what became of the last update: what it left here counts only where it did."""
        if left := [p for p in self.shelf.pending() if p.stateful]:
            asked = {"have": [], "pending": [str(p.at) for p in left], "prepared": [], "ended": [], "wait": 0}
            told = read_verdicts(self.tasks.line.call("POST", "/v1/poll", asked).get("verdicts", {}))
            for pending in left:
                self.shelf.settle(pending.at, told.get(str(pending.at), "unknown"))
