"""What a sealed update carries behind its arrays and weight: metrics as whole numbers, in one layout for all sites.
Named arrays of sums come in; a number that has no room is left out by the site itself.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from foedus.errors import WireError
from foedus.params import Array
from foedus.privacy.masking.words import joined

LIMBS = 8  # words a number: units of 2**-32 modulo 2**128, sixteen bits a word
UNIT = 32
ROOM = 2.0**62  # of a number; 65,536 of them have room in the sum
MOST = 1 << 20  # numbers of all metrics


class Figure(NamedTuple):
    """One metric's announcement: whether it counts in whole numbers, and its shape."""

    name: str
    whole: bool
    shape: tuple[int, ...]


Layout = tuple[Figure, ...]


def announced(metrics: Mapping[str, Any]) -> Layout:
    """What a site says of its metrics, by name; one with a number that has no room is not among them."""
    arrays = {name: np.asarray(x) for name, x in sorted(metrics.items())}
    return tuple(Figure(name, x.dtype.kind in "iub", x.shape) for name, x in arrays.items() if _has_room(x))


def merged(told: Iterable[Layout]) -> Layout:
    """The layout for all: every metric that has one shape at all sites that have it, by name."""
    found: dict[str, Figure | None] = {}
    for figure in (figure for layout in told for figure in layout):
        known = found.get(figure.name, figure)
        same = known is not None and known.shape == figure.shape
        found[figure.name] = figure._replace(whole=known.whole and figure.whole) if known and same else None
    return tuple(figure for _, figure in sorted(found.items()) if figure is not None)


def read_layout(rows: Any) -> Layout:
    """A layout as it travels. Raises WireError for one that is out of order, has a name twice, or is too long."""
    try:
        layout = tuple(Figure(_text(name), bool(whole), tuple(map(_count, shape))) for name, whole, shape in rows)
    except (TypeError, ValueError) as error:
        raise WireError(f"the metrics of a sealed Task are described wrongly ({error})") from None
    names = [figure.name for figure in layout]
    if names != sorted(set(names)) or size(layout) > MOST * LIMBS:
        raise WireError("the metrics of a sealed Task are out of order, or too many")
    return layout


def size(layout: Layout) -> int:
    """How many words the metrics take."""
    return LIMBS * sum(math.prod(figure.shape) for figure in layout)


def figures(metrics: Mapping[str, Any], layout: Layout) -> Array:
    """The words of a site's metrics; of those that it does not have, or has in another shape, zeros."""
    mine = {figure.name: figure.shape for figure in announced(metrics)}
    parts = [
        np.asarray(metrics[name]).reshape(-1) if mine.get(name) == shape else np.zeros(math.prod(shape))
        for name, _, shape in layout
    ]
    data = b"".join((_units(x) % (1 << 16 * LIMBS)).to_bytes(2 * LIMBS, "little") for part in parts for x in part)
    return np.frombuffer(data, "<u2").astype("<u4")


def sums(layout: Layout, words: Array) -> dict[str, Array]:
    """name -> the sum of all sites' metrics, of the sum of their words."""
    found, at = {}, 0
    for name, whole, shape in layout:
        count = math.prod(shape)
        rows = words[at : at + count * LIMBS].reshape(count, LIMBS)
        numbers = [_signed(joined(row)) for row in rows]
        values = [x >> UNIT if whole else x / (1 << UNIT) for x in numbers]
        found[name] = np.array(values, np.int64 if whole else np.float64).reshape(shape)
        at += count * LIMBS
    return found


def about(
    bundle: str,
    seed: int,
    work: str,
    ring: Sequence[str],
    returns: Sequence[Sequence[Any]],
    layout: Layout,
) -> str:
    """SHA-256 (hex) of the Job as a Task sees it: code, work, ring, what it returns, and the layout of its metrics."""
    facts = [bundle, seed, work, list(ring), [list(leaf) for leaf in returns], [list(f) for f in layout]]
    return hashlib.sha256(json.dumps(["foedus/secagg/1/job", *facts]).encode()).hexdigest()


def _has_room(x: Array) -> bool:
    return x.dtype.kind in "iubf" and bool((np.abs(x.astype(np.float64)) <= ROOM).all())


def _units(x: Any) -> int:
    return int(x) << UNIT if isinstance(x, (np.integer, np.bool_)) else round(float(x) * 2.0**UNIT)


def _signed(number: int) -> int:
    number %= 1 << 16 * LIMBS
    return number - (1 << 16 * LIMBS) if number >> (16 * LIMBS - 1) else number


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no name")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no length")
    return value
