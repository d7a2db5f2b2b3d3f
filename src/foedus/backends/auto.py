"""The backend `auto`: sites train here until it is known what they cost, then in processes if that pays; the same bits.
Where sites may train together and gain by that, `gain` says so before a run begins.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple

from foedus.aggregators import Folding
from foedus.backends.local import Here
from foedus.backends.processes.workers import cores
from foedus.backends.simulation import Crew, Done
from foedus.core import Local, Task
from foedus.data import Pairs, Split
from foedus.errors import Alone
from foedus.job import Job
from foedus.keys import key
from foedus.pool import Pool
from foedus.run import draw
from foedus.work import Among, Order

SAVES = 1.0  # seconds that another backend has to save before it is worth its start
WORTH = 0.2  # seconds that training together has to save: what it needs is there after its trial
ROUNDS = 20  # of a Job whose end is decided by a rule
TOGETHER = 8  # sites in the trial at most
MOST_BYTES = 8 << 20  # of a model that may gain by training together
TRIAL = key(0, 0, 0, "here", "trial")

Start = Callable[[], AbstractContextManager[Crew]]


class Gain(NamedTuple):
    """How many times faster sites train together than one after another, or why they cannot; `seconds` of all alone."""

    times: float
    seconds: float
    why: str = ""


@contextmanager
def crew(job: Job, data: Mapping[str, Any], seed: int, start: Start, note: Callable[..., object]) -> Iterator[Growing]:
    """A Crew that begins in this process; `start` opens the one in others, `note` hears of it."""
    with ExitStack() as open:
        yield Growing(job, Here(job.bench(seed), data), lambda: open.enter_context(start()), note)


class Growing:
    """A Crew of this process that becomes one of several when the rest of the run would take long enough."""

    def __init__(self, job: Job, here: Here, start: Callable[[], Crew], note: Callable[..., object]) -> None:
        self.rounds, self.now, self.start, self.note = job.rounds or ROUNDS, here, start, note
        self.crew: Crew = here
        self.seconds = 0.0  # a site's work, the last time it was measured

    def fold(self, task: Task, orders: Sequence[Order], locals: Mapping[str, Local], into: Folding) -> list[Done]:
        return self._halves(orders, lambda part: self.crew.fold(task, part, locals, into))

    def each(self, task: Task, orders: Sequence[Order], locals: Mapping[str, Local]) -> list[Done]:
        return self._halves(orders, lambda part: self.crew.each(task, part, locals))

    def _halves(self, orders: Sequence[Order], work: Callable[[Sequence[Order]], list[Done]]) -> list[Done]:
        """The work of two sites here, then that of the others wherever it is best done.

        The clock is looked at for the second one: the first pays for what is done once, such as imports.
        """
        if self.crew is not self.now or len(orders) < 2:
            return work(orders)
        found, began = work(orders[:1]), time.monotonic()
        found += work(orders[1:2])
        self.seconds = time.monotonic() - began
        left = len(orders) - 2 + len(orders) * max(0, self.rounds - orders[0].round - 1)
        if self.seconds * left > 2 * SAVES and self.seconds > SAVES / 1000:
            self.crew = self.start()
            self.note(f"processes, for a site's work takes {self.seconds:.2g} s and {left} are left: the same bits")
        return found + (work(orders[2:]) if orders[2:] else [])


def gain(job: Job, data: Mapping[str, Any], seed: int) -> Gain:
    """Tries one batch of one site alone and of several at once, where the learner can train many sites together.

    These are as many as a core would have of a round's sites: with few, one process for each site gains more.
    """
    learner: Any = job.learner
    if not hasattr(learner, "together") or not data:
        return Gain(1.0, 0.0, "its learner trains one site at a time")
    params = job.first(seed)
    if params.nbytes > MOST_BYTES:
        return Gain(1.0, 0.0, "its model is too large to gain by training together")
    try:
        split = job.bench(seed).split(next(iter(data)), Among(data))
        if not isinstance(split.train, Pairs):
            return Gain(1.0, 0.0, "its examples are no (x, y) arrays")
        size = min(len(split.train), learner.batch_size)
        small = Split(split.train[:size])
        asked = len(draw(job.plan(seed), 0, data.names if isinstance(data, Pool) else sorted(data)))
        count = max(1, min(TOGETHER, asked // cores()))
        learner.together([(params, small, TRIAL, None)] * 2)
        many = _seconds(lambda: learner.together([(params, small, TRIAL, None)] * count)) / count
        one = _seconds(lambda: learner.train(params, small, TRIAL, None))
    except Alone as error:
        return Gain(1.0, 0.0, str(error))
    except Exception:  # what a site's data or model raise is told when the site's turn comes, and not here
        return Gain(1.0, 0.0)
    batches = max(1, -(-len(split.train) // size))
    return Gain(one / many, one * batches * asked * (job.rounds or ROUNDS))


def _seconds(work: Callable[[], object]) -> float:
    """The shorter of two tries."""
    tries = []
    for _ in range(2):
        began = time.perf_counter()
        work()
        tries.append(time.perf_counter() - began)
    return min(tries)
