"""The backend `vectorized`: sites train many at once, in this process until it is known that all cores pay; close.
A Job and the sites' data come in; each worker of `processes` then trains its share of a Task's sites together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

from foedus.aggregators import Folding
from foedus.backends import processes
from foedus.backends.auto import ROUNDS, SAVES
from foedus.backends.processes.workers import cores
from foedus.backends.simulation import Crew, Done
from foedus.backends.vectorized import Many
from foedus.core import EVALUATE, Local, Task
from foedus.job import Job
from foedus.work import Order

LEAST = 0.02  # seconds of a Task that are worth the messages


@contextmanager
def crew(
    job: Job,
    data: Mapping[str, Any],
    seed: int,
    workers: int | None = None,
    note: Callable[..., object] = lambda why, what="": None,
) -> Iterator[Crew]:
    """A Crew of `workers` processes (None: this one, and one a core when that pays), which end with the block.

    `note` hears when it grows, why sites train one after another, and of workers that died. Raises JobError for a
    number of workers that is none, or a Job that cannot be sent to them.
    """
    processes.check(workers)
    count = min(workers or cores(), len(data))
    start = partial(processes.crew, job, data, seed, count, note)
    with ExitStack() as open:
        if workers is not None and count > 1:
            yield open.enter_context(start(together=True))
            return
        many = Many(job, data, seed, partial(note, what=processes.APART))
        yield many if count == 1 else Widening(job, many, count, start, open, partial(note, what="backend"))


class Widening:
    """A Crew of this process that goes on in `count` processes when the rest of the run would take long enough.

    What a step costs, however many sites take it, each process pays for itself, so that few sites may gain nothing:
    where the second Task there took as long as one here, the run comes back for good.
    """

    def __init__(
        self, job: Job, many: Many, count: int, start: Callable[..., Any], open: ExitStack, note: Callable[..., object]
    ) -> None:
        self.rounds, self.many, self.count = job.rounds or ROUNDS, many, count
        self.start, self.open, self.note = start, open, note
        self.crew: Crew = many
        self.warm = self.settled = False  # the present crew did what is done once; nothing is left to decide
        self.here = 0.0  # seconds a site in this process, the last time it was measured

    def fold(self, task: Task, orders: Sequence[Order], locals: Mapping[str, Local], into: Folding) -> list[Done]:
        return self._parts(orders, lambda part: self.crew.fold(task, part, locals, into))

    def each(self, task: Task, orders: Sequence[Order], locals: Mapping[str, Local]) -> list[Done]:
        return self._parts(orders, lambda part: self.crew.each(task, part, locals))

    def _parts(self, orders: Sequence[Order], work: Callable[[Sequence[Order]], list[Done]]) -> list[Done]:
        """The Task's work; of the run's first one an eighth, then an eighth that is measured, then the rest."""
        found, n = list[Done](), len(orders)
        first = not self.warm and not self.here and n >= 8
        for a, b in pairwise((0, n // 8, n // 4, n) if first else (0, n)):
            began = time.perf_counter()
            found += work(orders[a:b])
            if self.warm and not self.settled and n and orders[0].work != EVALUATE:
                left = n - b + n * max(0, self.rounds - orders[0].round - 1)
                self._look((time.perf_counter() - began) / (b - a), n, left, least=SAVES if b - a < n else LEAST)
            else:
                self.warm = True
        return found

    def _look(self, seconds: float, sites: int, left: int, least: float) -> None:
        """Decides where the run goes on, when each of a Task's sites took `seconds` and `left` of them remain."""
        if self.crew is not self.many:
            self.settled = True
            if seconds > self.here:
                self.crew = self.many
                self.open.close()
                self.note("one process again: several took as long")
        elif seconds * sites > least and seconds * left * (1 - 1 / self.count) > 2 * SAVES:
            self.crew, self.warm, self.here = (
                self.open.enter_context(self.start(together=not self.many.alone)),
                False,
                seconds,
            )
            how = "one after another" if self.many.alone else "many at once in each"
            self.note(f"{self.count} processes, {how}, for {sites} sites took {seconds * sites:.2g} s in one")
