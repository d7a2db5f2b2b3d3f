"""Krum: Machine Learning with Adversaries, Blanchard et al. 2017, section 4.
Only arrays and the contract may come in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foedus.aggregators.distances import between, picked, picking, tolerated
from foedus.core import Gather, Pass
from foedus.params import Array


def krum(f: int) -> Gather:
    """The one update that is nearest to its n - f - 2 nearest others, in squared distance; 2f + 3 updates are needed.

    Of several, that of the first site by name. Weights do not count.
    """

    def close(weights: Sequence[float], shares: Sequence[float], squares: Array) -> list[float]:
        return picking({best(squares, f)[0]}, len(weights))

    return Gather(picked, [Pass(between, close)], 2 * tolerated("krum", f) + 3)


def best(squares: Array, f: int) -> list[int]:
    """The updates from the best score to the worst; `squares` are their squared distances (n x n).

    A score adds up the n - f - 2 smallest distances to others. Bulyan asks for fewer than f + 3 updates, too: then one.
    """
    near = max(1, len(squares) - f - 2)
    scores = [sum(np.sort(np.delete(row, i))[:near].tolist()) for i, row in enumerate(squares)]
    return sorted(range(len(scores)), key=lambda i: (scores[i], i))
