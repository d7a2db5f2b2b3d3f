"""`fd.staleness`: how much an update counts that was computed from an older model; functions age -> weight, 1 at age 0.
An age is the number of rounds since the update's model was sent. Only errors may come in.
"""

from __future__ import annotations

from collections.abc import Callable

from foedus.errors import JobError

Staleness = Callable[[int], float]


def constant() -> Staleness:
    """Old updates count as much as new ones."""
    return lambda age: 1.0


def polynomial(a: float = 0.5) -> Staleness:
    """(1 + age)^-a (Xie et al. 2019; Nguyen et al. 2022 take a = 1/2).

    >>> polynomial(0.5)(3)
    0.5
    """
    if not a >= 0:
        raise JobError(f"staleness.polynomial({a}): a is 0 or more")
    return lambda age: float((1 + age) ** -a)


def hinge(a: float = 10.0, b: float = 4.0) -> Staleness:
    """1 up to the age b, then 1 / (a (age - b) + 1) (Xie et al. 2019).

    >>> hinge(1.0, 2.0)(5)
    0.25
    """
    if not (a >= 0 and b >= 0):
        raise JobError(f"staleness.hinge({a}, {b}): both are 0 or more")
    return lambda age: 1.0 if age <= b else 1 / (a * (age - b) + 1)


ROOT = polynomial(0.5)  # 1 / sqrt(1 + age)
