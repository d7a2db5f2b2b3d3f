"""What layered networks learn: losses of outputs and targets, with their slopes.
Only numpy and the errors may come in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from foedus.errors import JobError
from foedus.metrics import Reads
from foedus.params import Array


class Loss(NamedTuple):
    """What is learned: the loss of each row, and the slope of their mean in the outputs."""

    each: Callable[[Array, Array], Array]  # (outputs (n, k), targets (n,)) -> (n,)
    slope: Callable[[Array, Array], Array]  # -> (n, k)
    name: str  # what tells it from others
    target: str | None = None  # the dtype of targets on their way; None: that of the outputs
    reads: Reads = "logits"


def squared() -> Loss:
    """(z - y)^2 of one output."""
    return Loss(lambda z, y: np.square(z[:, 0] - y), lambda z, y: 2 * (z - y[:, None]) / len(z), "squared")


def logistic() -> Loss:
    """Minus the log-likelihood of y in {0, 1}, where one output is the log-odds."""

    def slope(z: Array, y: Array) -> Array:
        return np.asarray((np.exp(-np.logaddexp(0, -z)) - y[:, None]) / len(z))

    return Loss(lambda z, y: np.logaddexp(0, z[:, 0]) - y * z[:, 0], slope, "logistic")


def softmax() -> Loss:
    """Minus the log-likelihood of the class y, where outputs are logits, one a class."""

    def each(z: Array, y: Array) -> Array:
        return np.asarray(np.logaddexp.reduce(z, 1) - z[np.arange(len(z)), y])

    def slope(z: Array, y: Array) -> Array:
        found = np.exp(z - np.logaddexp.reduce(z, 1)[:, None])
        found[np.arange(len(z)), y] -= 1
        return np.asarray(found / len(z))

    return Loss(each, slope, "softmax", "int64")


LOSSES = {"squared": squared, "logistic": logistic, "softmax": softmax}


def loss_of(spec: str | Loss) -> Loss:
    """The loss of that name, or the Loss itself. Raises JobError."""
    found = LOSSES[spec]() if isinstance(spec, str) and spec in LOSSES else spec
    if not isinstance(found, Loss):
        raise JobError(f"loss={spec!r}: it is {', '.join(map(repr, LOSSES))}, or a foedus.layers.Loss")
    return found
