"""What trainings have spent together of a dataset's privacy, over Jobs and submitters, held against an owner's limit.
Accounting may come in; where the rows are kept, and who signs them, is a site's affair.

Trainings compose one after another, whoever asked for them (Mironov 2017; Kairouz et al. 2015): a record that was in
all of them is protected by the epsilon of all of them together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from foedus.privacy.accounting import Steps, composed


class Limit(NamedTuple):
    """What an owner lets be spent of a dataset, over its life: `epsilon` at `delta`."""

    epsilon: float
    delta: float


def epsilon(spent: Iterable[Steps], delta: float) -> float:
    """What these steps have spent at `delta`: the smaller of two upper bounds, by Rényi moments and by `pld`."""
    counted = tuple(sorted(spent))
    return min(_bound(counted, delta, "rdp"), _bound(counted, delta, "pld"))


def beyond(spent: Sequence[Steps], more: Steps, limit: Limit) -> float | None:
    """The epsilon that `more` would make of what was spent, if that is above the limit; None where it is not.

    The quick bound is looked at first: the tight one takes seconds.
    """
    counted = tuple(sorted([*spent, more]))
    if _bound(counted, limit.delta, "rdp") <= limit.epsilon:
        return None
    found = epsilon(counted, limit.delta)
    return found if found > limit.epsilon else None


@lru_cache(64)
def _bound(spent: tuple[Steps, ...], delta: float, accountant: str) -> float:
    return composed(spent, delta, accountant)  # type: ignore[arg-type]
