"""Sites on this machine under a virtual clock; a crew (in this process, or in several) does their work.
The round loop's parts may come in; what is decided here is journaled before it has an effect."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from foedus import pool
from foedus.aggregators import Folding
from foedus.aggregators.folding import nothing, sized
from foedus.backends.locals import Locals
from foedus.clock import Trip, Watch
from foedus.columns import Alike
from foedus.core import EVALUATE, Deadline, Local, Origin, Outcome, RoundContext, State, Task, Total, Update
from foedus.errors import JobError, Refused
from foedus.faults import point
from foedus.journal import Journal, task_digest
from foedus.params import digest as params_digest
from foedus.privacy.secagg import hidden
from foedus.settle import Desk, Rule, needed, pause
from foedus.work import Order, ordered

STATES, LEAST_AT_ONCE = 256 << 20, 16  # bytes of new states in memory at once, but never fewer sites
MOST_ATTEMPTS = 10  # where devices drop out by the clock, and nobody is there to resume the run


class Done(NamedTuple):
    """What became of one site's order; `update` is there when it is to be folded later."""

    outcome: Outcome
    local: Local = None
    update: Update | None = None
    error: BaseException | None = None
    columns: Sequence[str] = ()  # of its data, where whoever worked has not told the same names just before


class Crew(Protocol):
    """Who performs orders: all at once or one after another, the results in the order of the orders."""

    def fold(self, task: Task, orders: Sequence[Order], locals: Mapping[str, Local], into: Folding) -> list[Done]: ...
    def each(self, task: Task, orders: Sequence[Order], locals: Mapping[str, Local]) -> list[Done]: ...


class Flight(NamedTuple):
    """An update of late="keep" on its way: when it is due, and what it brings; a lost site's brings nothing."""

    origin: Origin
    due: float
    work: str
    done: Done


