"""Sums of integers in a ring, the arithmetic that seals need: q = rint((w/wmax) * x/step).
Only arrays and the contract may come in."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np

from foedus.core import Slice, Sum
from foedus.errors import FoedusError
from foedus.params import Array

RING = 2**31 - 1


class Fixed(NamedTuple):
    """What may be added: coordinates in [-bound, bound], weights in (0, wmax]."""

    bound: float
    wmax: float

    def step(self, asked: int) -> float:
        """The grid's step for `asked` sites; the sum of their integers stays within 2**31 - 1."""
        return self.bound / (RING // asked)

    def error(self, asked: int, weight: float) -> float:
        """The largest difference of a coordinate from the exact mean, when `asked` sites weigh `weight` together."""
        return asked * self.step(asked) / 2 * self.wmax / weight


class OutOfBound(FoedusError):
    """A weight, or a value of `group`, that the ring has no room for; it is refused, never clipped."""

    def __init__(self, why: str, group: str = "") -> None:
        super().__init__(why)
        self.group = group


def fixed(bound: float, wmax: float) -> Fixed:
    """The `fixed` arithmetic: `fd.mean(arithmetic=fd.fixed(bound=8.0, wmax=1024))`."""
    if not (0 < bound < np.inf and 0 < wmax < np.inf):
        raise FoedusError(f"fixed({bound}, {wmax}): both must be positive and finite")
    return Fixed(float(bound), float(wmax))


def quantise(x: Array, step: float, factor: float = 1.0) -> Array:
    """rint(factor * x / step) as int64."""
    return np.rint(x.astype(np.float64) * factor / step).astype(np.int64)


def fixed_sum(arithmetic: Fixed) -> Sum:
    """The mean in fixed arithmetic; `bind` gives it the number of sites asked, on which its grid depends."""
    return Sum(_unbound, _unbound, _unbound, bind=lambda asked: _bound(arithmetic, asked))


def _bound(arithmetic: Fixed, asked: int) -> Sum:
    step = arithmetic.step(asked)

    def fold(acc: dict[str, Array] | None, part: Slice, weight: float) -> dict[str, Array]:
        _admit(arithmetic, part, weight)
        q = {group: quantise(x, step, weight / arithmetic.wmax) for group, x in part.items()}
        if acc is None:
            return {f"{part[group].dtype}|{group}": x for group, x in q.items()}
        for name in acc:
            acc[name] += q[name.partition("|")[2]]
        return acc

    def merge(a: dict[str, Array], b: dict[str, Array]) -> dict[str, Array]:
        return {name: x + b[name] for name, x in a.items()}

    def finish(acc: dict[str, Array], weight: Fraction) -> Slice:
        scale = float(Fraction(step) * Fraction(arithmetic.wmax) / weight)
        return {
            g: (x * scale).astype(_result(dtype)) for name, x in acc.items() for dtype, _, g in [name.partition("|")]
        }

    return Sum(fold, merge, finish, ring=(arithmetic, asked))


def _result(dtype: str) -> np.dtype[np.floating]:
    return np.dtype("float64") if dtype == "float64" else np.dtype("float32")


def _admit(arithmetic: Fixed, part: Slice, weight: float) -> None:
    if weight > arithmetic.wmax:
        raise OutOfBound(f"weight {weight:g} is above wmax={arithmetic.wmax:g}; raise wmax")
    for group, x in part.items():
        with np.errstate(invalid="ignore"):  # NaN is found below
            peak = float(np.abs(x).max(initial=0))
        if not peak <= arithmetic.bound:
            raise OutOfBound(f"{peak:g} is above bound={arithmetic.bound:g}; clip, or raise the bound", group)


def _unbound(*_: object) -> Slice:
    raise FoedusError("fixed arithmetic needs the number of sites asked: call bind(n) first")
