"""What leaves the sites: one run of a Job by its own works, of which updates, Tasks and models are kept.
A Job and the sites' data come in; it runs as the backend `local` does, in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, final

from foedus import build
from foedus.aggregators import Folding
from foedus.aggregators.folding import opened
from foedus.backends.local import folded, perform
from foedus.backends.locals import Locals
from foedus.backends.simulation import Done, Simulation
from foedus.core import Fit, Local, Origin, Task, Update
from foedus.data import Split
from foedus.errors import JobError
from foedus.job import Job
from foedus.journal import Journal, Memory
from foedus.params import Params
from foedus.pool import Pool
from foedus.run import Checkpoints, execute
from foedus.work import Bench, Order

ROUNDS = 5  # of a Job that only a rule would end


class Left(NamedTuple):
    """One update as it left its site, and what the Job's code says of its training."""

    order: Order
    task: Task
    update: Update
    path: float  # sum of the step sizes
    steps: int

    def read(self, names: frozenset[str]) -> Params | None:
        """The model's arrays in the update, as the server reads them; None where it holds none."""
        return held(opened(self.task.aggregator, self.update, self.order.site).params, names)  # type: ignore[arg-type]

    def sent(self, names: frozenset[str]) -> Params:
        """The model that the site was sent."""
        found = held(self.order.payload, names)
        assert found is not None
        return found


class Watched(NamedTuple):
    """A run: every update of one site, all sites' updates of its first Task, and the model that is released."""

    names: frozenset[str]  # of the model's trainable arrays
    released: Params
    updates: Sequence[Left]  # of the site, one a round in which it trained
    beside: Mapping[str, Left]  # site -> its update in the Task of the first of them

    def total(self) -> Params | None:
        """The model's arrays in the Total of the first Task."""
        (first, *_), task = self.updates, self.updates[0].task
        assert task.aggregator is not None and task.returns is not None
        folding = Folding(task.aggregator, task.returns, len(task.sites))
        for site, left in self.beside.items():
            folding.add(left.update, Origin(site, first.order.round, first.order.task))
        return held(folding.total().params, self.names)

    def models(self) -> list[Params]:
        """The model that the site was sent in each of these rounds, and the released one: trainable arrays."""
        found = [left.sent(self.names) for left in self.updates] + [self.released.trainable()]
        return [params.only(self.names) for params in found]


def watched(
    job: Job, sites: Pool, target: str, seed: int = 0, rounds: int | None = None, splits: Mapping[str, Split] = {}
) -> Watched:
    """The run of `job`, watched at `target`; `splits`: site -> what it holds in place of what the Job would load.

    Raises JobError where the site is never asked, or where what it sends has no model's arrays; what fails at the site
    is raised as it is.
    """
    plain = job.replace(evaluate=0, best=None, stop=None, rounds=rounds or job.rounds or ROUNDS)
    names, noted = frozenset(plain.first(seed).trainable()), Noted(plain.learner)
    bench = plain.bench(seed, noted)
    bench.splits.update(splits)
    tap, journal = Tap(bench, noted, sites, target, names), Journal(Memory())
    with build.exactly():
        runner = Simulation(tap, sites.names, journal, seed, plain.least, locals=Locals(None))
        ended = execute(plain.plan(seed), runner, journal, Checkpoints(None))
    if not tap.updates:
        raise _nothing(tap, target, plain)
    return Watched(names, ended.params, tap.updates, tap.beside)


def held(params: Params, names: frozenset[str]) -> Params | None:
    """The part of these arrays that has a model's: at once, or under the tags with which several travel as one."""
    if names <= set(params):
        return params.only(names)
    for tag in dict.fromkeys(name.partition("/")[0] for name in params if "/" in name):
        found = held(params.part(tag), names)
        if found is not None:
            return found
    return None


@final
class Noted:
    """A learner as it is, which notes how far its last training went: who has the Job's code knows as much."""

    def __init__(self, learner: Any) -> None:
        self.learner, self.last = learner, Fit(Params({}), 0, 0, 0.0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.learner, name)

    def train(self, *given: Any) -> Fit:
        """What the learner's `train` gives."""
        self.last = self.learner.train(*given)
        return self.last


@final
class Tap:
    """A Crew of this process that keeps what `target` returns, and what all return in the first Task of these."""

    def __init__(self, bench: Bench, noted: Noted, data: Mapping[str, Any], target: str, names: frozenset[str]) -> None:
        self.bench, self.noted, self.data, self.target, self.names = bench, noted, data, target, names
        self.updates, self.beside, self.error = list[Left](), dict[str, Left](), ""
        self.others = False

    def fold(self, task: Task, orders: Sequence[Order], locals: Mapping[str, Local], into: Folding) -> list[Done]:
        done = self.each(task, orders, locals)
        return [made if made.update is None else folded(made, o, into) for o, made in zip(orders, done, strict=True)]

    def each(self, task: Task, orders: Sequence[Order], locals: Mapping[str, Local]) -> list[Done]:
        return [self._one(task, order, locals.get(order.site)) for order in orders]

    def _one(self, task: Task, order: Order, local: Local) -> Done:
        made = perform(self.bench, order, local, self.data)
        if made.error is not None and order.site == self.target:
            raise made.error
        if made.update is not None and held(order.payload, self.names) is not None:
            left = Left(order, task, made.update, self.noted.last.path, self.noted.last.steps)
            self._keep(left)
        return made

    def _keep(self, left: Left) -> None:
        if left.read(self.names) is None:
            self.others = True
            return
        first = self.updates[0].order if self.updates else None
        place = left.order.round, left.order.task
        if first is None and self.beside and place != _place(self.beside):
            self.beside = {}
        if first is None or place == (first.round, first.task):
            self.beside[left.order.site] = left
        if left.order.site == self.target:
            self.updates.append(left)


def _place(lefts: Mapping[str, Left]) -> tuple[int, int]:
    order = next(iter(lefts.values())).order
    return order.round, order.task


def _nothing(tap: Tap, target: str, job: Job) -> JobError:
    if tap.others:
        return JobError("what this algorithm's sites send has no model's arrays: attack is for updates of models")
    return JobError(
        f"site {target!r} sent no update in {job.rounds} rounds: give rounds=… more, or attack another site"
    )
