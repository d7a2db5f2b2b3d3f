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
import signal
import sys
import warnings
from collections import ChainMap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import connection, get_context
from types import CodeType
from typing import Any, Literal

from foedus.backends.processes.channel import Channel, Packed, pack
from foedus.backends.processes.shift import GLANCE, Worker, Workers, same
from foedus.backends.processes.worker import Answer, Brief, Failed, Given, Sent, serve
from foedus.errors import JobError
from foedus.stall import cpu_seconds

Start = Literal["fork", "spawn"]


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def start_method() -> Start:
    """How workers begin: a fork takes milliseconds, but threads and drivers of some libraries do not survive it."""
    torch = sys.modules.get("torch")
    gpu = torch is not None and bool(torch.version.cuda) and torch.cuda.device_count() > 0
    return "fork" if sys.platform == "linux" and not gpu and "jax" not in sys.modules else "spawn"


class Way:
    """The way to a worker: its process, and the pipe to it."""

    def __init__(self, process: Any, channel: Channel, told: Any) -> None:
        self.process, self.channel, self.told = process, channel, told
        self.brief: Packed | None = None  # the last one it was sent

    def figure(self) -> tuple[int, float] | None:
        """What it told of its progress, and its CPU time; None where that is not known."""
        seconds = None if self.process.pid is None else cpu_seconds(self.process.pid)
        return None if seconds is None else (self.told.value, seconds)

    def end(self) -> str:
        """What the process died of, now at the latest."""
        self.channel.connection.close()
        if self.process.pid is None:
            return "it never began"
        with suppress(ProcessLookupError):  # too young to have a group
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        code = self.process.exitcode
        self.process.close()
        return f"signal {-code}" if code < 0 else f"exit code {code}"


class Processes(Workers[Way]):
    """Workers that are processes of this machine."""

    stillborn_text = (
        "worker processes end as soon as they start ({cause}): put what starts the run under "
        "`if __name__ == '__main__':`, or use backend='local'"
    )

    def __init__(self, sent: Sent, count: int, start: Start) -> None:
        super().__init__(count)
        self.sent, self.start = sent, start
        self.packed = _packed(sent) if start == "spawn" else None
        self.starter = ThreadPoolExecutor(1)  # stays, for Linux ends its children with it
        self.briefed: Brief | None = None
        self.brief = pack(None)

    def begin(self, number: int) -> Way:
        context: Any = get_context(self.start)
        mine, theirs = context.Pipe()
        told = context.RawValue("q", 0)
        process = context.Process(
            target=serve, args=(theirs, self.sent if self.start == "fork" else None, told, number)
        )
        self.starter.submit(_start, process).result()
        theirs.close()
        return Way(process, Channel(mine), told)

    def greet(self, worker: Worker[Way]) -> None:
        if self.packed is not None:
            with suppress(OSError):  # that it is dead is seen when it is listened to
                worker.way.channel.send_packed(self.packed)

    def tell(self, worker: Worker[Way], brief: Brief, given: Given) -> None:
        if not same(self.briefed, brief):
            self.brief.close()
            self.brief, self.briefed = pack(brief), brief
        if worker.way.brief is not self.brief:
            worker.way.channel.send_packed(self.brief)
            worker.way.brief = self.brief
        worker.way.channel.send(given)

    def heard(self) -> Iterator[tuple[Worker[Way], Answer | Failed | None]]:
        awaited: dict[Any, Worker[Way]] = {worker.way.channel.connection: worker for worker in self.awaited()}
        there = connection.wait(list(awaited), GLANCE)
        for pipe in there:
            yield awaited[pipe], self._message(awaited[pipe])
        if not there:  # processes that a dead worker started may hold its end of the pipe
            dead = [worker for worker in awaited.values() if worker.way.process.exitcode is not None]
            yield from ((worker, None) for worker in dead)

    def _message(self, worker: Worker[Way]) -> Any:
        try:
            message = worker.way.channel.receive(mmap.ACCESS_WRITE)
        except (EOFError, OSError):
            return None
        self.up(worker)
        return message

    def close(self) -> None:
        """Ends all workers, whatever they do."""
        self.starter.shutdown()
        for worker in self.all.values():
            worker.way.end()
        self.brief.close()
        if self.packed is not None:
            self.packed.close()


def dumps(value: Any, **how: Any) -> bytes:
    """A pickle of the value, with the code in it that no module of another process has."""
    try:
        import cloudpickle  # type: ignore[import-untyped]
    except ImportError:
        return pickle.dumps(value, **how)
    for name in [name for name in list(sys.modules) if name.startswith("foedus_job_")]:
        cloudpickle.register_pickle_by_value(sys.modules[name])  # a job file, imported under a name no search finds
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
    with sendable():
        return pack(sent, dumps)


@contextmanager
def sendable() -> Iterator[None]:
    """JobError with the remedy, where what is pickled inside the block cannot be."""
    try:
        yield
    except Exception as error:
        raise JobError(
            f"this Job cannot be sent to worker processes ({type(error).__name__}: {error}): keep open files, locks "
            "and the like out of it and out of the sites' data, or use backend='local'"
        ) from error


def _start(process: Any) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)  # Python 3.12+, beside any other thread
        process.start()
