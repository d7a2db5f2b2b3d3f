"""A site's agent: the long-lived process that holds the key, asks the server for work, and enforces the owner's policy.
Runs, trust and the link come in; no Job is ever imported here."""

from __future__ import annotations

import logging
import signal
import threading
import time
from typing import Any, final

from foedus import build
from foedus.errors import Denied, WireError
from foedus.site import bindings, policy
from foedus.site.ledger import Ledger
from foedus.site.orders import read_ending, read_offer, read_order, verdicts
from foedus.site.place import Place
from foedus.site.runs import ENDED, RUNS, Context, SiteRun
from foedus.site.shelf import PENDING
from foedus.site.trust import Roll
from foedus.wire.identity import renew
from foedus.wire.link import Answered, Away, Link, Member, pauses
from foedus.wire.plain import plain

VERSION = 1
WAIT = 55.0  # seconds that a poll may take
SPARE = 20.0
BEAT = 10.0
TICK = 0.25  # how soon the owner's wishes are noticed
AT_ONCE = 1.0
FORBIDDEN = 403
DAY = 86_400.0
Json = dict[str, Any]


@final
class Agent:
    """One life of a site's agent, from hello to SIGTERM. `wait` is how long its polls may take, in seconds."""

    def __init__(self, place: Place, log: logging.Logger, wait: float = WAIT) -> None:
        self.place, self.log, self.wait = place, log, wait
        self.federation = place.federation()
        self.life = place.new_life()
        self.who = Member(self.federation, place.name, place.key(), self.life.number)
        self.roll = Roll(place.store, self.federation)
        self.line, self.side = Link(self.who), Link(self.who)
        self.runs: dict[str, SiteRun] = {}
        self.ended = {run for run, _ in place.store.items(ENDED)}
        self.stopping = threading.Event()
        self.writing = threading.Lock()
        self._ledger: Ledger | None = None
        self.reachable: bool | None = None
        self.since = time.time()
        self.seen = place.wish()
        self.main, self.greeted = threading.get_ident(), 0.0

    def run(self) -> None:
        """Works until it is stopped. Raises Denied when the server does not let this site in any more."""
        self.log.info("site %s of %s: agent started, life %d", self.place.name, self.federation.name, self.life.number)
        for run in self._kept_runs():
            self._run(run)
        keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)
        keeper.start()
        try:
            self._greet_patiently()
            self._poll_forever()
        finally:
            self.stop()
            self.log.info("agent stopped")

    def ledger(self) -> Ledger:
        """What this site has spent of its data's privacy. Raises Damaged, each time anew."""
        with self.writing:
            if self._ledger is None:
                self._ledger = Ledger(self.place.folder, self.place.store, self.who.key)
            return self._ledger

    def stop(self) -> None:
        """Ends the runs' threads and workers; what is durable stays."""
        self.stopping.set()
        for run in self.runs.values():
            run.stop()
        for run in self.runs.values():
            run.thread.join(3.0)
            if run.worker is not None:
                run.worker.kill()

    def _kept_runs(self) -> set[str]:
        store = self.place.store
        return {run for run, _ in store.items(RUNS)} | {text.partition("/")[0] for text, _ in store.items(PENDING)}

    def _run(self, run: str) -> SiteRun:
        if run not in self.runs:
            self.runs[run] = SiteRun(Context(self.place, self.who, self.roll, self.log, self.ledger), run)
        return self.runs[run]

    # ---- the main thread: ask, and hand over what is new ---------------------------------------------------------
    def _poll_forever(self) -> None:
        waits, idle = pauses(), pauses()
        while not self.stopping.is_set():
            try:
                began = time.monotonic()
                reply = self.line.call("POST", "/v1/poll", self._poll(), timeout=self.wait + SPARE)
                self._reached()
                stale = time.monotonic() - self.greeted > DAY or reply.get("epoch", 0) > self.roll.pin.epoch
                if stale or self.line.renewed:
                    self._greet_patiently()  # before what is new is looked at: it may be by somebody new
                if self._take(reply):
                    idle = pauses()
                elif time.monotonic() - began < min(AT_ONCE, self.wait):
                    self.stopping.wait(next(idle) / 4)  # an answer at once with nothing new: do not ask in a circle
                waits = pauses()
            except Away as error:
                self._away(error)
                self.stopping.wait(next(waits))
                self._greet_patiently()
            except (Answered, WireError, TypeError, ValueError) as error:
                self.log.warning("poll: %s", error)
                self.stopping.wait(next(waits))
                self._greet_patiently()

    def _poll(self) -> Json:
        runs = list(self.runs.values())
        have = sorted(text for run in runs for text in run.have())
        wait = min(self.wait, BEAT) if have else self.wait  # what is at work now is soon to be asked about
        return {
            "have": have,
            "pending": sorted(text for run in runs for text in run.pending()),
            "prepared": sorted(run.run for run in runs if run.prepared), "ended": sorted(self.ended), "wait": wait,
        }  # fmt: skip

    def _take(self, reply: Json) -> bool:
        """Whether the answer said anything new. What cannot be verified is logged and left alone."""
        found = [self._offered(envelope) for envelope in reply.get("prepare", ())]
        found += [self._ordered(envelope) for envelope in reply.get("tasks", ())]
        told = verdicts(reply.get("verdicts", {}))
        for run in [*self.runs.values()]:
            mine = {text: verdict for text, verdict in told.items() if text.startswith(f"{run.run}/")}
            found += [run.verdicts(mine), run.cancel(map(str, reply.get("cancel", ())))]
        found += [self._over(body) for body in reply.get("ended", ())]
        return any(found)

    def _offered(self, envelope: Any) -> bool:
        try:
            offer = read_offer(envelope, self.federation.server)
        except (Denied, WireError) as error:
            self.log.error("an offer of a run is not used: %s", error)
            return False
        if offer.run in self.ended:  # it was stopped, and goes on after all
            self.ended.discard(offer.run)
            self.place.store.delete(ENDED, offer.run)
        run = self._run(offer.run)
        new = not run.prepared
        if new:
            run.prepare(offer)
        return new

    def _ordered(self, envelope: Any) -> bool:
        try:
            order = read_order(envelope, self.federation.server, self.place.name)
        except (Denied, WireError) as error:
            self.log.error("a task is not done: %s", error)
            return False
        return self._run(order.at.run).task(order)

    def _over(self, body: Any) -> bool:
        try:
            ending = read_ending(body)
        except WireError as error:
            self.log.error("%s", error)
            return False
        if ending.run in self.ended:
            return False
        self.ended.add(ending.run)
        self._run(ending.run).end(ending)
        return True

    # ---- saying hello ------------------------------------------------------------------------------------------------
    def _greet_patiently(self) -> None:
        for pause in pauses():
            if self.stopping.is_set():
                return
            try:
                self.greet()
                return
            except Away as error:
                self._away(error)
            except Answered as error:
                if error.status == FORBIDDEN:
                    why = str(error.body.get("error", error))
                    self.place.store.put("about", "denied", {"why": why})
                    raise Denied(f"site {self.place.name!r}: {why}") from error
                self.log.warning("hello: %s", error)
            self.stopping.wait(pause)

    def greet(self) -> None:
        """Says hello, takes in the register, tells whether this site takes part. Raises Away, Answered or Denied."""
        self._renew()  # first: an entry that has expired may do nothing else
        names = [binding.name for binding in bindings.every(self.place.store)]
        body = {"life": plain(self.life), "before": self.life.previous, "pinned": plain(self.roll.pin),
                "build": build.describe(), "version": VERSION, "datasets": names}  # fmt: skip
        register = self.line.call("POST", "/v1/hello", body)["register"]
        self.line.nonce = ""  # a new life's hello closes it
        self.place.store.delete("about", "denied")
        self.place.confirm(self.life)
        self.roll.extend(register)
        self.greeted = time.monotonic()
        self._renew()
        self._tell_accepting(self.line)
        self._reached()

    def _renew(self) -> None:
        """Stays in the register: a site signs its renewal itself, and the server judges whether it is time."""
        member = self.roll.member(self.place.name)
        if member is None or not member.due(int(time.time())):
            return
        wish = renew(self.who.key, self.federation.id, self.place.name, member.renewals + 1)
        try:
            self.line.call("POST", "/v1/renew", {"renewal": plain(wish)})
            self.log.info("the register entry was renewed")
        except Answered as error:  # what this site may still do, the next request says
            self.log.warning("the register entry was not renewed: %s", error)

    def _tell_accepting(self, line: Link) -> None:
        """Tells the server whether this site takes part at present, if it does not know."""
        wish, why = self.place.wish(), ""
        yes = bool(wish["accepting"])
        if not yes:
            why = str(wish["why"])
        elif not self._awake():
            yes, why = False, "outside of its hours"
        told = self.place.store.get("about", "told") or {"accepting": True}
        if told != {"accepting": yes}:
            line.call("POST", "/v1/accepting", {"accepting": yes, "why": why})
            self.place.store.put("about", "told", {"accepting": yes})
            self.log.info("this site %s", "takes part again" if yes else f"does not take part: {why}")

    def _awake(self) -> bool:
        try:
            return policy.load(self.place.folder / "policy.toml").awake(time.localtime())
        except Denied:
            return True  # its Tasks are declined with the reason, which says more

    def _reached(self) -> None:
        if not self.reachable:
            self.log.info("connected to %s", self.line.channel.url)
            self.reachable, self.since = True, time.time()

    def _away(self, error: Away) -> None:
        if self.reachable is not False:
            self.log.warning("the server is away, trying on: %s", error)
            self.reachable, self.since = False, time.time()

    # ---- the keeper: heartbeats, the owner's wishes, what people are shown ---------------------------------------
    def _keep(self) -> None:
        beat = 0.0
        shown: Json = {}
        while not self.stopping.wait(TICK):
            try:
                self._heed()
                if time.monotonic() - beat >= BEAT and self._beat():
                    beat = time.monotonic()
                if (status := self._status()) != shown:
                    self.place.show(status)
                    shown = status
                for name, run in [*self.runs.items()]:
                    if not run.thread.is_alive():
                        self.runs.pop(name)
            except (Away, Answered):
                continue  # the main thread says so
            except Exception:
                self.log.exception("the agent's keeper failed")

    def _beat(self) -> bool:
        """Whether any run is at work; the server hears how far each has come, and says whether it is still wanted."""
        working = [(run, activity) for run in [*self.runs.values()] if (activity := run.now) is not None]
        for run, activity in working:
            said = activity.at._asdict() | {"progress": activity.count, "cpu": round(activity.cpu, 2)}
            wanted = self.side.call("POST", "/v1/beat", said).get("go_on", True)
            if not wanted and run.cancel([str(activity.at)]):
                self.log.info("%s: given up, the server does not need it any more", activity.at)
        return bool(working)

    def _heed(self) -> None:
        """Does what the owner changed; an awakening of the site's hours too."""
        wish = self.place.wish()
        if wish["change"] != self.seen["change"]:
            self.seen = wish
            for run in [*self.runs.values()]:
                run.look()
        if self.reachable:
            self._tell_accepting(self.side)
        if wish["stop"]:
            self.log.info("stopped by its owner")
            self.stopping.set()
            signal.pthread_kill(self.main, signal.SIGTERM)

    def _status(self) -> Json:
        now = [activity for run in [*self.runs.values()] if (activity := run.now) is not None]
        working = [{"task": str(activity.at), "progress": activity.count} for activity in now]
        link = {"connected": bool(self.reachable), "since": round(self.since), "url": self.line.channel.url}
        return link | {"working": working}
