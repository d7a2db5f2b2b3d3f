"""The backend `processes`: sites on this machine, worked by persistent processes, each of which folds its own; exact.
A Job and the sites' data come in; the other end is `worker`.

Workers are forked where that is safe. With one thread a library none of its parallel regions is entered, and every fork
is made by a thread that never ran one: the pools of OpenMP, which do not survive a fork, belong to threads.
"""

from __future__ import annotations

import os
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import connection, get_context
from typing import Any, Literal, NamedTuple

from foedus.aggregators import Folding
from foedus.backends.local import folded
from foedus.backends.simulation import Done
from foedus.backends.worker import Answer, Brief, Channel, Failed, Given, Packed, Report, pack, retold, serve
from foedus.core import Local, Outcome, Sum, Task
from foedus.errors import FoedusError, JobError, SiteError
from foedus.job import Job
from foedus.work import Order

QUANTUM = 0.005  # seconds of work that a message is worth
SHARE = 4  # of what is left, a worker takes the SHARE-th part of an even share: little at the end, for balance
DEATHS = 3  # of workers that had only this site to do, or of new ones in a row
GLANCE = 1.0  # seconds until a worker that says nothing is looked at

Start = Literal["fork", "spawn"]
Note = Callable[[str], object]


@contextmanager
def crew(
    job: Job,
    data: Mapping[str, Any],
    seed: int,
    workers: int | None = None,
    note: Note = lambda why: None,
    start: Start | None = None,
) -> Iterator[Workers]:
    """A Crew of `workers` processes (None: one a core), never more than there are sites; they end with the block.

    `note` hears of workers that died. `start`: how they begin, "fork" where that is safe.
    Raises JobError for a Job that cannot be sent to them.
    """
    if workers is not None and workers < 1:
        raise JobError(f"workers={workers}: give at least 1, or None for one a core")
    hands = Workers(job, data, seed, min(workers or cores(), len(data)), note, start or start_method())
    try:
        hands.open()
        yield hands
    finally:
        hands.close()


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def start_method() -> Start:
    """ "fork", which takes milliseconds; "spawn" where threads or a GPU's driver would not survive that."""
    torch = sys.modules.get("torch")
    gpu = torch is not None and bool(torch.version.cuda) and torch.cuda.device_count() > 0
    return "fork" if sys.platform == "linux" and not gpu and "jax" not in sys.modules else "spawn"


class Worker:
    """A worker as its parent sees it: a process, the pipe to it, and what it was given."""

    def __init__(self, number: int, process: Any, channel: Channel) -> None:
        self.number, self.process, self.channel = number, process, channel
        self.ready = False
        self.brief = 0  # the number of the last one it was sent
        self.batch: list[int] | None = None  # the orders it works on; None: it waits
        self.held: list[int] = []  # orders that it folded, and whose sum is still there alone

    @property
    def pipe(self) -> Any:
        return self.channel.connection

    def end(self) -> str:
        """Ends the process, if it has not ended, and says what it died of."""
        self.pipe.close()
        if self.process.pid is None:
            return "it never began"
        code = self.process.exitcode
        self.process.kill()
        self.process.join()
        code = self.process.exitcode if code is None else code
        self.process.close()
        return f"signal {-code}" if code < 0 else f"exit code {code}"


