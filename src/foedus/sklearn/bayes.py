"""Naive Bayes from sums over examples: by class its rows, and the features' sums (and squares, for GaussianNB).
Only the kinds may come in."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.naive_bayes import BernoulliNB, ComplementNB, GaussianNB, MultinomialNB

from foedus.errors import JobError
from foedus.keys import Key
from foedus.params import Array, Params
from foedus.sklearn.kinds import Asked, Kind

COUNTING = (BernoulliNB, ComplementNB, MultinomialNB)
KINDS = (GaussianNB, *COUNTING)


def kind(estimator: Any) -> Kind:
    """The kind of a naive Bayes estimator."""
    if isinstance(estimator, GaussianNB):
        return Kind("sums", "class", _gaussian_first, _gaussian_train, _gaussian)
    return Kind("sums", "class", _counting_first, _counting_train, _counting)


def _shape(asked: Asked) -> tuple[int, int]:
    assert asked.classes is not None
    return len(asked.classes), len(asked.names)


def _gaussian_first(asked: Asked, key: Key) -> Params:
    k, p = _shape(asked)
    sums = {"count": np.zeros(k), "first": np.zeros((k, p)), "second": np.zeros((k, p))}
    return Params({**sums, "centre": np.zeros((k, p))}, {"centre": "buffer"})


def _means(params: Params) -> Array:
    """The pooled mean of each feature in each class, as far as it is known (classes x features)."""
    mean = params["centre"] + params["first"] / np.maximum(params["count"], 1)[:, None]
    return np.asarray(mean)


def _gaussian_train(asked: Asked, params: Params, x: Array, y: Array, key: Key) -> tuple[Params, int]:
    """Sums about the means that are known, so that the second round's squares lose no digits."""
    centre = _means(params)
    off = x - centre[y]
    sums = {"count": np.bincount(y, minlength=len(centre)).astype(np.float64)}
    sums |= {"first": _by_class(off, y, len(centre)), "second": _by_class(off**2, y, len(centre))}
    return Params({**sums, "centre": centre}, {"centre": "buffer"}), 1


def _by_class(x: Array, y: Array, k: int) -> Array:
    return np.stack([x[y == c].sum(axis=0) for c in range(k)])


def _gaussian(asked: Asked, params: Params) -> Any:
    made, count = asked.clone(), _seen(asked, params["count"])
    n, mean = count[:, None], _means(params)
    var = np.maximum(params["second"] / n - (params["first"] / n) ** 2, 0)
    pooled = (n * mean).sum(axis=0) / n.sum()
    spread = (n * (var + (mean - pooled) ** 2)).sum(axis=0) / n.sum()  # of each feature over all classes
    made.epsilon_ = made.var_smoothing * spread.max()
    made.theta_, made.var_, made.class_count_ = mean, var + made.epsilon_, count
    made.class_prior_ = count / count.sum() if made.priors is None else np.asarray(made.priors, np.float64)
    made.classes_, made.n_features_in_ = asked.classes, len(asked.names)
    return made


def _seen(asked: Asked, count: Array) -> Array:
    assert asked.classes is not None
    empty = asked.classes[count <= 0].tolist()
    if empty:
        raise JobError(f"no site has an example of class {empty[0]!r}: leave it out of classes=…")
    return np.array(count)


def _counting_first(asked: Asked, key: Key) -> Params:
    k, p = _shape(asked)
    return Params({"count": np.zeros(k), "first": np.zeros((k, p))})


def _counting_train(asked: Asked, params: Params, x: Array, y: Array, key: Key) -> tuple[Params, int]:
    k, threshold = len(params["count"]), getattr(asked.estimator, "binarize", None)
    if threshold is not None:
        x = (x > threshold).astype(np.float64)
    low = (x < 0).any(axis=0)
    if low.any() and not isinstance(asked.estimator, BernoulliNB):
        raise JobError(
            f"column {asked.names[int(low.argmax())]!r} is negative somewhere: {asked.name} counts; use GaussianNB"
        )
    return Params({"count": np.bincount(y, minlength=k).astype(np.float64), "first": _by_class(x, y, k)}), 1


def _counting(asked: Asked, params: Params) -> Any:
    """A row of means for each class, which weighs as much as the class has rows, has all rows' counts."""
    count, of_ones = _seen(asked, params["count"]), {"binarize": None} if hasattr(asked.estimator, "binarize") else {}
    made = asked.clone(**of_ones)
    made.partial_fit(params["first"] / count[:, None], asked.classes, classes=asked.classes, sample_weight=count)
    return made.set_params(**{name: getattr(asked.estimator, name) for name in of_ones})
