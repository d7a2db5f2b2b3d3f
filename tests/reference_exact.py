"""Weighted sums in rational arithmetic: slow, plain, and right by definition.
Arrays and weights come in; fractions go out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def mean(arrays: Sequence[Array], weights: Sequence[float]) -> list[Fraction]:
    """The weighted mean of each element."""
    whole = sum(map(Fraction, weights), Fraction(0))
    columns = zip(*(array.astype(np.float64).tolist() for array in arrays), strict=True)
    return [sum((Fraction(w) * Fraction(x) for w, x in zip(weights, column, strict=True)), Fraction(0)) / whole
            for column in columns]  # fmt: skip


def ulps(got: Array, want: Sequence[Fraction]) -> float:
    """The largest error of float32 `got`, in units in the last place of the true value."""
    return max((float(abs(Fraction(g) - w) / _unit(w)) for g, w in zip(got.tolist(), want, strict=True)), default=0.0)


def relative(got: Array, want: Sequence[Fraction]) -> float:
    """The largest relative error of float64 `got`; below 2**-1022 relative to that, and zero must be zero."""
    pairs = list(zip(got.tolist(), want, strict=True))
    assert all(w or not g for g, w in pairs)
    return max((float(abs(Fraction(g) - w) / max(abs(w), Fraction(2) ** -1022)) for g, w in pairs), default=0.0)


def _unit(value: Fraction) -> Fraction:
    exponent = math.frexp(float(value))[1] if value else -148
    return Fraction(2) ** (max(exponent, -125) - 24)
