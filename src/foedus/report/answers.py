"""One page of analyses: what was asked of all sites, what they answered together, and each by itself.
Answers come in (`foedus.analytics`); everything that a site chose is escaped by `markup`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from string import Template
from typing import Any

from foedus.report.markup import Html, el, join, number, table, text

MOST_ROWS = 500
WIDTH, HEIGHT, LEFT, BELOW = 480, 180, 40, 24  # of a figure
HINTS = {"psi": (0.1, 0.25)}  # small and much: what is marked in words
LINES = ("valid", "test", "train", "personal-valid")  # classes of the page's colours


def page(answers: Sequence[Any], title: str = "") -> str:
    """The answers' tables and figures as one HTML text, which loads nothing."""
    name = title or "foedus: " + ", ".join(dict.fromkeys(answer.analysis for answer in answers))
    lead = el("p", "Sums over sites; what a single site shows has a row or a column of its own.", class_="soft")
    head = el("header", el("h1", name), lead)
    skeleton = resources.files("foedus.report").joinpath("page.html").read_text("utf-8")
    return Template(skeleton).substitute(title=text(name), body=join([head, *map(_section, answers)], "\n"))


def _section(answer: Any) -> Html:
    frames = {name: x for name, x in answer.items() if hasattr(x, "columns")}
    facts = {name: x for name, x in answer.items() if name not in frames}
    parts = [el("h2", answer.analysis.replace("_", " ")), _facts(facts)]
    draw: Callable[[Any], Html] | None = FIGURES.get(answer.analysis)
    if draw is not None and len(frames["pandas"]):
        parts.append(el("figure", draw(frames["pandas"]), class_="curve"))
    parts += [_frame(name, frame) for name, frame in frames.items() if len(frame)]
    return el("section", *parts)


def _facts(facts: Mapping[str, Any]) -> Html:
    blocks = [el("pre", el("code", text(x, 100_000))) for x in facts.values() if isinstance(x, str) and "\n" in x]
    short = {name: x for name, x in facts.items() if not (isinstance(x, str) and "\n" in x)}
    pairs = [el("div", el("dt", name), el("dd", _cell(name, x))) for name, x in short.items() if x != []]
    return join([el("dl", *pairs, class_="cards") if pairs else Html(""), *blocks])


def _frame(name: str, frame: Any) -> Html:
    caption = {"pandas": "all sites", "per_site": "each site"}.get(name, name)
    if len(frame) > MOST_ROWS:
        caption += f" (the first {MOST_ROWS} of {len(frame):,} rows)"
    index = [str(x or "") for x in frame.index.names]
    rows = []
    for label, row in zip(frame.index[:MOST_ROWS], frame.head(MOST_ROWS).itertuples(index=False), strict=True):
        labels = label if isinstance(label, tuple) else (label,)
        cells = [_cell(column, x) for column, x in zip(frame.columns, row, strict=True)]
        rows.append([*map(str, labels), *cells])
    return table(caption, [*index, *map(str, frame.columns)], rows)


def _cell(name: str, x: Any) -> Any:
    if isinstance(x, (list, tuple)):
        return ", ".join(map(str, x))
    if isinstance(x, bool) or not isinstance(x, (int, float)):
        return number(float(x)) if hasattr(x, "dtype") and x.dtype.kind in "iuf" and math.isfinite(x) else str(x)
    if not math.isfinite(x):
        return "–"
    small, much = HINTS.get(name, (math.inf, math.inf))
    word = " much" if x >= much else " some" if x >= small else ""
    return join([number(x), el("b", word)]) if word else number(x)


def _histogram(frame: Any) -> Html:
    """Bars, with the ends below."""
    counts = [0.0 if math.isnan(x) else max(0.0, float(x)) for x in frame["count"]]
    most, wide = max([*counts, 1.0]), (WIDTH - LEFT) / len(counts)
    bars = [
        el("rect", x=round(LEFT + i * wide, 2), y=round(_y(c / most), 2), width=round(max(wide - 1, 1), 2),
           height=round(HEIGHT - BELOW - _y(c / most), 2), fill="var(--valid)")
        for i, c in enumerate(counts)
    ]  # fmt: skip
    low, high = float(frame["low"].iloc[0]), float(frame["high"].iloc[-1])
    return _drawn(bars, f"{most:g}", (f"{low:.4g}", f"{high:.4g}"), "counts between edges")


def _survival(frame: Any) -> Html:
    """A curve of steps for each group."""
    groups = [name for name in frame.index.names if name != "time"]
    parts = list(frame.groupby(level=groups[0])) if groups else [("all", frame)]
    last = max(float(x) for x in frame.index.get_level_values("time"))
    drawn, keys = [], []
    for i, (name, part) in enumerate(parts[: len(LINES)]):
        path, times = [f"M{LEFT} {_y(1):.1f}"], part.index.get_level_values("time")
        for t, s in zip(times, part["survival"], strict=True):
            path.append(f"H{LEFT + (WIDTH - LEFT) * float(t) / (last or 1):.1f}V{_y(float(s)):.1f}")
        drawn.append(el("g", el("path", d="".join(path), fill="none"), class_=f"line {LINES[i]}"))
        keys.append(el("span", el("i", class_=f"key {LINES[i]}"), str(name)))
    figure = _drawn(drawn, "1", ("0", f"{last:g}"), "survival by time")
    return join([figure, el("p", *keys, class_="legend")])


def _y(share: float) -> float:
    return 10 + (HEIGHT - BELOW - 10) * (1 - share)


def _drawn(parts: Sequence[Html], top: str, ends: tuple[str, str], what: str) -> Html:
    axis = el("path", d=f"M{LEFT} 10V{HEIGHT - BELOW}H{WIDTH}", class_="grid")
    words = [
        el("text", top, x=LEFT - 4, y=16, class_="right"),
        el("text", "0", x=LEFT - 4, y=HEIGHT - BELOW, class_="right"),
        el("text", ends[0], x=LEFT, y=HEIGHT - 8),
        el("text", ends[1], x=WIDTH, y=HEIGHT - 8, class_="right"),
    ]
    return el("svg", axis, *parts, *words, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=what)


FIGURES = {"histogram": _histogram, "kaplan_meier": _survival}
