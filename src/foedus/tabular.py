"""A site's examples as a table of numbers, checked so that an error says column, rows and remedy.
Only data and errors may come in; `foedus.sklearn` and `foedus.lightgbm` build on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from foedus.data import Pairs
from foedus.errors import JobError
from foedus.params import Array

LEAST = float(np.finfo(np.float64).eps)  # a probability, where its logarithm is taken


class Table(NamedTuple):
    """What a learner expects: the columns' names, what y is, all classes, and whether x may have gaps (NaN)."""

    names: tuple[str, ...]
    target: Literal["class", "number", "none"]
    classes: Array | None = None
    gaps: bool = False


def read(table: Table, data: Any) -> tuple[Array, Array]:
    """(rows x features in float64, targets: numbers of classes, or float64; zeros where there are none)."""
    x, y = _columns(data, table.target != "none")
    if x.ndim != 2 or x.dtype.kind not in "biuf":
        raise JobError(f"x is {x.dtype}{list(x.shape)}: give numbers, a row for each example and a column a feature")
    if x.shape[1] != len(table.names):
        raise JobError(
            f"x has {x.shape[1]} columns, the learner features={len(table.names)}: "
            "load the same columns in the same order at every site"
        )
    x = np.ascontiguousarray(x, np.float64)
    _check_finite(table, x)
    return x, _classes(table, y) if table.target == "class" else _numbers(y) if table.target == "number" else y


def _columns(data: Any, targets: bool) -> tuple[Array, Array]:
    if isinstance(data, Pairs):
        return np.asarray(data.x), np.asarray(data.y)
    found = [data[i] for i in range(len(data))]
    if all(isinstance(row, tuple) and len(row) == 2 for row in found):
        return np.stack([np.asarray(x) for x, _ in found]), np.asarray([y for _, y in found])
    if targets:
        raise JobError(f"an example is {type(found[0]).__name__}: a dataset gives (x, y), as fd.Split(train=(x, y))")
    return np.stack([np.asarray(row) for row in found]), np.zeros(len(found))


def _check_finite(table: Table, x: Array) -> None:
    bad = np.isinf(x) if table.gaps else ~np.isfinite(x)
    if bad.any():
        column = int(bad.any(axis=0).argmax())
        rows = int(bad[:, column].sum())
        remedy = "replace them" if table.gaps else "fill them in or drop these rows, the same way at every site"
        what = "Inf" if table.gaps else "NaN or Inf"
        raise JobError(f"column {table.names[column]!r} holds {what} in {rows} of {len(x)} rows: {remedy}")


def _flat(y: Array) -> Array:
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if y.ndim != 1:
        raise JobError(f"y has shape {y.shape}: give one target for each example")
    return y


def _numbers(y: Array) -> Array:
    y = _flat(y)
    if y.dtype.kind not in "biuf" or not np.isfinite(y).all():
        raise JobError("y holds something other than finite numbers: drop these rows, or give a classifier classes=[…]")
    return y.astype(np.float64)


def _classes(table: Table, y: Array) -> Array:
    y, classes = _flat(y), table.classes
    assert classes is not None
    alike = (y.dtype.kind in "US") == (classes.dtype.kind in "US")
    places = np.minimum(np.searchsorted(classes, y), len(classes) - 1) if alike else np.zeros(len(y), np.int64)
    wrong = classes[places] != y if alike else np.ones(len(y), bool)
    if wrong.any():
        odd, known = y[np.asarray(wrong)][0], classes.tolist()
        raise JobError(
            f"y holds {odd.item()!r} in {int(np.sum(y == odd))} of {len(y)} rows, which is none of classes={known}: "
            "add it to the learner's classes=…, or code the labels as the other sites do"
        )
    return np.asarray(places, np.int64)


def names_of(learner: str, features: int | Sequence[str]) -> tuple[str, ...]:
    """The columns' names, numbers where only their count is given. Raises JobError."""
    if isinstance(features, int) and not isinstance(features, bool) and features > 0:
        return tuple(map(str, range(features)))
    if isinstance(features, (list, tuple)) and features and all(isinstance(name, str) for name in features):
        return tuple(features)
    raise JobError(f"{learner}(features={features!r}): give a count of at least 1, or the columns' names")


def stated(features: int | Sequence[str]) -> tuple[str, ...]:
    """The columns' names where they were given: a site's frame is put in their order before the learner sees it."""
    return () if isinstance(features, int) else tuple(features)


def classes_of(learner: str, classes: Sequence[Any] | None) -> Array:
    """The classes in order. Raises JobError for fewer than two."""
    known = np.asarray([] if classes is None else classes)
    if known.ndim != 1 or len(np.unique(known)) < 2 or known.dtype.kind not in "biufSU":
        raise JobError(f"{learner} needs classes=[…], at least two: all labels any site has, for one may lack some")
    return np.unique(known)


def surprise(shares: Array, y: Array) -> Array:
    """The logarithmic loss of each row, from probabilities (rows x classes)."""
    return np.asarray(-np.log(np.maximum(shares[np.arange(len(y)), y], LEAST)))