class Workers:
    """A Crew of worker processes. A dead one is replaced, and what it did not deliver is done again: the same bits."""

    def __init__(self, job: Job, data: Mapping[str, Any], seed: int, count: int, note: Note, start: Start) -> None:
        self.given, self.count, self.note, self.start = (job, data, seed), count, note, start
        self.packed = None if start == "fork" else packed_job(self.given)
        self.context: Any = get_context(start)
        self.starter = ThreadPoolExecutor(1)  # Linux tells a process's children when the thread that made them ends
        self.workers: dict[int, Worker] = {}
        self.failures = 0  # workers in a row that never were ready
        self.balance = Balance()
        self.briefed: tuple[Task | None, bool] = (None, False)
        self.brief, self.briefs = pack(None), 0

    def open(self) -> None:
        for number in range(self.count):
            self.begin(number)
        for worker in self.workers.values():
            self.send_job(worker)

    def close(self) -> None:
        """Ends all workers, whatever they do."""
        self.starter.shutdown()
        for worker in self.workers.values():
            worker.end()
        for packed in (self.brief, self.packed):
            if packed is not None:
                packed.close()

    def fold(self, task: Task, orders: Sequence[Order], locals: Mapping[str, Local], into: Folding) -> list[Done]:
        """Every worker folds what its sites return, `into` takes over one accumulator of each.

        A Gather, or a Sum that cannot be sent, has the updates come back one by one.
        """
        code = sent_code(task.aggregator)
        if code is None:
            return Shift(self, task, orders, locals, None, lambda order, done: folded(done, order, into)).run()

        def merge(kept: Any) -> None:
            other = Folding(task.aggregator, into.spec, len(task.sites))  # type: ignore[arg-type]
            other.acc, other.most, other.units, other.count = kept
            into.merge(other)

        found = Shift(self, task, orders, locals, code, merge=merge).run()
        into.sums += [done.outcome.metrics for done in found if done.outcome.status == "counted"]
        return found

    def each(self, task: Task, orders: Sequence[Order], locals: Mapping[str, Local]) -> list[Done]:
        """Every site's Done with its update."""
        return Shift(self, task, orders, locals, None).run()

    def begin(self, number: int) -> Worker:
        """A new process in the place of that number."""
        mine, theirs = self.context.Pipe()
        fork = self.start == "fork"
        others = [*(worker.pipe for worker in self.workers.values()), mine] if fork else []
        process = self.context.Process(target=serve, args=(theirs, self.given if fork else None, others))
        self.workers[number] = worker = Worker(number, process, Channel(mine))
        self.starter.submit(_started, process).result()
        theirs.close()
        return worker

    def send_job(self, worker: Worker) -> None:
        if self.packed is not None:
            with suppress(OSError):  # its death is seen when it is listened to
                worker.channel.send(self.packed)

    def replaced(self, worker: Worker) -> str:
        """What the worker died of, when another is in its place. Raises FoedusError if new ones die again and again."""
        cause = worker.end()
        self.failures = 0 if worker.ready else self.failures + 1
        if self.failures == DEATHS:
            remedy = "where your script starts the run, put that under `if __name__ == '__main__':`, or use backend='local'"
            raise FoedusError(f"worker processes do not start ({cause}): {remedy}")
        self.balance.forget(worker.number)
        self.send_job(self.begin(worker.number))
        return cause

    def say(self, worker: Worker, task: Task, order: Order, code: bytes | None, given: Given) -> None:
        """Sends orders, and before them the Task's brief to a worker that has not had it."""
        if self.briefed[0] is not task or self.briefed[1] != (code is None):
            self.brief.close()
            returns = order.returns if order.returns is not None else task.payload.spec
            asked = len(task.sites)
            self.brief = pack(Brief(task.payload, order.work, order.round, order.task, returns, asked, code))
            self.briefed, self.briefs = (task, code is None), self.briefs + 1
        if worker.brief != self.briefs:
            worker.channel.send(self.brief)
            worker.brief = self.briefs
        worker.channel.send(given)

    def heard(self) -> Iterator[tuple[Worker, Any]]:
        """Workers that answered, each with its message, or None if it is dead."""
        awaited = {w.pipe: w for w in self.workers.values() if w.batch is not None or not w.ready}
        there = connection.wait(list(awaited), GLANCE)
        for pipe in there:
            worker = awaited[pipe]  # type: ignore[index]
            try:
                message = worker.channel.receive(writable=True)
            except (EOFError, OSError):
                message = None
            yield worker, message
        if not there:
            yield from ((w, None) for w in awaited.values() if w.process.exitcode is not None)


class Shift:
    """One call's orders on their way through the workers, until each has its Done."""

    def __init__(
        self,
        crew: Workers,
        task: Task,
        orders: Sequence[Order],
        locals: Mapping[str, Local],
        code: bytes | None,
        settle: Callable[[Order, Done], Done] = lambda order, done: done if done.update is None else done,
        merge: Callable[[Any], None] = lambda kept: None,
    ) -> None:
        self.crew, self.task, self.orders, self.locals, self.code = crew, task, orders, locals, code
        self.settle, self.merge = settle, merge
        self.found: dict[int, Done] = {}
        self.deaths: dict[int, int] = {}  # of workers, by the order that they worked on
        self.queue = Queue(crew, task.work, [order.site for order in orders])

    def run(self) -> list[Done]:
        while True:
            for worker in list(self.crew.workers.values()):
                if worker.ready and worker.batch is None:
                    self.give(worker)
            if not self.queue.left and all(w.batch is None for w in self.crew.workers.values()):
                return [self.found[i] for i in range(len(self.orders))]
            for worker, message in self.crew.heard():
                self.take(worker, message)
