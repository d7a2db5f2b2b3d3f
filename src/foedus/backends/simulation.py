"""Sites on this machine under a virtual clock; a crew (in this process, or in several) does their work.
The round loop's parts may come in; what is decided here is journaled before it has an effect."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from foedus import frames
from foedus.aggregators import Folding
from foedus.core import Local, Origin, Outcome, RoundContext, State, Task, Total, Update
from foedus.errors import JobError, Refused
from foedus.faults import point
from foedus.journal import Journal, task_digest
from foedus.keys import key
from foedus.params import digest as params_digest
from foedus.settle import Desk, Rule, pause
from foedus.work import Order


class Done(NamedTuple):
    """What became of one site's order; `update` is there when it is to be folded later."""

    outcome: Outcome
    local: Local = None
    update: Update | None = None
    error: BaseException | None = None


class Crew(Protocol):
    """Who performs orders: all at once or one after another, the results in the order of the orders."""

    def fold(self, task: Task, orders: Sequence[Order], locals: Mapping[str, Local], into: Folding) -> list[Done]: ...
    def each(self, task: Task, orders: Sequence[Order], locals: Mapping[str, Local]) -> list[Done]: ...


class Flight(NamedTuple):
    """An update of late="keep" on its way: when it is due, and what it brings."""

    origin: Origin
    due: float
    work: str
    done: Done


