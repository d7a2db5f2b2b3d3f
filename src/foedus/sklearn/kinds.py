"""What a kind of estimator is to foedus: its arrays, how a site trains them, and the estimator that they make.
Keys, Params and errors may come in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from sklearn.base import clone

from foedus.keys import Key
from foedus.params import Array, Params, Spec


class Asked(NamedTuple):
    """What a learner was given: the estimator, the features' names, the classes (None: no classifier), the epochs."""

    estimator: Any
    names: tuple[str, ...]
    classes: Array | None
    epochs: int

    @property
    def name(self) -> str:
        return type(self.estimator).__name__

    def clone(self, **settings: Any) -> Any:
        """An estimator of these settings that is not fitted."""
        return clone(self.estimator).set_params(**settings)


class Kind(NamedTuple):
    """One kind; `by` says what the sites' arrays are combined by, `target` what y is."""

    by: Literal["mean", "sums", "union"]
    target: Literal["class", "number", "none"]
    first: Callable[[Asked, Key], Params]  # the first model; raises JobError for settings that cannot be federated
    train: Callable[[Asked, Params, Array, Array, Key], tuple[Params, int]]  # y: numbers of classes -> arrays, steps
    fitted: Callable[[Asked, Params], Any]
    gaps: bool = False  # whether x may hold NaN
    piece: Callable[[Asked], Spec] | None = None  # what a site returns where it is not the model's own arrays


def seeded(key: Key) -> np.random.RandomState:
    """scikit-learn's kind of generator, by name."""
    return np.random.RandomState(key.number() % 2**32)
