"""A rehearsal: one site works, all others are taken to return what it does, and updates are kept as they would leave.
A Job, its Bench and the site's data come in; it runs as the backend `local` does, in memory."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

from foedus import build, frames
from foedus.aggregators import Folding
from foedus.backends.local import done, folded
from foedus.backends.locals import Locals
from foedus.backends.simulation import Done, Simulation
from foedus.core import EVALUATE, Local, Task, Update
from foedus.errors import FoedusError, JobError, Paused
from foedus.files import write_atomic
from foedus.job import Job
from foedus.journal import Journal, Memory
from foedus.preview import shown
from foedus.privacy.presets import RELAYS
from foedus.privacy.secagg import ROWS
from foedus.run import Checkpoints, draw, execute
from foedus.work import Among, Bench, Order

RELAYED = (
    "what sites write to one another is encrypted with keys that they tell in the run, and cannot be shown before it; "
    "preview the Job with the algorithm inside (fedavg, fedprox, …) for what is in it"
)
Json = dict[str, Any]


class Leaving(NamedTuple):
    """One update as it would leave its site, and the Task that asks for it; `stateful`: something of it stays there."""

    order: Order
    task: Task
    update: Update
    stateful: bool


class Ended(FoedusError):
    """The site would return nothing, and so the rehearsal is over; the message says why."""


def rehearsed(
    job: Job, bench: Bench, seed: int, roster: Collection[str], target: str, data: Any, rounds: int = 1
) -> tuple[list[Leaving], str]:
    """What `target` would send in the first rounds, and why there is no more ("" where all rounds were played).

    The first Task of the first round is that of a real run with this roster, to the bit. Later models are made as if
    all sites returned what this one does. A roster of too few is filled up.
    """
    crew, journal = Alike(bench, target, data), Journal(Memory())
    runner = Simulation(crew, filled({*roster, target}, job.least), journal, seed, job.least, locals=Locals(None))
    plan = job.plan(seed)._replace(rounds=rounds, stop=None, best=None)
    try:
        execute(plan, runner, journal, Checkpoints(None))
    except (Ended, Paused) as error:
        return crew.left, RELAYED if RELAYS in job.method.traits else str(error)
    beside = (ROWS, EVALUATE) if job.learner else (ROWS,)  # an analysis with noise evaluates alone
    trains = any(left.order.work not in beside for left in crew.left)
    return crew.left, "" if trains else f"{target!r} is in no cohort of the first {rounds} rounds: take more, --rounds"


def filled(names: Collection[str], least: int) -> list[str]:
    """The names in order, with others that nobody has where they are fewer than a Task needs."""
    more = (f"other-{i}" for i in range(1, least + 1))
    return sorted([*names, *[name for name in more if name not in names][: max(0, least - len(names))]])


def dry_run(
    job: Job, sites: Mapping[str, Any], out: Path, seed: int = 0, target: str | None = None, rounds: int = 1
) -> Json:
    """What one of these sites would send, written into the folder `out`; its data is here. Raises JobError.

    Without a `target` it is the first one of the first cohort.
    """
    names = sorted(sites)
    site = target or next(iter(draw(job.plan(seed), 0, filled(names, job.least))), names[0])
    site = site if target or site in names else names[0]
    if site not in names:
        raise JobError(f"there is no data of site {site!r} here: the sites are {', '.join(names[:20])}")
    with build.exactly():
        left, why = rehearsed(job, job.bench(seed), seed, names, site, Among(sites), rounds)
    return {"site": site, "updates": [written(one, out) for one in left], "why": why, "folder": str(out)}


def written(left: Leaving, out: Path) -> Json:
    """What is shown of an update, whose bytes are in its file from now on."""
    at = left.order.round, left.order.task, left.order.work
    path = out / f"{named(*at)}.safetensors"
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(path, frames.pack(left.update.params), durable=False)
    sealed = None
    if (seal := left.task.seal) is not None and seal.masks:
        ring = seal.bound, seal.wmax, len(left.task.sites)
        sealed = shown.sealed(left.update.params, left.update.weight, left.update.metrics, *ring, path)
    return shown.row(*at, path, left.update.weight, left.update.metrics, left.stateful, sealed)


def named(round: int, task: int, work: str) -> str:
    """The stem of an update's file; rounds count from 1, as people do."""
    return f"{round + 1}-{task}-{re.sub(r'[^A-Za-z0-9_.-]', '_', work)}"


@final
class Alike:
    """A Crew of which `target` works; who else is asked returns the same."""

    def __init__(self, bench: Bench, target: str, data: Any) -> None:
        self.bench, self.target, self.data = bench, target, data
        self.left: list[Leaving] = []
        self.made: dict[tuple[int, int], Done] = {}  # of the newest Task: a large one's orders come in parts

    def fold(self, task: Task, orders: Sequence[Order], locals: Mapping[str, Local], into: Folding) -> list[Done]:
        return [folded(made, o, into) for o, made in zip(orders, self.each(task, orders, locals), strict=True)]

    def each(self, task: Task, orders: Sequence[Order], locals: Mapping[str, Local]) -> list[Done]:
        at = orders[0].round, orders[0].task
        if at not in self.made:
            self.made = {at: self._made(task, orders[0], locals)}
        one = self.made[at]
        return [one._replace(outcome=one.outcome._replace(site=order.site)) for order in orders]

    def _made(self, task: Task, first: Order, locals: Mapping[str, Local]) -> Done:
        order = first._replace(site=self.target, payload=task.letter(self.target))
        local = locals.get(self.target if self.target in task.sites else first.site)
        made = done(self.bench, order, lambda: self.bench.perform(order, local, self.data))
        if made.update is None:
            raise Ended(f"round {order.round + 1}, {order.work}: {made.outcome.status}: {made.outcome.why}")
        if self.target in task.sites:
            self.left.append(Leaving(order, task, made.update, made.local is not None))
        return made
