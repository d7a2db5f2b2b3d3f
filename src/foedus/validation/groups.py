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

    def of(self, data: Any) -> Array:
        """The number of each example's group; -1 where the column has a gap. Raises JobError."""
        values = column_of(data, self.column)
        try:
            column = values.astype(np.float64)
        except ValueError as error:
            raise JobError(f"{self.column!r} holds text ({error}): name its levels, see validation.levels") from None
        return np.where(np.isnan(column), -1, np.searchsorted(self.cuts, column, "right"))


def cut(column: int | str, cuts: Sequence[float], names: Sequence[str] = ()) -> Cut:
    """Subgroups by a column of the inputs (its number or name) or by what is `about` examples: below the first cut, …

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
    _check_column(column)
    return Cut(column if isinstance(column, str) else int(column), made, named)


class Levels(NamedTuple):
    """Groups of examples by what a column says; see `levels`."""

    column: int | str
    names: tuple[str, ...]

    def of(self, data: Any) -> Array:
        """The number of each example's group; -1 for a level that is not named, or a gap. Raises JobError."""
        known = {name: i for i, name in enumerate(self.names)}
        return np.array([known.get(_text(x), -1) for x in column_of(data, self.column).tolist()], np.int64)


def levels(column: int | str, names: Sequence[Any]) -> Levels:
    """Subgroups by what a column says: one for each of these levels, the same at all sites; others are in none.

    >>> levels("scanner", ["A", "B"]).names
    ('A', 'B')
    """
    _check_column(column)
    texts = tuple(map(_text, names))
    if not texts or len(set(texts)) != len(texts) or isinstance(names, str):
        raise JobError(f"levels({column!r}, {names!r}): name the levels, each once, for example ['A', 'B']")
    return Levels(column, texts)


def column_of(data: Any, column: int | str) -> Array:
    """What is known of each example: by a name of what is `about` them or of a column, or by a column's number.

    Raises JobError where there is no such thing.
    """
    about, names = getattr(data, "about", {}), getattr(data, "names", ())
    if column in about:
        return np.asarray(about[column])
    if isinstance(column, str):
        if column not in names:
            known = [*about, *names]
            there = f"there are {', '.join(known)}" if known else "nothing has a name here"
            raise JobError(f"a subgroup is by {column!r}, and {there}: load fd.Split.from_frame(…, about=[{column!r}])")
        column = list(names).index(column)
    values = np.asarray(getattr(data, "x", 0))
    if values.ndim != 2 or not 0 <= column < values.shape[1]:
        raise JobError(f"a subgroup is by column {column}, and the inputs are {list(values.shape)}: give a table")
    return values[:, column]


def _check_column(column: Any) -> None:
    if isinstance(column, bool) or not isinstance(column, (int, str, np.integer)):
        raise JobError(f"subgroups by {column!r}: give the column's number, or a name in what sites load")


def _text(value: Any) -> str:
    """1, 1.0 and True are one."""
    return f"{value:g}" if isinstance(value, (bool, int, float, np.number)) else str(value)


Groups = Cut | Levels


def listed(by: Mapping[str, Groups]) -> list[tuple[str, str]]:
    """All groups in order: everybody, then those of each cut."""
    return [ALL, *((name, group) for name, how in by.items() for group in how.names)]
