"""The backend `processes`: sites on this machine, worked by persistent processes, each of which folds its own; exact.
A Job and the sites' data come in. `workers` starts them, `shift` divides orders, `worker` does them over a `channel`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from foedus import midway
from foedus.aggregators import Folding
from foedus.backends.local import folded
from foedus.backends.processes.shift import Balance, Shift, Workers
from foedus.backends.processes.worker import Kept
from foedus.backends.processes.workers import Processes, Start, cores, dumps, start_method
from foedus.backends.simulation import Done
from foedus.core import Local, Sum, Task
from foedus.errors import JobError
from foedus.job import Job
from foedus.work import Order

__all__ = ["crew"]

APART = "one site after another"  # the event of a run whose sites were to train together


@contextmanager
def crew(
    job: Job,
    data: Mapping[str, Any],
    seed: int,
    workers: int | None = None,
    note: Callable[..., object] = lambda why, what="": None,
    start: Start | None = None,
    together: bool = False,
) -> Iterator[Hands]:
    """A Crew of `workers` processes (None: one a core), never more than there are sites; they end with the block.

    `note` hears of workers that died. `start` is how they begin, by default "fork" where that is safe. With `together`
    each trains its sites at once, which only comes close; `note` hears why where they cannot.
    Raises JobError for a Job that cannot be sent to them.
    """
    check(workers)
    processes = Processes((job, data, seed, midway.folder), min(workers or cores(), len(data)), start or start_method())
    try:
        processes.open()
        yield Hands(processes, note, together)
    finally:
        processes.close()


def check(workers: int | None) -> None:
    """Raises JobError for a number of workers that is none."""
    whole = isinstance(workers, int) and not isinstance(workers, bool)
    if workers is not None and not (whole and workers >= 1):
        raise JobError(f"workers={workers!r}: give a whole number of at least 1, or None for one a core")


class Hands:
    """A Crew whose members are workers, each with a Bench and a sum of its own."""

    def __init__(self, workers: Workers[Any], note: Callable[..., object], together: bool = False) -> None:
        self.workers, self.note, self.balance, self.together = workers, note, Balance(), together
        self.told: set[str] = set()  # why sites did not train together

    def fold(self, task: Task, orders: Sequence[Order], locals: Mapping[str, Local], into: Folding) -> list[Done]:
        """Each worker folds what its sites return, and `into` takes over one sum of each.

        For a Gather, or a Sum that cannot be sent, the updates come back one by one.
        """
        code = _code(task.aggregator)
        if code is None:
            return self._shift(task, orders, locals, None, settle=partial(_folded, into)).run()
        found = self._shift(task, orders, locals, code, merge=partial(_merge, task, into)).run()
        into.sums += [done.outcome.metrics for done in found if done.outcome.status == "counted"]
        return found

    def each(self, task: Task, orders: Sequence[Order], locals: Mapping[str, Local]) -> list[Done]:
        """Each site's Done with its update."""
        return self._shift(task, orders, locals, None).run()

    def _shift(self, *args: Any, **how: Any) -> Shift:
        how["apart"] = self._apart if self.together else None
        return Shift(self.workers, self.balance, self.note, *args, **how)

    def _apart(self, why: str) -> None:
        """Tells once what each worker finds."""
        if why not in self.told:
            self.told.add(why)
            self.note(why, what=APART)


def _code(aggregator: Any) -> bytes | None:
    """The pickle of a Sum; None for what workers cannot have."""
    if not isinstance(aggregator, Sum):
        return None
    try:
        return dumps(aggregator)
    except Exception:  # pickling raises whatever an object raises
        return None


def _folded(into: Folding, order: Order, done: Done) -> Done:
    return done if done.update is None else folded(done, order, into)


def _merge(task: Task, into: Folding, kept: Kept) -> None:
    assert task.aggregator is not None
    other = Folding(task.aggregator, into.spec, len(task.sites))
    other.acc, other.most, other.units, other.count = kept
    into.merge(other)
