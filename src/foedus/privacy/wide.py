"""Exact sums under a seal: each number as whole limbs of sixteen bits, which the ring adds up without loss.
The contract and aggregators may come in. The largest of whole numbers is found digit by digit, from counts of sites."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from foedus.aggregators import mean
from foedus.aggregators.fixed import RING, fixed
from foedus.core import Algorithm, Local, RoundContext, SiteContext, State, Task, Total, Update, Work
from foedus.errors import Incompatible, JobError
from foedus.params import Array, Leaf, Params, Spec
from foedus.play import played

LIMB = 1 << 16
MOST = RING // LIMB  # sites, so that the sum of their limbs has room
BITS = 4  # of a digit of a whole number whose largest is looked for
LEVELS = 64 // BITS
LEVEL, BEGINS = "#level", "#begins/"  # how a payload asks for digits
_TOP = np.uint64(1 << 63)


class Grid(NamedTuple):
    """Numbers are whole multiples of 2**unit, of so many limbs."""

    unit: int
    limbs: int

    @property
    def room(self) -> float:
        """What a number has to be below; its sum has as much more as there are sites."""
        return 2.0 ** (16 * self.limbs + self.unit)


FINE = Grid(-96, 10)  # any float64 of an analysis
WHOLE = Grid(0, 4)  # numbers that are whole already; float64 has all of them below 2**53


def spread(algorithm: Algorithm) -> Algorithm:
    """The same algorithm, whose sites answer in limbs: sums of all sites' numbers are exact, and nothing else leaves.

    For algorithms of exact sums, in which every site weighs 1; with the trait "whole" they are sums of whole numbers.
    """
    grid = WHOLE if "whole" in algorithm.traits else FINE

    def round(state: State, context: RoundContext) -> Any:
        def ask(tasks: list[Task]) -> Any:
            totals = []
            for task in tasks:
                totals.append((yield from _asked(task, grid)))
            return totals

        return played(algorithm.round(state, context), ask)

    works = {name: _spread(work, grid) for name, work in algorithm.works.items()}
    return algorithm._replace(round=round, works=works)


def limbs(x: Array, grid: Grid) -> Array:
    """The numbers in limbs, (…, limbs) float64, lowest first, each with its number's sign; the rest is rounded off.

    Raises JobError for a number that has no room.

    >>> limbs(np.array([-65538.0]), WHOLE).tolist()
    [[-2.0, -1.0, -0.0, -0.0]]
    """
    if not np.abs(x).max(initial=0) < grid.room:
        raise JobError(f"a sum beyond {grid.room:.3g} has no room under secagg: scale the columns")
    sign, rest = np.where(x < 0, -1.0, 1.0), np.abs(x) * 2.0**-grid.unit / LIMB ** float(grid.limbs - 1)
    found = np.empty((*x.shape, grid.limbs))
    for at in range(grid.limbs - 1, -1, -1):
        whole = np.floor(rest) if at else np.rint(rest)
        found[..., at] = sign * whole
        rest = (rest - whole) * LIMB
    return found


def means(sums: Array, grid: Grid, count: int) -> Array:
    """The mean over `count` sites of the numbers whose limbs were summed, rounded once."""
    if grid.unit == 0:
        powers = LIMB ** np.arange(grid.limbs, dtype=np.int64)
        return np.asarray((sums.astype(np.int64) @ powers) / count)
    rows = sums.reshape(-1, grid.limbs).astype(np.int64).tolist()
    scale = count << -grid.unit
    found = [sum(limb << (16 * at) for at, limb in enumerate(row)) / scale for row in rows]
    return np.array(found).reshape(sums.shape[:-1])


def _asked(task: Task, grid: Grid) -> Any:
    """The Total of a Task: of numbers their mean, of whole numbers the largest."""
    spec: Spec = task.payload.spec if task.returns is None else task.returns
    if not spec:
        return (yield task)
    if task.aggregator not in (None, mean()):
        raise Incompatible(f"secagg and the aggregator of task {task.work!r} do not go together: only sums leave")
    asked = len(task.sites)
    if asked > MOST:
        raise JobError(f"an exact sum under secagg has room for {MOST:,} sites, not {asked:,}: ask fewer in a round")
    task = task._replace(aggregator=mean(arithmetic=fixed(float(RING // asked), 1.0)))  # the ring's step is then 1
    numbers, largest = ([leaf for leaf in spec if (leaf.kind == "integer") is whole] for whole in (False, True))
    found, total = {}, None
    if numbers:
        returns = [leaf._replace(dtype="float64", shape=(*leaf.shape, grid.limbs)) for leaf in numbers]
        total = yield task._replace(returns=tuple(returns))
        for leaf in numbers:
            found[leaf.name] = means(_sum(total, leaf.name), grid, total.count).astype(leaf.dtype)
    if largest:
        most, last = yield from _largest(task, largest)
        found |= most
        total = total or last
    assert total is not None
    return total._replace(params=Params(found))


def _sum(total: Total, name: str) -> Array:
    return np.asarray(np.rint(total.count * np.asarray(total.params[name])))


def _largest(task: Task, leaves: Sequence[Leaf]) -> Any:
    """(name -> the largest of each number, the last Total), from how many sites have which digit next."""
    begins = {leaf.name: np.zeros(leaf.shape, np.uint64) for leaf in leaves}
    returns = tuple(leaf._replace(dtype="float64", kind="trainable", shape=(*leaf.shape, 1 << BITS)) for leaf in leaves)
    total = None
    for level in range(LEVELS):
        more = {LEVEL: np.int64(level)} | {BEGINS + name: x for name, x in begins.items()}
        total = yield task._replace(payload=Params({**task.payload, **more}), returns=returns)
        for name, x in begins.items():
            counts = _sum(total, name)
            if not counts.any(-1).all():
                raise JobError(f"task {task.work!r}: a site left while the largest number was looked for: run it again")
            digit = (1 << BITS) - 1 - (counts[..., ::-1] > 0).argmax(-1)
            begins[name] = (x << np.uint64(BITS)) | digit.astype(np.uint64)
    most = {leaf.name: (begins[leaf.name] ^ _TOP).view(np.int64).astype(leaf.dtype) for leaf in leaves}
    return most, total


def _spread(work: Work, grid: Grid) -> Work:
    def working(payload: Params, local: Local, site: SiteContext) -> Any:
        plain = Params({name: x for name, x in payload.items() if not name.startswith("#")})
        after, update = work(plain, local, site)
        if not isinstance(update, Update) or not update.params:
            return after, update
        if LEVEL in payload:
            return local, Update(Params(dict(_digits(payload, update.params))))
        floats = {name: limbs(np.asarray(x, np.float64), grid) for name, x in _numbers(update.params)}
        return after, Update(Params(floats), 1.0, update.metrics)

    return working


def _numbers(params: Params) -> Iterator[tuple[str, Array]]:
    return ((leaf.name, params[leaf.name]) for leaf in params.spec if leaf.kind != "integer")


def _digits(payload: Params, params: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    """Of each number that begins as asked its next digit, as a place among all digits."""
    left = 64 - BITS * (int(payload[LEVEL]) + 1)
    for name in (name.removeprefix(BEGINS) for name in payload if name.startswith(BEGINS)):
        x = np.asarray(params[name], np.int64).view(np.uint64) ^ _TOP
        first = x >> np.uint64(left + BITS) if left + BITS < 64 else np.zeros_like(x)
        digit = (x >> np.uint64(left)) & np.uint64((1 << BITS) - 1)
        there = (first == payload[BEGINS + name])[..., None]
        yield name, (there & (digit[..., None] == np.arange(1 << BITS, dtype=np.uint64))).astype(np.float64)
