"""The coordinate-wise trimmed mean (Yin et al. 2018, definition 2): of each number the extremes do not count.
Only arrays and the contract may come in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foedus.aggregators.distances import added, tolerated
from foedus.core import Gather, Origin
from foedus.params import Array


def trimmed_mean(f: int) -> Gather:
    """The mean of each coordinate without its `f` smallest and `f` largest values; 2f + 1 updates are needed.

    Weights do not count: a site could lie about its own.
    """

    def finish(origins: Sequence[Origin], shares: Sequence[float], chunk: Array) -> Array:
        kept = np.sort(chunk.astype(np.float64), axis=0)[f : len(chunk) - f]
        return np.clip(added(kept) / len(kept), kept[0], kept[-1])  # rounding takes no mean out of its values

    return Gather(finish, least=2 * tolerated("trimmed_mean", f) + 1)
