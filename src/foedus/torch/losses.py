"""A loss for training is one number a batch; for measuring it is one number an example. Here one becomes the other.
Only torch may come in."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foedus.errors import JobError, Refused
from foedus.keys import Key
from foedus.params import Array

Loss = Callable[[Any, Any], Tensor]


def checked(loss: Any) -> Loss:
    """The loss itself. Raises JobError for a class in its place."""
    if isinstance(loss, type) or not callable(loss):
        remedy = f"write {loss.__name__}()" if isinstance(loss, type) else "give a function of (outputs, targets)"
        raise JobError(f"loss={loss!r} is no loss: {remedy}")
    return loss  # type: ignore[no-any-return]


def per_example(loss: Loss) -> Loss:
    """(outputs, targets) -> (n,) losses: those of `reduction="none"`, averaged over all but the first axis.

    A loss that knows no `reduction` gives its mean over the batch to every example.
    """
    each = unreduced(loss) or loss

    def losses(outputs: Any, targets: Any) -> Tensor:
        found, n = each(outputs, targets), len(targets)
        return _averaged(found) if found.ndim and len(found) == n else found.mean().expand(n)

    return losses


def natural(outputs: Any, targets: Any) -> Tensor:
    """(n,) losses where none was given, of logits: cross-entropy of classes, squared error of floats.

    Raises JobError for shapes that do not fit.
    """
    try:
        return _averaged(_natural(outputs, targets))
    except (RuntimeError, ValueError, IndexError) as error:
        shapes = f"outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)}"
        raise JobError(f"there is no natural loss of {shapes}: give TorchLearner a loss=…") from error


def totals(losses: Sequence[float], counts: Sequence[int], key: Key) -> Array:
    """[sum, count, sum of squares] of batches' mean losses, by examples. Raises Refused where one is no number."""
    for i, x in enumerate(losses):
        if not math.isfinite(x):
            site = str(key.names[3]) if len(key.names) > 3 else "here"
            why = f"the loss of step {i + 1} of {len(losses)} is {x:g}"
            raise Refused(site, "training", why, "lower the learning rate, clip gradients, or look for NaN in the data")
    return weighed(np.array([losses]).T, np.array([counts]).T)[:, 0]


def weighed(losses: Array, counts: Array) -> Array:
    """(3, sites) of sum, count, sum of squares: `losses` and `counts` are (steps, sites), nothing where a site is done.

    Added step by step, so that a site has the same bits beside any others.
    """
    parts = np.stack([losses * counts, counts, losses * losses * counts])
    return np.add.accumulate(parts, 1)[:, -1]


def _natural(outputs: Tensor, targets: Tensor) -> Tensor:
    if targets.is_floating_point():
        return F.mse_loss(outputs.reshape(targets.shape), targets, reduction="none")
    if outputs.ndim == 1 or outputs.shape[1] == 1:
        truth = targets.to(outputs.dtype)
        return F.binary_cross_entropy_with_logits(outputs.reshape(truth.shape), truth, reduction="none")
    return F.cross_entropy(outputs, targets, reduction="none")


def _averaged(found: Tensor) -> Tensor:
    """One number an example, in float64."""
    return found.cpu().double().reshape(len(found), -1).mean(1)


def one_by_one(loss: Loss) -> Loss:
    """(outputs, targets) -> one loss an example, or more: with `reduction="none"`, or mapped over the examples."""
    return unreduced(loss) or torch.func.vmap(lambda output, target: loss(output[None], target[None]))


def unreduced(loss: Loss) -> Loss | None:
    """The loss with `reduction="none"`, None where it does not know that."""
    if isinstance(loss, nn.Module) and hasattr(loss, "reduction"):
        each = copy.copy(loss)
        vars(each)["reduction"] = "none"
        return each
    try:
        known = inspect.signature(loss).parameters
    except (TypeError, ValueError):
        return None
    if "reduction" not in known:
        return None
    return lambda outputs, targets: loss(outputs, targets, reduction="none")  # type: ignore[call-arg]


def leaves_out(loss: Loss) -> bool:
    """Whether it is one of torch's that take no mean over targets of `ignore_index`, -100 where nothing is said."""
    whole = loss.func if isinstance(loss, partial) else loss
    return whole in (F.cross_entropy, F.nll_loss) or isinstance(whole, (nn.CrossEntropyLoss, nn.NLLLoss))
