"""What several models share at the server: steps, terms that others determine, p-values of a normal law.
Only numpy may come in."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from foedus.errors import JobError
from foedus.params import Array

DEPENDENT = 1e-11  # of a column's square that others leave over: less is rounding
Z = 1.959963984540054  # of a 95 % interval
_erfc = np.vectorize(math.erfc, otypes=[float])


def two_sided(z: Any) -> Array:
    """The p-value of a standard normal statistic, far into its tail."""
    return np.asarray(_erfc(np.abs(z) / math.sqrt(2)))


def confidence(x: Array, se: Array) -> dict[str, Array]:
    """The ends of 95 % intervals."""
    return {"low": x - Z * se, "high": x + Z * se}


def free(penalty: Array) -> Array:
    """Penalties of all terms, none for the intercept before them."""
    return np.concatenate([[0.0], penalty])


def kept(information: Array, size: float) -> Array:
    """Which columns are no combination of those before them, as booleans: by a Cholesky factor."""
    rest, use = information.copy(), np.zeros(len(information), bool)
    most = np.diag(information).copy()
    for j in range(len(rest)):
        use[j] = rest[j, j] > DEPENDENT * max(most[j], DEPENDENT * size)
        if use[j]:
            rest = rest - np.outer(rest[:, j], rest[j]) / rest[j, j]
    return use


def solved(matrix: Array, right: Array) -> Array:
    """The solution. Raises JobError where the matrix has none."""
    try:
        return np.asarray(np.linalg.solve(matrix, right))
    except np.linalg.LinAlgError:
        raise JobError("the columns determine one another: leave one out, or give l2=…") from None


def endless(before: float, after: float, step: Array) -> Array:
    """Which terms still move where the objective no longer does: their coefficients are infinite."""
    still = abs(after - before) < 1e-9 * max(1.0, abs(before))
    return np.asarray((np.abs(step) > 1e-3) & still)


def newton_step(h: Array, score: Array, start: Array, ridge: Array, lasso: Array, use: Array) -> Array:
    """The minimum of (b - start)' h (b - start) / 2 - score' (b - start) + ridge b² / 2 + lasso |b|, over `use`."""
    found = np.zeros_like(start)
    if lasso.any():
        found[use] = _descent(h[np.ix_(use, use)], score[use], start[use], ridge[use], lasso[use])
    else:
        right = score[use] - ridge[use] * start[use]
        found[use] = start[use] + solved(h[np.ix_(use, use)] + np.diag(ridge[use]), right)
    return found


def _descent(h: Array, score: Array, start: Array, ridge: Array, lasso: Array) -> Array:
    """By coordinate descent; once the signs stay, the equations of the terms that are not zero."""
    b, linear = start.copy(), score + h @ start
    for _ in range(10_000):
        before = b.copy()
        for j in range(len(b)):
            pull = linear[j] - h[j] @ b + h[j, j] * b[j]
            b[j] = math.copysign(max(0.0, abs(pull) - lasso[j]), pull) / (h[j, j] + ridge[j])
        if np.abs(b - before).max() <= 1e-13 * max(1.0, float(np.abs(b).max())):
            break
    on = (b != 0) | (lasso == 0)
    b[on] = solved(h[np.ix_(on, on)] + np.diag(ridge[on]), linear[on] - lasso[on] * np.sign(b[on]))
    return b
