"""Norm bounding: Can You Really Backdoor Federated Learning?, Sun et al. 2019, section 4.
Only arrays and the contract may come in."""

from __future__ import annotations

from collections.abc import Sequence

from foedus.aggregators.centered_clipping import scale
from foedus.aggregators.distances import blend, lengths
from foedus.aggregators.geometric_median import ratios
from foedus.core import Gather, Pass
from foedus.errors import JobError
from foedus.params import Array


def norm_bounded(bound: float) -> Gather:
    """The weighted mean of the updates, each first scaled down to an L2 norm of `bound`; shorter ones stay as they are.

    As `fd.clip(bound)` at the sites, but done where no site can leave it out.
    """
    if not bound > 0:
        raise JobError(f"norm_bounded({bound}): the bound must be positive")

    def close(weights: Sequence[float], shares: Sequence[float], squares: Array) -> list[float]:
        return [w * s for w, s in zip(ratios(weights), scale(bound, squares), strict=True)]

    return Gather(blend, [Pass(lengths, close)])
