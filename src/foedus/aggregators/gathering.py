"""How a Gather goes over updates: its passes over all columns, then what it makes of each chunk (sites x columns).
Arrays and the contract may come in; rows are in memory or in files, and memory stays flat.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from foedus.aggregators.median import median
from foedus.core import Gather, Origin, Pass, Slice
from foedus.errors import FoedusError
from foedus.params import Array, Spec, kind

COLUMNS = 1 << 16
MIDDLE = median()  # of buffers under any Gather: they say nothing of distances, and few lies move it little


def shares(aggregator: Gather, spec: Spec, weights: Sequence[float], parts: Sequence[Slice]) -> Sequence[float]:
    """What a Gather's `finish` is given, one number a site: the weights after its passes over all trainable columns.

    Chunks begin where they begin in every backend, so that sums over them have the same bits. A pass that changed
    nothing is not repeated. `parts`: for each site, group -> 1-D array. Raises FoedusError for too few of them.
    """
    if len(parts) < aggregator.least:
        raise FoedusError(too_few(aggregator.least, len(parts)))
    groups = [g for g in dict.fromkeys(leaf.group for leaf in spec) if kind(g) == "trainable" and parts[0][g].size]
    found, idle = weights, None
    for step in aggregator.passes if groups else ():
        if step is not idle:
            before, sums = found, _summed(step, found, [[part[g] for part in parts] for g in groups])
            found = step.close(weights, before, sums)
            idle = step if found is before else None
    return found


def too_few(least: int, here: int) -> str:
    return f"this aggregator needs {least} updates and has {here}: ask more sites, or let it tolerate fewer (a lower f)"


def _summed(step: Pass, found: Sequence[float], groups: Sequence[Sequence[Array]]) -> Array:
    sums: Any = 0.0
    for rows in groups:
        for a in range(0, rows[0].size, COLUMNS):
            sums = sums + step.sums(found, np.stack([row[a : a + COLUMNS] for row in rows]))
    return np.asarray(sums)


def gathered(
    aggregator: Gather, group: str, origins: Sequence[Origin], found: Sequence[float], rows: Sequence[Array]
) -> Array:
    """What a Gather makes of these rows (one a site, 1-D), in chunks of columns, so that memory stays flat."""
    size, dtype = rows[0].size, rows[0].dtype
    finish = MIDDLE.finish if kind(group) == "buffer" else aggregator.finish
    out = np.empty(size, np.float32 if dtype.itemsize == 2 else dtype)
    for a in range(0, size, COLUMNS):
        out[a : a + COLUMNS] = finish(origins, found, np.stack([row[a : a + COLUMNS] for row in rows]))
    return out