class Simulation:
    """A Runner whose sites are `sites`, in order. `watch` has the virtual time, `locals` the sites' own states."""

    def __init__(
        self,
        crew: Crew,
        sites: Sequence[str],
        journal: Journal,
        seed: int,
        least: int = 1,
        script: Journal | None = None,
        watch: Watch | None = None,
        locals: Locals | None = None,
    ) -> None:
        self.crew, self.sites, self.journal, self.seed, self.least = crew, sites, journal, seed, least
        self.script = script  # another run's journal, whose counted sets are followed
        self.watch, self.locals = watch or Watch(seed=seed), locals or Locals()
        self.flights: list[Flight] = []
        self.columns = Alike()

    def roster(self, least: int) -> Sequence[str]:
        return self.sites

    def run(self, tasks: Sequence[Task], context: RoundContext, first: int) -> list[Total]:
        """The Totals. Tasks that are asked together begin at the same time."""
        self.locals.round = context.round
        totals, begun, ended = list[Total](), self.watch.now, self.watch.now
        for i, task in enumerate(tasks):
            self.watch.now = begun if self.watch.shown else self.watch.now
            totals.append(self._one(task, context.round, first + i))
            ended = max(ended, self.watch.now)
        self.watch.now = ended
        return totals

    def saved(self) -> State:
        """The virtual clock, the round up to which sites' own states are on disk, and the updates on their way."""
        flights = [
            [*f.origin[:3], f.due, f.work, f.done.local, list(f.done.update or ()), f.done.outcome.why]
            for f in self.flights
        ]
        return {"now": self.watch.now, "locals": self.locals.checkpoint(), "flights": flights}

    def restore(self, saved: Mapping[str, Any] | None) -> None:
        if saved is None:
            self.locals.back(-1)
            return
        self.watch.now, kept = saved["now"], saved["locals"]
        self.locals.back(*((-1, kept) if isinstance(kept, Mapping) else (kept,)))  # an older version saved the states
        self.flights = [_landed(*flight) for flight in saved["flights"]]

    def _one(self, task: Task, round: int, number: int) -> Total:
        if task.sites is not self.sites and task.sites != self.sites:
            self._check(task, round)
        self.journal.add(
            "task",
            round=round,
            task=number,
            work=task.work,
            asked=len(task.sites),
            down=task.payload.nbytes,
            up=sized(task.returns or ()),
            digest=task_digest(task, params_digest(task.payload)),
        )
        point("local.after-task")
        assert task.aggregator is not None and task.returns is not None
        folding = Folding(task.aggregator, task.returns, len(task.sites))
        rule = Rule(task.quorum, needed(task, self.least))
        desk = (self._keep if task.late == "keep" else self._drop)(task, round, number, rule, folding)
        outcomes = hidden(task, desk.outcomes())
        counted = [list(origin[:3]) for origin in desk.counted()]
        settled = [[o.site, o.status, o.why, o.weight] for o in outcomes]
        point("local.before-close")
        clock = {"clock": self.watch.now} if self.watch.shown else {}
        self.journal.add("close", round=round, task=number, counted=counted, outcomes=settled, **clock)
        point("local.after-close")
        return folding.total(outcomes) if folding.count else nothing(outcomes)

    def _check(self, task: Task, round: int) -> None:
        strangers = sorted(site for site in task.sites if not pool.among(self.sites, site))
        if strangers:
            raise JobError(
                f"task {task.work!r} of round {round} asks site {strangers[0]!r}, which is not here: give its data"
            )

    def _drop(self, task: Task, round: int, number: int, rule: Rule, folding: Folding) -> Desk:
        decided = (self.script or self.journal).find("close", round, number)
        desk, last = Desk(rule, task.sites), None
        if decided is not None:
            counted = {site for site, _, _ in decided["counted"]}
            for outcome in map(_outcome, decided["outcomes"]):
                if outcome.status not in ("counted", "dropped"):
                    desk.settle(outcome)
            self._try(desk, task, round, number, [s for s in task.sites if s in counted], folding)
            desk.rule = rule._replace(quorum=len(counted))
            self.watch.reach(decided)
            return desk
        queue = self._arrival(task, round, number, task.sites, 0)
        while (verdict := desk.verdict()) != "close":
            if verdict == "short" and desk.attempt and not self._may_try(desk, desk.attempt):
                raise pause(round, task.work, rule, desk.outcomes()) from last
            if verdict == "short":
                queue = self._arrival(task, round, number, desk.ask_again(), desk.attempt)
            batch = queue if rule.quorum is None else queue[: rule.quorum - len(desk.arrived)]
            queue = queue[len(batch) :]
            last = self._heard(desk, task, round, number, batch, folding) or last
        return desk

    def _may_try(self, desk: Desk, attempts: int) -> bool:
        """Whether sites were lost by the clock, which may let them come back."""
        lost = self.watch.clock is not None and any(o.status == "lost" for o in desk.settled.values())
        return lost and attempts < MOST_ATTEMPTS

    def _heard(self, desk: Desk, task: Task, round: int, number: int, trips: Sequence[Trip], folding: Folding) -> Any:
        """Goes on to when all of these trips are over; the last error, if any."""
        for trip in trips:
            if trip.why:
                desk.settle(Outcome(trip.site, "lost", trip.why))
        self.watch.now = max([self.watch.now, *(trip.at for trip in trips)])
        return self._try(desk, task, round, number, [trip.site for trip in trips if not trip.why], folding)

    def _try(self, desk: Desk, task: Task, round: int, number: int, sites: Sequence[str], folding: Folding) -> Any:
        """Has these sites work and folds what they return; the last error, if any."""
        orders = ordered(task, sites, round, number)
        error, states = None, self.locals.of(task.reads or task.work)
        size = self.locals.sizes.get(task.reads or task.work, task.payload.nbytes)
        for part in batched(orders, max(LEAST_AT_ONCE, STATES // max(1, size))):
            for order, done in zip(part, self.crew.fold(task, part, states, folding), strict=True):
                self.columns.add(order.site, done.columns)
                if done.outcome.status == "counted":
                    desk.accept(Origin(order.site, round, number), done.outcome)
                    self.locals.put(task.work, order.site, done.local)
                else:
                    desk.settle(done.outcome)
                    error = done.error or error
        return error

    def _arrival(self, task: Task, round: int, number: int, sites: Sequence[str], attempt: int) -> list[Trip]:
        """What is heard of these sites, in its order. Evaluation takes no time: it is not part of what is compared."""
        if self.watch.clock is not None and task.work != EVALUATE:
            return sorted(self._trip(task, round, number, site, attempt) for site in sites)
        if task.quorum is not None and not attempt:
            sites = [trip.site for trip in sorted(self._trip(task, round, number, site) for site in sites)]
        return [Trip(self.watch.now, site) for site in sites]

    def _trip(self, task: Task, round: int, number: int, site: str, attempt: int = 0) -> Trip:
        sizes = task.letter(site).nbytes, sized(task.returns or ())
        return self.watch.trip(site, round, number, attempt, sizes, task.deadline or Deadline())

    def _keep(self, task: Task, round: int, number: int, rule: Rule, folding: Folding) -> Desk:
        """Buffered asynchronous training: sites set out, the first `quorum` of all on their way are counted."""
        desk, decided = Desk(rule, ()), self.script.counted(round, number) if self.script else None
        if decided is not None and self.script:
            wanted = {origin[:3] for origin in decided}
            self._land_all(wanted, round, desk, folding)  # first, for a site that sets out again takes its state along
            self._set_out(task, round, number, self.script.origins().get((round, number), []), desk)
            self._land_all(wanted, round, desk, folding)
            desk.rule = Rule(len(wanted))
            self.watch.reach(self.script.find("close", round, number) or {})
            return desk
        candidates, attempt = Candidates(task.sites), 0
        while len(desk.arrived) < rule.needed:
            flying = {f.origin.site for f in self.flights}
            room = len(task.sites) if task.busy is None else max(0, task.busy - len(flying))
            self._set_out(task, round, number, candidates.take(room, flying), desk, attempt)
            if not self.flights and self._may_try(desk, attempt):
                came = {origin.site for origin, _ in desk.arrived if origin.round == round}
                candidates, attempt = Candidates([s for s in task.sites if s not in came]), attempt + 1
                continue
            if not self.flights:
                raise pause(round, task.work, rule, desk.outcomes())
            self._land(min(self.flights, key=lambda f: (f.due, f.origin)), round, desk, folding)
        return desk

    def _set_out(self, task: Task, round: int, number: int, sites: Sequence[str], desk: Desk, attempt: int = 0) -> None:
        """Has these sites work, and sends on their way what they make of it, or that they are lost."""
        desk.asked.update(dict.fromkeys(sites))
        trips = {site: self._trip(task, round, number, site, attempt) for site in sites}
        going = [site for site in sites if not trips[site].why]
        orders = ordered(task, going, round, number)
        made = dict(zip(going, self.crew.each(task, orders, self.locals.of(task.reads or task.work)), strict=True))
        for site, done in made.items():
            self.columns.add(site, done.columns)
        for site, trip in trips.items():
            done = made.get(site) or Done(Outcome(site, "lost", trip.why))
            if done.update is None and not trip.why:
                desk.settle(done.outcome)
            else:
                self.flights.append(Flight(Origin(site, round, number), trip.at, task.work, done))

    def _land_all(self, wanted: Collection[Any], round: int, desk: Desk, folding: Folding) -> None:
        for flight in [f for f in self.flights if f.origin[:3] in wanted]:
            self._land(flight, round, desk, folding)

    def _land(self, flight: Flight, round: int, desk: Desk, folding: Folding) -> None:
        self.flights.remove(flight)
        self.watch.now = max(self.watch.now, flight.due)
        origin = flight.origin._replace(age=round - flight.origin.round)
        if flight.done.update is None:
            desk.settle(flight.done.outcome)
            return
        try:
            folding.add(flight.done.update, origin)
        except Refused as error:
            desk.settle(Outcome(origin.site, "refused", str(error)))
            return
        desk.accept(origin, flight.done.outcome)
        self.locals.put(flight.work, origin.site, flight.done.local)


def batched(orders: Sequence[Order], size: int) -> Iterator[Sequence[Order]]:
    return (orders[at : at + size] for at in range(0, len(orders), size))


class Candidates:
    """Sites that may set out, in their order; who is on its way when it is its turn is looked at again later."""

    def __init__(self, sites: Sequence[str]) -> None:
        self.left: Iterator[str] = iter(sites)
        self.passed: deque[str] = deque()

    def take(self, room: int, flying: Collection[str]) -> list[str]:
        """The next `room` sites that are not on their way, or as many as there are."""
        found: list[str] = []
        again, self.passed = self.passed, deque()
        while len(found) < room and (site := again.popleft() if again else next(self.left, None)) is not None:
            (self.passed if site in flying else found).append(site)
        self.passed.extend(again)
        return found


def _landed(
    site: str, round: int, task: int, due: float, work: str, local: Local, update: Sequence[Any], why: str = ""
) -> Flight:
    if not update:
        return Flight(Origin(site, round, task), due, work, Done(Outcome(site, "lost", why)))
    params, weight, metrics = update
    outcome = Outcome(site, "counted", "", weight, metrics)
    return Flight(Origin(site, round, task), due, work, Done(outcome, local, Update(params, weight, metrics)))


def _outcome(row: Sequence[Any]) -> Outcome:
    return Outcome(row[0], row[1], row[2], row[3])
