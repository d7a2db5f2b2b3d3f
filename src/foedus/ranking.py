"""What counts of negatives and positives by score, (2, bins) in ascending order, say of a ranking; each with its error.
Only numpy may come in. Within a bin no order is known: `bound` is how far the value may be from that of the scores."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Interval = tuple[float, float]
Z = 1.959963984540054  # the normal quantile of 97.5 %


def average_precision(counts: Array) -> float:
    """The area under precision over recall as steps, sum of (R_k - R_k-1) P_k; examples of one bin are ties."""
    _, p, false, true = _descending(counts)
    if not true[-1]:
        return math.nan
    return float(np.sum(p / true[-1] * true / np.maximum(true + false, 1)))


def average_precision_bound(counts: Array) -> float:
    """A bin's positives all come first in it, or last: the precision at each is between these two."""
    n, p, false, true = _descending(counts)
    if not true[-1]:
        return math.nan
    before, above = false - n, true - p
    most = np.sum(p * true / np.maximum(true + before, 1)) / true[-1]
    least = np.sum(p * (above + 1) / np.maximum(above + 1 + false, 1)) / true[-1]
    found = average_precision(counts)
    return float(max(most - found, found - least))


def average_precision_interval(counts: Array) -> Interval:
    """By the logit, with the positives as its number (Boyd, Eng and Page 2013, section 3)."""
    found, positives = average_precision(counts), float(counts[1].sum())
    if not positives or not 0 < found < 1:
        return math.nan, math.nan
    middle, half = math.log(found / (1 - found)), Z / math.sqrt(positives * found * (1 - found))
    low, high = (1 / (1 + math.exp(-x)) for x in (middle - half, middle + half))
    return low, high


def kolmogorov_smirnov(counts: Array) -> float:
    """The largest difference of the two classes' distributions of scores (Kolmogorov and Smirnov)."""
    n, p = counts.sum(1)
    if not n * p:
        return math.nan
    shares = counts.cumsum(1) / counts.sum(1, keepdims=True)
    return float(abs(shares[0] - shares[1]).max())


def kolmogorov_smirnov_bound(counts: Array) -> float:
    """Within a bin one distribution may rise before the other does."""
    if not counts.sum(1).all():
        return math.nan
    return float((counts / counts.sum(1, keepdims=True)).max())


def recall_at(counts: Array, rate: float) -> float:
    """The share of positives among the `rate` of all examples that score highest; of a bin on the border its share."""
    positives = counts[1].sum()
    return float(_caught(counts, rate)[0] / positives) if positives else math.nan


def recall_at_bound(counts: Array, rate: float) -> float:
    """The bin on the border may give all its positives first, or last."""
    positives = counts[1].sum()
    found, least, most = _caught(counts, rate)
    return float(max(most - found, found - least) / positives) if positives else math.nan


def _caught(counts: Array, rate: float) -> tuple[float, float, float]:
    """Positives that are caught: as expected, at least, at most."""
    n, p, false, true = _descending(counts)
    left = rate * float(true[-1] + false[-1])
    border = int(np.searchsorted(true + false, left))
    if border == len(n):
        return (float(true[-1]),) * 3
    above, taken = true[border] - p[border], left - (true + false)[border] + n[border] + p[border]
    expected = taken * p[border] / max(n[border] + p[border], 1)
    return above + expected, above + max(0.0, taken - n[border]), above + min(p[border], taken)


def _descending(counts: Array) -> tuple[Array, Array, Array, Array]:
    """Negatives and positives from the highest score down, and how many of each were met so far."""
    n, p = counts[:, ::-1].astype(np.float64)
    return n, p, n.cumsum(), p.cumsum()


def calibration_error(sums: Array) -> float:
    """The mean over examples of how far a bin's share of positives is from its mean score (Naeini et al. 2015).

    `sums` (3, bins): examples, sum of probabilities, positives.
    """
    n = sums[0].sum()
    return float(abs(sums[1] - sums[2]).sum() / n) if n else math.nan
