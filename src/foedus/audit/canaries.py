"""An audit of ε in one run (Steinke, Nasr and Jagielski 2023): canaries, each in or out by a coin, are guessed.
So many right guesses as an ε-private run would hardly allow refute that ε."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from foedus.audit.matching import Known
from foedus.data import Pairs
from foedus.errors import FoedusError, Missing
from foedus.keys import Key
from foedus.params import Array

SHARES = (0.9, 0.25)  # of the canaries that are guessed, those of which the guess is surest
DOUBT = 0.05  # that the bound is above the true ε
LARGEST = 100.0


class Bound(NamedTuple):
    """With 95 % confidence ε is at least `epsilon`; of `guesses` guesses `right` were right, by the scores `by`."""

    epsilon: float
    guesses: int
    right: int
    canaries: int
    by: str = ""


def p_value(epsilon: float, delta: float, canaries: int, guesses: int, right: int) -> float:
    """The chance of so many right guesses or more under (ε, δ), at most (Steinke et al. 2023, theorem 5.2).

    With W of Binomial(r, e^ε / (1 + e^ε)): P[W ≥ v] + 2 m δ max over i ≤ v of P[v - i ≤ W < v] / i.
    """
    binom = _binomial()
    sure = 1 / (1 + math.exp(-epsilon))
    beyond = float(binom.sf(right - 1, guesses, sure))
    if not delta:
        return beyond
    nearly = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), guesses, sure))
    steepest = float((nearly / np.arange(1, right + 1)).max(initial=0.0))
    return min(1.0, beyond + 2 * canaries * delta * steepest)


def lower_bound(canaries: int, guesses: int, right: int, delta: float = 0.0, doubt: float = DOUBT) -> float:
    """The largest ε that so many right guesses refute at this level of doubt; 0 where they refute none.

    Raises FoedusError for numbers that cannot be.
    """
    if not 0 <= right <= guesses <= canaries or not 0 <= delta < 1:
        raise FoedusError(f"{right} of {guesses} guesses right, of {canaries} canaries, at delta {delta}: cannot be")
    if p_value(0.0, delta, canaries, guesses, right) > doubt:
        return 0.0
    low, high = 0.0, LARGEST
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(middle, delta, canaries, guesses, right) <= doubt else (low, middle)
    return low


def guessed(scores: Array, inside: Array, guesses: int) -> int:
    """How many guesses are right: "in" for the half with the highest scores, "out" for that with the lowest."""
    order = np.argsort(scores, kind="stable")
    highest = guesses // 2
    lowest = guesses - highest
    return int(inside[order[len(order) - highest :]].sum() + (~inside[order[:lowest]]).sum())


def audited(scores: dict[str, Array], inside: Array, delta: float = 0.0, doubt: float = DOUBT) -> Bound:
    """The best bound over all kinds of scores and shares of guesses, each at its part of the doubt (Bonferroni)."""
    m, tries = len(inside), len(scores) * len(SHARES)
    found = []
    for by, score in scores.items():
        for share in SHARES:
            guesses = max(1, int(share * m))
            right = guessed(score, inside, guesses)
            found.append(Bound(lower_bound(m, guesses, right, delta, doubt / tries), guesses, right, m, by))
    return max(found, key=lambda bound: (bound.epsilon, bound.guesses))


def made(count: int, known: Known, y: Array, key: Key) -> tuple[Pairs, Array]:
    """(canaries, which of them are in): each number at an end of its range, somebody's target, a coin each."""
    draw = key("canaries").numpy()
    x = draw.choice([known.low, known.high], (count, *known.x.shape[1:])).astype(known.x.dtype, copy=False)
    return Pairs(x, y[draw.integers(len(y), size=count)]), key("coins").numpy().random(count) < 0.5


def _binomial() -> Any:
    try:
        from scipy.stats import binom
    except ImportError as error:
        raise Missing("scipy", "audit") from error
    return binom
