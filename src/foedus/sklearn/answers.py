"""What foedus.analytics found, as scikit-learn estimators: clusters and principal components.
Only the kinds may come in; an Answer is told by what it has."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from foedus.errors import FoedusError
from foedus.sklearn.clusters import at
from foedus.sklearn.moments import principal


def estimator(answer: Any) -> Any:
    """The fitted KMeans or PCA of an Answer of `foedus.analytics.kmeans` or `.pca`, in the order of its features.

    With `scale=True` a PCA comes as a Pipeline whose StandardScaler has the pooled means and variances. A Job's Result
    is read by `foedus.analytics.read` first. Raises FoedusError for other answers.
    """
    found = {"kmeans": _clusters, "pca": _components}.get(getattr(answer, "analysis", ""))
    if found is None:
        what = getattr(answer, "analysis", type(answer).__name__)
        raise FoedusError(
            f"{what} is no k-means and no PCA: give what analytics.kmeans(…), analytics.pca(…) or analytics.read(…) "
            "returned; a run of a SklearnLearner is read by its own learner.estimator(result)"
        )
    return found(answer)


def _clusters(answer: Any) -> Any:
    centres = answer.pandas.drop(columns="size").to_numpy(float)
    return at(KMeans(n_clusters=len(centres)), centres)


def _components(answer: Any) -> Any:
    variance, mean = answer.variance["variance"].to_numpy(float), answer.mean["centre"].to_numpy(float)
    scale, rows = answer.mean["scale"].to_numpy(float), answer.pandas.to_numpy(float)
    total, plain = float(variance[0] / answer.variance["ratio"].iloc[0]), bool((scale == 1).all())
    centre = mean if plain else np.zeros_like(mean)
    made = principal(PCA(len(rows)), answer.n, centre, variance, rows, total)
    if plain:
        return made
    scaler = StandardScaler()
    scaler.mean_, scaler.scale_, scaler.var_ = mean, scale, scale**2
    scaler.n_features_in_, scaler.n_samples_seen_ = len(mean), answer.n
    return make_pipeline(scaler, made)
