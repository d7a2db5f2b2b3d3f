"""Updates in files become a Total in a file, chunk by chunk, so that memory does not grow with the model.
Aggregators and the saved form come in; the bits are those of `folding`."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from foedus import frames, metrics
from foedus.aggregators.exact import BLOCK
from foedus.aggregators.folding import UNIT, bound, opened
from foedus.aggregators.gathering import gathered, shares
from foedus.core import Gather, Metrics, Origin, Outcome, Sum, Update
from foedus.files import fsync_dir, sync_ahead, write_atomic
from foedus.params import Array, Params, Spec, kind, places, wide

CHUNK = 2 * BLOCK  # numbers: sums that stay in the cache are faster than few calls

Counted = tuple[Origin, float, Params]


def fold_files(
    aggregator: Any,
    spec: Spec,
    counted: Sequence[Counted],
    asked: int,
    outcomes: Sequence[Outcome],
    path: Path,
    told: Sequence[Metrics] | None = None,
) -> None:
    """Writes the Total of the counted updates to `path`, durable: {params, weight, count, metrics, outcomes, apart}.

    `told`: their metrics; by default those of the outcomes, where no site counts twice.
    """
    aggregator = bound(aggregator, asked)
    if aggregator.opened is not None:
        spec = aggregator.opened.spec
        counted = [(o, w, opened(aggregator, Update(p, w), o.site).params) for o, w, p in counted]
    weights = [aggregator.weigh(Update(p, w), o) if isinstance(aggregator, Sum) else w for o, w, p in counted]
    weight = Fraction(sum(int(math.ldexp(w, UNIT)) for w in weights), 1 << UNIT)
    sums = metrics.pooled([o.metrics for o in outcomes if o.status == "counted"] if told is None else told)
    if isinstance(aggregator, Gather):
        counted = sorted(counted, key=lambda one: one[0])
    tree = {"weight": str(weight), "count": len(counted), "metrics": sums, "outcomes": [list(o) for o in outcomes]}
    if not counted or (isinstance(aggregator, Gather) and aggregator.apart):
        apart = {origin.site: params for origin, _, params in counted}
        write_atomic(path, frames.pack({**tree, "params": Params({}), "apart": apart}))
        return
    if isinstance(aggregator, Gather):
        weights = list(shares(aggregator, spec, [w for _, w, _ in counted], [p.flats for _, _, p in counted]))
    temporary = path.with_suffix(".part")
    with temporary.open("w+b", buffering=0) as file:
        starts = frames.blank(file.fileno(), tuple(wide(leaf) for leaf in spec), "params", tree)
        for chunk in chunks(spec):
            rows = [params.flats[chunk.group][chunk.begin : chunk.end] for _, _, params in counted]
            part = _combined(aggregator, chunk.group, rows, counted, weights, weight)
            _write(file.fileno(), part, starts[chunk.into] + chunk.place * part.itemsize)
        os.fsync(file.fileno())
    temporary.replace(path)
    fsync_dir(path.parent)


class Chunk(NamedTuple):
    """Numbers `begin` to `end` of a group of the updates, which the Total has from `place` on in its group `into`."""

    group: str
    begin: int
    end: int
    into: str
    place: int


def chunks(spec: Spec) -> Iterator[Chunk]:
    """All numbers of an update in pieces of at most CHUNK: half-precision groups widen, and may then be others."""
    whole: dict[tuple[str, str], list[Chunk]] = {}
    for (_, group, begin, end), (_, into, place, _) in zip(
        places(spec), places(tuple(wide(leaf) for leaf in spec)), strict=True
    ):
        found = whole.setdefault((group, into), [])
        if found and found[-1].end == begin and found[-1].place - found[-1].begin == place - begin:
            found[-1] = found[-1]._replace(end=end)
        else:
            found.append(Chunk(group, begin, end, into, place))
    for c in (c for found in whole.values() for c in found):
        for at in range(0, c.end - c.begin, CHUNK):
            yield c._replace(begin=c.begin + at, end=min(c.end, c.begin + at + CHUNK), place=c.place + at)


def _write(fd: int, part: Array, at: int) -> None:
    view = np.ascontiguousarray(part).view(np.uint8).data
    while view:
        wrote = os.pwrite(fd, view, at)
        sync_ahead(fd, at, at + wrote)
        view, at = view[wrote:], at + wrote


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
        return gathered(aggregator, group, [origin for origin, _, _ in counted], weights, rows)
    acc = None
    for row, w in zip(rows, weights, strict=True):
        acc = aggregator.fold(acc, {group: row}, w)
    found: Mapping[str, Array] = aggregator.finish(acc, weight)
    return found[group]
