"""Floats as whole numbers in the same order, of which the largest counts at any aggregator: minima, maxima, quantiles.
Only numpy may come in."""

from __future__ import annotations

from typing import Any

import numpy as np

from foedus.params import Array

NOTHING = np.iinfo(np.int64).min
_SIGN = np.int64(0x7FFF_FFFF_FFFF_FFFF)


def whole_of(x: Any) -> Array:
    """The floats as int64 in the same order; -0.0 and 0.0 are one.

    >>> whole_of([-2.0, -0.0, 1.5]).tolist() == sorted(whole_of([1.5, 0.0, -2.0]).tolist())
    True
    """
    bits = (np.asarray(x, np.float64) + 0.0).view(np.int64)
    return np.asarray(np.where(bits < 0, bits ^ _SIGN, bits))


def float_of(x: Any) -> Array:
    """The floats that `whole_of` made these numbers of; NaN for NOTHING."""
    x = np.asarray(x, np.int64)
    found = np.where(x < 0, x ^ _SIGN, x).view(np.float64)
    return np.asarray(np.where(x == NOTHING, np.nan, found))
