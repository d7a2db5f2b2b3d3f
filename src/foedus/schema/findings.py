"""Findings: what a column's or an image's counts mean, in words that may leave the site, each with its remedy.
Rules and counts come in; small counts are blurred here, and values are never known."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from foedus.schema.counts import Counts, suspects
from foedus.schema.images import SCALES, ImageCounts
from foedus.schema.rules import Column, Image
from foedus.schema.tables import ADAPTER
from foedus.schema.units import Conversion

LEAST = 5  # a count below is not told
MOST = 0.5  # of the values do not fit: something befell the whole column
ENOUGH = 0.9  # of the values fit once they are converted


class Finding(NamedTuple):
    """Something in a site's data that a Job cannot use; `column` is "" where it concerns the whole dataset."""

    site: str
    dataset: str
    column: str
    what: str
    remedy: str

    def __str__(self) -> str:
        column = f", column {self.column!r}" if self.column else ""
        return f"site {self.site!r}, dataset {self.dataset!r}{column}: {self.what}; {self.remedy}"


class Report(NamedTuple):
    """How a site's data fits: its rows (None: not known) and what was found."""

    rows: int | None
    findings: tuple[Finding, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.findings

    def plain(self) -> dict[str, Any]:
        """The report as JSON, as it may leave the site: a small number of rows is blurred."""
        rows = None if self.rows is None else self.rows if self.rows >= LEAST else few(self.rows)
        return {"rows": rows, "findings": [finding._asdict() for finding in self.findings]}


class Problem(NamedTuple):
    """A finding before it is known where."""

    column: str
    what: str
    remedy: str


def few(count: int) -> str:
    """A count as it may leave the site."""
    return f"{count:,}" if count >= LEAST else f"fewer than {LEAST}"


def column_problems(name: str, rule: Column, counts: Counts, order: str = "") -> Iterator[Problem]:
    """What is wrong with a column; `order` is the remedy where its place may be the wrong one."""
    if counts.missing == counts.rows:
        yield Problem(name, "every value is missing", order or "fill the column, or bind other data")
        return
    for what, remedy, lost in _faults(rule, counts):
        yield Problem(name, what, order if order and lost > MOST * (counts.rows - counts.missing) else remedy)


def _faults(rule: Column, counts: Counts) -> Iterator[tuple[str, str, int]]:
    """What, the remedy, and how many of the values are concerned."""
    of = f"of {few(counts.rows)} values"
    if counts.missing > rule.missing * counts.rows:
        allowed = f"at most {rule.missing:.4g} of them may be" if rule.missing else "none may be"
        yield f"{few(counts.missing)} {of} are missing, and {allowed}", "...", 0


def image_problems(name: str, rule: Image, counts: ImageCounts) -> Iterator[Problem]:
    ...
