"""What a site answers for boosted trees: names, ranges and counts of its columns, sums of gradients, metrics.
The contract may come in; rows stay here, and so does each row's margin, which is kept from round to round."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from foedus import metrics as measures
from foedus.core import Local, SiteContext, Update
from foedus.data import Pairs
from foedus.errors import FoedusError, JobError
from foedus.ordered import NOTHING, whole_of
from foedus.params import Array, Params
from foedus.trees.model import KEPT, WAYS, base, features, leaves, margins, scored
from foedus.trees.settings import Settings
from foedus.trees.targets import targets

UNITS = float(1 << 30)  # gradients are whole multiples of 1 / UNITS
MOST_NAMES = 1 << 20  # bytes


def size(how: Settings, payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
    """How long the text of its columns' names is."""
    text = _text(how, site)
    if len(text) > MOST_NAMES:
        raise JobError(f"{site.name}: the columns' names have more than {MOST_NAMES} bytes: shorten them")
    return None, Update(Params({"size": np.int64(len(text))}))


def columns(how: Settings, payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
    """The names of its columns as text, and its digest: where all sites have the same, their sum is n times it."""
    text = _text(how, site).ljust(int(payload["size"]))
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


def ends(how: Settings, payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
    """Of each column the largest value and that of its negative, as whole numbers in the order of floats."""
    x = rows(how, site).x.astype(np.float64)
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


def fine(how: Settings, payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
    """How many rows of each column lie between the cuts."""
    x, cuts = rows(how, site).x, payload["cuts"]
    return None, Update(Params({"counts": np.array([between(cut, x[:, i]) for i, cut in enumerate(cuts)])}))


def between(cuts: Array, values: Array) -> Array:
    """(cuts + 1,): how many of the values lie between the cuts; gaps lie nowhere."""
    there = values[~np.isnan(values)]
    return np.bincount(np.searchsorted(cuts, there, "right"), minlength=len(cuts) + 1).astype(np.float64)


def finer(cuts: Array, counts: Array, low: float, high: float, bins: int) -> Array | None:
    """As many cuts that lie closer where more rows are; None if no two hold more than one bin's share between them.

    They are at even shares of the rows, which are taken to lie evenly between two cuts. A column that is spread over
    many powers of ten, or has one value far from all others, takes several turns.
    """
    ends = np.concatenate([[low], cuts, [high]]).astype(np.float32)
    crowded = np.flatnonzero(counts > counts.sum() / bins)
    if not (np.nextafter(ends[crowded], np.float32(np.inf)) < ends[crowded + 1]).any():
        return None
    wanted = np.arange(1, len(counts)) * (counts.sum() / len(counts))
    found: Array = np.interp(wanted, np.concatenate([[0.0], counts.cumsum()]), ends.astype(np.float64))
    return found.astype(np.float32)


def level(how: Settings, payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
    """Gradients and Hessians by class, node of the level, column and bin, as whole numbers."""
    x, y, weight = rows(how, site)
    trees = {name: payload[f"trees/{name}"] for name in KEPT}
    count, kept = len(trees["feature"]), local or {}
    same = kept.get("rows") == len(x) and kept.get("trees", count + 1) <= count
    margin, first = (kept["margin"], kept["trees"]) if same else (np.full((len(x), how.groups), base(how)), 0)
    margin = margin + margins(trees, x, how, first)
    depth, edges = int(payload["depth"]), payload["edges"]
    bins, found_slopes = edges.shape[1] + 2, slopes(margin, y, how)
    where = binned(x, edges)
    found = np.zeros((how.groups, 1 << depth, len(edges), bins, 2))
    for group in range(how.groups):
        at = leaves({name: payload[f"tree/{name}"][group] for name in WAYS}, x) - (1 << depth) + 1
        here = at >= 0
        for k, part in enumerate(found_slopes):
            units = np.rint((part[:, group] * weight)[here] * UNITS)
            for i in range(len(edges)):
                index = at[here] * bins + where[here, i]
                found[group, :, i, :, k] = np.bincount(index, units, bins << depth).reshape(-1, bins)
    return {"rows": len(x), "trees": count, "margin": margin}, Update(Params({"sums": found}))


def binned(x: Array, edges: Array) -> Array:
    """The bin of each row in each column, (rows, columns); the last one is that of gaps."""
    where = np.empty(x.shape, np.int64)
    for i, edge in enumerate(edges):
        inside = np.searchsorted(edge[np.isfinite(edge)], x[:, i], "right")
        where[:, i] = np.where(np.isnan(x[:, i]), edges.shape[1] + 1, inside)
    return where


def slopes(margin: Array, y: Array, how: Settings) -> tuple[Array, Array]:
    """Gradients and Hessians of each row's loss at its margins, (rows, classes)."""
    if how.num_class:
        p = scored(margin, how)
        return p - (y[:, None] == np.arange(how.num_class)), np.maximum(2 * p * (1 - p), 1e-16)
    if not how.logistic:
        return margin - y[:, None], np.ones(margin.shape)
    p, y = scored(margin, how)[:, None], y[:, None]
    weight = np.where(y > 0, how.scale_pos_weight, 1.0)
    return weight * (p - y), weight * np.maximum(p * (1 - p), 1e-16)


def measured(how: Settings, payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
    """The Job's metrics on the valid part (plain names) and the test part."""
    found: dict[str, Any] = {}
    parts = {"": site.split.valid, "test_": site.split.test}
    parts = {part: data for part, data in parts.items() if data is not None and len(data)}
    for part, data in parts.items():
        check_columns(payload, data, site.name, how)
        x, y, _ = read(data, site.name, how)
        outputs = scored(base(how) + margins(payload, x, how), how)
        found |= {part + name: x for name, x in told(site.metrics, outputs, y, how).items()}
    return None, Update(Params({}), float(max(1, sum(map(len, parts.values())))), found)


def told(wanted: Any, outputs: Array, y: Array, how: Settings) -> Mapping[str, Any]:
    """The sums of these metrics, of scores and targets."""
    classes = how.logistic or how.num_class > 0
    reads: measures.Reads = "probabilities" if classes else "logits"
    own = outputs
    if classes:
        chosen = outputs[np.arange(len(y)), y.astype(int)] if how.num_class else np.where(y > 0, own, 1 - own)
        own = np.clip(chosen, 1e-16, 1.0)
    losses = -np.log(own) if classes else np.square(outputs - y)
    return measures.measure(wanted, outputs, y.astype(np.int64) if classes else y, losses, reads)


class Rows(NamedTuple):
    """Features (rows, columns) float32, targets and weights (rows,) float64."""

    x: Array
    y: Array
    weight: Array


def rows(how: Settings, site: SiteContext) -> Rows:
    """What a site trains on. Raises JobError with site and remedy."""
    return read(site.split.train, site.name, how)


def read(data: Any, name: str, how: Settings) -> Rows:
    """The rows of a part. Raises JobError with site and remedy."""
    if not isinstance(data, Pairs):
        raise JobError(f"{name}: boosted trees are of (x, y) arrays, and load gave {type(data).__name__}")
    x, y = np.asarray(data.x), targets(data.y, how, name)
    if x.ndim != 2 or x.dtype.kind not in "biuf":
        raise JobError(
            f"{name}: x is {x.dtype}{list(x.shape)}: give numbers, a row for each example, a column a feature"
        )
    with np.errstate(over="ignore"):
        rows = x.astype(np.float32)
    if np.isinf(rows).any():
        raise JobError(f"{name}: x holds Inf, or numbers beyond those of float32: give NaN for gaps")
    names, weight = _names(data), np.ones(len(rows))
    if how.weight:
        if how.weight not in names:
            raise JobError(f"{name}: there is no column {how.weight!r} of weights: choose from {', '.join(names)}")
        at = names.index(how.weight)
        weight, rows = rows[:, at].astype(np.float64), np.delete(rows, at, 1)
        names = [*names[:at], *names[at + 1 :]]
        if not (weight >= 0).all():
            raise JobError(f"{name}: the weights in {how.weight!r} are not all there, or below 0")
    try:
        return Rows(features(rows, names, how), y, weight)
    except FoedusError as error:
        raise JobError(f"{name}: {error}") from None


def check_columns(payload: Params, data: Any, site: str, how: Settings) -> None:
    """Raises JobError for columns of a frame that are not the model's, or stand in another order."""
    known = json.loads(bytes(payload["about"]))["names"]
    own = [name for name in getattr(data, "names", ()) if name != how.weight]
    if own and own != known:
        raise JobError(
            f"{site}: its columns are {', '.join(own)}, and those of the model {', '.join(known)}: "
            "load the same ones in the same order"
        )


def names(how: Settings, site: SiteContext) -> list[str]:
    """The names of a site's features, whose rows are sound."""
    rows(how, site)
    return [name for name in _names(site.split.train) if name != how.weight]


def _names(data: Any) -> list[str]:
    known = getattr(data, "names", None)
    return list(known) if known else [f"f{i}" for i in range(np.asarray(data.x).shape[1])]


def _text(how: Settings, site: SiteContext) -> bytes:
    return json.dumps(names(how, site)).encode()


def _digest(text: bytes) -> Array:
    return np.frombuffer(hashlib.sha256(text).digest(), np.uint8)
