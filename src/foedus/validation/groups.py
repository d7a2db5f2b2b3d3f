"""Subgroups of examples by a column of their inputs, the same at every site: sexes, ages, scanners.
Arrays come in; a group's examples are counted, never named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from foedus.errors import JobError
from foedus.params import Array

ALL = ("", "all")  # of a group: what it is by, and its name


class Cut(NamedTuple):
    """Groups of examples by where a column lies between cuts; see `cut`."""

    column: int | str
    cuts: tuple[float, ...]
    names: tuple[str, ...]

    def of(self, x: Any, names: Sequence[str] = ()) -> Array:
        """The number of each example's group; -1 where the column has a gap. `names`: of the columns, where known."""
        values, at = np.asarray(x), self.column
        if isinstance(at, str):
            if at not in names:
                there = f"the columns are {', '.join(names)}" if names else "the columns have no names here"
                raise JobError(
                    f"a subgroup is by column {at!r}, and {there}: load fd.Split.from_frame, or give a number"
                )
            at = list(names).index(at)
        if values.ndim != 2 or not 0 <= at < values.shape[1]:
            raise JobError(f"a subgroup is by column {at}, and the inputs are {list(values.shape)}: give a table")
        column = values[:, at].astype(np.float64)
        return np.where(np.isnan(column), -1, np.searchsorted(self.cuts, column, "right"))


def cut(column: int | str, cuts: Sequence[float], names: Sequence[str] = ()) -> Cut:
    """Subgroups by a column of the inputs, its number or its name: below the first cut, from it to the second, …

    `names`: one more than cuts; by default what they are. A column of 0 and 1 has the cut 0.5.

    >>> cut(0, [50, 65]).names
    ('below 50', '50 to 65', '65 and above')
    """
    made = tuple(map(float, cuts))
    if not made or list(made) != sorted(set(made)):
        raise JobError(f"cut(cuts={cuts!r}): give numbers in rising order, for example [50, 65]")
    named = tuple(names) or (
        f"below {made[0]:g}", *(f"{a:g} to {b:g}" for a, b in pairwise(made)), f"{made[-1]:g} and above"
    )  # fmt: skip
    if len(set(named)) != len(made) + 1:
        raise JobError(f"cut(names={names!r}): give {len(made) + 1} different names, one more than cuts")
    if isinstance(column, bool) or not isinstance(column, (int, str, np.integer)):
        raise JobError(f"cut({column!r}): give the column's number, or its name in the frames that sites load")
    return Cut(column if isinstance(column, str) else int(column), made, named)


def listed(by: Mapping[str, Cut]) -> list[tuple[str, str]]:
    """All groups in order: everybody, then those of each cut."""
    return [ALL, *((name, group) for name, how in by.items() for group in how.names)]
