"""Who does which site next: the longest first, each where its data is loaded unless it would wait there in vain.
Orders come in, and workers; a worker that dies costs time, never an update or a bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from time import monotonic
from typing import Any, Generic, Protocol, TypeVar

from foedus.backends.processes.worker import Answer, Brief, Failed, Given, Kept, Report, retold
from foedus.backends.simulation import Done
from foedus.core import Deadline, Local, Outcome, Task
from foedus.errors import FoedusError, SiteError
from foedus.params import Params
from foedus.progress import site_done
from foedus.stall import Still
from foedus.work import Order

QUANTUM = 0.005  # seconds of work that are worth a message
SHARE = 4  # a worker takes the SHARE-th part of its share of what is left: ever less, so that all end together
MOST_KNOWN = 1 << 14  # sites of which something is known: those that were last at work
DEATHS = 3  # of workers that had nothing to do but this order
STILLBORN = 3  # workers that end before they are ready, and none gets ready in between
GLANCE = 1.0  # seconds until those that say nothing are looked at
LOOK = 5.0  # seconds between two looks at whether workers get on


class Way(Protocol):
    """How a worker is reached."""

    def end(self) -> str:
        """Ends the worker if it is alive, and says what it died of."""

    def figure(self) -> Any:
        """What changes while the worker gets on; None where nobody knows."""


W = TypeVar("W", bound=Way)


class Worker(Generic[W]):
    """One worker: the way to it, and what it was given."""

    def __init__(self, number: int, way: W) -> None:
        self.number, self.way = number, way
        self.ready = False
        self.batch: list[int] | None = None  # the orders it works on; None: it waits
        self.held: list[int] = []  # orders whose updates are nowhere but in its own sum
        self.still = Still()


class Workers(ABC, Generic[W]):
    """A fixed number of workers, however they are reached; a dead one is replaced."""

    stillborn_text = "workers end as soon as they start ({cause}): use backend='local'"

    def __init__(self, count: int) -> None:
        self.count, self.stillborn = count, 0
        self.all: dict[int, Worker[W]] = {}

    @abstractmethod
    def begin(self, number: int) -> W:
        """A new worker, the one of that number."""

    @abstractmethod
    def greet(self, worker: Worker[W]) -> None:
        """Sends it the Job. It answers when it is ready."""

    @abstractmethod
    def tell(self, worker: Worker[W], brief: Brief, given: Given) -> None:
        """Sends orders, and before them the brief if the worker has not had it. Raises OSError if it is dead."""

    @abstractmethod
    def heard(self) -> Iterator[tuple[Worker[W], Answer | Failed | None]]:
        """Workers that said something, each with its message, or None if it is dead."""

    def open(self) -> None:
        for number in range(self.count):
            self.all[number] = Worker(number, self.begin(number))
        for worker in self.all.values():
            self.greet(worker)

    def idle(self) -> bool:
        """Whether none has anything to do."""
        return all(worker.batch is None for worker in self.all.values())

    def free(self) -> list[Worker[W]]:
        """Those that wait for orders."""
        return [worker for worker in self.all.values() if worker.ready and worker.batch is None]

    def up(self, worker: Worker[W]) -> None:
        """Notes that the worker is ready."""
        worker.ready, self.stillborn = True, 0

    def awaited(self) -> list[Worker[W]]:
        """Those that have something to say."""
        return [worker for worker in self.all.values() if worker.batch is not None or not worker.ready]

    def replace(self, worker: Worker[W]) -> str:
        """What the worker died of, once another is in its place. Raises FoedusError if none gets ready."""
        cause = self.all.pop(worker.number).way.end()
        self.stillborn += not worker.ready
        if self.stillborn == STILLBORN:
            raise FoedusError(self.stillborn_text.format(cause=cause))
        fresh = self.all[worker.number] = Worker(worker.number, self.begin(worker.number))
        self.greet(fresh)
        return cause


class Balance:
    """What is known of sites: the seconds of each work and of loading, and which worker has the data."""

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, str], float] = {}
        self.loading: dict[str, float] = {}
        self.home: dict[str, int] = {}

    def costs(self, orders: Sequence[Order]) -> list[float]:
        """Seconds of each order; one that was never done takes as long as the others."""
        known = [self.seconds.get((order.work, order.site)) for order in orders]
        found = [x for x in known if x is not None]
        usual = sum(found) / len(found) if found else QUANTUM
        return [usual if x is None else x for x in known]

    def learn(self, order: Order, worker: int, report: Report) -> None:
        _remember(self.home, order.site, worker)
        _remember(self.seconds, (order.work, order.site), report.seconds)
        if report.loading:
            _remember(self.loading, order.site, report.loading)

    def forget(self, worker: int) -> None:
        """A worker has no data any more."""
        self.home = {site: number for site, number in self.home.items() if number != worker}


class Shift:
    """Orders of one Task on their way through the workers.

    `code` is the pickled Sum with which workers fold, or None where updates come back. `settle` hears of each Done, and
    says what is kept of it; `merge` takes over what a worker folded. With `apart` each worker trains its sites
    together, and `apart` hears why it could not.
    """

    def __init__(
        self,
        workers: Workers[Any],
        balance: Balance,
        note: Callable[[str], object],
        task: Task,
        orders: Sequence[Order],
        locals: Mapping[str, Local],
        code: bytes | None,
        settle: Callable[[Order, Done], Done] = lambda order, done: done,
        merge: Callable[[Kept], None] = lambda kept: None,
        apart: Callable[[str], None] | None = None,
    ) -> None:
        self.workers, self.balance, self.note = workers, balance, note
        self.task, self.orders, self.locals, self.code = task, orders, locals, code
        self.settle, self.merge, self.apart = settle, merge, apart
        self.costs = balance.costs(orders)
        self.found: dict[int, Done] = {}
        self.alone: set[int] = set()  # orders that a worker may have died of: they go out one by one
        self.deaths: Counter[int] = Counter()
        self.left: list[int] = []  # nobody works on these
        self.stall, self.looked = (task.deadline or Deadline()).stall, monotonic()
        self._queue(range(len(orders)))

    def run(self) -> list[Done]:
        """A Done for each order, in their order."""
        while True:
            for worker in self.workers.free():
                self._give(worker)
            if not self.left and self.workers.idle():
                return [self.found[i] for i in range(len(self.orders))]
            for worker, message in self.workers.heard():
                self._take(worker, message)
            self._look()

    def _look(self) -> None:
        """Ends a worker that neither tells of progress nor uses CPU time for as long as the deadline's `stall`."""
        if monotonic() - self.looked < min(LOOK, self.stall / 4):
            return
        self.looked = monotonic()
        for worker in self.workers.awaited():
            figure = worker.way.figure()
            if figure is not None and worker.still.seconds(figure) > self.stall:
                self._lose(worker, f"no progress for {self.stall:g} s")

    def _queue(self, more: Iterable[int]) -> None:
        self.left = sorted([*self.left, *more], key=lambda i: (i not in self.alone, -self.costs[i], i))

    def _give(self, worker: Worker[Any]) -> None:
        """Gives the worker orders, or has it hand over what it folded, or leaves it in peace."""
        batch = self._dealt(worker) if self.apart else self._batch(worker)
        if not batch and not worker.held:
            return
        worker.batch, worker.still, gone = batch, Still(), set(batch)
        self.left = [i for i in self.left if i not in gone]
        orders = [self._given(self.orders[i], i) for i in batch]
        try:
            last = not self.left or not batch or self.apart is not None
            self.workers.tell(worker, self._brief(), Given(orders, last))
        except OSError:
            self._lose(worker)

    def _given(self, order: Order, number: int) -> tuple[int, str, Local, Params | None]:
        return number, order.site, self.locals.get(order.site), self.task.letters.get(order.site)

    def _brief(self) -> Brief:
        one = self.orders[0]
        returns = one.payload.spec if one.returns is None else one.returns
        asked, together = len(self.task.sites), self.apart is not None
        return Brief(self.task.payload, one.work, one.round, one.task, returns, asked, self.code, together, one.seal)

    def _batch(self, worker: Worker[Any]) -> list[int]:
        """Many short orders, or one: where updates come back, or where workers died."""
        share = sum(self.costs[i] for i in self.left) / (SHARE * self.workers.count)
        room = 0.0 if self.code is None else max(QUANTUM, share)
        batch: list[int] = []
        for i in self._within_reach(worker):
            room -= self.costs[i]
            if batch and (room < 0 or batch[0] in self.alone):
                break
            batch.append(i)
        return batch

    def _dealt(self, worker: Worker[Any]) -> list[int]:
        """Its share of all that is left, short orders and long ones, at once; or one where workers died."""
        if self.left and self.left[0] in self.alone:
            return self.left[:1]
        heavy = {i for i in self.left if self._loading(i) > QUANTUM}  # these stay where their data is
        own = [i for i in heavy if self.balance.home.get(self.orders[i].site, worker.number) == worker.number]
        others = sum(w.batch is None for w in self.workers.all.values())
        return sorted([*own, *[i for i in self.left if i not in heavy][::others]])

    def _within_reach(self, worker: Worker[Any]) -> list[int]:
        """Orders whose data is here or nowhere; without any, others' that would be done there later than here."""
        homes = {i: self.balance.home.get(self.orders[i].site, worker.number) for i in self.left}
        own = [i for i in self.left if homes[i] == worker.number]
        if own:
            return own
        busy = {w.number: sum(self.costs[i] for i in w.batch or ()) for w in self.workers.all.values()}
        for i in self.left:
            busy[homes[i]] += self.costs[i]
        return [i for i in self.left if self.costs[i] + self._loading(i) <= busy[homes[i]]]

    def _loading(self, i: int) -> float:
        return self.balance.loading.get(self.orders[i].site, 0.0)

    def _take(self, worker: Worker[Any], message: Answer | Failed | None) -> None:
        if isinstance(message, Failed):
            raise message.error()
        if message is None:
            self._lose(worker)
            return
        for why in message.notes:
            if self.apart is not None:
                self.apart(why)
        for report in message.reports:
            self._settle(worker, report)
        if self.code is not None:
            worker.held += worker.batch or []
        if message.kept is not None:
            self.merge(message.kept)
            worker.held = []
        worker.batch = None

    def _settle(self, worker: Worker[Any], report: Report) -> None:
        order = self.orders[report.order]
        error = None if report.error is None else retold(*report.error)
        self.found[report.order] = self.settle(order, report.done._replace(error=error))
        self.balance.learn(order, worker.number, report)
        site_done(order.site)

    def _lose(self, worker: Worker[Any], stalled: str = "") -> None:
        """Has done again what a dead worker had folded, and, one by one, what it may have died of.

        `stalled`: why it is ended; the second time that is the last, for it took long.
        """
        doing, held = worker.batch or [], worker.held
        died = self.workers.replace(worker)
        cause = stalled or died
        self.balance.forget(worker.number)
        self.alone.update(doing)
        self.deaths.update(doing * (DEATHS - 1 if stalled else 1) if len(doing) == 1 else ())
        hopeless = [i for i in doing if self.deaths[i] >= DEATHS]
        for i in hopeless:
            self.found[i] = _declined(self.orders[i], cause, bool(stalled))
        self._queue(i for i in [*doing, *held] if i not in hopeless)
        sites = ", ".join(self.orders[i].site for i in doing) or "no site"
        fate = "was ended" if stalled else "died"
        self.note(
            f"worker {worker.number} {fate} ({cause}) at work for {sites}; what it had not delivered is done again"
        )


def same(known: Brief | None, brief: Brief) -> bool:
    """Whether the workers that had the known brief need not have this one."""
    return known is not None and known.payload is brief.payload and known[1:] == brief[1:]


def _remember(known: dict[Any, Any], name: Any, value: Any) -> None:
    known.pop(name, None)
    known[name] = value
    if len(known) > MOST_KNOWN:
        del known[next(iter(known))]


def _declined(order: Order, cause: str, stalled: bool) -> Done:
    why = cause if stalled else f"worker died: {cause}"
    remedy = "look for what it waits for, or allow more: fd.Job(…, deadline=fd.Deadline(stall=…))"
    error = SiteError(order.site, order.work, why, remedy if stalled else "if memory was short, use fewer workers")
    return Done(Outcome(order.site, "declined", why), error=error)
