"""Multi-Krum: Machine Learning with Adversaries, Blanchard et al. 2017, section 5.
Only arrays and the contract may come in."""

from __future__ import annotations

from collections.abc import Sequence

from foedus.aggregators.distances import between, picked, picking, tolerated
from foedus.aggregators.krum import best
from foedus.core import Gather, Pass
from foedus.errors import JobError
from foedus.params import Array


def multi_krum(f: int, m: int) -> Gather:
    """The plain mean of the `m` updates with the best scores of Krum; 2f + 3 updates are needed, and f + m.

    With m = 1 it is Krum; more of them use more data, and n - f are the most that can be honest.
    """
    if isinstance(m, bool) or not isinstance(m, int) or m < 1:
        raise JobError(f"multi_krum(m={m!r}): the number of updates that count is a whole number from 1 on")

    def close(weights: Sequence[float], shares: Sequence[float], squares: Array) -> list[float]:
        return picking(set(best(squares, f)[:m]), len(weights))

    return Gather(picked, [Pass(between, close)], max(2 * tolerated("multi_krum", f) + 3, f + m))
