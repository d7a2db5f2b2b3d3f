"""Single columns of numbers at a site, each with its own gaps: what quantiles, histograms and correlations read.
What a site holds may come in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from foedus.analytics.analysis import Table
from foedus.analytics.held import Held, numbers
from foedus.errors import JobError
from foedus.params import Array


def chosen(columns: Any, least: int) -> tuple[str, ...]:
    """The names, checked. Raises JobError."""
    found = (columns,) if isinstance(columns, str) else tuple(columns)
    if not found or not all(isinstance(name, str) and name for name in found) or len(set(found)) < len(found):
        raise JobError(f"columns={columns!r}: give names of columns, each once")
    if not isinstance(least, int) or least < 1:
        raise JobError(f"least={least!r}: it is a whole number of values, at least 1")
    return found


def values(table: Held, name: str, least: int) -> Array:
    """The numbers that are there; none where they are fewer than `least`. Raises FoedusError for text."""
    x = numbers(table, name)
    x = x[~np.isnan(x)]
    return x if len(x) >= least else x[:0]


def hidden(counts: Any, least: int) -> Array:
    """Counts as float64, NaN where one is below `least` and not 0: it would tell of few people."""
    x = np.asarray(counts, np.float64)
    return np.where((x > 0) & (x < least), np.nan, x)


def per_site(shown: Mapping[str, Mapping[str, Array]], word: str, columns: Sequence[str]) -> Table:
    """What each site showed of each column, as `word`."""
    rows = [(site, name) for site in sorted(shown) for name in columns]
    found = [x for site in sorted(shown) for x in np.asarray(shown[site][word]).tolist()]
    return Table(rows, {word: np.array(found)}, ("site", "column"))
