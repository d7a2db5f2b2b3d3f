"""Linear models from moments (the sums of z and zz'): LinearRegression, Ridge and PCA of all rows, exactly.
Only the kinds may come in."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression, Ridge

from foedus.errors import JobError
from foedus.keys import Key
from foedus.params import Array, Params
from foedus.sklearn.kinds import Asked, Kind

KINDS = (LinearRegression, Ridge, PCA)


def kind(estimator: Any) -> Kind:
    """The kind of an estimator that moments are enough for."""
    if isinstance(estimator, PCA):
        return Kind("sums", "none", _first, _train, _pca)
    return Kind("sums", "number", _first, _train, _linear)


def _targets(asked: Asked) -> int:
    return 0 if isinstance(asked.estimator, PCA) else 1


def _first(asked: Asked, key: Key) -> Params:
    _check(asked)
    q = len(asked.names) + _targets(asked)
    return _params(np.zeros(()), np.zeros(q), np.zeros((q, q)), np.zeros(q))


def _check(asked: Asked) -> None:
    made = asked.estimator
    if getattr(made, "positive", False):
        raise JobError(f"{asked.name}(positive=True) has no answer in sums: leave it out")
    if isinstance(made, Ridge) and np.ndim(made.alpha):
        raise JobError("Ridge(alpha=[…]): give one number")
    most = len(asked.names)
    if isinstance(made, PCA) and made.n_components is not None:
        whole = isinstance(made.n_components, (int, np.integer))
        if not whole or not 1 <= made.n_components <= most:
            raise JobError(f"PCA(n_components={made.n_components!r}): give a whole number from 1 to {most}, or None")


def _params(n: Array, first: Array, second: Array, centre: Array) -> Params:
    return Params({"n": n, "first": first, "second": second, "centre": centre}, {"centre": "buffer"})


def _mean(params: Params) -> Array:
    return np.asarray(params["centre"] + params["first"] / max(float(params["n"]), 1.0))


def _train(asked: Asked, params: Params, x: Array, y: Array, key: Key) -> tuple[Params, int]:
    """Sums about the means that are known, so that the second round's products lose no digits."""
    centre = _mean(params)
    z = (np.column_stack([x, y]) if _targets(asked) else x) - centre
    return _params(np.array(float(len(z))), z.sum(axis=0), z.T @ z, centre), 1


def _scatter(params: Params) -> tuple[float, Array, Array]:
    """(rows, mean, the sum of (z - mean)(z - mean)')."""
    n, off = float(params["n"]), params["first"]
    return n, _mean(params), params["second"] - np.outer(off, off) / n


def _linear(asked: Asked, params: Params) -> Any:
    made = asked.clone()
    n, mean, s = _scatter(params)
    if not made.fit_intercept:
        s, mean = s + n * np.outer(mean, mean), np.zeros_like(mean)
    penalty = made.alpha * np.eye(len(s) - 1) if isinstance(made, Ridge) else 0
    made.coef_ = np.linalg.lstsq(s[:-1, :-1] + penalty, s[:-1, -1], rcond=None)[0]
    made.intercept_ = float(mean[-1] - mean[:-1] @ made.coef_) if made.fit_intercept else 0.0
    made.n_features_in_ = len(asked.names)
    return made


def _pca(asked: Asked, params: Params) -> Any:
    n, mean, s = _scatter(params)
    values, vectors = np.linalg.eigh(s / max(n - 1, 1))
    values, most = np.maximum(values[::-1], 0), min(int(n), len(mean))
    k = min(asked.estimator.n_components or most, most)
    return principal(asked.clone(), n, mean, values[:k], vectors.T[::-1][:k], float(values.sum()))


def principal(made: Any, n: float, mean: Array, variances: Array, rows: Array, total: float) -> Any:
    """A fitted PCA of these components, of `n` rows of variance `total`; the largest loadings are positive."""
    k, most = len(rows), min(int(n), len(mean))
    made.components_ = rows * np.sign(rows[np.arange(k), np.abs(rows).argmax(axis=1)])[:, None]
    made.mean_, made.explained_variance_ = mean, variances
    made.explained_variance_ratio_ = variances / total
    made.singular_values_ = np.sqrt(variances * (n - 1))
    made.noise_variance_ = max(total - float(variances.sum()), 0.0) / (most - k) if k < most else 0.0
    made.n_components_, made.n_samples_, made.n_features_in_ = k, int(n), len(mean)
    return made
