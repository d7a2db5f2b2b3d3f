"""`fd.clock(…)`: how long a simulated device takes, when it is there and when it drops out; all of it drawn by key.
Only keys and errors may come in; a simulation asks a Watch, nothing here knows of rounds' rules."""

from __future__ import annotations

import csv
import hashlib
import math
import os
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from foedus.errors import FoedusError, JobError
from foedus.keys import key

__all__ = ["Clock", "Trace", "Trip", "Watch", "clock", "lognormal", "trace"]

SLOT = 3600.0  # seconds for which a site that is there with some probability stays what it is
NEVER = (math.inf, math.inf)
RARE = 0.001  # a site that is there less often is there hardly ever
MOST_WINDOWS = 100_000  # of a site during one Task

Model = Any  # a number, a mapping site -> number, or a function (site, random) -> number
Window = tuple[float, float]  # from when until when a site is there


class Clock(NamedTuple):
    """What simulated time depends on; see `clock`."""

    work: Model = 1.0
    speed: Model = 1.0
    bandwidth: Model = math.inf
    available: Any = None
    dropout: Model = 0.0


class Trip(NamedTuple):
    """When the server hears of a site that was asked, and of what: "" is an update, else why the site is lost."""

    at: float
    site: str
    why: str = ""


def clock(
    *, work: Model = 1.0, speed: Model = 1.0, bandwidth: Model = math.inf, available: Any = None, dropout: Model = 0.0
) -> Clock:
    """The Clock of a simulation: `job.run(sites, clock=fd.clock(…))`, and history rows have `clock`, in seconds.

    work: seconds that a training takes a device of speed 1. `speed`: how many times faster a device is.
    bandwidth: bytes a second, each way. `dropout`: the probability that a site fails while it is at a Task.
    Each is a number, a mapping site -> number, or a function (site, random) -> number, whose `random` is a generator of
    the site's own: a device stays what it is. `lognormal` makes such a function.
    available: None (always), a probability (drawn anew for each site and hour), a `trace` or its CSV file, or a
    function (site, seconds) -> (from, until), the next window that ends later, (inf, inf) for never. Raises JobError.

    >>> clock(work=10.0, speed={"north": 1.0, "south": 0.5}).speed["south"]
    0.5
    """
    numbers = {"work": work, "speed": speed, "bandwidth": bandwidth, "dropout": dropout}
    for name, model in numbers.items():
        for value in model.values() if isinstance(model, Mapping) else () if callable(model) else (model,):
            _checked(name, value)
    if isinstance(available, (str, os.PathLike)):
        available = trace(available)
    shared = isinstance(available, (int, float))
    if (shared and not RARE <= available <= 1) or not (shared or available is None or callable(available)):
        raise JobError(
            f"clock(available={available!r}): give a probability from {RARE:g} to 1, a CSV file, or a function"
        )
    return Clock(work, speed, bandwidth, available, dropout)


def lognormal(median: float, sigma: float) -> Callable[[str, np.random.Generator], float]:
    """A model that draws each site's number: half of them lie below `median`, their logarithms spread by `sigma`."""

    def drawn(site: str, random: np.random.Generator) -> float:
        return float(median * math.exp(sigma * random.standard_normal()))

    return drawn


