"""A worker process of the backend `processes`, and how it and its parent talk: small values through a pipe, large arrays
in memory that both map. A Job and the sites' data come in, then one Brief a Task and orders; nothing here decides.
"""

from __future__ import annotations

import copyreg
import ctypes
import gc
import mmap
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any, NamedTuple

from foedus import build
from foedus.aggregators import Folding
from foedus.backends.local import folded, perform
from foedus.backends.simulation import Done
from foedus.core import Local
from foedus.errors import FoedusError, JobError, Refused, SiteError
from foedus.params import Params, Spec
from foedus.work import Order, describe

APART = 1 << 15  # an array of so many bytes travels in shared memory
LINE = 64  # where it begins there is a multiple of this
PR_SET_PDEATHSIG = 1

Kept = tuple[Any, Any, int, int]  # what a Folding holds: its accumulators, units of weight, and count

copyreg.pickle(Params, lambda params: (Params.of, (params.spec, dict(params.flats))))  # type: ignore[arg-type]


class Packed(NamedTuple):
    """A value on its way: a pickle, and the memory (a descriptor) that holds its large arrays from `starts` to `ends`."""

    head: bytes
    starts: list[int]
    ends: list[int]
    memory: int = -1

    def close(self) -> None:
        if self.memory >= 0:
            os.close(self.memory)


class Brief(NamedTuple):
    """What a worker needs of a Task, sent once; `code` is the pickled Sum, None where updates are to come back."""

    payload: Params
    work: str
    round: int
    task: int
    returns: Spec
    asked: int
    code: bytes | None


class Given(NamedTuple):
    """Orders for a worker, as (index, site, local); with `last`, what it folded is to come back too."""

    orders: Sequence[tuple[int, str, Local]]
    last: bool


class Report(NamedTuple):
    """What became of one order, its seconds of work and, where they were not yet there, of loading the site's data."""

    index: int
    done: Done
    seconds: float
    loading: float
    error: tuple[Any, ...] | None


class Answer(NamedTuple):
    """A worker's answer to Given; an empty one says that it is there."""

    reports: Sequence[Report] = ()
    kept: Kept | None = None


class Failed(NamedTuple):
    """Why a worker cannot go on, told as text."""

    job: bool  # whether the Job is at fault
    why: str
    trace: str

    def error(self) -> FoedusError:
        found = JobError(self.why) if self.job else FoedusError(f"a worker process failed: {self.why}")
        found.__cause__ = FoedusError(f"in the worker:\n{self.trace}")
        return found


