"""The weighted mean: the same bits in any order, sharding or tree of aggregators.
Only the two arithmetics may come in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

from foedus.aggregators import exact
from foedus.aggregators.fixed import Fixed, fixed_sum
from foedus.core import Origin, Slice, Sum, Update
from foedus.errors import JobError

Bins = dict[str, exact.Bins]


def mean(discount: Callable[[int], float] | None = None, arithmetic: Fixed | None = None) -> Sum:
    """The mean of the updates by their weights (McMahan et al. 2017), in `exact` arithmetic or in `fixed(bound, wmax)`.

    `discount(age)` makes an update lighter that is `age` rounds old (Nguyen et al. 2022). Half-precision arrays
    give a float32 mean; others keep their dtype.
    """
    rule = Sum(_fold, _merge, _finish, rows=_fold_rows) if arithmetic is None else fixed_sum(arithmetic)
    return rule if discount is None else discounted(rule, discount)


def discounted(rule: Sum, discount: Callable[[int], float]) -> Sum:
    """The same rule, in which an update that is `age` rounds old weighs `discount(age)` times what it did."""

    def weigh(update: Update, origin: Origin) -> float:
        weight = rule.weigh(update, origin) * discount(origin.age)
        if not 2.0**-64 <= weight <= 2.0**64:
            raise JobError(
                f"the discount makes {weight} of weight {update.weight} at age {origin.age}: keep it positive"
            )
        return significant(weight)

    bind = rule.bind
    bound = None if bind is None else lambda asked: discounted(bind(asked), discount)
    return rule._replace(weigh=weigh, bind=bound)


def significant(weight: float, bits: int = 29) -> float:
    """The nearest float with at most `bits` significant bits: a product of it and a float32 is exact in float64."""
    fraction, exponent = math.frexp(weight)
    return math.ldexp(round(math.ldexp(fraction, bits)), exponent - bits)


def _fold(acc: Bins | None, part: Slice, weight: float) -> Bins:
    if acc is None:
        acc = {group: exact.empty(x.size, x.dtype) for group, x in part.items()}
    if len(part) > 1:  # one group is checked by its fold; with several, none may be folded before all are checked
        for group, x in part.items():
            exact.check(acc[group], x, weight)
    for group, x in part.items():
        exact.fold(acc[group], x, weight)
    return acc


def _fold_rows(acc: Bins | None, part: Slice, weights: Sequence[float]) -> Bins:
    if acc is None:
        acc = {group: exact.empty(x.shape[-1], x.dtype) for group, x in part.items()}
    if len(part) > 1:
        for group, x in part.items():
            for row, weight in zip(x, weights, strict=True):
                exact.check(acc[group], row, weight)
    for group, x in part.items():
        exact.fold_rows(acc[group], x, weights)
    return acc


def _merge(a: Bins, b: Bins) -> Bins:
    return {group: exact.merge(bins, b[group]) for group, bins in a.items()}


def _finish(acc: Bins, weight: Fraction) -> Slice:
    return {group: exact.total(bins, weight) for group, bins in acc.items()}
