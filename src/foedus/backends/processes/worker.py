"""What a worker process does from its first to its last moment, and the messages between it and its parent.
A Job and the sites' data come in, then for each Task one Brief and orders; nothing is decided here.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import multiprocessing
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from foedus import build, midway, progress
from foedus.aggregators import Folding
from foedus.backends.local import folded, perform
from foedus.backends.processes.channel import Channel
from foedus.backends.simulation import Done
from foedus.backends.vectorized import Many
from foedus.core import Local
from foedus.data import Site
from foedus.errors import FoedusError, JobError, Refused, SiteError
from foedus.job import Job
from foedus.params import Params, Spec
from foedus.work import Bench, Order, describe

PR_SET_PDEATHSIG = 1  # prctl(2)

Sent = tuple[Job, Mapping[str, Any], int, Path | None]  # the Job, the sites' data, the seed, midway.folder
Kept = tuple[Any, Any, int, int]  # of a Folding: accumulator, largest integers, units of weight, count


class Brief(NamedTuple):
    """What a worker needs of a Task; `code` is the pickle of its Sum, None where updates are to come back.

    `together`: the sites of a message train at once.
    """

    payload: Params
    work: str
    round: int
    task: int
    returns: Spec
    asked: int
    code: bytes | None
    together: bool = False
    seal: tuple[int, int] | None = None


class Given(NamedTuple):
    """Orders for a worker: (number, site, local, its letter). With `last`, what it folded is to come back too."""

    orders: Sequence[tuple[int, str, Local, Params | None]]
    last: bool


class Report(NamedTuple):
    """What became of one order, its seconds, and those of loading the site's data where that was not loaded."""

    order: int
    done: Done
    error: tuple[Any, ...] | None
    seconds: float
    loading: float


class Answer(NamedTuple):
    """The answer to Given; `notes` say why sites did not train together. A worker's first one is empty: it is ready."""

    reports: Sequence[Report] = ()
    kept: Kept | None = None
    notes: Sequence[str] = ()


class Failed(NamedTuple):
    """Why a worker ends, as text, and whether the Job is at fault."""

    why: str
    trace: str
    job: bool

    def error(self) -> FoedusError:
        found = JobError(self.why) if self.job else FoedusError(f"a worker process failed: {self.why}")
        found.__cause__ = FoedusError(f"in the worker:\n{self.trace}")
        return found


def serve(connection: Connection[Any, Any], sent: Sent | None, told: Any, number: int) -> None:
    """A worker's life. `sent` is None where it comes through the pipe; `told` grows with its progress."""
    channel = Channel(connection)
    try:
        _settle_in()
        build.place, progress.tell = number, partial(_count, told)
        with build.exactly():
            _serve(channel, Hand(*(sent or read(lambda: channel.receive(mmap.ACCESS_COPY)))))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent is gone, or needs it no more
    except BaseException as error:
        with suppress(OSError):
            channel.send(failed(error))
    finally:
        _flush()
        os._exit(0)


def _count(told: Any, n: int) -> None:
    told.value += n


def _settle_in() -> None:
    """Leaves Ctrl-C to the parent, ends with the parent, and keeps shared the memory that it has from there.

    What it starts is of its own group, so that its CPU time is known and all of it ends together.
    """
    os.setpgid(0, 0)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # it may print, though a terminal has another group in front
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    progress.heard = None  # the parent shows what is done
    parent = multiprocessing.parent_process()
    if sys.platform == "linux" and parent is not None:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent.pid:
            raise EOFError("the parent is gone")
    gc.freeze()


def _serve(channel: Channel, hand: Hand) -> None:
    """Answers until nobody asks (EOFError)."""
    channel.send(Answer())
    while True:
        message = channel.receive()
        if isinstance(message, Brief):
            hand.brief = message
        else:
            channel.send(hand.answer(message))


def read(receive: Callable[[], Sent]) -> Sent:
    """What was sent to a worker when it began; JobError where it cannot be read there."""
    try:
        return receive()
    except (EOFError, OSError):
        raise
    except Exception as error:
        why = f"this Job cannot be read in another process ({describe(error)})"
        raise JobError(f"{why}: keep its code in files that can be imported, or use backend='local'") from error


