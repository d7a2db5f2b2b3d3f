"""The table of `foedus submit --check`: which sites are ready for a Job, and below it what stands in the way.
Reports come in as the sites sent them, so they may hold anything; text for a terminal goes out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from foedus.schema.findings import Finding, Report

HEAD = ("site", "reachable", "dataset", "schema", "rows", "packages", "approval")
MOST_CELL = 24  # characters; what is longer stands below the table
NOTHING = "–"


def table(reports: Mapping[str, Mapping[str, Any] | None]) -> str:
    """The text table of site -> what it reported (None: not reachable), with one line below for each finding.

    A report has any of `dataset`, `packages` and `approval` (texts), `rows` (a number, or one for each part) and
    `schema` (dataset -> Report, or its plain form).
    """
    rows = [HEAD, *(tuple(_row(site, report)) for site, report in reports.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    below = [line for site, report in reports.items() for line in _below(site, report or {})]
    return "\n".join([*lines, *([""] if below else []), *below])


def _row(site: str, report: Mapping[str, Any] | None) -> Iterator[str]:
    held = report or {}
    findings = len([finding for _, found in _schemas(held) for finding in found.findings])
    fits = "fits" if not findings else "1 finding" if findings == 1 else f"{findings} findings"
    yield _clean(site)
    yield "no" if report is None else "yes"
    yield _short(held.get("dataset"))
    yield fits if "schema" in held else NOTHING
    yield _short(_rows(held))
    yield _short(held.get("packages"))
    yield _short(held.get("approval"))


def _below(site: str, report: Mapping[str, Any]) -> Iterator[str]:
    """What did not fit into the table."""
    for dataset, held in _schemas(report):
        for found in held.findings:
            yield _clean(str(found._replace(site=site, dataset=dataset)))
    for name in ("dataset", "packages", "approval"):
        if len(text := _clean(report.get(name))) > MOST_CELL:
            yield f"site {_clean(site)!r}, {name}: {text}"


def _schemas(report: Mapping[str, Any]) -> list[tuple[str, Report]]:
    found = report.get("schema")
    return [(str(name), _report(held)) for name, held in found.items()] if isinstance(found, Mapping) else []


def _report(held: Any) -> Report:
    """A Report, or one that says that this was none."""
    if isinstance(held, Report):
        return held
    try:
        findings = [Finding(**found) for found in held["findings"]]
    except (KeyError, TypeError):
        findings = [Finding("", "", "", "its report cannot be read", "run the same version of foedus at both ends")]
    return Report(None, tuple(findings))


def _rows(report: Mapping[str, Any]) -> Any:
    rows = report.get("rows")
    return sum(n for n in rows.values() if isinstance(n, int)) if isinstance(rows, Mapping) else rows


def _short(value: Any) -> str:
    text = _clean(value)
    return text if len(text) <= MOST_CELL else "see below"


def _clean(value: Any) -> str:
    """One line of text that cannot steer a terminal."""
    text = NOTHING if value is None or value == "" else str(value)
    return "".join(c if c.isprintable() else "?" for c in text)
