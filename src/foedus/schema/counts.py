"""Cells held against their column, block by block: the counts of two blocks add up to those of both.
Cells come in; only counts go out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from foedus.params import Array
from foedus.schema.rules import Column
from foedus.schema.units import Conversion, conversions

GAPS = frozenset(("", "na", "n/a", "nan", "null", "none", "?", ".", "<na>"))  # in any case, blanks around them
MARKS = (0, -1, -9, -99, -999, -9999, 9, 99, 999, 9999)  # numbers that often stand for a gap
_ONE_OFF = (Conversion("", "", 1.0, 1.0), Conversion("", "", 1.0, -1.0))

C = TypeVar("C", bound=tuple[Any, ...])


class Counts(NamedTuple):
    """Of a column's rows: how many are gaps, cannot be read, do not fit, do not fit and are usual marks of a gap.

    `fits` counts the values that fit once they are converted, for each of `suspects`; `codes` the rows of each code.
    """

    rows: int
    missing: int
    odd: int
    misfit: int
    marks: int
    fits: tuple[int, ...]
    codes: tuple[int, ...]

    @property
    def read(self) -> int:
        """How many are finite numbers or texts."""
        return self.rows - self.missing - self.odd


def added(a: C, b: C) -> C:
    """The counts of two blocks together."""
    both = zip(a, b, strict=True)
    return type(a)(*(tuple(map(sum, zip(x, y, strict=True))) if isinstance(x, tuple) else x + y for x, y in both))


def count(column: Column, cells: Any) -> Counts:
    """The counts of some cells: float64, or texts."""
    values = encoded(column, cells)
    gaps, finite = np.isnan(values), values[np.isfinite(values)]
    bad = finite[~_fit(column, finite)]
    with np.errstate(over="ignore"):
        fits = tuple(int(_inside(column, finite * c.scale + c.offset).sum()) for c in suspects(column))
    codes = tuple(int((finite == code).sum()) for code in _numbers(column)) if column.least_each else ()
    missing, marks = int(gaps.sum()), int(np.isin(bad, MARKS).sum())
    return Counts(len(values), missing, len(values) - missing - len(finite), len(bad), marks, fits, codes)


def suspects(column: Column) -> tuple[Conversion, ...]:
    """What may have been done to values that do not fit: another unit, or codes counted from another number."""
    if column.type == "code":
        return _ONE_OFF if column.numeric else ()
    bounded = column.numeric and (math.isfinite(column.min) or math.isfinite(column.max))
    return conversions(column.unit) if bounded else ()


def encoded(column: Column, cells: Any) -> Array:
    """The cells as float64: NaN for a gap, infinity for what cannot be read; a text code is its place in the list."""
    if isinstance(cells, np.ndarray):
        if column.numeric:
            return cells
        cells = [f"{x:.15g}" for x in cells.tolist()]
    if column.numeric:
        try:
            return np.array(cells, np.float64)
        except ValueError:
            return np.array(list(map(_number, cells)), np.float64)
    places = {code: float(i) for i, code in enumerate(column.codes)}
    other = math.inf if column.codes else 0.0
    return np.array([places.get(c, math.nan if _is_gap(c) else other) for c in cells], np.float64)


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan if _is_gap(cell) else math.inf


def _is_gap(cell: str) -> bool:
    return cell.strip().casefold() in GAPS


def _fit(column: Column, x: Array) -> Array:
    return _inside(column, x) & (x == np.rint(x)) if column.type == "integer" else _inside(column, x)


def _inside(column: Column, x: Array) -> Array:
    if column.codes:
        return np.isin(x, _numbers(column))
    return np.asarray((x >= column.min) & (x <= column.max))


def _numbers(column: Column) -> Sequence[Any]:
    return column.codes if column.numeric else range(len(column.codes))