class Hand:
    """Performs the orders of its brief with one Bench, and folds what comes of them."""

    def __init__(self, job: Job, data: Mapping[str, Any], seed: int, kept: Path | None = None) -> None:
        self.job, self.data, self.seed = job, data, seed
        midway.folder = kept if kept and kept.parent.is_dir() else None  # on this machine
        self.loading = dict[str, float]()  # seconds of the sites whose data this message had loaded
        self.bench = self._timed(job.bench(seed))
        self.many: Many | None = None
        self.notes: list[str] = []
        self.brief: Any = None
        self.folding: Folding | None = None

    def answer(self, given: Given) -> Answer:
        self.loading = {}
        reports = self._together(given) if self.brief.together else [self._report(*order) for order in given.orders]
        _flush()
        notes, self.notes = self.notes, []
        return Answer(reports, self._kept() if given.last and self.brief.code is not None else None, notes)

    def _report(self, number: int, site: str, local: Local, letter: Params | None) -> Report:
        began, order = time.perf_counter(), self._order(site, letter)
        done = self._folded(perform(self.bench, order, local, self.data), order)
        return self._told(number, site, done, time.perf_counter() - began - self.loading.get(site, 0.0))

    def _together(self, given: Given) -> list[Report]:
        """Reports of sites that train at once: each took a part of the seconds, by its update's weight."""
        if self.many is None:
            self.many = Many(self.job, self.data, self.seed, self.notes.append)
            self.bench = self._timed(self.many.bench)
        began, orders = time.perf_counter(), [self._order(site, letter) for _, site, _, letter in given.orders]
        locals = {site: local for _, site, local, _ in given.orders}
        folds = self.brief.code is not None
        made = self.many.folded(orders, locals, self._folding()) if folds else self.many.work(orders, locals)
        seconds = time.perf_counter() - began - sum(self.loading.values())
        unit = seconds / (sum(done.outcome.weight for done in made) or 1.0)
        return [
            self._told(number, site, done, unit * done.outcome.weight)
            for (number, site, *_), done in zip(given.orders, made, strict=True)
        ]

    def _order(self, site: str, letter: Params | None) -> Order:
        brief = self.brief
        payload = brief.payload if letter is None else letter
        return Order(brief.work, payload, site, brief.round, brief.task, brief.returns, brief.seal)

    def _folded(self, done: Done, order: Order) -> Done:
        return done if self.brief.code is None or done.update is None else folded(done, order, self._folding())

    def _told(self, number: int, site: str, done: Done, seconds: float) -> Report:
        return Report(number, done._replace(error=None), _told(done.error), seconds, self.loading.get(site, 0.0))

    def _folding(self) -> Folding:
        if self.folding is None:
            self.folding = Folding(pickle.loads(self.brief.code), self.brief.returns, self.brief.asked)
        return self.folding

    def _kept(self) -> Kept:
        folding, self.folding = self._folding(), None
        return folding.acc, folding.most, folding.units, folding.count

    def _timed(self, bench: Bench) -> Bench:
        bench.load = bench.load and partial(self._loaded, bench.load)
        return bench

    def _loaded(self, load: Callable[..., Any], site: Site) -> Any:
        began = time.perf_counter()
        try:
            return load(site)
        finally:
            self.loading[site.name] = time.perf_counter() - began


def retold(refused: bool, site: str, stage: str, why: str, remedy: str, trace: str) -> SiteError:
    """A site's error as it was before it travelled as text."""
    error = (Refused if refused else SiteError)(site, stage, why, remedy)
    error.__cause__ = FoedusError(f"in the worker:\n{trace}") if trace else None
    return error


def _told(error: BaseException | None) -> tuple[Any, ...] | None:
    if not isinstance(error, SiteError):
        return None
    trace = "".join(traceback.format_exception(error.__cause__)) if error.__cause__ else ""
    return isinstance(error, Refused), error.site, error.stage, error.why, error.remedy, trace


def failed(error: BaseException) -> Failed:
    why = str(error) if isinstance(error, FoedusError) else describe(error)
    return Failed(why, "".join(traceback.format_exception(error)), isinstance(error, JobError))


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, or None
            stream.flush()
