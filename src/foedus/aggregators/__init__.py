"""How updates are combined: each aggregator is a Sum or a Gather, one method a file.
Arrays and the contract may come in; nothing here knows who sends updates or how."""

from foedus.aggregators.fixed import Fixed, fixed
from foedus.aggregators.folding import Folding, combine
from foedus.aggregators.mean import mean
from foedus.aggregators.median import median

__all__ = ["Fixed", "Folding", "combine", "fixed", "mean", "median"]
