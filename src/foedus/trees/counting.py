"""What a site answers for boosted trees: names, ranges and counts of its columns, sums of gradients, metrics.
The contract may come in; rows stay here, and so does each row's margin, which is kept from round to round."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from foedus import metrics as measures
from foedus.core import Local, SiteContext, Update
from foedus.data import Pairs
from foedus.errors import JobError
from foedus.ordered import NOTHING, whole_of
from foedus.params import Array, Params
from foedus.trees.model import KEPT, base, leaves, margins, scored
from foedus.trees.settings import Settings

UNITS = float(1 << 30)  # gradients are whole multiples of 1 / UNITS
MOST_NAMES = 1 << 20  # bytes


def size(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
    """How long the text of its columns' names is."""
    text = _text(site)
    if len(text) > MOST_NAMES:
        raise JobError(f"{site.name}: the columns' names have more than {MOST_NAMES} bytes: shorten them")
    return None, Update(Params({"size": np.int64(len(text))}))


def columns(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
    """The names of its columns as text, and its digest: where all sites have the same, their sum is n times it."""
    text = _text(site).ljust(int(payload["size"]))
    given = {"names": np.frombuffer(text, np.uint8), "digest": _digest(text)}
    shown = {} if site.seal else given
    return None, Update(Params({name: x.astype(np.float64) for name, x in given.items()}), metrics=shown)


def named(sums: Mapping[str, Array], count: int, shown: Mapping[str, Any]) -> list[str]:
    """The names that all sites have, of the sums of their texts. Raises JobError where they differ."""
    read = {site: json.loads(bytes(np.asarray(told["names"], np.uint8))) for site, told in sorted(shown.items())}
    for site, theirs in read.items():
        first, names = next(iter(read.items()))
        if theirs != names:
            odd = next((f"{a!r} and {b!r}" for a, b in zip(names, theirs, strict=False) if a != b), "not as many")
            raise JobError(f"sites {first} and {site} have other columns: {odd}; load the same ones in the same order")
    text = np.clip(sums["names"] / count, 0, 255).astype(np.uint8).tobytes()
    if not np.array_equal(_digest(text) * float(count), sums["digest"]):
        raise JobError(
            "not all sites have the same columns, and under secagg nobody sees which: load the same ones in the same "
            "order, as a schema says them"
        )
    return list(json.loads(text))


def ends(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
    """Of each column the largest value and that of its negative, as whole numbers in the order of floats."""
    x = _rows(site)[0].astype(np.float64)
    found = {"low": np.full(x.shape[1], NOTHING), "high": np.full(x.shape[1], NOTHING)}
    for i in range(x.shape[1]):
        values = x[:, i][~np.isnan(x[:, i])]
        if len(values):
            found["low"][i], found["high"][i] = whole_of(-values).max(), whole_of(values).max()
    return None, Update(Params(found))


def fine_edges(low: Array, high: Array, count: int) -> Array:
    """(columns, count - 1) float32: even steps between the least and the largest value."""
    steps = np.arange(1, count) / count
    there = low <= high
    start, width = np.where(there, low, 0.0), np.where(there, high - low, 0.0)
    return (start[:, None] + width[:, None] * steps).astype(np.float32)


def fine(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
    """How many rows of each column lie between the cuts."""
    x, cuts = _rows(site)[0], payload["cuts"]
    counts = np.zeros((len(cuts), cuts.shape[1] + 1))
    for i, cut in enumerate(cuts):
        values = x[:, i][~np.isnan(x[:, i])]
        counts[i] = np.bincount(np.searchsorted(cut, values, "right"), minlength=len(cut) + 1)
    return None, Update(Params({"counts": counts}))


def level(how: Settings, payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
    """Gradients and Hessians by node of the level, column and bin, as whole numbers."""
    x, y = _rows(site)
    trees = {name: payload[f"trees/{name}"] for name in KEPT}
    count, kept = len(trees["feature"]), local or {}
    same = kept.get("rows") == len(x) and kept.get("trees", count + 1) <= count
    margin, first = (kept["margin"], kept["trees"]) if same else (np.full(len(x), base(how)), 0)
    margin = margin + margins(trees, x, first)
    tree = {name: payload[f"tree/{name}"] for name in ("feature", "threshold", "gaps_left")}
    at = leaves(tree["feature"], tree["threshold"], tree["gaps_left"], x)
    depth, edges = int(payload["depth"]), payload["edges"]
    begin, nodes, bins = (1 << depth) - 1, 1 << depth, edges.shape[1] + 2
    here = at >= begin
    found = np.zeros((nodes, len(edges), bins, 2))
    slopes = [np.rint(part[here] * UNITS) for part in _slopes(margin, y, how)]
    for i, edge in enumerate(edges):
        values = x[here, i]
        where = np.where(np.isnan(values), bins - 1, np.searchsorted(edge[np.isfinite(edge)], values, "right"))
        index = (at[here] - begin) * bins + where
        for k, part in enumerate(slopes):
            found[:, i, :, k] = np.bincount(index, part, nodes * bins).reshape(nodes, bins)
    return {"rows": len(x), "trees": count, "margin": margin}, Update(Params({"sums": found}))


def _slopes(margin: Array, y: Array, how: Settings) -> tuple[Array, Array]:
    """Gradients and Hessians of each row's loss at its margin."""
    if not how.logistic:
        return margin - y, np.ones(len(y))
    p = scored(margin, how)
    weight = np.where(y > 0, how.scale_pos_weight, 1.0)
    return weight * (p - y), weight * np.maximum(p * (1 - p), 1e-16)


def measured(how: Settings, payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
    """The Job's metrics on the valid part (plain names) and the test part."""
    found: dict[str, Any] = {}
    parts = {"": site.split.valid, "test_": site.split.test}
    parts = {part: data for part, data in parts.items() if data is not None and len(data)}
    for part, data in parts.items():
        x, y = _of(data, site.name, how)
        outputs = scored(base(how) + margins(payload, x), how)
        reads: measures.Reads = "probabilities" if how.logistic else "logits"
        own = np.clip(np.where(y > 0, outputs, 1 - outputs), 1e-16, 1.0) if how.logistic else outputs
        losses = -np.log(own) if how.logistic else np.square(outputs - y)
        sums = measures.measure(site.metrics, outputs, y.astype(np.int64) if how.logistic else y, losses, reads)
        found |= {part + name: x for name, x in sums.items()}
    return None, Update(Params({}), float(max(1, sum(map(len, parts.values())))), found)


def _rows(site: SiteContext) -> tuple[Array, Array]:
    return _of(site.split.train, site.name, None)


def _of(data: Any, name: str, how: Settings | None) -> tuple[Array, Array]:
    """(float32 rows, float64 targets). Raises JobError with site and remedy."""
    if not isinstance(data, Pairs):
        raise JobError(f"{name}: boosted trees are of (x, y) arrays, and load gave {type(data).__name__}")
    x, y = np.asarray(data.x), np.asarray(data.y, np.float64)
    if x.ndim != 2 or x.dtype.kind not in "biuf" or y.shape != (len(x),):
        raise JobError(f"{name}: x is {x.dtype}{list(x.shape)}, y {list(y.shape)}: give numbers, a row an example")
    rows = x.astype(np.float32)
    if np.isinf(rows).any() or not np.isfinite(y).all():
        raise JobError(f"{name}: x holds Inf, or y NaN or Inf: give NaN for gaps of x, and a target to each row")
    return rows, y


def _text(site: SiteContext) -> bytes:
    x = _rows(site)[0]
    known = getattr(site.split.train, "names", None)
    return json.dumps(list(known) if known else [f"f{i}" for i in range(x.shape[1])]).encode()


def _digest(text: bytes) -> Array:
    return np.frombuffer(hashlib.sha256(text).digest(), np.uint8)
