"""How updates are combined: each aggregator is a Sum or a Gather, one method a file.
Arrays and the contract may come in; nothing here knows who sends updates or how."""

from foedus.aggregators.bulyan import bulyan
from foedus.aggregators.centered_clipping import centered_clipping
from foedus.aggregators.each import each
from foedus.aggregators.fixed import Fixed, fixed
from foedus.aggregators.folding import Folding, combine
from foedus.aggregators.geometric_median import geometric_median
from foedus.aggregators.krum import krum
from foedus.aggregators.mean import discounted, mean
from foedus.aggregators.median import median
from foedus.aggregators.multi_krum import multi_krum
from foedus.aggregators.norm_bounded import norm_bounded
from foedus.aggregators.trimmed_mean import trimmed_mean

__all__ = [
    "Fixed",
    "Folding",
    "bulyan",
    "centered_clipping",
    "combine",
    "discounted",
    "each",
    "fixed",
    "geometric_median",
    "krum",
    "mean",
    "median",
    "multi_krum",
    "norm_bounded",
    "trimmed_mean",
]
