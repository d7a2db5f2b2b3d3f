"""Noise instead of an update: Machine Learning with Adversaries, Blanchard et al. 2017, section 6 ("Gaussian attack").
Only the contract may come in."""

from __future__ import annotations

from typing import Any

import numpy as np

from foedus.attacks.attacked import Attack, replaced
from foedus.core import Update
from foedus.errors import JobError
from foedus.keys import Key


def gaussian(deviation: float = 1.0) -> Attack:
    """Sends normal noise of this standard deviation around 0, by key (the paper's is 200)."""
    if not deviation > 0:
        raise JobError(f"gaussian({deviation}): the standard deviation must be positive")

    def send(update: Update, seen: Any, key: Key) -> Update:
        arrays = update.params.trainable().items()
        return replaced(update, {n: np.asarray(key(n).numpy().normal(0, deviation, x.shape)) for n, x in arrays})

    return Attack(send)
