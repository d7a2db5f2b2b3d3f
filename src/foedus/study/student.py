"""Student's t for means over seeds and for differences in pairs; the standard library alone comes in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

LEVEL = 0.05  # the share of intervals that may miss


class Interval(NamedTuple):
    """A mean over seeds, and half of its interval; NaN where there is none."""

    mean: float
    half: float

    @property
    def apart(self) -> bool:
        """Whether 0 lies outside."""
        return abs(self.mean) > self.half


def interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """The mean and half of its 1 - `level` interval by Student's t.

    One value has no interval. Values that are all the same have none either: then the seed changes nothing, and so many
    runs say no more than one. Where a value is undefined, so is the mean.

    >>> mean, half = interval([1.0, 2.0, 3.0])
    >>> mean, round(half, 3)
    (2.0, 2.484)
    """
    mean = fmean(values) if values else math.nan
    if math.isnan(mean) or len(values) < 2 or not (spread := stdev(values)):
        return Interval(mean, math.nan)
    return Interval(mean, quantile(1 - level / 2, len(values) - 1) * spread / math.sqrt(len(values)))


def paired(ours: Sequence[float], others: Sequence[float], comparisons: int = 1) -> Interval:
    """The mean difference, seed by seed, and half of its interval.

    Of so many `comparisons`, all intervals hold together at 95 % (Bonferroni).
    """
    differences = [a - b for a, b in zip(ours, others, strict=True)]
    return interval(differences, LEVEL / max(1, comparisons))


def quantile(p: float, degrees: int) -> float:
    """The t below which Student's distribution has the share `p` (above one half), by bisection.

    >>> round(quantile(0.975, 4), 3)
    2.776
    """
    low, high = 0.0, 1.0
    while within(high, degrees) < 2 * p - 1:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle, degrees) < 2 * p - 1 else (low, middle)
    return high


def within(t: float, degrees: int) -> float:
    """The share of Student's distribution between -t and t: Abramowitz and Stegun 1964, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine, term, total = math.cos(angle) ** 2, 1.0, 0.0
    first = degrees % 2
    for i in range(degrees // 2):
        total += term
        term *= cosine * (2 * i + 1 + first) / (2 * i + 2 + first)
    if not first:
        return math.sin(angle) * total
    return 2 / math.pi * (angle + math.sin(angle) * math.cos(angle) * total)
