"""What robust rules have in common: parts of distances over a chunk (sites x columns), and weighted sums of rows.
Only arrays and the contract may come in; float64 from differences, rows added one after another, so that a column's
bits do not depend on its chunk.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np

from foedus.core import Origin
from foedus.errors import JobError
from foedus.params import Array


def lengths(shares: Sequence[float], chunk: Array) -> Array:
    """The squared L2 norm of each row."""
    return _squares(chunk.astype(np.float64))


def between(shares: Sequence[float], chunk: Array) -> Array:
    """The squared distance of each row to each other one, (sites x sites)."""
    rows = chunk.astype(np.float64)
    found = np.zeros((len(rows), len(rows)))
    for i in range(len(rows) - 1):
        found[i, i + 1 :] = found[i + 1 :, i] = _squares(rows[i + 1 :] - rows[i])
    return found


def from_blend(shares: Sequence[float], chunk: Array) -> Array:
    """The squared distance of each row to their sum by `shares`."""
    return _squares(chunk.astype(np.float64) - blend((), shares, chunk))


def blend(origins: Sequence[Origin], shares: Sequence[float], chunk: Array) -> Array:
    """The sum of the rows by `shares`."""
    return added(share * row.astype(np.float64) for share, row in zip(shares, chunk, strict=True))


def picked(origins: Sequence[Origin], shares: Sequence[float], chunk: Array) -> Array:
    """The mean of the rows whose share is not 0."""
    rows = chunk[np.asarray(shares) != 0].astype(np.float64)
    return added(rows) / len(rows)


def picking(chosen: Collection[int], sites: int) -> list[float]:
    """Shares for `picked`."""
    return [float(i in chosen) for i in range(sites)]


def added(rows: Iterable[Array]) -> Array:
    """Their sum, row after row; numpy's own sum has an order that depends on how wide a chunk is."""
    first, *others = rows
    total = first.copy()
    for row in others:
        total += row
    return total


def tolerated(rule: str, f: int) -> int:
    """`f`, if it can be a number of liars. Raises JobError."""
    if isinstance(f, bool) or not isinstance(f, int) or f < 0:
        raise JobError(f"{rule}(f={f!r}): the number of lying sites is a whole number from 0 on")
    return f


def _squares(rows: Array) -> Array:
    found: Array = np.square(rows).sum(axis=1)
    return found
