"""How near candidates come to a site's records: PSNR after the best assignment, beside records of others.
Only arrays come in; scipy is imported here, when it is needed."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from foedus.data import Pairs
from foedus.errors import JobError, Missing
from foedus.keys import Key
from foedus.params import Array

ABOVE = 3.0  # dB above the best of the baseline: half its squared error
LEAST = 64  # records of others that a baseline may choose from
PERFECT = 200.0  # dB that stand for equal numbers
MOST = 2000  # candidates and records that are assigned


class Match(NamedTuple):
    """For each record, in dB, how near its candidate comes, and which one that is (-1: none was left)."""

    psnr: Array
    chosen: Array


class Known(NamedTuple):
    """What an attacker may know beforehand: records of others, and the range of numbers."""

    x: Array  # (others, …); of noise in the range where there are none
    y: Array
    low: float
    high: float
    real: bool  # whether they are records

    @property
    def span(self) -> float:
        return max(self.high - self.low, 1e-300)


def arrays(data: Any, site: str) -> tuple[Array, Array]:
    """(inputs, targets) of all examples. Raises JobError for inputs that are no one array."""
    try:
        if isinstance(data, Pairs):
            return np.asarray(data.x), np.asarray(data.y)
        rows = [data[i] for i in range(len(data))]
        return np.stack([np.asarray(x) for x, _ in rows]), np.asarray([np.asarray(y) for _, y in rows])
    except (TypeError, ValueError) as error:
        raise JobError(
            f"site {site!r}, reading its records: {error}; attack compares inputs that are one array of one shape"
        ) from error


def match(candidates: Array, truth: Array, span: float) -> Match:
    """The assignment of candidates to records with the largest sum of PSNR, 10 log10(span² / mean squared error)."""
    assign = _assignment()
    rows, found = _flat(truth), _flat(candidates)
    if not len(found):
        return Match(np.full(len(rows), -np.inf), np.full(len(rows), -1))
    squares = np.square(rows).sum(1)[:, None] + np.square(found).sum(1) - 2 * rows @ found.T
    cost = np.log(np.maximum(squares, 1e-20 * max(1.0, float(np.square(rows).sum(1).max()))))
    i, j = assign(cost)
    psnr, chosen = np.full(len(rows), -np.inf), np.full(len(rows), -1)
    errors = np.square(rows[i] - found[j]).mean(1)
    with np.errstate(divide="ignore"):
        psnr[i] = np.minimum(10 * np.log10(span**2 / errors), PERFECT)
    chosen[i] = j
    return Match(psnr, chosen)


def baseline(count: int, truth: Array, known: Known, key: Key) -> Match:
    """The same for records of others, drawn by key, and their mean: what is there without any update.

    They are as many as there are candidates, and `LEAST` at least.
    """
    order = key.numpy().permutation(len(known.x))[: max(LEAST, count - 1)]
    others = _flat(known.x)
    return match(np.vstack([others[order], others.mean(0, keepdims=True)]), truth, known.span)


def recovered(found: Match, base: Match) -> int:
    """How many records come more than `ABOVE` nearer than any record does by the baseline."""
    return int((found.psnr > base.psnr.max() + ABOVE).sum())


def clipped(candidates: Array, known: Known) -> Array:
    """Candidates within the range of numbers; what is not finite is left out."""
    rows = _flat(candidates)
    rows = rows[np.isfinite(rows).all(1)][:MOST]
    return np.clip(rows, known.low, known.high)


def _flat(x: Array) -> Array:
    return np.asarray(x, np.float64).reshape(len(x), math.prod(x.shape[1:]))


def _assignment() -> Any:
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise Missing("scipy", "audit") from error
    return linear_sum_assignment
