"""Boosted trees as a learner that scores and does not train: what validation asks for.
Trees and what a site makes of its rows come in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from foedus import metrics as measures
from foedus.errors import JobError
from foedus.keys import Key
from foedus.params import Array, Params
from foedus.trees import counting
from foedus.trees.model import about, base, margins, scored

HERE = "boosted trees"  # whose rows errors speak of: who asks names the site


@final
class TreeScorer:
    """Scores examples with the trees of `histogram_boosting`, `xgboost_bagging` or `xgboost_cyclic`."""

    metrics: Sequence[Any] = ()

    def describe(self) -> dict[str, Any]:
        """It has no settings: the model says all."""
        return {}

    def init(self, key: Key) -> Params:
        raise JobError("there is no first model of boosted trees here: give a trained one, as start=…")

    def train(self, *_: Any) -> Any:
        raise JobError("boosted trees are grown by their algorithm, and only scored by this learner")

    def evaluate(self, params: Params, data: Any, metrics: Sequence[Any]) -> dict[str, Array]:
        """name -> sums over `data` for these metrics. Raises JobError where its columns are not the model's."""
        how, _ = about(params)
        counting.check_columns(params, data, HERE, how)
        x, y, _ = counting.read(data, HERE, how)
        outputs = scored(base(how) + margins(params, x, how), how)
        return dict(counting.told(list(map(measures.metric, metrics)), outputs, y, how))
