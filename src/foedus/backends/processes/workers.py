"""Worker processes as their parent has them: how they start, what is said to them, what they died of.
A Job and the sites' data come in; nothing here knows which orders there are.

Workers are forked where that is safe. A pool of threads that OpenMP keeps does not survive a fork, and the next
parallel region waits for it for ever; but it belongs to the thread that made it, so the thread that forks runs none.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import sys
import warnings
from collections import ChainMap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing import connection, get_context
from types import CodeType
from typing import Any, Literal

from foedus.backends.processes.channel import Channel, Packed, pack
from foedus.backends.processes.worker import Brief, Given, Sent, serve
from foedus.errors import FoedusError, JobError

STILLBORN = 3  # workers that end before they are ready, and none gets ready in between
GLANCE = 1.0  # seconds until those that say nothing are looked at

Start = Literal["fork", "spawn"]


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def start_method() -> Start:
    """How workers begin: a fork takes milliseconds, but threads and drivers of some libraries do not survive it."""
    torch = sys.modules.get("torch")
    gpu = torch is not None and bool(torch.version.cuda) and torch.cuda.device_count() > 0
    return "fork" if sys.platform == "linux" and not gpu and "jax" not in sys.modules else "spawn"


class Worker:
    """One worker: its process, the pipe to it, and what it was given."""

    def __init__(self, number: int, process: Any, channel: Channel) -> None:
        self.number, self.process, self.channel = number, process, channel
        self.ready = False
        self.brief: Packed | None = None  # the last one it was sent
        self.batch: list[int] | None = None  # the orders it works on; None: it waits
        self.held: list[int] = []  # orders whose updates are nowhere but in its own sum

    def end(self) -> str:
        """What the process died of, now at the latest."""
        self.channel.connection.close()
        if self.process.pid is None:
            return "it never began"
        self.process.kill()
        self.process.join()
        code = self.process.exitcode
        self.process.close()
        return f"signal {-code}" if code < 0 else f"exit code {code}"


class Workers:
    """A fixed number of workers; a dead one is replaced."""

    def __init__(self, sent: Sent, count: int, start: Start) -> None:
        self.sent, self.count, self.start = sent, count, start
        self.packed = _packed(sent) if start == "spawn" else None
        self.starter = ThreadPoolExecutor(1)  # stays, for Linux ends its children with it
        self.all: dict[int, Worker] = {}
        self.stillborn = 0  # workers that ended before any was ready
        self.briefed: Brief | None = None
        self.brief = pack(None)

    def open(self) -> None:
        for number in range(self.count):
            self._begin(number)
        for worker in self.all.values():
            self._send_job(worker)

    def close(self) -> None:
        """Ends all workers, whatever they do."""
        self.starter.shutdown()
        for worker in self.all.values():
            worker.end()
        self.brief.close()
        if self.packed is not None:
            self.packed.close()

    def idle(self) -> bool:
        """Whether none has anything to do."""
        return all(worker.batch is None for worker in self.all.values())

    def free(self) -> list[Worker]:
        """Those that wait for orders."""
        return [worker for worker in self.all.values() if worker.ready and worker.batch is None]

    def tell(self, worker: Worker, brief: Brief, given: Given) -> None:
        """Sends orders, and before them the brief if the worker has not had it. Raises OSError if it is dead."""
        known = self.briefed
        if known is None or known.payload is not brief.payload or known[1:] != brief[1:]:
            self.brief.close()
            self.brief, self.briefed = pack(brief), brief
        if worker.brief is not self.brief:
            worker.channel.send_packed(self.brief)
            worker.brief = self.brief
        worker.channel.send(given)

    def heard(self) -> Iterator[tuple[Worker, Any]]:
        """Workers that said something, each with its message, or None if it is dead."""
        awaited: dict[Any, Worker] = {
            worker.channel.connection: worker
            for worker in self.all.values()
            if worker.batch is not None or not worker.ready
        }
        there = connection.wait(list(awaited), GLANCE)
        for pipe in there:
            yield awaited[pipe], self._message(awaited[pipe])
        if not there:  # processes that a dead worker started may hold its end of the pipe
            yield from ((worker, None) for worker in awaited.values() if worker.process.exitcode is not None)

    def _message(self, worker: Worker) -> Any:
        try:
            message = worker.channel.receive(mmap.ACCESS_WRITE)
        except (EOFError, OSError):
            return None
        if not worker.ready:
            worker.ready, self.stillborn = True, 0
        return message

    def replace(self, worker: Worker) -> str:
        """What the worker died of, once another is in its place. Raises FoedusError if none gets ready."""
        cause = self.all.pop(worker.number).end()
        self.stillborn += not worker.ready
        if self.stillborn == STILLBORN:
            remedy = "put what starts the run under `if __name__ == '__main__':`, or use backend='local'"
            raise FoedusError(f"worker processes end as soon as they start ({cause}): {remedy}")
        self._begin(worker.number)
        self._send_job(self.all[worker.number])
        return cause

    def _begin(self, number: int) -> None:
        context: Any = get_context(self.start)
        mine, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, self.sent if self.start == "fork" else None))
        self.all[number] = Worker(number, process, Channel(mine))
        self.starter.submit(_start, process).result()
        theirs.close()

    def _send_job(self, worker: Worker) -> None:
        if self.packed is not None:
            with suppress(OSError):  # that it is dead is seen when it is listened to
                worker.channel.send_packed(self.packed)


def dumps(value: Any, **how: Any) -> bytes:
    """A pickle of the value, with the code in it that no module of another process has."""
    try:
        import cloudpickle  # type: ignore[import-untyped]
    except ImportError:
        return pickle.dumps(value, **how)
    for name, module in list(sys.modules.items()):
        if name.startswith("foedus_job_"):  # a job file, imported under a name that no search finds
            cloudpickle.register_pickle_by_value(module)
    usual, file = cloudpickle.Pickler.dispatch_table, io.BytesIO()
    table = ChainMap({CodeType: partial(_code, usual[CodeType])}, usual)
    type("Pickler", (cloudpickle.Pickler,), {"dispatch_table": table})(file, **how).dump(value)
    return file.getvalue()


def _code(reduce: Callable[[CodeType], tuple[Any, ...]], code: CodeType) -> tuple[Any, ...]:
    """Code as cloudpickle reduces it, but with its file's name, which an error is to show."""
    make, parts = reduce(code)[:2]
    return _named, (code.co_filename, make, parts)


def _named(file: str, make: Callable[..., CodeType], parts: tuple[Any, ...]) -> CodeType:
    return make(*parts).replace(co_filename=file)


def _packed(sent: Sent) -> Packed:
    try:
        return pack(sent, dumps)
    except Exception as error:
        raise JobError(
            f"this Job cannot be sent to worker processes ({type(error).__name__}: {error}): keep open files, locks "
            "and the like out of it and out of the sites' data, or use backend='local'"
        ) from error


def _start(process: Any) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)  # Python 3.12+, beside any other thread
        process.start()
