"""Bulyan: The Hidden Vulnerability of Distributed Learning in Byzantium, El Mhamdi et al. 2018, section 4 (over Krum).
Only arrays and the contract may come in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foedus.aggregators.distances import added, between, picking, tolerated
from foedus.aggregators.krum import best
from foedus.core import Gather, Origin, Pass
from foedus.params import Array


def bulyan(f: int) -> Gather:
    """Krum chooses n - 2f updates one by one, each time anew among those left; of each coordinate the mean of the
    n - 4f values nearest to the median of the chosen. 4f + 3 updates are needed. Weights do not count.
    """

    def close(weights: Sequence[float], shares: Sequence[float], squares: Array) -> list[float]:
        return picking(set(selected(squares, f)), len(weights))

    def finish(origins: Sequence[Origin], shares: Sequence[float], chunk: Array) -> Array:
        chosen = np.sort(chunk[np.asarray(shares) != 0].astype(np.float64), axis=0)
        far = np.abs(chosen - np.median(chosen, axis=0))
        near = np.argsort(far, axis=0, kind="stable")[: len(chosen) - 2 * f]  # of two that are as near, the smaller
        return added(np.take_along_axis(chosen, near, axis=0)) / len(near)

    return Gather(finish, [Pass(between, close)], 4 * tolerated("bulyan", f) + 3)


def selected(squares: Array, f: int) -> list[int]:
    """The n - 2f updates that Krum picks one after another, in that order."""
    left, found = list(range(len(squares))), list[int]()
    while len(found) < len(squares) - 2 * f:
        found.append(left.pop(best(squares[np.ix_(left, left)], f)[0] if len(left) > 1 else 0))
    return found
