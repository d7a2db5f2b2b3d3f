"""Exact sums of weighted float arrays: every bit of every product is kept, so order, shards and trees change nothing.
Flat numpy arrays and weights may come in; nothing here knows of sites, updates or names."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, Final, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from foedus.aggregators.levels import (
    BLOCK,
    F64,
    MOST_WEIGHT,
    WIDE,
    Floats,
    Levels,
    divide,
    join,
    peak,
    scratch,
    spread,
    spread_rows,
)
from foedus.errors import FoedusError

__all__ = ["BLOCK", "Bins", "NotFinite", "check", "clear", "empty", "fold", "fold_rows", "merge", "total"]

LIMIT: Final = 2.0**700  # a product must be smaller
UNIT: Final = 176  # products are held times 2**UNIT, so that the last bit of the least one is far from underflow
WEIGHT_BITS: Final = 29  # with the 24 of a float32 they fill a float64
DTYPES: Final = tuple(np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64))


class NotFinite(FoedusError):
    """An array that cannot be added, since its element `index` is NaN, infinite or too large. Nothing was added."""

    def __init__(self, index: int, value: float) -> None:
        super().__init__(f"element {index} is {value:g}; send finite numbers below 2**700 / weight")
        self.index = index


class Bins(NamedTuple):
    """The exact sum of flat arrays of one size and dtype: some levels for every BLOCK of elements."""

    size: int
    dtype: np.dtype[Any]
    blocks: list[Levels]


def empty(size: int, dtype: DTypeLike) -> Bins:
    """The sum of nothing, for flat arrays of `size` float16, bfloat16, float32 or float64."""
    if np.dtype(dtype) not in DTYPES:
        raise FoedusError(f"cannot sum {np.dtype(dtype)} exactly; send float16, bfloat16, float32 or float64")
    return Bins(size, np.dtype(dtype), [[] for _ in range(0, size, BLOCK)])


def check(bins: Bins, x: Floats, weight: float) -> None:
    """Raises what `fold` would raise, and adds nothing: for callers that fold several arrays or none."""
    _bits_to_clear(weight)
    _peaks(bins, x, weight)


def fold(bins: Bins, x: Floats, weight: float) -> None:
    """Adds weight * x to `bins`, in place and exactly.

    `x` is (size,) of the dtype of `bins`, `weight` in [2**-64, 2**64] with at most 29 significant bits.
    Raises NotFinite before any write when `x` holds NaN, infinity or a magnitude from 2**700 / weight on.

    >>> bins = empty(1, np.float32)
    >>> for x in (2.0**-100, 1e30, -1e30):
    ...     fold(bins, np.full(1, x, np.float32), 3.0)
    >>> total(bins, 3).item() == 2.0**-100
    True
    """
    clear = _bits_to_clear(weight)
    for i, (levels, top) in enumerate(zip(bins.blocks, _peaks(bins, x, weight), strict=True)):
        if top:
            for product, bound in _products(x[i * BLOCK : (i + 1) * BLOCK], top, weight, clear):
                spread(levels, product, bound)


def fold_rows(bins: Bins, x: Floats, weights: Sequence[float]) -> None:
    """As `fold` for each row of `x` (rows, size); quicker where several rows of float32 fit a block.

    Raises NotFinite before any write when `fold` would for a row.
    """
    for weight in set(weights):
        _bits_to_clear(weight)
    wide = 0 < bins.size <= BLOCK and x.dtype == bins.dtype == np.float32
    count = WIDE // bins.size if wide else 1
    parts = [(x[a : a + count], np.array(weights[a : a + count])) for a in range(0, len(x), count)]
    tops = [_peak(bins, part, scales) for part, scales in parts]
    last = _last_bit(weights)
    for (part, scales), top in zip(parts, tops, strict=True):
        if wide and top and math.ldexp(float(scales.sum()), -last) <= 1 << MOST_WEIGHT:
            rows = scratch.product[: part.size].reshape(part.shape)
            np.copyto(rows, part)
            spread_rows(bins.blocks[0], rows, np.ldexp(scales, UNIT), top, last + UNIT)
        elif top:
            for row, weight in zip(part, scales.tolist(), strict=True):
                fold(bins, row, weight)


def _peak(bins: Bins, part: Floats, weights: F64) -> float:
    """The largest magnitude in rows of one size that lie side by side. Raises NotFinite as `fold` would."""
    if part.shape[1:] != (bins.size,) or not part.flags.c_contiguous or part.dtype == np.float64:
        return max(max(_peaks(bins, row, weight), default=0.0) for row, weight in zip(part, weights, strict=True))
    top = peak(part.reshape(-1)) if part.size else 0.0
    if not top < LIMIT / weights.max():
        for row, weight in zip(part, weights, strict=True):
            _peaks(bins, row, weight)
    return top


def _last_bit(weights: Sequence[float]) -> int:
    """The exponent of a power of two that all weights are multiples of."""
    fractions = [math.frexp(weight) for weight in set(weights)]
    wholes = [(int(math.ldexp(fraction, 53)), exponent - 53) for fraction, exponent in fractions]
    return min(exponent + (whole & -whole).bit_length() - 1 for whole, exponent in wholes)


def clear(bins: Bins) -> Bins:
    """The same bins as a sum of nothing: memory that was used before is several times faster than fresh one."""
    for levels in bins.blocks:
        for level in levels:
            level.clear()
    return bins


def merge(a: Bins, b: Bins) -> Bins:
    """The sum of both, in the memory of both: neither may be used again."""
    if (a.size, a.dtype) != (b.size, b.dtype):
        raise FoedusError(f"cannot merge sums of {a.size} {a.dtype} and {b.size} {b.dtype}")
    for mine, theirs in zip(a.blocks, b.blocks, strict=True):
        for level in theirs:
            join(mine, level)
    return a


def total(bins: Bins, divisor: Fraction | int = 1) -> Floats:
    """The sum over `divisor`: (size,) of float32 for the half types, otherwise of the dtype that was added.

    float32 is within 0.5000001 ulp of the rational value, float64 within 5e-16 of it relatively while it is normal.
    Zeros are positive. Raises FoedusError when a sum is beyond float32; a mean never is.
    """
    if divisor <= 0:
        raise FoedusError(f"cannot divide a sum by {divisor}; at least one update must count")
    scale = float(Fraction(divisor) * 2**UNIT)
    out = np.zeros(bins.size, np.float64 if bins.dtype == np.float64 else np.float32)
    try:
        with np.errstate(over="raise", under="ignore"):
            for i, levels in enumerate(bins.blocks):
                if used := [level for level in levels if level.used]:
                    divide(used, scale, out[i * BLOCK : (i + 1) * BLOCK])
    except FloatingPointError:
        raise FoedusError(f"the sum is beyond the range of {out.dtype}; divide it by the weights") from None
    return out


def _bits_to_clear(weight: float) -> int:
    """How many of a float64's last bits must be zero for its product with `weight` to be exact."""
    if not 2.0**-64 <= weight <= 2.0**64:
        raise FoedusError(f"weight {weight} is not from 2**-64 to 2**64; scale the weights of all sites alike")
    whole = int(math.ldexp(math.frexp(weight)[0], 53))
    bits = (whole // (whole & -whole)).bit_length()
    if bits > WEIGHT_BITS:
        raise FoedusError(f"weight {weight} has {bits} significant bits; round it to {WEIGHT_BITS}")
    return bits if bits > 1 else 0


def _peaks(bins: Bins, x: Floats, weight: float) -> list[float]:
    """The largest magnitude in each block of `x`."""
    if x.shape != (bins.size,) or x.dtype != bins.dtype:
        raise FoedusError(f"cannot add {x.dtype} of shape {x.shape} to a sum of {bins.size} {bins.dtype}")
    bound = LIMIT / weight
    peaks = [peak(x[start : start + BLOCK]) for start in range(0, x.size, BLOCK)]
    for i, top in enumerate(peaks):
        if not top < bound:
            index = i * BLOCK + int(np.argmin(np.abs(x[i * BLOCK :].astype(np.float64)) < bound))
            raise NotFinite(index, float(x[index]))
    return peaks


def _products(x: Floats, top: float, weight: float, clear: int) -> Iterator[tuple[F64, float]]:
    """Exact products in scratch memory, each with a bound on its magnitude, that add up to weight * x * 2**UNIT."""
    product = scratch.product[: x.size]
    if x.dtype != np.float64:
        factor = math.ldexp(weight, UNIT)
        yield np.multiply(x, factor, out=product, dtype=np.float64), top * factor
        return
    rest, high, keep = scratch.rest[: x.size], scratch.high[: x.size], np.uint64(2**64 - 2**clear)
    np.multiply(x, 2.0**UNIT, out=rest)  # no longer subnormal: all leading bits are kept
    while top := peak(rest):
        np.bitwise_and(rest.view(np.uint64), keep, out=high.view(np.uint64))
        yield np.multiply(high, weight, out=product), top * weight
        np.subtract(rest, high, out=rest)
