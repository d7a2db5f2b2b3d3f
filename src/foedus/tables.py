"""Data frames divided by time: what comes later is kept for measuring, as it will be when a model is used.
Frames (pandas) come in; only errors may be imported."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from foedus.errors import FoedusError


class After(NamedTuple):
    """The rows of a frame from a moment on; see `after`."""

    when: Any
    on: str


def after(when: Any, on: str) -> After:
    """The rows whose column `on` is `when` or later: a part of `Split.from_frame` that is later than what trains.

    `when` is what the column can be compared with: a date as text, a Timestamp, a number.
    """
    return After(when, on)


def divided(frame: Any, parts: Mapping[str, After]) -> dict[str, Any]:
    """The frame's rows by part: `train` has what no part begins with yet; the latest beginning that fits counts.

    The columns that say when are left out. Raises FoedusError for a column that has gaps, or that cannot be compared
    with what was given.
    """
    left, found = frame, dict[str, Any]()
    for name, part in sorted(parts.items(), key=lambda item: _at(frame, item[1]), reverse=True):
        late = _later(left, part)
        found[name], left = left[late], left[~late]
    columns = list({part.on for part in parts.values()})
    return {name: rows.drop(columns=columns) for name, rows in {"train": left, **found}.items()}


def _later(frame: Any, part: After) -> Any:
    column = frame[part.on]
    gaps = int(column.isna().sum())
    if gaps:
        raise FoedusError(f"column {part.on!r} has {gaps} gaps: say when these rows are, or drop them")
    text = column.dtype.kind == "O" and isinstance(part.when, str)
    if text and not (_year_first(part.when) and column.map(_year_first).all()):
        raise FoedusError(
            f"column {part.on!r} is text, which is compared letter by letter, and it or {part.when!r} does not begin "
            "with a year: write dates as 2025-07-01, or convert it first, for example with pandas.to_datetime"
        )
    try:
        return column >= part.when
    except TypeError:
        raise FoedusError(
            f"column {part.on!r} holds {column.dtype}, which cannot be compared with {part.when!r}: convert it first, "
            "for example with pandas.to_datetime"
        ) from None


def _year_first(value: Any) -> bool:
    """Whether a text sorts as the time that it says; what is no text compares by itself."""
    return not isinstance(value, str) or re.match("(19|20)[0-9]{2}", value) is not None


def _at(frame: Any, part: After) -> int:
    """How many rows are earlier: which of two parts begins first."""
    return int((~_later(frame, part)).sum())
