"""Figures as inline SVG, in Okabe and Ito's colours, told apart by shape and dash too, each with its own description.
Plain numbers come in; the page's style sheet gives colours, in light and in dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from foedus.report.markup import Html, el, join, short, stretches, text, thinned
from foedus.report.story import STATUS, Measured

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 360, 210, 46, 10, 190  # of a curve, in SVG units
MOST_POINTS, MOST_DOTS = 400, 40
MOST = 1e300  # what diverged further leaves the figure, and arithmetic stays finite
LABEL, ROSTER, ROW = 130, 720, 16  # the roster's label column, whole width and row height

Points = Sequence[tuple[int, float]]
Scale = Callable[[float], float]

# Where a status fills its cell (from, to, as shares of the height): shape tells what colour tells, at any width.
FILL = {
    "idle": [(0.46, 0.54)],
    "counted": [(0.0, 1.0)],
    "open": [(0.3, 0.4), (0.6, 0.7)],
    "later": [(0.0, 0.2), (0.5, 1.0)],
    "dropped": [(0.6, 1.0)],
    "declined": [(0.0, 0.4)],
    "lost": [(0.33, 0.67)],
    "refused": [(0.0, 0.25), (0.75, 1.0)],
}


class Curve(NamedTuple):
    """One metric: a line for each part, and the band from the pooled value to the worst site's."""

    name: str
    lines: Mapping[str, Points]  # part -> (round, value)
    band: Sequence[tuple[int, float, float]] = ()  # round, pooled, worst site


def curve(which: Curve, marks: Sequence[int], number: int) -> Html:
    """A metric per round; `marks` are the rounds with events."""
    rounds = [r for points in which.lines.values() for r, _ in points]
    values = [v for points in which.lines.values() for _, v in points] + [v for row in which.band for v in row[1:]]
    x, y = _scale(min(rounds), max(rounds), LEFT, WIDTH - 12), _scale(*_domain(values), BOTTOM, TOP)
    lines = [_line(part, points, x, y) for part, points in which.lines.items()]
    parts = [*_grid(x, y, rounds, values), *_marks(marks, x, TOP, BOTTOM), _band(which.band, x, y), *lines]
    return _figure(which.name, _said(which), f"0 0 {WIDTH} {HEIGHT}", parts, f"curve-{number}", _legend(which))


def _scale(low: float, high: float, first: float, last: float) -> Scale:
    return lambda v: round(first + (last - first) * ((v - low) / (high - low) if high > low else 0.5), 1)


