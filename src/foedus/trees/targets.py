"""The targets of a site's rows, checked against what the objective takes, before anything is computed of them.
Arrays and settings come in; messages say what kind of values there are, and none of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from foedus.errors import JobError
from foedus.params import Array
from foedus.trees.settings import Settings

KINDS = {"U": "text", "S": "text", "T": "text", "O": "Python objects", "M": "dates", "m": "spans of time",
         "c": "complex numbers", "V": "records"}  # fmt: skip
ALIKE = "in load, the same way at every site"


def targets(y: Any, how: Settings, site: str) -> Array:
    """(rows,) float64: classes 0, 1, …, or numbers. Raises JobError with the site and the remedy."""
    y, classes = np.asarray(y), how.logistic or how.num_class > 0
    wanted = f"the classes 0 to {(how.num_class or 2) - 1} of {how.objective}"
    if y.ndim != 1:
        raise JobError(f"{site}: y has the shape {list(y.shape)}: give one target for each row, as y[:, 0]")
    if y.dtype.kind not in "biuf":
        remedy = f"number them as {wanted}, {ALIKE}, as y = (y == 'ill').astype(int)" if classes else "give numbers"
        raise JobError(f"{site}: y holds {KINDS.get(y.dtype.kind, y.dtype)}: {remedy}")
    found: Array = y.astype(np.float64)
    if (bad := ~np.isfinite(found)).any():
        raise JobError(f"{site}: y holds NaN or Inf in {_of(bad)}: leave rows without a target out")
    for what, odd in _odd(found, (how.num_class or 2) - 1) if classes else ():
        if odd.any():
            raise JobError(f"{site}: y holds more than {wanted}: {what} in {_of(odd)}; number them so {ALIKE}")
    return found


def _odd(y: Array, most: int) -> list[tuple[str, Array]]:
    """What targets are that are no classes from 0 to `most`, and which rows have them."""
    return [("fractions", y != np.floor(y)), ("numbers below 0", y < 0), (f"numbers above {most}", y > most)]


def _of(rows: Array) -> str:
    return f"{int(rows.sum())} of {len(rows)} rows"
