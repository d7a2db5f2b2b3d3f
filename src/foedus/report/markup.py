"""HTML by construction: whatever is not markup already is escaped, so that no name or reason of a site becomes markup.
Only the standard library may come in."""

from __future__ import annotations

import html
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

LONGEST = 400  # of a text that a site chose


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def text(value: Any, longest: int = LONGEST) -> Html:
    """`value` as text: escaped, shortened, its unprintable characters (which could turn the line around) replaced."""
    if isinstance(value, Html):
        return value
    plain = str(value)
    plain = plain if len(plain) <= longest else plain[: longest - 1] + "…"
    if not plain.isprintable():
        plain = "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in plain)
    return Html(html.escape(plain))


def join(parts: Iterable[Any], between: str = "") -> Html:
    return Html(between.join(map(text, parts)))


def el(name: str, *children: Any, **attributes: Any) -> Html:
    """An element; `class_` is class, `aria_label` is aria-label, None is left out.

    >>> el("td", "<b>", class_="worst")
    '<td class="worst">&lt;b&gt;</td>'
    """
    named = {k.rstrip("_").replace("_", "-"): v for k, v in attributes.items() if v is not None}
    opened = "".join(f' {k}="{text(v, sys.maxsize)}"' for k, v in named.items())
    return Html(f"<{name}{opened}>{join(children)}</{name}>")


def table(caption: str, head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> Html:
    """A table in a region that scrolls; the first cell of a row names it."""
    body = [el("tr", el("th", row[0], scope="row"), *(el("td", cell) for cell in row[1:])) for row in rows]
    top = el("tr", *(el("th", cell, scope="col") for cell in head))
    whole = el("table", el("caption", caption), el("thead", top), el("tbody", *body))
    return el("div", whole, class_="scroll", role="region", tabindex=0, aria_label=caption)


def number(x: float | None) -> Html:
    """Four digits to read, and the journal's own number for machines."""
    return Html("–") if x is None else el("data", short(x), value=repr(x))


def short(x: float) -> str:
    """
    >>> short(0.873456), short(1305.7), short(12), short(3.2e-7)
    ('0.8735', '1306', '12', '3.200e-07')
    """
    if x == 0 or isinstance(x, int):
        return str(x)
    size = math.floor(math.log10(abs(x))) if math.isfinite(x) else 99
    return f"{x:.{max(0, 3 - size)}f}" if -4 < size < 6 else f"{x:.3e}"


def between(ends: Sequence[float] | None) -> Html:
    """An interval behind its value, or nothing."""
    if not ends:
        return Html("")
    return join([" ", el("span", "[", number(ends[0]), ", ", number(ends[1]), "]", class_="interval")])


def size(count: int) -> Html:
    """
    >>> size(1_234_567)
    '<data value="1234567">1.23 MB</data>'
    """
    unit = min(4, max(0, len(str(count)) - 1) // 3)
    shown = f"{count / 1000**unit:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[unit]}" if unit else f"{count} B"
    return el("data", shown, value=count)


def lasting(seconds: float) -> str:
    """
    >>> lasting(0.4025), lasting(75.2), lasting(90061)
    ('0.403 s', '1 min 15 s', '25 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def moment(at: float) -> Html:
    iso = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
    return el("time", iso.replace("T", " ").replace("Z", " UTC"), datetime=iso)


def ranges(numbers: Iterable[int]) -> str:
    """
    >>> ranges([0, 1, 2, 7, 9, 10])
    '0–2, 7, 9–10'
    """
    return ", ".join(f"{a}–{b}" if b > a else str(a) for a, b in stretches(sorted(set(numbers))))


def stretches(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """First and last of each stretch of numbers that follow one another."""
    first = last = None
    for n in numbers:
        if first is None or last is None:
            first = n
        elif n != last + 1:
            yield first, last
            first = n
        last = n
    if first is not None and last is not None:
        yield first, last


def thinned(items: Sequence[Any], most: int) -> list[Any]:
    """Every k-th item and the last, at most `most` and one."""
    every = -(-len(items) // most) or 1
    return [*items[:-1:every], *items[-1:]]