def _domain(values: Sequence[float]) -> tuple[float, float]:
    low, high = (max(-MOST, min(MOST, v)) for v in (min(values), max(values)))
    room = 0.04 * (high - low) or 0.04 * abs(high) or 1.0
    return low - room, high + room


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers within [low, high].

    >>> ticks(0.07, 1.02)
    [0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= rough * 0.8)
    return [float(f"{k * step:.12g}") for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _grid(x: Scale, y: Scale, rounds: Sequence[int], values: Sequence[float]) -> list[Html]:
    found = []
    for v in ticks(*_domain(values)):
        found.append(el("path", d=f"M{LEFT} {y(v)}H{WIDTH - 12}", class_="grid"))
        found.append(el("text", f"{v:.4g}", x=LEFT - 6, y=y(v) + 3.5, class_="right"))
    whole = sorted({int(v) for v in ticks(min(rounds), max(rounds), 6)})
    found += [el("text", r, x=x(r), y=BOTTOM + 16, class_="middle") for r in whole]
    return found


def _marks(rounds: Sequence[int], x: Scale, top: float, bottom: float) -> list[Html]:
    path = "".join(f"M{x(r)} {top}V{bottom}" for r in rounds)
    return [el("path", d=path, class_="mark")] if path else []


def _line(part: str, points: Points, x: Scale, y: Scale) -> Html:
    path = "L".join(f"{x(r)} {y(v)}" for r, v in thinned(points, MOST_POINTS))
    dots = [el("circle", cx=x(r), cy=y(v), r=2.2) for r, v in points] if len(points) <= MOST_DOTS else []
    return el("g", el("path", d=f"M{path}", fill="none"), *dots, class_=f"line {_class(part)}")


def _band(band: Sequence[tuple[int, float, float]], x: Scale, y: Scale) -> Html:
    rows = thinned(band, MOST_POINTS)
    outline = [f"{x(r)} {y(v)}" for r, v, _ in rows] + [f"{x(r)} {y(w)}" for r, _, w in reversed(rows)]
    edge = [f"{x(r)} {y(w)}" for r, _, w in rows]
    if not rows:
        return Html("")
    area = el("path", d=f"M{'L'.join(outline)}Z", class_="band")
    return join([area, el("path", d=f"M{'L'.join(edge)}", class_="worst")])


def _class(part: str) -> str:
    return part.replace(" ", "-")


def _legend(which: Curve) -> Html:
    keys = _keys(which.lines)
    if which.band:
        keys.append(el("span", el("i", class_="key worst"), "valid, worst site"))
    return join(keys, " ")


def _keys(parts: Iterable[str]) -> list[Html]:
    return [el("span", el("i", class_=f"key {_class(part)}"), part) for part in parts]


def _said(which: Curve) -> str:
    lines = [
        f"{part} {short(points[0][1])} in round {points[0][0]}, {short(points[-1][1])} in round {points[-1][0]}"
        for part, points in which.lines.items()
    ]
    worst = [f"the worst site's valid {short(which.band[-1][2])} in round {which.band[-1][0]}"] if which.band else []
    return f"{which.name} per round: {'; '.join([*lines, *worst])}."


def roster(grid: Mapping[str, Mapping[int, str]], rounds: Sequence[int], marks: Sequence[int]) -> Html:
    """Who was there: a row for each site, a column for each round."""
    wide = min(26.0, (ROSTER - LABEL - 4) / len(rounds))
    column = {r: LABEL + i * wide for i, r in enumerate(rounds)}
    bottom = 8 + ROW * len(grid)
    names = [el("text", _fit(s), x=LABEL - 8, y=20 + ROW * i, class_="right") for i, s in enumerate(grid)]
    shapes = [el("path", d=d, class_=status) for status, d in _cells(grid, rounds, wide).items() if d]
    gaps = "".join(f"M{round(column[r], 1)} 8V{bottom}" for r in rounds) if wide > 6 else ""
    shown = [int(v) for v in ticks(rounds[0], rounds[-1], 8) if int(v) in column]
    axis = [el("text", r, x=round(column[r] + wide / 2, 1), y=bottom + 16, class_="middle") for r in sorted({*shown})]
    lines = _marks([r for r in marks if r in column], lambda r: round(column[int(r)], 1), 4, bottom + 2)
    parts = [*shapes, *([el("path", d=gaps, class_="gap")] if gaps else []), *lines, *names, *axis]
    used = {status for cells in grid.values() for status in cells.values()}
    return _figure("Who was there", _fared(grid), f"0 0 {ROSTER} {bottom + 24}", parts, "roster", _statuses(used))


def _fit(name: str) -> str:
    return name if len(name) <= 18 else name[:17] + "…"


def _cells(grid: Mapping[str, Mapping[int, str]], rounds: Sequence[int], wide: float) -> dict[str, str]:
    """A path for each status; rounds in a row are one rectangle."""
    found = dict.fromkeys(FILL, "")
    for i, cells in enumerate(grid.values()):
        for status in found:
            there = [k for k, r in enumerate(rounds) if cells.get(r) == status]
            for a, b in stretches(there):
                x, width = round(LABEL + a * wide, 1), round((b + 1 - a) * wide, 1)
                found[status] += _bars(status, x, 10 + ROW * i, width, ROW - 4)
    return found


def _bars(status: str, x: float, y: float, width: float, height: float) -> str:
    return "".join(
        f"M{x:g} {round(y + a * height, 1):g}h{width:g}v{round((b - a) * height, 1):g}h-{width:g}z"
        for a, b in FILL[status]
    )


def _statuses(used: Iterable[str]) -> Html:
    return join([_status(s) for s in FILL if s in {*used}], " ")


def _status(status: str) -> Html:
    drawn = el("path", d=_bars(status, 0, 0, 14, 12), class_=status)
    return el("span", el("svg", drawn, class_="key", viewBox="0 0 14 12", aria_hidden="true"), STATUS[status])


def _fared(grid: Mapping[str, Mapping[int, str]]) -> str:
    told = []
    for site, cells in list(grid.items())[:12]:
        seen = list(cells.values())
        told.append(f"{site} on the roster in {len(seen)} rounds, counted in {seen.count('counted')}")
    return "; ".join(told) + ("; …" if len(grid) > len(told) else ".")


def forest(name: str, rows: Mapping[str, Mapping[str, Measured]], number: int) -> Html:
    """One metric at each place (a site, or all together): a dot and its 95 % interval for each part."""
    found = [m for row in rows.values() for m in row.values() if m.value is not None]
    values = [v for m in found for v in (m.value, *(m.interval or ())) if v is not None]
    kinds = dict.fromkeys(part for row in rows.values() for part in row)
    tall = max(18, 6 + 6 * len(kinds))
    x, bottom = _scale(*_domain(values), 104, WIDTH - 12), TOP + tall * len(rows)
    parts = []
    for v in ticks(*_domain(values)):
        parts.append(el("path", d=f"M{x(v)} {TOP - 4}V{bottom}", class_="grid"))
        parts.append(el("text", f"{v:.4g}", x=x(v), y=bottom + 16, class_="middle"))
    for i, (place, row) in enumerate(rows.items()):
        parts.append(el("text", _fit(place), x=96, y=TOP + tall * i + 12, class_="right"))
        parts += [_dot(part, m, x, TOP + tall * i + 6 + 6 * k) for k, (part, m) in enumerate(row.items())]
    said = f"{name}, newest values: {'; '.join(_place(place, row) for place, row in rows.items())}."
    legend = join(_keys(kinds), " ")
    return _figure(f"{name} by site", said, f"0 0 {WIDTH} {bottom + 24}", parts, f"forest-{number}", legend)


def _dot(part: str, m: Measured, x: Scale, y: float) -> Html:
    if m.value is None:
        return Html("")
    whisker = [el("path", d=f"M{x(m.interval[0])} {y}H{x(m.interval[1])}", fill="none")] if m.interval else []
    return el("g", *whisker, el("circle", cx=x(m.value), cy=y, r=3), class_=f"line {_class(part)}")


def _place(place: str, row: Mapping[str, Measured]) -> str:
    return f"{place} " + ", ".join(f"{p} {short(m.value)}" for p, m in row.items() if m.value is not None)


def _figure(name: str, said: str, box: str, parts: Sequence[Html], id: str, legend: Html) -> Html:
    title, told = el("title", name, id=f"{id}-t"), el("desc", text(said, 4000), id=f"{id}-d")
    svg = el("svg", title, told, *parts, viewBox=box, role="img", aria_labelledby=f"{id}-t {id}-d")
    caption = el("figcaption", el("strong", name), " ", el("span", legend, class_="legend"))
    return el("figure", caption, svg, class_=id.split("-")[0])
