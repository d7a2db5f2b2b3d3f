"""Times until an event as all sites count them: at the event times that there are, or on a grid.
The design and the way to ask for sums may come in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from foedus.analytics import design
from foedus.analytics.asking import Asking, collect, listing, unpacked
from foedus.analytics.design import Coded, Rows, Wanted
from foedus.analytics.held import Held
from foedus.core import Work
from foedus.errors import FoedusError, JobError
from foedus.params import Array

ROWS = 4096  # whose products are in memory at once


class Survival(NamedTuple):
    """What is read of a site: the time, whether the event came, features or groups; and the grid, if there is one."""

    asked: Wanted
    grid: tuple[float, ...] = ()


class Placed(NamedTuple):
    """Rows among the times: the last time at which each is at risk (-1: none), and the time of its event (-1: none)."""

    rows: Rows
    last: Array
    event: Array


def survival(time: str, event: str, grid: Any = None, **more: Any) -> Survival:
    """What is wanted, checked. Raises JobError."""
    if time == event:
        raise JobError(f"time and event are both {time!r}: name the column of times and that of events")
    points = tuple(map(float, () if grid is None else grid))
    if grid is not None and (not points or list(points) != sorted(set(points)) or not np.isfinite(points).all()):
        raise JobError(f"grid={grid!r}: give times in rising order, such as range(30, 1830, 30)")
    return Survival(design.wanted(numbers=(time, event), **more), points)


def works(made: Survival) -> dict[str, Work]:
    """The works of `times`, beside those of the design."""
    return design.works(made.asked) | {"times": listing(partial(_own_times, made))}


def times(made: Survival, coded: Coded) -> Asking[Array]:
    """The times at which sums are taken: the grid; or every time of an event, which each site lists."""
    if made.grid:
        return np.array(made.grid)
    remedy = "give grid=…, and times are rounded up to it"
    listed = yield from collect("times", coded.sites, coded.payload(), remedy)
    found = sorted({t for own in listed.values() for t in own})
    if not found:
        raise JobError(f"no site has an event in {made.asked.numbers[1]!r}: there is nothing to estimate")
    return np.array(found)


def _own_times(made: Survival, table: Held, payload: Mapping[str, Array]) -> list[float]:
    t, event = checked(made, design.read(made.asked, table, payload))
    return sorted(set(t[event].tolist()))


def checked(made: Survival, rows: Rows) -> tuple[Array, Array]:
    """Times and whether the event came. Raises FoedusError with the remedy."""
    time, event = made.asked.numbers[:2]
    t, came = rows.numbers[:, 0], rows.numbers[:, 1]
    if (t < 0).any():
        raise FoedusError(f"column {time!r} holds negative times: count them from the beginning of observation")
    if not np.isin(came, (0, 1)).all():
        raise FoedusError(f"column {event!r} holds more than 0 and 1: code the event as 1, all else as 0")
    return t, came == 1


def placed(made: Survival, table: Held, payload: Mapping[str, Array]) -> Placed:
    """A site's rows among the payload's `times`; on a grid, times are rounded up, and beyond it only at risk."""
    rows = design.read(made.asked, table, payload)
    t, came = checked(made, rows)
    return Placed(rows, *among(payload["times"], t, came, bool(made.grid)))


def among(times: Array, t: Array, came: Array, grid: bool) -> tuple[Array, Array]:
    """The last of the times at which each is at risk, and that of its event."""
    up = np.searchsorted(times, t, "left")
    last = np.minimum(up, len(times) - 1) if grid else np.searchsorted(times, t, "right") - 1
    return last, np.where(came & (up < len(times)), up, -1)


def summed(at: Array, size: int, width: int, values: Callable[[slice | Array], Array]) -> Array:
    """For each time the sum of the values of the rows that are there, (size, width); those at -1 are nowhere.

    `values` of some rows are (rows, width); few of them are there at once, for they may be wide.
    """
    found, order = np.zeros((size, width)), np.argsort(at, kind="stable")
    order = order[at[order] >= 0]
    for begin in range(0, len(order), ROWS):
        part = order[begin : begin + ROWS]
        places, starts = np.unique(at[part], return_index=True)
        found[places] += np.add.reduceat(values(part), starts, axis=0)
    return found


def backwards(sums: Array) -> Array:
    """For each time the sum over all that are there or later."""
    return np.asarray(sums[::-1].cumsum(axis=0)[::-1])


def counts(at: Array, groups: Array, shape: tuple[int, int]) -> Array:
    """How many rows of each group are at each time, (groups, times); those at -1 are nowhere."""
    found = np.zeros(shape)
    np.add.at(found, (groups[at >= 0], at[at >= 0]), 1)
    return found


def levels(made: Survival, payload: Mapping[str, Array]) -> Sequence[str]:
    """The levels of the group, as the payload says them; none without one."""
    found: Sequence[str] = unpacked(payload["levels"])[made.asked.groups[0]] if made.asked.groups else ()
    return found


def sequence(levels: Sequence[Any]) -> list[str]:
    """The names of groups, or the one of all."""
    return list(levels) or ["all"]
