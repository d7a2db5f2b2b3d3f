"""The exact sum of one block of elements, as counts at a few exponents; the arithmetic under `exact`.
Float64 arrays of at most BLOCK elements may come in, each with a bound on its magnitudes.

A sparse superaccumulator (Neal, *Fast exact summation using small and large superaccumulators*, 2015). Adding a magic
number whose last bit is worth 2**e cuts a number at 2**e (Rump, Ogita and Oishi, *Accurate floating-point summation*,
2008); what is left goes to a finer level, until nothing is. Where the levels lie decides the speed, never the sum.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[Any]  # bfloat16 is no numpy type
F64: TypeAlias = NDArray[np.float64]
I64: TypeAlias = NDArray[np.int64]
U64: TypeAlias = NDArray[np.uint64]
Terms: TypeAlias = list[tuple[int, I64]]  # exponents, ascending, and counts

BLOCK: Final = 1 << 14  # all that an addition touches of so many elements fits a second-level cache
WIDE: Final = 8 * BLOCK  # elements of rows that are added at once: fewer calls are worth more than the nearest cache
MOST_WEIGHT: Final = 14  # bits of the sum of rows' weights
ROUNDED: Final = 1 + 2.0**-20  # numbers that are cut may grow by half of their last bit
FULL: Final = 1 << 62
FEWEST, FRESH, MOST = 36, 50, 51  # bits above a level's exponent: least worth using, in a new level, that can be cut
STEP: Final = 4  # exponents are multiples of it, so that shards tend to choose the same
SPARSE: Final = 8  # when fewer than one element in so many has bits left, those are gathered
PIECE: Final = 1 << 12  # elements that temporary arrays may have before the system's allocator gets slow
INTEGERS: Final = {2: (np.int16, np.uint16), 4: (np.int32, np.uint32), 8: (np.int64, np.uint64)}


@final
@dataclass(slots=True, eq=False)
class Level:
    """Counts of 2**exponent for the elements of a block, modulo 2**64, each too high by `biases` times `bits`."""

    exponent: int
    counts: U64
    biases: int = 0
    used: int = 0  # no true count is larger

    @property
    def magic(self) -> float:
        return math.ldexp(1.5, 52 + self.exponent)

    @property
    def bits(self) -> int:
        return int(np.float64(self.magic).view(np.uint64))

    def true(self, index: slice | NDArray[np.intp] = slice(None), out: U64 | None = None) -> I64:
        """The counts themselves."""
        return np.subtract(self.counts[index], np.uint64(self.biases * self.bits % 2**64), out=out).view(np.int64)

    def clear(self) -> None:
        self.counts.fill(0)
        self.biases = self.used = 0


Levels: TypeAlias = list[Level]  # of one block, finest first, no exponent twice


class _Scratch(threading.local):
    def __init__(self) -> None:
        self.product, self.cut, self.rest, self.high = np.empty((4, WIDE))
        self.mask, self.rough = np.empty((2, WIDE), bool)


scratch = _Scratch()  # fresh memory costs more than the arithmetic


def peak(x: Floats) -> float:
    """The largest magnitude, or NaN or infinity: as integers, these are beyond all numbers of their sign."""
    one, other = (abs(float(x[x.view(kind).argmax()])) for kind in INTEGERS[x.itemsize])
    return one if one > other or math.isnan(one) else other


def spread(levels: Levels, rest: F64, top: float) -> None:
    """Adds every bit of `rest`, whose magnitudes are at most `top`, to some level; `rest` is used up."""
    cut, mask = scratch.cut[: rest.size], scratch.mask[: rest.size]
    while top:
        level = _level(levels, top, rest.size)
        np.add(rest, level.magic, out=cut)
        np.add(level.counts, cut.view(np.uint64), out=level.counts)
        level.biases += 1
        np.subtract(cut, level.magic, out=cut)
        left = np.count_nonzero(np.not_equal(rest, cut, out=mask))
        if left * SPARSE < rest.size:
            return _spread_few(levels, rest, cut, np.flatnonzero(mask)) if left else None
        np.subtract(rest, cut, out=rest)
        top = peak(rest)


def spread_rows(levels: Levels, rows: F64, weights: F64, top: float, last: int) -> None:
    """Adds every bit of the sum of `weights` times `rows` (count, size), whose magnitudes are at most `top`.

    The weights are whole multiples of 2**last, at most 2**MOST_WEIGHT of them, and rows are float32's numbers: no
    product is rounded. What lies above a level's exponent is added up by a product of matrices, of which no partial sum
    has more than 53 bits, whatever its order. `rows` is used up.
    """
    whole, size = rows.reshape(-1), rows.shape[1]
    cut, mask = scratch.cut[: whole.size], scratch.mask[: whole.size]
    level = _level(levels, top * float(weights.sum()) * ROUNDED, size)
    magic = math.ldexp(1.5, 52 + level.exponent - last)
    np.add(whole, magic, out=cut)
    np.subtract(cut, magic, out=cut)
    added = weights @ cut.reshape(rows.shape)
    added += level.magic
    np.add(level.counts, added.view(np.uint64), out=level.counts)
    level.biases += 1
    left = np.count_nonzero(np.not_equal(whole, cut, out=mask))
    if left * SPARSE < whole.size:
        index = np.flatnonzero(mask)
        row, place = np.divmod(index, size)
        _spread_at(levels, (whole[index] - cut[index]) * weights[row], place, size)
        return
    np.subtract(whole, cut, out=whole)
    for row, weight in zip(rows, weights, strict=True):
        np.multiply(row, weight, out=row)
        spread(levels, row, peak(row))


def _spread_few(levels: Levels, whole: F64, cut: F64, index: NDArray[np.intp]) -> None:
    """Adds what `cut` left of a few elements of `whole`."""
    rest = whole[index] - cut[index]
    while top := peak(rest):
        level = _level(levels, top, whole.size)
        part = rest + level.magic
        level.counts[index] += part.view(np.uint64) - np.uint64(level.bits)
        rest -= part - level.magic


def _spread_at(levels: Levels, rest: F64, place: NDArray[np.intp], size: int) -> None:
    """Adds a few numbers at places that may come several times, each time as a number of its own."""
    order = np.argsort(place, kind="stable")
    rest, place = rest[order], place[order]
    while rest.size:
        first = np.append(True, place[1:] != place[:-1])
        whole = np.zeros(size)
        whole[place[first]] = rest[first]
        _spread_few(levels, whole, np.zeros(size), place[first])
        rest, place = rest[~first], place[~first]


def _level(levels: Levels, top: float, size: int) -> Level:
    """A level that has room for numbers up to `top`."""
    bits = math.frexp(top)[1]
    for level in levels:
        if FEWEST <= (depth := bits - level.exponent) <= MOST:
            if level.used + (1 << depth) > FULL:
                levels.remove(level)
                _pour(level, levels)
                return _level(levels, top, size)
            level.used += 1 << depth
            return level
    _insert(levels, Level(-((FRESH - bits) // STEP) * STEP, np.zeros(size, np.uint64)))
    return _level(levels, top, size)


def _insert(levels: Levels, level: Level) -> None:
    levels.append(level)
    levels.sort(key=attrgetter("exponent"))


def _pour(level: Level, levels: Levels) -> None:
    """Adds a level that has no more room to others, in two parts that a float64 holds."""
    counts = level.true()
    low = counts & (2**24 - 1)
    for part in (low, counts - low):
        values = part.astype(np.float64) * 2.0**level.exponent
        spread(levels, values, peak(values))


def join(levels: Levels, other: Level) -> None:
    """Adds a level, which must not be used again."""
    level = next((level for level in levels if level.exponent == other.exponent), None)
    if level is None:
        _insert(levels, other)
    elif level.used + other.used > FULL:
        _pour(other, levels)
    else:
        level.counts += other.counts
        level.biases, level.used = level.biases + other.biases, level.used + other.used


def divide(levels: Levels, scale: float, out: Floats) -> None:
    """Writes the sum over `scale`, from the sum itself where a float64 holds it and from its digits elsewhere.

    The two agree where both apply, so what is written depends on the sum alone.
    """
    size = out.size
    total, term, added, back = (a[:size] for a in (scratch.product, scratch.cut, scratch.rest, scratch.high))
    mask, rough = scratch.mask[:size], scratch.rough[:size]
    rough.fill(False)
    _convert(levels[0], total, added, rough)
    for level in levels[1:]:
        _convert(level, term, added, rough)
        np.add(total, term, out=added)
        for one, other in ((total, term), (term, total)):  # taking away the larger one is exact, so that one tells
            rough |= np.not_equal(np.subtract(added, one, out=back), other, out=mask)
        total, added = added, total
    index = np.flatnonzero(rough)
    for piece in (index[start : start + PIECE] for start in range(0, index.size, PIECE)):
        terms = [(level.exponent, level.true(piece)) for level in levels]
        total[piece] = _settled(total[piece], terms, lambda x: (x / scale).astype(out.dtype))
    out[:] = np.divide(total, scale, out=total)
    out += 0.0  # no negative zero: what is too small for `out` may be off by its sign


def _convert(level: Level, out: F64, spare: F64, rough: NDArray[np.bool_]) -> None:
    """Writes the level as floats, and marks those that are not exact."""
    counts = level.true(out=spare.view(np.uint64))
    np.copyto(out, counts, casting="unsafe")
    if level.used > 2**53:
        rough |= out.astype(np.int64) != counts
    out *= 2.0**level.exponent


def _settled(near: F64, terms: Terms, narrow: Callable[[F64], Floats]) -> F64:
    """`near`, the rounded sum of the terms, or the sum by digits where that may narrow to another number."""
    error = np.zeros(near.size)
    for exponent, counts in terms:
        error += np.abs(counts * 2.0**exponent)
    error *= 2.0**-42  # 2**-53 for each conversion and addition, of which there are less than 2**11
    with np.errstate(over="ignore"):
        unsure = narrow(near - error) != narrow(near + error)
    if unsure.any():
        near[unsure] = _by_digits([(exponent, counts[unsure]) for exponent, counts in terms])
    return near


def _by_digits(terms: Terms) -> F64:
    """The sum of counts * 2**exponent by its digits in base 2**32, which begin at -2**31 and so are unique.

    Added from the last digit on: exact if float64 can hold the sum, and always within 3 * 2**-53 of it relatively.
    """
    low, high = terms[0][0] // 32, terms[-1][0] // 32
    digits = np.zeros((high - low + 3, terms[0][1].size), np.int64)
    for exponent, counts in terms:
        place, shift = divmod(exponent - 32 * low, 32)
        digits[place] += (counts & ((1 << (32 - shift)) - 1)) << shift
        digits[place + 1] += counts >> (32 - shift)
    for place in range(len(digits) - 1):
        carry = (digits[place] + 2**31) >> 32
        digits[place] -= carry << 32
        digits[place + 1] += carry
    total = np.zeros(digits.shape[1])
    for place, digit in enumerate(digits, low):
        total += digit * 2.0 ** (32 * place)
    return total
