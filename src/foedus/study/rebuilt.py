"""Rounds of a Job whose updates are kept, so that the model of any of the sites asked can be put together again.
The bench of a simulation comes in; states and bits are those of the backend `local`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from foedus import frames
from foedus.aggregators import Folding, mean
from foedus.backends.local import perform
from foedus.backends.simulation import Done
from foedus.core import Algorithm, Origin, RoundContext, State, Task, Total
from foedus.errors import JobError
from foedus.job import Job
from foedus.params import Params
from foedus.run import draw
from foedus.work import ordered

APART = "rounds of several Tasks, or of late updates, cannot be put together again: use method='shapley'"


class Rebuilt(NamedTuple):
    """A round: the state before it, its Task, and what each site returned."""

    algorithm: Algorithm
    state: State
    context: RoundContext
    task: Task
    made: Mapping[str, Done]

    @property
    def round(self) -> int:
        return self.context.round

    @property
    def sites(self) -> list[str]:
        return list(self.made)

    def after(self, sites: Sequence[str]) -> State:
        """The state as if these sites alone had been counted."""
        assert self.task.aggregator is not None and self.task.returns is not None
        folding = Folding(self.task.aggregator, self.task.returns, len(sites))
        for site in sites:
            update = self.made[site].update
            assert update is not None
            folding.add(update, Origin(site, self.round, 0))
        return _ended(self.algorithm, self.state, self.context, folding.total([self.made[s].outcome for s in sites]))

    def model(self, sites: Sequence[str]) -> Params:
        return self.algorithm.params(self.after(sites))


def played(job: Job, parts: Mapping[str, Any], seed: int) -> Iterator[Rebuilt]:
    """The Job's rounds over these Splits, one after another. Raises JobError where a round is more than one Task."""
    if job.rounds is None:
        raise JobError("this trains for the Job's rounds, and it has none: give rounds=… beside stop=…")
    plan, bench, names = job.plan(seed), job.replace(data=None, datasets=(), schema=None).bench(seed), sorted(parts)
    state, locals = _saved(job.method.init(plan.start())), dict[str, Any]()
    for number in range(job.rounds):
        context = RoundContext(seed, number, names, draw(plan, number, names), secret=plan.randomness)
        task = _one(job.method, state, context)
        orders = ordered(task, task.sites, number, 0)
        done = {order.site: perform(bench, order, locals.get(order.site), parts) for order in orders}
        made = {site: found for site, found in done.items() if found.update is not None}
        if not made:
            raise JobError(f"round {number}: no site returned an update: {next(iter(done.values())).outcome.why}")
        locals |= {site: found.local for site, found in made.items()}
        rebuilt = Rebuilt(job.method, state, context, task, made)
        yield rebuilt
        state = _saved(rebuilt.after(rebuilt.sites))


def _saved(state: State) -> State:
    return frames.unpack(frames.pack(state).bytes())


def _one(algorithm: Algorithm, state: State, context: RoundContext) -> Task:
    task = next(algorithm.round(state, context))
    if not isinstance(task, Task) or task.late == "keep":
        raise JobError(
            "rounds of several Tasks, or of late updates, cannot be put together again: use method='shapley'"
        )
    returns = task.payload.spec if task.returns is None else task.returns
    return task._replace(aggregator=task.aggregator or mean(), returns=returns)


def _ended(algorithm: Algorithm, state: State, context: RoundContext, total: Total) -> State:
    steps = algorithm.round(state, context)
    next(steps)
    try:
        steps.send(total)
    except StopIteration as end:
        return end.value
    raise JobError(APART)
