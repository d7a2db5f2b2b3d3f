"""k-means from sums by cluster: KMeans takes Lloyd's exact step a round, MiniBatchKMeans many steps at each site.
Only the kinds may come in."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning

from foedus.errors import JobError
from foedus.keys import Key
from foedus.params import Array, Params
from foedus.sklearn.kinds import Asked, Kind, seeded

KINDS = (KMeans, MiniBatchKMeans)


def kind(estimator: Any) -> Kind:
    """The kind of KMeans and MiniBatchKMeans."""
    steps = _batches if isinstance(estimator, MiniBatchKMeans) else _assign
    return Kind("sums", "none", _first, steps, _fitted)


def _first(asked: Asked, key: Key) -> Params:
    k, p, init = asked.estimator.n_clusters, len(asked.names), asked.estimator.init
    if isinstance(init, str) or callable(init) or np.shape(init) != (k, p):
        raise JobError(
            f"{asked.name}(init=…): give {k} centres of {p} numbers, for no site sees all data to draw them from; "
            "foedus.analytics.kmeans draws its own"
        )
    return _params(np.zeros(k), np.zeros((k, p)), np.array(init, np.float64))


def _params(count: Array, first: Array, centre: Array) -> Params:
    return Params({"count": count, "first": first, "centre": centre}, {"centre": "buffer"})


def centres(params: Params) -> Array:
    """Where the clusters are (clusters x features); one without rows stays where it was."""
    return np.asarray(params["centre"] + params["first"] / np.maximum(params["count"], 1)[:, None])


def _assign(asked: Asked, params: Params, x: Array, y: Array, key: Key) -> tuple[Params, int]:
    """Each row goes to its nearest centre: rows, and their sum about it (Lloyd 1982)."""
    here = centres(params)
    near = nearest(x, here)
    first = np.stack([(x[near == c] - here[c]).sum(axis=0) for c in range(len(here))])
    return _params(np.bincount(near, minlength=len(here)).astype(np.float64), first, here), 1


def nearest(x: Array, centres: Array) -> Array:
    """The number of each row's nearest centre, the first of several."""
    far = np.stack([np.square(x - centre).sum(axis=1) for centre in centres], axis=1)
    return np.asarray(far.argmin(axis=1))


def _batches(asked: Asked, params: Params, x: Array, y: Array, key: Key) -> tuple[Params, int]:
    """The site's own centres after its batches (Sculley 2010), each of which weighs as many rows as are nearest to it.

    A site with fewer rows than clusters takes Lloyd's step.
    """
    here, random, steps = centres(params), seeded(key("order")), 0
    if len(x) < len(here):
        return _assign(asked, params, x, y, key)
    made = asked.clone(init=here, n_init=1, reassignment_ratio=0.0, random_state=random)
    size = max(min(made.batch_size, len(x)), len(here))
    for _ in range(asked.epochs):
        order = random.permutation(len(x))
        for at in range(0, len(x) - size + 1, size):
            made.partial_fit(x[order[at : at + size]])
            steps += 1
    own = np.asarray(made.cluster_centers_, np.float64)
    count = np.bincount(nearest(x, own), minlength=len(own)).astype(np.float64)
    return _params(count, count[:, None] * (own - here), here), steps


def _fitted(asked: Asked, params: Params) -> Any:
    return at(asked.estimator, centres(params))


def at(estimator: Any, centres: Array) -> Any:
    """The estimator, fitted, with these centres: `predict`, `transform` and `score` are theirs."""
    made = clone(estimator).set_params(init=centres, n_init=1, max_iter=1, n_clusters=len(centres))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of centres that are equal
        made.fit(centres)
    made.cluster_centers_ = np.array(centres)
    own = estimator.get_params(deep=False)
    return made.set_params(**{name: own[name] for name in ("init", "n_init", "max_iter")})
