"""The coordinate-wise median (Yin et al. 2018, definition 1): one lying site in three cannot move it far.
Only arrays and the contract may come in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foedus.core import Gather, Origin
from foedus.params import Array


def median() -> Gather:
    """The median of each coordinate over the sites; weights do not count."""
    return Gather(_finish)


def _finish(origins: Sequence[Origin], weights: Sequence[float], chunk: Array) -> Array:
    return np.asarray(np.median(chunk.astype(np.float64), axis=0))
