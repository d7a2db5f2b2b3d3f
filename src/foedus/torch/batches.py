"""Batches of a site's examples as tensors: (x, y) pairs in one gather, datasets one example after another.
Only torch, numpy and the data room may come in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from foedus.data import Pairs
from foedus.errors import JobError
from foedus.params import Array
from foedus.torch.arrays import BFLOAT16, OURS, as_array, torch_dtype

GATHERED = 1 << 23  # bytes gathered at once
MEASURED = 1024  # examples measured at once, at most
MEASURED_BYTES = 1 << 24  # or this many bytes


class Batch(NamedTuple):
    """Inputs (a tensor, or several in a tuple or mapping), targets, and how many examples they are."""

    x: Any
    y: Any
    n: int


class Feed(NamedTuple):
    """Where batches go: floats become the model's dtype, whole targets int64, all on the device."""

    device: torch.device
    dtype: torch.dtype
    collate: Callable[[list[Any]], Any] | None = None

    def batches(self, data: Any, rows: Array, size: int) -> Iterator[Batch]:
        """The examples `rows` of `data`, `size` at a time; what is left at the end is a smaller batch."""
        if not isinstance(data, Pairs):
            for part in _cut(rows, size):
                yield self.batch(self._collated([data[int(i)] for i in part]), len(part))
            return
        for part in _cut(rows, size * max(1, GATHERED // (size * _row_bytes(data)))):
            x, y = self.input(_gathered(data.x, part)), self.target(_gathered(data.y, part))
            for at in range(0, len(part), size):
                yield Batch(x[at : at + size], y[at : at + size], min(size, len(part) - at))

    def batch(self, pair: Any, n: int) -> Batch:
        """(inputs…, target) as a Batch."""
        if not isinstance(pair, (tuple, list)) or len(pair) < 2:
            raise JobError(f"an example is {type(pair).__name__}: a dataset gives (input, target); see collate=…")
        *inputs, target = pair
        x = inputs[0] if len(inputs) == 1 else tuple(inputs)
        return Batch(each(x, self.input), each(target, self.target), n)

    def _collated(self, examples: list[Any]) -> Any:
        return (self.collate or default_collate)(examples)

    def input(self, x: Any) -> Tensor:
        made = tensor(x)
        return made.to(self.device, self.dtype if made.is_floating_point() else made.dtype)

    def target(self, y: Any) -> Tensor:
        made = tensor(y)
        whole = torch.bool if made.dtype == torch.bool else torch.int64
        return made.to(self.device, self.dtype if made.is_floating_point() else whole)


def _gathered(x: Any, rows: Array) -> Tensor:
    """The rows of `x` in torch's own (aligned) memory."""
    if not isinstance(x, np.ndarray) or x.dtype not in OURS or x.dtype == BFLOAT16:
        return tensor(x[rows])
    made = torch.empty((len(rows), *x.shape[1:]), dtype=OURS[x.dtype])
    np.take(x, rows, 0, made.numpy(), "clip")
    return made


def tensor(x: Any) -> Tensor:
    """`x` as a tensor in torch's own (aligned) memory."""
    if isinstance(x, Tensor):
        return x
    x = np.asarray(x)
    made = torch.empty(x.shape, dtype=torch_dtype(x.dtype))
    as_array(made)[...] = x
    return made


def arguments(x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How a model is called with a batch's inputs: several are arguments, a mapping's are named arguments."""
    if isinstance(x, Tensor):
        return (x,), {}
    if isinstance(x, Mapping):
        return (), dict(x)
    return x if isinstance(x, tuple) else (x,), {}


def measured_at_once(data: Any) -> int:
    """How many examples of `data` are measured at once."""
    return max(1, min(MEASURED, MEASURED_BYTES // _row_bytes(data)))


def _row_bytes(data: Any) -> int:
    return max(1, (_bytes(data.x) + _bytes(data.y)) // len(data) if isinstance(data, Pairs) else _bytes(data[0]))


def _bytes(x: Any) -> int:
    if isinstance(x, Mapping):
        return sum(map(_bytes, x.values()))
    if isinstance(x, (tuple, list)):
        return sum(map(_bytes, x))
    return int(getattr(x, "nbytes", 8))


def each(x: Any, f: Callable[[Any], Tensor]) -> Any:
    """`f` of the tensors or arrays of a batch's inputs or targets, which may be in tuples and mappings."""
    if isinstance(x, (Tensor, np.ndarray)):
        return f(x)
    if isinstance(x, Mapping):
        return {name: each(part, f) for name, part in x.items()}
    if isinstance(x, (tuple, list)):
        return tuple(each(part, f) for part in x)
    return f(x)


def _cut(rows: Array, size: int) -> Iterator[Array]:
    return (rows[at : at + size] for at in range(0, len(rows), size))
