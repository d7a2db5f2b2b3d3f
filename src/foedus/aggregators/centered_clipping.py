"""Centered clipping: Learning from History for Byzantine Robust Optimization, Karimireddy et al. 2021, equation 1.
Only arrays and the contract may come in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foedus.aggregators.distances import blend, from_blend, lengths
from foedus.core import Gather, Pass
from foedus.errors import JobError
from foedus.params import Array


def centered_clipping(tau: float, iterations: int = 3) -> Gather:
    """v becomes v + mean of (x - v) min(1, tau / |x - v|), so many times: no site moves it by more than tau / n a time.

    v begins at zero, which for differences is the round's model (the paper begins at the last round's v). Weights do
    not count.
    """
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1 or not tau > 0:
        raise JobError(f"centered_clipping({tau!r}, {iterations!r}): both must be positive, the second one whole")

    def first(weights: Sequence[float], shares: Sequence[float], squares: Array) -> list[float]:
        return further(weights, [0.0] * len(shares), squares)

    def further(weights: Sequence[float], shares: Sequence[float], squares: Array) -> list[float]:
        """v is a sum of the updates by `shares`, and stays one."""
        scales = scale(tau, squares)
        kept = 1 - sum(scales) / len(scales)
        return [kept * share + s / len(scales) for share, s in zip(shares, scales, strict=True)]

    return Gather(blend, [Pass(lengths, first), *[Pass(from_blend, further)] * (iterations - 1)])


def scale(bound: float, squares: Array) -> list[float]:
    """What brings vectors of these squared lengths down to `bound`: 1 for those that are no longer."""
    found: list[float] = np.minimum(1.0, bound / np.maximum(np.sqrt(squares), 1e-300)).tolist()
    return found
