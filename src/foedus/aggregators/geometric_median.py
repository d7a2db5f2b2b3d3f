"""The geometric median by the smoothed Weiszfeld algorithm: Robust Aggregation for Federated Learning (RFA), Pillutla
et al. 2022, algorithm 2. Only arrays and the contract may come in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foedus.aggregators.distances import blend, from_blend
from foedus.core import Gather, Origin, Pass
from foedus.errors import JobError
from foedus.params import Array

STILL = 1e-6  # of a share: when none changes by more, the estimate stands


def geometric_median(iterations: int = 32, smoothing: float = 1e-6) -> Gather:
    """The point with the smallest weighted sum of distances to the updates, from their mean in at most `iterations`.

    Each iteration reads all updates once, and fewer are taken where the estimate stands still; the paper's
    experiments take 3. Distances below `smoothing` count as that. Liars may hold up to half of the weight.
    """
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1 or not smoothing > 0:
        raise JobError(f"geometric_median({iterations!r}, {smoothing!r}): both must be positive, the first one whole")

    def sums(shares: Sequence[float], chunk: Array) -> Array:
        return from_blend(ratios(shares), chunk)

    def close(weights: Sequence[float], shares: Sequence[float], squares: Array) -> Sequence[float]:
        before, pull = np.asarray(ratios(shares)), np.asarray(ratios(weights)) / np.maximum(smoothing, np.sqrt(squares))
        after = pull / pull.sum()
        return shares if (np.abs(after - before) <= STILL * after).all() else after.tolist()

    return Gather(finish, [Pass(sums, close)] * iterations)


def finish(origins: Sequence[Origin], shares: Sequence[float], chunk: Array) -> Array:
    """The weighted mean of the rows."""
    return blend(origins, ratios(shares), chunk)


def ratios(shares: Sequence[float]) -> list[float]:
    """The shares of a whole of 1."""
    whole = sum(shares)
    return [share / whole for share in shares]
