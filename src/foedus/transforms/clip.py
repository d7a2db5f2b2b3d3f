"""Clipping an update to a largest L2 norm over its trainable arrays (McMahan et al. 2018, section 3).
Only the contract may come in."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from foedus.core import Local, State, Transform, Update
from foedus.errors import JobError
from foedus.keys import Key
from foedus.params import Params, kind


def norm(params: Params) -> float:
    """The L2 norm over all trainable arrays, in float64."""
    squares = [float(np.square(x, dtype=np.float64).sum()) for g, x in params.flats.items() if kind(g) == "trainable"]
    return math.sqrt(math.fsum(squares))


def clip(bound: float) -> Transform:
    """Scales an update whose norm is above `bound` down to it; smaller ones stay as they are."""
    if not bound > 0:
        raise JobError(f"clip({bound}): the bound must be positive")

    def encode(update: Update, local: Local, public: State, key: Key) -> tuple[Update, Any]:
        scale = min(1.0, bound / max(norm(update.params), 1e-300))
        scaled = update.params.map(lambda x: (x.astype(np.float64) * scale).astype(x.dtype))
        return update._replace(params=scaled if scale < 1 else update.params), local

    return Transform(encode=encode, traits=(f"clip {float(bound)!r}",))