class Trace:
    """When sites were there, by a record of windows; a site that the record does not name follows one of its sites.

    Which one is drawn by key, so that the traces of a thousand devices serve a million.
    """

    def __init__(self, windows: Mapping[str, Sequence[Window]], period: float | None = None) -> None:
        self.windows = {site: sorted(found) for site, found in windows.items()}
        self.names, self.period = sorted(windows), period

    def describe(self) -> Any:
        """A digest of the record, for the run's first row."""
        said = repr((sorted(self.windows.items()), self.period))
        return ["trace", hashlib.sha256(said.encode()).hexdigest()]

    def __call__(self, site: str, seconds: float) -> Window:
        found = self.windows.get(site)
        if found is None:
            found = self.windows[self.names[key(0, site, "trace").number() % len(self.names)]]
        lap = 0.0 if self.period is None else self.period * (seconds // self.period)
        at = bisect_right(found, seconds - lap, key=lambda window: window[1])
        if at < len(found):
            return found[at][0] + lap, found[at][1] + lap
        if self.period is None:
            return NEVER
        return found[0][0] + lap + self.period, found[0][1] + lap + self.period


def trace(path: str | os.PathLike[str], period: float | None = None) -> Trace:
    """The Trace in a CSV file with the columns site, from, until (seconds); with `period` it begins again after that.

    Raises FoedusError that names the line.
    """
    windows: dict[str, list[Window]] = {}
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            lines = csv.DictReader(file)
            if not {"site", "from", "until"} <= set(lines.fieldnames or ()):
                raise FoedusError(f"{path}: the columns of a trace are site, from, until; these are {lines.fieldnames}")
            for row in lines:
                windows.setdefault(row["site"], []).append(_window(row, f"{path}, line {lines.line_num}", period))
    except (OSError, UnicodeError, csv.Error) as error:
        raise FoedusError(f"{path}: no trace can be read from it ({error}); give a CSV file") from error
    if not windows:
        raise FoedusError(f"{path}: there is no window in it, so no site would ever be there")
    for site, found in windows.items():
        found.sort()
        if any(b[0] < a[1] for a, b in pairwise(found)):
            raise FoedusError(f"{path}: two windows of site {site!r} overlap: make them one")
    return Trace(windows, period)


class Watch:
    """The time of one run, in seconds. Without a Clock every update takes from 0.5 to 1.5 s, and nobody is told."""

    def __init__(self, clock: Clock | None = None, seed: int = 0, shown: bool = False) -> None:
        self.clock, self.seed, self.now = clock, seed, 0.0
        self.shown = shown or clock is not None

    @property
    def selects(self) -> bool:
        """Whether sites are there at some times only."""
        return self.clock is not None and self.clock.available is not None

    def there(self, site: str) -> bool:
        """Whether the site can be asked now."""
        return self._window(site, self.now)[0] <= self.now

    def wait(self, sites: Iterable[str]) -> bool:
        """Goes on to when one more of these comes; False if none ever does."""
        later = [at for at, _ in (self._window(site, self.now) for site in sites) if at > self.now]
        if math.isinf(soonest := min(later, default=math.inf)):
            return False
        self.now = soonest
        return True

    def reach(self, row: Mapping[str, Any]) -> None:
        """Takes the time of a journal's row that was decided, if it has one."""
        self.now = row.get("clock", self.now)

    def trip(self, site: str, round: int, task: int, attempt: int, sizes: tuple[int, int], deadline: Any) -> Trip:
        """What becomes of a site that is asked now for a Task with a payload and an update of these sizes (bytes).

        The deadline counts in simulated seconds: a site that fell silent is lost after `stall` more.
        """
        if self.clock is None:
            return Trip(self.now + 0.5 + key(self.seed, round, task, site, "delay").number() / 2**63, site)
        start = max(self.now, self._window(site, self.now)[0])
        if start - self.now > deadline.stall:
            return self._heard(site, self.now, "not there", deadline)
        end = start + self.seconds(site, sizes)
        falls = min(self._falls(site, (round, task, attempt), start, end), self._leaves(site, start, end))
        if falls[0] < end:
            return self._heard(site, *falls, deadline)
        return self._within(Trip(end, site), deadline)

    def seconds(self, site: str, sizes: tuple[int, int]) -> float:
        """How long the site takes to fetch the payload, to train, and to send its update."""
        assert self.clock is not None
        travel = sum(sizes) / self._number("bandwidth", site)
        return travel + self._number("work", site) / self._number("speed", site)

    def _falls(self, site: str, names: tuple[int, int, int], start: float, end: float) -> tuple[float, str]:
        """When the site fails, at a random moment of its work, and what is said of it."""
        random = key(self.seed, *names[:2], site, "dropout", names[2]).lent().random(2)
        if random[0] >= self._number("dropout", site):
            return math.inf, ""
        return start + float(random[1]) * (end - start), "dropped out"

    def _leaves(self, site: str, start: float, end: float) -> tuple[float, str]:
        """When the site's window ends, if the next one does not begin there."""
        until = self._window(site, start)[1]
        for _ in range(MOST_WINDOWS):
            if until >= end or not (following := self._window(site, until))[0] <= until < following[1]:
                return until, "not available any more"
            until = following[1]
        raise JobError(
            f"clock(available=…): a Task of {end - start:g} s takes site {site!r} more than {MOST_WINDOWS:,} windows: "
            "give it fewer and longer ones"
        )

    def _heard(self, site: str, silent: float, why: str, deadline: Any) -> Trip:
        at = silent + deadline.stall
        if math.isinf(at):
            raise JobError(f"site {site!r} {why}, and would be waited for for ever: give deadline=fd.Deadline(stall=…)")
        return self._within(Trip(at, site, why), deadline)

    def _within(self, trip: Trip, deadline: Any) -> Trip:
        if deadline.total is None or trip.at <= self.now + deadline.total:
            return trip
        return Trip(self.now + deadline.total, trip.site, "not done at the deadline")

    def _number(self, name: str, site: str) -> float:
        model = getattr(self.clock, name)
        if isinstance(model, Mapping):
            if site not in model:
                raise JobError(f"clock({name}=…) does not name site {site!r}: give it a number, or a function")
            return float(model[site])
        if callable(model):
            return _checked(name, model(site, key(self.seed, "clock", 0, site, name).lent()))
        return float(model)

    def _window(self, site: str, at: float) -> Window:
        available = None if self.clock is None else self.clock.available
        if available is None:
            return 0.0, math.inf
        if callable(available):
            return _told(available(site, at), site, at)
        slot = int(at // SLOT)
        while key(self.seed, slot, 0, site, "available").number() / 2**63 >= available:
            slot += 1
        return slot * SLOT, (slot + 1) * SLOT


def _checked(name: str, value: Any) -> float:
    most = 1.0 if name == "dropout" else math.inf
    least_is_good = name in ("dropout", "work")
    good = isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and 0 <= value <= most
    if not good or (value == 0 and not least_is_good) or (name == "work" and math.isinf(value)):
        raise JobError(f"clock({name}={value!r}): give a {'share' if name == 'dropout' else 'positive number'}")
    return float(value)


def _told(found: Any, site: str, at: float) -> Window:
    """What a function said of a site's next window. Raises JobError for what is none."""
    try:
        begins, ends = (float(x) for x in found)
    except (TypeError, ValueError):
        begins = ends = math.nan
    if not (begins < ends or (begins, ends) == NEVER) or not at < ends:
        raise JobError(
            f"clock(available=…) says {found!r} of site {site!r} at {at:g} s: return (from, until) of the next window "
            "that ends later, or (inf, inf) for never"
        )
    return begins, ends


def _window(row: Mapping[str, Any], where: str, period: float | None) -> Window:
    try:
        found = float(row["from"]), float(row["until"])
    except (TypeError, ValueError) as error:
        raise FoedusError(f"{where}: {error}") from error
    if not 0 <= found[0] < found[1] <= (math.inf if period is None else period):
        raise FoedusError(f"{where}: a window is from 0 or later until a later time, within the period")
    return found


class _Callable(ModuleType):
    """Lets `fd.clock(…)` work although this module has the same name."""

    __call__ = staticmethod(clock)


sys.modules[__name__].__class__ = _Callable
