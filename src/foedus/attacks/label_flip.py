"""Label flipping: Data Poisoning Attacks Against Federated Learning Systems, Tolpegin et al. 2020, section 3; all
labels at once as in Fang et al. 2020. Data and the contract may come in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from foedus.attacks.attacked import Attack
from foedus.data import Pairs
from foedus.errors import JobError
from foedus.keys import Key


def label_flip(labels: int | Mapping[int, int]) -> Attack:
    """Trains on other labels: `{7: 1}` says which become which; a number of classes turns y into classes - 1 - y."""
    known = {y: labels - 1 - y for y in range(labels)} if isinstance(labels, int) else dict(labels)
    if not any(old != new for old, new in known.items()):
        raise JobError(f"label_flip({labels!r}): it changes no label: give {{7: 1}}, or the number of classes")

    def learn(split: Any, key: Key) -> Any:
        return replace(split, train=changed(split.train, lambda x, y: (x, flipped(y, known))))

    return Attack(learn=learn)


def flipped(y: Any, known: Mapping[int, int]) -> Any:
    """The labels (an array or a tensor, or one of them) with the known ones changed."""
    found = np.asarray(y).copy()
    for old, new in known.items():
        found[np.asarray(y) == old] = new
    return like(y, found)


def like(model: Any, x: Any) -> Any:
    """The array `x` as what `model` is: a tensor, an array, a number."""
    if hasattr(model, "new_tensor"):
        return model.new_tensor(x)
    return x if np.ndim(model) else x[()]


def changed(data: Any, change: Callable[[Any, Any], tuple[Any, Any]]) -> Any:
    """The examples after `change(x, y)`, which is given all at once where the data are Pairs, else one by one."""
    return Pairs(*change(data.x, data.y)) if isinstance(data, Pairs) else Changed(data, change)


class Changed:
    """A dataset whose examples are changed when they are read."""

    def __init__(self, data: Any, change: Callable[[Any, Any], tuple[Any, Any]]) -> None:
        self.data, self.change = data, change

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.change(*self.data[index])
