"""Findings: what a column's or an image's counts mean, in words that may leave the site, each with its remedy.
Rules and counts come in; small counts are blurred here, and values are never known."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from foedus.schema.counts import Counts, suspects
from foedus.schema.images import SCALES, ImageCounts
from foedus.schema.rules import Column, Image
from foedus.schema.tables import ADAPTER
from foedus.schema.units import Conversion

Fault = tuple[str, str, str, int]  # what, a hint from the values, the usual remedy, how many values are lost by it
LEAST = 5  # a count below is not told
MOST = 0.5  # of the values do not fit: something befell the whole column
MOST_NAMES = 20  # of a schema that a finding lists
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


def short(count: int, least: int) -> str:
    """A count below `least`, telling no more than that where it is small."""
    bound = min(least, LEAST)
    return f"{count:,}" if count >= LEAST else f"fewer than {bound}" if bound > 1 else "no"


def column_problems(name: str, rule: Column, counts: Counts, place: int | None = None) -> Iterator[Problem]:
    """What is wrong with a column; `place` is its number, from 1, where it was found by that alone."""
    order = f"no column has a name, so number {place} is read as {name!r}: check the order, or add a header"
    if counts.missing == counts.rows and rule.missing < 1:
        yield Problem(name, "every value is missing", order if place else "fill the column, or bind other data")
        return
    for what, hint, usual, lost in _faults(rule, counts):
        shifted = place and lost > MOST * (counts.rows - counts.missing)
        yield Problem(name, what, "; or ".join(filter(None, [hint, order if shifted else ""])) or usual)


def _faults(rule: Column, counts: Counts) -> Iterator[Fault]:
    of = f"of {few(counts.rows)} values"
    if counts.missing > rule.missing * counts.rows:
        allowed = f"at most {100 * rule.missing:.4g} % may be" if rule.missing else "none may be"
        what = f"{few(counts.missing)} {of} are missing, and {allowed}"
        yield what, "", "fill the gaps in an adapter, or leave such rows out", 0
    yield from _code_faults(rule, counts, of) if rule.codes else _number_faults(rule, counts, of)


def _code_faults(rule: Column, counts: Counts, of: str) -> Iterator[Fault]:
    lost = counts.odd + counts.misfit
    if lost:
        looks, hint = _suspected(rule, counts)
        what = f"{few(lost)} {of} are none of the codes {listed(rule.codes)}{looks}"
        yield what, hint, "write the codes as in the schema: case and blanks count", lost
    rare = [code for code, rows in zip(rule.codes, counts.codes, strict=False) if rows < rule.least_each]
    if rare:
        what = f"too few rows have the codes {listed(rare)}: the Job needs {rule.least_each:,} of each"
        yield what, "", "bind data with more of them, or leave this Job out", 0


def _number_faults(rule: Column, counts: Counts, of: str) -> Iterator[Fault]:
    if counts.odd:
        usual = "write plain numbers with a decimal point, and leave a cell without a value empty"
        yield f"{few(counts.odd)} {of} are no finite numbers", "", usual, counts.odd
    if counts.misfit:
        looks, hint = _suspected(rule, counts)
        whole = "no whole numbers, or " if rule.type == "integer" else ""
        what = f"{few(counts.misfit)} {of} are {whole}outside {ranged(rule)}{looks}"
        yield what, hint, "correct them, or leave such cells empty", counts.misfit


def _suspected(rule: Column, counts: Counts) -> tuple[str, str]:
    """What the values look like instead, and the remedy; empty texts where nothing is suspected."""
    marked = "if a number such as 0, -9 or 999 stands for a gap, leave such cells empty"
    if 2 * counts.marks > counts.misfit and not rule.codes:
        return "", marked
    most, enough = (0.0, 1.0) if rule.codes else (MOST, ENOUGH)
    pairs = zip(suspects(rule), counts.fits, strict=True)
    found = [c for c, fits in pairs if counts.misfit > most * counts.read and fits >= enough * counts.read]
    if not found:
        return "", marked if 2 * counts.marks > counts.misfit else ""
    nearest = min(found, key=lambda c: (not c.unit, abs(math.log(c.scale))))
    if not nearest.unit:
        return _unnamed(nearest)
    ways = ", ".join(_formula(c) for c in found if c.unit == nearest.unit)
    return f", and look like {nearest.unit}", f"convert {nearest.unit} to {rule.unit}: {ways}"


def _unnamed(found: Conversion) -> tuple[str, str]:
    if found.offset:
        change = "add 1 to" if found.offset > 0 else "subtract 1 from"
        return ", and look counted from another number", f"{change} each of them"
    size, change = ("small", "multiply") if found.scale > 1 else ("large", "divide")
    times = f"{max(found.scale, 1 / found.scale):,g}"
    return f", and look {times} times too {size}", f"{change} them by {times}, if that is their unit"


def _formula(found: Conversion) -> str:
    return f"{found.of} × {found.scale:.4g}" + (f" {found.offset:+.4g}" if found.offset else "")


def image_problems(name: str, rule: Image, counts: ImageCounts) -> Iterator[Problem]:
    """What is wrong with images or masks."""
    shape = _sizes(rule.shape)
    looks, hint = _scaled(counts)
    faults = (
        (counts.shape, f"have not the shape {shape}", "resample, crop or transpose them in an adapter"),
        (counts.dtype, f"are not {rule.dtype or 'numbers'}", "convert them in an adapter, or save them so"),
        (counts.odd, "hold NaN or infinities", "replace these values, or leave such examples out"),
        (counts.misfit, f"hold values outside {ranged(rule)}{looks}", hint or "scale or clip them to that range"),
        (counts.spacing, f"have not the spacing {_sizes(rule.spacing)} mm", "resample them, or do so in an adapter"),
        (counts.modality, f"are not {rule.modality}", "bind that modality alone"),
        (
            counts.unsaid,
            "do not say their spacing or modality",
            "bind NIfTI or DICOM, or leave these out of the schema",
        ),
        (
            counts.unread,
            "are PNG, NIfTI or DICOM, whose values are not read, so that their range is not checked",
            f"leave min and max out of the schema, or {ADAPTER}",
        ),
    )
    for number, what, remedy in faults:
        if number:
            yield Problem(name, f"{few(number)} of {few(counts.rows)} arrays {what}", remedy)


def _sizes(lengths: Sequence[float]) -> str:
    return " × ".join("any" if n == -1 else f"{n:g}" for n in lengths)


def _scaled(counts: ImageCounts) -> tuple[str, str]:
    """What the images look like instead, and the remedy; empty texts where nothing is suspected."""
    for (_, looks, remedy), fits in zip(SCALES, counts.fits, strict=True):
        if counts.misfit > MOST * counts.rows and fits >= ENOUGH * counts.rows:
            return f", and look like {looks}", remedy
    return "", ""


def ranged(rule: Column | Image) -> str:
    """The range of a rule: 50 to 700 mg/dl."""
    low, high = f"{rule.min:.10g}", f"{rule.max:.10g}"
    text = f"{high} and below" if low == "-inf" else f"{low} and above" if high == "inf" else f"{low} to {high}"
    return f"{text} {getattr(rule, 'unit', '')}".rstrip()


def listed(names: Sequence[int | str]) -> str:
    """Names of the schema, not too many of them."""
    return ", ".join(map(str, names[:MOST_NAMES])) + (", …" if len(names) > MOST_NAMES else "")
