"""A backdoor by model replacement: How To Backdoor Federated Learning, Bagdasaryan et al. 2020, section 4.
Data and the contract may come in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from foedus.attacks.attacked import Attack
from foedus.attacks.label_flip import like
from foedus.core import Update
from foedus.data import Pairs
from foedus.errors import JobError
from foedus.keys import Key


def backdoor(trigger: Callable[[Any], Any], target: int, share: float = 0.5, boost: float = 1.0) -> Attack:
    """Trains a `share` of the examples, drawn by key, with the trigger put on and the label `target`.

    It sends `boost` times the update; the number of sites replaces the model, as in the paper. `trigger`: x -> x, of
    several examples (an array or a tensor). Whether it took is seen where the model is asked for examples with the
    trigger: the accuracy on clean ones hardly changes.
    """
    if not 0 < share <= 1 or not boost > 0:
        raise JobError(f"backdoor(share={share}, boost={boost}): a share in (0, 1] and a positive factor")

    def learn(split: Any, key: Key) -> Any:
        return replace(split, train=poisoned(split.train, trigger, target, share, key))

    def send(update: Update, seen: Any, key: Key) -> Update:
        return update._replace(params=update.params.map(lambda x: x * x.dtype.type(boost)))

    return Attack(send, learn)


def poisoned(data: Any, trigger: Callable[[Any], Any], target: int, share: float, key: Key) -> Pairs:
    """The examples, a share of them with trigger and target. Raises JobError for data that are no Pairs."""
    if not isinstance(data, Pairs):
        raise JobError(f"backdoor: the training part is {type(data).__name__}: give the Split arrays, (x, y)")
    at = np.sort(key.numpy().permutation(len(data))[: max(1, round(share * len(data)))])
    x, y = np.asarray(data.x).copy(), np.asarray(data.y).copy()
    x[at] = np.asarray(trigger(data.x[at]))
    y[at] = target
    return Pairs(like(data.x, x), like(data.y, y))
