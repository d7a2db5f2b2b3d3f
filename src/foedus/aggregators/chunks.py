"""Updates in files become a Total in a file, chunk by chunk, so that memory does not grow with the model.
Aggregators and the saved form come in; the bits are those of `folding`."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from foedus import frames, metrics
from foedus.aggregators.exact import BLOCK
from foedus.aggregators.folding import UNIT, gathered
from foedus.core import Gather, Origin, Outcome, Sum, Update
from foedus.files import fsync_dir
from foedus.params import Array, Params, Spec, kind, wide

CHUNK = 16 * BLOCK

Counted = tuple[Origin, float, Params]


def fold_files(
    aggregator: Any, spec: Spec, counted: Sequence[Counted], asked: int, outcomes: Sequence[Outcome], path: Path
) -> None:
    """Writes the Total of the counted updates to `path`, durable: {params, weight, count, metrics, outcomes}."""
    if isinstance(aggregator, Sum) and aggregator.bind is not None:
        aggregator = aggregator.bind(asked)
    weights = [aggregator.weigh(Update(p, w), o) if isinstance(aggregator, Sum) else w for o, w, p in counted]
    weight = Fraction(sum(int(math.ldexp(w, UNIT)) for w in weights), 1 << UNIT)
    sums = metrics.pooled([o.metrics for o in outcomes if o.status == "counted"])
    tree = {"weight": str(weight), "count": len(counted), "metrics": sums, "outcomes": [list(o) for o in outcomes]}
    temporary = path.with_suffix(".part")
    with temporary.open("w+b") as file:
        params = frames.blank(file.fileno(), tuple(wide(leaf) for leaf in spec), "params", tree)
        _fill(params, aggregator, spec, counted, weights, weight)
        _flush(params)
        os.fsync(file.fileno())
    temporary.replace(path)
    fsync_dir(path.parent)


def _fill(
    out: Params, aggregator: Any, spec: Spec, counted: Sequence[Counted], weights: Sequence[float], weight: Fraction
) -> None:
    """Each group of the updates goes to its stretch of the Total's group; half-precision groups widen."""
    if out.spec != spec:
        _fill_widened(out, aggregator, spec, counted, weights, weight)
        return
    for group, into in out.flats.items():
        rows = [params.flats[group] for _, _, params in counted]
        for at in range(0, into.size, CHUNK):
            parts = [row[at : at + CHUNK] for row in rows]
            into[at : at + CHUNK] = _combined(aggregator, group, parts, counted, weights, weight)


def _fill_widened(
    out: Params, aggregator: Any, spec: Spec, counted: Sequence[Counted], weights: Sequence[float], weight: Fraction
) -> None:
    totals = {
        group: _combined(aggregator, group, [p.flats[group] for _, _, p in counted], counted, weights, weight)
        for group in dict.fromkeys(leaf.group for leaf in spec)
    }
    found = Params.of(spec, totals)
    for name, x in out.items():
        x[...] = found[name]


def _combined(
    aggregator: Any,
    group: str,
    rows: Sequence[Array],
    counted: Sequence[Counted],
    weights: Sequence[float],
    weight: Fraction,
) -> Array:
    if kind(group) == "integer":
        return np.asarray(np.maximum.reduce(list(rows)))
    if isinstance(aggregator, Gather):
        order = sorted(range(len(rows)), key=lambda i: counted[i][0])
        return gathered(
            aggregator, [counted[i][0] for i in order], [weights[i] for i in order], [rows[i] for i in order]
        )
    acc = None
    for row, w in zip(rows, weights, strict=True):
        acc = aggregator.fold(acc, {group: row}, w)
    found: Mapping[str, Array] = aggregator.finish(acc, weight)
    return found[group]


def _flush(params: Params) -> None:
    for flat in params.flats.values():
        base: Any = flat
        while base is not None and not isinstance(base, mmap.mmap):
            base = getattr(base, "base", None) if not isinstance(base, memoryview) else base.obj
        if isinstance(base, mmap.mmap):
            base.flush()
            return
