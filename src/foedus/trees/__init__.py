"""Boosted trees from sums of gradients over all sites, as of their pooled rows, saved as XGBoost's own files.
Numpy alone is needed; xgboost itself only by whoever wants to load what is saved."""

from foedus.trees.boosting import histogram_boosting
from foedus.trees.model import model_json, predict
from foedus.trees.sites import xgboost_bagging, xgboost_cyclic
from foedus.trees.vertical import vertical_boosting

__all__ = ["histogram_boosting", "model_json", "predict", "vertical_boosting", "xgboost_bagging", "xgboost_cyclic"]
