"""Counts of categories: contingency tables with Pearson's test (1900), the most frequent values, and distinct ones.
The design and the way to ask for sums may come in."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from foedus.analytics import columns as single
from foedus.analytics import design
from foedus.analytics.analysis import Table, Tail, analysis, answer
from foedus.analytics.asking import Asking, Sent, ask, unpacked, whole, work
from foedus.analytics.bounded import Found, bounded, places
from foedus.analytics.design import Coded, Wanted
from foedus.analytics.held import Held, coded
from foedus.core import Algorithm, RoundContext, State
from foedus.errors import JobError
from foedus.params import Array, Params
from foedus.privacy.dp_metrics import Block

BITS = 14  # of a value's hash: which register it goes to; the error is 1.04 / sqrt(2**14) = 0.8 %
RANKS = 64 - BITS


def contingency(
    row: str, column: str, *, categories: Mapping[str, Sequence[Any]] | None = None, least: int = 1
) -> Algorithm:
    """How many rows have each pair of values, and Pearson's chi squared test that they are independent.

    A count below `least` is NaN: merge categories to see it; the test is of all counts. `.pandas`: by value of `row`, a
    column for each of `column`. `.per_site`: by site and value. Facts: n, statistic, df, p.

    With `categories` of both there may be noise, `privacy=fd.dp_metrics(…)`: each site adds it to its counts, rows with
    other values or a gap are in none, and there is no test, for it would take noise for a difference. Frame `sd`: the
    standard deviation of the noise in each.

    Leaves a site: the values that it has, in clear, unless there are `categories`; counts, in clear from `least` on, or
    with noise.
    """
    asked = design.wanted(groups=(row, column), categories=categories)
    if row == column:
        raise JobError(f"contingency({row!r}, {column!r}): name two columns")
    exact = analysis(partial(_contingency, asked, least), design.works(asked) | _count_works(asked, least))
    return _with_noise(exact, asked, partial(_noised_table, asked, least))


def top_k(
    column: str, *, k: int = 10, categories: Mapping[str, Sequence[Any]] | None = None, least: int = 1
) -> Algorithm:
    """The `k` most frequent values; those of fewer than `least` rows are not told. Ties go by name.

    `.pandas`: by value `count` and `share` of the rows that have one. `.per_site`: the counts at each.

    Leaves a site: as `contingency`; with noise, too.
    """
    asked = design.wanted(groups=column, categories=categories)
    if k < 1:
        raise JobError(f"top_k(k={k!r}): it is at least 1")
    exact = analysis(partial(_top, asked, k, least), design.works(asked) | _count_works(asked, least))
    return _with_noise(exact, asked, partial(_noised_top, asked, k, least))


def unique(columns: str | Sequence[str]) -> Algorithm:
    """About how many distinct values each column has over all sites together, within about 1 % (HyperLogLog).

    `.pandas`: by column `unique`; `.per_site`: by site and column. Flajolet et al. 2007, with Ertl's estimator, 2017.

    Leaves a site: for each column 16,384 registers, of which the largest over sites counts; its estimate, in clear.
    """
    names = single.chosen(columns, 1)
    if not names:
        raise JobError("unique(columns=…): name at least one column")
    return analysis(partial(_distinct, names), {"registers": work(partial(_registers, names))})


def _count_works(asked: Wanted, least: int) -> dict[str, Any]:
    return {"counts": work(partial(_cells, asked, least))}


def _with_noise(exact: Algorithm, asked: Wanted, told: Callable[[Found], Params]) -> Algorithm:
    """The analysis that may have noise, where all levels are named beforehand."""
    if not set(asked.groups) <= asked.categories.keys():
        return exact
    size = math.prod(len(asked.categories[name]) for name in asked.groups)
    return bounded(exact, [Block(size)], partial(_within, asked), told)


def _within(asked: Wanted, table: Held) -> Array:
    """The counts of all levels, as one row; of the rows that have one of each."""
    shape = [len(asked.categories[name]) for name in asked.groups]
    at = np.stack([places(table, name, asked.categories[name]) for name in asked.groups])
    flat = np.ravel_multi_index(tuple(at[:, (at >= 0).all(axis=0)]), shape)
    return np.bincount(flat, minlength=math.prod(shape))


def _counted(asked: Wanted, sites: Sequence[str], every: bool) -> Asking[tuple[Coded, Array, Mapping[str, Array]]]:
    """How it is coded, the counts by levels, and those that each site shows."""
    coded = yield from design.learn(asked, sites, every)
    shape = tuple(len(coded.levels[name]) for name in asked.groups)
    found = yield from ask("counts", coded.sites, coded.payload(), {"count": shape})
    return coded, whole(found.of["count"]), {s: np.asarray(x["count"]) for s, x in sorted(found.shown.items())}


def _cells(asked: Wanted, least: int, table: Held, payload: Mapping[str, Array]) -> Sent:
    rows, levels = design.read(asked, table, payload), unpacked(payload["levels"])
    found = np.zeros([len(levels[name]) for name in asked.groups])
    np.add.at(found, tuple(rows.groups.T), 1)
    return Sent({"count": found}, {}, {"count": single.hidden(found, least)})


def _contingency(asked: Wanted, least: int, state: State, context: RoundContext, every: bool = True) -> Any:
    coded, counts, shown = yield from _counted(asked, context.cohort, every)
    return _crossed(asked, coded.levels, counts, least, shown, pearson(counts))


def _noised_table(asked: Wanted, least: int, found: Found) -> Params:
    shape = tuple(len(asked.categories[name]) for name in asked.groups)
    shown = {site: own.reshape(shape) for site, own in found.shown.items()}
    test, noise = (math.nan, 0), (found.sd.reshape(shape), found.noise)
    return _crossed(asked, asked.categories, found.sums.reshape(shape), least, shown, test, noise)


def _crossed(
    asked: Wanted,
    levels: design.Levels,
    counts: Array,
    least: int,
    shown: Mapping[str, Array],
    test: tuple[float, int],
    noise: tuple[Array, float] | None = None,
) -> Params:
    row, (down, across) = asked.groups[0], (levels[name] for name in asked.groups)
    statistic, df = test
    pooled = single.hidden(counts, least)
    stacked = np.concatenate([np.empty((0, len(across))), *shown.values()])
    facts = {"n": int(counts.sum()), "statistic": statistic, "df": df, "tails": [Tail("p", "chi2", "statistic", "df")]}
    sd = {"sd": Table(down, {level: noise[0][:, i] for i, level in enumerate(across)}, (row,))} if noise else {}
    facts |= {"noise": noise[1]} if noise else {}
    return answer("contingency", {
        "pandas": Table(down, {level: pooled[:, i] for i, level in enumerate(across)}, (row,)),
        "per_site": Table(
            [(s, level) for s in shown for level in down],
            {level: stacked[:, i] for i, level in enumerate(across)}, ("site", row),
        ),
        **sd,
    }, facts)  # fmt: skip


def pearson(counts: Array) -> tuple[float, int]:
    """Chi squared of independence and its degrees of freedom, over rows and columns that are not empty."""
    x = counts[counts.sum(axis=1) > 0][:, counts.sum(axis=0) > 0].astype(np.float64)
    df = (x.shape[0] - 1) * (x.shape[1] - 1) if x.size else 0
    if df < 1:
        return math.nan, df
    expected = np.outer(x.sum(axis=1), x.sum(axis=0)) / x.sum()
    return float(((x - expected) ** 2 / expected).sum()), df


def _top(asked: Wanted, k: int, least: int, state: State, context: RoundContext, every: bool = True) -> Any:
    coded, counts, shown = yield from _counted(asked, context.cohort, every)
    return _first(asked, coded.levels, counts, k, least, shown, {})


def _noised_top(asked: Wanted, k: int, least: int, found: Found) -> Params:
    facts = {"noise": found.noise, "sd": float(found.sd[0])}
    return _first(asked, asked.categories, found.sums, k, least, found.shown, facts)


def _first(
    asked: Wanted,
    by: design.Levels,
    counts: Array,
    k: int,
    least: int,
    shown: Mapping[str, Array],
    facts: Mapping[str, float],
) -> Params:
    levels = by[asked.groups[0]]
    first = [i for i in np.argsort(-counts, kind="stable") if counts[i] >= max(1, least)][:k]
    found = {"count": counts[first], "share": counts[first] / max(1, counts.sum())}
    sites = {levels[i]: np.array([x[i] for x in shown.values()]) for i in first}
    return answer("top_k", {
        "pandas": Table([levels[i] for i in first], found, asked.groups),
        "per_site": Table(list(shown), sites, ("site",)),
    }, {"n": int(counts.sum()), **facts})  # fmt: skip


def _distinct(names: tuple[str, ...], state: State, context: RoundContext, every: bool = True) -> Any:
    shape = (len(names), 1 << BITS)
    found = yield from ask("registers", context.cohort, {}, most={"registers": shape}, every=every)
    pooled = np.array([distinct(x) for x in found.most["registers"]])
    return answer("unique", {
        "pandas": Table(names, {"unique": pooled}, ("column",)),
        "per_site": single.per_site(found.shown, "unique", names),
    }, {})  # fmt: skip


def _registers(names: tuple[str, ...], table: Held, payload: Mapping[str, Array]) -> Sent:
    found = np.zeros((len(names), 1 << BITS), np.int64)
    for i, name in enumerate(names):
        hashes = np.array([_hash(v) for v in coded(table, name).names], np.uint64)
        rest = hashes & np.uint64((1 << RANKS) - 1)
        rank = RANKS + 1 - np.array([int(x).bit_length() for x in rest], np.int64)
        np.maximum.at(found[i], (hashes >> np.uint64(RANKS)).astype(np.int64), rank)
    return Sent({}, {"registers": found}, {"unique": np.array([distinct(x) for x in found])})


def _hash(value: str) -> int:
    return int.from_bytes(hashlib.blake2b(value.encode(), digest_size=8).digest(), "big")


def distinct(registers: Array) -> float:
    """How many values these registers saw: Ertl 2017, algorithm 6."""
    m, counts = len(registers), np.bincount(registers, minlength=RANKS + 2)
    z = m * _tau(1 - counts[RANKS + 1] / m)
    for k in range(RANKS, 0, -1):
        z = (z + counts[k]) / 2
    z += m * _sigma(counts[0] / m)
    return 0.0 if math.isinf(z) else m / (2 * math.log(2)) * m / z


def _sigma(x: float) -> float:
    if x == 1:
        return math.inf
    y, z, before = 1.0, x, math.nan
    while z != before:
        x, before = x * x, z
        z, y = z + x * y, y + y
    return z


def _tau(x: float) -> float:
    if x in (0.0, 1.0):
        return 0.0
    y, z, before = 1.0, 1 - x, math.nan
    while z != before:
        x, before, y = math.sqrt(x), z, y / 2
        z -= (1 - x) ** 2 * y
    return z / 3
