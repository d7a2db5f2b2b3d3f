"""Sites as they are in a data frame: by a column, by stretches of time.
Data frames (pandas) come in, told apart by what they can do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from foedus.data import Sites, check_columns
from foedus.errors import FoedusError
from foedus.params import Array
from foedus.partition.dividing import labelled, made, named


def by_column(
    frame: Any,
    column: str,
    label: str,
    *,
    time: str | None = None,
    valid: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
) -> Sites:
    """A site for each value of `column` (a hospital, a state), named by it; the other columns but `label` are features.

    With `time`, a column that can be sorted and is no feature, each site trains on its oldest rows and is tested on its
    newest. Features are numbers, (rows, columns) of float64. Other arguments and errors as for `iid`.
    """
    away = [column, label, *([] if time is None else [time])]
    _check(frame, away)
    data, classes = labelled(frame.drop(columns=away), frame[label].to_numpy())
    values = np.array([str(value) for value in frame[column]])
    held = {str(name): np.flatnonzero(values == name) for name in np.unique(values)}
    return made(data, held, classes, valid, test, seed, None if time is None else _ages(frame[time]))


def by_time(
    frame: Any,
    time: str,
    label: str,
    *,
    sites: int | Sequence[str],
    valid: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
) -> Sites:
    """Sites that each hold a stretch of `time`, the oldest first, of equal size (to one row): data that drifts.

    `time` is a column that can be sorted, and no feature. Each site is divided as in `iid`, whose other arguments and
    errors these are.
    """
    _check(frame, [time, label])
    data, classes = labelled(frame.drop(columns=[time, label]), frame[label].to_numpy())
    names = named(sites, len(data))
    held = dict(zip(names, np.array_split(_ages(frame[time]), len(names)), strict=True))
    return made(data, held, classes, valid, test, seed)


def _check(frame: Any, columns: Sequence[str]) -> None:
    check_columns(frame, *columns)
    for name in sorted(set(columns)):
        gaps = int(frame[name].isna().sum())
        if gaps:
            raise FoedusError(
                f"column {name!r} has {gaps} gaps: drop these rows first, frame.dropna(subset=[{name!r}])"
            )


def _ages(times: Any) -> Array:
    """The rows from the oldest to the newest; those of one time stay in their order."""
    try:
        return np.asarray(np.argsort(times.to_numpy(), kind="stable"))
    except TypeError as error:
        raise FoedusError(f"column {times.name!r} cannot be sorted ({error}): turn it into dates or numbers") from error