def pack(value: Any, dumps: Callable[..., bytes] = pickle.dumps) -> Packed:
    """The value in a form that goes to any number of processes; its large arrays are copied once."""
    large: list[memoryview] = []

    def stays(buffer: pickle.PickleBuffer) -> bool:
        if buffer.raw().nbytes >= APART:
            large.append(buffer.raw())
        return buffer.raw().nbytes < APART

    head = dumps(value, protocol=5, buffer_callback=stays)
    if not large:
        return Packed(head, [], [])
    *starts, size = accumulate((-(-x.nbytes // LINE) * LINE for x in large), initial=0)
    memory = _memory(size)
    with mmap.mmap(memory, size) as view:
        for at, x in zip(starts, large, strict=True):
            view[at : at + x.nbytes] = x
    return Packed(head, starts, [at + x.nbytes for at, x in zip(starts, large, strict=True)], memory)


def _memory(size: int) -> int:
    """A descriptor of memory that has no name and ends with its last user."""
    if sys.platform == "linux":
        fd = os.memfd_create("foedus")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.truncate(fd, size)
    return fd


class Channel:
    """One end of the pipe between a worker and its parent."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def send(self, value: Any) -> None:
        packed = value if isinstance(value, Packed) else pack(value)
        try:
            self.connection.send(packed[:3])
            if packed.starts:
                send_handle(self.connection, packed.memory, 0)
        finally:
            if packed is not value:
                packed.close()

    def receive(self, writable: bool = False) -> Any:
        """The next value; its large arrays are read-only unless `writable`. EOFError or OSError: nobody is there."""
        head, starts, ends = self.connection.recv()
        if not starts:
            return pickle.loads(head)
        fd = recv_handle(self.connection)
        try:
            view = mmap.mmap(fd, ends[-1], access=mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ)
        finally:
            os.close(fd)
        return pickle.loads(head, buffers=[memoryview(view)[a:b] for a, b in zip(starts, ends, strict=True)])


def serve(connection: Connection, given: tuple[Any, ...] | None, others: Sequence[Connection]) -> None:
    """A worker's whole life. `given`: Job, data and seed, where they need not be sent; `others`: ends to be let go."""
    _settle_in()
    channel = Channel(connection)
    try:
        for other in others:
            other.close()
        Hand(channel, *(given or _received(channel))).work()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent is gone, or wants nothing more
    except BaseException as error:
        with suppress(OSError):
            why = str(error) if isinstance(error, FoedusError) else describe(error)
            channel.send(Failed(isinstance(error, JobError), why, traceback.format_exc()))
    finally:
        _flush()
        os._exit(0)


def _settle_in() -> None:
    """Leaves Ctrl-C to the parent, ends with it, and keeps the memory that is shared with it shared."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.freeze()
    parent = multiprocessing.parent_process()
    if sys.platform == "linux" and parent is not None:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent.pid:
            os._exit(0)


def _received(channel: Channel) -> tuple[Any, ...]:
    try:
        found: tuple[Any, ...] = channel.receive()
    except (EOFError, OSError):
        raise
    except Exception as error:
        raise JobError(f"this Job cannot be read in a worker process ({describe(error)}): use backend='local'") from error
    return found


class Hand:
    """Performs orders with one Bench, and folds what comes of them."""

    def __init__(self, channel: Channel, job: Any, data: Mapping[str, Any], seed: int) -> None:
        self.channel, self.data = channel, data
        self.bench = job.bench(seed)
        self.load, self.loading = self.bench.load, 0.0
        if self.load is not None:
            self.bench.load = self._timed
        self.brief: Any = None
        self.folding: Folding | None = None

    def work(self) -> None:
        with build.exactly():
            self.channel.send(Answer())
            while True:
                message = self.channel.receive()
                if isinstance(message, Brief):
                    self.brief = message
                else:
                    self._answer(message)

    def _answer(self, given: Given) -> None:
        reports = [self._one(*order) for order in given.orders]
        _flush()
        kept = None
        if given.last and self.folding is not None:
            kept = (self.folding.acc, self.folding.most, self.folding.units, self.folding.count)
            self.folding = None
        self.channel.send(Answer(reports, kept))

    def _one(self, index: int, site: str, local: Local) -> Report:
        brief, self.loading, began = self.brief, 0.0, time.perf_counter()
        order = Order(brief.work, brief.payload, site, brief.round, brief.task, brief.returns)
        done = perform(self.bench, order, local, self.data[site])
        if brief.code is not None and done.update is not None:
            done = folded(done, order, self._folding())
        seconds = time.perf_counter() - began - self.loading
        return Report(index, done._replace(error=None), seconds, self.loading, told(done.error))

    def _folding(self) -> Folding:
        if self.folding is None:
            self.folding = Folding(pickle.loads(self.brief.code), self.brief.returns, self.brief.asked)
        return self.folding

    def _timed(self, site: Any) -> Any:
        began = time.perf_counter()
        try:
            return self.load(site)
        finally:
            self.loading += time.perf_counter() - began


def told(error: BaseException | None) -> tuple[Any, ...] | None:
    """A site's error as plain data, with what led to it as text."""
    if not isinstance(error, SiteError):
        return None
    trace = "".join(traceback.format_exception(error.__cause__)) if error.__cause__ else ""
    return isinstance(error, Refused), error.site, error.stage, error.why, error.remedy, trace


def retold(refused: bool, site: str, stage: str, why: str, remedy: str, trace: str) -> SiteError:
    """The error again."""
    error = (Refused if refused else SiteError)(site, stage, why, remedy)
    error.__cause__ = FoedusError(f"in the worker:\n{trace}") if trace else None
    return error


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
