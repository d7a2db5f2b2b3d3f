"""Sums to which a row adds no more than is known beforehand: those that can have noise (differential privacy).
What a site holds and the way to ask for sums may come in.

Such an analysis is one Task of whole numbers in blocks, that nothing but rows changes: columns, cells, levels and
bounds are named beforehand. `privacy.dp_metrics` adds the noise and counts each block as one release.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from foedus.analytics.asking import Sent, ask, whole, work
from foedus.analytics.held import Held, coded, column, text
from foedus.core import EVALUATE, Algorithm, RoundContext, State
from foedus.errors import JobError
from foedus.params import Array, Params
from foedus.privacy.dp_metrics import Block, trait

UNIT = 1 << 24  # of a sum of numbers from -1 to 1, which are rounded to it, and add up exactly: float64 has 2^29 rows
_DATE = re.compile(r"\d{4}-\d\d-\d\d\b")
Bounds = Mapping[str, tuple[float, float]]


class Found(NamedTuple):
    """What all sites answered: sums, in whole units; `sd`, the deviation of the noise in each; each site's own, and the
    deviation in these; the noise multiplier of each block."""

    sums: Array
    sd: Array
    shown: Mapping[str, Array]
    own_sd: Array
    sites: Sequence[str]
    noise: float


def bounded(
    exact: Algorithm, blocks: Sequence[Block], sums: Callable[[Held], Array], told: Callable[[Found], Params]
) -> Algorithm:
    """The analysis `exact`; with noise it is one Task of `sums`, in these blocks, of which `told` makes the answer."""
    made = work(partial(_answered, sums))
    return Algorithm(
        exact.init,
        partial(_round, exact.round, tuple(blocks), told),
        {**exact.works, EVALUATE: made},
        traits=(*exact.traits, trait(blocks)),
    )


def _answered(sums: Callable[[Held], Array], table: Held, payload: Mapping[str, Array]) -> Sent:
    found = sums(table)
    return Sent({"sums": found}, {}, {"sums": found})


def _round(
    exact: Callable[..., Any],
    blocks: Sequence[Block],
    told: Callable[[Found], Params],
    state: State,
    context: RoundContext,
    every: bool = True,
    noise: float | None = None,
) -> Any:
    if noise is None:
        return (yield from exact(state, context, every))
    return told((yield from asked(blocks, context, every, noise)))


def asked(blocks: Sequence[Block], context: RoundContext, every: bool, noise: float) -> Any:
    """What all sites answer to the one Task, as `Found`."""
    size = sum(block.size for block in blocks)
    found = yield from ask(EVALUATE, context.cohort, {}, {"sums": (size,)}, every=every)
    shown = {site: np.asarray(x["sums"]) for site, x in sorted(found.shown.items())}
    sd = noise * np.repeat([float(block.bound) for block in blocks], [block.size for block in blocks])
    return Found(whole(found.of["sums"]), sd * math.sqrt(len(found.sites)), shown, sd, found.sites, noise)


def bounds_of(what: str, given: Mapping[str, Any] | None) -> dict[str, tuple[float, float]]:
    """column -> the ends beyond which its values count as these, checked. Raises JobError."""
    found = {}
    for name, ends in (given or {}).items():
        try:
            low, high = map(float, ends)
        except (TypeError, ValueError):
            low = high = math.nan
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise JobError(f"{what}(bounds={{{name!r}: {ends!r}}}): give (low, high), two numbers in rising order")
        found[name] = (low, high)
    return found


def numbers(table: Held, name: str) -> Array:
    """The column as float64, gaps as NaN, each value read by itself: what is in another row changes none of them."""
    found = column(table, name, finite=False)
    if found.kind != "text":
        return np.where(np.isinf(found.values), math.nan, found.values)
    return np.array([math.nan if v is None else _number(v) for v in found.values], np.float64)


def _number(value: str) -> float:
    """A number, or the year of a date; NaN for other text."""
    try:
        found = float(value)
    except ValueError:
        return float(value[:4]) if _DATE.match(value) else math.nan
    return found if math.isfinite(found) else math.nan


def scaled(table: Held, name: str, ends: tuple[float, float]) -> Array:
    """The numbers from -1 at one end to 1 at the other, beyond which they count as these; gaps as NaN."""
    low, high = ends
    return np.asarray((np.clip(numbers(table, name), low, high) - (low + high) / 2) / ((high - low) / 2))


def units(x: Array) -> Array:
    """Numbers from -1 to 1 in whole units; gaps add nothing."""
    return np.asarray(np.rint(np.nan_to_num(np.clip(x, -1, 1)) * UNIT), np.int64)


def places(table: Held, name: str, levels: Sequence[str]) -> Array:
    """Which level each row has, -1 for a gap or one that was not named; each value is read by itself, as `numbers`."""
    held = coded(table, name, finite=False)
    exact = {level: at for at, level in reversed(list(enumerate(levels)))}
    alike = {_plain(level): at for level, at in exact.items()}
    return np.array([*(exact.get(v, alike.get(_plain(v), -1)) for v in held.names), -1], np.int64)[held.rows]


def _plain(level: str) -> str:
    """1, 1.0 and 01 are one."""
    found = _number(level)
    return level if math.isnan(found) or _DATE.match(level) else text(found)
