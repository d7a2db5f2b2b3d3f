"""Boosted trees from sums of gradients over all sites, as of their pooled rows, saved as XGBoost's own files.
Numpy alone is needed; xgboost itself only by whoever wants to load what is saved."""

from foedus.trees.boosting import histogram_boosting
from foedus.trees.model import model_json, predict
from foedus.trees.sites import xgboost_bagging, xgboost_cyclic

__all__ = ["histogram_boosting", "model_json", "predict", "xgboost_bagging", "xgboost_cyclic"]
