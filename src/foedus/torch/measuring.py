"""Many sites measured in one pass: those with the same model give their examples to one batch, in one row each.
A TorchLearner and the calls of its `evaluate` come in; each site's sums are of its own rows of what the model returns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from foedus import metrics as measures
from foedus.data import Pairs
from foedus.errors import Alone
from foedus.params import Array, Params
from foedus.torch.arrays import joined
from foedus.torch.batches import Batch, measured_at_once
from foedus.torch.losses import unreduced

Call = tuple[Params, Any, Sequence[Any]]  # the arguments of `evaluate`
Read = tuple[Array, Array, Array | None]  # outputs, targets and losses, one an example


class Measuring:
    """A learner's `evaluate` for many sites. Raises Alone with the reason where these are measured one by one."""

    def __init__(self, learner: Any) -> None:
        self.learner, self.proved = learner, False
        if learner.loss is not None and unreduced(learner.loss) is None:
            raise Alone("its loss knows no reduction='none', so it is one number a batch")

    def measure(self, calls: Sequence[Call]) -> list[dict[str, Array]]:
        """What `learner.evaluate` gives for each of the calls."""
        return [sums for group in _groups(calls) for sums in self._group(group)]

    def _group(self, calls: Sequence[Call]) -> list[dict[str, Array]]:
        if len(calls) == 1:
            return [self.learner.evaluate(*calls[0])]
        if not self.proved:
            self._prove(calls[:2])
        wanted, (outputs, targets, losses) = self.learner.wanted(calls[0][2])[0], self._read(calls)
        ends = np.cumsum([len(data) for _, data, _ in calls]).tolist()
        found = []
        for a, b in zip([0, *ends], ends, strict=False):
            each = None if losses is None else losses[a:b]
            found.append(measures.measure(wanted, outputs[a:b], targets[a:b], each, self.learner.reads))
        return [measures.add([sums]) for sums in found]

    def _read(self, calls: Sequence[Call]) -> Read:
        (params, _, metrics), parts, feed = calls[0], [data for _, data, _ in calls], self.learner.feed
        x, y = feed.input(joined([part.x for part in parts])), feed.target(joined([part.y for part in parts]))
        with self.learner.measuring(params):
            found: Read = self.learner.read(Batch(x, y, len(x)), self.learner.wanted(metrics)[1])
        if any(len(part) != len(x) for part in found if part is not None):
            raise Alone("its outputs are not one an example")
        return found

    def _prove(self, calls: Sequence[Call]) -> None:
        """Reads two sites in one batch and each by itself. Raises Alone where that differs."""
        together, alone = self._read(calls), zip(*(self._read([call]) for call in calls), strict=True)
        for found, parts in zip(together, alone, strict=True):
            if found is not None and not np.allclose(found, np.concatenate(parts), 1e-4, 1e-5, equal_nan=True):
                raise Alone("what its model returns for an example depends on the others of its batch")
        self.proved = True


def _groups(calls: Sequence[Call]) -> Iterator[list[Call]]:
    """Calls that follow one another with the same model, and fit into what is measured at once."""
    group, held = list[Call](), 0
    for call in calls:
        n = len(call[1])
        if group and not (_alike(group[0], call) and held + n <= measured_at_once(call[1])):
            yield group
            group, held = [], 0
        group.append(call)
        held += n
    if group:
        yield group


def _alike(one: Call, other: Call) -> bool:
    return one[0] is other[0] and one[2] is other[2] and None is not _form(one[1]) == _form(other[1])


def _form(data: Any) -> Any:
    """The type, and what an example's shape and dtype are; None for what is not two arrays."""
    parts = (data.x, data.y) if isinstance(data, Pairs) else ()
    if not parts or not all(isinstance(x, (np.ndarray, torch.Tensor)) for x in parts):
        return None
    return [(type(x), x.dtype, x.shape[1:]) for x in parts]
