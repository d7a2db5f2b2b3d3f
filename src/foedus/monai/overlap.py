"""Dice and Hausdorff distances of cases, class by class, as sums that add up over sites.
monai's measures come in; a class that a case does not have counts apart."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance
from monai.networks.utils import one_hot

from foedus.metrics import Metric
from foedus.params import Array


def dice(classes: int) -> Metric:
    """The mean over foreground classes of the mean Dice of cases; a class that is neither there nor found is left out.

    The sums are [[sum, cases] of each class but 0].
    """
    return Metric("dice_mean", partial(dice_sums, classes), _mean, "max", shapes=[(classes - 1, 2)])


def hausdorff(classes: int, percentile: float = 95) -> Metric:
    """The mean over foreground classes of the mean Hausdorff distance of cases, in mm where a MonaiLearner measures it.

    The sums are [[sum, cases, cases in which only one of label and prediction has the class] of each class but 0]:
    where one is empty there is no distance.
    """
    sums = partial(hausdorff_sums, classes, percentile)
    return Metric(f"hausdorff{percentile:g}", sums, _mean, "min", shapes=[(classes - 1, 3)])


def dice_sums(classes: int, outputs: Any, targets: Any) -> Array:
    predicted, true = masks(classes, outputs, targets)
    found = compute_dice(predicted, true, include_background=False, ignore_empty=False).numpy()
    there = (predicted[:, 1:].flatten(2).any(2) | true[:, 1:].flatten(2).any(2)).numpy()
    return np.stack([np.where(there, found, 0).sum(0), there.sum(0)], 1).astype(np.float64)


def hausdorff_sums(
    classes: int, percentile: float, outputs: Any, targets: Any, spacing: Sequence[float] | None = None
) -> Array:
    predicted, true = masks(classes, outputs, targets)
    one, other = (x[:, 1:].flatten(2).any(2).numpy() for x in (predicted, true))
    both, sums = one & other, np.zeros((classes - 1, 3))
    for case, c in zip(*np.nonzero(both), strict=True):
        sums[c, 0] += _distance(predicted[case, c + 1], true[case, c + 1], percentile, spacing)
    sums[:, 1], sums[:, 2] = both.sum(0), (one ^ other).sum(0)
    return sums


def _distance(a: torch.Tensor, b: torch.Tensor, percentile: float, spacing: Sequence[float] | None) -> float:
    """Between the surfaces of two masks, neither of them empty."""
    spacing = None if spacing is None else [float(x) for x in spacing]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # monai's of its own functions
        found = compute_hausdorff_distance(a[None, None], b[None, None], True, percentile=percentile, spacing=spacing)
    return float(found)


def masks(classes: int, outputs: Any, targets: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Predicted and true classes, one-hot and boolean, of logits (n, classes, …) and labels (n, 1, …)."""
    predicted = torch.as_tensor(np.asarray(outputs)).argmax(1, keepdim=True)
    return tuple(one_hot(x, classes).bool() for x in (predicted, torch.as_tensor(np.asarray(targets))))


def _mean(sums: Array) -> float:
    there = sums[:, 1] > 0
    return float((sums[there, 0] / sums[there, 1]).mean()) if there.any() else float("nan")
