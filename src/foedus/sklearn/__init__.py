"""Learners of scikit-learn: any estimator with partial_fit, exact models from sums, forests; and the way back.
The public names are SklearnLearner and estimator; scikit-learn comes in here and is an extra."""

from __future__ import annotations

from foedus.errors import Missing

try:
    import sklearn as _sklearn  # noqa: F401
except ModuleNotFoundError as error:
    raise Missing("sklearn", "sklearn") from error

from foedus.sklearn.answers import estimator
from foedus.sklearn.learner import SklearnLearner

__all__ = ["SklearnLearner", "estimator"]