class Simulation:
    """A Runner whose sites are `sites`; an update's travel takes a virtual time that its key gives."""

    def __init__(
        self,
        crew: Crew,
        sites: Sequence[str],
        journal: Journal,
        seed: int,
        least: int = 1,
        script: Journal | None = None,
    ) -> None:
        self.crew, self.sites, self.journal, self.seed, self.least = crew, sites, journal, seed, least
        self.script = script  # another run's journal, whose counted sets are followed
        self.locals: dict[str, dict[str, Local]] = {}  # work -> site -> its own state
        self.flights: list[Flight] = []
        self.now = 0.0

    def roster(self, least: int) -> Sequence[str]:
        return self.sites

    def run(self, tasks: Sequence[Task], context: RoundContext, first: int) -> list[Total]:
        return [self._one(task, context.round, first + i) for i, task in enumerate(tasks)]

    def saved(self) -> State:
        """The virtual clock, the sites' own states and the updates on their way."""
        flights = [[*f.origin[:3], f.due, f.work, f.done.local, list(f.done.update or ())] for f in self.flights]
        return {"now": self.now, "locals": self.locals, "flights": flights}

    def restore(self, saved: Mapping[str, Any]) -> None:
        self.now, self.locals = saved["now"], saved["locals"]
        self.flights = [_landed(*flight) for flight in saved["flights"]]

    def _one(self, task: Task, round: int, number: int) -> Total:
        strangers = sorted(set(task.sites) - set(self.sites))
        if strangers:
            raise JobError(
                f"task {task.work!r} of round {round} asks site {strangers[0]!r}, which is not here: give its data"
            )
        self.journal.add(
            "task",
            round=round,
            task=number,
            work=task.work,
            asked=len(task.sites),
            digest=task_digest(task, params_digest(task.payload)),
        )
        point("local.after-task")
        assert task.aggregator is not None and task.returns is not None
        folding = Folding(task.aggregator, task.returns, len(task.sites))
        rule = Rule(task.quorum, min(self.least, len(task.sites)))
        desk = (self._keep if task.late == "keep" else self._drop)(task, round, number, rule, folding)
        outcomes = desk.outcomes()
        counted = [list(origin[:3]) for origin in desk.counted()]
        settled = [[o.site, o.status, o.why, o.weight] for o in outcomes]
        point("local.before-close")
        self.journal.add("close", round=round, task=number, counted=counted, outcomes=settled)
        point("local.after-close")
        return folding.total(outcomes)

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
            return desk
        queue = self._arrival(task, round, number)
        while (verdict := desk.verdict()) != "close":
            if verdict == "short" and desk.attempt:
                raise pause(round, task.work, rule, desk.outcomes()) from last
            if verdict == "short":
                queue = desk.ask_again()
            batch = queue if rule.quorum is None else queue[: rule.quorum - len(desk.arrived)]
            queue = queue[len(batch) :]
            last = self._try(desk, task, round, number, batch, folding) or last
        return desk

    def _try(self, desk: Desk, task: Task, round: int, number: int, sites: Sequence[str], folding: Folding) -> Any:
        """Has these sites work and folds what they return; the last error, if any."""
        orders = [Order(task.work, task.payload, site, round, number, task.returns) for site in sites]
        locals, error = self.locals.setdefault(task.work, {}), None
        for order, done in zip(orders, self.crew.fold(task, orders, locals, folding), strict=True):
            if done.outcome.status == "counted":
                desk.accept(Origin(order.site, round, number), done.outcome)
                _keep_local(locals, order.site, done.local)
            else:
                desk.settle(done.outcome)
                error = done.error or error
        return error

    def _arrival(self, task: Task, round: int, number: int) -> list[str]:
        if task.quorum is None:
            return list(task.sites)
        return sorted(task.sites, key=lambda site: (self._delay(round, number, site), site))

    def _delay(self, round: int, number: int, site: str) -> float:
        return 0.5 + key(self.seed, round, number, site, "delay").number() / 2**63

    def _keep(self, task: Task, round: int, number: int, rule: Rule, folding: Folding) -> Desk:
        """Buffered asynchronous training: sites set out, the first `quorum` of all on their way are counted."""
        desk, decided = Desk(rule, ()), self.script.counted(round, number) if self.script else None
        if decided is not None and self.script:
            wanted = {origin[:3] for origin in decided}
            self._land_all(wanted, round, desk, folding)  # first, for a site that sets out again takes its state along
            self._set_out(task, round, number, self.script.origins().get((round, number), []), desk)
            self._land_all(wanted, round, desk, folding)
            desk.rule = Rule(len(wanted))
            return desk
        candidates = list(task.sites)
        while len(desk.arrived) < rule.needed:
            flying = {f.origin.site for f in self.flights}
            free = [s for s in candidates if s not in flying]
            room = len(free) if task.busy is None else max(0, task.busy - len(flying))
            self._set_out(task, round, number, free[:room], desk)
            candidates = [s for s in candidates if s not in free[:room]]
            if not self.flights:
                raise pause(round, task.work, rule, desk.outcomes())
            self._land(min(self.flights, key=lambda f: (f.due, f.origin)), round, desk, folding)
        return desk

    def _set_out(self, task: Task, round: int, number: int, sites: Sequence[str], desk: Desk) -> None:
        orders = [Order(task.work, task.payload, site, round, number, task.returns) for site in sites]
        desk.asked.update(dict.fromkeys(sites))
        done = self.crew.each(task, orders, self.locals.setdefault(task.work, {}))
        for order, result in zip(orders, done, strict=True):
            if result.update is None:
                desk.settle(result.outcome)
            else:
                due = self.now + self._delay(round, number, order.site)
                self.flights.append(Flight(Origin(order.site, round, number), due, task.work, result))

    def _land_all(self, wanted: Collection[Any], round: int, desk: Desk, folding: Folding) -> None:
        for flight in [f for f in self.flights if f.origin[:3] in wanted]:
            self._land(flight, round, desk, folding)

    def _land(self, flight: Flight, round: int, desk: Desk, folding: Folding) -> None:
        self.flights.remove(flight)
        self.now = max(self.now, flight.due)
        origin = flight.origin._replace(age=round - flight.origin.round)
        assert flight.done.update is not None
        try:
            folding.add(flight.done.update, origin)
        except Refused as error:
            desk.settle(Outcome(origin.site, "refused", str(error)))
            return
        desk.accept(origin, flight.done.outcome)
        _keep_local(self.locals[flight.work], origin.site, flight.done.local)


def _keep_local(locals: dict[str, Local], site: str, local: Local) -> None:
    if local is not None:
        locals[site] = frames.unpack(frames.pack(local).bytes())  # as after a restart


def _landed(site: str, round: int, task: int, due: float, work: str, local: Local, update: Sequence[Any]) -> Flight:
    params, weight, metrics = update
    outcome = Outcome(site, "counted", "", weight, metrics)
    return Flight(Origin(site, round, task), due, work, Done(outcome, local, Update(params, weight, metrics)))


def _outcome(row: Sequence[Any]) -> Outcome:
    return Outcome(row[0], row[1], row[2], row[3])
